//! Text from outside in the log of leafd: none of it commands the terminal that shows the log, or forges an entry.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, ensure};
use leaf_core::problem::ProblemCode;
use libtest_mimic::Trial;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{HOSTILE, Host, Hub, Setup, TestLeaf, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    vec![
        host.trial(
            "a hardware report and a caller with control characters write escapes into the log",
            &[],
            devices_and_callers,
        ),
        host.trial(
            "errors of nix and nixos-facter with control characters are written into the log as escapes",
            &[],
            programs,
        ),
        host.trial(
            "an error of a NATS server with control characters is written into the log as escapes",
            &[],
            server,
        ),
    ]
}

/// Fails unless the log has the text after `what`, and nothing in it commands a terminal or begins an entry.
async fn escaped(leaf: &TestLeaf, what: &str) -> anyhow::Result<()> {
    leaf.logged(what).await?;
    until("the text, as escapes", async || {
        let log = leaf.log();
        let of_it = log.lines().filter(|line| line.contains(what));
        Ok(of_it
            .into_iter()
            .any(|line| line.contains(r"u{1b}]52;c;cm0=\"))
            .then_some(()))
    })
    .await
    .with_context(|| format!("{what:?} in the log:\n{}", leaf.log_end()))?;
    let log = leaf.log();
    let raw = |c: &char| {
        (c.is_control() && *c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let found: Vec<char> = log.chars().filter(raw).collect();
    ensure!(found.is_empty(), "{found:?}");
    ensure!(
        !log.lines().any(|line| line.starts_with("FORGED")),
        "{}",
        leaf.log_end()
    );
    Ok(())
}

async fn devices_and_callers() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let report = dir.path().join("report.json");
    let device = json!({ "model": HOSTILE, "hotplug": HOSTILE, "sysfs_id": HOSTILE, HOSTILE: 1 });
    let text = json!({
        "version": 1, "system": "x86_64-linux", "virtualisation": "none",
        "hardware": { HOSTILE: "text", "usb": [device], "disk": HOSTILE },
    });
    std::fs::write(&report, serde_json::to_vec(&text)?)?;
    let mut leaf = Setup::new()
        .set("hardware.facter_report", report.display().to_string())
        .start()
        .await?;
    leaf.logged("can't use a part of the nixos-facter report").await?;

    // A caller's text comes back in its problem, which the log has as well.
    let body = json!({ "name": "web", "source": { "type": HOSTILE } });
    let answer = leaf
        .call_raw("container", "create", &serde_json::to_vec(&body)?)
        .await;
    match answer {
        Err(leaf_bus::client::CallError::Problem(problem)) => {
            ensure!(
                problem.code == ProblemCode::Malformed && problem.detail.contains('\u{1b}'),
                "{problem:?}"
            );
        }
        other => anyhow::bail!("not refused: {other:?}"),
    }
    escaped(&leaf, "answered with a problem").await?;
    leaf.stop().await.map(drop)
}

/// Nix and nixos-facter say something and fail, as they do with a setting or a file that they quote.
async fn programs() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let words = dir.path().join("words");
    std::fs::write(&words, format!("error: {HOSTILE}\n"))?;
    let program = dir.path().join("program");
    std::fs::write(
        &program,
        format!("#!/bin/sh\ncat {} >&2\nexit 1\n", words.display()),
    )?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let program = program.display().to_string();
    let mut leaf = Setup::new()
        .set("nix.program", program.clone())
        .set("hardware.facter_program", program)
        .start()
        .await?;
    escaped(&leaf, "this leaf runs no Nix jobs").await?;
    escaped(&leaf, "nixos-facter made no report").await?;
    leaf.stop().await.map(drop)
}

/// Speaks as a server does, up to an error.
async fn hostile_server(stream: TcpStream) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    let info = json!({
        "server_id": "hostile", "server_name": "hostile", "version": "2.12.0", "proto": 1, "headers": true,
        "host": "127.0.0.1", "port": 4222, "max_payload": 1_048_576, "nonce": "abcdefgh",
    });
    stream.write_all(format!("INFO {info}\r\n").as_bytes()).await?;
    let error = HOSTILE.replace(['\r', '\n'], " ");
    let mut line = String::new();
    let mut told = false;
    while stream.read_line(&mut line).await? > 0 {
        if line.starts_with("PING") {
            stream.write_all(b"PONG\r\n").await?;
            if !told {
                stream.write_all(format!("-ERR '{error}'\r\n").as_bytes()).await?;
                told = true;
            }
        }
        line.clear();
    }
    Ok(())
}

async fn server() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(hostile_server(stream));
        }
    });
    let mut leaf = hub
        .setup()
        .set("nats.url", format!("nats://{address}"))
        .launch()
        .await?;
    escaped(&leaf, "the NATS server reports an error").await?;
    leaf.stop().await.map(drop)
}

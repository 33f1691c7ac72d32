//! `leafd check-nats` and `leafctl nats check` against a server that is no leaf's own.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context as _, ensure};
use leaf_bus::identity::{Permissions, admin_caller};
use leaf_core::subject;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{Host, Hub, LIMIT, Setup};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let leafctl = leafctl();
    vec![
        host.trial(
            "check-nats tries the rights of the leaf's users, of a container and of a person, and fails where one is wrong",
            &[],
            leafs_users,
        ),
        host.trial(
            "a leaf on a given NATS takes commands over a new connection once its credentials were renewed",
            &[],
            renewed,
        ),
        host.trial(
            "leafctl: nats check tries the rights of the context's user, and fails where one is wrong",
            &[],
            person,
        )
        .with_ignored_flag(!leafctl.is_file()),
    ]
}

fn leafd() -> PathBuf {
    env!("CARGO_BIN_EXE_leafd").into()
}

fn leafctl() -> PathBuf {
    leafd().with_file_name("leafctl")
}

async fn run(program: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let run = Command::new(program)
        .args(arguments)
        .env_remove("LEAFCTL_CONTEXT")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(LIMIT, run)
        .await
        .context("it ends")?
        .map_err(Into::into)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the report, after the program ended like this.
fn report(output: &Output, code: i32) -> anyhow::Result<Value> {
    ensure!(
        output.status.code() == Some(code),
        "{:?}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn wrong(report: &Value) -> Vec<&Value> {
    let findings = report["findings"].as_array().into_iter().flatten();
    findings.filter(|finding| finding["ok"] == json!(false)).collect()
}

async fn renewed() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    let mut leaf = hub.setup().start().await?;
    leaf.published().await?;
    let shown = leaf.show().await?;
    ensure!(
        shown.local_access.is_none() && shown.credentials_until.is_none(),
        "{shown:?}"
    );
    // Another user with the same rights, in the same files.
    let _ = hub.setup_of(&hub.leaf)?;
    leaf.logged("commands come over a connection with renewed credentials")
        .await?;
    ensure!(leaf.show().await?.instance == shown.instance);
    leaf.stop().await.map(drop)
}

async fn leafs_users() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    let key = hub.signing_key()?.display().to_string();
    let with_key = |setup: Setup| setup.set("nats.container_signing_key", key.clone());
    // The leaf makes its streams; what it needs them for is tried afterwards.
    let mut leaf = with_key(hub.setup()).start().await?;
    let config = leaf.settings_file().display().to_string();
    let context = leaf.context_file().display().to_string();
    let all = ["check-nats", "--config", &config, "--context", &context];
    let output = run(&leafd(), &[&all[..], &["--json"]].concat()).await?;
    let right = report(&output, 0)?;
    ensure!(
        right["ok"] == json!(true) && wrong(&right).is_empty(),
        "{right:#}"
    );
    for user in ["leafd (streams)", "leafd (callers)", "person admin", "container"] {
        let of = |finding: &&Value| finding["user"] == user;
        let findings = right["findings"].as_array().context("findings")?;
        ensure!(findings.iter().filter(of).count() > 20, "{user}: {right:#}");
    }
    ensure!(!right.to_string().contains("untried"), "{right:#}");
    // A leaf that runs takes no notice.
    ensure!(leaf.show().await?.name == leaf.name);

    // As a table, for the leaf's own users alone.
    let output = run(&leafd(), &all[..3]).await?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    let heading: Vec<&str> = table
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(
        heading[..5] == ["USER", "ACTION", "SUBJECT", "EXPECTED", "FOUND"],
        "{table}"
    );
    let beat = subject::beat(&leaf.name);
    ensure!(
        table
            .lines()
            .any(|line| line.contains(&beat) && line.contains("publish to")),
        "{table}"
    );

    // The users the wrong way round: each has what the other must not have.
    let settings = std::fs::read_to_string(&config)?;
    let swapped = settings
        .replace("/callers.", "/others.")
        .replace("/streams.", "/callers.")
        .replace("/others.", "/streams.");
    let file = hub.secret_file("swapped.toml", &swapped)?.display().to_string();
    let output = run(&leafd(), &["check-nats", "--config", &file, "--json"]).await?;
    let report = report(&output, 1)?;
    ensure!(wrong(&report).len() > 10, "{report:#}");
    ensure!(
        text(&output.stderr).contains("rights are not as they must be"),
        "{}",
        text(&output.stderr)
    );
    leaf.stop().await.map(drop)
}

async fn person() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    let mut leaf = hub.setup().start().await?;
    let name = leaf.name.to_string();
    let context = leaf.context_file().display().to_string();
    let arguments = ["nats", "check", &name, "--context", &context];
    let right = report(
        &run(&leafctl(), &[&arguments[..], &["--json"]].concat()).await?,
        0,
    )?;
    ensure!(right["ok"] == json!(true), "{right:#}");

    // One right too few and one too many.
    let mut permissions = Permissions::person(&admin_caller());
    permissions.subscribe.retain(|of| *of != subject::jobs());
    permissions.publish.push(subject::jobs_of(&leaf.name));
    let credentials = leaf.identity()?.user_credentials(&admin_caller(), &permissions);
    let creds = hub
        .secret_file("few.creds", credentials.expose())?
        .display()
        .to_string();
    let output = run(&leafctl(), &[&arguments[..], &["--creds", &creds]].concat()).await?;
    ensure!(output.status.code() == Some(1), "{:?}", output.status);
    let table = text(&output.stdout);
    let bad: Vec<&str> = table
        .lines()
        .filter(|line| line.contains("REFUSED") || line.contains("ALLOWED"))
        .collect();
    ensure!(
        bad.len() == 2
            && bad[0].contains("allow it to subscribe to leaf.v1.job.>")
            && bad[1].contains("don't allow it to publish to leaf.v1.job."),
        "{bad:#?}"
    );
    ensure!(text(&output.stderr).contains("2 of"), "{}", text(&output.stderr));
    leaf.stop().await.map(drop)
}

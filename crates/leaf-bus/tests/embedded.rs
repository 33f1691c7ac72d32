//! The embedded server under faults: killed, frozen, left behind, kept from its port.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use leaf_bus::embedded::{EmbeddedError, EmbeddedServer, EmbeddedSettings, EmbeddedStatus, NatsServer};
use leaf_bus::identity::{Identity, daemon_caller};
use leaf_core::subject;
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::support::{LIMIT, Site, User, freeze, leaf, runs, runtime, settings, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_server_that_is_killed_comes_back_with_its_data_on_the_same_port",
            killed,
        ),
        trial("a_server_that_is_frozen_is_replaced_on_request", frozen),
        trial("a_stopped_server_is_gone_and_starts_again_on_its_port", stopped),
        trial("a_dropped_server_is_killed", dropped),
        trial(
            "the_streams_account_is_loaded_before_the_server_accepts_connections",
            account_loaded,
        ),
        trial(
            "a_server_left_behind_by_a_killed_daemon_is_taken_over",
            left_behind,
        ),
        trial(
            "a_second_daemon_in_the_same_directory_is_refused_and_harms_nothing",
            second,
        ),
        trial("a_port_that_is_taken_is_refused_with_its_holder", port_taken),
        trial(
            "a_kept_port_that_was_taken_meanwhile_is_given_up",
            kept_port_taken,
        ),
        trial("an_address_that_the_host_lacks_is_refused", no_such_address),
        trial("listening_on_every_address_is_refused", the_world),
        trial("a_server_that_cannot_start_says_why", cannot_start),
    ]
}

fn pid(raw: u32) -> anyhow::Result<Pid> {
    Pid::from_raw(i32::try_from(raw)?).context("a process")
}

/// Waits until there is no such process, or only its remains.
async fn gone(raw: u32) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{raw}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
        if test_kill_process(pid(raw)?).is_err() || matches!(state, Some(Some('Z' | 'X'))) {
            return Ok(());
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "process {raw} is still there"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn publish(user: &User, expected: u64) -> anyhow::Result<()> {
    let js = jetstream::new(user.client.clone());
    let event = subject::event(&leaf(), "leaf", "edge", "started");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", expected.to_string().as_str());
    let deadline = tokio::time::Instant::now() + LIMIT;
    // While the client reconnects, a publish may be lost or unanswered.
    loop {
        let sent = js
            .publish_with_headers(event.clone(), headers.clone(), "x".into())
            .await;
        match sent?.await {
            Ok(ack) => {
                ensure!(ack.sequence == expected, "{ack:?}, not {expected}");
                return Ok(());
            }
            Err(e) => ensure!(tokio::time::Instant::now() < deadline, "{e}"),
        }
    }
}

async fn with_stream(site: &Site) -> anyhow::Result<User> {
    let user = site
        .connect(&site.identity.leaf_credentials(), &daemon_caller())
        .await?;
    let mut js = jetstream::new(user.client.clone());
    js.set_timeout(Duration::from_secs(5));
    js.create_stream(jetstream::stream::Config {
        name: subject::event_stream(&leaf()),
        subjects: vec![subject::events_of(&leaf())],
        ..Default::default()
    })
    .await?;
    Ok(user)
}

async fn killed() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let url = site.server.client_url();
    let user = with_stream(&site).await?;
    let mut process = runs(&site.server, None).await?;
    publish(&user, 1).await?;
    for round in 0..3 {
        kill_process(pid(process)?, Signal::KILL)?;
        process = runs(&site.server, Some(process)).await?;
        ensure!(site.server.client_url() == url);
        publish(&user, 2 + round).await?;
    }
    site.server.stop().await;
    Ok(())
}

async fn frozen() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let identity = Identity::open_or_create(&dir.path().join("identity"), &leaf())?;
    let mut settings = settings(dir.path());
    settings.stop_within = Duration::from_millis(200);
    let server = EmbeddedServer::start(settings, &identity).await?;
    let first = runs(&server, None).await?;
    freeze(first).await?;
    let mut status = server.status();
    server.restart("publishes go unanswered");
    let restarting = tokio::time::timeout(
        LIMIT,
        status.wait_for(
            |s| matches!(s, EmbeddedStatus::Restarting { reason } if reason == "publishes go unanswered"),
        ),
    );
    restarting.await??;
    let second = runs(&server, Some(first)).await?;
    gone(first).await?;
    server.stop().await;
    gone(second).await
}

async fn stopped() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let process = runs(&site.server, None).await?;
    let url = site.server.client_url();
    let status = site.server.status();
    site.server.stop().await;
    gone(process).await?;
    ensure!(*status.borrow() == EmbeddedStatus::Stopped);
    let again = EmbeddedServer::start(settings(site.dir.path()), &site.identity).await?;
    ensure!(again.client_url() == url, "{} is not {url}", again.client_url());
    again.stop().await;
    Ok(())
}

async fn dropped() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let process = runs(&site.server, None).await?;
    drop(site.server);
    gone(process).await
}

/// With the store and the configuration of a first start: nats-server loads an account that it comes to know later while it answers
/// requests, and a stream that is created at that moment fails or loses its files.
async fn account_loaded() -> anyhow::Result<()> {
    let site = Site::start().await?;
    site.server.stop().await;
    let home = site.dir.path().join("nats");
    let log = site.dir.path().join("debug.log");
    let _child = Command::new(NatsServer::find(None).await?.path)
        .arg("--config")
        .arg(home.join("nats-server.conf"))
        .args(["--debug", "--log"])
        .arg(&log)
        .kill_on_drop(true)
        .spawn()?;
    let ready = async {
        loop {
            let lines = std::fs::read_to_string(&log).unwrap_or_default();
            if let Some((before, _)) = lines.split_once("Listening for client connections") {
                return before.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let before = tokio::time::timeout(LIMIT, ready).await?;
    let loaded = format!("Enabled JetStream for account \"{}\"", site.identity.account());
    ensure!(before.contains(&loaded), "{before}");
    Ok(())
}

const DAEMON: &str = "--play-the-daemon";

/// This program as a daemon: starts the server in the directory given and waits to be killed.
pub(crate) fn play_the_daemon() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != DAEMON {
        return None;
    }
    let dir = PathBuf::from(arguments.next().expect("a directory"));
    let play = async {
        let identity = Identity::open_or_create(&dir.join("identity"), &leaf())?;
        let server = EmbeddedServer::start(settings(&dir), &identity).await?;
        println!("{} {}", runs(&server, None).await?, server.client_url());
        std::future::pending::<anyhow::Result<()>>().await
    };
    Some(match runtime().block_on(play) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e:?}");
            ExitCode::FAILURE
        }
    })
}

async fn daemon_in(dir: &Path) -> anyhow::Result<(Child, u32, String)> {
    let mut daemon = Command::new(std::env::current_exe()?)
        .arg(DAEMON)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let out = daemon.stdout.take().context("its output")?;
    let line = tokio::time::timeout(LIMIT, BufReader::new(out).lines().next_line())
        .await??
        .context("the daemon ended")?;
    let (process, url) = line.split_once(' ').context("a process and an address")?;
    Ok((daemon, process.parse()?, url.to_owned()))
}

async fn left_behind() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut last: Option<(u32, String)> = None;
    for _ in 0..3 {
        let (mut daemon, process, url) = daemon_in(dir.path()).await?;
        if let Some((left, old_url)) = &last {
            ensure!(
                *left != process && *old_url == url,
                "{left} {old_url} {process} {url}"
            );
            gone(*left).await?;
        }
        daemon.kill().await?;
        ensure!(
            test_kill_process(pid(process)?).is_ok(),
            "the server outlives a killed daemon"
        );
        last = Some((process, url));
    }
    let (left, url) = last.context("three rounds")?;
    let identity = Identity::open_or_create(&dir.path().join("identity"), &leaf())?;
    let server = EmbeddedServer::start(settings(dir.path()), &identity).await?;
    gone(left).await?;
    ensure!(server.client_url() == url);
    User::connect(&url, &identity.leaf_credentials(), &daemon_caller()).await?;
    server.stop().await;
    Ok(())
}

async fn second() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let process = runs(&site.server, None).await?;
    let second = EmbeddedServer::start(settings(site.dir.path()), &site.identity).await;
    ensure!(matches!(second, Err(EmbeddedError::InUse { .. })), "{second:?}");
    ensure!(runs(&site.server, None).await? == process);
    site.connect(&site.identity.leaf_credentials(), &daemon_caller())
        .await?;
    site.server.stop().await;
    Ok(())
}

async fn refused(change: impl FnOnce(&mut EmbeddedSettings)) -> anyhow::Result<EmbeddedError> {
    let dir = tempfile::tempdir()?;
    let identity = Identity::open_or_create(&dir.path().join("identity"), &leaf())?;
    let mut settings = settings(dir.path());
    change(&mut settings);
    match EmbeddedServer::start(settings, &identity).await {
        Ok(server) => {
            server.stop().await;
            anyhow::bail!("it started")
        }
        Err(e) => Ok(e),
    }
}

async fn port_taken() -> anyhow::Result<()> {
    let holder = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = holder.local_addr()?;
    let error = refused(|s| s.listen = address).await?;
    ensure!(matches!(error, EmbeddedError::PortTaken { .. }), "{error:?}");
    let text = error.to_string();
    ensure!(
        text.contains(&address.to_string()) && text.contains(&std::process::id().to_string()),
        "{text}"
    );
    Ok(())
}

async fn kept_port_taken() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let address = site.server.address();
    site.server.stop().await;
    let _holder = std::net::TcpListener::bind(address)?;
    let again = EmbeddedServer::start(settings(site.dir.path()), &site.identity).await?;
    ensure!(again.address() != address);
    again.stop().await;
    Ok(())
}

async fn no_such_address() -> anyhow::Result<()> {
    // TEST-NET-1 (RFC 5737): no host has it.
    let error = refused(|s| s.listen = ([192, 0, 2, 1], 0).into()).await?;
    ensure!(matches!(error, EmbeddedError::NoSuchAddress { .. }), "{error:?}");
    Ok(())
}

async fn the_world() -> anyhow::Result<()> {
    let error = refused(|s| s.listen = ([0, 0, 0, 0], 4222).into()).await?;
    ensure!(
        matches!(error, EmbeddedError::ListensToTheWorld { .. }),
        "{error:?}"
    );
    Ok(())
}

async fn cannot_start() -> anyhow::Result<()> {
    // A file stands in the way of its store.
    let error = refused(|s| {
        std::fs::create_dir_all(&s.dir).expect("a directory");
        std::fs::write(s.dir.join("jetstream"), "").expect("a file");
    })
    .await?;
    ensure!(
        matches!(&error, EmbeddedError::File { path, .. } if path.ends_with("jetstream")),
        "{error:?}"
    );
    // No payload may be as large as this.
    let error = refused(|s| s.max_payload = u32::MAX).await?;
    let text = error.to_string();
    ensure!(
        matches!(error, EmbeddedError::Ended { .. }) && text.contains("max_payload"),
        "{text}"
    );
    Ok(())
}

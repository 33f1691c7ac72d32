//! The init of the minimal system: becomes ready when it is connected to NATS, answers health requests there, reaps
//! children, and halts on a signal.

use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::StreamExt as _;
use leaf_bus::container::ContainerClient;
use leaf_core::host_op::ContainerBinding;
use leaf_core::id::{ContainerName, LeafName};
use rustix::process::WaitOptions;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::log;

/// The signal that makes a container's init halt: SIGRTMIN+3 (systemd(1)), where SIGRTMIN is 34 with this C library.
const HALT: i32 = 34 + 3;
/// How long closing the NATS connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A container's reply to a health request.
#[derive(Debug, Serialize)]
struct Health<'a> {
    container: &'a ContainerName,
    leaf: &'a LeafName,
    status: &'static str,
    uptime_ms: u128,
    pid: u32,
    version: &'static str,
}

/// Runs until a signal makes it halt.
pub(crate) async fn init() -> anyhow::Result<()> {
    let started = Instant::now();
    // First: the kernel drops a signal that process 1 has no handler for.
    let mut signals = Signals::watch()?;
    crate::mounts::mount_missing()?;
    crate::network::set_up().await?;
    let (binding, credentials) = identity()?;
    log(&format!(
        "container {} of leaf {}, NATS at {}",
        binding.container, binding.leaf, binding.nats_url
    ));
    let client = ContainerClient::connect(&binding, &credentials)
        .await
        .context("connect to NATS")?;
    let health = || {
        let health = Health {
            container: &binding.container,
            leaf: &binding.leaf,
            status: "ok",
            uptime_ms: started.elapsed().as_millis(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
        };
        serde_json::to_vec(&health).expect("a health report has text keys and no failing parts")
    };
    let mut links = crate::network::changes()?;
    let mut status = client.status();
    let mut serving = pin!(client.serve_health(health));
    let mut was_connected = None;
    let reason = loop {
        let connected = status.borrow_and_update().is_connected();
        if was_connected != Some(connected) {
            log(&status.borrow().to_string());
            if connected && was_connected != Some(true) {
                // Idempotent: the supervisor uses the first notification.
                sd_notify::notify(&[sd_notify::NotifyState::Ready])
                    .context("notify the supervisor that it is ready")?;
            }
            was_connected = Some(connected);
        }
        tokio::select! {
            // First, so that it subscribes before it becomes ready.
            biased;
            ended = &mut serving => {
                ended.context("answer health requests")?;
                anyhow::bail!("the health subscription ended unexpectedly");
            }
            _ = signals.halt.recv() => break "SIGRTMIN+3",
            _ = signals.terminate.recv() => break "SIGTERM",
            _ = signals.interrupt.recv() => break "SIGINT",
            _ = signals.child.recv() => reap(),
            Some(()) = links.next() => client.hurry(),
            changed = status.changed() => changed.context("watch the connection")?,
        }
    };
    log(&format!("halting on {reason}"));
    client.clone().close(CLOSE_TIMEOUT).await;
    Ok(())
}

/// Reads the container's binding to its leaf, and returns the file of its NATS credentials, which the leaf renews.
fn identity() -> anyhow::Result<(ContainerBinding, PathBuf)> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY")
        .context("$CREDENTIALS_DIRECTORY is not set: this container has no credentials")?;
    let directory = PathBuf::from(directory);
    let path = directory.join("leaf.json");
    let text = std::fs::read_to_string(&path);
    let text = text.with_context(|| format!("read the credential {}", path.display()))?;
    let binding = serde_json::from_str(&text).context("parse the credential leaf.json")?;
    Ok((binding, directory.join("nats.creds")))
}

/// Reaps all children that have ended, including orphans that process 1 inherited.
fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

struct Signals {
    halt: Signal,
    terminate: Signal,
    interrupt: Signal,
    child: Signal,
}

impl Signals {
    #[expect(
        clippy::disallowed_methods,
        reason = "an init is asked to halt until it does, and looks at all children whenever one has ended"
    )]
    fn watch() -> anyhow::Result<Self> {
        let watch =
            |kind: SignalKind| signal(kind).with_context(|| format!("handle signal {}", kind.as_raw_value()));
        Ok(Self {
            halt: watch(SignalKind::from_raw(HALT))?,
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
            child: watch(SignalKind::child())?,
        })
    }
}

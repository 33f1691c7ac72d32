//! The init of the minimal system: ready once NATS is reached, answers for its health there, reaps, and halts when it
//! is told to.

use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use leaf_bus::container::ContainerClient;
use leaf_core::host_op::{ContainerBinding, Secret};
use leaf_core::id::{ContainerName, LeafName};
use rustix::process::WaitOptions;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::say;

/// What tells a container's init to halt: SIGRTMIN+3 (systemd(1)), where SIGRTMIN is 34 with this C library.
const HALT: i32 = 34 + 3;
/// How long the last words over NATS may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a container answers when it is asked how it does.
#[derive(Debug, Serialize)]
struct Health<'a> {
    container: &'a ContainerName,
    leaf: &'a LeafName,
    status: &'static str,
    uptime_ms: u128,
    pid: u32,
    version: &'static str,
}

/// Runs until it is told to halt.
pub(crate) async fn init() -> anyhow::Result<()> {
    let started = Instant::now();
    // Before all else: a process 1 without a handler never sees the signal.
    let mut signals = Signals::watch()?;
    crate::mounts::mount_missing()?;
    crate::network::set_up().await?;
    let (binding, credentials) = identity()?;
    say(&format!(
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
    let mut status = client.status();
    let mut serving = pin!(client.serve_health(health));
    let mut was_connected = None;
    let reason = loop {
        let connected = status.borrow_and_update().is_connected();
        if was_connected != Some(connected) {
            say(&status.borrow().to_string());
            if connected && was_connected != Some(true) {
                // Again is no harm: the supervisor takes the first.
                sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("say that it is ready")?;
            }
            was_connected = Some(connected);
        }
        tokio::select! {
            // First, so that it listens before it says that it is ready.
            biased;
            ended = &mut serving => {
                ended.context("answer for the container's health")?;
                anyhow::bail!("the answers for the container's health ended by themselves");
            }
            _ = signals.halt.recv() => break "SIGRTMIN+3",
            _ = signals.terminate.recv() => break "SIGTERM",
            _ = signals.interrupt.recv() => break "SIGINT",
            _ = signals.child.recv() => reap(),
            changed = status.changed() => changed.context("watch the connection")?,
        }
    };
    say(&format!("halting on {reason}"));
    client.clone().close(FAREWELL).await;
    Ok(())
}

/// Reads what the container is told about its leaf, and its credentials.
fn identity() -> anyhow::Result<(ContainerBinding, Secret)> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY")
        .context("$CREDENTIALS_DIRECTORY is not set: this container has no credentials")?;
    let read = |name: &str| {
        let path = PathBuf::from(&folder).join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read the credential {}", path.display()))
    };
    let binding = serde_json::from_str(&read("leaf.json")?).context("understand the credential leaf.json")?;
    Ok((binding, Secret::new(read("nats.creds")?)))
}

/// Takes the ends of all children that have ended, foreign ones that fell to process 1 included.
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
    fn watch() -> anyhow::Result<Self> {
        let watch = |kind: SignalKind| {
            signal(kind).with_context(|| format!("watch for signal {}", kind.as_raw_value()))
        };
        Ok(Self {
            halt: watch(SignalKind::from_raw(HALT))?,
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
            child: watch(SignalKind::child())?,
        })
    }
}

//! The start and the end of the daemon, in four parts: the journal is opened ([`store`]), NATS and the host are made ready
//! ([`equipment`]), the leaf claims its name and recovers its state ([`claim`]), and all is put together and runs
//! ([`running`]).

mod claim;
mod running;
mod store;

use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::equipment;
use crate::settings::Settings;

use claim::Claim;
use running::Running;
use store::Store;

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// What kept it from starting, or ended it.
pub fn run(settings: Settings) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_new(&settings.log)
                .context("the setting `log` is not a filter such as `info`")?,
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let steps = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("steps")
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .context("the runtime of the steps can't be made")?;
    let events = events_runtime().context("the runtime of the events can't be made")?;
    let runtime = runtime().context("the runtime can't be made")?;
    let result = runtime.block_on(start(settings, steps.handle().clone(), events.handle().clone()));
    // A scan of the hardware may still be under way, and is not waited for.
    steps.shutdown_timeout(Duration::from_secs(1));
    events.shutdown_timeout(Duration::from_secs(1));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Returns the runtime of the loop, the connection and all between them: one thread, since a command passes through
/// several tasks, and to wake another thread for each costs more than what they do.
///
/// # Errors
/// What the system says.
pub fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(16)
        .enable_all()
        .build()
}

/// Returns the runtime of the publisher and its connection: one thread beside the loop, so that the events of one
/// commit are on their way into the stream while the next are recorded.
///
/// # Errors
/// What the system says.
pub fn events_runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("events")
        .max_blocking_threads(1)
        .enable_all()
        .build()
}

async fn start(settings: Settings, steps: Handle, events: Handle) -> anyhow::Result<()> {
    let mut signals = Signals::open()?;
    let (store, opened) = Store::open(&settings).await?;
    let begun = Box::pin(equipment::begin(&settings, &store.leaf));
    let Some(began) = signals.unless_stopped(begun).await? else {
        return Ok(());
    };
    let claimed = Box::pin(Claim::take(&settings, &store, opened, &began));
    let Some(claim) = signals.unless_stopped(claimed).await? else {
        if let Some(process) = began.server_process {
            process.stop().await;
        }
        return Ok(());
    };
    let running = Running::assemble(&settings, store, began, claim, steps, &events).await?;
    running.run(signals).await
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn open() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("SIGTERM can't be received")?,
            interrupt: signal(SignalKind::interrupt()).context("SIGINT can't be received")?,
        })
    }

    /// Waits for work of the start, and returns nothing if the daemon is stopped before that is done.
    async fn unless_stopped<T>(
        &mut self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<Option<T>> {
        tokio::select! {
            done = work => done.map(Some),
            reason = self.next() => {
                tracing::info!(reason, "stopped before it was ready");
                Ok(None)
            }
        }
    }

    /// Waits for the next signal, and returns its name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

//! The start and the end of the daemon, in four parts: the journal is opened ([`store`]), NATS and the host are
//! prepared ([`equipment`]), the leaf claims its name and recovers its state ([`claim`]), and the main loop and its
//! tasks are assembled and run ([`running`]).

mod claim;
mod equipment;
mod running;
mod store;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use leaf_host::signals::Termination;
use tokio::runtime::{Handle, Runtime};

use crate::changes::HubSettings;
use crate::settings::Settings;

use claim::Claim;
use running::Running;
use store::Store;

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs the daemon until SIGTERM or SIGINT. `changes` is the state directory of changes that can cut the leaf off.
///
/// # Errors
/// The reason why it did not start, or why it ended early.
pub fn run(mut settings: Settings, changes: &Path) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_new(&settings.log)
                .context("the setting `log` is not a valid filter (an example: `info`)")?,
        )
        .with_writer(leaf_host::log::stderr)
        .with_ansi(false)
        .init();
    leaf_host::process::write_no_core().context("can't set the limit of core files")?;
    // Before there are threads.
    let termination = Termination::receive().context("can't receive SIGTERM and SIGINT")?;
    let steps = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("steps")
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .context("can't create the runtime of the steps")?;
    let events = events_runtime().context("can't create the runtime of the events")?;
    let runtime = runtime().context("can't create the runtime")?;
    let handles = (steps.handle().clone(), events.handle().clone());
    let hub = HubSettings::apply(&mut settings, changes);
    let result = runtime.block_on(start(settings, hub, termination, handles));
    // A hardware scan may still be running; the end doesn't wait for it.
    steps.shutdown_timeout(Duration::from_secs(1));
    events.shutdown_timeout(Duration::from_secs(1));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Returns the runtime of the main loop, the connection and the tasks between them. It has one thread: a command passes
/// through several tasks, and waking another thread for each would cost more than their work.
///
/// # Errors
/// The system's error.
pub fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(16)
        .enable_all()
        .build()
}

/// Returns the runtime of the publisher and its connection: one thread beside the main loop's, so that the events of
/// one commit are published while the next are recorded.
///
/// # Errors
/// The system's error.
pub fn events_runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("events")
        .max_blocking_threads(1)
        .enable_all()
        .build()
}

async fn start(
    settings: Settings,
    hub: HubSettings,
    mut termination: Termination,
    (steps, events): (Handle, Handle),
) -> anyhow::Result<()> {
    let (store, opened) = Store::open(&settings).await?;
    hub.note_ended(&settings.state_dir);
    let set_up = Box::pin(equipment::set_up(&settings, &store.leaf, store.instance));
    let Some(host_and_nats) = unless_stopped(&mut termination, set_up).await? else {
        return Ok(());
    };
    let claimed = Box::pin(Claim::take(&settings, &store, opened, &host_and_nats));
    let Some(claim) = unless_stopped(&mut termination, claimed).await? else {
        if let Some(hub) = host_and_nats.hub {
            hub.release(store.instance, store.journal.last_sequence()).await;
        }
        if let Some(process) = host_and_nats.server_process {
            process.stop().await;
        }
        return Ok(());
    };
    let running = Running::assemble(&settings, hub, store, host_and_nats, claim, steps, &events).await?;
    running.run(termination).await
}

/// Waits for a part of the start; returns `None` if the daemon is asked to end first.
async fn unless_stopped<T>(
    termination: &mut Termination,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<Option<T>> {
    tokio::select! {
        done = work => done.map(Some),
        reason = termination.next() => {
            tracing::info!(reason, "stopped before it was ready");
            Ok(None)
        }
    }
}

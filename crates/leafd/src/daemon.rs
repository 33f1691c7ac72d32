//! The start and the end of the daemon: everything is made here, in order, and put together.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use leaf_bus::connect::ConnectSettings;
use leaf_bus::embedded::EmbeddedServer;
use leaf_bus::serve::{Server, ServiceInfo};
use leaf_bus::stream::StreamSettings;
use leaf_core::accepted::CommandRecord;
use leaf_core::beat::{BEAT_SECONDS, Beat};
use leaf_core::engine::{Engine, EngineSettings, History, Limits, Resumed, Snapshots};
use leaf_core::event::HostFacts;
use leaf_core::id::InstanceId;
use leaf_core::state::{RawEntry, State};
use leaf_journal::{Journal, Options};
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::clock::Clock;
use crate::lease::Predecessors;
use crate::main_loop::MainLoop;
use crate::publisher::{Carrier, Published};
use crate::settings::Settings;
use crate::steps::InFlight;
use crate::tasks::Tasks;
use crate::workers::{Equipment, Workers};
use crate::{equipment, hardware, history, lease, listeners, mirror, notify};

/// How much of the journal is kept in memory, in bytes.
const JOURNAL_CACHE_BYTES: usize = 2 << 20;

/// How long the last events may take into the stream when the daemon ends; what is left is sent after the next start.
const LAST_PUBLISH: Duration = Duration::from_secs(5);

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
    // A look at the hardware may still be under way; nobody waits for it.
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
    let leaf = settings.leaf_name()?;
    let instance = InstanceId(Uuid::now_v7());
    let host = host_facts()?;
    let now = Timestamp::now();
    make_private(&settings.state_dir)?;
    let options = Options {
        leaf: leaf.clone(),
        epoch_if_new: u64::try_from(now.as_millisecond()).unwrap_or(1),
        cache_bytes: JOURNAL_CACHE_BYTES,
        holder: format!("leaf {leaf}, instance {instance}"),
    };
    let folder = settings.state_dir.clone();
    let (journal, opened) = tokio::task::spawn_blocking(move || Journal::open(&folder, &options))
        .await
        .context("opening the journal ended early")?
        .context("the journal can't be used")?;
    tracing::info!(%leaf, %instance, version = VERSION, held = ?journal.held(), "starting");

    let began = tokio::select! {
        began = equipment::begin(&settings, &leaf) => began?,
        reason = signals.next() => {
            tracing::info!(reason, "stopped before it was ready");
            return Ok(());
        }
    };
    let equipment::Began {
        bus,
        connect,
        mut server_process,
        containers,
        nats_of,
    } = began;
    let stream = StreamSettings {
        max_bytes: settings.events.max_bytes,
        ..StreamSettings::default()
    };
    let dead = Predecessors {
        last_run: opened
            .entries
            .get("leaf")
            .and_then(|leaf| leaf.get("instance")?.as_str()?.parse().ok()),
        any: server_process.is_some(),
    };
    let unfinished = opened.unfinished.clone();
    let beat = Beat {
        leaf: leaf.clone(),
        instance,
        hostname: host.hostname.clone(),
        version: VERSION.to_owned(),
        started_at: now,
        sequence: journal.last_sequence(),
        time: now,
        interval_seconds: BEAT_SECONDS,
    };
    let started = async {
        let held = lease::take(&bus, &beat, dead).await?;
        let state = history::recover(&bus, &leaf, &journal, opened, &stream).await?;
        let server = Server::start(
            &bus,
            ServiceInfo {
                leaf: leaf.clone(),
                instance,
                version: VERSION.to_owned(),
                description: format!(
                    "the leaf {leaf}: hardware, containers and Nix of {}",
                    host.hostname
                ),
            },
        )
        .await?;
        let jobs = equipment::job_host(&settings, &leaf).await;
        anyhow::Ok((held, state, server, jobs))
    };
    let (held, state, server, jobs) = tokio::select! {
        started = started => started?,
        reason = signals.next() => {
            tracing::info!(reason, "stopped before it was ready");
            if let Some(process) = server_process {
                process.stop().await;
            }
            return Ok(());
        }
    };

    let (inputs, input_queue) = mpsc::channel(1024);
    let (looks, rescans) = mpsc::channel(16);
    let (changes, mirrored) = mpsc::channel(64);
    let (published_at, published) = watch::channel(Published::default());
    let (silent, silences) = mpsc::channel(1);
    let (release_lease, release) = oneshot::channel();
    let (given_back, lease_released) = oneshot::channel();
    let (drain, drained) = oneshot::channel();

    for RawEntry { key, reason } in state.raw_entries() {
        tracing::warn!(
            key,
            reason,
            "a newer leafd wrote this: it is kept as it is, and not acted on"
        );
    }
    if let Ok(jobs) = &jobs {
        jobs.remove_unknown(state.job_ids()).await;
    }
    let clock = Clock::start();
    let in_flight = InFlight::default();
    let workers = Workers::new(Equipment {
        leaf: leaf.clone(),
        inputs: inputs.clone(),
        bus: bus.clone(),
        containers: containers.clone(),
        jobs,
        looks,
        mirror: changes,
        published: published.clone(),
        steps,
        in_flight: in_flight.clone(),
        clock,
    });
    let entries = state.entries();
    let engine = engine(&settings, instance, &journal, state, unfinished, &workers)?;
    for CommandRecord { id, noun_verb, .. } in engine.set_aside() {
        tracing::warn!(command = %id, what = noun_verb, "a newer leafd accepted this command: it stays unanswered until one runs here again");
    }
    let mut main_loop = MainLoop::new(engine, journal.clone(), workers, clock);
    main_loop.begin(VERSION, host);

    let mut tasks = Tasks::default();
    let carrier = Carrier {
        connect: ConnectSettings {
            name: format!("{} events", connect.name),
            ..connect
        },
        leaf: leaf.clone(),
        journal: journal.clone(),
        settings: stream,
        published: published_at,
        silent,
    };
    tasks.keep_on(&events, "publisher", carrier.run());
    tasks.keep(
        "mirror",
        mirror::run(bus.clone(), leaf.clone(), entries, mirrored),
    );
    tasks.keep(
        "lease",
        lease::keep(
            bus.clone(),
            journal.clone(),
            beat,
            dead,
            held,
            release,
            given_back,
        ),
    );
    tasks.keep(
        "commands",
        listeners::take_commands(server, inputs.clone(), drained),
    );
    tasks.keep(
        "published",
        listeners::watch_published(published.clone(), inputs.clone()),
    );
    tasks.keep(
        "hardware",
        hardware::run(
            equipment::report(settings.clone()),
            settings.rescan_debounce(),
            rescans,
            inputs.clone(),
        ),
    );
    if let Ok(host) = &containers {
        tasks.keep(
            "containers",
            listeners::watch_containers(host.view.clone(), in_flight, clock, inputs.clone()),
        );
        let every = Duration::from_secs(settings.containers.network_check_seconds.into());
        tasks.keep("network", listeners::keep_network(Arc::clone(host), every));
    }
    tasks.keep("connection", listeners::log_connection(bus.clone()));

    let status = format!("leaf {leaf}; {nats_of}");
    tracing::info!(status, "ready");
    notify::ready(&status);

    let (stop, stopped) = oneshot::channel();
    let mut stop = Some((drain, stop));
    let mut silences = Some(silences);
    let ended = {
        let end = main_loop.run(input_queue, &mut tasks, stopped);
        tokio::pin!(end);
        loop {
            tokio::select! {
                ended = &mut end => break ended,
                reason = signals.next() => match stop.take() {
                    Some((drain, stop)) => {
                        // No more commands are asked for; those that are under way are told that the leaf stops.
                        let _ = drain.send(());
                        let _ = stop.send(reason);
                    }
                    None => break Err(anyhow::anyhow!("ended at once by a second {reason}")),
                },
                Some(reason) = heard(&mut silences) => {
                    if let Some(process) = &server_process {
                        process.restart(reason);
                    }
                }
                () = unattended(&mut server_process) => break Err(anyhow::anyhow!("nobody looks after nats-server any more")),
            }
        }
    };
    let ended = match ended {
        Ok(workers) => {
            let last = journal.last_sequence();
            let mut published = published;
            let wait = published.wait_for(|published| published.sequence >= last);
            if bus.status().borrow().is_connected() && tokio::time::timeout(LAST_PUBLISH, wait).await.is_err()
            {
                tracing::warn!("the last events will be published after the next start");
            }
            workers.stop().await;
            Ok(())
        }
        Err(error) => {
            tracing::error!(error = leaf_core::error::chain(error.as_ref()), "the daemon ends");
            Err(error)
        }
    };
    let _ = release_lease.send(());
    let _ = tokio::time::timeout(Duration::from_secs(2), lease_released).await;
    let _ = bus.flush(Duration::from_secs(1)).await;
    tasks.stop().await;
    bus.close(Duration::from_secs(2)).await;
    if let Some(process) = server_process {
        process.stop().await;
    }
    journal.close().await;
    ended
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

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn heard(silences: &mut Option<mpsc::Receiver<String>>) -> Option<String> {
    match silences {
        Some(receiver) => {
            let heard = receiver.recv().await;
            if heard.is_none() {
                *silences = None;
            }
            heard
        }
        None => std::future::pending().await,
    }
}

async fn unattended(process: &mut Option<EmbeddedServer>) {
    match process {
        Some(process) => process.unattended().await,
        None => std::future::pending().await,
    }
}

/// Returns the engine that continues from what the journal holds.
fn engine(
    settings: &Settings,
    instance: InstanceId,
    journal: &Journal,
    state: State,
    unfinished: Vec<CommandRecord>,
    workers: &Workers,
) -> anyhow::Result<Engine> {
    let held = journal.held();
    let engine = EngineSettings {
        instance,
        runtime: leaf_host::runtime::detect(),
        capabilities: workers.capabilities(),
        limits: Limits {
            backlog_bytes: settings.events.backlog_bytes,
            reserve_bytes: settings.events.reserve_bytes,
        },
        pool: settings.containers.address_pool,
        max_jobs: settings.nix.max_jobs,
        max_queued_jobs: settings.nix.max_queued_jobs,
        job_timeout_seconds: settings.nix.timeout_seconds,
    };
    let snapshots = Snapshots {
        every_events: settings.events.snapshot_every,
        // So that the stream always holds two whole ones within its limit.
        every_bytes: settings.events.max_bytes / 4,
    };
    let history = History::new(settings.leaf_name()?, journal.epoch(), state, snapshots);
    let resumed = Resumed {
        history,
        unfinished,
        held_events: (held.last_sequence + 1).saturating_sub(held.first_sequence),
    };
    Ok(Engine::new(engine, resumed))
}

fn make_private(dir: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .and_then(|()| std::fs::set_permissions(dir, Permissions::from_mode(0o700)))
        .with_context(|| {
            format!(
                "the state folder {} can't be made, or made private",
                dir.display()
            )
        })
}

fn host_facts() -> anyhow::Result<HostFacts> {
    let name = rustix::system::uname();
    let boot = "/proc/sys/kernel/random/boot_id";
    Ok(HostFacts {
        hostname: name.nodename().to_string_lossy().into_owned(),
        system: format!("{}-linux", std::env::consts::ARCH),
        kernel: name.release().to_string_lossy().into_owned(),
        boot_id: std::fs::read_to_string(boot)
            .with_context(|| format!("can't read {boot}"))?
            .trim()
            .to_owned(),
    })
}

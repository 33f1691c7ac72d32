//! The start and the end of the daemon: everything is made here, in order, and put together.

use std::collections::BTreeMap;
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
use leaf_core::aggregate::Aggregate;
use leaf_core::beat::{BEAT_SECONDS, Beat};
use leaf_core::cause::Cause;
use leaf_core::command::declaration_of;
use leaf_core::container::{Container, ContainerPhase};
use leaf_core::event::{Fact, HostFacts, LeafStarted};
use leaf_core::id::InstanceId;
use leaf_core::plan::after_boot;
use leaf_core::state::{RawEntry, State};
use leaf_journal::{CommandRecord, Journal, Options};
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::guard::Guard;
use crate::lease::Predecessors;
use crate::ledger::{Ledger, Snapshots};
use crate::main_loop::{MainLoop, Target, Waiter};
use crate::publisher::{Carrier, Published};
use crate::settings::Settings;
use crate::steps::InSteps;
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
    });
    let entries = state.entries();
    let waiting = waiting(unfinished, &state);
    let in_steps = InSteps::default();
    let mut main_loop = MainLoop {
        ledger: Ledger::new(
            leaf.clone(),
            journal.epoch(),
            state,
            journal.clone(),
            // So that the stream always holds two whole ones within its limit.
            Snapshots {
                every_events: settings.events.snapshot_every,
                every_bytes: settings.events.max_bytes / 4,
            },
        ),
        instance,
        workers,
        guard: Guard::new(settings.events.clone(), &journal),
        waiting,
        adopting: Default::default(),
        in_steps: in_steps.clone(),
        booting: Default::default(),
        looked_at: BTreeMap::new(),
        running: BTreeMap::new(),
        cancelling: BTreeMap::new(),
        rescan: 0,
        stopping: None,
        drained: false,
        runtime: leaf_host::runtime::detect(),
        settings: settings.clone(),
    };
    let state = main_loop.ledger.state();
    let booted = state
        .leaf
        .as_ref()
        .is_some_and(|before| before.host.boot_id != host.boot_id);
    let again = if booted { after_boot(state) } else { Vec::new() };
    if booted {
        let ran = |c: &&Container| matches!(c.phase, ContainerPhase::Running | ContainerPhase::Restarting);
        main_loop.booting = state
            .containers
            .values()
            .filter(ran)
            .map(|c| c.name.clone())
            .collect();
    }
    let fact = LeafStarted {
        leaf: leaf.clone(),
        instance,
        version: VERSION.to_owned(),
        host,
    };
    main_loop.record(
        &Cause::default(),
        [Fact::from(fact)].into_iter().chain(again).collect(),
        Vec::new(),
        Vec::new(),
    );

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
            listeners::watch_containers(host.view.clone(), in_steps, inputs.clone()),
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
        Ok(main_loop) => {
            let last = journal.last_sequence();
            let mut published = published;
            let wait = published.wait_for(|published| published.sequence >= last);
            if bus.status().borrow().is_connected() && tokio::time::timeout(LAST_PUBLISH, wait).await.is_err()
            {
                tracing::warn!("the last events will be published after the next start");
            }
            main_loop.workers.stop().await;
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

/// The commands that the last run did not finish, by what they wait for.
fn waiting(unfinished: Vec<CommandRecord>, state: &State) -> BTreeMap<Target, Vec<Waiter>> {
    let mut waiting: BTreeMap<Target, Vec<Waiter>> = BTreeMap::new();
    for record in unfinished {
        let target = record.target.as_deref().and_then(Target::from_key);
        let readable = |target: &Target| match target {
            Target::Container(name) => state.raw_entry_of(Aggregate::Container(name)).is_none(),
            Target::Job(id) => state.raw_entry_of(Aggregate::Job(id)).is_none(),
            Target::Hardware => true,
        };
        let known = declaration_of(&record.noun_verb).is_some();
        let Some(target) = target.filter(|target| known && readable(target)) else {
            tracing::warn!(command = %record.id, what = record.noun_verb, "a newer leafd accepted this command: it stays unanswered until one runs here again");
            continue;
        };
        // Its generation is not known any more; whatever the target settles at is its answer.
        waiting.entry(target).or_default().push(Waiter {
            cause: Cause {
                command: Some(record.id.clone()),
                correlation: None,
            },
            record,
            responders: Vec::new(),
            generation: u64::MAX,
        });
    }
    waiting
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

//! The last part of the start: the main loop, its workers and the tasks around it; and their end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leaf_bus::connect::{Bus, ConnectSettings};
use leaf_bus::embedded::EmbeddedServer;
use leaf_core::command::CommandRecord;
use leaf_core::engine::{Engine, EngineSettings, History, Limits, Resumed, Snapshots};
use leaf_core::error::chain;
use leaf_core::id::InstanceId;
use leaf_core::labels::{self, Labels};
use leaf_core::placement::room::JobRules;
use leaf_core::state::{RawEntry, State};
use leaf_host::notify;
use leaf_host::signals::Termination;
use leaf_journal::Journal;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::VERSION;
use super::claim::Claim;
use super::equipment::{self, HostAndNats};
use super::store::Store;
use crate::changes::HubSettings;
use crate::clock::Clock;
use crate::hub::{Claims, Filling, Hub, Works};
use crate::main_loop::MainLoop;
use crate::publisher::{EventPublisher, Published};
use crate::renewal::Renewal;
use crate::sessions::Sessions;
use crate::settings::Settings;
use crate::steps::{ContainerHost, InFlight};
use crate::tasks::Tasks;
use crate::transfers::{self, Transfers};
use crate::trust::Trust;
use crate::wake::Wake;
use crate::workers::{Equipment, Workers};
use crate::{changes, hardware, lease, listeners, mirror};

/// How long the daemon waits at its end for the last events to be published; the rest follows after the next start.
const LAST_PUBLISH: Duration = Duration::from_secs(5);

/// The assembled daemon, with everything that its end needs.
pub(super) struct Running {
    main_loop: MainLoop,
    inputs: mpsc::Receiver<Wake>,
    tasks: Tasks,
    journal: Journal,
    bus: Bus,
    server_process: Option<EmbeddedServer>,
    /// The known content of the stream.
    published: watch::Receiver<Published>,
    /// Reasons to restart the server, which does not answer publishes.
    silences: mpsc::Receiver<String>,
    /// Makes the command server drain.
    drain: oneshot::Sender<()>,
    /// Makes the lease be released.
    release_lease: oneshot::Sender<()>,
    lease_released: oneshot::Receiver<()>,
    /// The claim at the hub, if this leaf has one.
    at_hub: Option<AtHub>,
    /// The host of containers, if this leaf runs some.
    containers: Option<Arc<ContainerHost>>,
    /// A description of the leaf and its NATS server.
    status: String,
}

/// A claim at the hub, which is given back at the end.
struct AtHub {
    hub: Arc<Hub>,
    instance: InstanceId,
    /// The task that renews it.
    claims: AbortHandle,
}

impl Running {
    /// Assembles the daemon: the engine has handled its first input, and the tasks run.
    pub(super) async fn assemble(
        settings: &Settings,
        hub_settings: HubSettings,
        store: Store,
        host_and_nats: HostAndNats,
        claim: Claim,
        steps: Handle,
        events: &Handle,
    ) -> anyhow::Result<Self> {
        let HostAndNats {
            bus,
            connect,
            server_process,
            hub,
            containers,
            relay,
            renewed,
            local_access,
            nats_of,
        } = host_and_nats;
        let (inputs, input_queue) = mpsc::channel(1024);
        let (scans, rescans) = mpsc::channel(16);
        let (changes, mirrored) = mpsc::channel(64);
        let (published_at, published) = watch::channel(Published::default());
        let (silent, silences) = mpsc::channel(1);
        let (release_lease, release) = oneshot::channel();
        let (given_back, lease_released) = oneshot::channel();
        let (drain, drained) = oneshot::channel();
        let of_commands = claim.state.leaf.as_ref().map(|leaf| &leaf.labels);
        let shown = effective_labels(&settings.labels, of_commands);
        let (labels, shown_labels) = watch::channel(shown);
        let (works, told_works) = watch::channel(Vec::new());
        let (clock, in_flight) = (Clock::start(), InFlight::default());

        for RawEntry { key, reason } in claim.state.raw_entries() {
            tracing::warn!(
                key,
                reason,
                "written by a newer leafd: kept unchanged and not acted on"
            );
        }
        if let Ok(jobs) = &claim.jobs {
            jobs.remove_unknown(claim.state.job_ids()).await;
        }
        let (session_news, sessions_of_jobs) = mpsc::channel(64);
        let (session_requests, requests_of_sessions) = mpsc::channel(1024);
        // The bodies of requests wait here: some megabytes at most.
        let (uploads, requests_of_uploads) = mpsc::channel(64);
        let (transfers, to_transfers) = mpsc::channel(64);
        let trust = Trust::new(store.leaf.clone(), &settings.trust, store.journal.clone())?;
        let workers = Workers::new(Equipment {
            leaf: store.leaf.clone(),
            inputs: inputs.clone(),
            bus: bus.clone(),
            containers: containers.clone(),
            secrets: equipment::secrets_helper(settings, &store.leaf),
            changes: equipment::changes_helper(settings, &store.leaf),
            hub: hub_settings.clone(),
            jobs: claim.jobs,
            scans,
            mirror: changes,
            published: published.clone(),
            labels,
            works,
            steps,
            in_flight: in_flight.clone(),
            clock,
            trust: trust.clone(),
            sessions: session_news,
            transfers,
        });
        let transfers = workers.nix().map(|nix| transfers::Host {
            nix,
            directory: settings.state_dir.join("transfers"),
            kept: settings.state_dir.join("sent"),
            store: nix_store(settings),
            named: watch::Sender::new(BTreeSet::new()),
            max_upload_bytes: settings.nix.max_upload_bytes,
            min_free_bytes: settings.nix.min_free_bytes,
        });
        let entries = claim.state.entries();
        let engine = engine(settings, &store, claim.state, claim.unfinished, &workers)?;
        for CommandRecord { id, noun_verb, .. } in engine.set_aside() {
            tracing::warn!(command = %id, what = noun_verb, "accepted by a newer leafd: unanswered until that version runs here again");
        }
        let Store {
            leaf, host, journal, ..
        } = store;
        let has_own_server = server_process.is_some();
        let mut main_loop = MainLoop::new(
            engine,
            journal.clone(),
            workers,
            clock,
            has_own_server,
            nix_store(settings),
        );
        main_loop.begin(VERSION, host);

        let mut tasks = Tasks::default();
        let publisher = EventPublisher {
            connect: ConnectSettings {
                name: format!("{} events", connect.name),
                ..connect.clone()
            },
            leaf: leaf.clone(),
            journal: journal.clone(),
            settings: claim.stream.clone(),
            published: published_at,
            silent,
        };
        tasks.keep_on(events, "publisher", publisher.run());
        let mirroring = mirror::run(bus.clone(), leaf.clone(), entries, mirrored);
        tasks.keep("mirror", mirroring);
        let (dead, held, instance) = (claim.dead, claim.held, claim.beat.instance);
        let beats = lease::Beats {
            first: claim.beat,
            labels: shown_labels,
            journal: journal.clone(),
        };
        let hub = hub.map(Arc::new);
        let lacks = Arc::new(Notify::new());
        // At the start nothing is known yet of what crossed.
        lacks.notify_one();
        let reader = ConnectSettings {
            name: format!("{} for the hub", connect.name),
            ..connect
        };
        let filling = hub.as_ref().map(|hub| Filling {
            copy: hub.fill_copy(reader, instance),
            published: published.clone(),
            lacks: lacks.clone(),
        });
        let claims = hub.clone().map(|hub| Claims {
            hub,
            lacks,
            heard: claim.heard,
            bus: bus.clone(),
            stream: claim.stream,
            beats: beats.clone(),
            dead,
            published: published.clone(),
            inputs: inputs.clone(),
        });
        let telling = Works {
            hub: hub.clone(),
            instance,
            works: told_works,
            clock,
            inputs: inputs.clone(),
        };
        tasks.keep("works", telling.run());
        let leasing = lease::keep(bus.clone(), beats, dead, held, release, given_back);
        tasks.keep("lease", leasing);
        if let Some(filling) = filling {
            tasks.keep("fill", filling.run());
        }
        let at_hub = hub.zip(claims).map(|(hub, claims)| AtHub {
            hub,
            instance,
            claims: tasks.keep("hub", claims.keep()),
        });
        let (fresh, fresh_connections) = mpsc::channel(1);
        let commands = listeners::take_commands(
            claim.server,
            trust.clone(),
            inputs.clone(),
            session_requests,
            uploads,
            fresh_connections,
            drained,
        );
        tasks.keep("commands", commands);
        let sessions = Sessions::run(
            leaf.clone(),
            bus.clone(),
            clock,
            requests_of_sessions,
            sessions_of_jobs,
        );
        tasks.keep("sessions", sessions);
        tasks.keep(
            "transfers",
            Transfers::run(transfers, requests_of_uploads, to_transfers),
        );
        tasks.keep("clock", trust.watch_clock());
        tasks.keep("changes", changes::watch(hub_settings, inputs.clone()));
        let publishes = listeners::watch_published(published.clone(), inputs.clone());
        tasks.keep("published", publishes);
        let report = equipment::report(settings.clone());
        let scanning = hardware::run(report, settings.rescan_debounce(), rescans, inputs.clone());
        tasks.keep("hardware", scanning);
        if let Some(relay) = relay {
            let relaying = relay.run();
            tasks.keep("relay", async {
                relaying.await;
                Ok(())
            });
        }
        if let Some(connect) = renewed {
            let inputs = inputs.clone();
            let renewal = Renewal {
                connect,
                fresh,
                inputs,
            };
            tasks.keep("credentials", renewal.keep());
        }
        if let Some(files) = local_access {
            tasks.keep("local access", files.keep(inputs.clone()));
        }
        if let Ok(host) = &containers {
            tasks.keep("wall clock", listeners::watch_wall_clock(inputs.clone()));
            let observing = listeners::watch_containers(host.view.clone(), in_flight, clock, inputs);
            tasks.keep("containers", observing);
            let every = Duration::from_secs(settings.containers.network_check_seconds.into());
            tasks.keep("network", listeners::keep_network(Arc::clone(host), every));
        }
        tasks.keep("connection", listeners::log_connection(bus.clone()));
        Ok(Self {
            main_loop,
            inputs: input_queue,
            tasks,
            journal,
            bus,
            server_process,
            published,
            silences,
            drain,
            release_lease,
            lease_released,
            at_hub,
            containers: containers.ok(),
            status: format!("leaf {leaf}; {nats_of}"),
        })
    }

    /// Runs until a signal, and then ends the tasks in order.
    pub(super) async fn run(self, mut termination: Termination) -> anyhow::Result<()> {
        let Self {
            main_loop,
            inputs,
            mut tasks,
            journal,
            bus,
            mut server_process,
            published,
            silences,
            drain,
            release_lease,
            lease_released,
            at_hub,
            containers,
            status,
        } = self;
        tracing::info!(status, "ready");
        notify::ready(&status);
        let (stop, stopped) = oneshot::channel();
        let mut stop = Some((drain, stop));
        let mut silences = Some(silences);
        let ended = {
            let end = main_loop.run(inputs, &mut tasks, stopped);
            tokio::pin!(end);
            loop {
                tokio::select! {
                    ended = &mut end => break ended,
                    reason = termination.next() => match stop.take() {
                        Some((drain, stop)) => {
                            // No more commands are received; those in flight are answered that the leaf is stopping.
                            let _ = drain.send(());
                            let _ = stop.send(reason);
                        }
                        None => break Err(anyhow::anyhow!("ended immediately by a second {reason}")),
                    },
                    Some(reason) = next_silence(&mut silences) => {
                        if let Some(process) = &server_process {
                            process.restart(reason);
                        }
                    }
                    () = supervisor_exit(&mut server_process) => {
                        break Err(anyhow::anyhow!("the nats-server supervisor exited"));
                    }
                }
            }
        };
        let ended = match ended {
            Ok(workers) => {
                publish_last(&journal, &bus, published.clone()).await;
                workers.stop().await;
                Ok(())
            }
            Err(error) => {
                tracing::error!(error = chain(error.as_ref()), "the daemon ends");
                Err(error)
            }
        };
        let _ = release_lease.send(());
        let _ = tokio::time::timeout(Duration::from_secs(2), lease_released).await;
        if let Some(AtHub {
            hub,
            instance,
            claims,
        }) = at_hub
        {
            // A later claim would take the name again.
            claims.abort();
            let stream_last = published.borrow().sequence;
            hub.release(instance, stream_last).await;
        }
        let _ = bus.flush(Duration::from_secs(1)).await;
        tasks.stop().await;
        bus.close(Duration::from_secs(2)).await;
        if let Some(process) = server_process {
            process.stop().await;
        }
        // The server listened on the leaf's address.
        if let Some(containers) = containers {
            containers.release_network().await;
        }
        journal.close().await;
        ended
    }
}

/// Waits for a limited time until the last events are in the stream.
async fn publish_last(journal: &Journal, bus: &Bus, mut published: watch::Receiver<Published>) {
    let last = journal.last_sequence();
    let wait = published.wait_for(|published| published.sequence >= last);
    if bus.status().borrow().is_connected() && tokio::time::timeout(LAST_PUBLISH, wait).await.is_err() {
        tracing::warn!("the last events will be published after the next start");
    }
}

/// Returns the labels of the leaf. The log names those of commands that there is no room for.
fn effective_labels(of_settings: &Labels, of_commands: Option<&Labels>) -> Labels {
    let none = Labels::new();
    let of_commands = of_commands.unwrap_or(&none);
    let labels = labels::effective(of_settings, of_commands);
    let is_hidden = |key: &&String| !labels.contains_key(*key);
    let hidden: Vec<&str> = of_commands.keys().filter(is_hidden).map(String::as_str).collect();
    if !hidden.is_empty() {
        tracing::warn!(
            labels = hidden.join(" "),
            "labels of commands are hidden: those of the settings leave no room for them"
        );
    }
    labels
}

async fn next_silence(silences: &mut Option<mpsc::Receiver<String>>) -> Option<String> {
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

async fn supervisor_exit(process: &mut Option<EmbeddedServer>) {
    match process {
        Some(process) => process.unattended().await,
        None => std::future::pending().await,
    }
}

/// Returns a directory on the disk of the Nix store.
fn nix_store(settings: &Settings) -> PathBuf {
    match settings.nix.options.get("store") {
        Some(root) if root.starts_with('/') => root.into(),
        _ => "/nix/store".into(),
    }
}

/// Returns the engine that continues from what the journal holds.
fn engine(
    settings: &Settings,
    store: &Store,
    state: State,
    unfinished: Vec<CommandRecord>,
    workers: &Workers,
) -> anyhow::Result<Engine> {
    let Store {
        leaf,
        instance,
        journal,
        ..
    } = store;
    let held = journal.held();
    let (system, more_systems) = workers.systems();
    let engine = EngineSettings {
        instance: *instance,
        runtime: leaf_host::runtime::detect(),
        labels: settings.labels.clone(),
        capabilities: workers.capabilities(),
        provenance_key: workers.provenance_key(),
        limits: Limits {
            backlog_bytes: settings.events.backlog_bytes,
            reserve_bytes: settings.events.reserve_bytes,
            store_kept_bytes: settings.nix.min_free_bytes,
        },
        pool: settings.containers.address_pool,
        jobs: Arc::new(JobRules {
            max_running: settings.nix.max_jobs,
            max_queued: settings.nix.max_queued_jobs,
            timeout_seconds: settings.nix.timeout_seconds,
            features: settings.nix.features.clone(),
            limits: settings.nix.room,
            system,
            more_systems,
        }),
        nix_policy: settings.nix.policy.clone(),
        rules: settings.trust.rules()?,
        container_valid: settings.nats.container_valid(),
    };
    let snapshots = Snapshots {
        every_events: settings.events.snapshot_every,
        // Within its limit the stream always holds two whole snapshots.
        every_bytes: settings.events.max_bytes / 4,
    };
    let history = History::new(leaf.clone(), journal.epoch(), state, snapshots);
    let resumed = Resumed {
        history,
        unfinished,
        held_events: (held.last_sequence + 1).saturating_sub(held.first_sequence),
    };
    Ok(Engine::new(engine, resumed))
}

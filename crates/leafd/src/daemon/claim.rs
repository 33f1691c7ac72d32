//! The third part of the start: the leaf claims its name, and recovers its state.

use leaf_bus::lease::Lease;
use leaf_bus::serve::{Server, ServiceInfo};
use leaf_bus::stream::StreamSettings;
use leaf_core::beat::{BEAT_SECONDS, Beat, Builds};
use leaf_core::command::CommandRecord;
use leaf_core::error::chain;
use leaf_core::labels;
use leaf_core::state::State;
use leaf_journal::Opened;
use uuid::Uuid;

use super::VERSION;
use super::equipment::{self, HostAndNats};
use super::store::Store;
use crate::complaints::Complaints;
use crate::hub::Heard;
use crate::job::JobHost;
use crate::lease::{self, Predecessors};
use crate::recovery::{self, Recovered};
use crate::settings::Settings;
use leaf_host::notify;

/// The claim on the leaf's name, and the recovered state.
pub(super) struct Claim {
    /// The beat that renews the claim.
    pub(super) beat: Beat,
    /// Instances that are known to be dead.
    pub(super) dead: Predecessors,
    /// The lease; `None` if NATS is unreachable, in which case it is taken later.
    pub(super) held: Option<Lease>,
    /// What the hub said, if the leaf has one.
    pub(super) heard: Heard,
    /// The settings of the event stream.
    pub(super) stream: StreamSettings,
    /// The state to continue from.
    pub(super) state: State,
    /// The accepted commands that have no outcome.
    pub(super) unfinished: Vec<CommandRecord>,
    /// Receives commands.
    pub(super) server: Server,
    /// The host of jobs, or the reason why this leaf runs none.
    pub(super) jobs: Result<JobHost, String>,
}

impl Claim {
    /// Takes the lease, and recovers the state from journal and stream.
    pub(super) async fn take(
        settings: &Settings,
        store: &Store,
        opened: Opened,
        host_and_nats: &HostAndNats,
    ) -> anyhow::Result<Self> {
        let HostAndNats {
            bus,
            server_process,
            hub,
            ..
        } = host_and_nats;
        let Store {
            leaf,
            instance,
            host,
            started_at,
            journal,
        } = store;
        let stream = StreamSettings {
            max_bytes: settings.events.max_bytes,
            ..StreamSettings::default()
        };
        let last_run = opened.entries.get("leaf");
        let dead = Predecessors {
            last_run: last_run.and_then(|leaf| leaf.get("instance")?.as_str()?.parse().ok()),
            any: server_process.is_some(),
        };
        let of_commands = last_run.and_then(|leaf| serde_json::from_value(leaf.get("labels")?.clone()).ok());
        // Before the first beat, which says what the leaf has for builds.
        let jobs = equipment::job_host(settings, leaf).await;
        let builds = jobs.as_ref().ok().map(|host| {
            Box::new(Builds {
                system: host.system.clone(),
                more_systems: host.more_systems.clone(),
                features: settings.nix.features.clone(),
                max_jobs: settings.nix.max_jobs as u64,
            })
        });
        let beat = Beat {
            leaf: leaf.clone(),
            instance: *instance,
            hostname: host.hostname.clone(),
            version: VERSION.to_owned(),
            started_at: *started_at,
            sequence: journal.last_sequence(),
            time: *started_at,
            interval_seconds: BEAT_SECONDS,
            labels: labels::effective(&settings.labels, &of_commands.unwrap_or_default()),
            nix: builds,
        };
        let unfinished = opened.unfinished;
        let state = State::from_entries(opened.held.last_sequence, opened.entries);
        let (mut of_lease, mut of_history) = (Complaints::default(), Complaints::default());
        let (held, heard, state) = loop {
            let held = lease::take(bus, &beat, dead, &mut of_lease).await?;
            let home = match hub {
                Some(hub) => hub.come_home(bus, journal, &stream, &beat, dead).await,
                None => Ok(Heard::default()),
            };
            let (not_ready, pause) = match home {
                Ok(heard) => match recovery::recover(bus, leaf, journal, &state, &stream).await {
                    Ok(Recovered::State(state)) => break (held, heard, *state),
                    Ok(Recovered::NotYet(error)) => {
                        let why = "can't read the leaf's history from the stream";
                        (Ok(format!("{why}: {}", chain(&error))), lease::PAUSE)
                    }
                    Err(error) => (Err(error), lease::PAUSE),
                },
                Err(error) => (Ok(chain(&error)), error.try_again_after()),
            };
            // A leaf that takes no commands is not listed as running, and its next start need not wait.
            if let Some(lease) = held {
                lease::release(lease).await;
            }
            let why = not_ready?;
            notify::not_ready(&format!("not ready: {why}"));
            if of_history.is_new(&why) {
                tracing::error!(error = why, "not ready: this is tried again until it succeeds");
            }
            tokio::time::sleep(pause).await;
        };
        let info = ServiceInfo {
            leaf: leaf.clone(),
            id: Uuid::now_v7(),
            version: VERSION.to_owned(),
            description: format!(
                "the leaf {leaf}: hardware, containers and Nix of {}",
                host.hostname
            ),
        };
        let mut server = Server::start(bus, info).await?;
        if let Some(hub) = hub {
            server.take_from_hub(hub.link()).await?;
        }
        Ok(Self {
            beat,
            dead,
            held,
            heard,
            stream,
            state,
            unfinished,
            server,
            jobs,
        })
    }
}

//! The third part of the start: the leaf claims its name, and recovers its state.

use leaf_bus::lease::Lease;
use leaf_bus::serve::{Server, ServiceInfo};
use leaf_bus::stream::StreamSettings;
use leaf_core::accepted::CommandRecord;
use leaf_core::beat::{BEAT_SECONDS, Beat};
use leaf_core::state::State;
use leaf_journal::Opened;

use super::VERSION;
use super::store::Store;
use crate::equipment::{self, Began};
use crate::history;
use crate::job::JobHost;
use crate::lease::{self, Predecessors};
use crate::settings::Settings;

/// The claim on the leaf's name, and what the leaf continues with.
pub(super) struct Claim {
    /// What renews the claim.
    pub(super) beat: Beat,
    /// Runs that hold the name no more.
    pub(super) dead: Predecessors,
    /// The lease; nothing if NATS is out of reach, so that it is taken later.
    pub(super) held: Option<Lease>,
    /// How the stream of events is to be.
    pub(super) stream: StreamSettings,
    /// The state to continue from.
    pub(super) state: State,
    /// The accepted commands that have no outcome.
    pub(super) unfinished: Vec<CommandRecord>,
    /// Takes commands.
    pub(super) server: Server,
    /// What runs jobs, or why there are none.
    pub(super) jobs: Result<JobHost, String>,
}

impl Claim {
    /// Takes the lease, and recovers the state from journal and stream.
    pub(super) async fn take(
        settings: &Settings,
        store: &Store,
        opened: Opened,
        began: &Began,
    ) -> anyhow::Result<Self> {
        let Began {
            bus, server_process, ..
        } = began;
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
        let beat = Beat {
            leaf: leaf.clone(),
            instance: *instance,
            hostname: host.hostname.clone(),
            version: VERSION.to_owned(),
            started_at: *started_at,
            sequence: journal.last_sequence(),
            time: *started_at,
            interval_seconds: BEAT_SECONDS,
        };
        let unfinished = opened.unfinished.clone();
        let held = lease::take(bus, &beat, dead).await?;
        let state = history::recover(bus, leaf, journal, opened, &stream).await?;
        let info = ServiceInfo {
            leaf: leaf.clone(),
            instance: *instance,
            version: VERSION.to_owned(),
            description: format!(
                "the leaf {leaf}: hardware, containers and Nix of {}",
                host.hostname
            ),
        };
        let server = Server::start(bus, info).await?;
        let jobs = equipment::job_host(settings, leaf).await;
        Ok(Self {
            beat,
            dead,
            held,
            stream,
            state,
            unfinished,
            server,
            jobs,
        })
    }
}

//! The agent: connects, makes the hub's streams, and gives each leaf its task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use leaf_bus::hub::{Asked, Hub, LeafRequest};
use leaf_bus::stream::StreamError;
use leaf_core::error::chain;
use leaf_core::fleet::claims::Holder;
use leaf_core::fleet::fact::{FleetEvent, FleetFact};
use leaf_core::fleet::work::{MOST_TOLD, WorkReply, WorkReport};
use leaf_core::fleet::{CopyState, CopyStatus};
use leaf_core::id::LeafName;
use leaf_core::placement::work::WorkPlace;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;

use crate::active::Active;
use crate::heard::Works;
use crate::leaf::{Kept, LeafTask, Message};
use crate::panics::{self, Panics};
use crate::settings::Settings;
use crate::shared::Shared;
use crate::witness::Witness;
use crate::works;
use leaf_host::notify;
use leaf_host::signals::Termination;

/// How many leaves fill their copies at a time: after the loss of the hub's store all of them would, and each has up to 8 MiB under
/// way.
const FILLS: usize = 16;
/// How many requests of a leaf may wait.
const WAITING_REQUESTS: usize = 16;
/// The pause before the hub's streams are tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// How often the agent notes that it listens: after a longer pause it may have missed that a leaf is there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The tasks of the leaves.
struct Leaves {
    shared: Shared,
    known: BTreeMap<LeafName, KnownLeaf>,
    tasks: JoinSet<anyhow::Error>,
    of_tasks: BTreeMap<Id, LeafName>,
    /// Events about panics on their way to the hub's streams.
    alarms: JoinSet<()>,
    witness: Witness,
    /// Its replies on their way to the leaves.
    replies: JoinSet<()>,
}

/// A leaf that has a task.
struct KnownLeaf {
    sender: mpsc::Sender<Message>,
    /// What outlasts a panic of the task.
    kept: watch::Sender<Kept>,
    panics: Panics,
    task: AbortHandle,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// An error of the settings, or of a task, which ends the agent.
pub(crate) async fn run(settings: Settings, mut termination: Termination) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&settings.log))
        .with_writer(leaf_host::log::stderr)
        .with_ansi(false)
        .init();
    let witness = Witness::new(settings.witness_key.as_deref())?;
    let (shared, mut active) = tokio::select! {
        started = Box::pin(start(&settings)) => started?,
        _ = termination.next() => return Ok(()),
    };
    let result = tokio::select! {
        result = serve(shared, witness) => result,
        replaced = active.keep() => return Err(replaced),
        _ = termination.next() => Ok(()),
    };
    notify::stopping();
    active.release().await;
    result
}

/// Connects, makes the hub's streams, and waits until this agent is the active one.
async fn start(settings: &Settings) -> anyhow::Result<(Shared, Active)> {
    let (fleet, links) = (settings.fleet()?, settings.links()?);
    let servers = fleet.servers_text();
    let hub = Hub::connect(&fleet, &links)
        .await
        .context("can't connect to NATS with these settings")?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        servers,
        "the hub agent starts"
    );
    let mut complained = String::new();
    let (registry, states) = loop {
        let made = async {
            let registry = hub.registry().await?;
            Ok::<_, StreamError>((registry, hub.state_copy().await?))
        };
        let why = match tokio::time::timeout(Duration::from_secs(10), hub.connected()).await {
            Ok(()) => match hub.unfit() {
                Some(why) => why,
                None => match made.await {
                    Ok(made) => break made,
                    Err(error) => chain(&error),
                },
            },
            Err(_) => format!(
                "account FLEET: {}; account LINKS: {}",
                *hub.fleet_status().borrow(),
                *hub.links_status().borrow()
            ),
        };
        notify::not_ready(&format!("not ready: {why}"));
        if why != complained {
            tracing::error!(error = why, "not ready: this is tried again until it succeeds");
            complained = why;
        }
        tokio::time::sleep(PAUSE).await;
    };
    let active = Active::take(&hub, &registry).await;
    let shared = Shared {
        hub,
        registry,
        states,
        works: Works::default(),
        fills: Arc::new(Semaphore::new(FILLS)),
        max_bytes: settings.copies.max_bytes,
        started: Instant::now(),
    };
    Ok((shared, active))
}

async fn serve(shared: Shared, witness: Witness) -> anyhow::Result<()> {
    let mut requests = shared.hub.requests().await?;
    let mut resets = shared.hub.resets().await?;
    let mut forgotten = shared.hub.forgotten().await?;
    let (known, mut statuses) = loop {
        let read = async {
            let leaves = shared.registry.leaves().await?;
            Ok::<_, StreamError>((leaves, shared.registry.statuses().await?))
        };
        match read.await {
            Ok(read) => break read,
            Err(error) => tracing::warn!(
                error = chain(&error),
                "can't read the registry: this is tried again"
            ),
        }
        tokio::time::sleep(PAUSE).await;
    };
    let mut leaves = Leaves {
        shared,
        known: BTreeMap::new(),
        tasks: JoinSet::new(),
        of_tasks: BTreeMap::new(),
        alarms: JoinSet::new(),
        witness,
        replies: JoinSet::new(),
    };
    for known in known {
        let leaf = known.beat.leaf.clone();
        let holder = Holder::earlier(known.beat, known.age);
        let kept = Kept::stored(Some(holder), statuses.remove(&leaf));
        leaves.add(leaf, kept);
    }
    let status = |leaves: &Leaves| format!("answers leaves; {} known", leaves.known.len());
    notify::ready(&status(&leaves));
    tracing::info!(leaves = leaves.known.len(), "ready");
    let mut watchdog = tokio::time::interval(notify::watchdog_period().unwrap_or(Duration::from_secs(60)));
    let (mut fleet, mut links) = (leaves.shared.hub.fleet_status(), leaves.shared.hub.links_status());
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => leaves.shared.works.look(leaves.shared.now()),
            Ok(()) = fleet.changed() => leaves.shared.works.missed(leaves.shared.now()),
            Ok(()) = links.changed() => leaves.shared.works.missed(leaves.shared.now()),
            request = requests.next() => {
                if leaves.request(request?) {
                    notify::status(&status(&leaves));
                }
            }
            leaf = resets.next() => leaves.send(&leaf?, Message::Reset),
            leaf = forgotten.next() => leaves.forget(&leaf?),
            Some(ended) = leaves.tasks.join_next_with_id() => match ended {
                Ok((_, error)) => return Err(error.context("a leaf's task ended")),
                Err(ended) => leaves.lost(ended),
            },
            Some(_) = leaves.alarms.join_next() => {}
            Some(_) = leaves.replies.join_next() => {}
            _ = watchdog.tick() => notify::alive(),
        }
    }
}

impl Leaves {
    /// Gives a request to its leaf's task, and returns whether the leaf is new. A witness answers by itself: it needs no stream, and a
    /// leaf that asks it need not be known.
    fn request(&mut self, request: LeafRequest) -> bool {
        if let Asked::Witness(asked) = &request.asked {
            if let Some(reply) = self.witness.answer(&request.leaf, asked, Instant::now()) {
                self.replies.spawn(async move {
                    let leaf = request.leaf.clone();
                    if let Err(error) = request.reply(&reply).await {
                        tracing::warn!(%leaf, error = chain(&error), "can't answer a leaf that asks for a witness");
                    }
                });
            }
            return false;
        }
        if let Asked::Work(report) = &request.asked {
            let report = report.as_ref().clone();
            self.works(request, report);
            return false;
        }
        let leaf = request.leaf.clone();
        let is_new = !self.known.contains_key(&leaf);
        if is_new {
            self.add(leaf.clone(), Kept::default());
        }
        self.send(&leaf, Message::Request(Box::new(request)));
        is_new
    }

    /// Answers a report of the holder of a leaf's name on its works.
    fn works(&mut self, request: LeafRequest, report: WorkReport) {
        let leaf = request.leaf.clone();
        let holder = |leaf: &LeafName| {
            let kept = self.known.get(leaf)?.kept.borrow();
            kept.holder.as_ref().map(|holder| holder.beat.instance)
        };
        if holder(&leaf) != Some(report.instance) {
            return;
        }
        let Some(answering) = self.shared.works.heard(&leaf, self.shared.now()) else {
            // The report before is still being answered. An answer all the same says that the agent is there.
            self.replies.spawn(async move {
                if let Err(error) = request.reply(&WorkReply::default()).await {
                    tracing::warn!(%leaf, error = chain(&error), "can't answer a leaf that tells of its works");
                }
            });
            return;
        };
        let seconds = report.works.iter().filter(|told| told.place == WorkPlace::Second);
        let firsts = seconds
            .take(MOST_TOLD)
            .filter_map(|told| Some((told.other.clone(), holder(&told.other)?)))
            .collect();
        let shared = self.shared.clone();
        self.replies.spawn(async move {
            let reply = works::answer(shared, answering, report, firsts).await;
            if let Err(error) = request.reply(&reply).await {
                tracing::warn!(%leaf, error = chain(&error), "can't answer a leaf that tells of its works");
            }
        });
    }

    fn send(&mut self, leaf: &LeafName, message: Message) {
        if let Some(known) = self.known.get(leaf)
            && known.sender.try_send(message).is_err()
        {
            tracing::warn!(%leaf, "the leaf sends more requests than the agent answers: one is dropped");
        }
    }

    fn add(&mut self, leaf: LeafName, kept: Kept) {
        let kept = watch::Sender::new(kept);
        let (sender, task) = self.spawn(&leaf, kept.clone(), Duration::ZERO);
        let known = KnownLeaf {
            sender,
            kept,
            panics: Panics::default(),
            task,
        };
        self.known.insert(leaf, known);
    }

    /// Starts a leaf's task after a pause.
    fn spawn(
        &mut self,
        leaf: &LeafName,
        kept: watch::Sender<Kept>,
        pause: Duration,
    ) -> (mpsc::Sender<Message>, AbortHandle) {
        let (sender, receiver) = mpsc::channel(WAITING_REQUESTS);
        let (shared, of_task) = (self.shared.clone(), leaf.clone());
        let task = self.tasks.spawn(async move {
            tokio::time::sleep(pause).await;
            Box::pin(LeafTask::new(shared, of_task, kept, receiver).run()).await
        });
        self.of_tasks.insert(task.id(), leaf.clone());
        (sender, task)
    }

    /// Starts the task of a leaf again that has panicked; the others go on.
    fn lost(&mut self, ended: JoinError) {
        let Some(leaf) = self.of_tasks.remove(&ended.id()) else {
            return;
        };
        // One that was forgotten has ended for that.
        let Ok(panic) = ended.try_into_panic() else {
            return;
        };
        let why = panics::text(panic.as_ref());
        let now = self.shared.now();
        let Some(known) = self.known.get_mut(&leaf) else {
            return;
        };
        let (kept, pause) = (known.kept.clone(), known.panics.pause(now));
        tracing::error!(%leaf, why, ?pause, "the task of this leaf has panicked and is started again: please report it");
        let status = kept.borrow().status.clone();
        let (sender, task) = self.spawn(&leaf, kept, pause);
        if let Some(known) = self.known.get_mut(&leaf) {
            (known.sender, known.task) = (sender, task);
        }
        let (registry, event) = (self.shared.registry.clone(), panicked(leaf, status, &why));
        self.alarms.spawn(async move {
            if let Err(error) = registry.put_event(&event).await {
                tracing::warn!(error = chain(&error), "can't store the event about a panic");
            }
        });
    }

    /// Ends the task of a leaf that was removed from the registry.
    fn forget(&mut self, leaf: &LeafName) {
        if let Some(known) = self.known.remove(leaf) {
            tracing::info!(%leaf, "the leaf was removed from the registry");
            known.task.abort();
        }
    }
}

fn panicked(leaf: LeafName, status: Option<CopyStatus>, why: &str) -> FleetEvent {
    let time = Timestamp::now();
    let status = status.unwrap_or(CopyStatus {
        leaf,
        state: CopyState::Unknown,
        since: time,
        copied: 0,
        leaf_last: 0,
        reason: None,
    });
    FleetEvent {
        before: Some(time),
        time,
        fact: FleetFact::Panicked,
        status: CopyStatus {
            reason: Some(format!(
                "the agent's task of this leaf panicked, and was started again: {why}"
            )),
            ..status
        },
    }
}

#[cfg(test)]
mod tests {
    use leaf_bus::connect::ConnectSettings;
    use leaf_core::beat::Beat;
    use leaf_core::id::InstanceId;
    use uuid::Uuid;

    use super::*;

    /// The tasks of an agent without a server: what they keep is seen without one.
    async fn leaves() -> Leaves {
        let nowhere = ConnectSettings::new("nats://127.0.0.1:9");
        let hub = Hub::connect(&nowhere, &nowhere).await.expect("it connects later");
        Leaves {
            shared: Shared {
                registry: hub.registry_as_it_is(),
                states: hub.state_copy_as_it_is(),
                works: Works::default(),
                hub,
                fills: Arc::new(Semaphore::new(FILLS)),
                max_bytes: 1 << 20,
                started: Instant::now(),
            },
            known: BTreeMap::new(),
            tasks: JoinSet::new(),
            of_tasks: BTreeMap::new(),
            alarms: JoinSet::new(),
            witness: Witness::new(None).expect("it needs no key"),
            replies: JoinSet::new(),
        }
    }

    fn holder(leaves: &Leaves, leaf: &LeafName) -> Holder {
        let beat = Beat {
            leaf: leaf.clone(),
            instance: InstanceId(Uuid::from_u128(1)),
            hostname: "h".into(),
            version: "1".into(),
            started_at: Timestamp::UNIX_EPOCH,
            sequence: 0,
            time: Timestamp::UNIX_EPOCH,
            interval_seconds: 10,
            labels: Default::default(),
            nix: None,
        };
        Holder::now(beat, leaves.shared.now())
    }

    #[tokio::test]
    async fn the_task_of_a_leaf_that_panicked_goes_on_with_its_claim() {
        let mut leaves = leaves().await;
        let leaf = LeafName::new("edge-1").expect("a name");
        let holder = holder(&leaves, &leaf);
        leaves.add(leaf.clone(), Kept::claimed(holder.clone(), 7));
        leaves.send(&leaf, Message::Panic);
        let ended = leaves.tasks.join_next_with_id().await.expect("a task");
        leaves.lost(ended.expect_err("it panicked"));
        assert_eq!(leaves.alarms.len(), 1, "the panic is an event");
        let known = &leaves.known[&leaf];
        assert!(!known.task.is_finished());
        assert_eq!(known.kept.borrow().holder.as_ref(), Some(&holder));
        // What its task does first.
        let (_sender, messages) = mpsc::channel(1);
        let mut task = LeafTask::new(leaves.shared.clone(), leaf.clone(), known.kept.clone(), messages);
        assert!(!task.is_watching());
        task.resume().await;
        assert!(task.is_watching(), "without another claim");
        // One that was only read from the hub's streams is not known to be there.
        let stored = watch::Sender::new(Kept::stored(Some(holder), None));
        let (_sender, messages) = mpsc::channel(1);
        let mut task = LeafTask::new(leaves.shared.clone(), leaf, stored, messages);
        task.resume().await;
        assert!(!task.is_watching());
    }

    #[tokio::test]
    async fn a_forgotten_leaf_has_no_task_and_that_is_no_panic() {
        let mut leaves = leaves().await;
        let leaf = LeafName::new("edge-1").expect("a name");
        leaves.add(leaf.clone(), Kept::default());
        leaves.forget(&leaf);
        let ended = leaves.tasks.join_next_with_id().await.expect("a task");
        leaves.lost(ended.expect_err("it was ended"));
        assert!(leaves.known.is_empty() && leaves.tasks.is_empty() && leaves.alarms.is_empty());
    }

    #[test]
    fn the_event_about_a_panic_has_the_copys_state_and_the_text() {
        let leaf = LeafName::new("edge-1").expect("a name");
        let event = panicked(leaf, None, "index out of bounds");
        assert_eq!(event.subject(), "leaf.v1.fleet.edge-1.panicked");
        let reason = event.status.reason.expect("a reason");
        assert!(
            reason.ends_with("was started again: index out of bounds"),
            "{reason}"
        );
    }
}

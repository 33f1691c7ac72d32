//! The agent: connects, makes the hub's streams, and gives each leaf its task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use leaf_bus::hub::{Hub, LeafRequest};
use leaf_bus::stream::StreamError;
use leaf_core::error::chain;
use leaf_core::fleet::CopyStatus;
use leaf_core::fleet::claims::Holder;
use leaf_core::id::LeafName;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;

use crate::leaf::{LeafTask, Message};
use crate::settings::Settings;
use crate::shared::Shared;
use leaf_host::notify;

/// How many pages of events are under way at a time, of all leaves: after the loss of the hub's store all of them are read.
const PAGES: usize = 64;
/// How many requests of a leaf may wait.
const WAITING_REQUESTS: usize = 16;
/// The pause before the hub's streams are tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// The tasks of the leaves.
struct Leaves {
    shared: Shared,
    senders: BTreeMap<LeafName, mpsc::Sender<Message>>,
    tasks: JoinSet<anyhow::Error>,
    of_tasks: BTreeMap<Id, LeafName>,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// An error of the settings, or of a task, which ends the agent.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&settings.log))
        .with_writer(leaf_host::log::stderr)
        .with_ansi(false)
        .init();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let agent = async {
        let shared = Box::pin(start(&settings)).await?;
        serve(shared).await
    };
    tokio::select! {
        result = agent => result,
        _ = terminate.recv() => {
            notify::stopping();
            Ok(())
        }
        _ = interrupt.recv() => {
            notify::stopping();
            Ok(())
        }
    }
}

/// Connects and makes the hub's streams.
async fn start(settings: &Settings) -> anyhow::Result<Shared> {
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
    Ok(Shared {
        hub,
        registry,
        states,
        pages: Arc::new(Semaphore::new(PAGES)),
        max_bytes: settings.copies.max_bytes,
        started: Instant::now(),
    })
}

async fn serve(shared: Shared) -> anyhow::Result<()> {
    let mut requests = shared.hub.requests().await?;
    let mut resets = shared.hub.resets().await?;
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
        senders: BTreeMap::new(),
        tasks: JoinSet::new(),
        of_tasks: BTreeMap::new(),
    };
    for known in known {
        let leaf = known.beat.leaf.clone();
        let holder = Holder::earlier(known.beat, known.age);
        leaves.add(leaf.clone(), Some(holder), statuses.remove(&leaf));
    }
    let status = |leaves: &Leaves| format!("answers leaves; {} known", leaves.senders.len());
    notify::ready(&status(&leaves));
    tracing::info!(leaves = leaves.senders.len(), "ready");
    let mut watchdog = tokio::time::interval(notify::watchdog_period().unwrap_or(Duration::from_secs(60)));
    loop {
        tokio::select! {
            request = requests.next() => {
                if leaves.request(request?) {
                    notify::status(&status(&leaves));
                }
            }
            leaf = resets.next() => leaves.send(&leaf?, Message::Reset),
            Some(ended) = leaves.tasks.join_next_with_id() => match ended {
                Ok((_, error)) => return Err(error.context("a leaf's task ended")),
                Err(panicked) => leaves.lost(panicked.id()),
            },
            _ = watchdog.tick() => notify::alive(),
        }
    }
}

impl Leaves {
    /// Gives a request to its leaf's task, and returns whether the leaf is new.
    fn request(&mut self, request: LeafRequest) -> bool {
        let leaf = request.leaf.clone();
        let is_new = !self.senders.contains_key(&leaf);
        if is_new {
            self.add(leaf.clone(), None, None);
        }
        self.send(&leaf, Message::Request(Box::new(request)));
        is_new
    }

    fn send(&mut self, leaf: &LeafName, message: Message) {
        if let Some(sender) = self.senders.get(leaf)
            && sender.try_send(message).is_err()
        {
            tracing::warn!(%leaf, "the leaf sends more requests than the agent answers: one is dropped");
        }
    }

    fn add(&mut self, leaf: LeafName, holder: Option<Holder>, status: Option<CopyStatus>) {
        let (sender, receiver) = mpsc::channel(WAITING_REQUESTS);
        let task = LeafTask::new(self.shared.clone(), leaf.clone(), holder, status, receiver);
        let task = self.tasks.spawn(task.run());
        self.of_tasks.insert(task.id(), leaf.clone());
        self.senders.insert(leaf, sender);
    }

    /// Forgets the task of a leaf that panicked: the others go on, and its next claim begins another one.
    fn lost(&mut self, task: Id) {
        if let Some(leaf) = self.of_tasks.remove(&task) {
            tracing::error!(%leaf, "the task of this leaf has panicked: please report it; its next claim begins another");
            self.senders.remove(&leaf);
        }
    }
}

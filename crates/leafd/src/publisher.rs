//! Carries events from the journal into the stream: the same bytes under the same numbers, however often.
//!
//! After each new connection, and after each error, it reads where the stream ends, compares, and continues from there.
//! When a history can be continued and when not is told in decision record 3.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context as _;
use leaf_bus::connect::{Bus, ConnectSettings};
use leaf_bus::publisher::Publisher;
use leaf_bus::stream::{Comparison, EventStream, StreamError, StreamSettings, StreamState};
use leaf_core::error::chain;
use leaf_core::event::EventRecord;
use leaf_core::id::LeafName;
use leaf_journal::{Journal, ReadError};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

/// How much is read from the journal at once, in bytes.
const READ_BYTES: usize = 256 << 10;

/// The pause after an error, before the stream is read again.
const PAUSE: Duration = Duration::from_secs(1);

/// How often the stream is checked while there is nothing to publish: somebody may have deleted it.
const CHECK_EVERY: Duration = Duration::from_secs(30);

/// With less room on the disk than this, a server is not started again: it could not store anything.
const ROOM_BYTES: u64 = 2 << 20;

/// How long a restarted server has to answer before it is restarted once more; twice as long each time.
const FIRST_RESTART_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_RESTART_PAUSE: Duration = Duration::from_secs(300);

/// An event may go from the journal this long after the stream acknowledged it. It is longer than twice the longest
/// time that a server with default settings takes to sync (two minutes), so the stream has it on its disk by then.
const KEEP: Duration = Duration::from_secs(600);

/// What the stream is known to hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Published {
    /// The sequence number of its first event, or of the event that would be its first; 0 if nothing is known.
    pub first: u64,
    /// The last sequence number that it acknowledged.
    pub sequence: u64,
    /// The last sequence number that it must have on its disk by now, in this run of the daemon.
    pub stored: u64,
}

/// Why events can't be published until an operator acts.
#[derive(Debug, thiserror::Error)]
pub enum FencedError {
    /// The stream has something else under a number of ours.
    #[error(
        "the stream has another event with the sequence number {sequence}: another leaf of this name wrote there, or a \
         copy of this one; nothing more is written. Name one of the two differently, or move the journal away to go on \
         with what the stream has"
    )]
    Differs {
        /// The number.
        sequence: u64,
    },
    /// The stream has more than the journal.
    #[error(
        "the stream ends with {stream}, and the journal with {journal}: another leaf of this name wrote there; nothing \
         more is written. If it was this leaf's own journal that was set back, restart leafd: it takes the rest over"
    )]
    Ahead {
        /// Where the stream ends.
        stream: u64,
        /// Where the journal ends.
        journal: u64,
    },
    /// The stream goes on with what is no event of the journal's history.
    #[error(
        "the event {sequence} of the stream is not of this leaf's history: another leaf of this name wrote there; \
         nothing more is written. Name one of the two differently, or move the journal away to go on with what the \
         stream has"
    )]
    Foreign {
        /// The number.
        sequence: u64,
    },
    /// The stream of this name is somebody else's.
    #[error("the stream can't be used")]
    Stream(#[source] StreamError),
}

/// Publishes the journal's events.
pub struct EventPublisher {
    /// How to connect: events have a connection of their own, so that many of them hold up no reply.
    pub connect: ConnectSettings,
    /// The leaf.
    pub leaf: LeafName,
    /// Where events come from.
    pub journal: Journal,
    /// The stream's settings.
    pub settings: StreamSettings,
    /// Is told of what the stream holds.
    pub published: watch::Sender<Published>,
    /// Is told when the server doesn't answer publishes.
    pub silent: mpsc::Sender<String>,
}

/// Why events are not published just now, or at all.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The stream did not do what it was asked.
    Stream(StreamError),
    /// The journal can't be read.
    Journal(ReadError),
    /// The stream holds another history.
    Fenced(FencedError),
}

impl From<StreamError> for Trouble {
    fn from(error: StreamError) -> Self {
        match error {
            foreign @ StreamError::Foreign { .. } => Self::Fenced(FencedError::Stream(foreign)),
            other => Self::Stream(other),
        }
    }
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        Self::Journal(error)
    }
}

impl EventPublisher {
    /// Publishes until the daemon ends.
    ///
    /// # Errors
    /// [`FencedError`] when the stream holds a history that is not this one, or that these settings can't be used.
    pub async fn run(self) -> anyhow::Result<()> {
        let bus = Bus::connect(&self.connect)
            .await
            .context("events can't be published with these settings")?;
        let mut ages = Ages::default();
        let mut sick = Sickness::default();
        loop {
            bus.connected().await;
            match self.session(&bus, &mut ages).await {
                Trouble::Fenced(error) => return Err(error.into()),
                Trouble::Journal(error) => {
                    tracing::warn!(error = chain(&error), "the journal can't be read just now");
                }
                Trouble::Stream(StreamError::Disconnected) => continue,
                Trouble::Stream(error) => {
                    tracing::warn!(error = chain(&error), "events are not published just now");
                    let room = self.journal.free_bytes().map_or(true, |free| free >= ROOM_BYTES);
                    if sick.restart_helps(&error, self.published.borrow().sequence) && room {
                        sick.restarted();
                        let _ = self.silent.try_send(error.to_string());
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Publishes until something is wrong, which it returns.
    async fn session(&self, bus: &Bus, ages: &mut Ages) -> Trouble {
        match self.publish(bus, ages).await {
            Err(trouble) => trouble,
            Ok(never) => match never {},
        }
    }

    async fn publish(&self, bus: &Bus, ages: &mut Ages) -> Result<std::convert::Infallible, Trouble> {
        let first = self.journal.first_sequence();
        let (stream, state) = EventStream::ensure(bus, &self.leaf, self.settings.clone(), first).await?;
        let (first, after) = self.align(&stream, &state).await?;
        // What was acknowledged before may have been lost by the server: then it is not on its disk.
        ages.set_back(after);
        let mut publisher = stream.publisher(after).await?;
        let mut committed = self.journal.committed();
        let mut checks = tokio::time::interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.tell(ages, first, after);
        loop {
            while publisher.next_sequence() <= committed.borrow_and_update().last_sequence {
                let next = publisher.next_sequence();
                let mut records = self.journal.take_recent(next, READ_BYTES);
                if records.is_empty() {
                    records = self.journal.read(next, READ_BYTES)?;
                }
                for record in records {
                    publisher.publish(record).await?;
                }
                self.tell(ages, first, publisher.acked());
            }
            tokio::select! {
                acked = publisher.next_ack() => self.tell(ages, first, acked?),
                _ = checks.tick(), if !publisher.is_waiting() => {
                    let actual = stream.state().await?.last_sequence;
                    if actual != publisher.acked() {
                        return Err(StreamError::WrongLastSequence { actual: Some(actual) }.into());
                    }
                }
                changed = committed.changed() => {
                    if changed.is_err() {
                        // The journal is closed: the daemon ends.
                        settle(&mut publisher).await;
                        self.tell(ages, first, publisher.acked());
                        return std::future::pending().await;
                    }
                }
            }
        }
    }

    /// Returns where the stream begins, and the last number that the journal and the stream have in common.
    async fn align(&self, stream: &EventStream, state: &StreamState) -> Result<(u64, u64), Trouble> {
        let held = self.journal.held();
        let last = state.last_sequence;
        if last > held.last_sequence {
            return Err(Trouble::Fenced(FencedError::Ahead {
                stream: last,
                journal: held.last_sequence,
            }));
        }
        if last + 1 < held.first_sequence {
            tracing::warn!(
                stream = last,
                journal = held.first_sequence,
                "the stream lost events that the journal has let go of; it is made again where the journal begins"
            );
            let state = stream.recreate(held.first_sequence).await?;
            return Ok((state.first_sequence, state.last_sequence));
        }
        if last >= held.first_sequence
            && let Some(record) = self.journal.read(last, 1)?.first()
        {
            same(stream, record).await?;
        }
        Ok((state.first_sequence, last))
    }

    fn tell(&self, ages: &mut Ages, first: u64, acked: u64) {
        let stored = ages.stored(acked);
        let now = Published {
            first,
            sequence: acked,
            stored,
        };
        self.published
            .send_if_modified(|published| std::mem::replace(published, now) != now);
    }
}

/// Checks that the stream has nothing else in the place of this event.
///
/// # Errors
/// [`FencedError::Differs`], or that the stream can't be read.
pub(crate) async fn same(stream: &EventStream, record: &EventRecord) -> Result<(), Trouble> {
    match stream.compare(record).await? {
        Comparison::Differs(_) => Err(Trouble::Fenced(FencedError::Differs {
            sequence: record.sequence,
        })),
        Comparison::Same | Comparison::Missing => Ok(()),
    }
}

async fn settle(publisher: &mut Publisher) {
    if let Err(error) = publisher.settle().await {
        tracing::warn!(
            error = chain(&error),
            "the last events will be published after the next start"
        );
    }
}

/// Tells whether the server is to be restarted. One whose disk was full stays silent, refuses, or says that its stream
/// does not end where it says it ends, after there is room again; a restart cures it. Where it does not, it is not
/// tried at once again.
#[derive(Default)]
struct Sickness {
    acked: u64,
    astray: u32,
    pause: Duration,
    not_before: Option<Instant>,
}

impl Sickness {
    /// Whether a restart may help: after this error, with all acknowledged up to this number.
    fn restart_helps(&mut self, error: &StreamError, acked: u64) -> bool {
        if acked > self.acked {
            *self = Self {
                acked,
                ..Self::default()
            };
        }
        let suspect = match error {
            StreamError::Unanswered { .. } | StreamError::StorageFull { .. } => true,
            // Once or twice it is a race with a message that was on its way.
            StreamError::WrongLastSequence { .. } => {
                self.astray += 1;
                self.astray >= 3
            }
            _ => false,
        };
        suspect && self.not_before.is_none_or(|then| Instant::now() >= then)
    }

    fn restarted(&mut self) {
        self.pause = (self.pause * 2).clamp(FIRST_RESTART_PAUSE, LONGEST_RESTART_PAUSE);
        self.not_before = Some(Instant::now() + self.pause);
        self.astray = 0;
    }
}

/// Remembers when what was acknowledged, in steps of a minute.
#[derive(Default)]
struct Ages {
    steps: VecDeque<(Instant, u64)>,
    stored: u64,
}

impl Ages {
    /// Takes back what the stream is not known to hold any more.
    fn set_back(&mut self, acked: u64) {
        self.steps.retain(|(_, sequence)| *sequence <= acked);
        self.stored = self.stored.min(acked);
    }

    fn stored(&mut self, acked: u64) -> u64 {
        let now = Instant::now();
        if self
            .steps
            .back()
            .is_none_or(|(then, _)| now.duration_since(*then) >= KEEP / 10)
        {
            self.steps.push_back((now, acked));
        }
        while let Some((then, sequence)) = self.steps.front()
            && now.duration_since(*then) >= KEEP
        {
            self.stored = *sequence;
            self.steps.pop_front();
        }
        self.stored
    }
}

//! Publishes the journal's events to the stream: the same bytes under the same sequence numbers. Idempotent.
//!
//! After each new connection and each error, it reads where the stream ends, compares all events that are not confirmed
//! ([`alignment`]), and continues from there. Decision record 3 says when a history can be continued and when not.

mod alignment;

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::Context as _;
use leaf_bus::connect::{Bus, ConnectSettings};
use leaf_bus::embedded::SYNC_INTERVAL;
use leaf_bus::publisher::Publisher;
use leaf_bus::stream::{Comparison, EventStream, StreamError, StreamSettings, StreamState};
use leaf_core::error::chain;
use leaf_core::event::EventError;
use leaf_core::id::LeafName;
use leaf_journal::{Journal, ReadError};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use self::alignment::{Alignment, Confirmed};

/// The size of one read from the journal, in bytes.
const READ_BYTES: usize = 256 << 10;

/// The pause after an error, before the stream is read again.
const PAUSE: Duration = Duration::from_secs(1);

/// The period in which the stream is checked while there is nothing to publish: it may have been deleted.
const CHECK_EVERY: Duration = Duration::from_secs(30);

/// With less free disk space than this, in bytes, a server is not restarted: it could not store anything.
const ROOM_BYTES: u64 = 2 << 20;

/// How long a restarted server has to answer before it is restarted again; doubled each time.
const FIRST_RESTART_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_RESTART_PAUSE: Duration = Duration::from_secs(300);

/// How long the journal keeps an event after the stream acknowledged it. It is more than twice the longest time that a
/// server with default settings takes to sync (two minutes, as the embedded one), so the stream has the event on its disk by
/// then.
const KEEP: Duration = Duration::from_secs(600);
const _: () = assert!(KEEP.as_secs() > 2 * SYNC_INTERVAL.as_secs());

/// The known content of the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Published {
    /// The sequence number of its first event, or of the next event if it is empty; 0 if unknown.
    pub first: u64,
    /// The last acknowledged sequence number.
    pub sequence: u64,
    /// The last sequence number that must be on its disk by now, as far as this instance knows.
    pub stored: u64,
}

/// Why events can't be published until an operator acts.
#[derive(Debug, thiserror::Error)]
pub enum FencedError {
    /// The stream has a different event under one of the journal's sequence numbers.
    #[error(
        "the stream has a different event with the sequence number {sequence}: another leaf of this name, or a copy of \
        this one, wrote it; publishing has stopped. Rename one of the two, or move the journal away to continue with \
        the stream's history, or delete the stream, which this leaf then fills again with what its journal has"
    )]
    Differs {
        /// The sequence number.
        sequence: u64,
    },
    /// The stream has more than the journal.
    #[error(
        "the stream ends with {stream}, and the journal with {journal}: another leaf of this name wrote to it; publishing \
        has stopped. If this leaf's journal was restored from a backup, restart leafd, which imports the rest"
    )]
    Ahead {
        /// Where the stream ends.
        stream: u64,
        /// Where the journal ends.
        journal: u64,
    },
    /// The stream continues with an event that is not of the journal's history.
    #[error(
        "the stream's event {sequence} is not of this leaf's history: another leaf of this name wrote it; publishing has \
        stopped. Rename one of the two; or move the journal away to continue with the stream's history; or delete the \
        stream, which this leaf then fills again with what its journal has"
    )]
    Foreign {
        /// The sequence number.
        sequence: u64,
    },
    /// The stream continues with a message that is no event.
    #[error(
        "the message {sequence} of the stream {stream} is not an event of a leaf: another program wrote it where this leaf's \
        journal has no event, so the leaf's history can't be continued. Keep that program from publishing into the stream, \
        and delete the stream (`nats stream rm {stream}`), which this leaf then fills again with what its journal has; or \
        give the leaf another name"
    )]
    NotAnEvent {
        /// The message's stream sequence.
        sequence: u64,
        /// The stream's name.
        stream: String,
        /// The reason why it is none.
        source: EventError,
    },
    /// The stream can't be used: it has other settings, or belongs to something else.
    #[error("can't use the stream")]
    Stream(#[source] StreamError),
}

/// Publishes the journal's events.
pub struct EventPublisher {
    /// The settings of the connection: events have one of their own, so that they don't delay replies.
    pub connect: ConnectSettings,
    /// The leaf.
    pub leaf: LeafName,
    /// The journal whose events are published.
    pub journal: Journal,
    /// The stream's settings.
    pub settings: StreamSettings,
    /// Receives the known content of the stream.
    pub published: watch::Sender<Published>,
    /// Receives a reason when the server doesn't answer publishes.
    pub silent: mpsc::Sender<String>,
}

/// The reason why events are not published at the moment, or at all.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// A request to the stream failed.
    Stream(StreamError),
    /// The journal can't be read.
    Journal(ReadError),
    /// The journal has no event with this sequence number, which it should hold.
    Missing {
        /// The sequence number.
        sequence: u64,
    },
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
    /// [`FencedError`] when the stream holds another history; an error of the connection's settings.
    pub async fn run(self) -> anyhow::Result<()> {
        let bus = Bus::connect(&self.connect)
            .await
            .context("can't connect to NATS with these settings, to publish events")?;
        let mut confirmed = Confirmed::before(self.journal.held());
        let mut ages = Ages::default();
        let mut health = ServerHealth::default();
        let mut last = (String::new(), 0);
        loop {
            bus.connected().await;
            match self.session(&bus, &mut confirmed, &mut ages).await {
                Trouble::Fenced(error) => return Err(error.into()),
                Trouble::Journal(error) => {
                    tracing::warn!(error = chain(&error), "can't read the journal at the moment");
                }
                Trouble::Missing { sequence } => {
                    tracing::warn!(
                        sequence,
                        "the journal lacks an event that it should hold: publishing is tried again"
                    );
                }
                Trouble::Stream(StreamError::Disconnected) => continue,
                Trouble::Stream(error) => {
                    // The same one again, without an event in between, says nothing new.
                    let now = (chain(&error), self.published.borrow().sequence);
                    if now != last {
                        tracing::warn!(error = now.0, "can't publish events at the moment");
                        last = now;
                    }
                    let room = self.journal.free_bytes().map_or(true, |free| free >= ROOM_BYTES);
                    if health.restart_helps(&error, self.published.borrow().sequence) && room {
                        health.restarted();
                        let _ = self.silent.try_send(error.to_string());
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Publishes until there is trouble, which it returns.
    async fn session(&self, bus: &Bus, confirmed: &mut Confirmed, ages: &mut Ages) -> Trouble {
        match self.publish(bus, confirmed, ages).await {
            Err(trouble) => trouble,
            Ok(never) => match never {},
        }
    }

    async fn publish(
        &self,
        bus: &Bus,
        confirmed: &mut Confirmed,
        ages: &mut Ages,
    ) -> Result<std::convert::Infallible, Trouble> {
        let first = self.journal.first_sequence();
        let (stream, state) = EventStream::ensure(bus, &self.leaf, self.settings.clone(), first).await?;
        let (first, after) = self.align(&stream, &state, confirmed).await?;
        // The server may have lost events that it acknowledged but had not yet on its disk.
        ages.set_back(after);
        let mut publisher = stream.publisher(after).await?;
        let mut committed = self.journal.committed();
        let mut checks = tokio::time::interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tell = |acked| {
            confirmed.reached(acked);
            self.tell(ages, first, acked);
        };
        tell(after);
        loop {
            while publisher.next_sequence() <= committed.borrow_and_update().last_sequence {
                let next = publisher.next_sequence();
                let mut records = self.journal.take_recent(next, READ_BYTES);
                if records.is_empty() {
                    records = self.journal.read(next, READ_BYTES)?;
                }
                if records.is_empty() {
                    return Err(Trouble::Missing { sequence: next });
                }
                for record in records {
                    publisher.publish(record).await?;
                }
                tell(publisher.acked());
            }
            tokio::select! {
                acked = publisher.next_ack() => tell(acked?),
                _ = checks.tick(), if !publisher.is_waiting() => {
                    let actual = stream.state().await?.last_sequence;
                    if actual != publisher.acked() {
                        return Err(StreamError::WrongLastSequence { actual: Some(actual) }.into());
                    }
                }
                changed = committed.changed() => {
                    if changed.is_err() {
                        // The journal is closed: the daemon is ending.
                        settle(&mut publisher).await;
                        tell(publisher.acked());
                        return std::future::pending().await;
                    }
                }
            }
        }
    }

    /// Returns where the stream begins, and the last sequence number that journal and stream have in common.
    async fn align(
        &self,
        stream: &EventStream,
        state: &StreamState,
        confirmed: &mut Confirmed,
    ) -> Result<(u64, u64), Trouble> {
        let held = self.journal.held();
        match confirmed.align(held, state.first_sequence, state.last_sequence) {
            Alignment::Ahead => Err(Trouble::Fenced(FencedError::Ahead {
                stream: state.last_sequence,
                journal: held.last_sequence,
            })),
            Alignment::Behind => {
                tracing::warn!(
                    stream = state.last_sequence,
                    journal = held.first_sequence,
                    "the stream lost events that the journal has no longer; it is created again from where the journal begins"
                );
                let state = stream.recreate(held.first_sequence).await?;
                Ok((state.first_sequence, state.last_sequence))
            }
            Alignment::Compare(numbers) => {
                same(stream, &self.journal, numbers).await?;
                Ok((state.first_sequence, state.last_sequence))
            }
        }
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

/// Checks that the stream has no other events under these sequence numbers than the journal, which holds them. An event
/// that the stream lacks amid others is reported in the log.
///
/// # Errors
/// [`FencedError::Differs`], or an error of reading the journal or the stream; [`Trouble::Missing`] if the journal does not
/// hold a number.
pub(crate) async fn same(
    stream: &EventStream,
    journal: &Journal,
    numbers: RangeInclusive<u64>,
) -> Result<(), Trouble> {
    let (mut next, last) = numbers.into_inner();
    let mut comparing = stream.compare_from(next);
    while next <= last {
        let records = journal.read(next, READ_BYTES)?;
        if records.is_empty() {
            return Err(Trouble::Missing { sequence: next });
        }
        for record in records {
            next = record.sequence + 1;
            if record.sequence > last {
                break;
            }
            match comparing.next(&record).await? {
                Comparison::Same => {}
                Comparison::Differs(_) => {
                    return Err(Trouble::Fenced(FencedError::Differs {
                        sequence: record.sequence,
                    }));
                }
                Comparison::Missing => tracing::warn!(
                    sequence = record.sequence,
                    "the stream has lost this event, and has later ones: it can't be published again"
                ),
            }
        }
    }
    Ok(())
}

async fn settle(publisher: &mut Publisher) {
    if let Err(error) = publisher.settle().await {
        tracing::warn!(
            error = chain(&error),
            "the last events will be published after the next start"
        );
    }
}

/// The health of the server, which tells whether to restart it. After its disk was full, a server stays silent,
/// refuses, or contradicts itself on where its stream ends, even when there is room again; a restart cures it. Restarts
/// that don't help are repeated with a back-off.
#[derive(Default)]
struct ServerHealth {
    acked: u64,
    astray: u32,
    pause: Duration,
    not_before: Option<Instant>,
}

impl ServerHealth {
    /// Returns whether a restart may help after this error, with `acked` the last acknowledged sequence number.
    fn restart_helps(&mut self, error: &StreamError, acked: u64) -> bool {
        if acked > self.acked {
            *self = Self {
                acked,
                ..Self::default()
            };
        }
        let suspect = match error {
            StreamError::Unanswered { .. } | StreamError::StorageFull { .. } => true,
            // Once or twice, it is a race with a message that was in flight.
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

/// The times at which events were acknowledged, in steps of a minute.
#[derive(Default)]
struct Ages {
    steps: VecDeque<(Instant, u64)>,
    stored: u64,
}

impl Ages {
    /// Removes what the stream may have lost.
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

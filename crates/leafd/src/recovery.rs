//! Recovers a leaf's state: from its journal, from the stream, or as a new leaf's.

use anyhow::Context as _;
use leaf_bus::connect::Bus;
use leaf_bus::stream::{EventStream, StreamError, StreamSettings};
use leaf_core::error::chain;
use leaf_core::event::{Event, EventRecord, Fact, LeafFact};
use leaf_core::id::LeafName;
use leaf_core::state::{State, apply};
use leaf_core::subject;
use leaf_journal::{Import, Journal};

use crate::publisher::{self, FencedError};

/// How many of the newest events an import copies into the journal.
const IMPORTED_EVENTS: usize = 1000;

/// The result of a recovery.
pub enum Recovered {
    /// The state to continue from.
    State(Box<State>),
    /// The stream can't be read, and the journal is new: only the stream tells whether the leaf has a history.
    NotYet(StreamError),
}

/// Returns the state to continue from, which is the journal's (`state`) after importing into the journal what only the
/// stream has.
///
/// A new journal waits for NATS first.
///
/// # Errors
/// When the journal or the stream can't be read.
pub async fn recover(
    bus: &Bus,
    leaf: &LeafName,
    journal: &Journal,
    state: &State,
    settings: &StreamSettings,
) -> anyhow::Result<Recovered> {
    let fresh = journal.last_sequence() == 0;
    let is_connected = bus.status().borrow().is_connected();
    match (fresh, is_connected) {
        (true, false) => {
            tracing::info!("the journal is new: waiting for NATS to check whether the leaf has a history");
            bus.connected().await;
        }
        (false, false) => return Ok(Recovered::State(Box::new(state.clone()))),
        (_, true) => {}
    }
    match take_over(bus, leaf, journal, state.clone(), settings).await {
        Ok(state) => Ok(Recovered::State(Box::new(state))),
        Err(Trouble::Fenced(error)) => Err(error.into()),
        Err(Trouble::Other(error)) => Err(error),
        Err(Trouble::Stream(error)) if fresh => Ok(Recovered::NotYet(error)),
        Err(Trouble::Stream(error)) => {
            tracing::warn!(error = chain(&error), "can't read the stream at the moment");
            Ok(Recovered::State(Box::new(state.clone())))
        }
    }
}

enum Trouble {
    Stream(StreamError),
    Fenced(FencedError),
    Other(anyhow::Error),
}

impl From<publisher::Trouble> for Trouble {
    fn from(trouble: publisher::Trouble) -> Self {
        match trouble {
            publisher::Trouble::Stream(error) => Self::Stream(error),
            publisher::Trouble::Fenced(error) => Self::Fenced(error),
            publisher::Trouble::Missing { sequence } => Self::Other(anyhow::anyhow!(
                "the journal lacks event {sequence}, which it should hold: move the journal away, and start leafd again, which \
                then imports the stream's events"
            )),
            publisher::Trouble::Journal(error) => {
                Self::Other(anyhow::Error::new(error).context("can't read the journal"))
            }
        }
    }
}

impl From<StreamError> for Trouble {
    fn from(error: StreamError) -> Self {
        publisher::Trouble::from(error).into()
    }
}

async fn take_over(
    bus: &Bus,
    leaf: &LeafName,
    journal: &Journal,
    mut state: State,
    settings: &StreamSettings,
) -> Result<State, Trouble> {
    let held = journal.held();
    let (stream, found) = EventStream::ensure(bus, leaf, settings.clone(), held.first_sequence).await?;
    if found.last_sequence <= held.last_sequence {
        return Ok(state);
    }
    // The publisher has not confirmed any of these yet.
    let from = held.first_sequence.max(found.first_sequence);
    publisher::same(&stream, journal, from..=held.last_sequence).await?;
    let from = if held.last_sequence > 0 && found.first_sequence <= held.last_sequence + 1 {
        held.last_sequence + 1
    } else {
        let snapshot = stream.last_on(&subject::snapshots_of(leaf)).await?;
        snapshot
            .as_ref()
            .and_then(beginning_of_snapshot)
            .unwrap_or(found.first_sequence)
    };
    tracing::warn!(
        journal = held.last_sequence,
        stream = found.last_sequence,
        from,
        "importing the stream's events into the journal; if the journal was lost, unpublished events are lost"
    );
    let mut epoch = (held.last_sequence > 0).then_some(held.epoch);
    let mut reader = stream.read_from(from);
    let mut newest: Vec<EventRecord> = Vec::new();
    while let Some(record) = reader.next().await? {
        let event = Event::from_record(&record).map_err(|source| {
            Trouble::Fenced(FencedError::NotAnEvent {
                sequence: record.sequence,
                stream: stream.name().to_owned(),
                source,
            })
        })?;
        let found = record.epoch();
        epoch = epoch.or(found);
        if event.sequence != record.sequence || found != epoch {
            return Err(Trouble::Fenced(FencedError::Foreign {
                sequence: record.sequence,
            }));
        }
        newest.push(record);
        if newest.len() > 2 * IMPORTED_EVENTS {
            newest.drain(..IMPORTED_EVENTS);
        }
        apply(&mut state, &event);
    }
    let import = Import {
        epoch: epoch.unwrap_or(held.epoch),
        last_sequence: state.sequence,
        events: newest,
        entries: state.entries(),
    };
    journal
        .import(import)
        .await
        .context("can't import the stream's events into the journal")
        .map_err(Trouble::Other)?;
    Ok(state)
}

/// Returns the sequence number at which a snapshot begins, given its last part; `None` if this is not a last part.
fn beginning_of_snapshot(record: &EventRecord) -> Option<u64> {
    match Event::from_record(record).ok()?.fact {
        Fact::Leaf(LeafFact::Snapshotted(snapshot)) if snapshot.part == snapshot.parts => {
            Some(record.sequence.saturating_sub(u64::from(snapshot.part) - 1))
        }
        _ => None,
    }
}

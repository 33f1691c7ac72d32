//! Where a leaf begins: with what its journal has, or what the stream has, or with nothing.

use anyhow::Context as _;
use leaf_bus::connect::Bus;
use leaf_bus::stream::{EventStream, StreamError, StreamSettings};
use leaf_core::event::{Event, EventRecord, Fact};
use leaf_core::id::LeafName;
use leaf_core::state::{State, apply};
use leaf_core::subject;
use leaf_journal::{Import, Journal, Opened};

/// How many of the newest events an import takes over into the journal.
const IMPORTED_EVENTS: usize = 1000;

/// Returns the state to go on from, after the journal took over what only the stream has.
///
/// A journal that was made just now needs an answer of NATS first: whether there is a history is not known without.
///
/// # Errors
/// When the journal or the stream holds what can't be read.
pub async fn recover(
    bus: &Bus,
    leaf: &LeafName,
    journal: &Journal,
    opened: Opened,
    settings: &StreamSettings,
) -> anyhow::Result<State> {
    let fresh = opened.held.last_sequence == 0;
    let state = State::from_entries(opened.held.last_sequence, opened.entries)
        .context("the state in the journal can't be read; is it of a newer leafd?")?;
    if fresh && !bus.status().borrow().is_connected() {
        tracing::info!("the journal is new: waiting for NATS, to see whether the leaf has a history");
    }
    if fresh {
        bus.connected().await;
    }
    if !bus.status().borrow().is_connected() {
        return Ok(state);
    }
    loop {
        match take_over(bus, leaf, journal, state.clone(), settings).await {
            Ok(state) => return Ok(state),
            Err(Trouble::Stream(error @ (StreamError::Disconnected | StreamError::Unanswered { .. }))) => {
                if !fresh {
                    return Ok(state);
                }
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the stream can't be read just now"
                );
                bus.connected().await;
            }
            Err(Trouble::Stream(error)) => {
                return Err(anyhow::Error::new(error).context("the stream can't be used"));
            }
            Err(Trouble::Other(error)) => return Err(error),
        }
    }
}

enum Trouble {
    Stream(StreamError),
    Other(anyhow::Error),
}

impl From<StreamError> for Trouble {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
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
    let from = if held.last_sequence == 0 {
        let snapshot = stream.last_on(&subject::snapshots_of(leaf)).await?;
        snapshot
            .as_ref()
            .map_or(found.first_sequence, beginning_of_snapshot)
    } else {
        held.last_sequence + 1
    };
    tracing::warn!(
        journal = held.last_sequence,
        stream = found.last_sequence,
        from,
        "the journal takes over what the stream has"
    );
    let mut reader = stream.read_from(from);
    let mut newest: Vec<EventRecord> = Vec::new();
    while let Some(record) = reader.next().await? {
        let event = Event::from_record(&record)
            .with_context(|| format!("the event {} of the stream can't be taken over", record.sequence))
            .map_err(Trouble::Other)?;
        apply(&mut state, &event);
        newest.push(record);
        if newest.len() > 2 * IMPORTED_EVENTS {
            newest.drain(..IMPORTED_EVENTS);
        }
    }
    let epoch = newest.last().and_then(EventRecord::epoch).unwrap_or(held.epoch);
    let import = Import {
        epoch,
        last_sequence: state.sequence,
        events: newest,
        entries: state.entries(),
    };
    journal
        .import(import)
        .await
        .context("the journal can't take over what the stream has")
        .map_err(Trouble::Other)?;
    Ok(state)
}

/// Where the snapshot begins of which this is a part.
fn beginning_of_snapshot(record: &EventRecord) -> u64 {
    match Event::from_record(record).map(|event| event.fact) {
        Ok(Fact::LeafSnapshotted(snapshot)) => record.sequence.saturating_sub(u64::from(snapshot.part) - 1),
        _ => record.sequence,
    }
}

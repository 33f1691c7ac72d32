//! The start of a leaf with a hub: it waits for the hub, and imports what only the hub's copy has.

use std::io;
use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::connect::Bus;
use leaf_bus::hub_link::HubError;
use leaf_bus::stream::{EventStream, StreamError, StreamSettings};
use leaf_core::beat::Beat;
use leaf_core::error::chain;
use leaf_core::event::{Event, EventRecord};
use leaf_core::fleet::ClaimReply;
use leaf_core::homecoming::{Extent, Next, Own};
use leaf_core::subject;
use leaf_journal::Journal;
use tokio::time::Instant;

use super::{CLAIM_EVERY, Heard, HomeError, Hub, extent_of_journal};
use crate::lease::{HeldError, Predecessors};
use leaf_host::notify;

/// How long the start waits for the hub before it continues without it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a leaf without any event waits for the hub before it begins a new history. The network of a machine with a new
/// disk may be up later than leafd.
const PATIENCE_IF_NEW: Duration = Duration::from_secs(60);

/// The pause before the hub is asked again during that time.
const ASK_AGAIN: Duration = Duration::from_millis(200);

impl Hub {
    /// Claims the name and makes sure that the leaf's stream holds all that the hub's copy has, or that the hub is away.
    /// To be called before the state is recovered from journal and stream.
    ///
    /// # Errors
    /// [`HomeError`] if the leaf must not take commands and publish: this is tried again.
    pub(crate) async fn come_home(
        &self,
        bus: &Bus,
        journal: &Journal,
        settings: &StreamSettings,
        beat: &Beat,
        dead: Predecessors,
    ) -> Result<Heard, HomeError> {
        self.remember_claim(beat.instance);
        let held = journal.held();
        let stream = EventStream::ensure(bus, &self.leaf, settings.clone(), held.first_sequence).await;
        let (stream, found) = match stream {
            Ok((stream, state)) => {
                let found = Extent {
                    first: state.first_sequence,
                    last: state.last_sequence,
                };
                (Some(stream), found)
            }
            // Its journal is enough to continue, and recovery says what is wrong with the stream.
            Err(error) if held.last_sequence > 0 => {
                tracing::warn!(error = chain(&error), "can't read the stream at the moment");
                let nothing = Extent {
                    first: held.first_sequence,
                    last: held.first_sequence - 1,
                };
                (None, nothing)
            }
            Err(error) => return Err(error.into()),
        };
        let own = Own {
            journal: extent_of_journal(held),
            stream: found,
        };
        let (mut copy, works) = match self.first_answer(beat, dead, found.last).await {
            Ok(ClaimReply::Granted { copy, works }) => (copy, works),
            Ok(ClaimReply::Held { by }) => return Err(HomeError::Held(HeldError(by))),
            Err(error) if own.is_empty() && self.opened.elapsed() < PATIENCE_IF_NEW => {
                return Err(HomeError::New(error));
            }
            Err(error) if self.lacks.are_known(own).map_err(|e| self.unremembered(e))? => {
                return Err(HomeError::Lacking {
                    leaf: self.leaf.clone(),
                    file: self.lacks.path().to_owned(),
                    source: error,
                });
            }
            Err(error) => {
                let problem = chain(&error);
                tracing::warn!(
                    error = problem,
                    "the leaf starts without the hub, and compares its events with the hub's copy once it answers"
                );
                return Ok(Heard {
                    problem: Some(problem),
                    ..Heard::default()
                });
            }
        };
        let compared = self.compare(copy.as_ref(), own, journal, stream.as_ref()).await;
        if let Some(copy) = &copy
            && matches!(compared, Ok(Next::Append(_)) | Err(HomeError::Copy(_)))
        {
            self.lacks
                .remember(copy.last)
                .map_err(|error| self.unremembered(error))?;
        }
        match compared? {
            Next::Append(numbers) => {
                // Only with the stream's own extent is it known where to append.
                let stream = stream.ok_or(StreamError::Disconnected)?;
                let epoch = own_epoch(own, journal, &stream).await?;
                let import = Import {
                    hub: self,
                    stream,
                    after: own.stream.last,
                    epoch,
                };
                let last = *numbers.end();
                import.run(numbers, beat, dead).await?;
                // The agent waits for it: with this claim it compares, and admits what comes next.
                match self.claim(beat, dead, last).await {
                    Ok(ClaimReply::Granted { copy: now, .. }) if now == copy => {}
                    // It is compared once more with the next claim.
                    Ok(ClaimReply::Granted { .. }) => copy = None,
                    Ok(ClaimReply::Held { by }) => return Err(HomeError::Held(HeldError(by))),
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "the hub does not answer after the import");
                    }
                }
            }
            Next::Differs { sequence } => {
                return Err(self.differs(sequence, own, journal, stream.as_ref()).await);
            }
            Next::GoOn | Next::CompareAt(_) => {}
        }
        self.lacks.forget().map_err(|error| self.unremembered(error))?;
        Ok(Heard {
            claimed_at: Some(Timestamp::now()),
            works,
            agreed: copy,
            problem: None,
            lost_after: None,
        })
    }

    fn unremembered(&self, source: io::Error) -> HomeError {
        HomeError::Remembered {
            file: self.lacks.path().to_owned(),
            source,
        }
    }

    /// Claims the name at a start: asks again for some seconds while the hub is away.
    async fn first_answer(
        &self,
        beat: &Beat,
        dead: Predecessors,
        stream_last: u64,
    ) -> Result<ClaimReply, HubError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.claim(beat, dead, stream_last).await {
                Err(error) if error.is_away() && Instant::now() < deadline => {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                answer => return answer,
            }
        }
    }
}

/// Returns the epoch of the leaf's own history; `None` if it has none.
async fn own_epoch(own: Own, journal: &Journal, stream: &EventStream) -> Result<Option<u64>, HomeError> {
    if journal.last_sequence() > 0 {
        return Ok(Some(journal.epoch()));
    }
    if own.is_empty() {
        return Ok(None);
    }
    Ok(stream.last().await?.and_then(|record| record.epoch()))
}

/// Appends events of the hub's copy to the leaf's own stream.
struct Import<'a> {
    hub: &'a Hub,
    stream: EventStream,
    /// The last sequence number of the stream.
    after: u64,
    /// The epoch that all events must have; `None` until the first one is read, if the leaf has no history.
    epoch: Option<u64>,
}

impl Import<'_> {
    /// Appends these events. What was appended stays after an error, and the next attempt continues after it.
    async fn run(
        mut self,
        numbers: RangeInclusive<u64>,
        beat: &Beat,
        dead: Predecessors,
    ) -> Result<(), HomeError> {
        let (from, to) = numbers.into_inner();
        tracing::warn!(
            from,
            to,
            "the hub has events that this leaf lacks: appending them to the leaf's stream"
        );
        let mut events = self.hub.link.read_copy(from);
        let mut renewed = Instant::now();
        let mut publisher = None;
        while let Some(record) = events.next().await.map_err(HomeError::Copy)? {
            let sequence = record.sequence;
            self.check(&record)?;
            let publisher = match &mut publisher {
                Some(publisher) => publisher,
                None => {
                    if from > self.after + 1 {
                        self.stream.recreate(from).await?;
                    }
                    publisher.insert(self.stream.publisher(from - 1).await?)
                }
            };
            publisher.publish(record).await?;
            if sequence >= to {
                break;
            }
            // The agent must not take a leaf for away whose import takes long, nor systemd for one that hangs.
            if renewed.elapsed() >= CLAIM_EVERY {
                renewed = Instant::now();
                notify::not_ready(&format!(
                    "not ready: importing the leaf's history from the hub, {sequence} of {to}"
                ));
                match self.hub.claim(beat, dead, publisher.acked()).await {
                    Ok(ClaimReply::Held { by }) => return Err(HomeError::Held(HeldError(by))),
                    Ok(ClaimReply::Granted { .. }) => {}
                    Err(error) => return Err(HomeError::Copy(error)),
                }
            }
        }
        if let Some(mut publisher) = publisher {
            publisher.settle().await?;
        }
        Ok(())
    }

    /// Checks that an event of the copy is readable, this leaf's, and of this leaf's history.
    fn check(&mut self, record: &EventRecord) -> Result<(), HomeError> {
        let foreign = |why: String| HomeError::Foreign {
            leaf: self.hub.leaf.clone(),
            sequence: record.sequence,
            why,
        };
        let prefix = subject::events_of(&self.hub.leaf);
        if !record.subject.starts_with(prefix.trim_end_matches('>')) {
            return Err(foreign(format!("its subject is {:?}", record.subject)));
        }
        let event = Event::from_record(record).map_err(|error| foreign(chain(&error)))?;
        if event.sequence != record.sequence {
            return Err(foreign(format!("it says that it is event {}", event.sequence)));
        }
        match (record.epoch(), self.epoch) {
            (Some(found), Some(expected)) if found != expected => Err(foreign(format!(
                "its history began at {found}, and this leaf's at {expected}"
            ))),
            (Some(found), _) => {
                self.epoch = Some(found);
                Ok(())
            }
            (None, _) => Err(foreign("its id names no history".to_owned())),
        }
    }
}

//! The changes of the file.

use bytes::Bytes;
use jiff::Timestamp;
use leaf_core::event::EventRecord;
use leaf_core::signed::Marks;

use crate::{Batch, Import};

/// One change of the file.
#[derive(Debug)]
pub(crate) enum Change {
    Commit(Batch),
    ForgetEvents {
        through: u64,
    },
    ForgetCommands {
        before: Timestamp,
        /// The clock, if it is trusted.
        trusted: Option<Timestamp>,
    },
    /// The clock is trusted, and says this.
    Mark {
        now: Timestamp,
    },
    Import(Import),
}

impl Change {
    /// Returns what the journal remembers of the time after this change. It knows all commands since the time of a clock that was
    /// trusted when it was made or last forgot some.
    pub(crate) fn mark(&self, before: Marks) -> Marks {
        let mut marks = before;
        let (forgot, now) = match self {
            Self::Commit(_) | Self::ForgetEvents { .. } => return before,
            // It brings no commands with it.
            Self::Import(_) => {
                return Marks {
                    floor: None,
                    ..before
                };
            }
            Self::Mark { now } => (None, *now),
            Self::ForgetCommands {
                before,
                trusted: Some(now),
            } => (Some(*before), *now),
            Self::ForgetCommands { trusted: None, .. } => {
                return Marks {
                    floor: None,
                    ..before
                };
            }
        };
        marks.floor = Some(
            marks
                .floor
                .map_or(now, |floor| forgot.map_or(floor, |forgot| floor.max(forgot))),
        );
        marks.seen = marks.seen.max(Some(now));
        marks
    }

    /// Returns about how many bytes it will write.
    pub(crate) fn bytes(&self) -> usize {
        let events = |events: &[EventRecord]| events.iter().map(event_bytes).sum::<usize>();
        match self {
            Self::Commit(batch) => {
                let commands = batch
                    .commands
                    .iter()
                    .map(|command| 256 + command.outcome.as_ref().map_or(0, |outcome| outcome.body.len()));
                let entries = batch
                    .entries
                    .iter()
                    .map(|(key, entry)| key.len() + entry.as_ref().map_or(0, Bytes::len) + 64);
                events(&batch.events) + entries.sum::<usize>() + commands.sum::<usize>()
            }
            Self::Import(import) => events(&import.events) + import.entries.len() * 512,
            Self::ForgetEvents { .. } | Self::ForgetCommands { .. } | Self::Mark { .. } => 64,
        }
    }
}

/// Returns the approximate size of an event, in bytes.
pub(crate) fn event_bytes(event: &EventRecord) -> usize {
    event.wire_bytes() + 24
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_rises_with_what_is_forgotten_and_is_lost_without_a_trusted_clock() {
        let time = |second| Timestamp::from_second(second).expect("a time");
        let forget = |before, trusted: Option<i64>| Change::ForgetCommands {
            before: time(before),
            trusted: trusted.map(time),
        };
        let marks = |floor: Option<i64>, seen: Option<i64>| Marks {
            floor: floor.map(time),
            seen: seen.map(time),
        };
        let steps = [
            (forget(10, None), marks(None, None)),
            (Change::Mark { now: time(100) }, marks(Some(100), Some(100))),
            (Change::Mark { now: time(200) }, marks(Some(100), Some(200))),
            (forget(50, Some(300)), marks(Some(100), Some(300))),
            (forget(150, Some(250)), marks(Some(150), Some(300))),
            (Change::ForgetEvents { through: 7 }, marks(Some(150), Some(300))),
            (Change::Import(Import::default()), marks(None, Some(300))),
            (forget(5, Some(400)), marks(Some(400), Some(400))),
            (forget(900, None), marks(None, Some(400))),
        ];
        let mut now = Marks::default();
        for (change, after) in steps {
            now = change.mark(now);
            assert_eq!(now, after, "{change:?}");
        }
    }
}

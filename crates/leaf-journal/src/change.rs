//! The changes of the file.

use bytes::Bytes;
use jiff::Timestamp;
use leaf_core::event::EventRecord;

use crate::{Batch, Import};

/// One change of the file.
#[derive(Debug)]
pub(crate) enum Change {
    Commit(Batch),
    ForgetEvents { through: u64 },
    ForgetCommands { before: Timestamp },
    Import(Import),
}

impl Change {
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
            Self::ForgetEvents { .. } | Self::ForgetCommands { .. } => 64,
        }
    }
}

/// Returns the approximate size of an event, in bytes.
pub(crate) fn event_bytes(event: &EventRecord) -> usize {
    event.wire_bytes() + 24
}

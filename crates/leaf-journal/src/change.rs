//! What can be done to the file.

use jiff::Timestamp;
use leaf_core::event::EventRecord;

use crate::{Batch, Import};

/// One thing to do to the file.
#[derive(Debug)]
pub(crate) enum Change {
    Commit(Batch),
    ForgetEvents { through: u64 },
    ForgetCommands { before: Timestamp },
    Import(Import),
}

impl Change {
    /// About how many bytes it will write.
    pub(crate) fn bytes(&self) -> usize {
        let events = |events: &[EventRecord]| events.iter().map(event_bytes).sum::<usize>();
        match self {
            Self::Commit(batch) => {
                let commands = batch
                    .commands
                    .iter()
                    .map(|command| 256 + command.outcome.as_ref().map_or(0, |outcome| outcome.body.len()));
                events(&batch.events) + batch.entries.len() * 512 + commands.sum::<usize>()
            }
            Self::Import(import) => events(&import.events) + import.entries.len() * 512,
            Self::ForgetEvents { .. } | Self::ForgetCommands { .. } => 64,
        }
    }
}

/// What an event takes, about, in bytes.
pub(crate) fn event_bytes(event: &EventRecord) -> usize {
    let headers: usize = event.headers.iter().map(|(_, value)| value.len() + 2).sum();
    event.subject.len() + headers + event.body.len() + 24
}

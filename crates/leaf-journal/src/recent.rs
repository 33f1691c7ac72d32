//! The newest events, held in memory between their commit and their publication.

use std::collections::VecDeque;

use leaf_core::event::EventRecord;

use crate::change::event_bytes;

/// The most bytes of events that are held in memory.
const RECENT_BYTES: usize = 4 << 20;

/// The newest events, so that the publisher need not read them from the file. Older events, and those that are
/// published again, are read from the file.
#[derive(Default)]
pub(crate) struct Recent {
    events: VecDeque<EventRecord>,
    bytes: usize,
}

impl Recent {
    /// Adds events that follow those it has; drops the oldest ones over the limit.
    pub(crate) fn add(&mut self, events: impl Iterator<Item = EventRecord>) {
        for event in events {
            self.bytes += event_bytes(&event);
            self.events.push_back(event);
            while self.bytes > RECENT_BYTES {
                self.forget_first();
            }
        }
    }

    /// Removes and returns the events from this one on, up to about `max_bytes`; none if it is not among them.
    pub(crate) fn take(&mut self, from: u64, max_bytes: usize) -> Vec<EventRecord> {
        while self.events.front().is_some_and(|first| first.sequence < from) {
            self.forget_first();
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < max_bytes
            && self
                .events
                .front()
                .is_some_and(|first| first.sequence == from + taken.len() as u64)
            && let Some(event) = self.events.pop_front()
        {
            let size = event_bytes(&event);
            self.bytes -= size;
            bytes += size;
            taken.push(event);
        }
        taken
    }

    fn forget_first(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes -= event_bytes(&event);
        }
    }
}

#[cfg(test)]
mod tests {
    use leaf_core::event::Headers;

    use super::*;

    fn events(numbers: impl IntoIterator<Item = u64>, body: usize) -> impl Iterator<Item = EventRecord> {
        let event = move |sequence| EventRecord {
            sequence,
            subject: "s".to_owned(),
            headers: Headers::default(),
            body: vec![b'x'; body],
        };
        numbers.into_iter().map(event)
    }

    fn numbers(taken: &[EventRecord]) -> Vec<u64> {
        taken.iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn what_is_taken_is_contiguous_and_gone() {
        let mut recent = Recent::default();
        recent.add(events(1..=10, 10));
        assert_eq!(numbers(&recent.take(4, 1 << 20)), [4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(recent.take(4, 1 << 20), []);
        recent.add(events(11..=12, 10));
        assert_eq!(
            recent.take(8, 1 << 20),
            [],
            "what lies between comes from the file"
        );
        assert_eq!(numbers(&recent.take(11, 1)), [11]);
        assert_eq!(numbers(&recent.take(12, 1)), [12]);
        assert_eq!(recent.bytes, 0);
    }

    #[test]
    fn it_does_not_grow_without_bound() {
        let mut recent = Recent::default();
        recent.add(events(1..=100, 100 << 10));
        assert!(recent.bytes <= RECENT_BYTES && recent.events.len() < 50);
        assert_eq!(recent.take(1, 1 << 20), []);
        assert_eq!(numbers(&recent.take(100, 1)), [100]);
    }
}

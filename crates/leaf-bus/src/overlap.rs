//! Tells which of the copies of a message is the first, while messages arrive over two connections: each is returned once.
//!
//! A queue group would do the same at the server. But a server doesn't notice at once that a connection is gone: until then its
//! subscription stays a member of the group, and what the server sends there is lost.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use async_nats::Message;
use tokio::time::Instant;

/// How long after the end of a connection copies of its messages may still arrive over another one.
const LATE_BY: Duration = Duration::from_secs(60);

/// The messages that arrived while there was more than one connection.
#[derive(Debug, Default)]
pub(crate) struct Overlap {
    hasher: RandomState,
    /// By a hash of the message.
    seen: BTreeMap<u64, Seen>,
    /// When nothing is repeated any more, once one connection is left.
    ends_at: Option<Instant>,
}

/// A message that arrived.
#[derive(Debug)]
struct Seen {
    /// How often over each connection.
    counts: Vec<(Connection, u32)>,
    /// When it counts no longer.
    until: Instant,
}

/// The number of a connection.
pub(crate) type Connection = u64;

impl Overlap {
    /// Notes a connection that is new: what has arrived before is not repeated over it.
    pub(crate) fn begin(&mut self, connection: Connection, now: Instant) {
        self.seen.retain(|_, seen| now < seen.until);
        for Seen { counts, .. } in self.seen.values_mut() {
            let most = counts.iter().map(|(_, count)| *count).max();
            counts.push((connection, most.unwrap_or_default()));
        }
    }

    /// Returns whether a message that arrived over a connection has not arrived over another one. `is_alone` says whether there is
    /// no other one now.
    pub(crate) fn is_first(
        &mut self,
        connection: Connection,
        message: &Message,
        is_alone: bool,
        now: Instant,
    ) -> bool {
        if is_alone && self.seen.is_empty() {
            return true;
        }
        let reply = message.reply.as_ref().map(|reply| reply.as_str());
        // The map itself has no order.
        let headers: BTreeMap<&str, Vec<&str>> = message
            .headers
            .iter()
            .flat_map(|headers| headers.iter())
            .map(|(name, values)| (name.as_ref(), values.iter().map(|value| value.as_str()).collect()))
            .collect();
        let key = self
            .hasher
            .hash_one((message.subject.as_str(), reply, headers, &message.payload[..]));
        self.count(connection, key, is_alone, now)
    }

    fn count(&mut self, connection: Connection, key: u64, is_alone: bool, now: Instant) -> bool {
        match (is_alone, self.ends_at) {
            (false, _) => self.ends_at = None,
            (true, None) => self.ends_at = Some(now + LATE_BY),
            (true, Some(end)) if end <= now => {
                *self = Self::default();
                return true;
            }
            (true, Some(_)) => {}
        }
        if self.seen.get(&key).is_some_and(|seen| seen.until <= now) {
            self.seen.remove(&key);
        }
        // Alone, it has only copies to come of what was seen.
        if is_alone && !self.seen.contains_key(&key) {
            return true;
        }
        let seen = self.seen.entry(key).or_insert_with(|| Seen {
            counts: Vec::new(),
            until: now + LATE_BY,
        });
        let others = seen
            .counts
            .iter()
            .filter(|(other, _)| *other != connection)
            .map(|(_, count)| *count);
        let others = others.max().unwrap_or_default();
        let own = match seen.counts.iter_mut().find(|(one, _)| *one == connection) {
            Some((_, count)) => {
                *count += 1;
                *count
            }
            None => {
                seen.counts.push((connection, 1));
                1
            }
        };
        own > others
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMER: Connection = 0;
    const FRESH: Connection = 1;

    proptest! {
        /// The former connection has what was sent before and within the overlap, the fresh one what was sent within and after it.
            /// However the two are read, each message is returned as often as it was sent.
        #[test]
        fn each_message_is_returned_as_often_as_it_was_sent(
            before in prop::collection::vec(0_u64..4, 0..8),
            within in prop::collection::vec(0_u64..4, 0..8),
            after in prop::collection::vec(0_u64..4, 0..8),
            turns in prop::collection::vec(any::<bool>(), 0..40),
        ) {
            let now = Instant::now();
            let mut overlap = Overlap::default();
            let mut returned: Vec<_> = before.clone();
            let (mut former, mut fresh) = (within.iter(), within.iter().chain(&after));
            let mut turns = turns.into_iter().chain(std::iter::repeat(true));
            loop {
                let is_alone = former.len() == 0;
                let next = if turns.next() == Some(true) && !is_alone {
                    former.next().map(|key| (FORMER, key))
                } else {
                    fresh.next().map(|key| (FRESH, key))
                };
                match next {
                    Some((connection, key)) if overlap.count(connection, *key, is_alone && connection == FRESH, now) => returned.push(*key),
                    Some(_) => {}
                    None if is_alone => break,
                    None => {}
                }
            }
            let mut sent: Vec<_> = before.into_iter().chain(within).chain(after).collect();
            sent.sort_unstable();
            returned.sort_unstable();
            prop_assert_eq!(returned, sent);
        }
    }

    #[test]
    fn what_was_counted_is_forgotten_a_minute_after_the_other_connection() {
        let now = Instant::now();
        let mut overlap = Overlap::default();
        assert!(overlap.count(FORMER, 7, false, now));
        assert!(!overlap.count(FRESH, 7, true, now), "the copy");
        assert!(overlap.count(FRESH, 8, true, now), "another message");
        assert!(overlap.count(FRESH, 7, true, now), "sent again");
        assert!(overlap.count(FRESH, 9, true, now + LATE_BY));
        assert!(overlap.seen.is_empty());
    }

    #[test]
    fn a_message_that_is_sent_again_and_again_is_returned_each_time_over_the_next_connection_too() {
        let now = Instant::now();
        let next: Connection = 2;
        let mut overlap = Overlap::default();
        assert!(overlap.count(FORMER, 7, false, now));
        assert!(!overlap.count(FRESH, 7, true, now));
        for _ in 0..30 {
            assert!(overlap.count(FRESH, 7, true, now));
        }
        overlap.begin(next, now);
        assert!(overlap.count(FRESH, 7, false, now));
        assert!(!overlap.count(next, 7, false, now), "the copy");
        for _ in 0..30 {
            assert!(overlap.count(next, 7, true, now));
        }
        // A day later nothing of that counts.
        let later = now + Duration::from_secs(86_400);
        overlap.begin(3, later);
        assert!(overlap.seen.is_empty());
    }
}

//! Decides what of the stream is compared with the journal before publishing continues. Pure.
//!
//! The stream accepts an event because of the number before it, whatever message has that number. If a foreign message
//! takes the number n while n, n+1 and n+2 are under way, the server refuses n and stores the other two. So an equal last
//! event says nothing of those before it, and all are compared that are not *confirmed*.
//!
//! The contract of confirmation:
//!
//! - An event is confirmed when the server acknowledged it to the publisher that sent it, after all events before it, or
//!   when it was compared and is equal.
//! - A stream that ends before the last confirmed event has lost events, and anyone may have written since. Then only
//!   events that the journal has let go of are confirmed.
//! - The journal lets go of an event only after it was confirmed and the server had the time to write it to its disk.
//!   So after a restart, the events before the journal's first one are confirmed, and nothing else needs to be stored.

use std::ops::RangeInclusive;

use leaf_journal::Held;

/// The events that the stream is known to hold as the journal has or had them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Confirmed {
    through: u64,
}

/// How journal and stream relate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Alignment {
    /// The stream has more than the journal.
    Ahead,
    /// The stream ends before the events that the journal still holds.
    Behind,
    /// The events with these numbers have to be equal; publishing then continues after the last. Empty if the stream has
    /// nothing to compare.
    Compare(RangeInclusive<u64>),
}

impl Confirmed {
    /// Returns what is confirmed at a start.
    pub(super) fn before(held: Held) -> Self {
        Self {
            through: held.first_sequence - 1,
        }
    }

    /// Records that all events up to this one were acknowledged in order, or compared.
    pub(super) fn reached(&mut self, sequence: u64) {
        self.through = sequence;
    }

    /// Returns how a stream with this first and last sequence number relates to the journal.
    pub(super) fn align(&mut self, held: Held, first: u64, last: u64) -> Alignment {
        if last < self.through {
            *self = Self::before(held);
        }
        if last > held.last_sequence {
            return Alignment::Ahead;
        }
        if last + 1 < held.first_sequence {
            return Alignment::Behind;
        }
        // The last one is compared in any case: what was confirmed may have been replaced while nothing was connected.
        let from = (self.through + 1).min(last);
        Alignment::Compare(from.max(held.first_sequence).max(first)..=last)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// A step of a schedule: of a leaf, its server, or the connection between them.
    #[derive(Debug, Clone)]
    enum Step {
        /// The journal commits an event.
        Commit,
        /// The publisher connects, if it is not connected: it reads where the stream ends, compares, and goes on.
        Connect,
        /// It sends an event without waiting for acknowledgements.
        Send,
        /// The server handles what arrived first.
        Serve,
        /// An acknowledgement or a refusal arrives.
        Hear,
        /// The connection is lost, with everything on its way.
        Disconnect,
        /// Somebody else writes into the stream.
        Foreign,
        /// The server writes what it has to its disk.
        Sync,
        /// The server's machine loses its power: what was not on its disk is gone.
        PowerCut,
        /// leafd is killed and starts again: what it had in memory is gone.
        Restart,
        /// The journal lets go of what was confirmed and is on the server's disk.
        Forget,
    }

    fn steps(with_foreign: bool) -> impl Strategy<Value = Vec<Step>> {
        let foreign = if with_foreign { Step::Foreign } else { Step::Commit };
        let step = prop_oneof![
            8 => Just(Step::Commit),
            6 => Just(Step::Connect),
            10 => Just(Step::Send),
            10 => Just(Step::Serve),
            6 => Just(Step::Hear),
            2 => Just(Step::Disconnect),
            2 => Just(foreign),
            2 => Just(Step::Sync),
            1 => Just(Step::PowerCut),
            2 => Just(Step::Restart),
            2 => Just(Step::Forget),
        ];
        proptest::collection::vec(step, 0..120)
    }

    /// A message of the stream.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Message {
        Ours(u64),
        Foreign,
    }

    /// A publisher between its start and its first error.
    struct Session {
        acked: u64,
        sent: u64,
        /// Events on their way to the server.
        there: VecDeque<u64>,
        /// Answers on their way back: `false` is a refusal.
        back: VecDeque<bool>,
    }

    struct World {
        held: Held,
        /// The stream; the first has the number `first`.
        first: u64,
        stream: Vec<Message>,
        /// How many of them are on the server's disk.
        on_disk: usize,
        confirmed: Confirmed,
        /// The last event that is acknowledged or compared and was on the server's disk since.
        stored: u64,
        session: Option<Session>,
        fenced: bool,
    }

    impl World {
        fn new() -> Self {
            let held = Held {
                epoch: 1,
                first_sequence: 1,
                last_sequence: 0,
            };
            Self {
                held,
                first: 1,
                stream: Vec::new(),
                on_disk: 0,
                confirmed: Confirmed::before(held),
                stored: 0,
                session: None,
                fenced: false,
            }
        }

        fn last(&self) -> u64 {
            self.first + self.stream.len() as u64 - 1
        }

        fn at(&self, sequence: u64) -> Option<Message> {
            let place = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
            self.stream.get(place).copied()
        }

        fn connect(&mut self) {
            if self.session.is_some() {
                return;
            }
            let mut last = self.last();
            match self.confirmed.align(self.held, self.first, last) {
                Alignment::Ahead => {
                    self.fenced = true;
                    return;
                }
                Alignment::Behind => {
                    self.first = self.held.first_sequence;
                    (self.stream, self.on_disk) = (Vec::new(), 0);
                    last = self.last();
                }
                Alignment::Compare(numbers) => {
                    for sequence in numbers {
                        if self.at(sequence) != Some(Message::Ours(sequence)) {
                            self.fenced = true;
                            return;
                        }
                    }
                }
            }
            self.confirmed.reached(last);
            self.stored = self.stored.min(last);
            self.session = Some(Session {
                acked: last,
                sent: last,
                there: VecDeque::new(),
                back: VecDeque::new(),
            });
        }

        fn step(&mut self, step: &Step) {
            if self.fenced {
                return;
            }
            match step {
                Step::Commit => self.held.last_sequence += 1,
                Step::Connect => self.connect(),
                Step::Send => {
                    if let Some(session) = &mut self.session
                        && session.sent < self.held.last_sequence
                    {
                        session.sent += 1;
                        session.there.push_back(session.sent);
                    }
                }
                Step::Serve => self.serve(),
                Step::Hear => self.hear(),
                Step::Disconnect => self.session = None,
                Step::Foreign => self.stream.push(Message::Foreign),
                Step::Sync => {
                    self.on_disk = self.stream.len();
                    if let Some(session) = &self.session {
                        self.stored = session.acked;
                    }
                }
                Step::PowerCut => {
                    self.stream.truncate(self.on_disk);
                    self.session = None;
                }
                Step::Restart => {
                    self.confirmed = Confirmed::before(self.held);
                    (self.session, self.stored) = (None, 0);
                }
                Step::Forget => {
                    for sequence in self.held.first_sequence..=self.stored {
                        assert_eq!(
                            self.at(sequence),
                            Some(Message::Ours(sequence)),
                            "the journal lets go of event {sequence}"
                        );
                    }
                    self.held.first_sequence = self.held.first_sequence.max(self.stored + 1);
                }
            }
        }

        fn serve(&mut self) {
            let last = self.last();
            let Some(session) = &mut self.session else { return };
            let Some(sequence) = session.there.pop_front() else {
                return;
            };
            let stored = sequence == last + 1;
            session.back.push_back(stored);
            if stored {
                self.stream.push(Message::Ours(sequence));
            }
        }

        fn hear(&mut self) {
            let Some(session) = &mut self.session else { return };
            match session.back.pop_front() {
                Some(true) => {
                    session.acked += 1;
                    self.confirmed.reached(session.acked);
                }
                // What is still on its way may be stored before the next session begins.
                Some(false) => {
                    while self.session.as_ref().is_some_and(|s| !s.there.is_empty()) {
                        self.serve();
                    }
                    self.session = None;
                }
                None => {}
            }
        }

        /// Goes on without disturbance until everything is published, or publishing has stopped for good.
        fn settle(&mut self) {
            let settled = |world: &Self| {
                let acked = world.session.as_ref().map(|session| session.acked);
                world.fenced || acked == Some(world.held.last_sequence)
            };
            while !settled(self) {
                for step in [Step::Connect, Step::Send, Step::Serve, Step::Hear] {
                    self.step(&step);
                }
            }
            // What the publisher does while it has nothing to publish.
            if !self.fenced && self.last() != self.held.last_sequence {
                self.session = None;
                self.connect();
            }
        }
    }

    fn run(steps: &[Step]) -> World {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle();
        world
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

        #[test]
        fn a_foreign_message_in_the_stream_is_always_found(steps in steps(true)) {
            let world = run(&steps);
            if !world.fenced {
                let ours: Vec<_> = (world.first..=world.held.last_sequence).map(Message::Ours).collect();
                prop_assert_eq!(world.stream, ours);
            }
        }

        #[test]
        fn without_a_foreign_message_every_event_is_published(steps in steps(false)) {
            let world = run(&steps);
            prop_assert!(!world.fenced);
            let ours: Vec<_> = (world.first..=world.held.last_sequence).map(Message::Ours).collect();
            prop_assert_eq!(world.stream, ours);
        }
    }

    #[test]
    fn a_foreign_message_amid_events_under_way_is_compared() {
        let steps: Vec<Step> = [
            vec![Step::Commit; 4],
            vec![Step::Connect, Step::Send, Step::Serve, Step::Hear, Step::Foreign],
            // 2 is refused, 3 and 4 are stored.
            vec![
                Step::Send,
                Step::Send,
                Step::Send,
                Step::Serve,
                Step::Serve,
                Step::Serve,
            ],
        ]
        .concat();
        assert!(run(&steps).fenced);
        let steps: Vec<Step> = [steps, vec![Step::Restart]].concat();
        assert!(run(&steps).fenced, "after a restart as well");
    }

    #[test]
    fn a_stream_that_lost_events_is_compared_from_where_the_journal_begins() {
        let held = Held {
            epoch: 1,
            first_sequence: 11,
            last_sequence: 40,
        };
        let mut confirmed = Confirmed::before(held);
        assert_eq!(confirmed.align(held, 1, 30), Alignment::Compare(11..=30));
        confirmed.reached(30);
        assert_eq!(confirmed.align(held, 1, 33), Alignment::Compare(31..=33));
        assert_eq!(confirmed.align(held, 1, 30), Alignment::Compare(30..=30));
        assert_eq!(confirmed.align(held, 1, 29), Alignment::Compare(11..=29));
        assert_eq!(confirmed.align(held, 15, 29), Alignment::Compare(15..=29));
        assert_eq!(confirmed.align(held, 1, 9), Alignment::Behind);
        assert_eq!(confirmed.align(held, 1, 41), Alignment::Ahead);
        let Alignment::Compare(numbers) = confirmed.align(held, 1, 10) else {
            panic!("the journal has everything after 10");
        };
        assert!(numbers.is_empty());
    }
}

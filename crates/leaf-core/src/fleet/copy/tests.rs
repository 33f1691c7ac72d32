use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn event(sequence: u64) -> EventRecord {
    EventRecord {
        sequence,
        subject: format!("leaf.v1.evt.edge-1.leaf.edge-1.e{sequence}"),
        headers: [("ce-sequence", format!("{sequence:020}"))].into_iter().collect(),
        body: sequence.to_string().into_bytes(),
    }
}

fn events(sequences: std::ops::RangeInclusive<u64>) -> Vec<EventRecord> {
    sequences.map(event).collect()
}

fn extent(first: u64, last: u64) -> Extent {
    Extent { first, last }
}

/// A copy of 1 to `last` that was compared, while the leaf's stream ends there too.
fn current(last: u64) -> Copy {
    let mut copy = Copy::new(Duration::ZERO, 0, None);
    let claim = Input::Claimed {
        anew: true,
        stream_last: last,
    };
    assert_eq!(copy.handle(claim, SECOND), [Output::Open]);
    let opened = Input::Opened(extent(1, last));
    assert_eq!(copy.handle(opened, SECOND), [Output::Compare(extent(1, last))]);
    assert_eq!(copy.handle(Input::Compared(Compared::Same), SECOND), []);
    copy
}

fn state(copy: &mut Copy, now: Duration) -> CopyState {
    copy.view(now).expect("a state").state
}

#[test]
fn a_live_event_is_published_at_once_and_without_the_ack_of_the_one_before() {
    let mut copy = current(3);
    for sequence in 4..=6 {
        let outputs = copy.handle(Input::Heard(event(sequence)), SECOND);
        assert_eq!(outputs, [Output::Publish(events(sequence..=sequence))]);
    }
    assert_eq!(copy.handle(Input::Heard(event(5)), SECOND), []);
    assert_eq!(state(&mut copy, SECOND), CopyState::Behind);
    copy.handle(Input::Stored(6), SECOND);
    assert_eq!(state(&mut copy, SECOND), CopyState::Current);
}

#[test]
fn what_is_missing_before_a_live_event_is_read_and_the_live_ones_follow() {
    let mut copy = current(3);
    let read = Output::Read { from: 4, events: 2 };
    assert_eq!(copy.handle(Input::Heard(event(6)), SECOND), [read]);
    assert_eq!(copy.handle(Input::Heard(event(7)), SECOND), []);
    let page = Input::Page {
        from: 4,
        events: events(4..=5),
        end: false,
    };
    let outputs = copy.handle(page, SECOND);
    assert_eq!(
        outputs,
        [Output::Publish(events(4..=5)), Output::Publish(events(6..=7))]
    );
}

#[test]
fn pages_are_read_ahead_and_a_short_one_begins_the_reading_anew() {
    let mut copy = current(1);
    let claim = Input::Claimed {
        anew: false,
        stream_last: 10_000,
    };
    let asked: Vec<u64> = (0..PAGES_AHEAD as u64)
        .map(|page| 2 + page * PAGE_EVENTS)
        .collect();
    let outputs = copy.handle(claim, SECOND);
    let expected: Vec<_> = asked
        .iter()
        .map(|from| Output::Read {
            from: *from,
            events: PAGE_EVENTS,
        })
        .collect();
    assert_eq!(outputs, expected);
    let short = Input::Page {
        from: 2,
        events: events(2..=100),
        end: false,
    };
    let outputs = copy.handle(short, SECOND);
    assert_eq!(
        outputs[..2],
        [Output::Publish(events(2..=100)), Output::StopReading]
    );
    let next = Output::Read {
        from: 101,
        events: PAGE_EVENTS,
    };
    assert_eq!(outputs[2], next);
    // The answer to what was forgotten is nothing.
    let late = Input::Page {
        from: asked[1],
        events: events(514..=1025),
        end: false,
    };
    assert_eq!(copy.handle(late, SECOND), []);
}

#[test]
fn a_gap_and_a_difference_stay_until_the_copy_begins_anew() {
    let outcomes = [
        (Compared::Begins { first: 9 }, CopyState::Gap),
        (Compared::Differs { sequence: 3 }, CopyState::Differs),
    ];
    for (compared, expected) in outcomes {
        let mut copy = Copy::new(Duration::ZERO, 3, Some(CopyState::Current));
        let claim = |anew| Input::Claimed {
            anew,
            stream_last: 12,
        };
        copy.handle(claim(true), SECOND);
        copy.handle(Input::Opened(extent(1, 3)), SECOND);
        assert_eq!(copy.handle(Input::Compared(compared), SECOND), [Output::Close]);
        assert_eq!(state(&mut copy, SECOND), expected);
        let shown = copy.view(SECOND).expect("a state");
        assert!(shown.reason.is_some());
        assert_eq!(copy.handle(Input::Heard(event(13)), SECOND), []);
        assert_eq!(copy.handle(claim(false), 2 * SECOND), [Output::Open]);
        // What is known holds until the copy is compared again.
        let meanwhile = copy.view(2 * SECOND).expect("a state");
        assert_eq!((meanwhile.state, &meanwhile.reason), (expected, &shown.reason));
        let outputs = copy.handle(Input::Opened(extent(9, 8)), 2 * SECOND);
        let read = Output::Read {
            from: 9,
            events: PAGE_EVENTS,
        };
        assert_eq!(outputs, [read]);
    }
}

#[test]
fn a_leaf_with_fewer_events_than_the_copy_is_compared_again_at_each_claim() {
    let mut copy = Copy::new(Duration::ZERO, 0, None);
    let claim = |stream_last| Input::Claimed {
        anew: false,
        stream_last,
    };
    copy.handle(claim(5), SECOND);
    copy.handle(Input::Opened(extent(1, 9)), SECOND);
    let ends = Compared::Ends { last: 5 };
    assert_eq!(copy.handle(Input::Compared(ends), SECOND), [Output::Close]);
    let view = copy.view(SECOND).expect("a state");
    assert_eq!((view.copied, view.leaf_last), (9, 5));
    assert!(view.reason.expect("a reason").contains("end with 5"));
    assert_eq!(copy.handle(claim(9), SECOND), [Output::Open]);
}

#[test]
fn a_copy_that_lacks_events_is_behind_then_stalled_and_then_current() {
    let mut copy = current(3);
    assert_eq!(state(&mut copy, SECOND), CopyState::Current);
    copy.handle(Input::Heard(event(6)), SECOND);
    assert_eq!(state(&mut copy, SECOND), CopyState::Current);
    assert_eq!(copy.deadline(SECOND), Some(3 * SECOND));
    assert_eq!(state(&mut copy, 3 * SECOND), CopyState::Behind);
    copy.handle(Input::Failed("the leaf does not answer".into()), 4 * SECOND);
    assert_eq!(state(&mut copy, 11 * SECOND), CopyState::Stalled);
    let view = copy.view(11 * SECOND).expect("a state");
    assert_eq!(view.reason.as_deref(), Some("the leaf does not answer"));
    assert_eq!(copy.handle(Input::Tick, 11 * SECOND), [Output::Open]);
    copy.handle(Input::Opened(extent(1, 3)), 11 * SECOND);
    copy.handle(Input::Compared(Compared::Same), 11 * SECOND);
    let page = Input::Page {
        from: 4,
        events: events(4..=5),
        end: false,
    };
    assert!(!copy.handle(page, 11 * SECOND).is_empty());
    copy.handle(Input::Stored(6), 11 * SECOND);
    assert_eq!(state(&mut copy, 11 * SECOND), CopyState::Current);
}

#[test]
fn a_leaf_is_away_30_seconds_after_its_last_claim_or_the_agents_start() {
    let mut copy = Copy::new(Duration::ZERO, 7, Some(CopyState::Current));
    assert_eq!(copy.view(29 * SECOND), None);
    assert_eq!(copy.deadline(SECOND), Some(30 * SECOND));
    assert_eq!(state(&mut copy, 30 * SECOND), CopyState::Away);
    assert_eq!(copy.deadline(30 * SECOND), None);
    let mut copy = current(3);
    copy.handle(Input::Heard(event(4)), 5 * SECOND);
    assert_eq!(copy.handle(Input::Tick, 31 * SECOND), [Output::Close]);
    assert_eq!(state(&mut copy, 31 * SECOND), CopyState::Away);
    assert_eq!(copy.handle(Input::Heard(event(5)), 31 * SECOND), []);
}

#[test]
fn an_event_that_was_heard_and_never_stored_is_not_waited_for() {
    let mut copy = current(3);
    let outputs = copy.handle(Input::Heard(event(u64::MAX)), SECOND);
    assert_eq!(outputs.len(), PAGES_AHEAD);
    let nothing = Input::Page {
        from: 4,
        events: Vec::new(),
        end: true,
    };
    assert_eq!(copy.handle(nothing, SECOND), [Output::StopReading]);
    assert_eq!(state(&mut copy, SECOND), CopyState::Current);
    let outputs = copy.handle(Input::Heard(event(4)), SECOND);
    assert_eq!(outputs, [Output::Publish(events(4..=4))]);
}

#[test]
fn an_event_that_comes_again_with_another_content_makes_the_agent_compare() {
    let mut copy = current(3);
    copy.handle(Input::Heard(event(4)), SECOND);
    assert_eq!(copy.handle(Input::Heard(event(4)), SECOND), []);
    let other = EventRecord {
        body: b"other".to_vec(),
        ..event(4)
    };
    assert_eq!(copy.handle(Input::Heard(other), SECOND), [Output::Open]);
}

/// A leaf, the link, the agent and the hub's store.
struct World {
    now: Duration,
    /// The leaf's stream: its first event and how many there were ever.
    leaf_first: u64,
    leaf_last: u64,
    /// Live events on their way, and whether the next ones are lost.
    link: VecDeque<u64>,
    cut: bool,
    agent: Copy,
    opens: bool,
    compares: Option<Extent>,
    reads: VecDeque<(u64, u64)>,
    /// What the agent waits to be stored; without a publisher, what is on its way may be stored all the same.
    publisher: bool,
    in_flight: VecDeque<EventRecord>,
    store: Option<(u64, Vec<EventRecord>)>,
    backup: Option<(u64, Vec<EventRecord>)>,
}

impl World {
    fn new() -> Self {
        Self {
            now: Duration::ZERO,
            leaf_first: 1,
            leaf_last: 0,
            link: VecDeque::new(),
            cut: false,
            agent: Copy::new(Duration::ZERO, 0, None),
            opens: false,
            compares: None,
            reads: VecDeque::new(),
            publisher: false,
            in_flight: VecDeque::new(),
            store: None,
            backup: None,
        }
    }

    fn tell(&mut self, input: Input) {
        for output in self.agent.handle(input, self.now) {
            match output {
                Output::Open | Output::Close => {
                    self.opens = output == Output::Open;
                    self.compares = None;
                    self.reads.clear();
                    self.publisher = false;
                }
                Output::Compare(extent) => self.compares = Some(extent),
                Output::Read { from, events } => self.reads.push_back((from, events)),
                Output::StopReading => self.reads.clear(),
                Output::Publish(row) => {
                    if !self.publisher {
                        // A new publisher hears nothing of what an earlier one sent.
                        self.store_in_flight(usize::MAX, false);
                        self.publisher = true;
                    }
                    self.in_flight.extend(row);
                }
            }
        }
    }

    /// Stores some of what is on its way; the store takes only what follows its last event.
    fn store_in_flight(&mut self, most: usize, acks: bool) {
        for _ in 0..most {
            let Some(event) = self.in_flight.pop_front() else {
                return;
            };
            let sequence = event.sequence;
            let follows = match &mut self.store {
                Some((first, stored)) if *first + stored.len() as u64 == sequence => {
                    stored.push(event);
                    true
                }
                _ => false,
            };
            match (follows, acks && self.publisher) {
                (true, true) => self.tell(Input::Stored(sequence)),
                (false, true) => {
                    self.in_flight.clear();
                    self.tell(Input::Failed("the copy ends with another number".into()));
                    return;
                }
                (_, false) => {}
            }
        }
    }

    fn answer_open(&mut self) {
        if !std::mem::take(&mut self.opens) {
            return;
        }
        let is_empty = self.store.as_ref().is_none_or(|(_, stored)| stored.is_empty());
        if is_empty {
            self.store = Some((self.leaf_first, Vec::new()));
        }
        let (first, stored) = self.store.as_ref().expect("a store");
        let opened = extent(*first, first + stored.len() as u64 - 1);
        self.tell(Input::Opened(opened));
    }

    fn answer_compare(&mut self) {
        let Some(Extent { last, .. }) = self.compares.take() else {
            return;
        };
        let compared = if self.leaf_first > last {
            Compared::Begins {
                first: self.leaf_first,
            }
        } else {
            // The leaf never goes back here, so it has the event.
            Compared::Same
        };
        self.tell(Input::Compared(compared));
    }

    fn answer_read(&mut self) {
        let Some((from, wanted)) = self.reads.pop_front() else {
            return;
        };
        let begin = from.max(self.leaf_first);
        let last = self.leaf_last.min(begin.saturating_add(wanted - 1));
        let page = Input::Page {
            from,
            events: (begin..=last).map(event).collect(),
            end: last == self.leaf_last,
        };
        self.tell(page);
    }

    fn claim(&mut self) {
        let claim = Input::Claimed {
            anew: false,
            stream_last: self.leaf_last,
        };
        self.tell(claim);
    }

    fn restart_agent(&mut self) {
        self.publisher = false;
        (self.opens, self.compares) = (false, None);
        self.reads.clear();
        self.link.clear();
        self.agent = Copy::new(self.now, 0, None);
    }

    fn act(&mut self, action: u8, parameter: u8) {
        let number = usize::from(parameter);
        match action {
            0..=3 => {
                for _ in 0..=parameter % 8 {
                    self.leaf_last += 1;
                    if !self.cut {
                        self.link.push_back(self.leaf_last);
                    }
                }
            }
            4..=7 => {
                for _ in 0..=parameter % 4 {
                    if let Some(heard) = self.link.pop_front() {
                        self.tell(Input::Heard(event(heard)));
                    }
                }
            }
            8 => {
                // One is lost, or comes twice, or late.
                if let Some(heard) = self.link.pop_front() {
                    match parameter % 3 {
                        0 => {}
                        1 => self.link.extend([heard, heard]),
                        _ => self.link.push_back(heard),
                    }
                }
            }
            9 | 10 => self.claim(),
            11 | 12 => self.answer_open(),
            13 | 14 => self.answer_compare(),
            15..=17 => self.answer_read(),
            18..=20 => self.store_in_flight(number % 16, true),
            21 => {
                // The connection is lost: of what is on its way, some is stored, and no ack comes.
                self.store_in_flight(number % 16, false);
                self.in_flight.clear();
                self.link.clear();
                self.tell(Input::Failed("disconnected".into()));
                if parameter.is_multiple_of(2) {
                    self.tell(Input::Reconnected);
                }
            }
            22 => self.cut = parameter.is_multiple_of(2),
            23 => self.restart_agent(),
            24 => {
                match parameter % 3 {
                    0 => self.backup = self.store.clone(),
                    1 => self.store = self.backup.clone(),
                    _ => self.store = None,
                }
                if parameter.is_multiple_of(2) {
                    self.tell(Input::Reconnected);
                }
            }
            25 | 26 => {
                self.leaf_first = (self.leaf_first + u64::from(parameter % 8)).min(self.leaf_last.max(1));
            }
            _ => {
                self.now += Duration::from_millis(u64::from(parameter) * 100);
                self.tell(Input::Tick);
            }
        }
    }

    /// Goes on without faults until nothing is under way.
    fn calm(&mut self) {
        self.cut = false;
        let mut looked = false;
        for _ in 0..8 {
            self.now += 8 * SECOND;
            self.tell(Input::Tick);
            self.claim();
            // Once a minute the agent looks whether the copy is as it left it: somebody may have deleted it unnoticed.
            if !std::mem::replace(&mut looked, true) {
                self.tell(Input::Reconnected);
            }
            for _ in 0..64 {
                self.answer_open();
                self.answer_compare();
                self.answer_read();
                self.store_in_flight(usize::MAX, true);
                if let Some(heard) = self.link.pop_front() {
                    self.tell(Input::Heard(event(heard)));
                }
            }
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for (first, stored) in self.store.iter().chain(&self.backup) {
            for (sequence, found) in (*first..).zip(stored) {
                prop_assert_eq!(found, &event(sequence));
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_copy_has_each_event_once_and_in_order_whatever_fails_and_is_current_in_the_end(
        actions in proptest::collection::vec((0u8..30, any::<u8>()), 0..200)
    ) {
        let mut world = World::new();
        for (action, parameter) in actions {
            world.act(action, parameter);
            world.check()?;
            let view = world.agent.view(world.now);
            prop_assert!(world.agent.deadline(world.now).is_none_or(|time| time > Duration::ZERO));
            if let Some(View { state: CopyState::Current, copied, leaf_last, reason: None }) = view {
                prop_assert!(copied >= leaf_last || world.agent.lacks_since.is_some());
            }
        }
        world.calm();
        world.check()?;
        let (first, stored) = world.store.as_ref().expect("a copy");
        let last = first + stored.len() as u64 - 1;
        let view = world.agent.view(world.now).expect("a state");
        if world.leaf_first > last + 1 {
            prop_assert_eq!(view.state, CopyState::Gap);
        } else {
            prop_assert_eq!((view.state, view.copied, last), (CopyState::Current, world.leaf_last, world.leaf_last));
        }
    }
}

#[test]
fn a_leaf_that_gave_its_claim_back_is_away_once_its_last_events_are_stored() {
    let mut copy = current(3);
    // Its last event is on its way.
    assert_eq!(copy.handle(Input::Released { stream_last: 4 }, 2 * SECOND), []);
    let outputs = copy.handle(Input::Heard(event(4)), 2 * SECOND);
    assert_eq!(outputs, [Output::Publish(events(4..=4))]);
    assert_eq!(copy.handle(Input::Stored(4), 2 * SECOND), [Output::Close]);
    let view = copy.view(2 * SECOND).expect("a state");
    assert_eq!((view.state, view.copied), (CopyState::Away, 4));
    assert_eq!(view.reason.as_deref(), Some("its leafd was stopped"));
    // What can't be read any more is read when it is back.
    let mut copy = current(3);
    copy.handle(Input::Released { stream_last: 9 }, 2 * SECOND);
    let outputs = copy.handle(Input::Failed("the leaf does not answer".into()), 3 * SECOND);
    assert!(outputs.contains(&Output::Close), "{outputs:?}");
    assert_eq!(state(&mut copy, 3 * SECOND), CopyState::Away);
    let claim = Input::Claimed {
        anew: true,
        stream_last: 9,
    };
    assert_eq!(copy.handle(claim, 4 * SECOND), [Output::Open]);
    assert_ne!(state(&mut copy, 7 * SECOND), CopyState::Away);
}

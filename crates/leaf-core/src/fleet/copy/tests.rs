use super::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn extent(first: u64, last: u64) -> Extent {
    Extent { first, last }
}

fn claim(anew: bool, stream_last: u64) -> Input {
    Input::Claimed { anew, stream_last }
}

fn looked(last: u64) -> Input {
    Input::Looked(Some(extent(1, last)))
}

/// A copy of 1 to `last` that takes the leaf's events, while the leaf's stream ends there too.
fn current(last: u64) -> Copy {
    let mut copy = Copy::new(Duration::ZERO, 0, None);
    assert_eq!(copy.handle(claim(true, last), SECOND), [Output::Open]);
    let opened = Input::Opened(extent(1, last));
    assert_eq!(copy.handle(opened, SECOND), [Output::Compare(extent(1, last))]);
    assert!(!copy.takes_events());
    let outputs = copy.handle(Input::Compared(Compared::Same), SECOND);
    assert_eq!(outputs, [Output::Admit(last)]);
    assert!(!copy.takes_events());
    assert_eq!(copy.handle(Input::Admitted, SECOND), []);
    assert!(copy.takes_events());
    copy
}

fn state(copy: &mut Copy, now: Duration) -> CopyState {
    copy.view(now).expect("a state").state
}

#[test]
fn an_empty_copy_takes_events_without_a_comparison() {
    let mut copy = Copy::new(Duration::ZERO, 0, None);
    copy.handle(claim(true, 7), SECOND);
    assert_eq!(
        copy.handle(Input::Opened(extent(3, 2)), SECOND),
        [Output::Admit(2)]
    );
    assert_eq!(copy.handle(Input::Admitted, SECOND), []);
    assert!(copy.takes_events() && copy.lacks_events());
}

#[test]
fn a_copy_that_lacks_events_is_looked_at_each_second_until_it_has_them() {
    let mut copy = current(3);
    assert_eq!(copy.handle(claim(false, 6), 2 * SECOND), [Output::Look]);
    // One look at a time.
    assert_eq!(copy.handle(Input::Tick, 3 * SECOND), []);
    assert_eq!(copy.handle(looked(4), 3 * SECOND), [Output::Look]);
    assert_eq!(copy.handle(looked(5), 3 * SECOND), []);
    assert_eq!(copy.deadline(3 * SECOND), Some(4 * SECOND));
    assert_eq!(copy.handle(Input::Tick, 4 * SECOND), [Output::Look]);
    assert_eq!(copy.handle(looked(7), 4 * SECOND), []);
    assert_eq!(state(&mut copy, 4 * SECOND), CopyState::Current);
    let view = copy.view(4 * SECOND).expect("a state");
    assert_eq!((view.copied, view.leaf_last), (7, 7));
    assert_eq!(copy.deadline(4 * SECOND), Some(32 * SECOND));
}

#[test]
fn a_copy_that_gets_nothing_is_compared_once_more_ever_more_seldom() {
    let mut copy = current(3);
    copy.handle(claim(false, 6), 2 * SECOND);
    copy.handle(looked(3), 2 * SECOND);
    assert_eq!(copy.handle(Input::Tick, 4 * SECOND), [Output::Open]);
    copy.handle(Input::Opened(extent(1, 3)), 4 * SECOND);
    // The leaf has dropped what comes next.
    let begins = Input::Compared(Compared::Begins { first: 5 });
    assert_eq!(copy.handle(begins, 4 * SECOND), [Output::Refuse]);
    assert_eq!(state(&mut copy, 4 * SECOND), CopyState::Gap);

    let mut copy = current(3);
    copy.handle(claim(false, 6), 2 * SECOND);
    let (mut opened, mut looks) = (Vec::new(), 0);
    for second in 3..=28 {
        let now = second * SECOND;
        let mut next = copy.handle(Input::Tick, now);
        while let Some(output) = next.pop() {
            next = match output {
                Output::Open => {
                    opened.push(second);
                    copy.handle(Input::Opened(extent(1, 3)), now)
                }
                Output::Compare(_) => copy.handle(Input::Compared(Compared::Same), now),
                Output::Admit(_) => copy.handle(Input::Admitted, now),
                Output::Look => {
                    looks += 1;
                    copy.handle(looked(3), now)
                }
                Output::Close | Output::Refuse => panic!("{output:?}"),
            };
        }
    }
    assert_eq!(opened, [4, 6, 8, 12, 20, 28]);
    assert!(looks > 15, "{looks}");
    let view = copy.view(28 * SECOND).expect("a state");
    assert_eq!(view.state, CopyState::Stalled);
    assert!(
        view.reason
            .expect("a reason")
            .contains("no event arrives after 3")
    );
}

#[test]
fn a_gap_and_a_difference_stay_until_the_copy_begins_anew() {
    let outcomes = [
        (Compared::Begins { first: 9 }, CopyState::Gap),
        (Compared::Differs { sequence: 3 }, CopyState::Differs),
    ];
    for (compared, expected) in outcomes {
        let mut copy = Copy::new(Duration::ZERO, 3, Some(CopyState::Current));
        copy.handle(claim(true, 12), SECOND);
        copy.handle(Input::Opened(extent(1, 3)), SECOND);
        assert_eq!(copy.handle(Input::Compared(compared), SECOND), [Output::Refuse]);
        assert_eq!(state(&mut copy, SECOND), expected);
        let shown = copy.view(SECOND).expect("a state");
        assert!(shown.reason.is_some());
        assert!(!copy.takes_events());
        assert_eq!(copy.handle(claim(false, 12), 2 * SECOND), [Output::Open]);
        // What is known holds until the copy is compared again.
        let meanwhile = copy.view(2 * SECOND).expect("a state");
        assert_eq!((meanwhile.state, &meanwhile.reason), (expected, &shown.reason));
        let outputs = copy.handle(Input::Opened(extent(9, 8)), 2 * SECOND);
        assert_eq!(outputs, [Output::Admit(8)]);
    }
}

#[test]
fn a_leaf_with_fewer_events_than_the_copy_is_compared_again_at_each_claim() {
    let mut copy = Copy::new(Duration::ZERO, 0, None);
    copy.handle(claim(false, 5), SECOND);
    copy.handle(Input::Opened(extent(1, 9)), SECOND);
    let ends = Compared::Ends { last: 5 };
    assert_eq!(copy.handle(Input::Compared(ends), SECOND), [Output::Refuse]);
    let view = copy.view(SECOND).expect("a state");
    assert_eq!((view.copied, view.leaf_last), (9, 5));
    assert!(view.reason.expect("a reason").contains("end with 5"));
    assert_eq!(copy.handle(claim(false, 9), SECOND), [Output::Open]);
}

#[test]
fn a_copy_that_lacks_events_is_behind_then_stalled_and_then_current() {
    let mut copy = current(3);
    assert_eq!(state(&mut copy, SECOND), CopyState::Current);
    copy.handle(claim(false, 6), SECOND);
    assert_eq!(state(&mut copy, SECOND), CopyState::Current);
    assert_eq!(state(&mut copy, 3 * SECOND), CopyState::Behind);
    copy.handle(Input::Failed("the leaf does not answer".into()), 4 * SECOND);
    assert_eq!(state(&mut copy, 11 * SECOND), CopyState::Stalled);
    let view = copy.view(11 * SECOND).expect("a state");
    assert_eq!(view.reason.as_deref(), Some("the leaf does not answer"));
    assert_eq!(copy.handle(Input::Tick, 11 * SECOND), [Output::Open]);
    copy.handle(Input::Opened(extent(1, 3)), 11 * SECOND);
    copy.handle(Input::Compared(Compared::Same), 11 * SECOND);
    copy.handle(Input::Admitted, 11 * SECOND);
    copy.handle(looked(6), 11 * SECOND);
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
    assert_eq!(copy.handle(Input::Tick, 31 * SECOND), [Output::Close]);
    assert_eq!(state(&mut copy, 31 * SECOND), CopyState::Away);
    assert!(!copy.takes_events());
    assert_eq!(copy.handle(looked(5), 31 * SECOND), []);
}

#[test]
fn a_copy_that_was_deleted_or_lost_events_is_opened_anew() {
    for gone in [Input::Looked(None), looked(2), Input::Reconnected] {
        let mut copy = current(3);
        assert_eq!(copy.handle(gone, 2 * SECOND), [Output::Open]);
        assert!(!copy.takes_events());
    }
}

#[test]
fn a_leaf_that_gave_its_claim_back_is_away_once_its_last_events_are_stored() {
    let released = |stream_last| Input::Released { stream_last };
    let mut copy = current(3);
    assert_eq!(copy.handle(released(4), 2 * SECOND), [Output::Look]);
    assert_eq!(copy.handle(looked(4), 2 * SECOND), [Output::Close]);
    let view = copy.view(2 * SECOND).expect("a state");
    assert_eq!((view.state, view.copied), (CopyState::Away, 4));
    assert_eq!(view.reason.as_deref(), Some("its leafd was stopped"));
    // What did not arrive is sent when it is back.
    for late in [Input::Failed("disconnected".into()), Input::Tick] {
        let mut copy = current(3);
        copy.handle(released(9), 2 * SECOND);
        copy.handle(looked(3), 2 * SECOND);
        let outputs = copy.handle(late, 4 * SECOND);
        assert!(outputs.contains(&Output::Close), "{outputs:?}");
        assert_eq!(state(&mut copy, 4 * SECOND), CopyState::Away);
        assert_eq!(copy.handle(claim(true, 9), 4 * SECOND), [Output::Open]);
        assert_ne!(state(&mut copy, 7 * SECOND), CopyState::Away);
    }
}

/// A stream of the hub: its first number, the history that each event is of, and the instance whose events it takes.
#[derive(Debug, Clone)]
struct Store {
    first: u64,
    histories: Vec<u8>,
    takes: Option<u8>,
}

impl Store {
    fn last(&self) -> u64 {
        self.first + self.histories.len() as u64 - 1
    }
}

/// A leaf, the link, the agent and the hub's store.
struct World {
    now: Duration,
    /// The leaf's instance, and its history: each instance goes on with the one before it, or begins a new one.
    instance: u8,
    history: u8,
    /// The leaf's stream: its first event and how many there were ever.
    leaf_first: u64,
    leaf_last: u64,
    cut: bool,
    agent: Copy,
    holder: u8,
    work: Option<Output>,
    looks: bool,
    store: Option<Store>,
    backup: Option<Store>,
}

impl World {
    fn new() -> Self {
        Self {
            now: Duration::ZERO,
            instance: 1,
            history: 1,
            leaf_first: 1,
            leaf_last: 0,
            cut: false,
            agent: Copy::new(Duration::ZERO, 0, None),
            holder: 0,
            work: None,
            looks: false,
            store: None,
            backup: None,
        }
    }

    fn tell(&mut self, input: Input) {
        for output in self.agent.handle(input, self.now) {
            match output {
                Output::Look => self.looks = true,
                Output::Close => (self.work, self.looks) = (None, false),
                work => {
                    self.looks &= work != Output::Open;
                    self.work = Some(work);
                }
            }
        }
    }

    /// The leaf sends an event: the store takes it if it follows, of the instance that it takes events of.
    fn send(&mut self, sequence: u64) {
        if let Some(store) = &mut self.store
            && !self.cut
            && store.takes == Some(self.instance)
            && store.last() + 1 == sequence
        {
            store.histories.push(self.history);
        }
    }

    /// The leaf sends again what the copy lacks.
    fn fill(&mut self, most: u64) {
        if self.cut || !self.agent.takes_events() || self.holder != self.instance {
            return;
        }
        let after = self.store.as_ref().map_or(0, Store::last);
        for sequence in (after + 1).max(self.leaf_first)..=self.leaf_last.min(after + most) {
            self.send(sequence);
        }
    }

    fn answer(&mut self) {
        let answer = match self.work.take() {
            Some(Output::Open) => {
                let found = self.store.take().filter(|store| !store.histories.is_empty());
                let store = self.store.insert(found.unwrap_or(Store {
                    first: self.leaf_first,
                    histories: Vec::new(),
                    takes: None,
                }));
                store.takes = store.takes.filter(|instance| *instance == self.holder);
                Input::Opened(extent(store.first, store.last()))
            }
            Some(Output::Compare(Extent { last, .. })) => {
                let Some(store) = &self.store else {
                    return self.tell(Input::Failed("there is no copy".into()));
                };
                Input::Compared(match store.histories.last() {
                    _ if self.leaf_first > last + 1 => Compared::Begins {
                        first: self.leaf_first,
                    },
                    Some(history) if *history != self.history => Compared::Differs { sequence: last },
                    _ if self.leaf_first > last => Compared::Begins {
                        first: self.leaf_first,
                    },
                    _ if self.leaf_last < last => Compared::Ends { last: self.leaf_last },
                    _ => Compared::Same,
                })
            }
            Some(Output::Admit(last)) => match &mut self.store {
                Some(store) if store.last() != last && store.takes != Some(self.holder) => {
                    Input::Failed("it was compared up to another event".into())
                }
                Some(store) => {
                    store.takes = Some(self.holder);
                    Input::Admitted
                }
                None => Input::Failed("there is no copy".into()),
            },
            Some(Output::Refuse) => {
                if let Some(store) = &mut self.store {
                    store.takes = None;
                }
                return;
            }
            Some(Output::Look | Output::Close) | None => return,
        };
        self.tell(answer);
    }

    fn look(&mut self) {
        if std::mem::take(&mut self.looks) {
            let found = self.store.as_ref().map(|store| extent(store.first, store.last()));
            self.tell(Input::Looked(found));
        }
    }

    fn claim(&mut self) {
        if self.cut {
            return;
        }
        let anew = std::mem::replace(&mut self.holder, self.instance) != self.instance;
        self.tell(claim(anew, self.leaf_last));
    }

    fn act(&mut self, action: u8, parameter: u8) {
        match action {
            0..=5 => {
                for _ in 0..=parameter % 8 {
                    self.leaf_last += 1;
                    self.send(self.leaf_last);
                }
            }
            6..=8 => self.fill(u64::from(parameter % 8)),
            9 | 10 => self.claim(),
            11..=15 => self.answer(),
            16..=18 => self.look(),
            19 => {
                // The connection is lost, and what was under way with it.
                (self.work, self.looks) = (None, false);
                self.tell(Input::Failed("disconnected".into()));
                if parameter.is_multiple_of(2) {
                    self.tell(Input::Reconnected);
                }
            }
            20 | 21 => self.cut = parameter.is_multiple_of(2),
            22 => {
                (self.work, self.looks) = (None, false);
                self.agent = Copy::new(self.now, 0, None);
            }
            23 => {
                match parameter % 3 {
                    0 => self.backup = self.store.clone(),
                    1 => self.store = self.backup.clone(),
                    _ => self.store = None,
                }
                if parameter.is_multiple_of(2) {
                    self.tell(Input::Reconnected);
                }
            }
            24 => {
                self.leaf_first = (self.leaf_first + u64::from(parameter % 8)).min(self.leaf_last.max(1));
            }
            25 => {
                self.instance = self.instance.saturating_add(1);
                if parameter.is_multiple_of(4) {
                    self.history = self.history.saturating_add(1);
                    (self.leaf_first, self.leaf_last) = (1, u64::from(parameter) / 16);
                }
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
        for _ in 0..8 {
            self.now += 8 * SECOND;
            self.tell(Input::Tick);
            self.claim();
            for _ in 0..64 {
                self.answer();
                self.fill(64);
                // The agent looks before each answer to a claim.
                self.looks = true;
                self.look();
            }
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for store in self.store.iter().chain(&self.backup) {
            let mixed = store.histories.windows(2).any(|pair| pair[0] != pair[1]);
            prop_assert!(!mixed, "{:?}", store);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_copy_has_events_of_one_history_whatever_fails_and_is_current_in_the_end(
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
        let store = world.store.as_ref().expect("a copy");
        let differs = store.histories.last().is_some_and(|history| *history != world.history);
        let view = world.agent.view(world.now).expect("a state");
        if world.leaf_first > store.last() + 1 {
            prop_assert_eq!(view.state, CopyState::Gap);
        } else if differs {
            prop_assert_eq!((view.state, store.takes), (CopyState::Differs, None));
        } else {
            prop_assert_eq!((view.state, view.copied, store.last()), (CopyState::Current, world.leaf_last, world.leaf_last));
        }
    }
}

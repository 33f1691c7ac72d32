//! The copy of one leaf's events, as a state machine: when the hub's stream takes the leaf's events, and the copy's state.
//! `docs/fleet.md` is the contract.
//!
//! The leaf sends its events, and the hub's server stores those that follow the copy's last one. So the agent reads where the
//! copy ends, compares it with the leaf's history, and lets the stream take what the holder of the name sends.
//!
//! The caller carries out the [`Output`]s of each [`Input`] in their order, and calls [`Copy::view`] for the state. Times are
//! those of a clock that runs evenly from the agent's start.

use std::time::Duration;

use super::{AWAY_SECONDS, CopyState, STALLED_SECONDS};

/// How long a copy may lack events before it is called behind: until then they are under way.
const UNDER_WAY: Duration = Duration::from_secs(2);
/// How often a copy that lacks events is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const AWAY: Duration = Duration::from_secs(AWAY_SECONDS);
const STALLED: Duration = Duration::from_secs(STALLED_SECONDS);
/// The pauses after an error, which double.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The sequence numbers of a copy's first and last event; one that is empty ends before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first one.
    pub first: u64,
    /// The last one.
    pub last: u64,
}

impl Extent {
    /// Returns whether there is no event.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.last < self.first
    }
}

/// The result of comparing the copy's last event with the leaf's event under its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// They are the same.
    Same,
    /// Leaf and copy have different events under this number.
    Differs {
        /// The sequence number.
        sequence: u64,
    },
    /// The leaf's stream begins after it.
    Begins {
        /// The sequence number of the leaf's first event.
        first: u64,
    },
    /// The leaf's stream ends before it, with an event that the copy has, or is empty.
    Ends {
        /// The sequence number of the leaf's last event.
        last: u64,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The leaf's claim was granted.
    Claimed {
        /// Whether the leaf was away, or another instance held the name.
        anew: bool,
        /// The last sequence number of the leaf's stream.
        stream_last: u64,
    },
    /// The leaf is stopped, and has given its claim back.
    Released {
        /// The last sequence number of the leaf's stream.
        stream_last: u64,
    },
    /// The agent is connected again, or the copy was deleted: the stream may be another one.
    Reconnected,
    /// The copy's extent, the answer to [`Output::Open`].
    Opened(Extent),
    /// The answer to [`Output::Compare`].
    Compared(Compared),
    /// The answer to [`Output::Admit`].
    Admitted,
    /// Where the copy ends now; `None` if there is none any more.
    Looked(Option<Extent>),
    /// What was under way failed: opening, comparing, admitting, refusing or looking.
    Failed(String),
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// End what is under way, and read the copy's extent. A copy that does not exist, or is empty, is made to begin where the
    /// leaf's stream begins. Unless it takes the events of the holder of the name already, it takes none from now on.
    Open,
    /// End what is under way.
    Close,
    /// Compare the last event of this copy with the leaf's.
    Compare(Extent),
    /// Let the copy take the events of the holder of the name, if it ends with this number: up to there it was compared.
    Admit(u64),
    /// Let the copy take no events.
    Refuse,
    /// Read where the copy ends.
    Look,
}

/// What is known about a copy, to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Its state.
    pub state: CopyState,
    /// The sequence number of its last event.
    pub copied: u64,
    /// The last sequence number of the leaf's stream.
    pub leaf_last: u64,
    /// The reason for the state.
    pub reason: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// No claim is valid.
    Idle,
    Opening,
    Comparing,
    Admitting,
    /// The copy takes what the leaf sends.
    Following,
    /// Something failed; it is tried again at this time.
    Waiting {
        until: Duration,
    },
    /// The copy has events that the leaf does not have yet: an older image was restored, and it reads them from the copy.
    Ahead,
    Gap {
        first: u64,
    },
    Differs {
        sequence: u64,
    },
}

/// The copy of a leaf's events.
#[derive(Debug)]
pub struct Copy {
    phase: Phase,
    /// The last granted claim; without one, the agent's start.
    claimed_at: Duration,
    /// Whether the claim was given back.
    released: bool,
    leaf_last: u64,
    /// The last number that is known to be stored.
    stored: u64,
    pause: Duration,
    /// Since when events are missing, or may be.
    lacks_since: Option<Duration>,
    progress_at: Duration,
    /// When the copy is looked at next, while it lacks events, and when it is compared once more.
    look_at: Duration,
    compare_at: Duration,
    /// Whether a look is under way.
    looks: bool,
    reason: Option<String>,
    shown: Option<CopyState>,
    /// The reason that was shown last.
    shown_reason: Option<String>,
}

impl Copy {
    /// Returns the copy of a leaf that has not claimed its name yet, as it was shown last.
    #[must_use]
    pub fn new(now: Duration, copied: u64, shown: Option<CopyState>) -> Self {
        Self {
            phase: Phase::Idle,
            claimed_at: now,
            released: false,
            leaf_last: copied,
            stored: copied,
            pause: FIRST_PAUSE,
            lacks_since: None,
            progress_at: now,
            look_at: now,
            compare_at: now,
            looks: false,
            reason: None,
            shown,
            shown_reason: None,
        }
    }

    /// Whether the copy takes the events of the holder of the name.
    #[must_use]
    pub fn takes_events(&self) -> bool {
        self.phase == Phase::Following
    }

    /// How many events it lacks that the leaf is known to have.
    #[must_use]
    pub fn lacking(&self) -> u64 {
        self.leaf_last.saturating_sub(self.stored)
    }

    /// Whether it lacks events that the leaf is known to have.
    #[must_use]
    pub fn lacks_events(&self) -> bool {
        self.lacking() > 0
    }

    /// Notes that the leaf may not fill the copy yet, since others fill theirs.
    pub fn waits_its_turn(&mut self, now: Duration) {
        self.progress_at = now;
        self.reason = Some("other leaves fill their copies first".to_owned());
    }

    /// Returns what to do.
    pub fn handle(&mut self, input: Input, now: Duration) -> Vec<Output> {
        let mut outputs = Vec::new();
        match input {
            Input::Claimed { anew, stream_last } => self.claimed(anew, stream_last, now, &mut outputs),
            Input::Released { stream_last } => {
                self.released = true;
                self.leaf_last = self.leaf_last.max(stream_last);
                // Its last events may be there already.
                self.look_at = now;
            }
            Input::Reconnected => {
                if self.phase != Phase::Idle {
                    self.open(&mut outputs);
                }
            }
            Input::Opened(extent) => {
                if self.phase == Phase::Opening {
                    self.stored = extent.last;
                    if extent.is_empty() {
                        self.admit(&mut outputs);
                    } else {
                        self.phase = Phase::Comparing;
                        outputs.push(Output::Compare(extent));
                    }
                }
            }
            Input::Compared(compared) => {
                if self.phase == Phase::Comparing {
                    self.compared(compared, &mut outputs);
                }
            }
            Input::Admitted => {
                if self.phase == Phase::Admitting {
                    self.phase = Phase::Following;
                    self.leaf_last = self.leaf_last.max(self.stored);
                    self.look_at = now + LOOK_EVERY;
                    self.compare_at = now + UNDER_WAY.max(self.pause);
                }
            }
            Input::Looked(extent) => {
                self.looks = false;
                if self.phase == Phase::Following {
                    self.looked(extent, now, &mut outputs);
                }
            }
            Input::Failed(reason) => {
                self.looks = false;
                if self.phase != Phase::Idle {
                    self.fail(reason, now, &mut outputs);
                }
            }
            Input::Tick => self.tick(now, &mut outputs),
        }
        // Its last events may be on their way.
        let is_filled = self.phase != Phase::Following || !self.lacks_events();
        let is_late = self.lacks_since.is_some_and(|since| now >= since + UNDER_WAY);
        if self.released && self.phase != Phase::Idle && (is_filled || is_late) {
            self.phase = Phase::Idle;
            outputs.push(Output::Close);
        }
        self.lacks_since = match self.phase {
            Phase::Following if self.lacks_events() => self.lacks_since.or(Some(now)),
            Phase::Opening | Phase::Comparing | Phase::Admitting | Phase::Waiting { .. } => {
                self.lacks_since.or(Some(now))
            }
            _ => None,
        };
        if self.phase == Phase::Following && self.lacks_events() && !self.looks && now >= self.look_at {
            self.looks = true;
            self.look_at = now + LOOK_EVERY;
            outputs.push(Output::Look);
        }
        outputs
    }

    /// Returns when to call [`Copy::handle`] with [`Input::Tick`], and then [`Copy::view`].
    #[must_use]
    pub fn deadline(&self, now: Duration) -> Option<Duration> {
        let waiting = match self.phase {
            Phase::Waiting { until } => Some(until),
            _ => None,
        };
        let away = (self.phase != Phase::Idle || self.shown != Some(CopyState::Away))
            .then_some(self.claimed_at + AWAY);
        let behind = self.lacks_since.map(|since| since + UNDER_WAY);
        let stalled = self
            .lacks_since
            .map(|since| since.max(self.progress_at) + STALLED);
        let lacks = self.phase == Phase::Following && self.lacks_events();
        let look = (lacks && !self.looks).then_some(self.look_at);
        let compare = lacks.then_some(self.compare_at);
        [behind, stalled, look, compare]
            .into_iter()
            .flatten()
            .filter(|time| *time > now)
            .chain(waiting)
            .chain(away)
            .min()
    }

    /// Returns what is known; `None` while that is nothing, as no claim has been heard since the agent's start.
    pub fn view(&mut self, now: Duration) -> Option<View> {
        let state = self.state(now)?;
        let is_shown_on = self.shown.replace(state) == Some(state);
        let reason = match (&self.phase, state) {
            (Phase::Gap { first }, _) => Some(format!(
                "the leaf's events begin with {first}, and the copy ends with {}",
                self.stored
            )),
            (Phase::Differs { sequence }, _) => Some(format!(
                "leaf and copy have different events under the number {sequence}"
            )),
            (Phase::Ahead, _) => Some(format!(
                "the leaf's events end with {}: it reads the rest from the copy",
                self.leaf_last
            )),
            (_, CopyState::Stalled) => Some(self.reason.clone().unwrap_or_else(|| {
                format!(
                    "no event arrives after {}: the logs of leafd, of its nats-server and of the hub's say why",
                    self.stored
                )
            })),
            (_, CopyState::Behind) => self.reason.clone(),
            (_, CopyState::Away) if self.released => Some("its leafd was stopped".to_owned()),
            // It is opened and compared again.
            (_, CopyState::Gap | CopyState::Differs) if is_shown_on => self.shown_reason.take(),
            _ => None,
        };
        self.shown_reason.clone_from(&reason);
        Some(View {
            state,
            copied: self.stored,
            leaf_last: self.leaf_last,
            reason,
        })
    }

    fn state(&self, now: Duration) -> Option<CopyState> {
        Some(match self.phase {
            Phase::Idle if self.released || now >= self.claimed_at + AWAY => CopyState::Away,
            Phase::Idle => return None,
            Phase::Gap { .. } => CopyState::Gap,
            Phase::Differs { .. } => CopyState::Differs,
            Phase::Ahead => CopyState::Current,
            Phase::Opening
            | Phase::Comparing
            | Phase::Admitting
            | Phase::Following
            | Phase::Waiting { .. } => {
                let Some(since) = self.lacks_since else {
                    return Some(CopyState::Current);
                };
                match self.shown {
                    _ if now >= since.max(self.progress_at) + STALLED => CopyState::Stalled,
                    // Opening it again says nothing new yet.
                    Some(shown) if now < since + UNDER_WAY && shown != CopyState::Away => shown,
                    _ => CopyState::Behind,
                }
            }
        })
    }

    fn claimed(&mut self, anew: bool, stream_last: u64, now: Duration, outputs: &mut Vec<Output>) {
        let away = self.phase == Phase::Idle;
        self.claimed_at = now;
        self.released = false;
        if anew || away {
            self.leaf_last = stream_last;
            self.pause = FIRST_PAUSE;
            self.progress_at = now;
            self.lacks_since = None;
            self.open(outputs);
            return;
        }
        match self.phase {
            // Somebody may have begun a new copy, or the leaf has taken over what it lacked.
            Phase::Gap { .. } | Phase::Differs { .. } | Phase::Ahead => {
                self.leaf_last = stream_last;
                self.open(outputs);
            }
            _ => {
                if !self.lacks_events() {
                    // Nothing was missing until now.
                    self.progress_at = now;
                    self.compare_at = now + UNDER_WAY.max(self.pause);
                }
                self.leaf_last = self.leaf_last.max(stream_last);
            }
        }
    }

    fn tick(&mut self, now: Duration, outputs: &mut Vec<Output>) {
        match self.phase {
            Phase::Idle => {}
            _ if now >= self.claimed_at + AWAY => {
                self.phase = Phase::Idle;
                outputs.push(Output::Close);
            }
            Phase::Waiting { until } if now >= until => self.open(outputs),
            // The leaf may have dropped what comes next, or the store may be another one.
            Phase::Following if self.lacks_events() && now >= self.compare_at => {
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                self.open(outputs);
            }
            _ => {}
        }
    }

    fn open(&mut self, outputs: &mut Vec<Output>) {
        self.phase = Phase::Opening;
        self.looks = false;
        outputs.push(Output::Open);
    }

    fn admit(&mut self, outputs: &mut Vec<Output>) {
        self.phase = Phase::Admitting;
        outputs.push(Output::Admit(self.stored));
    }

    fn compared(&mut self, compared: Compared, outputs: &mut Vec<Output>) {
        self.phase = match compared {
            Compared::Begins { first } if first > self.stored.saturating_add(1) => Phase::Gap { first },
            Compared::Same | Compared::Begins { .. } => return self.admit(outputs),
            Compared::Differs { sequence } => Phase::Differs { sequence },
            Compared::Ends { last } => {
                self.leaf_last = last;
                Phase::Ahead
            }
        };
        outputs.push(Output::Refuse);
    }

    fn looked(&mut self, extent: Option<Extent>, now: Duration, outputs: &mut Vec<Output>) {
        let Some(last) = extent
            .map(|extent| extent.last)
            .filter(|last| *last >= self.stored)
        else {
            // An older one, or another.
            return self.open(outputs);
        };
        if last > self.stored {
            self.stored = last;
            self.progress_at = now;
            self.pause = FIRST_PAUSE;
            self.compare_at = now + UNDER_WAY.max(self.pause);
            self.reason = None;
        }
        self.leaf_last = self.leaf_last.max(last);
    }

    fn fail(&mut self, reason: String, now: Duration, outputs: &mut Vec<Output>) {
        self.phase = Phase::Waiting {
            until: now + self.pause,
        };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.reason = Some(reason);
        outputs.push(Output::Close);
    }
}

#[cfg(test)]
mod tests;

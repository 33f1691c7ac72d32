//! The copy of one leaf's events, as a state machine: what to read from the leaf, what to publish into the copy, and the
//! copy's state. `docs/fleet.md` is the contract.
//!
//! The caller carries out the [`Output`]s of each [`Input`] in their order, and calls [`Copy::view`] for the state. Times are
//! those of a clock that runs evenly from the agent's start.

use std::collections::VecDeque;
use std::time::Duration;

use crate::event::EventRecord;

use super::{AWAY_SECONDS, CopyState, STALLED_SECONDS};

/// The number of events in a page.
pub const PAGE_EVENTS: u64 = 512;
/// The number of pages that are read ahead of what is published.
const PAGES_AHEAD: usize = 4;
/// The number of live events that are kept while those before them are read.
const KEPT_EVENTS: usize = 1024;
/// How long a copy may lack events before it is called behind: until then they are under way.
const UNDER_WAY: Duration = Duration::from_secs(2);
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
    /// The agent is connected again: the hub's store may be another one.
    Reconnected,
    /// The copy's extent, the answer to [`Output::Open`].
    Opened(Extent),
    /// The answer to [`Output::Compare`].
    Compared(Compared),
    /// A live event of the leaf.
    Heard(EventRecord),
    /// The answer to [`Output::Read`]: events in order.
    Page {
        /// The number that it was asked for from.
        from: u64,
        /// The events.
        events: Vec<EventRecord>,
        /// Whether the leaf's stream has no more.
        end: bool,
    },
    /// The copy has stored all events up to this number.
    Stored(u64),
    /// What was under way failed: opening, comparing, reading or publishing.
    Failed(String),
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// End what is under way, and read the copy's extent. A copy that does not exist, or is empty, is made to begin where the
    /// leaf's stream begins.
    Open,
    /// End what is under way.
    Close,
    /// Compare the last event of this copy with the leaf's.
    Compare(Extent),
    /// Read events of the leaf.
    Read {
        /// The sequence number of the first one.
        from: u64,
        /// How many.
        events: u64,
    },
    /// Forget what was asked to be read.
    StopReading,
    /// Publish these events into the copy, in order.
    Publish(Vec<EventRecord>),
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
    Copying,
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
    /// What the last claim said of the leaf's stream.
    claimed_last: u64,
    /// Whether the claim was given back.
    released: bool,
    leaf_last: u64,
    /// The last number that was published, and the last one that is known to be stored.
    sent: u64,
    stored: u64,
    /// The last event that was published since the copy was opened.
    last: Option<EventRecord>,
    /// The pages that were asked for: the first number and how many events.
    asked: VecDeque<(u64, u64)>,
    /// Live events in a row, for which those before them are missing.
    heard: VecDeque<EventRecord>,
    pause: Duration,
    /// Since when events are missing, or may be.
    lacks_since: Option<Duration>,
    progress_at: Duration,
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
            claimed_last: 0,
            released: false,
            leaf_last: copied,
            sent: copied,
            stored: copied,
            last: None,
            asked: VecDeque::new(),
            heard: VecDeque::new(),
            pause: FIRST_PAUSE,
            lacks_since: None,
            progress_at: now,
            reason: None,
            shown,
            shown_reason: None,
        }
    }

    /// The last sequence number that is known to be stored in the copy.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.stored
    }

    /// Returns what to do.
    pub fn handle(&mut self, input: Input, now: Duration) -> Vec<Output> {
        let mut outputs = Vec::new();
        match input {
            Input::Claimed { anew, stream_last } => self.claimed(anew, stream_last, now, &mut outputs),
            Input::Released { stream_last } => {
                self.released = true;
                self.leaf_last = self.leaf_last.max(stream_last);
            }
            Input::Reconnected => {
                if self.phase != Phase::Idle {
                    self.open(&mut outputs);
                }
            }
            Input::Opened(extent) => {
                if self.phase == Phase::Opening {
                    (self.sent, self.stored) = (extent.last, extent.last);
                    if extent.is_empty() {
                        self.copying(&mut outputs);
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
            Input::Heard(event) => self.heard(event, now, &mut outputs),
            Input::Page { from, events, end } => self.page(from, events, end, now, &mut outputs),
            Input::Stored(sequence) => {
                if self.phase == Phase::Copying && sequence > self.stored {
                    self.stored = sequence;
                    self.progress(now);
                }
            }
            Input::Failed(reason) => {
                if self.phase != Phase::Idle {
                    self.fail(reason, now, &mut outputs);
                }
            }
            Input::Tick => match self.phase {
                Phase::Idle => {}
                _ if now >= self.claimed_at + AWAY => {
                    self.phase = Phase::Idle;
                    self.forget();
                    outputs.push(Output::Close);
                }
                Phase::Waiting { until } if now >= until => self.open(&mut outputs),
                _ => {}
            },
        }
        // Its last events may be on their way.
        let is_copying = self.phase == Phase::Copying && self.stored < self.leaf_last;
        if self.released && self.phase != Phase::Idle && !is_copying {
            self.phase = Phase::Idle;
            self.forget();
            outputs.push(Output::Close);
        }
        self.lacks_since = match self.phase {
            Phase::Copying if self.stored < self.leaf_last => self.lacks_since.or(Some(now)),
            Phase::Opening | Phase::Comparing | Phase::Waiting { .. } => self.lacks_since.or(Some(now)),
            _ => None,
        };
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
        [behind, stalled]
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
            (_, CopyState::Stalled | CopyState::Behind) => self.reason.clone(),
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
            Phase::Opening | Phase::Comparing | Phase::Copying | Phase::Waiting { .. } => {
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
        self.claimed_last = stream_last;
        self.released = false;
        if anew || away {
            self.leaf_last = stream_last;
            self.heard.clear();
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
            Phase::Copying => {
                self.leaf_last = self.leaf_last.max(stream_last);
                self.advance(outputs);
            }
            _ => self.leaf_last = self.leaf_last.max(stream_last),
        }
    }

    fn open(&mut self, outputs: &mut Vec<Output>) {
        self.phase = Phase::Opening;
        self.last = None;
        self.asked.clear();
        outputs.push(Output::Open);
    }

    fn compared(&mut self, compared: Compared, outputs: &mut Vec<Output>) {
        self.phase = match compared {
            Compared::Begins { first } if first > self.stored.saturating_add(1) => Phase::Gap { first },
            Compared::Same | Compared::Begins { .. } => return self.copying(outputs),
            Compared::Differs { sequence } => Phase::Differs { sequence },
            Compared::Ends { last } => {
                self.leaf_last = last;
                Phase::Ahead
            }
        };
        self.forget();
        outputs.push(Output::Close);
    }

    fn copying(&mut self, outputs: &mut Vec<Output>) {
        self.phase = Phase::Copying;
        self.leaf_last = self.leaf_last.max(self.stored);
        self.advance(outputs);
    }

    fn heard(&mut self, event: EventRecord, now: Duration, outputs: &mut Vec<Output>) {
        let copies = match self.phase {
            Phase::Copying => true,
            Phase::Opening | Phase::Comparing | Phase::Waiting { .. } => false,
            Phase::Idle | Phase::Ahead | Phase::Gap { .. } | Phase::Differs { .. } => return,
        };
        let sequence = event.sequence;
        if copies && sequence <= self.sent {
            // A leaf sends an event again with the same content: this is another history.
            if self
                .last
                .as_ref()
                .is_some_and(|last| last.sequence == sequence && *last != event)
            {
                self.open(outputs);
            }
            return;
        }
        if self.stored == self.leaf_last {
            // Nothing was missing until now.
            self.progress_at = now;
        }
        self.leaf_last = self.leaf_last.max(sequence);
        if copies && self.asked.is_empty() && sequence == self.sent.saturating_add(1) {
            self.publish(vec![event], outputs);
            return;
        }
        match (self.heard.front(), self.heard.back()) {
            (Some(_), Some(back)) if sequence == back.sequence.saturating_add(1) => {
                self.heard.push_back(event);
            }
            // It is there already, or it is read.
            (Some(_), Some(back)) if sequence <= back.sequence => {}
            _ => {
                self.heard.clear();
                self.heard.push_back(event);
            }
        }
        if self.heard.len() > KEPT_EVENTS {
            self.heard.pop_front();
        }
        if copies {
            self.advance(outputs);
        }
    }

    fn page(
        &mut self,
        from: u64,
        events: Vec<EventRecord>,
        end: bool,
        now: Duration,
        outputs: &mut Vec<Output>,
    ) {
        if self.phase != Phase::Copying {
            return;
        }
        let Some((_, wanted)) = self.asked.pop_front_if(|(first, _)| *first == from) else {
            return;
        };
        let mut next = from;
        let mut row = events;
        if let Some(first) = row
            .first()
            .map(|event| event.sequence)
            .filter(|first| *first > from)
        {
            // The leaf's stream drops its oldest events when it is full.
            self.phase = Phase::Gap { first };
            self.forget();
            outputs.push(Output::Close);
            return;
        }
        row.retain(|event| {
            let follows = event.sequence == next;
            next += u64::from(follows);
            follows
        });
        let complete = next - from == wanted;
        if !row.is_empty() {
            self.publish(row, outputs);
            self.leaf_last = self.leaf_last.max(self.sent);
        }
        if !complete && !self.asked.is_empty() {
            self.asked.clear();
            outputs.push(Output::StopReading);
        }
        if !complete && end {
            // What was heard beyond the stream's end is not stored there yet, or never will be.
            self.leaf_last = self.sent.max(self.claimed_last);
            if self
                .heard
                .front()
                .is_none_or(|event| event.sequence > self.sent + 1)
            {
                self.heard.clear();
            } else if let Some(back) = self.heard.back() {
                self.leaf_last = self.leaf_last.max(back.sequence);
            }
        }
        if next == from && self.leaf_last > self.sent && self.heard.is_empty() {
            let reason = format!(
                "the leaf's stream has no event {from}, though its last one is {} by its claim",
                self.leaf_last
            );
            self.fail(reason, now, outputs);
            return;
        }
        self.advance(outputs);
    }

    /// Publishes what can be, and asks for what is missing.
    fn advance(&mut self, outputs: &mut Vec<Output>) {
        while self
            .heard
            .front()
            .is_some_and(|event| event.sequence <= self.sent)
        {
            self.heard.pop_front();
        }
        if self.asked.is_empty() && self.heard.front().is_some_and(|e| e.sequence == self.sent + 1) {
            let row = self.heard.drain(..).collect();
            self.publish(row, outputs);
        }
        let known = self.heard.front().map_or(u64::MAX, |event| event.sequence);
        while self.asked.len() < PAGES_AHEAD {
            let from = match self.asked.back() {
                Some((from, events)) => from + events,
                None => self.sent + 1,
            };
            if from > self.leaf_last || from >= known {
                break;
            }
            let events = PAGE_EVENTS.min(known - from);
            self.asked.push_back((from, events));
            outputs.push(Output::Read { from, events });
        }
    }

    fn publish(&mut self, row: Vec<EventRecord>, outputs: &mut Vec<Output>) {
        if let Some(last) = row.last() {
            self.sent = last.sequence;
            self.last = Some(last.clone());
            outputs.push(Output::Publish(row));
        }
    }

    fn progress(&mut self, now: Duration) {
        self.progress_at = now;
        self.pause = FIRST_PAUSE;
        self.reason = None;
    }

    fn fail(&mut self, reason: String, now: Duration, outputs: &mut Vec<Output>) {
        self.phase = Phase::Waiting {
            until: now + self.pause,
        };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.reason = Some(reason);
        self.asked.clear();
        outputs.push(Output::Close);
    }

    fn forget(&mut self) {
        self.asked.clear();
        self.heard.clear();
    }
}

#[cfg(test)]
mod tests;

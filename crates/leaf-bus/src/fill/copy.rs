//! Fills the hub's copy: asks the agent from where on, sends the leaf's events again, and asks once more what has arrived.

use std::time::Duration;

use leaf_core::fleet::FillReply;
use leaf_core::id::InstanceId;
use tokio::time::Instant;

use super::{FillError, Filler};
use crate::hub_link::{HubError, HubLink};
use crate::settings::ConnectSettings;

/// How many events are sent before the agent is asked how many arrived; at most twice as many are under way. nats-server takes no
/// more than 100,000 for a stream that it has not stored yet, and drops the others.
const EVENTS: usize = 16 << 10;
/// The bytes that are sent until then, at first and at least and at most: a slow link carries other messages in between.
const FIRST_BYTES: usize = 64 << 10;
const FEWEST_BYTES: usize = 16 << 10;
const MOST_BYTES: usize = 8 << 20;
/// With a faster turn the next one may have twice the bytes, with a slower one it has half of them.
const FAST: Duration = Duration::from_millis(100);
const SLOW: Duration = Duration::from_millis(500);
/// The pause before the agent is asked again.
const PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long the agent may let a leaf wait that is to be compared, before the next claim's reply says again what is missing.
const PATIENCE: Duration = Duration::from_secs(8);
/// How often the copy may begin anew meanwhile.
const BACK: u32 = 8;
/// After this time without one more event in the copy, they are sent again.
const LOST_AFTER: Duration = Duration::from_secs(2);

/// Why the copy was not filled.
#[derive(Debug, thiserror::Error)]
pub enum NotFilled {
    /// The agent gave no answer.
    #[error("the hub agent can't be asked from where on its copy lacks events")]
    Hub(#[source] HubError),
    /// The events can't be read or sent.
    #[error("can't send the leaf's events again")]
    Send(#[source] FillError),
    /// The agent lets this leaf wait.
    #[error("the hub's copy takes no events at the moment: {0}")]
    Waits(String),
    /// They were sent, twice.
    #[error(
        "the hub's copy does not take the event {0}, though it was sent again: the log of the hub's nats-server may say why"
    )]
    Lost(u64),
}

/// The size of what is sent at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pace {
    bytes: usize,
}

impl Pace {
    /// Takes how long it took until most of it was stored.
    fn took(&mut self, turn: Duration) {
        if turn < FAST {
            self.bytes = (self.bytes * 2).min(MOST_BYTES);
        } else if turn > SLOW {
            self.bytes = (self.bytes / 2).max(FEWEST_BYTES);
        }
    }
}

/// Fills a copy.
#[derive(Debug, Clone)]
pub struct FillCopy {
    /// The connection to the agent.
    pub hub: HubLink,
    /// The leaf's instance.
    pub instance: InstanceId,
    /// The settings of leafd's user in the account of the streams.
    pub streams: ConnectSettings,
    /// The settings of its user in the account of the link.
    pub link: ConnectSettings,
}

impl FillCopy {
    /// Sends what the copy lacks, and returns how many events were sent. `known` returns the last number of the leaf's stream: it is
    /// done once the copy has what that was before the agent was asked.
    ///
    /// # Errors
    /// [`NotFilled`]. What has arrived stays, so the next call goes on from there.
    pub async fn fill(&self, known: impl Fn() -> u64) -> Result<u64, NotFilled> {
        let mut sending = Sending::default();
        let result = self.fill_with(&mut sending, known).await;
        if let Some(filler) = sending.filler {
            filler.close().await;
        }
        result.map(|()| sending.events)
    }

    async fn fill_with(&self, sending: &mut Sending, known: impl Fn() -> u64) -> Result<(), NotFilled> {
        let mut pace = Pace { bytes: FIRST_BYTES };
        loop {
            let last = known();
            let began = Instant::now();
            let after = self.taken_after().await?;
            if after >= last {
                return Ok(());
            }
            match sending.arrivals.take(after, sending.last, began) {
                Next::GoOn => {}
                Next::BeginAgain => {
                    if let Some(filler) = sending.filler.take() {
                        filler.close().await;
                    }
                    sending.last = after;
                    tokio::time::sleep(PAUSE).await;
                }
                Next::GiveUp => return Err(NotFilled::Lost(after + 1)),
            }
            if sending.last.saturating_sub(after) > EVENTS as u64 {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let filler = match &mut sending.filler {
                Some(filler) => filler,
                None => {
                    sending.last = after;
                    sending.filler.insert(self.open(after + 1).await?)
                }
            };
            let sent = filler.send(EVENTS, pace.bytes).await.map_err(NotFilled::Send)?;
            if sent.last <= sending.last {
                // All are under way, or the leaf's server has them not yet.
                tokio::time::sleep(PAUSE).await;
            } else {
                sending.events += sent.last - sending.last;
                sending.last = sent.last;
                pace.took(began.elapsed());
            }
        }
    }

    async fn open(&self, from: u64) -> Result<Filler, NotFilled> {
        let filler = Filler::open(&self.streams, &self.link, self.hub.leaf(), self.instance, from);
        filler.await.map_err(NotFilled::Send)
    }

    /// Returns after which number the copy takes events.
    async fn taken_after(&self) -> Result<u64, NotFilled> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = PAUSE;
        loop {
            let why = match self.hub.fill(self.instance).await.map_err(NotFilled::Hub)? {
                FillReply::Send { after } => return Ok(after),
                FillReply::Wait { why } => why,
                FillReply::Unknown => "its answer is that of a newer agent: update leafd".to_owned(),
            };
            if Instant::now() >= deadline {
                return Err(NotFilled::Waits(why));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// A filler, and the events that it has sent.
#[derive(Default)]
struct Sending {
    filler: Option<Filler>,
    /// The last number that was sent.
    last: u64,
    events: u64,
    arrivals: Arrivals,
}

/// Tells from the copy's last numbers whether the events that were sent arrive.
#[derive(Debug, Default)]
struct Arrivals {
    /// The copy's last number, and since when it is that.
    last: Option<(u64, Instant)>,
    /// The number after which events were sent again, since none arrived.
    again_after: Option<u64>,
    /// How often the copy ended before its last end.
    back: u32,
}

/// The next step of a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    /// Begin with what follows the copy's last event.
    BeginAgain,
    /// It was sent twice, and does not arrive.
    GiveUp,
}

impl Arrivals {
    /// Takes the copy's last number, of which it is known up to where events were sent.
    fn take(&mut self, after: u64, sent: u64, now: Instant) -> Next {
        let next = match self.last {
            // The copy begins anew; one that does so again and again is none.
            Some((before, _)) if after < before => {
                self.back += 1;
                if self.back > BACK {
                    Next::GiveUp
                } else {
                    Next::BeginAgain
                }
            }
            Some((before, since)) if before == after => {
                if sent <= after || now < since + LOST_AFTER {
                    return Next::GoOn;
                }
                match self.again_after.replace(after) {
                    Some(again) if again == after => Next::GiveUp,
                    _ => Next::BeginAgain,
                }
            }
            _ => Next::GoOn,
        };
        self.last = Some((after, now));
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_link_gets_more_at_a_time_and_a_slow_one_less_within_limits() {
        let mut pace = Pace { bytes: FIRST_BYTES };
        for _ in 0..9 {
            pace.took(Duration::from_millis(20));
        }
        assert_eq!(pace.bytes, MOST_BYTES);
        pace.took(Duration::from_millis(300));
        assert_eq!(pace.bytes, MOST_BYTES);
        for _ in 0..9 {
            pace.took(Duration::from_secs(2));
        }
        assert_eq!(pace.bytes, FEWEST_BYTES);
    }

    #[test]
    fn what_does_not_arrive_is_sent_once_more_and_then_given_up() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.take(4, 0, at(0)), Next::GoOn);
        // Nothing was sent yet.
        assert_eq!(arrivals.take(4, 4, at(9)), Next::GoOn);
        assert_eq!(arrivals.take(6, 9, at(10)), Next::GoOn);
        assert_eq!(arrivals.take(6, 9, at(11)), Next::GoOn);
        assert_eq!(arrivals.take(6, 9, at(12)), Next::BeginAgain);
        assert_eq!(arrivals.take(6, 9, at(13)), Next::GoOn);
        assert_eq!(arrivals.take(6, 9, at(14)), Next::GiveUp);
        // One more event is progress.
        let mut arrivals = Arrivals {
            last: Some((6, at(0))),
            again_after: Some(6),
            back: 0,
        };
        assert_eq!(arrivals.take(7, 9, at(2)), Next::GoOn);
        assert_eq!(arrivals.take(7, 9, at(4)), Next::BeginAgain);
    }

    #[test]
    fn a_copy_that_begins_anew_gets_everything_from_there() {
        let now = Instant::now();
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.take(90, 0, now), Next::GoOn);
        assert_eq!(arrivals.take(20, 95, now), Next::BeginAgain);
        assert_eq!(arrivals.take(20, 20, now), Next::GoOn);
        // A hub that says so for ever does not have the leaf send for ever.
        let answers = [90, 20].into_iter().cycle().take(40);
        assert!(
            answers
                .map(|after| arrivals.take(after, 95, now))
                .any(|next| next == Next::GiveUp)
        );
    }
}

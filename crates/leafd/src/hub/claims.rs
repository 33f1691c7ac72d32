//! The claims of a running leaf.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::connect::Bus;
use leaf_bus::stream::{EventStream, StreamSettings};
use leaf_core::command::HubReport;
use leaf_core::engine::Input;
use leaf_core::error::chain;
use leaf_core::fleet::{ClaimReply, CopyEnd};
use leaf_core::homecoming::{Extent, Next, Own};
use tokio::sync::{Notify, mpsc, watch};

use super::{CLAIM_EVERY, Heard, HomeError, Hub, extent_of_journal};
use crate::complaints::Complaints;
use crate::lease::{Beats, HeldError, PAUSE, Predecessors};
use crate::publisher::Published;
use crate::renewal::is_late;
use crate::wake::Wake;

/// Renews the leaf's claim as long as it runs, and compares the ends of leaf and copy when the copy's has changed.
pub(crate) struct Claims {
    /// The connection to the agent.
    pub(crate) hub: Arc<Hub>,
    /// What it said at the start.
    pub(crate) heard: Heard,
    /// The connection to the leaf's own streams.
    pub(crate) bus: Bus,
    /// The settings of the leaf's stream.
    pub(crate) stream: StreamSettings,
    /// Makes the beats that claims carry.
    pub(crate) beats: Beats,
    /// Instances that are known to be dead.
    pub(crate) dead: Predecessors,
    /// The known content of the leaf's stream.
    pub(crate) published: watch::Receiver<Published>,
    /// Told when the copy lacks events.
    pub(crate) lacks: Arc<Notify>,
    /// Receives what the hub said.
    pub(crate) inputs: mpsc::Sender<Wake>,
}

impl Claims {
    /// Runs until the daemon ends.
    ///
    /// # Errors
    /// [`HomeError`] when another instance has the name, or the copy has other events than the leaf.
    pub(crate) async fn keep(mut self) -> anyhow::Result<()> {
        let stream = EventStream::of(&self.bus, &self.hub.leaf, self.stream.clone());
        let mut complaints = Complaints::default();
        // The JWT whose end the log has named.
        let mut warned = None;
        if let Some(problem) = &self.heard.problem {
            complaints.is_new(problem);
        }
        let mut pause = match self.heard.claimed_at {
            Some(_) => CLAIM_EVERY,
            None => Duration::ZERO,
        };
        loop {
            let life = self.hub.credentials.life();
            if let Some(life) = life.as_ref().filter(|life| is_late(life, Timestamp::now()))
                && warned.as_ref() != Some(&life.id)
            {
                warned = Some(life.id.clone());
                tracing::warn!(
                    until = life.expires_at.map(tracing::field::display),
                    "the leaf's credentials at the hub end, and their file has no newer ones: `leafctl fleet rotate` makes them"
                );
            }
            let report = HubReport {
                credentials_until: life.and_then(|life| life.expires_at),
                ..self.heard.report(&self.hub.url)
            };
            let report = Input::HubHeard(Box::new(report));
            if self.inputs.send(report.into()).await.is_err() {
                return std::future::pending().await;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // A selection at the hub goes by the labels of the last claim.
                Ok(()) = self.beats.labels.changed() => {}
            }
            let problem = match self.renew(&stream).await {
                Ok(()) => None,
                Err(Unanswered::Home(error)) if error.lasts() => return Err(error.into()),
                Err(error) => Some(error.text()),
            };
            match &problem {
                Some(problem) => {
                    if complaints.is_new(problem) {
                        tracing::warn!(
                            error = problem,
                            "no claim at the hub at the moment: the leaf goes on"
                        );
                    }
                    pause = PAUSE;
                }
                None => {
                    if self.heard.problem.is_some() {
                        tracing::info!(
                            hub = self.hub.url,
                            "the hub answers, and its copy agrees with the leaf"
                        );
                    }
                    complaints = Complaints::default();
                    pause = CLAIM_EVERY;
                }
            }
            self.heard.problem = problem;
        }
    }

    /// Renews the claim once.
    async fn renew(&mut self, stream: &EventStream) -> Result<(), Unanswered> {
        let known = *self.published.borrow();
        let beat = self.beats.now();
        let answer = self.hub.claim(&beat, self.dead, known.sequence).await;
        let copy = match answer.map_err(Unanswered::Hub)? {
            ClaimReply::Held { by } => return Err(HomeError::Held(HeldError(by)).into()),
            ClaimReply::Granted { copy, works } => {
                self.heard.works = works;
                copy
            }
        };
        self.heard.claimed_at = Some(Timestamp::now());
        let own = Own {
            journal: extent_of_journal(self.beats.journal.held()),
            stream: extent_of_published(known),
        };
        self.agrees(copy.as_ref(), own, stream).await?;
        // What was published while the hub was away, or since the agent heard of it again, may not have been taken.
        if self.heard.problem.is_some() || copy.as_ref().map_or(0, |copy| copy.last) < known.sequence {
            self.lacks.notify_one();
        }
        self.heard.has_now(copy);
        Ok(())
    }

    /// Compares the end of the copy with the leaf's events, unless it is the one that agreed before.
    async fn agrees(&self, copy: Option<&CopyEnd>, own: Own, stream: &EventStream) -> Result<(), HomeError> {
        if copy == self.heard.agreed.as_ref() {
            return Ok(());
        }
        match self
            .hub
            .compare(copy, own, &self.beats.journal, Some(stream))
            .await?
        {
            Next::Differs { sequence } => Err(self
                .hub
                .differs(sequence, own, &self.beats.journal, Some(stream))
                .await),
            // What the copy has of this instance is in its journal, also where its stream lags behind.
            Next::Append(_) => match copy {
                Some(copy) if copy.last > own.journal.last => Err(HomeError::Ahead {
                    copy: copy.last,
                    own: own.journal.last,
                }),
                _ => Ok(()),
            },
            Next::GoOn | Next::CompareAt(_) => Ok(()),
        }
    }
}

/// Why a claim was not renewed.
enum Unanswered {
    /// The agent gave no answer that can be used.
    Hub(leaf_bus::hub_link::HubError),
    /// It gave one that the leaf can't go on with, or could not act on.
    Home(HomeError),
}

impl From<HomeError> for Unanswered {
    fn from(error: HomeError) -> Self {
        Self::Home(error)
    }
}

impl Unanswered {
    fn text(&self) -> String {
        match self {
            Self::Hub(error) => chain(error),
            Self::Home(error) => chain(error),
        }
    }
}

impl Heard {
    /// Takes the copy's end after it was found to agree with the leaf. One that ends earlier than before has lost events.
    fn has_now(&mut self, copy: Option<CopyEnd>) {
        let last = |copy: &Option<CopyEnd>| copy.as_ref().map_or(0, |copy| copy.last);
        let (before, now) = (last(&self.agreed), last(&copy));
        if now < before {
            tracing::warn!(
                before,
                now,
                "the hub has lost events of its copy: it lost its store, or was restored from a backup. This leaf sends them again, as \
                 far back as its stream goes"
            );
        }
        let most = before.max(self.lost_after.unwrap_or(0));
        self.lost_after = (now < most).then_some(most);
        self.agreed = copy;
    }

    fn report(&self, url: &str) -> HubReport {
        HubReport {
            url: url.to_owned(),
            connected: self.claimed_at.is_some() && self.problem.is_none(),
            claimed_at: self.claimed_at,
            copied: self.agreed.as_ref().map(|copy| copy.last),
            problem: self.problem.clone(),
            lost_after: self.lost_after,
            works: self.works,
            credentials_until: None,
        }
    }
}

fn extent_of_published(known: Published) -> Extent {
    if known.first == 0 {
        return Extent { first: 1, last: 0 };
    }
    Extent {
        first: known.first,
        last: known.sequence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_ends_earlier_than_before_has_lost_events_until_it_has_them_again() {
        let copy = |last| {
            Some(CopyEnd {
                first: 1,
                last,
                fingerprint: String::new(),
            })
        };
        let mut heard = Heard::default();
        let mut after = |end: Option<CopyEnd>| {
            heard.has_now(end);
            heard.report("tls://hub:7422").lost_after
        };
        assert_eq!([after(None), after(copy(5)), after(copy(90))], [None; 3]);
        assert_eq!([after(None), after(copy(40)), after(copy(20))], [Some(90); 3]);
        assert_eq!([after(copy(90)), after(copy(91))], [None; 2]);
    }
}

//! The agent's part of the contract, as far as a leaf hears it: it grants claims, returns pages of a copy, and does what a
//! real one never would.

use futures::StreamExt as _;
use leaf_core::beat::Beat;
use leaf_core::event::EventRecord;
use leaf_core::fleet::{
    Claim, ClaimReply, CopyEnd, CopyPage, Fill, FillReply, ReadCopy, Release, Released, Unreadable,
    fingerprint,
};
use leaf_core::json::to_json;
use leaf_core::subject;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{HubSite, until};

/// How many events a page has.
const PAGE: usize = 7;

/// How an agent answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Manner {
    /// As the contract says: the first instance that claims the name has it.
    #[default]
    Honest,
    /// This instance has the name.
    HeldBy(Box<Beat>),
    /// With what is no answer.
    Garbage,
    /// As the contract says, until this many pages were read, and then not at all.
    SilentAfter(usize),
    /// As the contract says, but this event is too large for a reply.
    TooLarge(u64),
}

#[derive(Debug, Default)]
struct Known {
    copy: Vec<EventRecord>,
    manner: Manner,
    holder: Option<Beat>,
    claims: Vec<Claim>,
    releases: Vec<Release>,
    pages: usize,
}

/// An agent under a test's command.
pub(crate) struct TestAgent {
    known: watch::Sender<Known>,
    _task: JoinSet<()>,
}

impl TestAgent {
    /// Starts it, without a copy.
    pub(crate) async fn start(hub: &HubSite) -> anyhow::Result<Self> {
        let client = hub.agent_in_links().await?;
        let mut requests = client.subscribe(subject::hub_requests()).await?;
        client.flush().await?;
        let known = watch::Sender::new(Known::default());
        let shared = known.clone();
        let (claim, leaf) = (subject::hub_claim(&hub.leaf), hub.leaf.clone());
        let (release, fill) = (subject::hub_release(&hub.leaf), subject::hub_fill(&hub.leaf));
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Some(request) = requests.next().await {
                let Some(reply) = request.reply else {
                    continue;
                };
                assert!(subject::is_inbox_of_leaf(&reply, &leaf), "{reply}");
                let mut answer = None;
                shared.send_modify(|known| {
                    answer = if request.subject.as_str() == claim {
                        known.answer_claim(&request.payload)
                    } else if request.subject.as_str() == release {
                        known.answer_release(&request.payload)
                    } else if request.subject.as_str() == fill {
                        known.answer_fill(&request.payload)
                    } else {
                        known.answer_read(&request.payload)
                    };
                });
                if let Some(answer) = answer {
                    let _ = client.publish(reply, answer.into()).await;
                }
            }
        });
        Ok(Self { known, _task: task })
    }

    /// Makes this its copy.
    pub(crate) fn has(&self, events: &[EventRecord]) {
        self.known.send_modify(|known| known.copy = events.to_vec());
    }

    /// Answers in this manner from now on.
    pub(crate) fn behaves(&self, manner: Manner) {
        self.known.send_modify(|known| {
            known.manner = manner;
            known.pages = 0;
        });
    }

    /// The instance that had the name is gone for long enough.
    pub(crate) fn forgets_the_holder(&self) {
        self.known.send_modify(|known| known.holder = None);
    }

    /// How many claims arrived so far.
    pub(crate) fn claims(&self) -> usize {
        self.known.borrow().claims.len()
    }

    /// The claims that arrived after the first ones.
    pub(crate) fn claims_from(&self, first: usize) -> Vec<Claim> {
        self.known.borrow().claims[first..].to_vec()
    }

    /// The last claim so far.
    pub(crate) fn last_claim(&self) -> Option<Claim> {
        self.known.borrow().claims.last().cloned()
    }

    /// The claims that were given back so far.
    pub(crate) fn releases(&self) -> Vec<Release> {
        self.known.borrow().releases.clone()
    }

    /// How many pages were read since it began to behave as it does.
    pub(crate) fn pages(&self) -> usize {
        self.known.borrow().pages
    }

    /// Waits for the next claim, and returns it.
    pub(crate) async fn next_claim(&self) -> anyhow::Result<Claim> {
        let before = self.claims();
        until("the leaf claims its name", async || {
            Ok(self.known.borrow().claims.get(before).cloned())
        })
        .await
    }
}

impl Known {
    fn answer_claim(&mut self, body: &[u8]) -> Option<Vec<u8>> {
        let claim: Claim = serde_json::from_slice(body).expect("a claim of the contract");
        self.claims.push(claim.clone());
        let held = match &self.manner {
            Manner::Garbage => return Some(b"{\"answer\":\"perhaps\"}".to_vec()),
            Manner::SilentAfter(pages) if self.pages >= *pages => return None,
            Manner::HeldBy(beat) => Some(beat.clone()),
            Manner::Honest | Manner::SilentAfter(_) | Manner::TooLarge(_) => {
                let is_other = |holder: &&Beat| {
                    holder.instance != claim.beat.instance && Some(holder.instance) != claim.predecessor
                };
                self.holder.as_ref().filter(is_other).cloned().map(Box::new)
            }
        };
        if let Some(by) = held {
            return Some(to_json(&ClaimReply::Held { by }));
        }
        self.holder = Some(claim.beat);
        let copy = match (self.copy.first(), self.copy.last()) {
            (Some(first), Some(last)) => Some(CopyEnd {
                first: first.sequence,
                last: last.sequence,
                fingerprint: fingerprint(last),
            }),
            _ => None,
        };
        Some(to_json(&ClaimReply::Granted { copy, works: false }))
    }

    fn answer_release(&mut self, body: &[u8]) -> Option<Vec<u8>> {
        let release: Release = serde_json::from_slice(body).expect("a request of the contract");
        let is_holder = |holder: &Beat| holder.instance == release.instance;
        let released = self.holder.as_ref().is_some_and(is_holder);
        if released {
            self.holder = None;
        }
        self.releases.push(release);
        Some(to_json(&Released { released }))
    }

    /// The copy is what the test says: it takes nothing.
    fn answer_fill(&self, body: &[u8]) -> Option<Vec<u8>> {
        let fill: Fill = serde_json::from_slice(body).expect("a request of the contract");
        let is_holder = |holder: &Beat| holder.instance == fill.instance;
        let why = match &self.manner {
            Manner::Garbage => return Some(b"{\"answer\":7}".to_vec()),
            Manner::SilentAfter(pages) if self.pages >= *pages => return None,
            _ if !self.holder.as_ref().is_some_and(is_holder) => "another instance has the name",
            _ => "the copy is full",
        };
        Some(to_json(&FillReply::Wait { why: why.to_owned() }))
    }

    fn answer_read(&mut self, body: &[u8]) -> Option<Vec<u8>> {
        let ReadCopy { from } = serde_json::from_slice(body).expect("a request of the contract");
        match self.manner {
            Manner::Garbage => return Some(b"[]".to_vec()),
            Manner::SilentAfter(pages) if self.pages >= pages => return None,
            Manner::TooLarge(sequence) if (from..from + PAGE as u64).contains(&sequence) => {
                return Some(to_json(&Unreadable {
                    sequence: Some(sequence),
                    unreadable: format!("event {sequence} takes too many bytes"),
                }));
            }
            _ => {}
        }
        self.pages += 1;
        let events = self.copy.iter().filter(|event| event.sequence >= from);
        let page = CopyPage {
            events: events
                .take(PAGE)
                .cloned()
                .map(|event| event.try_into().expect("text"))
                .collect(),
            last: self.copy.last().map_or(0, |event| event.sequence),
        };
        Some(to_json(&page))
    }
}

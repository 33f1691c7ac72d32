//! A leaf's part of its connection to the hub agent: it claims its name there, and makes sure that its history and the
//! hub's copy are the same before it publishes. `docs/fleet.md` is the contract, [`leaf_core::homecoming`] the decision.
//!
//! At the start ([`start`]), what only the copy has is appended to the leaf's own stream, from which [`crate::recovery`]
//! imports it. While the leaf runs ([`claims`]), the ends are compared when a claim says that the copy's has changed.

mod claims;
mod start;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::connect::{ConnectError, ConnectSettings};
use leaf_bus::hub_link::{HubError, HubLink};
use leaf_bus::stream::{EventStream, StreamError};
use leaf_core::beat::Beat;
use leaf_core::event::EventRecord;
use leaf_core::fleet::{self, CLAIM_SECONDS, ClaimReply, CopyEnd};
use leaf_core::homecoming::{self, Extent, Next, Own};
use leaf_core::id::LeafName;
use leaf_journal::{Held, Journal, ReadError};
use tokio::time::Instant;

use crate::lease::{HeldError, PAUSE, Predecessors};

pub(crate) use claims::Claims;

/// The period in which a claim is renewed.
const CLAIM_EVERY: Duration = Duration::from_secs(CLAIM_SECONDS);

/// Why a leaf may not publish, or must stop, because of what the hub says or has.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Another instance claimed the name at the hub.
    #[error("the hub says that another instance has this leaf's name")]
    Held(#[source] HeldError),
    /// Leaf and copy have different events under one number.
    #[error(
        "this leaf and the hub's copy have different events with the sequence number {sequence}: an older image of this \
         leaf was started while the hub was away, or another leaf had its name. Nothing was changed at the hub. To \
         continue with the hub's events, move journal.redb and the directory nats away from the state directory and \
         start leafd; to continue with this leaf's, `leaf-hub reset {leaf}` at the hub; or give this leaf another name"
    )]
    Differs {
        /// The leaf.
        leaf: LeafName,
        /// The sequence number.
        sequence: u64,
    },
    /// The copy has more than this leaf, which runs already.
    #[error(
        "the hub's copy ends with {copy}, and this leaf with {own}: events were written by another instance. A restart of \
         leafd imports them"
    )]
    Ahead {
        /// Where the copy ends.
        copy: u64,
        /// Where the leaf's journal ends.
        own: u64,
    },
    /// An event of the copy can't be this leaf's.
    #[error(
        "the hub's copy has an event with the sequence number {sequence} that can't be imported, since {why}: look at it \
         with `leafctl events` at the hub. To continue with the hub's events, move journal.redb and the directory nats away from \
         the state directory and start leafd; `leaf-hub reset {leaf}` at the hub gives them up and begins a new copy"
    )]
    Foreign {
        /// The leaf.
        leaf: LeafName,
        /// The sequence number.
        sequence: u64,
        /// The reason.
        why: String,
    },
    /// The leaf has no history of its own, and it is not known yet whether the hub has one.
    #[error(
        "this leaf has no events yet, and the hub, which may have its history, does not answer: it is waited for, and a new \
         history begins after a minute"
    )]
    New(#[source] HubError),
    /// Events that only the hub has can't be read.
    #[error("the hub's copy has events that this leaf lacks, and they can't be read at the moment")]
    Copy(#[source] HubError),
    /// The leaf's own stream can't be read or written.
    #[error(
        "the hub's copy has events that this leaf may lack, and its own stream can't be used at the moment"
    )]
    Stream(#[from] StreamError),
    /// The journal can't be read.
    #[error("can't read the journal, to compare it with the hub's copy")]
    Journal(#[from] ReadError),
}

impl HomeError {
    /// Returns how long a start pauses before it tries again.
    pub(crate) fn try_again_after(&self) -> Duration {
        if self.lasts() { CLAIM_EVERY } else { PAUSE }
    }

    /// Returns whether this lasts until an operator acts, or another instance ends: a running leaf must end. Otherwise it goes
    /// on, and compares again later.
    pub(crate) fn lasts(&self) -> bool {
        match self {
            Self::Held(_) | Self::Differs { .. } | Self::Ahead { .. } | Self::Foreign { .. } => true,
            Self::New(_) | Self::Copy(_) | Self::Stream(_) | Self::Journal(_) => false,
        }
    }
}

/// The connection to the hub agent.
#[derive(Debug)]
pub(crate) struct Hub {
    link: HubLink,
    leaf: LeafName,
    /// The hub's addresses, for people.
    url: String,
    /// When it was opened.
    opened: Instant,
    /// Whether the hub is known to have events that this leaf lacks: then it does not go on without the hub.
    lacks: AtomicBool,
}

/// What the hub said last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    /// When a claim was granted last.
    claimed_at: Option<Timestamp>,
    /// The end of the copy that was last found to agree with the leaf.
    agreed: Option<CopyEnd>,
    /// Why the last claim had no answer.
    problem: Option<String>,
}

impl Hub {
    /// Returns the connection to the agent of the hub with these addresses, which is established later. The settings are those
    /// of the leaf's user in the account `LINK` of its own server.
    ///
    /// # Errors
    /// [`ConnectError`] if the settings can't be used.
    pub(crate) async fn open(
        settings: &ConnectSettings,
        leaf: &LeafName,
        url: &str,
    ) -> Result<Self, ConnectError> {
        Ok(Self {
            link: HubLink::open(settings, leaf).await?,
            leaf: leaf.clone(),
            url: url.to_owned(),
            opened: Instant::now(),
            lacks: AtomicBool::new(false),
        })
    }

    async fn claim(&self, beat: &Beat, dead: Predecessors, stream_last: u64) -> Result<ClaimReply, HubError> {
        let claim = fleet::Claim {
            beat: Beat {
                time: Timestamp::now(),
                ..beat.clone()
            },
            predecessor: dead.last_run,
            stream_last,
        };
        self.link.claim(&claim).await
    }

    /// Returns what to do about the copy, after the comparison that this needs.
    async fn compare(
        &self,
        copy: Option<&CopyEnd>,
        own: Own,
        journal: &Journal,
        stream: Option<&EventStream>,
    ) -> Result<Next, HomeError> {
        let (Some(copy), Next::CompareAt(sequence)) = (copy, homecoming::next(copy, own)) else {
            return Ok(homecoming::next(copy, own));
        };
        let ours = match own_event(sequence, own, journal, stream).await? {
            Some(record) => fleet::fingerprint(&record),
            // It was dropped meanwhile.
            None => return Ok(Next::GoOn),
        };
        let theirs = if sequence == copy.last {
            copy.fingerprint.clone()
        } else {
            let read = self.link.read_copy(sequence).next().await;
            match read.map_err(HomeError::Copy)? {
                Some(record) => fleet::fingerprint(&record),
                None => String::new(),
            }
        };
        Ok(homecoming::after_comparison(copy, own, sequence, ours == theirs))
    }
}

/// Returns the leaf's own event with this number, from its journal or its stream.
async fn own_event(
    sequence: u64,
    own: Own,
    journal: &Journal,
    stream: Option<&EventStream>,
) -> Result<Option<EventRecord>, HomeError> {
    if own.journal.has(sequence) {
        match journal.read(sequence, 1) {
            Ok(records) => return Ok(records.into_iter().next()),
            // It was let go meanwhile: the stream has it.
            Err(ReadError::Forgotten { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match stream {
        Some(stream) => Ok(stream.read(sequence).await?),
        None => Ok(None),
    }
}

fn extent_of_journal(held: Held) -> Extent {
    Extent {
        first: held.first_sequence,
        last: held.last_sequence,
    }
}

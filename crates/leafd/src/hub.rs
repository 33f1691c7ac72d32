//! A leaf's part of its connection to the hub agent: it claims its name there, and makes sure that its history and the
//! hub's copy are the same before it publishes. `docs/fleet.md` is the contract, [`leaf_core::homecoming`] the decision.
//!
//! At the start ([`start`]), what only the copy has is appended to the leaf's own stream, from which [`crate::recovery`]
//! imports it. While the leaf runs ([`claims`]), the ends are compared when a claim says that the copy's has changed, and what
//! the copy lacks is sent again ([`fill`]).

mod claims;
mod earlier;
mod fill;
mod lacks;
mod start;
mod works;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::connect::{ConnectError, ConnectSettings, Credentials};
use leaf_bus::fill::FillCopy;
use leaf_bus::hub_link::{HubError, HubLink};
use leaf_bus::stream::{EventStream, StreamError};
use leaf_core::beat::Beat;
use leaf_core::error::chain;
use leaf_core::event::EventRecord;
use leaf_core::fleet::{self, CLAIM_SECONDS, ClaimReply, CopyEnd};
use leaf_core::homecoming::{self, Extent, Next, Own};
use leaf_core::id::{InstanceId, LeafName};
use leaf_journal::{Held, Journal, ReadError};
use tokio::time::Instant;

use crate::lease::{HeldError, PAUSE, Predecessors};
use crate::settings;

pub(crate) use claims::Claims;
use earlier::Earlier;
pub(crate) use fill::Filling;
use lacks::Lacks;
pub(crate) use works::Works;

/// The period in which a claim is renewed.
const CLAIM_EVERY: Duration = Duration::from_secs(CLAIM_SECONDS);
/// How long the end of leafd waits for the hub.
const RELEASE_WITHIN: Duration = Duration::from_secs(1);

/// Why a leaf may not publish, or must stop, because of what the hub says or has.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Another instance claimed the name at the hub.
    #[error("the hub says that another instance has this leaf's name")]
    Held(#[source] HeldError),
    /// Leaf and copy have different events under one number.
    #[error(
        "this leaf and the hub's copy have different events with the sequence number {sequence}: {}. Nothing was changed at the hub. To \
         continue with the hub's events, move journal.redb and the directory nats away from the state directory and \
         start leafd; to continue with this leaf's, `leaf-hub reset {leaf}` at the hub; or give this leaf another name",
        why_different(*histories)
    )]
    Differs {
        /// The leaf.
        leaf: LeafName,
        /// The sequence number.
        sequence: u64,
        /// When the history of the copy and this leaf's began, if that is known.
        histories: Option<[Timestamp; 2]>,
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
    /// The hub has events that this leaf lacks, as was found before, and it can't be asked for them.
    #[error(
        "the hub's copy has events that this leaf lacks, as {} says, and the hub can't be asked for them: it is waited for. Without \
         them the leaf would give their numbers to other events; to give them up, remove that file, and later `leaf-hub reset \
         {leaf}` at the hub",
        file.display()
    )]
    Lacking {
        /// The leaf.
        leaf: LeafName,
        /// The file that says so.
        file: PathBuf,
        /// The hub's error.
        source: HubError,
    },
    /// The file that says whether events are missing can't be read or written.
    #[error("can't read or write {}, which says whether the hub has events that this leaf lacks", file.display())]
    Remembered {
        /// The file.
        file: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The leaf's own stream can't be read or written.
    #[error(
        "the hub's copy has events that this leaf may lack, and its own stream can't be used at the moment"
    )]
    Stream(#[from] StreamError),
    /// The journal can't be read.
    #[error("can't read the journal, to compare it with the hub's copy")]
    Journal(#[from] ReadError),
}

/// Returns how two histories of one leaf may have come about.
fn why_different(histories: Option<[Timestamp; 2]>) -> String {
    match histories {
        Some([theirs, ours]) if theirs != ours => format!(
            "the copy's history began at {theirs}, and this leaf's at {ours}, so this leaf began anew while the hub was away (a new \
             disk), or the hub has the store of another fleet or of an older backup"
        ),
        _ => "an older image of this leaf was started while the hub was away, or another leaf had its name"
            .to_owned(),
    }
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
            Self::New(_)
            | Self::Copy(_)
            | Self::Lacking { .. }
            | Self::Remembered { .. }
            | Self::Stream(_)
            | Self::Journal(_) => false,
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
    /// The leaf's credentials there, which its server uses.
    credentials: Credentials,
    /// The settings of the connection, for those that carry events.
    settings: ConnectSettings,
    /// When it was opened.
    opened: Instant,
    /// Remembers that the hub has events that this leaf lacks: then it does not go on without the hub.
    lacks: Lacks,
    /// The instances before this one that claimed the name from here.
    earlier: Earlier,
}

/// What the hub said last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    /// When a claim was granted last.
    claimed_at: Option<Timestamp>,
    /// Whether the agent answers for works.
    works: bool,
    /// The end of the copy that was last found to agree with the leaf.
    agreed: Option<CopyEnd>,
    /// Why the last claim had no answer.
    problem: Option<String>,
    /// The last event that the copy had before it lost some, until it has them again.
    lost_after: Option<u64>,
}

impl Hub {
    /// Returns the connection to the agent of this hub, which is established later. The settings are those
    /// of the leaf's user in the account `LINK` of its own server. What must outlast this run is remembered in the state directory.
    ///
    /// # Errors
    /// [`ConnectError`] if the settings can't be used.
    pub(crate) async fn open(
        settings: &ConnectSettings,
        leaf: &LeafName,
        hub: &settings::Hub,
        state_dir: &Path,
    ) -> Result<Self, ConnectError> {
        Ok(Self {
            link: HubLink::open(settings, leaf).await?,
            leaf: leaf.clone(),
            url: hub.url.clone(),
            credentials: Credentials::in_file(&hub.credentials),
            settings: settings.clone(),
            opened: Instant::now(),
            lacks: Lacks::in_directory(state_dir),
            earlier: Earlier::in_directory(state_dir),
        })
    }

    /// Returns what fills the copy with the events of a stream, which is read with these settings.
    pub(crate) fn fill_copy(&self, streams: ConnectSettings, instance: InstanceId) -> FillCopy {
        FillCopy {
            hub: self.link.clone(),
            instance,
            streams,
            link: ConnectSettings {
                name: format!("{} for events", self.settings.name),
                ..self.settings.clone()
            },
        }
    }

    /// The connection, on which commands of the hub arrive as well.
    pub(crate) fn link(&self) -> &HubLink {
        &self.link
    }

    /// Claims the name, and takes over the claim of an instance that is known to be dead.
    async fn claim(&self, beat: &Beat, dead: Predecessors, stream_last: u64) -> Result<ClaimReply, HubError> {
        let mut claim = fleet::Claim {
            beat: Beat {
                time: Timestamp::now(),
                ..beat.clone()
            },
            predecessor: dead.last_run,
            stream_last,
        };
        match self.link.claim(&claim).await? {
            ClaimReply::Held { by } if self.is_dead(&by, beat) => {
                claim.predecessor = Some(by.instance);
                self.link.claim(&claim).await
            }
            reply => Ok(reply),
        }
    }

    /// Returns whether the holder of the name ran in this state directory, on this host, before.
    fn is_dead(&self, holder: &Beat, own: &Beat) -> bool {
        self.earlier.contains(holder.instance)
            && holder.instance != own.instance
            && holder.hostname == own.hostname
    }

    /// Remembers that this instance claims the name, before its first claim.
    fn remember_claim(&self, instance: InstanceId) {
        if let Err(error) = self.earlier.remember(instance) {
            tracing::warn!(
                %error,
                "can't write hub-claims.json into the state directory: if leafd is killed now, its successor may have to wait for the \
                 claim to expire"
            );
        }
    }

    /// Gives the claim back, so that the next instance need not wait, on this machine or another one.
    pub(crate) async fn release(&self, instance: InstanceId, stream_last: u64) {
        let release = fleet::Release {
            instance,
            stream_last,
        };
        match tokio::time::timeout(RELEASE_WITHIN, self.link.release(&release)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::info!(
                error = chain(&error),
                "the claim at the hub is not given back, and expires by itself"
            ),
            Err(_) => tracing::info!("the hub does not answer: the claim there expires by itself"),
        }
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

    /// Returns the error of a leaf and a copy with different events under this number.
    async fn differs(
        &self,
        sequence: u64,
        own: Own,
        journal: &Journal,
        stream: Option<&EventStream>,
    ) -> HomeError {
        let ours = own_event(sequence, own, journal, stream).await.ok().flatten();
        let theirs = self.link.read_copy(sequence).next().await.ok().flatten();
        let began = |record: Option<EventRecord>| {
            let epoch = i64::try_from(record?.epoch()?).ok()?;
            Timestamp::from_millisecond(epoch).ok()
        };
        HomeError::Differs {
            leaf: self.leaf.clone(),
            sequence,
            histories: began(theirs).zip(began(ours)).map(<[Timestamp; 2]>::from),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_that_began_apart_are_said_to_be() {
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let text = |histories| {
            HomeError::Differs {
                leaf: LeafName::new("edge-1").expect("a name"),
                sequence: 7,
                histories,
            }
            .to_string()
        };
        let apart = text(Some([at(60), at(120)]));
        assert!(
            apart.contains("began at 1970-01-01T00:01:00Z, and this leaf's at 1970-01-01T00:02:00Z"),
            "{apart}"
        );
        for same in [None, Some([at(60), at(60)])] {
            assert!(text(same).contains("an older image of this leaf was started"));
        }
        assert!(apart.contains("`leaf-hub reset edge-1` at the hub"));
    }
}

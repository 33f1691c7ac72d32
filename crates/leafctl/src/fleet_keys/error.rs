//! What can be wrong with the keys of a fleet.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use leaf_bus::identity::fleet::Shrunk;
use leaf_bus::resolver::ResolverError;
use leaf_trust::host_key::HostKeyError;

/// Why a command about the keys of a fleet failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// The directory is not one of a fleet.
    #[error(
        "{} is not the directory of a fleet, which has a fleet.json: name it with --dir or LEAFCTL_FLEET, or make one with `leafctl fleet init`",
        .0.display()
    )]
    NoFleet(PathBuf),
    /// The directory for a new fleet is not empty.
    #[error("{} is not empty, and no key is ever replaced: make the fleet in a new directory", .0.display())]
    NotEmpty(PathBuf),
    /// Another command works in the directory.
    #[error("another leafctl changes {} at the moment: try again when it has ended", .0.display())]
    InUse(PathBuf),
    /// A file can't be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file can't be written.
    #[error("can't write {}; when that is mended, run the command again", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Other users can read a key.
    #[error(
        "{} holds a secret key and has mode {mode:04o}, so other users can read it: run `chmod 600` on it, and if somebody may have \
         read it, see docs/keys.md (What a thief can do)",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// The file's mode.
        mode: u32,
    },
    /// A file is damaged.
    #[error("{} is damaged: {what}; restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage.
        what: String,
    },
    /// All users of an account are revoked, up to a time that is yet to come.
    #[error(
        "all users of the account {account} are revoked that are issued until {}: credentials that are given before would be void",
        Timestamp::from_second(*until).map_or_else(|_| until.to_string(), |time| time.to_string())
    )]
    AllRevoked {
        /// The account.
        account: &'static str,
        /// Until when, in seconds of the Unix epoch.
        until: i64,
    },
    /// A newer version made the directory.
    #[error("{} has format {found}, and this leafctl knows only {known}: use a newer one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format that is known.
        known: u64,
    },
    /// A key is not in the directory.
    #[error("{whose} ({key}) is not here: {} is missing. Bring it back for this command. Without it these still work: {works}", path.display())]
    MissingKey {
        /// Whose key it is.
        whose: &'static str,
        /// The public key.
        key: String,
        /// The file that it was in.
        path: PathBuf,
        /// The commands that work without it.
        works: &'static str,
    },
    /// The name is a user's already.
    #[error(
        "{name} is {kind} of this fleet already: give another name, or make a new key for it with `leafctl fleet rotate {name}`"
    )]
    Taken {
        /// The name.
        name: String,
        /// What has it.
        kind: &'static str,
    },
    /// The name is one of ours.
    #[error("{0} is a name of cim-leaf's own programs: give another one")]
    Reserved(String),
    /// Nobody has this name.
    #[error("nobody in this fleet is called {0}: `leafctl fleet show` lists all")]
    Nobody(String),
    /// A file of the output exists.
    #[error("{} exists, and is not replaced: move it away, or write elsewhere", .0.display())]
    Exists(PathBuf),
    /// The URL of the hub is none.
    #[error("{url:?} is not a URL of a hub: {why}")]
    HubUrl {
        /// The text.
        url: String,
        /// The reason.
        why: &'static str,
    },
    /// The host key of a leaf can't be used.
    #[error("{text} is not a host key that can be used")]
    HostKey {
        /// The argument.
        text: String,
        /// The reason.
        source: HostKeyError,
    },
    /// The leaf's host key is not known.
    #[error("the host key of {0} is not known here: give it with --host-key")]
    NoHostKey(String),
    /// There is nothing to revoke.
    #[error("{0} has no former key that is not revoked")]
    NoFormer(String),
    /// A life is too short or too long.
    #[error("a life of {0} days is not allowed: at least 1 and at most 3650")]
    Life(u32),
    /// The new JWT of an account would lose a revocation.
    #[error("the JWT of {account} is not signed, since it would let a revoked user in again")]
    Shrinks {
        /// The account.
        account: &'static str,
        /// The user.
        source: Shrunk,
    },
    /// A server has another JWT than the one that was pushed.
    #[error(
        "a server of the hub has another JWT of {account} than the one that was just pushed: somebody else pushes too; run `leafctl fleet \
         push` again"
    )]
    Other {
        /// The account.
        account: &'static str,
    },
    /// A server has a JWT of an account that this fleet's operator did not sign.
    #[error("the JWT of {account} that a server of the hub has can't be used: {why}")]
    Foreign {
        /// The account.
        account: &'static str,
        /// The reason.
        why: String,
    },
    /// The clock of this machine is not that of the hub.
    #[error(
        "the clock of this machine is {} s {} that of a server of the hub: set the one that is wrong, since revocations are dropped by the time",
        ahead.abs(), if *ahead > 0 { "ahead of" } else { "behind" }
    )]
    Clock {
        /// How far it is ahead, in seconds.
        ahead: i64,
    },
    /// The age file of a leaf is not where a new one would be put.
    #[error("{} is not there, so this is not the leaf's flake: name that with --flake, or give --host-key to make it anew", .0.display())]
    NoSecret(PathBuf),
    /// A text is not the public key of a user.
    #[error("{0:?} is not the public key of a user, which begins with U")]
    NoUserKey(String),
    /// The change is in the directory and was not pushed.
    #[error(
        "the change is in {} and not at the hub, where it has no effect yet: run `leafctl fleet push` {}",
        path.display(),
        if source.is_away() { "when the hub can be reached" } else { "when this is mended" }
    )]
    NotPushed {
        /// The directory.
        path: PathBuf,
        /// Why it was not pushed.
        source: Box<Self>,
    },
    /// The servers of the hub could not be asked.
    #[error(transparent)]
    Resolver(#[from] ResolverError),
    /// The certificate can't be made.
    #[error("the certificate can't be made: {0}")]
    Certificate(String),
}

impl KeysError {
    pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }

    pub(super) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }

    pub(super) fn damaged(path: &Path, what: impl ToString) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            what: what.to_string(),
        }
    }

    /// Whether the hub could not be reached.
    fn is_away(&self) -> bool {
        matches!(
            self,
            Self::Resolver(ResolverError::Connect(_) | ResolverError::Silent { .. })
        )
    }

    /// The exit code of leafctl.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NotPushed { source, .. } if !source.is_away() => source.exit_code(),
            Self::NoFleet(_)
            | Self::NoUserKey(_)
            | Self::HubUrl { .. }
            | Self::Life(_)
            | Self::HostKey { .. }
            | Self::NoHostKey(_) => 2,
            Self::NotPushed { .. } | Self::Resolver(ResolverError::Connect(_)) => 3,
            Self::Resolver(ResolverError::Silent { .. }) => 4,
            Self::Nobody(_) => 5,
            Self::NotEmpty(_)
            | Self::Exposed { .. }
            | Self::MissingKey { .. }
            | Self::Taken { .. }
            | Self::Reserved(_)
            | Self::Exists(_)
            | Self::NoFormer(_)
            | Self::Shrinks { .. }
            | Self::Clock { .. }
            | Self::NoSecret(_)
            | Self::Resolver(_) => 6,
            Self::InUse(_) => 8,
            Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => 8,
            _ => 1,
        }
    }
}

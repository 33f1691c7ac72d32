//! Why a command is not signed, though a leaf asks for it.

use std::path::PathBuf;

use leaf_core::id::LeafName;
use leaf_trust::ssh_signature::SignError;

use crate::gpg::GpgError;
use crate::ssh_agent::SshAgentError;

/// Why a command is not signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SigningError {
    /// The leaf accepts no signature.
    #[error("{leaf} needs a signature for {command}, and accepts none: {why}")]
    Refusing {
        /// The leaf.
        leaf: LeafName,
        /// The command.
        command: &'static str,
        /// The leaf's reason.
        why: String,
    },
    /// No key is at hand.
    #[error(
        "{leaf} needs a signature for {command}, by one of the keys {allowed}, and none of them is at hand: name one with --sign-with, or add it \
         to ssh-agent with ssh-add{because}"
    )]
    NoKey {
        /// The leaf.
        leaf: LeafName,
        /// The command.
        command: &'static str,
        /// The fingerprints of the keys that may sign.
        allowed: String,
        /// Why the keys of ssh-agent were not looked at, if they were not.
        because: String,
    },
    /// The named key may not sign.
    #[error("{leaf} does not let the key {key} ({}) sign commands of this caller{hint}", file.display())]
    NotAllowed {
        /// The leaf.
        leaf: LeafName,
        /// The fingerprint of the key.
        key: String,
        /// Its file, or how else it is named.
        file: PathBuf,
        /// What may be the cause.
        hint: &'static str,
    },
    /// The leaf gave a nonce that is none.
    #[error("{leaf} gave no nonce that can be signed")]
    Nonce {
        /// The leaf.
        leaf: LeafName,
        /// The reason.
        source: leaf_core::signed::NonceError,
    },
    /// A key's file can't be read.
    #[error("can't read the key {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// A key's file can't be used.
    #[error("can't sign with {}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The reason.
        source: SignError,
    },
    /// `gpg` can't be used.
    #[error(transparent)]
    Gpg(#[from] GpgError),
    /// The agent can't be used.
    #[error("can't sign by ssh-agent")]
    Agent(#[source] SshAgentError),
}

//! Records of accepted commands, which the journal keeps so that a repeated command id gets the first reply again.

use jiff::Timestamp;

use crate::id::{Caller, CommandId};

/// An accepted command, as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRecord {
    /// The caller that sent it.
    pub caller: Caller,
    /// Its id: the sender's own, or one made by the leaf.
    pub id: CommandId,
    /// Its noun and verb: `container.start`.
    pub noun_verb: String,
    /// Its [fingerprint](crate::command::Command::fingerprint), which distinguishes it from a different command with
    /// the same id.
    pub fingerprint: String,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// The key of the state's entry that its outcome waits for: `container.web`.
    pub target: Option<String>,
    /// The fingerprint of the key that signed it, if it was signed: `SHA256:…`.
    pub signer: Option<String>,
    /// Its reply, once it has been answered.
    pub outcome: Option<CommandOutcome>,
}

/// The reply to a command, which is sent again when the command is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOutcome {
    /// The reply's body.
    pub body: Vec<u8>,
    /// Whether the body is a problem (RFC 9457).
    pub problem: bool,
}

//! Records of accepted commands: what the journal keeps of a command, so that the same command id gets the same reply.

use jiff::Timestamp;

use crate::id::{Caller, CommandId};

/// An accepted command, as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRecord {
    /// The caller that sent it.
    pub caller: Caller,
    /// Its id: the sender's own, or one that the leaf made.
    pub id: CommandId,
    /// Its noun and verb: `container.start`.
    pub noun_verb: String,
    /// Its [fingerprint](crate::command::Command::fingerprint), which tells it from a different command with the same id.
    pub fingerprint: String,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// The key of the state's entry that its outcome waits for: `container.web`.
    pub target: Option<String>,
    /// Its reply, once there is one.
    pub outcome: Option<CommandOutcome>,
}

/// The reply to a command, which is given again when the command is sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOutcome {
    /// The reply's body.
    pub body: Vec<u8>,
    /// Whether the body is a problem (RFC 9457).
    pub problem: bool,
}

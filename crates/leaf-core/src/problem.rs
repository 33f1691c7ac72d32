//! What a command gets back when it did not work: a problem body (RFC 9457) with a stable code.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Every kind of error that a reply can carry. The code is stable; new ones may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// The body is not JSON, or not of the command's shape (an unknown field, a wrong type).
    Malformed,
    /// The shape is right, but a value can't be used.
    Invalid,
    /// The subject names no command of this leaf.
    UnknownCommand,
    /// The subject names a protocol version that this leaf doesn't speak.
    UnsupportedVersion,
    /// The body is larger than [`crate::command::MAX_COMMAND_BYTES`].
    TooLarge,
    /// The caller may not do this.
    Forbidden,
    /// What the command names does not exist.
    NotFound,
    /// What the command would make exists.
    AlreadyExists,
    /// The state is not what the sender saw (`if_generation`), or does not allow this now.
    Conflict,
    /// The command id was used before with another body.
    CommandIdReused,
    /// This leaf can't do that: it lacks a program, a right or a kernel feature.
    Unsupported,
    /// Too much is waiting, to be run or to be published. Try again later.
    Overloaded,
    /// The disk is too full to promise anything. Free some space; nothing else need be done.
    DiskFull,
    /// The leaf is stopping. Send it again in a moment.
    Draining,
    /// It was accepted, and did not work: see the detail. The leaf's fault or the host's, not the caller's.
    Failed,
    /// It was accepted, and is not done in time; it goes on.
    TimedOut,
}

impl ProblemCode {
    /// The code as text, as it stands in the problem body.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Invalid => "invalid",
            Self::UnknownCommand => "unknown_command",
            Self::UnsupportedVersion => "unsupported_version",
            Self::TooLarge => "too_large",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Conflict => "conflict",
            Self::CommandIdReused => "command_id_reused",
            Self::Unsupported => "unsupported",
            Self::Overloaded => "overloaded",
            Self::DiskFull => "disk_full",
            Self::Draining => "draining",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
        }
    }

    /// The status, by the meaning of HTTP's (RFC 9110); also the `Nats-Service-Error-Code` (ADR-32).
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::Invalid => 422,
            Self::UnknownCommand | Self::NotFound => 404,
            Self::UnsupportedVersion => 505,
            Self::TooLarge => 413,
            Self::Forbidden => 403,
            Self::AlreadyExists | Self::Conflict | Self::CommandIdReused => 409,
            Self::Unsupported => 501,
            Self::Overloaded | Self::Draining => 503,
            Self::DiskFull => 507,
            Self::Failed => 500,
            Self::TimedOut => 504,
        }
    }

    /// What the code means, in a few words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Malformed => "The command is malformed",
            Self::Invalid => "A value can't be used",
            Self::UnknownCommand => "There is no such command",
            Self::UnsupportedVersion => "The protocol version is not supported",
            Self::TooLarge => "The command is too large",
            Self::Forbidden => "The caller may not do this",
            Self::NotFound => "It does not exist",
            Self::AlreadyExists => "It exists already",
            Self::Conflict => "The state does not allow this now",
            Self::CommandIdReused => "The command id was used for another command",
            Self::Unsupported => "This leaf can't do that",
            Self::Overloaded => "The leaf has too much to do",
            Self::DiskFull => "The leaf's disk is full",
            Self::Draining => "The leaf is stopping",
            Self::Failed => "It did not work",
            Self::TimedOut => "It is not done in time",
        }
    }
}

/// A problem body (RFC 9457), with the extension `code`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{title}: {detail}")]
pub struct Problem {
    /// `urn:cim-leaf:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the code means, in a few words.
    pub title: String,
    /// The status, as HTTP's.
    pub status: u16,
    /// What happened to this command, and what to do about it.
    pub detail: String,
    /// This occurrence, as the leaf's log has it too: `urn:cim-leaf:command:` and the command id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The stable code.
    pub code: ProblemCode,
}

impl Problem {
    /// Returns a problem with this code; `detail` says what happened and what to do about it.
    #[must_use]
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:cim-leaf:problem:{}", code.as_str()),
            title: code.title().to_owned(),
            status: code.status(),
            detail: detail.into(),
            instance: None,
            code,
        }
    }

    /// Returns the problem with the command that it is about.
    #[must_use]
    pub fn about(mut self, command: &crate::id::CommandId) -> Self {
        self.instance = Some(format!("urn:cim-leaf:command:{command}"));
        self
    }
}

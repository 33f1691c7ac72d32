//! Problems: the bodies of error replies (RFC 9457), with a stable code.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text::shorten_text;

/// The kind of a problem. Codes are stable; new ones may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// The body is not JSON, or not of the command's shape (an unknown field, a wrong type).
    Malformed,
    /// The body has the command's shape, but a value is invalid.
    Invalid,
    /// The subject names no command of this leaf.
    UnknownCommand,
    /// The subject names a protocol version that this leaf doesn't speak.
    UnsupportedVersion,
    /// The body is larger than [`crate::command::MAX_COMMAND_BYTES`], or its event than the leaf's NATS server accepts.
    TooLarge,
    /// The caller may not do this.
    Forbidden,
    /// The command needs a signature on this leaf, and has none. `leaf.challenge` says what it must have.
    SignatureRequired,
    /// The command's signature is refused: see the detail.
    SignatureInvalid,
    /// Something named in the command does not exist.
    NotFound,
    /// Something that the command would create already exists.
    AlreadyExists,
    /// The state is not the one that the sender saw (`if_generation`), or does not allow this now.
    Conflict,
    /// The command id was used before with another body.
    CommandIdReused,
    /// This leaf doesn't support it: a program, a privilege or a kernel feature is missing.
    Unsupported,
    /// Too many jobs, events or bytes for the disk wait, or all container networks are in use. Try again later.
    Overloaded,
    /// The build would wait, and has `only_if_room`. Another leaf may have room.
    NoRoom,
    /// The disk is too full to record anything. Free some space; the leaf then continues by itself.
    DiskFull,
    /// The leaf is stopping. Send the command again in a moment.
    Draining,
    /// The command was accepted, then failed: see the detail. The fault is the leaf's or the host's, not the caller's.
    Failed,
    /// The command was accepted, and has not finished in time; it continues.
    TimedOut,
}

impl ProblemCode {
    /// Returns the code as text, as in the problem body.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Invalid => "invalid",
            Self::UnknownCommand => "unknown_command",
            Self::UnsupportedVersion => "unsupported_version",
            Self::TooLarge => "too_large",
            Self::Forbidden => "forbidden",
            Self::SignatureRequired => "signature_required",
            Self::SignatureInvalid => "signature_invalid",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Conflict => "conflict",
            Self::CommandIdReused => "command_id_reused",
            Self::Unsupported => "unsupported",
            Self::Overloaded => "overloaded",
            Self::NoRoom => "no_room",
            Self::DiskFull => "disk_full",
            Self::Draining => "draining",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
        }
    }

    /// Returns the status, with the meaning of HTTP's (RFC 9110); also the `Nats-Service-Error-Code` (ADR-32).
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::Invalid => 422,
            Self::UnknownCommand | Self::NotFound => 404,
            Self::UnsupportedVersion => 505,
            Self::TooLarge => 413,
            Self::SignatureRequired => 401,
            Self::Forbidden | Self::SignatureInvalid => 403,
            Self::AlreadyExists | Self::Conflict | Self::CommandIdReused => 409,
            Self::Unsupported => 501,
            Self::Overloaded | Self::NoRoom | Self::Draining => 503,
            Self::DiskFull => 507,
            Self::Failed => 500,
            Self::TimedOut => 504,
        }
    }

    /// Returns the meaning of the code in a few words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Malformed => "The command is malformed",
            Self::Invalid => "A value of the command can't be used",
            Self::UnknownCommand => "The leaf has no such command",
            Self::UnsupportedVersion => "The protocol version is not supported",
            Self::TooLarge => "The command is too large",
            Self::Forbidden => "The caller may not send the command",
            Self::SignatureRequired => "The command needs a signature",
            Self::SignatureInvalid => "The command's signature is refused",
            Self::NotFound => "What the command names does not exist",
            Self::AlreadyExists => "What the command would create exists already",
            Self::Conflict => "The present state does not allow the command",
            Self::CommandIdReused => "The command id was used for another command",
            Self::Unsupported => "This leaf does not support the command",
            Self::Overloaded => "The leaf has too much to do",
            Self::NoRoom => "The leaf has no room for the build",
            Self::DiskFull => "The leaf's disk is full",
            Self::Draining => "The leaf is stopping",
            Self::Failed => "The command was accepted, then failed",
            Self::TimedOut => "The command has not finished in time",
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
    /// The meaning of the code in a few words.
    pub title: String,
    /// The status, with the meaning of HTTP's.
    pub status: u16,
    /// What happened to this command, and what to do about it.
    pub detail: String,
    /// The id of this occurrence, which the leaf's log has too: `urn:cim-leaf:command:` and the command id.
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

    /// Returns the problem with at most about this many bytes of its detail.
    #[must_use]
    pub fn shortened(mut self, max_bytes: usize) -> Self {
        shorten_text(&mut self.detail, max_bytes);
        self
    }

    /// Returns the problem with the command that it is about.
    #[must_use]
    pub fn about(mut self, command: &crate::id::CommandId) -> Self {
        self.instance = Some(format!("urn:cim-leaf:command:{command}"));
        self
    }
}

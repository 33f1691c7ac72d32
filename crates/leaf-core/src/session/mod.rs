//! Sessions: a program's input and output over requests, as `docs/protocol/sessions.md` says.
//!
//! [`Session`] decides what each request is answered with, and what the program's runner is told. The messages are here, for both
//! sides; the [text](text::signed_text) that a client signs as well.

mod machine;
pub mod numbers;
pub mod text;
pub mod wire;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::job::ProgramExit;

pub use machine::{Action, Asked, Reply, Session, Ticket};

/// The version of the contract.
pub const VERSION: u32 = 1;
/// The noun of the requests of a session.
pub const NOUN: &str = "session";
/// The most bytes of one read or write.
pub const MAX_CHUNK_BYTES: usize = 32 * 1024;
/// The least of them.
pub const MIN_CHUNK_BYTES: usize = 1024;

/// The header with `JOB/ATTACHMENT`, or of an attach `JOB/NONCE`.
pub const SESSION_HEADER: &str = "Leaf-Session";
/// The header with the number of a request.
pub const NUMBER_HEADER: &str = "Leaf-Number";
/// The header with an offset: of a write, and of the output in a reply.
pub const OFFSET_HEADER: &str = "Leaf-Offset";
/// The header with the client's signature.
pub const SIGNATURE_HEADER: &str = "Leaf-Session-Signature";
/// The header of a reply with the beginning of the request's signature.
pub const REPLY_HEADER: &str = "Leaf-Session-Reply";
/// The header with the stream of the output in a reply.
pub const STREAM_HEADER: &str = "Leaf-Stream";
/// The header with the state, as JSON.
pub const STATE_HEADER: &str = "Leaf-Session-State";
/// How many characters of a request's signature its reply has.
pub const REPLY_CHARACTERS: usize = 22;

/// What a command asks for that begins a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionTask {
    /// The client's Ed25519 public key, made for this session: 32 bytes in base64.
    pub key: String,
    /// The terminal; without it the program has three pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Terminal>,
    /// How long the session lives without its client, in seconds: 30 to 86400; by default 60 with pipes, 600 with a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linger_seconds: Option<u32>,
    /// How long it lives after its client detached, in seconds: 60 to 604800; by default a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached_seconds: Option<u32>,
}

/// A terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Terminal {
    /// The program's `TERM`.
    pub term: String,
    /// The columns; 0 counts as 80.
    #[serde(default)]
    pub columns: u32,
    /// The rows; 0 counts as 24.
    #[serde(default)]
    pub rows: u32,
}

/// The largest number of columns or rows.
const MAX_SIZE: u32 = 1000;

/// Returns the size of a terminal: columns and rows. None is refused.
#[must_use]
pub fn size(columns: u32, rows: u32) -> (u16, u16) {
    let within = |given: u32, usual: u32| {
        let size = if given == 0 { usual } else { given.min(MAX_SIZE) };
        u16::try_from(size).unwrap_or(u16::MAX)
    };
    (within(columns, 80), within(rows, 24))
}

impl SessionTask {
    /// Checks what a caller gave.
    ///
    /// # Errors
    /// The reason, for the caller.
    pub fn check(&self) -> Result<(), String> {
        let key = data_encoding::BASE64.decode(self.key.as_bytes());
        if key.map_or(0, |key| key.len()) != 32 {
            return Err("the key of the session is not 32 bytes in base64".to_owned());
        }
        if let Some(terminal) = &self.terminal {
            let is_name = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
            if !(1..=32).contains(&terminal.term.len()) || !terminal.term.chars().all(is_name) {
                return Err("the terminal's name has 1 to 32 letters, digits and . _ + -".to_owned());
            }
        }
        let within = |seconds: Option<u32>, least: u32, most: u32, what: &str| match seconds {
            Some(seconds) if !(least..=most).contains(&seconds) => {
                Err(format!("{what} must be from {least} to {most}, not {seconds}"))
            }
            _ => Ok(()),
        };
        within(self.linger_seconds, 30, 86_400, "linger_seconds")?;
        within(self.detached_seconds, 60, 604_800, "detached_seconds")
    }

    /// Returns how long it lives without its client, in seconds.
    #[must_use]
    pub fn linger(&self) -> u32 {
        self.linger_seconds
            .unwrap_or(if self.terminal.is_some() { 600 } else { 60 })
    }

    /// Returns how long it lives after its client detached, in seconds.
    #[must_use]
    pub fn detached(&self) -> u32 {
        self.detached_seconds.unwrap_or(86_400)
    }
}

/// The body of `session.attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The versions of the contract that the client speaks.
    pub versions: Vec<u32>,
    /// The most bytes of a message's body that its server takes.
    pub chunk_bytes: usize,
    /// The size of its terminal: columns and rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<(u32, u32)>,
}

/// The reply to `session.attach`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The nonce that an attach needs: the reply to one without has nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// The id of the attachment.
    #[serde(default)]
    pub attachment: String,
    /// The version that both speak.
    #[serde(default)]
    pub version: u32,
    /// What can be read.
    #[serde(default)]
    pub stdout: wire::Kept,
    /// What can be read.
    #[serde(default)]
    pub stderr: wire::Kept,
    /// The number of bytes of standard input that were taken.
    #[serde(default)]
    pub stdin: u64,
    /// The most bytes of one read or write.
    #[serde(default)]
    pub chunk_bytes: usize,
    /// Whether the program has a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// The state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
}

/// The body of `session.read`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// All of standard output before this offset has arrived.
    pub stdout: u64,
    /// All of standard error before this offset has arrived.
    pub stderr: u64,
    /// The number of the last state that has arrived.
    #[serde(default)]
    pub state: u64,
    /// Whether output may be in the reply.
    pub take: bool,
    /// Whether output is sent again from what has arrived on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// How long it waits at most, in milliseconds.
    pub wait_ms: u64,
}

/// The body of `session.control`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Its number: 1, 2, … in an attachment.
    pub number: u64,
    /// What to do.
    #[serde(rename = "do")]
    pub what: Do,
}

/// What a control does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Do {
    /// Standard input ends at this offset.
    EndInput(u64),
    /// The terminal has this size: columns and rows.
    Resize(u32, u32),
    /// A signal, such as `INT`.
    Signal(String),
    /// The client leaves, and the session goes on.
    Detach,
    /// The session ends: the job is cancelled.
    End,
}

/// The signals that a client can send.
pub const SIGNALS: [&str; 9] = [
    "HUP", "INT", "QUIT", "TERM", "KILL", "USR1", "USR2", "TSTP", "CONT",
];

/// The reply to `session.write`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The number of bytes that were taken.
    pub end: u64,
    /// Whether the program takes no more.
    pub closed: bool,
}

/// The reply to `session.control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The highest number that was done.
    pub done: u64,
}

/// The state of a session, as its client is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// It counts up.
    pub number: u64,
    /// The phase.
    #[serde(flatten)]
    pub phase: Phase,
}

/// The phase of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// Nix builds what the program needs.
    Building,
    /// The program runs.
    Running,
    /// The program has ended; there may be more output.
    Exited {
        /// How.
        exit: ProgramExit,
        /// The length of standard output.
        stdout: u64,
        /// The length of standard error.
        stderr: u64,
    },
    /// The attachment has ended.
    Ended {
        /// Why.
        reason: Reason,
        /// Whether to attach again.
        again: bool,
    },
}

/// Why an attachment has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The client has all.
    Done,
    /// Another attachment came.
    Replaced,
    /// The client detached.
    Detached,
    /// The client was not heard.
    Lost,
    /// leafd was restarted.
    Restarted,
    /// The job has ended otherwise: its record says how.
    JobEnded,
}

impl Reason {
    /// Returns the phase of an attachment that has ended so.
    #[must_use]
    pub fn phase(self) -> Phase {
        Phase::Ended {
            reason: self,
            again: matches!(self, Self::Lost | Self::Restarted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_size_is_refused() {
        assert_eq!(size(0, 0), (80, 24));
        assert_eq!(size(0, 7), (80, 7));
        assert_eq!(size(u32::MAX, 1), (1000, 1));
    }

    #[test]
    fn what_begins_no_session_is_refused_with_the_reason() {
        let good = SessionTask {
            key: data_encoding::BASE64.encode(&[7; 32]),
            terminal: Some(Terminal {
                term: "xterm-256color".to_owned(),
                columns: 0,
                rows: 0,
            }),
            linger_seconds: None,
            detached_seconds: Some(60),
        };
        assert_eq!((good.check(), good.linger(), good.detached()), (Ok(()), 600, 60));
        let with = |change: fn(&mut SessionTask)| {
            let mut task = good.clone();
            change(&mut task);
            task.check().expect_err("refused")
        };
        for (why, says) in [
            (with(|task| task.key.clear()), "32 bytes"),
            (
                with(|task| task.terminal.as_mut().expect("one").term = "x\ny".to_owned()),
                "name",
            ),
            (with(|task| task.linger_seconds = Some(29)), "linger_seconds"),
            (
                with(|task| task.detached_seconds = Some(604_801)),
                "detached_seconds",
            ),
        ] {
            assert!(why.contains(says), "{why}");
        }
    }
}

//! The kinds of errors, and their exit codes.
//!
//! | code | kind |
//! |---|---|
//! | 0 | success |
//! | 1 | an unexpected error; the text describes it |
//! | 2 | invalid command line |
//! | 3 | no connection: no server, refused credentials, a wrong certificate |
//! | 4 | no reply: the leaf is absent, or too slow |
//! | 5 | not found |
//! | 6 | refused: a value, the state or the caller's permissions don't allow it |
//! | 7 | accepted, then failed |
//! | 8 | temporarily unavailable: disk full, overloaded, stopping |
//! | 9 | several leaves failed, in different ways |
//! | 130 | interrupted |
//!
//! When the reader of the output has exited (`leafctl … | head -1`), the command ends without an error.

use std::borrow::Cow;

use leaf_bus::client::{CallError, ClientError};
use leaf_bus::connect::ConnectError;
use leaf_bus::context::ContextError;
use leaf_bus::stream::StreamError;
use leaf_core::error::chain;
use leaf_core::id::{CommandId, JobId};
use leaf_core::problem::{Problem, ProblemCode};
use serde_json::{Value, json};

use crate::fleet_keys::KeysError;
use crate::signing_error::SigningError;

/// The exit code of a command that was interrupted.
const INTERRUPTED: u8 = 130;
/// The exit code where several leaves failed in different ways.
const DIFFERENT: u8 = 9;

/// An error of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line is invalid.
    #[error("{0}")]
    Usage(String),
    /// The context does not exist, or is invalid.
    #[error("can't use the context")]
    Context(#[from] ContextError),
    /// No context is named or selected, and this user may not use the leaf on this host.
    #[error(
        "no --context, no LEAFCTL_CONTEXT and no selected context names a server, and this user can't speak to the leaf on \
         this host"
    )]
    LocalLeaf(#[source] ContextError),
    /// No connection to NATS.
    #[error("can't connect to NATS")]
    Connect {
        /// The cause.
        source: ConnectError,
        /// A hint, if no flag names a server.
        hint: Option<&'static str>,
    },
    /// The leaf is absent.
    #[error("{0}")]
    NoLeaf(String),
    /// The thing that was named does not exist.
    #[error("{0}")]
    NotFound(String),
    /// It is refused here: a leaf's host key is not known, or is another one.
    #[error("{0}")]
    Refused(String),
    /// The leaf's error reply.
    #[error("{}", .0.detail)]
    Problem(Problem),
    /// A job failed.
    #[error("job {job} {phase}: {reason}")]
    Job {
        /// The job's id.
        job: JobId,
        /// The phase in which it ended.
        phase: String,
        /// The reason.
        reason: String,
    },
    /// The request could not be sent, or its reply could not be read.
    #[error(transparent)]
    Call(CallError),
    /// The reply to a change was lost.
    #[error("{how}")]
    Lost {
        /// The command's id.
        id: CommandId,
        /// Whether it is the id of a command for several leaves.
        is_shared: bool,
        /// How it was lost.
        how: Box<CallError>,
    },
    /// Some of several leaves refused the command or did not reply.
    #[error("{} of {leaves} leaves did not carry out the command", failed.len())]
    Leaves {
        /// The error of each.
        failed: Vec<Self>,
        /// The number of leaves.
        leaves: usize,
    },
    /// A stream could not be read.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The rights of a NATS user are not as they must be.
    #[error("{wrong} of {of} rights are not as they must be")]
    Rights {
        /// How many are not.
        wrong: usize,
        /// How many were tried.
        of: usize,
    },
    /// A command about the keys of a fleet failed.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// A leaf asks for a signature, and none was made.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The program that was run ended with this code. It is no error of leafctl's, and nothing is printed.
    #[error("the program ended with code {0}")]
    Exited(u8),
    /// The command was interrupted by Ctrl-C.
    #[error("interrupted{}", .note.as_ref().map_or(String::new(), |note| format!(": {note}")))]
    Interrupted {
        /// A note on what continues.
        note: Option<String>,
    },
    /// Printing failed.
    #[error("the result can't be printed")]
    Print(#[from] std::io::Error),
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Problem(problem) => Self::Problem(problem),
            other => Self::Call(other),
        }
    }
}

impl Error {
    /// Returns whether the output was closed by its reader.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Print(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// Returns a hint for the user.
    pub(crate) fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Connect { hint, .. } => hint.map(Cow::from),
            Self::LocalLeaf(_) => Some(
                "root and members of the group leafd speak to it without a context; or name one with --context".into(),
            ),
            // One leaf's own id is made from the shared one, where several leaves are selected.
            Self::Lost {
                id, is_shared: true, ..
            } => Some(
                format!(
                    "repeat the command with the same --leaf, --selector or --all-leaves and --command-id {id}, and each leaf \
                     carries it out once"
                )
                .into(),
            ),
            Self::Lost { id, .. } => {
                Some(format!("repeat the command with --command-id {id}, and it is carried out once").into())
            }
            Self::Leaves { failed, .. } => failed
                .iter()
                .find(|error| matches!(error, Self::Lost { .. }))
                .and_then(Self::hint),
            _ => None,
        }
    }

    /// Returns it as a document: the leaf's problem, or one of the same form.
    pub(crate) fn document(&self) -> Value {
        let mut body = match self {
            Self::Problem(problem) => serde_json::to_value(problem).expect("a problem has string keys only"),
            other => json!({ "title": other.title(), "detail": chain(other) }),
        };
        body["exit_code"] = self.exit_code().into();
        let lost = match self {
            Self::Leaves { failed, .. } => failed.iter().find_map(Self::lost),
            other => other.lost(),
        };
        if let Some(id) = lost {
            body["command_id"] = id.as_str().into();
        }
        body
    }

    /// Returns the command's id if its reply was lost.
    fn lost(&self) -> Option<&CommandId> {
        match self {
            Self::Lost { id, .. } => Some(id),
            _ => None,
        }
    }

    /// Returns the kind of the error in a few words, as the title of a problem: the same for each error of an exit code.
    pub(crate) fn title(&self) -> &str {
        match (self, self.exit_code()) {
            (Self::Problem(problem), _) => problem.title.as_str(),
            (Self::Rights { .. }, _) => "The rights of the NATS user are not as they must be",
            (_, 2) => "The command line is invalid",
            (_, 3) => "There is no connection to NATS",
            (_, 4) => "There is no reply",
            (_, 5) => "What the command names does not exist",
            (_, 6) => "The command is refused",
            (_, 7) => "The command was accepted, then failed",
            (_, 9) => "Several leaves failed in different ways",
            (_, 130) => "The command was interrupted",
            _ => "An unexpected error",
        }
    }

    /// Returns the exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Print(_) | Self::Rights { .. } => 1,
            Self::Usage(_) => 2,
            Self::Keys(error) => error.exit_code(),
            Self::Context(_) | Self::LocalLeaf(_) | Self::Connect { .. } => 3,
            Self::NoLeaf(_) | Self::Lost { .. } => 4,
            Self::NotFound(_) => 5,
            Self::Signing(_) => 6,
            Self::Refused(_) => 6,
            Self::Job { .. } => 7,
            Self::Exited(code) => *code,
            Self::Interrupted { .. } => INTERRUPTED,
            Self::Leaves { failed, .. } => {
                let mut codes = failed.iter().map(Self::exit_code);
                let first = codes.next().unwrap_or(DIFFERENT);
                if failed
                    .iter()
                    .any(|error| matches!(error, Self::Interrupted { .. }))
                {
                    INTERRUPTED
                } else if codes.all(|code| code == first) {
                    first
                } else {
                    DIFFERENT
                }
            }
            Self::Call(error) => match error {
                CallError::NoLeaf(_) | CallError::TimedOut { .. } | CallError::Disconnected => 4,
                CallError::NoPermission { .. } | CallError::TooLarge(_) => 6,
                _ => 1,
            },
            Self::Client(ClientError::Stream(error)) => match error {
                StreamError::Unanswered { .. } | StreamError::Disconnected => 4,
                StreamError::NoStream { .. } => 5,
                StreamError::NoPermission { .. } => 6,
                _ => 1,
            },
            Self::Client(_) => 1,
            Self::Problem(problem) => match problem.code {
                ProblemCode::NotFound => 5,
                ProblemCode::Failed => 7,
                ProblemCode::TimedOut => 4,
                ProblemCode::Overloaded
                | ProblemCode::NoRoom
                | ProblemCode::DiskFull
                | ProblemCode::Draining => 8,
                _ => 6,
            },
        }
    }
}

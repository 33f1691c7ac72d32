//! What can go wrong, and the exit code of each kind.
//!
//! | code | kind |
//! |---|---|
//! | 0 | it worked |
//! | 1 | something unexpected; the text says what |
//! | 2 | the command line can't be used |
//! | 3 | no connection: no server, refused credentials, a wrong certificate |
//! | 4 | no answer: the leaf isn't there, or not in time |
//! | 5 | what was named does not exist |
//! | 6 | refused: a value, the state or the caller's rights don't allow it |
//! | 7 | it was accepted, and did not work |
//! | 8 | the leaf can't just now: disk full, overloaded, stopping |
//! | 130 | interrupted by Ctrl-C |
//!
//! A reader of the output that has gone (`leafctl … | head -1`) ends a command without an error.

use leaf_bus::client::{CallError, ClientError};
use leaf_bus::connect::ConnectError;
use leaf_bus::context::ContextError;
use leaf_bus::stream::StreamError;
use leaf_core::id::JobId;
use leaf_core::problem::{Problem, ProblemCode};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line can't be used.
    #[error("{0}")]
    Usage(String),
    /// The context can't be used.
    #[error("the context can't be used")]
    Context(#[from] ContextError),
    /// No connection.
    #[error("there is no connection to NATS")]
    Connect {
        /// Why.
        source: ConnectError,
        /// What to try, where the flags say nothing of a server.
        hint: Option<&'static str>,
    },
    /// The leaf isn't there.
    #[error("{0}")]
    NoLeaf(String),
    /// What was named does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The leaf said no, and why.
    #[error("{}", .0.detail)]
    Problem(Problem),
    /// A job did not work.
    #[error("job {job} {phase}: {reason}")]
    Job {
        /// The job's id.
        job: JobId,
        /// How it ended.
        phase: String,
        /// Why.
        reason: String,
    },
    /// The request could not be sent, or its answer not be read.
    #[error(transparent)]
    Call(CallError),
    /// A stream could not be read.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Somebody pressed Ctrl-C.
    #[error("interrupted{}", .note.as_ref().map_or(String::new(), |note| format!(": {note}")))]
    Interrupted {
        /// What goes on nevertheless.
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
    /// Whether it is only that nobody reads the output any more.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Print(error) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// What a person may try.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Connect { hint, .. } => *hint,
            _ => None,
        }
    }

    /// The exit code of this kind of error.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Print(_) => 1,
            Self::Usage(_) => 2,
            Self::Context(_) | Self::Connect { .. } => 3,
            Self::NoLeaf(_) => 4,
            Self::NotFound(_) => 5,
            Self::Job { .. } => 7,
            Self::Interrupted { .. } => 130,
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
                ProblemCode::Overloaded | ProblemCode::DiskFull | ProblemCode::Draining => 8,
                _ => 6,
            },
        }
    }
}

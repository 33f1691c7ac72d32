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

use leaf_bus::client::{CallError, ClientError};
use leaf_bus::connect::ConnectError;
use leaf_bus::context::ContextError;
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
    Connect(#[from] ConnectError),
    /// The leaf isn't there.
    #[error("{0}")]
    NoLeaf(String),
    /// The leaf said no.
    #[error("{0}")]
    Problem(Problem),
    /// A job did not work.
    #[error("job {job} {phase}: {reason}")]
    Job {
        /// Which one.
        job: JobId,
        /// How it ended.
        phase: String,
        /// Why.
        reason: String,
    },
    /// The request could not be sent, or its answer not be read.
    #[error("the leaf's answer did not come")]
    Call(CallError),
    /// A stream could not be read.
    #[error("the stream can't be read")]
    Client(#[from] ClientError),
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
    /// The exit code of this kind of error.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Print(_) | Self::Client(_) => 1,
            Self::Usage(_) => 2,
            Self::Context(_) | Self::Connect(_) => 3,
            Self::NoLeaf(_) | Self::Call(_) => 4,
            Self::Job { .. } => 7,
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

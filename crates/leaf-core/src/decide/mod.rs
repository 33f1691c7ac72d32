//! What a command does, decided against the state alone; one module a noun.
//!
//! [`decide`] says which facts are to be recorded, and where the reply comes from. Nothing has happened yet when it returns:
//! the [engine](crate::engine) records the facts, and what follows from them follows their commit.

mod container;
mod hardware;
mod job;
mod leaf;
mod nix;
mod pool;

pub use container::{LogQuery, adopt};
pub use job::{after_job, needless_jobs};
pub use pool::AddressPool;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::command::Command;
use crate::container::Container;
use crate::event::Fact;
use crate::id::{Caller, ContainerName, JobId};
use crate::problem::{Problem, ProblemCode};
use crate::runtime::Runtime;
use crate::state::{RawEntry, State};

/// What a decision needs to know beside the state and the command.
#[derive(Debug, Clone)]
pub struct Context {
    /// Who asks.
    pub caller: Caller,
    /// The leaf's clock.
    pub now: Timestamp,
    /// An id that nothing else has, for what the command makes.
    pub fresh_id: Uuid,
    /// What runs the containers of the host.
    pub runtime: Runtime,
    /// Where containers get their addresses from.
    pub pool: AddressPool,
    /// How many jobs may wait.
    pub max_queued_jobs: usize,
    /// How long a job may take if the command doesn't say, in seconds.
    pub job_timeout_seconds: u32,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What is to be recorded with the acceptance of the command. All else that is to be done follows from the facts.
    pub facts: Vec<Fact>,
    /// Where the reply comes from.
    pub reply: Reply,
}

/// Where the reply to a command comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It is known.
    Known(Box<serde_json::Value>),
    /// It is the leaf's report on itself.
    LeafReport,
    /// It is the report on a job, with its progress.
    JobReport(JobId),
    /// It is the container as the facts leave it.
    Container(ContainerName),
    /// The host answers this question.
    FromHost(Question),
    /// It comes when this target has settled.
    When(Target),
    /// The host is searched for a foreign container of this name; what is found [decides](adopt).
    AfterSearch(ContainerName),
}

/// What a command can wait for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A container that is to settle.
    Container(ContainerName),
    /// A job that is to end; it is to be cancelled if it runs.
    Job(JobId),
    /// A scan of the hardware.
    Hardware,
}

/// A question that only the host can answer; it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// A page of a job's log.
    JobLog {
        /// The job.
        job: JobId,
        /// The first byte of the page.
        offset: u64,
        /// Whether the job has ended.
        ended: bool,
    },
    /// A page of a container's log.
    ContainerLog(LogQuery),
    /// The resources that a container uses.
    ContainerStats(ContainerName),
    /// The leaf's containers, given here, and the foreign ones of the host.
    Containers(Vec<Container>),
}

/// Decides what a command does.
///
/// # Errors
/// A [`Problem`] when the command can't be accepted: the caller's fault, and nothing has changed.
pub fn decide(state: &State, command: &Command, context: &Context) -> Result<Decision, Problem> {
    if let Some(RawEntry { key, reason }) = state.raw_entry_of(command.about()) {
        return Err(Problem::new(
            ProblemCode::Unsupported,
            format!(
                "{key} was written by a newer leafd, and this one can't read it ({reason}): it is left as it is until a \
                 leafd runs here that can"
            ),
        ));
    }
    match command {
        Command::Leaf(command) => Ok(leaf::decide(command)),
        Command::Hardware(command) => hardware::decide(state, command),
        Command::Container(command) => container::decide(state, command, context),
        Command::Nix(command) => nix::decide(state, command, context),
        Command::Job(command) => job::decide(state, command, context),
    }
}

/// Returns the decision that records nothing.
fn only(reply: Reply) -> Decision {
    Decision {
        facts: Vec::new(),
        reply,
    }
}

fn known(value: &impl Serialize) -> Reply {
    Reply::Known(Box::new(
        serde_json::to_value(value).expect("a reply has string keys only"),
    ))
}

fn conflict(detail: String) -> Problem {
    Problem::new(ProblemCode::Conflict, detail)
}

fn invalid(detail: String) -> Problem {
    Problem::new(ProblemCode::Invalid, detail)
}

fn not_found(detail: String) -> Problem {
    Problem::new(ProblemCode::NotFound, detail)
}

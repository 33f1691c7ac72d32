//! What a command does, decided against the state alone; one module a noun.
//!
//! [`decide`] answers a query from the state, or says which facts are to be recorded and what comes next. Nothing has
//! happened yet when it returns: the facts are committed first, then the next step is taken.

mod container;
mod hardware;
mod job;
mod leaf;
mod nix;
mod pool;

pub use container::{LogQuery, adopt};
pub use job::{after_job, job_accepted, needless_jobs};
pub use pool::AddressPool;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::command::Command;
use crate::container::Container;
use crate::event::Fact;
use crate::host_op::Runtime;
use crate::id::{Caller, ContainerName, JobId};
use crate::problem::{Problem, ProblemCode};
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
    /// What is to be recorded with the acceptance of the command.
    pub facts: Vec<Fact>,
    /// What comes after the record.
    pub next: Next,
}

/// What comes after a command's facts are recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The answer is known.
    Reply(Box<serde_json::Value>),
    /// The leaf's report on itself: the loop knows the rest of it.
    ShowLeaf,
    /// Look at the hardware, then answer with what has changed.
    Rescan,
    /// Make the container what it is wanted to be, then answer with it.
    Reconcile(ContainerName),
    /// Answer with the container as the facts make it, and make it so: by a job that is in the queue, or by steps.
    Create(ContainerName),
    /// Answer with the job's id; the job is in the queue.
    Queue(JobId),
    /// End the job, then answer with it.
    Cancel(JobId),
    /// Answer with the job and how far it is.
    ShowJob(JobId),
    /// Answer with a part of the job's log.
    ReadJobLog(JobId, u64),
    /// Answer with a part of the container's log.
    ReadContainerLog(LogQuery),
    /// Answer with these containers, and with those on the host that are not this leaf's.
    ListContainers(Vec<Container>),
    /// Answer with what the container uses.
    ReadContainerStats(ContainerName),
    /// Look at the container of this name that is not this leaf's, and [take it over](adopt).
    Adopt(ContainerName),
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
fn only(next: Next) -> Decision {
    Decision {
        facts: Vec::new(),
        next,
    }
}

fn reply(value: &impl Serialize) -> Next {
    Next::Reply(Box::new(
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

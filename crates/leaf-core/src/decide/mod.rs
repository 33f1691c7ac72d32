//! Decides commands against the state alone, in one module per noun.
//!
//! [`decide`] returns the facts to record and the source of the reply. Nothing has happened yet when it returns: the
//! [engine](crate::engine) records the facts, and everything else follows their commit.

mod change;
mod container;
mod hardware;
mod job;
mod leaf;
mod nix;
mod secret;
mod system;

pub use change::{
    ChangeStep, DEFAULT_SECONDS, Move, ObservedChanges, SystemOrder, change_armed, change_confirmed,
    changes_observed,
};
pub use container::{LogQuery, adopt};
pub use job::{after_job, needless_jobs};
pub use nix::not_allowed_now;
pub use secret::{SecretChange, secret_changed, secrets_observed};
pub use system::DEFAULT_SWITCH_SECONDS;

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::address_pool::AddressPool;
use crate::command::Command;
use crate::container::Container;
use crate::event::Fact;
use crate::id::{Caller, ContainerName, JobId, LeafName, StorePath};
use crate::job::NixPolicy;
use crate::labels::Labels;
use crate::placement::pressure::Pressure;
use crate::placement::room::JobRules;
use crate::problem::{Problem, ProblemCode};
use crate::runtime::Runtime;
use crate::state::{RawEntry, State};
use crate::transfer::SentPath;

/// The inputs of a decision apart from the state and the command.
#[derive(Debug, Clone)]
pub struct Context {
    /// The caller of the command.
    pub caller: Caller,
    /// The leaf's name.
    pub leaf: LeafName,
    /// Whether the hub agent says when a leaf is gone, so that another one may take over its builds.
    pub works: bool,
    /// The labels of the leaf's settings.
    pub labels: Labels,
    /// The leaf's clock.
    pub now: Timestamp,
    /// A fresh id for what the command creates.
    pub fresh_id: Uuid,
    /// The runtime of the host's containers.
    pub runtime: Runtime,
    /// The address pool of the containers.
    pub pool: AddressPool,
    /// The networks and names in use on the host, which a new container can't have.
    pub in_use: InUse,
    /// What the leaf has for jobs, and its rules for them.
    pub jobs: Arc<JobRules>,
    /// The number of running jobs that take a place: programs that run take none.
    pub in_places: usize,
    /// What callers may build and evaluate.
    pub nix_policy: NixPolicy,
    /// The pressure of the host; `None` where its kernel does not measure it, or the command does not depend on it.
    pub pressure: Option<Pressure>,
    /// The problem for which the leaf refuses jobs at the moment, if it does.
    pub refusing: Option<Problem>,
}

/// The networks and names that are in use on a host, as observed when a command arrives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InUse {
    /// The addresses and routes of the host, and the addresses in the files of all containers, foreign ones included.
    pub networks: Vec<Ipv4Net>,
    /// The names that this leaf can't give to a new container, with what has them.
    pub names: BTreeMap<ContainerName, NameHolder>,
}

/// The holder of a container's name on the host, other than this leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameHolder {
    /// A foreign container.
    Foreign,
    /// A foreign container that the host's NixOS configuration declares.
    Declared,
    /// An entry of the directory of `NAME.conf` files that can't be read, with its path and the reason.
    Unreadable(String),
}

/// The decision on a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The facts to record when the command is accepted. Everything else follows from the facts.
    pub facts: Vec<Fact>,
    /// The source of the reply.
    pub reply: Reply,
}

/// The source of the reply to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The reply is known.
    Known(Box<serde_json::Value>),
    /// The leaf's report on itself.
    LeafReport,
    /// The report on a job, with its progress.
    JobReport(JobId),
    /// The container after the facts are applied.
    Container(ContainerName),
    /// The report on a container, with the end of its credentials.
    ContainerReport(ContainerName),
    /// The answer of the host to this question.
    FromHost(Question),
    /// The outcome, once this target has settled.
    When(Target),
    /// [Decided](adopt) after a search of the host for a foreign container of this name.
    AfterSearch(ContainerName),
    /// The outcome of this step of a change that can cut the leaf off, once the helper has carried it out.
    WhenChanged(ChangeStep),
    /// The outcome of this change, once the helper has made it: [the facts](secret_changed) follow from what it reports.
    WhenMade(SecretChange),
}

/// The target that a command waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A container, until it has settled.
    Container(ContainerName),
    /// A job, which is cancelled, until it has ended.
    Job(JobId),
    /// A hardware scan.
    Hardware,
}

/// A query that is answered from the host; it changes nothing.
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
    /// The activities of a running job.
    JobActivities {
        /// The job.
        job: JobId,
        /// The time.
        now: Timestamp,
        /// Whether it runs.
        running: bool,
    },
    /// A page of a container's log.
    ContainerLog(LogQuery),
    /// A container's resource usage.
    ContainerStats(ContainerName),
    /// What a signature of this caller must have.
    Challenge(Caller),
    /// The leaf's containers, given here, and the host's foreign ones.
    Containers(Vec<Container>),
    /// The host key that secrets are encrypted to.
    Recipient,
    /// The host's NixOS systems.
    Generations,
    /// The store paths that the leaf lacks, of those that this caller means to send. They have been checked.
    Lacking(Caller, Vec<SentPath>),
    /// The sizes, hashes and references of the store paths that this caller asks for.
    Stored {
        /// The caller.
        caller: Caller,
        /// The paths, which have been checked.
        paths: Vec<StorePath>,
        /// Whether their closure is listed.
        closure: bool,
    },
}

/// Decides a command.
///
/// # Errors
/// A [`Problem`] when the command is not accepted. It is the caller's fault, and nothing has changed.
pub fn decide(state: &State, command: &Command, context: &Context) -> Result<Decision, Problem> {
    if let Some(raw) = state.raw_entry_of(command.about()) {
        return Err(unreadable(&raw));
    }
    match command {
        Command::Leaf(command) => leaf::decide(state, command, context),
        Command::Hardware(command) => hardware::decide(state, command),
        Command::Container(command) => container::decide(state, command, context),
        Command::Nix(command) => nix::decide(state, command, context),
        Command::Job(command) => job::decide(state, command, context),
        Command::Secret(command) => secret::decide(state, command),
        Command::System(command) => system::decide(state, command, context),
    }
}

/// Returns the problem with a command that would change what a newer leafd wrote.
fn unreadable(RawEntry { key, reason }: &RawEntry) -> Problem {
    Problem::new(
        ProblemCode::Unsupported,
        format!(
            "{key} was written by a newer leafd, and this one can't read it ({reason}): it is left unchanged until a leafd \
            that can read it runs here"
        ),
    )
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

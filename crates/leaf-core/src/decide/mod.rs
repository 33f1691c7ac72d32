//! What a command does, decided against the state alone.
//!
//! [`decide`] answers a query from the state, or says which facts are to be recorded and what comes next. Nothing has
//! happened yet when it returns: the facts are committed first, then the next step is taken.

mod containers;
mod pool;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::command::{Command, ContainerHistory, DeviceList, JobAccepted, JobList};
use crate::container::{Container, DesiredRun};
use crate::event::{ContainerBuilt, ContainerFailed, ContainerStep, Fact, JobCancelled, JobQueued};
use crate::host_op::Runtime;
use crate::id::{Caller, ContainerName, JobId};
use crate::job::{BuildResult, BuildTask, Installable, Job, JobPhase, JobResult, Task};
use crate::problem::{Problem, ProblemCode};
use crate::spec::{ContainerSpec, SpecRun, spec_diff};
use crate::state::State;

use containers::{change, check_spec, create, find_container, rollback, want, without_revisions};

pub use containers::adopt;
pub use pool::AddressPool;

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

/// Which part of a container's log is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// Whose.
    pub name: ContainerName,
    /// At most this many lines, the last ones, or with a cursor the first ones after it.
    pub lines: u32,
    /// Only what was written at this time or later.
    pub since: Option<Timestamp>,
    /// Only what follows the answer that gave this cursor.
    pub cursor: Option<String>,
}

/// Lines of a container's console if the command doesn't say.
const DEFAULT_LOG_LINES: u32 = 200;

/// The longest time that a job may ask for, in seconds: a week.
const MAX_JOB_SECONDS: u32 = 7 * 24 * 3600;

/// Decides what a command does.
///
/// # Errors
/// A [`Problem`] when the command can't be accepted: the caller's fault, and nothing has changed.
pub fn decide(state: &State, command: &Command, context: &Context) -> Result<Decision, Problem> {
    let only = |next| {
        Ok(Decision {
            facts: Vec::new(),
            next,
        })
    };
    match command {
        Command::ShowLeaf(_) => only(Next::ShowLeaf),
        Command::ListHardware(_) => only(reply(&DeviceList {
            devices: state.devices.values().cloned().collect(),
        })),
        Command::ShowHardware(c) => match state.devices.get(&c.id) {
            Some(device) => only(reply(device)),
            None => Err(not_found(format!(
                "there is no device {}; hardware.list shows all",
                c.id
            ))),
        },
        Command::RescanHardware(_) => only(Next::Rescan),
        Command::CreateContainer(c) => {
            let run = if c.start {
                SpecRun::Running
            } else {
                SpecRun::Stopped
            };
            let spec = ContainerSpec {
                source: c.source.clone(),
                run,
                options: c.options.clone(),
            };
            create(state, &c.name, spec, context)
        }
        Command::ApplyContainer(c) => match (state.containers.get(&c.name), c.if_generation) {
            (None, None | Some(0)) => create(state, &c.name, c.spec.clone(), context),
            (None, Some(seen)) => Err(conflict(format!(
                "container {} is not at generation {seen}: there is none of this name",
                c.name
            ))),
            (Some(_), seen) => change(state, &c.name, seen, false, context, |_| Ok(c.spec.clone())),
        },
        Command::UpdateContainer(c) => change(state, &c.name, c.if_generation, true, context, |spec| {
            Ok(ContainerSpec {
                source: c.source.clone().unwrap_or(spec.source),
                ..spec
            })
        }),
        Command::SetContainer(c) => change(state, &c.name, c.if_generation, false, context, |spec| {
            spec.patched(&c.patch)
                .map_err(|e| invalid(format!("the patch leads to no spec: {e}")))
        }),
        Command::RollbackContainer(c) => rollback(state, &c.name, c.generation, c.if_generation, context),
        Command::DiffContainer(c) => {
            let container = find_container(state, &c.name)?;
            check_spec(&c.name, &c.spec, context)?;
            only(reply(&spec_diff(&container.desired.spec(), &c.spec)))
        }
        Command::ShowContainerHistory(c) => only(reply(&ContainerHistory {
            revisions: find_container(state, &c.name)?.revisions.clone(),
        })),
        Command::AdoptContainer(c) => match state.containers.get(&c.name) {
            Some(_) => Err(Problem::new(
                ProblemCode::AlreadyExists,
                format!("container {} is this leaf's already", c.name),
            )),
            None => only(Next::Adopt(c.name.clone())),
        },
        Command::ReadContainerStats(c) => {
            find_container(state, &c.name)?;
            only(Next::ReadContainerStats(c.name.clone()))
        }
        Command::StartContainer(c) => want(state, &c.name, c.if_generation, DesiredRun::Running, context),
        Command::StopContainer(c) => want(state, &c.name, c.if_generation, DesiredRun::Stopped, context),
        Command::DestroyContainer(c) => want(state, &c.name, c.if_generation, DesiredRun::Absent, context),
        Command::ListContainers(_) => only(Next::ListContainers(
            state.containers.values().map(without_revisions).collect(),
        )),
        Command::ShowContainer(c) => only(reply(find_container(state, &c.name)?)),
        Command::ReadContainerLog(c) => {
            find_container(state, &c.name)?;
            only(Next::ReadContainerLog(LogQuery {
                name: c.name.clone(),
                lines: c.lines.unwrap_or(DEFAULT_LOG_LINES),
                since: c.since,
                cursor: c.cursor.clone(),
            }))
        }
        Command::Build(c) => {
            let job = JobId(context.fresh_id);
            let fact = queue(state, job, &c.installable, c.timeout_seconds, None, context)?;
            Ok(Decision {
                facts: vec![fact],
                next: Next::Queue(job),
            })
        }
        Command::ListJobs(_) => only(reply(&JobList {
            jobs: state.jobs.values().rev().map(brief).collect(),
        })),
        Command::ShowJob(c) => {
            find_job(state, c.id)?;
            only(Next::ShowJob(c.id))
        }
        Command::ReadJobLog(c) => {
            find_job(state, c.id)?;
            only(Next::ReadJobLog(c.id, c.offset))
        }
        Command::CancelJob(c) => {
            let job = find_job(state, c.id)?;
            match job.phase {
                JobPhase::Queued => {
                    let mut facts = vec![Fact::JobCancelled(JobCancelled {
                        id: c.id,
                        by: context.caller.clone(),
                    })];
                    facts.extend(after_job(state, c.id, Err("the build was cancelled")));
                    Ok(Decision {
                        facts,
                        next: Next::Cancel(c.id),
                    })
                }
                JobPhase::Running => only(Next::Cancel(c.id)),
                _ => only(reply(job)),
            }
        }
    }
}

/// A job as it stands in a list, which must fit into a message: without what its result refers to.
fn brief(job: &Job) -> Job {
    let mut job = job.clone();
    if let Some(JobResult::Build(result)) = &mut job.result {
        result.references.clear();
    }
    job
}

/// Returns the answer to a job command once it is stored.
#[must_use]
pub fn job_accepted(job: JobId) -> JobAccepted {
    JobAccepted {
        job,
        phase: JobPhase::Queued,
    }
}

/// Returns what the end of a job means for the container that waits for it: its system is built, or it has failed.
#[must_use]
pub fn after_job(state: &State, job: JobId, outcome: Result<&BuildResult, &str>) -> Vec<Fact> {
    let Some(Task::Build(BuildTask {
        container: Some(name),
        ..
    })) = state.jobs.get(&job).map(|job| &job.task)
    else {
        return Vec::new();
    };
    let waits = state
        .containers
        .get(name)
        .is_some_and(|c| c.desired.run != DesiredRun::Absent && c.desired.build_job == Some(job));
    if !waits {
        return Vec::new();
    }
    let name = name.clone();
    vec![match outcome {
        Ok(result) => Fact::ContainerBuilt(ContainerBuilt {
            name,
            toplevel: result.store_path.clone(),
        }),
        Err(reason) => Fact::ContainerFailed(ContainerFailed {
            name,
            step: ContainerStep::Build,
            reason: reason.to_owned(),
        }),
    }]
}

/// Returns the jobs that nobody needs any more, oldest first: builds of a container that is destroyed, or that wants
/// something else by now.
#[must_use]
pub fn needless_jobs(state: &State) -> Vec<JobId> {
    let needless = |job: &&Job| match &job.task {
        Task::Build(BuildTask {
            container: Some(name),
            ..
        }) => {
            let wanted = state.containers.get(name).map(|container| &container.desired);
            !wanted.is_some_and(|d| d.run != DesiredRun::Absent && d.build_job == Some(job.id))
        }
        Task::Build(_) => false,
    };
    let open = state.jobs.values().filter(|job| !job.phase.is_final());
    open.filter(needless).map(|job| job.id).collect()
}

fn queue(
    state: &State,
    id: JobId,
    installable: &Installable,
    timeout_seconds: Option<u32>,
    container: Option<ContainerName>,
    context: &Context,
) -> Result<Fact, Problem> {
    let invalid = |detail: String| Err(invalid(detail));
    let (what, text) = match installable {
        Installable::Flake { reference } => ("a flake reference", reference.as_str()),
        Installable::StorePath { path } => ("a store path", path.as_str()),
        Installable::File { path, .. } if !path.starts_with('/') => {
            return invalid(format!("the file {path:?} is not an absolute path on the leaf"));
        }
        Installable::File { path, .. } => ("a file", path.as_str()),
        Installable::Template { name } if !crate::id::is_token(name) => {
            return invalid(format!(
                "{name:?} is not the name of a template: only a-z, 0-9, '_' and '-' are allowed"
            ));
        }
        Installable::Template { name } => ("a template", name.as_str()),
    };
    let attribute = match installable {
        Installable::File {
            attribute: Some(attribute),
            ..
        } => attribute.as_str(),
        _ => "",
    };
    for text in [text, attribute] {
        if text.starts_with('-') || text.len() > 4096 || text.chars().any(char::is_control) {
            return invalid(format!(
                "{:?} can't be {what}",
                text.chars().take(80).collect::<String>()
            ));
        }
    }
    if text.is_empty() {
        return invalid(format!("{what} is needed, and it is empty"));
    }
    let timeout_seconds = timeout_seconds.unwrap_or(context.job_timeout_seconds);
    if timeout_seconds == 0 || timeout_seconds > MAX_JOB_SECONDS {
        return invalid(format!(
            "a job may take from 1 to {MAX_JOB_SECONDS} seconds, not {timeout_seconds}"
        ));
    }
    let waiting = state
        .jobs
        .values()
        .filter(|job| job.phase == JobPhase::Queued)
        .count();
    if waiting >= context.max_queued_jobs {
        return Err(Problem::new(
            ProblemCode::Overloaded,
            format!("{waiting} jobs are waiting already; try again later"),
        ));
    }
    Ok(Fact::JobQueued(JobQueued {
        id,
        owner: context.caller.clone(),
        task: Task::Build(BuildTask {
            installable: installable.clone(),
            timeout_seconds,
            container,
        }),
    }))
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

fn find_job(state: &State, id: JobId) -> Result<&Job, Problem> {
    state
        .jobs
        .get(&id)
        .ok_or_else(|| not_found(format!("there is no job {id}; job.list shows all")))
}

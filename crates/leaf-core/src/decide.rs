//! What a command does, decided against the state alone.
//!
//! [`decide`] answers a query from the state, or says which facts are to be recorded and what comes next. Nothing has
//! happened yet when it returns: the facts are committed first, then the next step is taken.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::{Command, ContainerList, DeviceList, JobAccepted, JobList};
use crate::container::{Container, ContainerNetwork, ContainerPhase, ContainerSource, Desired, DesiredRun};
use crate::event::{
    ContainerBuilt, ContainerDesired, ContainerFailed, ContainerStep, Fact, JobCancelled, JobQueued,
};
use crate::id::{Caller, ContainerName, JobId};
use crate::job::{BuildResult, BuildTask, Installable, Job, JobPhase, JobResult, Task};
use crate::problem::{Problem, ProblemCode};
use crate::state::State;

/// What a decision needs to know beside the state and the command.
#[derive(Debug, Clone)]
pub struct Context {
    /// Who asks.
    pub caller: Caller,
    /// The leaf's clock.
    pub now: Timestamp,
    /// An id that nothing else has, for what the command makes.
    pub fresh_id: Uuid,
    /// Where containers get their addresses from.
    pub pool: AddressPool,
    /// How many jobs may wait.
    pub max_queued_jobs: usize,
    /// How long a job may take if the command doesn't say, in seconds.
    pub job_timeout_seconds: u32,
}

/// The addresses of a leaf and its containers: a `/16` network. `.0.1` is the leaf's, `.N.1` and `.N.2` are the two
/// ends of a container's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct AddressPool([u8; 2]);

impl AddressPool {
    /// The leaf's address.
    #[must_use]
    pub fn leaf_address(self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[0], self.0[1], 0, 1)
    }

    /// The link with this number, from 1 to 255.
    #[must_use]
    pub fn link(self, number: u8) -> ContainerNetwork {
        let end = |last| Ipv4Addr::new(self.0[0], self.0[1], number, last);
        ContainerNetwork {
            host_address: end(1),
            container_address: end(2),
        }
    }

    /// Whether an address is one of the network.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.octets()[..2] == self.0
    }

    /// The first link that no container of the state has, or nothing if all are taken.
    #[must_use]
    pub fn free_link(self, state: &State) -> Option<ContainerNetwork> {
        (1..=255)
            .map(|number| self.link(number))
            .find(|link| state.containers.values().all(|c| c.desired.network != *link))
    }
}

impl Default for AddressPool {
    fn default() -> Self {
        Self([10, 233])
    }
}

impl std::fmt::Display for AddressPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.0.0/16", self.0[0], self.0[1])
    }
}

impl std::str::FromStr for AddressPool {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

impl From<AddressPool> for String {
    fn from(pool: AddressPool) -> Self {
        pool.to_string()
    }
}

impl TryFrom<String> for AddressPool {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a private /16 network such as 10.233.0.0/16");
        let address: Ipv4Addr = text
            .strip_suffix("/16")
            .and_then(|a| a.parse().ok())
            .ok_or_else(bad)?;
        let [a, b, 0, 0] = address.octets() else {
            return Err(bad());
        };
        if address.is_private() {
            Ok(Self([a, b]))
        } else {
            Err(bad())
        }
    }
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
    /// Answer with the end of the container's console, at most so many lines.
    ReadContainerLog(ContainerName, u32),
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
        Command::CreateContainer(c) => create(state, &c.name, &c.source, c.start, context),
        Command::StartContainer(c) => want(state, &c.name, c.if_generation, DesiredRun::Running, context),
        Command::StopContainer(c) => want(state, &c.name, c.if_generation, DesiredRun::Stopped, context),
        Command::DestroyContainer(c) => want(state, &c.name, c.if_generation, DesiredRun::Absent, context),
        Command::ListContainers(_) => only(reply(&ContainerList {
            containers: state.containers.values().cloned().collect(),
        })),
        Command::ShowContainer(c) => only(reply(find_container(state, &c.name)?)),
        Command::ReadContainerLog(c) => {
            find_container(state, &c.name)?;
            only(Next::ReadContainerLog(
                c.name.clone(),
                c.lines.unwrap_or(DEFAULT_LOG_LINES),
            ))
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
        .is_some_and(|c| c.phase == ContainerPhase::Building && c.desired.build_job == Some(job));
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

fn create(
    state: &State,
    name: &ContainerName,
    source: &ContainerSource,
    start: bool,
    context: &Context,
) -> Result<Decision, Problem> {
    if let Some(container) = state.containers.get(name) {
        return Err(Problem::new(
            ProblemCode::AlreadyExists,
            format!(
                "container {name} exists since {}; destroy it first, or choose another name",
                container.created_at
            ),
        ));
    }
    let network = context.pool.free_link(state).ok_or_else(|| {
        Problem::new(
            ProblemCode::Overloaded,
            format!("all 255 links of {} are taken by containers", context.pool),
        )
    })?;
    let installable = match source {
        ContainerSource::Toplevel { .. } => None,
        ContainerSource::Flake { reference } => Some(Installable::Flake {
            reference: reference.clone(),
        }),
        ContainerSource::Template { name } => Some(Installable::Template { name: name.clone() }),
    };
    let job = JobId(context.fresh_id);
    let mut facts = Vec::new();
    if let Some(installable) = &installable {
        facts.push(queue(state, job, installable, None, Some(name.clone()), context)?);
    }
    facts.push(Fact::ContainerDesired(ContainerDesired {
        name: name.clone(),
        desired: Desired {
            generation: 1,
            run: if start {
                DesiredRun::Running
            } else {
                DesiredRun::Stopped
            },
            source: source.clone(),
            toplevel: match source {
                ContainerSource::Toplevel { path } => Some(path.clone()),
                _ => None,
            },
            build_job: installable.is_some().then_some(job),
            network,
        },
        caller: context.caller.clone(),
    }));
    Ok(Decision {
        facts,
        next: Next::Create(name.clone()),
    })
}

fn want(
    state: &State,
    name: &ContainerName,
    if_generation: Option<u64>,
    run: DesiredRun,
    context: &Context,
) -> Result<Decision, Problem> {
    let container = find_container(state, name)?;
    let generation = container.desired.generation;
    if let Some(seen) = if_generation
        && seen != generation
    {
        return Err(Problem::new(
            ProblemCode::Conflict,
            format!("container {name} is at generation {generation}, not {seen}; look at it again"),
        ));
    }
    let conflict = |detail: String| Err(Problem::new(ProblemCode::Conflict, detail));
    match (container.desired.run, run) {
        (DesiredRun::Absent, DesiredRun::Running | DesiredRun::Stopped) => {
            return conflict(format!("container {name} is being destroyed"));
        }
        (_, DesiredRun::Running | DesiredRun::Stopped) if container.desired.toplevel.is_none() => {
            return conflict(match container.desired.build_job {
                Some(job) if container.phase == ContainerPhase::Building => {
                    format!("the system of container {name} is being built by job {job}; wait for it")
                }
                _ => format!(
                    "the system of container {name} could not be built; destroy it and create it anew"
                ),
            });
        }
        _ => {}
    }
    let settled = match run {
        DesiredRun::Running => container.phase == ContainerPhase::Running,
        DesiredRun::Stopped => container.phase == ContainerPhase::Stopped,
        DesiredRun::Absent => false,
    };
    let mut facts = Vec::new();
    // Whoever wants what is under way already waits for it along with who wanted it first.
    if container.desired.run != run || !(settled || container.phase.is_moving()) {
        facts.push(Fact::ContainerDesired(ContainerDesired {
            name: name.clone(),
            desired: Desired {
                generation: generation + 1,
                run,
                ..container.desired.clone()
            },
            caller: context.caller.clone(),
        }));
    }
    Ok(Decision {
        facts,
        next: Next::Reconcile(name.clone()),
    })
}

fn queue(
    state: &State,
    id: JobId,
    installable: &Installable,
    timeout_seconds: Option<u32>,
    container: Option<ContainerName>,
    context: &Context,
) -> Result<Fact, Problem> {
    let invalid = |detail: String| Err(Problem::new(ProblemCode::Invalid, detail));
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

fn not_found(detail: String) -> Problem {
    Problem::new(ProblemCode::NotFound, detail)
}

fn find_container<'a>(state: &'a State, name: &ContainerName) -> Result<&'a Container, Problem> {
    state
        .containers
        .get(name)
        .ok_or_else(|| not_found(format!("there is no container {name}; container.list shows all")))
}

fn find_job(state: &State, id: JobId) -> Result<&Job, Problem> {
    state
        .jobs
        .get(&id)
        .ok_or_else(|| not_found(format!("there is no job {id}; job.list shows all")))
}

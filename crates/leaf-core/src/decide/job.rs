//! Decides the commands about jobs, and the consequences of a job's end.

use jiff::Timestamp;

use super::{Context, Decision, Question, Reply, Target, conflict, invalid, known, not_found, only};
use crate::aggregate::Aggregate;
use crate::command::job::{Command, JobList, SessionTaken};
use crate::container::DesiredRun;
use crate::event::{ContainerBuilt, ContainerFailed, ContainerStep, Fact, JobCancelled, JobQueued, JobTaken};
use crate::id::{ContainerName, JobId};
use crate::job::{BuildResult, BuildTask, Installable, Job, JobPhase, JobResult, Task};
use crate::placement::demand::Demand;
use crate::problem::{Problem, ProblemCode};
use crate::session::SessionTask;
use crate::state::State;

/// The maximum time limit of a job, in seconds: a week.
const MAX_JOB_SECONDS: u32 = 7 * 24 * 3600;

pub(super) fn decide(state: &State, command: &Command, context: &Context) -> Result<Decision, Problem> {
    match command {
        Command::List(_) => Ok(only(known(&JobList {
            jobs: state.jobs.values().rev().map(brief).collect(),
        }))),
        Command::Show(c) => {
            find_job(state, c.id)?;
            Ok(only(Reply::JobReport(c.id)))
        }
        Command::Activities(c) => {
            let job = find_job(state, c.id)?;
            Ok(only(Reply::FromHost(Question::JobActivities {
                job: c.id,
                now: context.now,
                running: job.phase == JobPhase::Running,
            })))
        }
        Command::Log(c) => {
            let job = find_job(state, c.id)?;
            Ok(only(Reply::FromHost(Question::JobLog {
                job: c.id,
                offset: c.offset,
                ended: job.phase.is_final(),
            })))
        }
        Command::Take(c) => {
            let job = find_job(state, c.id)?;
            let Some(session) = job.task.session() else {
                return Err(invalid(format!("job {} has no session", c.id)));
            };
            if job.owner != context.caller {
                return Err(Problem::new(
                    ProblemCode::Forbidden,
                    format!("the session of job {} is {}'s", c.id, job.owner),
                ));
            }
            if job.phase.is_final() {
                return Err(conflict(format!("job {} has ended: job.show says how", c.id)));
            }
            let taken = SessionTask {
                key: c.key.clone(),
                ..session.clone()
            };
            taken.check().map_err(invalid)?;
            Ok(Decision {
                facts: vec![Fact::from(JobTaken {
                    id: c.id,
                    by: context.caller.clone(),
                    key: c.key.clone(),
                })],
                reply: known(&SessionTaken {
                    id: c.id,
                    terminal: session.terminal.is_some(),
                }),
            })
        }
        Command::Cancel(c) => {
            let job = find_job(state, c.id)?;
            match job.phase {
                JobPhase::Standby | JobPhase::Queued => {
                    let mut facts = vec![Fact::from(JobCancelled {
                        id: c.id,
                        by: context.caller.clone(),
                        reason: None,
                    })];
                    facts.extend(after_job(state, c.id, Err("the build was cancelled")));
                    Ok(Decision {
                        facts,
                        reply: Reply::When(Target::Job(c.id)),
                    })
                }
                JobPhase::Running => Ok(only(Reply::When(Target::Job(c.id)))),
                _ => Ok(only(known(job))),
            }
        }
    }
}

/// Returns a job without the references and the other derivations of its result, for a list that must fit into a message.
fn brief(job: &Job) -> Job {
    let mut job = job.clone();
    match &mut job.result {
        Some(JobResult::Build(result)) => {
            result.references.clear();
            result.others.clear();
        }
        Some(JobResult::Eval(result)) => result.shorten(0),
        Some(JobResult::PrintEnv(result)) => result.shorten(0),
        Some(JobResult::Check(result)) => result.derivations.truncate(1),
        Some(JobResult::Gc(result)) => result.largest.clear(),
        Some(JobResult::Roots(result)) => result.shorten(0),
        Some(JobResult::Diff(result)) => result.shorten(0),
        Some(JobResult::Run(result)) => result.shorten(0),
        Some(JobResult::Verify(result)) => result.shorten(0),
        None => {}
    }
    job.partial.clear();
    job.attestation = None;
    job.explanation = job.explanation.map(|explanation| explanation.brief());
    job
}

/// Returns the facts about the container that waits for a job which has ended: its system is built, or it has failed.
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
        Ok(result) => Fact::from(ContainerBuilt {
            name,
            toplevel: result.store_path.clone(),
        }),
        Err(reason) => Fact::from(ContainerFailed {
            name,
            step: ContainerStep::Build,
            reason: reason.to_owned(),
        }),
    }]
}

/// Returns the jobs that are no longer needed, oldest first: builds for a container that was destroyed, or whose
/// desired state has changed.
#[must_use]
pub fn needless_jobs(state: &State) -> Vec<JobId> {
    let needless = |job: &&Job| match &job.task {
        Task::Build(BuildTask {
            container: Some(name),
            ..
        }) => {
            let wanted = state.containers.get(name).map(|container| &container.desired);
            let raw = state.raw_entry_of(Aggregate::Container(name)).is_some();
            !raw && !wanted.is_some_and(|d| d.run != DesiredRun::Absent && d.build_job == Some(job.id))
        }
        Task::Build(_)
        | Task::Eval(_)
        | Task::PrintEnv(_)
        | Task::Check(_)
        | Task::Run(_)
        | Task::Develop(_)
        | Task::Gc(_)
        | Task::Roots(_)
        | Task::Diff(_)
        | Task::Verify(_) => false,
    };
    let open = state.jobs.values().filter(|job| !job.phase.is_final());
    open.filter(needless).map(|job| job.id).collect()
}

/// Returns the jobs whose results and logs can be given up, since they ended before then, and no container waits for them.
pub(super) fn ended_before(state: &State, then: Timestamp) -> Vec<JobId> {
    let waited_for = |id: JobId| {
        let mut containers = state.containers.values();
        containers.any(|container| container.desired.build_job == Some(id))
    };
    let jobs = state.jobs.values().filter(|job| job.phase.is_final());
    jobs.filter(|job| job.ended_at.is_some_and(|at| at < then) && !waited_for(job.id))
        .map(|job| job.id)
        .collect()
}

/// Returns a job's time limit, in seconds.
pub(super) fn time_limit(asked_seconds: Option<u32>, context: &Context) -> Result<u32, Problem> {
    let seconds = asked_seconds.unwrap_or(context.jobs.timeout_seconds);
    if seconds == 0 || seconds > MAX_JOB_SECONDS {
        return Err(invalid(format!(
            "a job's time limit must be from 1 to {MAX_JOB_SECONDS} seconds, not {seconds}"
        )));
    }
    Ok(seconds)
}

/// Returns the fact that the build of a container's system was accepted.
pub(super) fn queue_system(
    state: &State,
    id: JobId,
    installable: &Installable,
    container: ContainerName,
    context: &Context,
) -> Result<Fact, Problem> {
    installable.check().map_err(invalid)?;
    by_policy(installable, false, context)?;
    let task = BuildTask {
        container: Some(container),
        ..BuildTask::new(vec![installable.clone()], time_limit(None, context)?)
    };
    queue(state, id, Task::Build(task), Demand::default(), context)
}

/// Checks what the policy of this leaf says of an installable.
pub(super) fn by_policy(installable: &Installable, impure: bool, context: &Context) -> Result<(), Problem> {
    let checked = context.nix_policy.check(installable, impure);
    checked.map_err(|why| Problem::new(ProblemCode::Forbidden, why))
}

/// Returns the fact that a job was accepted.
pub(super) fn queue(
    state: &State,
    id: JobId,
    task: Task,
    demand: Demand,
    context: &Context,
) -> Result<Fact, Problem> {
    check_queue(state, context)?;
    Ok(Fact::from(JobQueued {
        id,
        owner: context.caller.clone(),
        task,
        demand,
        work: None,
    }))
}

/// Checks that there is a place in the queue.
pub(super) fn check_queue(state: &State, context: &Context) -> Result<(), Problem> {
    let waiting = state
        .jobs
        .values()
        .filter(|job| job.phase == JobPhase::Queued)
        .count();
    if waiting >= context.jobs.max_queued {
        return Err(Problem::new(
            ProblemCode::Overloaded,
            format!("{waiting} jobs are already queued; try again later"),
        ));
    }
    Ok(())
}

fn find_job(state: &State, id: JobId) -> Result<&Job, Problem> {
    state
        .jobs
        .get(&id)
        .ok_or_else(|| not_found(format!("job {id} does not exist; job.list lists all")))
}

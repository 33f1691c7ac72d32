//! Decides the commands about Nix.

use super::job::{by_policy, queue, time_limit};
use super::{Context, Decision, invalid, known};
use crate::command::nix::{Command, JobAccepted};
use crate::id::JobId;
use crate::job::build::check_all;
use crate::job::run::{MOST_OF_A_CALLER, MOST_PROGRAMS};
use crate::job::{BuildTask, CheckTask, EvalTask, Installable, JobPhase, PrintEnvTask, RunTask, Task};
use crate::problem::{Problem, ProblemCode};
use crate::state::State;

/// The time limit of an evaluation whose command sets none, in seconds.
const EVAL_SECONDS: u32 = 60;

pub(super) fn decide(state: &State, command: &Command, context: &Context) -> Result<Decision, Problem> {
    let job = JobId(context.fresh_id);
    let fact = queue(state, job, task(state, command, context)?, context)?;
    Ok(Decision {
        facts: vec![fact],
        reply: known(&JobAccepted {
            job,
            phase: JobPhase::Queued,
        }),
    })
}

/// Returns the task that a command asks for.
fn task(state: &State, command: &Command, context: &Context) -> Result<Task, Problem> {
    match command {
        Command::Build(c) => {
            if c.installable.is_some() && !c.installables.is_empty() {
                return Err(invalid(
                    "give either installable or installables, not both".to_owned(),
                ));
            }
            let installables = c.installable.iter().chain(&c.installables);
            check_all(installables.clone()).map_err(invalid)?;
            for installable in installables.clone() {
                allowed(installable, c.impure, context)?;
            }
            let timeout_seconds = time_limit(c.timeout_seconds, context)?;
            Ok(Task::Build(BuildTask {
                keep_going: c.keep_going,
                impure: c.impure,
                ..BuildTask::new(installables.cloned().collect(), timeout_seconds)
            }))
        }
        Command::Eval(c) => {
            let task = EvalTask {
                installable: allowed(&c.installable, c.impure, context)?,
                impure: c.impure,
                apply: c.apply.clone(),
                timeout_seconds: time_limit(c.timeout_seconds.or(Some(EVAL_SECONDS)), context)?,
            };
            task.check().map_err(invalid)?;
            Ok(Task::Eval(task))
        }
        Command::PrintEnv(c) => {
            let task = PrintEnvTask {
                installable: allowed(&c.installable, c.impure, context)?,
                impure: c.impure,
                timeout_seconds: time_limit(c.timeout_seconds, context)?,
            };
            task.check().map_err(invalid)?;
            Ok(Task::PrintEnv(task))
        }
        Command::Check(c) => {
            let task = CheckTask {
                installable: allowed(&c.installable, c.impure, context)?,
                impure: c.impure,
                timeout_seconds: time_limit(c.timeout_seconds, context)?,
            };
            task.check().map_err(invalid)?;
            Ok(Task::Check(task))
        }
        Command::Run(c) => {
            let task = RunTask {
                packages: c.packages.clone(),
                command: c.command.clone(),
                environment: c.environment.clone(),
                pure: c.pure,
                timeout_seconds: time_limit(c.timeout_seconds, context)?,
            };
            task.check().map_err(invalid)?;
            for package in &task.packages {
                by_policy(package, false, context)?;
            }
            has_room(state, context)?;
            Ok(Task::Run(task))
        }
    }
}

/// Refuses a program beyond the number of those that may run at the same time.
fn has_room(state: &State, context: &Context) -> Result<(), Problem> {
    let open = || {
        let open = state.jobs.values().filter(|job| !job.phase.is_final());
        open.filter(|job| matches!(job.task, Task::Run(_)))
    };
    let own = open().filter(|job| job.owner == context.caller).count();
    if open().count() < MOST_PROGRAMS && own < MOST_OF_A_CALLER {
        return Ok(());
    }
    Err(Problem::new(
        ProblemCode::Overloaded,
        format!(
            "{} programs run already, {own} of them are {}'s: a leaf runs at most {MOST_PROGRAMS}, and {MOST_OF_A_CALLER} of one \
             caller; job.list shows them, and job.cancel ends one",
            open().count(),
            context.caller
        ),
    ))
}

/// Returns an installable that is valid and that the policy of this leaf does not refuse.
fn allowed(installable: &Installable, impure: bool, context: &Context) -> Result<Installable, Problem> {
    installable.check().map_err(invalid)?;
    by_policy(installable, impure, context)?;
    Ok(installable.clone())
}

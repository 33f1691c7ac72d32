//! Decides the commands about the leaf's own system. The helper checks the system and makes the change; what is on the host is the truth.

use super::change::{ChangeStep, SystemOrder, checked_seconds};
use super::job::{queue, time_limit};
use super::{Context, Decision, Question, Reply, invalid, known, only};
use crate::change::{SystemChange, SystemMode};
use crate::command::JobAccepted;
use crate::command::system::{Command, VerifySystem};
use crate::error::chain;
use crate::id::{ChangeId, JobId, StorePath};
use crate::job::{JobPhase, Task, VerifyTask};
use crate::placement::demand::Demand;
use crate::problem::Problem;
use crate::state::State;

/// The time in which a switch must be confirmed where its command names none, in seconds.
pub const DEFAULT_SWITCH_SECONDS: u32 = 300;

pub(super) fn decide(state: &State, command: &Command, context: &Context) -> Result<Decision, Problem> {
    let order = |toplevel: &StorePath, mode, seconds: Option<u32>, no_witness| SystemOrder {
        id: ChangeId(context.fresh_id),
        caller: context.caller.clone(),
        seconds: seconds.unwrap_or(DEFAULT_SWITCH_SECONDS),
        unwitnessed: no_witness,
        system: SystemChange {
            toplevel: toplevel.clone(),
            mode,
            allow_failed: Vec::new(),
            uncounted: false,
            // The shell knows it.
            journal_format: 0,
        },
    };
    let mut order = match command {
        Command::Verify(asked) => return verify(state, asked, context),
        Command::Generations(_) => return Ok(only(Reply::FromHost(Question::Generations))),
        Command::Switch(asked) => {
            let mut order = order(
                &asked.toplevel,
                SystemMode::Switch,
                asked.seconds,
                asked.no_witness,
            );
            order.system.uncounted = asked.uncounted;
            order.system.allow_failed.clone_from(&asked.allow_failed);
            order
        }
        Command::Test(asked) => {
            let mut order = order(&asked.toplevel, SystemMode::Test, asked.seconds, asked.no_witness);
            order.system.allow_failed.clone_from(&asked.allow_failed);
            order
        }
        Command::Boot(asked) => {
            let mut order = order(&asked.toplevel, SystemMode::Boot, None, true);
            order.system.uncounted = asked.uncounted;
            order
        }
    };
    order.seconds = checked_seconds(order.seconds)?;
    order.system.check().map_err(|error| invalid(chain(&error)))?;
    Ok(only(Reply::WhenChanged(ChangeStep::Switch(Box::new(order)))))
}

/// Accepts the verification of the running system, as a job.
fn verify(state: &State, asked: &VerifySystem, context: &Context) -> Result<Decision, Problem> {
    let task = VerifyTask {
        stated: asked.stated.clone(),
        contents: asked.contents,
        timeout_seconds: time_limit(asked.timeout_seconds, context)?,
    };
    task.check().map_err(invalid)?;
    let job = JobId(context.fresh_id);
    let fact = queue(state, job, Task::Verify(task), Demand::default(), context)?;
    Ok(Decision {
        facts: vec![fact],
        reply: known(&JobAccepted {
            job,
            phase: JobPhase::Queued,
        }),
    })
}

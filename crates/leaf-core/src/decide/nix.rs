//! Decides the commands about Nix.

use super::job::{queue, time_limit};
use super::{Context, Decision, invalid, known};
use crate::command::nix::{Command, JobAccepted};
use crate::id::JobId;
use crate::job::build::check_all;
use crate::job::{BuildTask, JobPhase, Task};
use crate::problem::Problem;
use crate::state::State;

pub(super) fn decide(state: &State, command: &Command, context: &Context) -> Result<Decision, Problem> {
    match command {
        Command::Build(c) => {
            let job = JobId(context.fresh_id);
            if c.installable.is_some() && !c.installables.is_empty() {
                return Err(invalid(
                    "give either installable or installables, not both".to_owned(),
                ));
            }
            let installables = c.installable.iter().chain(&c.installables);
            check_all(installables.clone()).map_err(invalid)?;
            let timeout_seconds = time_limit(c.timeout_seconds, context)?;
            let task = Task::Build(BuildTask {
                keep_going: c.keep_going,
                ..BuildTask::new(installables.cloned().collect(), timeout_seconds)
            });
            let fact = queue(state, job, task, context)?;
            Ok(Decision {
                facts: vec![fact],
                reply: known(&JobAccepted {
                    job,
                    phase: JobPhase::Queued,
                }),
            })
        }
    }
}

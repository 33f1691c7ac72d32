//! Decides the commands about Nix.

use super::job::queue;
use super::{Context, Decision, known};
use crate::command::nix::{Command, JobAccepted};
use crate::id::JobId;
use crate::job::JobPhase;
use crate::problem::Problem;
use crate::state::State;

pub(super) fn decide(state: &State, command: &Command, context: &Context) -> Result<Decision, Problem> {
    match command {
        Command::Build(c) => {
            let job = JobId(context.fresh_id);
            let fact = queue(state, job, &c.installable, c.timeout_seconds, None, context)?;
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

use clap::Args;
use leaf_core::command::CancelJob;
use leaf_core::id::JobId;

use crate::error::Error;
use crate::output::{Output, name_of};
use crate::progress::waiting;
use crate::session::Session;

/// End a job, and wait until nothing of it is left.
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The job's id, as `nix jobs` lists it.
    job: JobId,
}

impl Cancel {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaf = session.leaf().await?;
        let job = waiting(
            "ending the job",
            session.call_slow(&leaf, &CancelJob { id: self.job }),
        )
        .await?;
        output.document(&job, |job| format!("job {} {}", job.id, name_of(&job.phase)))
    }
}

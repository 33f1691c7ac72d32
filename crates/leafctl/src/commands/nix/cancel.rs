use clap::Args;
use leaf_core::command::CancelJob;
use leaf_core::id::JobId;
use leaf_core::job::Job;

use crate::error::Error;
use crate::output::{Output, name_of};
use crate::session::Session;

/// Cancel a job, and wait until all its processes have ended.
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The job's id, as `nix jobs` lists it.
    job: JobId,
}

impl Cancel {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let request = CancelJob { id: self.job };
        let text = |job: &Job| format!("job {} {}", job.id, name_of(&job.phase));
        session
            .show_slow("cancelling the job", &request, output, text)
            .await
    }
}

use clap::Args;
use leaf_core::command::ShowJob;
use leaf_core::id::JobId;
use leaf_core::job::Job;

use super::work::cancel_both;
use crate::error::Error;
use crate::output::{Output, name_of};
use crate::session::Session;

/// Cancel a job, and wait until all its processes have ended. Of a build that another leaf takes over if this one is lost, both jobs are
/// cancelled.
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The job's id, as `nix jobs` lists it.
    job: JobId,
}

impl Cancel {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let text = |job: &Job| format!("job {} {}", job.id, name_of(&job.phase));
        let cancel = async |leaf: &crate::leaf::Leaf| {
            let job = leaf.call(&ShowJob { id: self.job }).await?.job;
            leaf.waiting("cancelling the job", cancel_both(session, leaf, job))
                .await
        };
        session.each(output, cancel, text).await
    }
}

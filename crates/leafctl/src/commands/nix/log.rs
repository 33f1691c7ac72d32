use clap::Args;
use leaf_core::command::ReadJobLog;
use leaf_core::id::JobId;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Print a job's log as written so far.
#[derive(Debug, Args)]
pub(crate) struct Log {
    /// The job's id, as `nix jobs` lists it.
    job: JobId,
    /// Keep printing until the job ends.
    #[arg(long, short)]
    follow: bool,
}

impl Log {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaf = session.leaf().await?;
        let mut offset = 0;
        loop {
            let chunk = leaf.call(&ReadJobLog { id: self.job, offset }).await?;
            if output.is_json() {
                output.item(&chunk, |_| String::new())?;
            } else {
                output.text(chunk.text.as_str())?;
            }
            let moved = chunk.next_offset > offset;
            offset = chunk.next_offset;
            if chunk.complete || (!moved && !self.follow) {
                return Ok(());
            }
            if !moved {
                tokio::time::sleep(leaf.look_again_after()).await;
            }
        }
    }
}

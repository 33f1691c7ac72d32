//! Waiting for what was stored to be so.

use leaf_core::command::ShowContainer;
use leaf_core::container::Container;
use leaf_core::id::LeafName;
use leaf_core::problem::{Problem, ProblemCode};

use super::show::text;
use crate::commands::nix::build::follow;
use crate::error::Error;
use crate::output::Output;
use crate::progress::waiting;
use crate::session::Session;

/// Follows a container until it is what is wanted of it, and prints it. `container` is the leaf's answer to the change,
/// which came when that was stored.
pub(super) async fn settle(
    session: &Session,
    leaf: &LeafName,
    container: Container,
    what: &'static str,
    output: Output,
) -> Result<(), Error> {
    if let Some(job) = container.desired.build_job {
        follow(session, leaf, job, output).await?;
        // The job's end comes first, what follows from it a moment later.
        let name = container.name.clone();
        while let Some(waits) = session
            .call_to(leaf, &ShowContainer { name: name.clone() })
            .await?
            .desired
            .build_job
        {
            if waits != job {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    let container = waiting(what, session.settled(leaf, &container.name)).await?;
    if let Some(why) = &container.reverted {
        return Err(Error::Problem(Problem::new(
            ProblemCode::Failed,
            format!(
                "container {} went back to the system that it had before: {why}",
                container.name
            ),
        )));
    }
    output.document(&container, text)
}

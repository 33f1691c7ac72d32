//! Changes that the leaf answers as soon as they are stored, and waiting until they are carried out.

use leaf_core::command::{Request, ShowContainer};
use leaf_core::container::Container;
use leaf_core::problem::{Problem, ProblemCode};

use super::show::text;
use crate::commands::nix::build::follow;
use crate::error::Error;
use crate::output::Output;
use crate::progress::waiting;
use crate::session::Session;

/// Sends a change that is answered as soon as it is stored, follows the container until its desired state is reached, and
/// prints it. `what` says what a person waits for.
pub(super) async fn change<R: Request<Reply = Container>>(
    session: &Session,
    request: &R,
    what: &'static str,
    output: Output,
) -> Result<(), Error> {
    let leaf = &session.leaf().await?;
    let container = session.call_to(leaf, request).await?;
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

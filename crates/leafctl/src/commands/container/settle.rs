//! Sends changes that the leaf answers as soon as they are recorded, and waits until they are carried out.

use leaf_core::command::{Request, ShowContainer};
use leaf_core::container::Container;
use leaf_core::problem::{Problem, ProblemCode};

use super::show::text;
use crate::commands::nix::build::follow;
use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::Output;
use crate::session::Session;

/// Sends a change that is answered as soon as it is recorded, waits until the container has settled, and prints the
/// container. `what` is the spinner's text.
pub(super) async fn change<R: Request<Reply = Container>>(
    session: &Session,
    request: &R,
    what: &'static str,
    output: Output,
) -> Result<(), Error> {
    let settled = async |leaf: &Leaf| settle(leaf, request, what, output).await;
    session.each(output, settled, text).await
}

async fn settle<R: Request<Reply = Container>>(
    leaf: &Leaf,
    request: &R,
    what: &'static str,
    output: Output,
) -> Result<Container, Error> {
    let container = leaf.call(request).await?;
    if let Some(job) = container.desired.build_job {
        follow(leaf, job, output).await?;
        // The job ends first; the container changes a moment later.
        let name = container.name.clone();
        while let Some(waits) = leaf
            .call(&ShowContainer { name: name.clone() })
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
    let container = leaf.waiting(what, leaf.settled(&container.name)).await?;
    if let Some(why) = &container.reverted {
        return Err(Error::Problem(Problem::new(
            ProblemCode::Failed,
            format!(
                "container {} was reverted to its previous system: {why}",
                container.name
            ),
        )));
    }
    Ok(container)
}

//! One command to several leaves: all are asked at once, and no silent one delays another.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use leaf_core::id::LeafName;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::Output;

/// The number of leaves that are asked at once.
const AT_ONCE: usize = 64;
/// The time after which a leaf that is waited for no longer counts among these.
const PACE: Duration = Duration::from_millis(25);

/// Does the work for each leaf, and returns the results in the order of the leaves. When Ctrl-C interrupts it, those that have
/// not ended are interrupted, and the results of the others are kept.
pub(crate) async fn at_each<T>(
    leaves: &[Leaf],
    work: impl AsyncFn(&Leaf) -> Result<T, Error>,
) -> Vec<Result<T, Error>> {
    let places = Semaphore::new(AT_ONCE);
    let numbered = leaves.iter().enumerate();
    let mut running: FuturesUnordered<_> = numbered
        .map(async |(number, leaf)| (number, in_place(&places, work(leaf)).await))
        .collect();
    let mut results: Vec<Option<Result<T, Error>>> = leaves.iter().map(|_| None).collect();
    // One for all of them: a new one would miss an interruption that comes at the same moment as a reply.
    let mut interruption = pin!(tokio::signal::ctrl_c());
    loop {
        let ended = tokio::select! {
            biased;
            _ = &mut interruption => break,
            ended = running.next() => ended,
        };
        let Some((number, result)) = ended else { break };
        results[number] = Some(result);
    }
    // Work that says itself what an interruption leaves behind, as a build does.
    while let Some(Some((number, result))) = running.next().now_or_never() {
        results[number] = Some(result);
    }
    let results = results.into_iter().zip(leaves);
    results
        .map(|(result, leaf)| result.unwrap_or_else(|| Err(leaf.interrupted())))
        .collect()
}

/// Waits for one of the places, then does the work, which leaves its place early if it takes long.
async fn in_place<T>(places: &Semaphore, work: impl Future<Output = T>) -> T {
    let place = places.acquire().await.expect("it is never closed");
    tokio::pin!(work);
    if let Ok(done) = tokio::time::timeout(PACE, &mut work).await {
        return done;
    }
    drop(place);
    work.await
}

/// The leaves of a command that refused it or did not reply.
pub(crate) struct Failures {
    output: Output,
    leaves: usize,
    failed: Vec<Error>,
}

impl Failures {
    /// Returns none, of this many leaves.
    pub(crate) fn of(leaves: usize, output: Output) -> Self {
        Self {
            output,
            leaves,
            failed: Vec::new(),
        }
    }

    /// Adds a leaf, with a line on standard error.
    pub(crate) fn add(&mut self, leaf: &LeafName, error: Error) {
        self.output.error_of(leaf, &error);
        self.failed.push(error);
    }

    /// Returns the error of the whole command if there is any.
    pub(crate) fn end(self) -> Result<(), Error> {
        if self.failed.is_empty() {
            return Ok(());
        }
        Err(Error::Leaves {
            failed: self.failed,
            leaves: self.leaves,
        })
    }
}

/// Returns the line of a leaf's reply.
pub(crate) fn reply_line(leaf: &LeafName, reply: &impl serde::Serialize) -> serde_json::Value {
    json!({ "leaf": leaf, "reply": reply })
}

/// Returns the line of a leaf that refused the command or did not reply.
pub(crate) fn error_line(leaf: &LeafName, error: &Error) -> serde_json::Value {
    json!({ "leaf": leaf, "error": error.document() })
}

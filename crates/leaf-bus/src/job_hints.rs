//! Hints that a running job may have something new to say.
//!
//! Messages of jobs are core NATS messages in the callers' account, where a person can make a reply of the server, or of a
//! container, appear on any subject. So nothing is read from them: the leaf is asked, by `job.show` and `job.log`.

use std::time::Duration;

use async_nats::Subscriber;
use futures::{FutureExt as _, StreamExt as _};

/// How long to wait after a message for those that follow it at once.
const LULL: Duration = Duration::from_millis(50);

/// Hints of one job; see [`Client::job_hints`](crate::client::Client::job_hints).
#[derive(Debug)]
pub struct JobHints {
    messages: Subscriber,
}

impl JobHints {
    pub(crate) fn new(messages: Subscriber) -> Self {
        Self { messages }
    }

    /// Waits until the job may have something new to say, and at most for this long: a message may be lost with the
    /// connection. Messages that arrive together are one hint. The future may be dropped and the call repeated.
    pub async fn next(&mut self, at_most: Duration) {
        match tokio::time::timeout(at_most, self.messages.next()).await {
            Ok(Some(_)) => {
                tokio::time::sleep(LULL.min(at_most)).await;
                while let Some(Some(_)) = self.messages.next().now_or_never() {}
            }
            // The connection is closed for good: the next request says so.
            Ok(None) => tokio::time::sleep(at_most).await,
            Err(_) => {}
        }
    }
}

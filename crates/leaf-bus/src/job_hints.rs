//! Hints that a running job may have something new to say.
//!
//! Messages of jobs are core NATS messages in the callers' account, where a person can make a reply of the server, or of a
//! container, appear on any subject. So nothing is read from them: the leaf is asked, by `job.show` and `job.log`.

use std::time::Duration;

use async_nats::Subscriber;
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;

/// The shortest time between two hints: messages that arrive sooner are one hint.
const LULL: Duration = Duration::from_millis(20);

/// Hints of one job; see [`Client::job_hints`](crate::client::Client::job_hints).
#[derive(Debug)]
pub struct JobHints {
    messages: Subscriber,
    /// When the last hint was given.
    last: Option<Instant>,
    /// Whether a message has arrived since.
    is_due: bool,
}

impl JobHints {
    pub(crate) fn new(messages: Subscriber) -> Self {
        Self {
            messages,
            last: None,
            is_due: false,
        }
    }

    /// Waits until the job may have something new to say, and at most for this long: a message may be lost with the
    /// connection. The first message is a hint at once, and those that arrive soon after a hint are one. The future may be
    /// dropped and the call repeated.
    pub async fn next(&mut self, at_most: Duration) {
        if !self.is_due {
            match tokio::time::timeout(at_most, self.messages.next()).await {
                Ok(Some(_)) => self.is_due = true,
                // The connection is closed for good: the next request says so.
                Ok(None) => return tokio::time::sleep(at_most).await,
                Err(_) => return,
            }
        }
        if let Some(last) = self.last {
            tokio::time::sleep_until(last + LULL.min(at_most)).await;
        }
        while let Some(Some(_)) = self.messages.next().now_or_never() {}
        self.is_due = false;
        self.last = Some(Instant::now());
    }
}

//! Tracks the status of a connection from the client's events.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::Event;
use jiff::Timestamp;
use tokio::sync::{Notify, broadcast, watch};

use crate::settings::Status;

/// How often to try to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// For ever, also at the start.
    Forever,
    /// For ever, also at the start, with pauses of up to a minute, which [`Shared::hurry`] ends.
    Patiently,
    /// Once at the start, for ever after the connection was lost.
    Once,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) status: watch::Sender<Status>,
    pub(crate) closed: watch::Sender<bool>,
    pub(crate) violations: broadcast::Sender<String>,
    pub(crate) dropped: AtomicU64,
    /// The server's last error before it closed the connection.
    pub(crate) last_words: watch::Sender<Option<String>>,
    /// The number of attempts since it was last connected or hurried; counted in [`Mode::Patiently`] only.
    pub(crate) attempts: AtomicUsize,
    /// Ends the pause before the next attempt.
    pub(crate) hurried: Notify,
}

/// The longest pause of [`Mode::Forever`], without its jitter.
const SOON: Duration = Duration::from_secs(2);
/// The longest pause of [`Mode::Patiently`], without its jitter: a minute with it.
const LATE: Duration = Duration::from_secs(48);

/// Returns the pause before an attempt of [`Mode::Forever`]; the first attempt is number 1.
pub(crate) fn soon(attempt: usize) -> Duration {
    backoff(attempt, SOON)
}

/// Returns the back-off: from 50 ms up to `most`, plus up to a quarter of jitter, so that not all of a server's clients
/// reconnect at once.
fn backoff(attempt: usize, most: Duration) -> Duration {
    if attempt <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempt - 2).unwrap_or(u32::MAX).min(10);
    let base = Duration::from_millis(50 * 2u64.pow(doublings)).min(most);
    let random = u32::from(uuid::Uuid::now_v7().as_bytes()[15]);
    base + base * random / 1024
}

impl Shared {
    /// Returns the state of a connection that is not there yet.
    pub(crate) fn unconnected() -> Self {
        Self {
            status: watch::Sender::new(Status::Disconnected {
                problem: "not connected yet".to_owned(),
                since: Timestamp::now(),
            }),
            closed: watch::Sender::new(false),
            violations: broadcast::Sender::new(64),
            dropped: AtomicU64::new(0),
            last_words: watch::Sender::new(None),
            attempts: AtomicUsize::new(0),
            hurried: Notify::new(),
        }
    }

    /// Waits before the next attempt to connect, in [`Mode::Patiently`].
    pub(crate) async fn pause(&self) {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        let pause = backoff(attempt, LATE);
        if !pause.is_zero() && tokio::time::timeout(pause, self.hurried.notified()).await.is_ok() {
            // Short pauses follow, as after the connection was lost.
            self.attempts.store(1, Ordering::Relaxed);
        }
    }

    /// Makes the next attempt to connect follow at once, and the ones after it soon.
    pub(crate) fn hurry(&self) {
        self.hurried.notify_one();
    }

    pub(crate) fn connected(&self, servers: &str) {
        self.last_words.send_replace(None);
        self.attempts.store(0, Ordering::Relaxed);
        self.status.send_if_modified(|status| {
            let changed = !status.is_connected();
            if changed {
                *status = Status::Connected {
                    server: servers.to_owned(),
                    since: Timestamp::now(),
                };
            }
            changed
        });
    }

    /// Records an error; `lost` also sets the status to disconnected.
    pub(crate) fn problem(&self, text: String, lost: bool) {
        self.status.send_if_modified(|status| match status {
            Status::Connected { .. } if lost => {
                *status = Status::Disconnected {
                    problem: text,
                    since: Timestamp::now(),
                };
                true
            }
            Status::Disconnected { problem, .. } if !lost && *problem != text => {
                *problem = text;
                true
            }
            _ => false,
        });
    }

    pub(crate) fn event(&self, event: &Event, servers: &str) {
        match event {
            Event::Connected => self.connected(servers),
            Event::Disconnected => {
                let words = self.last_words.send_replace(None);
                self.problem(
                    words.unwrap_or_else(|| "the connection was lost".to_owned()),
                    true,
                );
            }
            Event::ServerError(error) => {
                let text = error.to_string();
                if text.contains("Permissions Violation") {
                    tracing::warn!(%text, "the NATS server denies a permission");
                    let _ = self.violations.send(text.trim_start_matches("nats: ").to_owned());
                } else {
                    tracing::warn!(%text, "the NATS server reports an error");
                    self.last_words.send_replace(Some(text));
                }
            }
            Event::ClientError(error) => {
                // The pool's own error is better: it has the cause.
                if matches!(&*self.status.borrow(), Status::Disconnected { problem, .. } if !problem.contains(": "))
                {
                    self.problem(error.to_string(), false);
                }
            }
            Event::SlowConsumer(sid) => {
                let before = self.dropped.fetch_add(1, Ordering::Relaxed);
                if before.is_power_of_two() || before == 0 {
                    tracing::warn!(
                        subscription = sid,
                        dropped = before + 1,
                        "messages arrive faster than they are processed"
                    );
                }
            }
            Event::Closed => {
                self.closed.send_replace(true);
                self.problem("the connection was closed".to_owned(), true);
            }
            Event::LameDuckMode => tracing::info!("the NATS server is about to stop"),
            Event::Draining => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_two_seconds_for_a_daemon_and_to_a_minute_for_a_container() {
        for (most, least, longest) in [(SOON, 2_000, 2_500), (LATE, 45_000, 60_000)] {
            assert_eq!(backoff(1, most), Duration::ZERO);
            assert!(backoff(2, most) < Duration::from_millis(63));
            let mut before = Duration::ZERO;
            for attempt in 2..40 {
                let pause = backoff(attempt, most);
                // A quarter of jitter is less than a doubling, until the longest pause.
                assert!(pause > before || pause >= most, "{attempt}: {pause:?}");
                assert!(pause <= Duration::from_millis(longest), "{attempt}: {pause:?}");
                before = pause;
            }
            assert!(before >= Duration::from_millis(least), "{before:?}");
        }
    }

    #[tokio::test]
    async fn a_hint_ends_the_pause_and_short_pauses_follow() {
        let shared = Shared::unconnected();
        shared.attempts.store(30, Ordering::Relaxed);
        let waited = tokio::time::timeout(Duration::from_millis(50), shared.pause()).await;
        assert!(waited.is_err(), "it waits for more than half a minute");
        let long = Duration::from_secs(20);
        let hurry = async {
            tokio::task::yield_now().await;
            shared.hurry();
        };
        let (paused, ()) = tokio::join!(tokio::time::timeout(long, shared.pause()), hurry);
        paused.expect("the hint ends it");
        // 50, 100 and 200 ms, each with its jitter.
        for _ in 0..3 {
            tokio::time::timeout(long, shared.pause())
                .await
                .expect("a short pause");
        }
    }
}

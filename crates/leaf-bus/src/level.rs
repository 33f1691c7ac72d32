//! Tracks the status of a connection from the client's events.

use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::Event;
use jiff::Timestamp;
use tokio::sync::{broadcast, watch};

use crate::settings::Status;

/// How often to try to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// For ever, also at the start.
    Forever,
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
}

impl Shared {
    pub(crate) fn connected(&self, servers: &str) {
        self.last_words.send_replace(None);
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

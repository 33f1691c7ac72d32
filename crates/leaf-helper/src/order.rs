//! The order of operations: those on one subject are carried out one after another, in the order of their arrival.
//!
//! An operation [lines up](Order::line_up), waits for its [turn](Place::turn), and makes way for the next when its
//! place is dropped. The service and leafd's in-process helper use the same order.

use std::collections::{BTreeMap, VecDeque};

use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind, HostSubject, HostWait};
use tokio::sync::watch;

/// The maximum number of operations that wait for their turn; more are refused.
const MAX_WAITING: usize = 1024;

/// The running and waiting operations. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Order(watch::Sender<Lines>);

#[derive(Debug, Default)]
struct Lines {
    last_number: u64,
    lines: BTreeMap<HostSubject, VecDeque<Entry>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    number: u64,
    waits_for: HostWait,
}

/// The place of an operation in its subject's queue. Dropping it gives the next operation its turn.
#[derive(Debug)]
pub(crate) struct Place {
    order: Order,
    changes: watch::Receiver<Lines>,
    subject: HostSubject,
    entry: Entry,
}

impl Order {
    /// Adds an operation to the queue of its subject.
    ///
    /// # Errors
    /// [`HostOpError`] if too many operations are waiting.
    pub(crate) fn line_up(&self, op: &HostOp) -> Result<Place, HostOpError> {
        let subject = op.subject();
        let mut taken = Err(0);
        self.0.send_modify(|state| {
            let waiting = state.lines.values().map(|line| line.len() - 1).sum();
            let is_free = !state.lines.contains_key(&subject);
            if !is_free && waiting >= MAX_WAITING {
                taken = Err(waiting);
                return;
            }
            state.last_number += 1;
            let entry = Entry {
                number: state.last_number,
                waits_for: op.waits_for(),
            };
            state.lines.entry(subject.clone()).or_default().push_back(entry);
            taken = Ok(entry);
        });
        let entry = taken.map_err(|waiting| HostOpError {
            op: op.summary(),
            kind: HostOpErrorKind::Failed,
            reason: format!("{waiting} operations are already waiting; try again later"),
        })?;
        Ok(Place {
            order: self.clone(),
            changes: self.0.subscribe(),
            subject,
            entry,
        })
    }
}

impl Place {
    /// Waits until all earlier operations on the subject have ended.
    pub(crate) async fn turn(&mut self) {
        let (subject, number) = (&self.subject, self.entry.number);
        let is_first = |state: &Lines| {
            let first = state.lines.get(subject).and_then(VecDeque::front);
            first.is_some_and(|first| first.number == number)
        };
        // This place holds the sender, so the channel stays open.
        let _ = self.changes.wait_for(is_first).await;
    }

    /// Waits until the operation is interrupted: it waits for a container to become ready, and a later operation is to
    /// stop that container. Never returns for other operations.
    pub(crate) async fn cut_short(&mut self) {
        if self.entry.waits_for != HostWait::Readiness {
            return std::future::pending().await;
        }
        let subject = &self.subject;
        let is_to_end = |state: &Lines| {
            let line = state.lines.get(subject);
            line.is_some_and(|line| line.iter().any(|entry| entry.waits_for == HostWait::End))
        };
        let _ = self.changes.wait_for(is_to_end).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.order.0.send_modify(|state| {
            if let Some(line) = state.lines.get_mut(&self.subject) {
                line.retain(|entry| entry.number != self.entry.number);
                if line.is_empty() {
                    state.lines.remove(&self.subject);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use leaf_core::id::ContainerName;

    use super::*;

    fn name(text: &str) -> ContainerName {
        ContainerName::new(text).expect("a name")
    }

    fn start(container: &str) -> HostOp {
        HostOp::StartContainer {
            name: name(container),
            ready_timeout_seconds: 60,
        }
    }

    fn stop(container: &str) -> HostOp {
        HostOp::StopContainer {
            name: name(container),
            grace_seconds: 10,
        }
    }

    fn is_up(future: impl Future<Output = ()>) -> bool {
        future.now_or_never().is_some()
    }

    #[test]
    fn operations_on_one_subject_take_turns_and_those_on_others_do_not_wait() {
        let order = Order::default();
        let line_up = |op: &HostOp| order.line_up(op).expect("a place");
        let mut first = line_up(&stop("web"));
        let mut second = line_up(&stop("web"));
        let mut third = line_up(&start("web"));
        let mut other = line_up(&stop("db"));
        assert!(is_up(first.turn()) && is_up(other.turn()));
        assert!(!is_up(second.turn()) && !is_up(third.turn()));
        // An operation whose place was dropped delays no other.
        drop(second);
        drop(first);
        assert!(is_up(third.turn()));
    }

    #[test]
    fn only_the_wait_for_a_container_that_is_to_be_stopped_is_interrupted() {
        let order = Order::default();
        let line_up = |op: &HostOp| order.line_up(op).expect("a place");
        let mut starts = line_up(&start("web"));
        let mut starts_again = line_up(&start("web"));
        assert!(!is_up(starts.cut_short()), "a second start interrupts nothing");
        let mut stops = line_up(&stop("web"));
        let mut other = line_up(&start("db"));
        assert!(is_up(starts.cut_short()) && is_up(starts_again.cut_short()));
        assert!(!is_up(other.cut_short()));
        let _stops_again = line_up(&stop("web"));
        assert!(!is_up(stops.cut_short()), "a stop is not interrupted");
    }

    #[test]
    fn too_many_waiting_operations_are_refused_except_on_a_free_subject() {
        let order = Order::default();
        let places: Vec<_> = (0..=MAX_WAITING)
            .map(|_| order.line_up(&stop("web")).expect("a place"))
            .collect();
        let refused = order.line_up(&stop("web")).expect_err("it is full");
        assert!(
            refused.reason.contains("1024 operations are already waiting"),
            "{refused}"
        );
        order.line_up(&stop("db")).expect("its subject is free");
        drop(places);
        order.line_up(&stop("web")).expect("there is room again");
    }
}

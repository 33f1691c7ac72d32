//! Tells the hub agent of the leaf's works: at once when they change, and every 3 s as long as there are any, so that the agent knows
//! that this leafd is there (`docs/protocol/placement.md`, part 4).

use std::sync::Arc;
use std::time::Duration;

use leaf_core::engine::Input;
use leaf_core::error::chain;
use leaf_core::fleet::work::{MOST_TOLD, TELL_SECONDS, WorkReport, WorkTold};
use leaf_core::id::InstanceId;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::Hub;
use crate::clock::Clock;
use crate::complaints::Complaints;
use crate::wake::Wake;

/// The period, and how long the agent may take to answer: a job that waits for the answer starts without it then.
const TELL_EVERY: Duration = Duration::from_secs(TELL_SECONDS);

/// Tells the agent of the works.
pub(crate) struct Works {
    /// The connection to the agent, if the leaf has a hub.
    pub(crate) hub: Option<Arc<Hub>>,
    /// This instance.
    pub(crate) instance: InstanceId,
    /// The works.
    pub(crate) works: watch::Receiver<Vec<WorkTold>>,
    /// The clock of the engine.
    pub(crate) clock: Clock,
    /// Receives the answers.
    pub(crate) inputs: mpsc::Sender<Wake>,
}

impl Works {
    /// Runs until the daemon ends.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut complaints = Complaints::default();
        let mut next = 0;
        loop {
            let works = self.works.borrow_and_update().clone();
            let began = Instant::now();
            if !works.is_empty() {
                let told_at = self.clock.now();
                // More than fit into a report take turns.
                let from = if next < works.len() { next } else { 0 };
                let until = works.len().min(from + MOST_TOLD);
                next = until;
                let answers = match &self.hub {
                    Some(hub) => {
                        let report = WorkReport {
                            instance: self.instance,
                            works: works[from..until].to_vec(),
                        };
                        match timeout(TELL_EVERY, hub.link().tell_works(&report)).await {
                            Ok(Ok(reply)) => Some(reply.answers),
                            Ok(Err(error)) => {
                                let why = chain(&error);
                                if !error.is_away() && complaints.is_new(&why) {
                                    tracing::warn!(
                                        error = why,
                                        "can't tell the hub of the builds that another leaf may take over"
                                    );
                                }
                                None
                            }
                            Err(_) => None,
                        }
                    }
                    None => None,
                };
                let heard = Input::WorksHeard { told_at, answers };
                if self.inputs.send(heard.into()).await.is_err() {
                    return std::future::pending().await;
                }
            }
            let is_none = works.is_empty();
            tokio::select! {
                changed = self.works.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = sleep_until(began + TELL_EVERY), if !is_none => {}
            }
        }
    }
}

//! Follows a change of a leaf's system until it is decided. The leaf needs nobody for that: who follows only tells how it ends.

use std::time::Duration;

use leaf_core::change::Decision;
use leaf_core::command::{ConfirmLeafChange, DecidedSwitch, ListGenerations, OpenChange};
use leaf_core::error::chain;
use leaf_core::id::{ChangeId, StorePath};
use leaf_core::problem::{Problem, ProblemCode};
use serde::Serialize;
use tokio::time::Instant;

use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::Output;
use crate::session::Session;

/// The period in which the leaf is asked.
const EVERY: Duration = Duration::from_millis(500);
/// How long the leaf may take to answer: a request that came while leafd was restarted has no answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// How long after the end of its time the leaf may be on its way back, or install the system.
const LATER: Duration = Duration::from_secs(300);

/// How a switch ended, or that it is under way.
#[derive(Debug, Serialize)]
pub(super) struct Switched {
    pub(super) change: ChangeId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) toplevel: Option<StorePath>,
    /// `confirmed`, or `open` where it was not waited for.
    pub(super) outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<String>,
}

impl Switched {
    /// Returns a switch that is not waited for.
    pub(super) fn open(open: OpenChange) -> Self {
        Self {
            change: open.id,
            toplevel: open.toplevel,
            outcome: "open",
            by: None,
        }
    }
}

/// Waits until a change is decided; `by_me`: confirms it over a connection of its own once it is in use.
///
/// # Errors
/// If it went back, or is not installed, or the leaf does not tell in time.
pub(super) async fn follow(
    session: &Session,
    leaf: &Leaf,
    open: OpenChange,
    by_me: bool,
    output: Output,
) -> Result<Switched, Error> {
    let id = open.id;
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted {
            note: Some(format!(
                "leaf {} goes on with change {id}; `leafctl system generations` shows how it ended",
                leaf.name
            )),
        }),
        ended = until_decided(session, leaf, open, by_me, output) => ended,
    }
}

async fn until_decided(
    session: &Session,
    leaf: &Leaf,
    open: OpenChange,
    by_me: bool,
    output: Output,
) -> Result<Switched, Error> {
    let id = open.id;
    let until = Instant::now() + Duration::from_secs(open.seconds_left) + LATER;
    let mut complaint = String::new();
    let mut has_confirmed = false;
    loop {
        // leafd is restarted by most switches, and does not answer for a while.
        let report = leaf.call_briefly(&ListGenerations {}, ANSWERS_WITHIN).await;
        match report {
            Ok(report) => {
                if let Some(decided) = report.decided.into_iter().find(|decided| decided.id == id) {
                    return ended(leaf, decided);
                }
                let is_ready = report.can_be_confirmed && report.change.is_some_and(|change| change.id == id);
                if by_me && is_ready && !has_confirmed {
                    match confirm(session, leaf, id).await {
                        Ok(()) => has_confirmed = true,
                        Err(error) => {
                            let why = chain(&error);
                            if why != complaint {
                                output.note(&format!("leaf {}: not confirmed yet: {why}", leaf.name));
                                complaint = why;
                            }
                        }
                    }
                }
            }
            Err(error) if Instant::now() >= until => {
                return Err(Error::NoLeaf(format!(
                    "leaf {} does not say how change {id} ended ({}): `leafctl system generations` shows it once the leaf answers",
                    leaf.name,
                    chain(&error)
                )));
            }
            Err(_) => {}
        }
        if Instant::now() >= until {
            return Err(Error::NoLeaf(format!(
                "change {id} of leaf {} is not decided, though its time is over: see `journalctl --unit leaf-switch` there",
                leaf.name
            )));
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Confirms a change over a new connection, which shows that the leaf can be reached.
async fn confirm(session: &Session, leaf: &Leaf, id: ChangeId) -> Result<(), Error> {
    let fresh = session.anew(leaf.name.clone()).await?;
    let again = fresh.leaf().await?;
    again.call(&ConfirmLeafChange { id }).await.map(drop)
}

fn ended(leaf: &Leaf, decided: DecidedSwitch) -> Result<Switched, Error> {
    let failed = |what: String| Error::Problem(Problem::new(ProblemCode::Failed, what));
    let why = decided.why.unwrap_or_default();
    match decided.decision {
        Decision::Back => Err(failed(format!("leaf {} went back: {why}", leaf.name))),
        Decision::Confirmed if !why.is_empty() => Err(failed(format!(
            "leaf {}: change {} is confirmed, but {why}",
            leaf.name, decided.id
        ))),
        Decision::Confirmed => Ok(Switched {
            change: decided.id,
            toplevel: decided.toplevel,
            outcome: "confirmed",
            by: decided.by,
        }),
    }
}

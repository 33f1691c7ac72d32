//! A change of the systems of several leaves: so many at once, and those that are away when they are back.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use leaf_core::error::chain;
use leaf_core::id::LeafName;
use tokio::time::Instant;

use super::follow::Switched;
use crate::error::Error;
use crate::fleet::{self, Failures};
use crate::leaf::Leaf;
use crate::output::Output;
use crate::progress::waiting;
use crate::session::Session;
use crate::text::{Fields, Table, fields};

/// The period in which leaves that are away are looked for.
const EVERY: Duration = Duration::from_secs(2);

/// How a command to several leaves goes on.
#[derive(Debug, Clone, Args)]
pub(super) struct Batches {
    /// The number of leaves that are switched at once, where several are selected. The next ones begin when all of them are confirmed.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Go on with further leaves after one has failed.
    #[arg(long)]
    keep_going: bool,
    /// Wait for leaves that are away, at most this long, such as 8h, and switch each once it is back.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    await_absent: Option<Duration>,
}

impl Batches {
    /// Does the work for each leaf, so many at once, and prints the outcomes. After a failure no further batch begins.
    pub(super) async fn each(
        &self,
        session: &Session,
        output: Output,
        work: impl AsyncFn(&Leaf) -> Result<Switched, Error>,
    ) -> Result<(), Error> {
        if !session.is_for_several() {
            return session.each(output, work, text).await;
        }
        let (away, leaves): (Vec<_>, Vec<_>) = session.leaves().await?.into_iter().partition(Leaf::is_away);
        let away: BTreeSet<LeafName> = away.into_iter().map(|leaf| leaf.name).collect();
        let awaited = if self.await_absent.is_some() {
            away.len()
        } else {
            0
        };
        let mut rollout = Rollout {
            batches: self,
            output,
            table: output.table(&["LEAF", "OUTCOME", "SYSTEM", "WHY"]),
            failures: Failures::of(leaves.len() + awaited, output),
            has_failed: false,
        };
        for batch in leaves.chunks(self.batch.into()) {
            rollout.batch(batch, &work).await?;
        }
        match self.await_absent {
            Some(limit) => rollout.when_back(session, away, limit, &work).await?,
            None => {
                for leaf in &away {
                    output.note(&format!(
                        "leaf {leaf} is away, and left out: run the command again for it when it is back, or with --await-absent"
                    ));
                }
            }
        }
        if !output.is_json() {
            output.text(rollout.table)?;
        }
        rollout.failures.end()
    }
}

/// A command to several leaves, and what came of it so far.
struct Rollout<'a> {
    batches: &'a Batches,
    output: Output,
    table: Table,
    failures: Failures,
    has_failed: bool,
}

impl Rollout<'_> {
    /// Returns whether no further leaf begins.
    fn is_over(&self) -> bool {
        self.has_failed && !self.batches.keep_going
    }

    /// Does the work for these leaves at once, unless one before has failed.
    async fn batch(
        &mut self,
        leaves: &[Leaf],
        work: &impl AsyncFn(&Leaf) -> Result<Switched, Error>,
    ) -> Result<(), Error> {
        if self.is_over() {
            return leaves.iter().try_for_each(|leaf| self.not_begun(&leaf.name));
        }
        let results = fleet::at_each(leaves, work).await;
        for (leaf, result) in leaves.iter().zip(results) {
            match result {
                Ok(switched) => {
                    let system = switched.toplevel.as_ref().map(ToString::to_string);
                    self.table.add_row([
                        leaf.name.as_str(),
                        switched.outcome,
                        &system.unwrap_or_default(),
                        "",
                    ]);
                    if self.output.is_json() {
                        self.output.json_line(&fleet::reply_line(&leaf.name, &switched))?;
                    }
                }
                Err(error) => self.failed(&leaf.name, outcome_of(&error), error)?,
            }
        }
        Ok(())
    }

    /// Does the work for leaves that are away, each once it is back.
    async fn when_back(
        &mut self,
        session: &Session,
        mut away: BTreeSet<LeafName>,
        limit: Duration,
        work: &impl AsyncFn(&Leaf) -> Result<Switched, Error>,
    ) -> Result<(), Error> {
        let until = Instant::now() + limit;
        let names: Vec<&str> = away.iter().map(LeafName::as_str).collect();
        if !names.is_empty() && !self.is_over() {
            self.output.note(&format!(
                "these leaves are away, and awaited: {}",
                names.join(", ")
            ));
        }
        while !away.is_empty() && !self.is_over() && Instant::now() < until {
            let back = waiting(
                "waiting for the leaves that are away",
                until_some_are_back(session, &away, until),
            )
            .await;
            for leaf in &back {
                away.remove(&leaf.name);
            }
            for batch in back.chunks(self.batches.batch.into()) {
                self.batch(batch, work).await?;
            }
        }
        let is_over = self.is_over();
        for leaf in away {
            if is_over {
                self.not_begun(&leaf)?;
            } else {
                let limit = humantime::format_duration(limit);
                let why = format!(
                    "leaf {leaf} was away for all of {limit}: run the command again for it when it is back"
                );
                self.failed(&leaf, "away", Error::NoLeaf(why))?;
            }
        }
        Ok(())
    }

    fn not_begun(&mut self, leaf: &LeafName) -> Result<(), Error> {
        self.table.add_row([leaf.as_str(), "not begun", "", ""]);
        if self.output.is_json() {
            let reply = serde_json::json!({ "outcome": "not begun" });
            self.output.json_line(&fleet::reply_line(leaf, &reply))?;
        }
        Ok(())
    }

    fn failed(&mut self, leaf: &LeafName, outcome: &str, error: Error) -> Result<(), Error> {
        self.has_failed = true;
        let why = chain(&error);
        self.table.add_row([leaf.as_str(), outcome, "", &why]);
        if self.output.is_json() {
            self.output.json_line(&fleet::error_line(leaf, &error))?;
        }
        self.failures.add(leaf, error);
        Ok(())
    }
}

/// Returns those of these leaves that are back, as soon as there are some; none at the end of the time. A server that can't be asked for
/// a while is asked again.
async fn until_some_are_back(session: &Session, away: &BTreeSet<LeafName>, until: Instant) -> Vec<Leaf> {
    loop {
        let leaves = session.leaves().await.unwrap_or_default();
        let back = leaves
            .into_iter()
            .filter(|leaf| away.contains(&leaf.name) && !leaf.is_away())
            // One that is back gets a command of its own, with its own signature.
            .map(|leaf| session.alone(leaf.name))
            .collect::<Vec<_>>();
        if !back.is_empty() || Instant::now() >= until {
            return back;
        }
        tokio::time::sleep_until(until.min(Instant::now() + EVERY)).await;
    }
}

/// Returns the outcome of a leaf in a word or two: whether it was refused, went back, or is not known.
fn outcome_of(error: &Error) -> &'static str {
    match error.exit_code() {
        7 => "failed",
        4 | 130 => "unknown",
        _ => "refused",
    }
}

fn text(switched: &Switched) -> Fields {
    let mut lines = vec![
        ("change", switched.change.to_string()),
        ("outcome", switched.outcome.to_owned()),
    ];
    lines.extend(
        switched
            .toplevel
            .as_ref()
            .map(|path| ("system", path.to_string())),
    );
    lines.extend(switched.by.as_ref().map(|by| ("by", by.clone())));
    fields(&lines)
}

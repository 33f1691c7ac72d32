use std::collections::BTreeMap;

use clap::Args;
use jiff::Timestamp;
use leaf_bus::client::Heard;
use leaf_core::beat::Beat;
use leaf_core::fleet::CopyStatus;
use leaf_core::id::LeafName;
use leaf_core::labels;
use serde::Serialize;
use serde_json::json;

use super::copy::{self, copies, note_absent_agent};
use crate::error::Error;
use crate::leaf::away_since;
use crate::output::{Output, ago};
use crate::selection::Selected;
use crate::session::Session;

/// List the leaves with their labels: those that are online, and on a hub those that are away.
///
/// --leaf with a pattern and --selector list only some.
#[derive(Debug, Args)]
pub(crate) struct List;

/// A leaf of the list.
#[derive(Serialize)]
struct Listed<'a> {
    /// `online` or `away`.
    state: &'static str,
    /// When the server got its last beat.
    heard_at: Timestamp,
    #[serde(flatten)]
    beat: &'a Beat,
    /// The hub's copy of its events, on a hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy: Option<&'a CopyStatus>,
}

impl<'a> Listed<'a> {
    fn of(heard: &'a Heard, copies: &'a BTreeMap<LeafName, CopyStatus>) -> Self {
        Self {
            state: if away_since(heard).is_none() {
                "online"
            } else {
                "away"
            },
            heard_at: heard.at,
            beat: &heard.beat,
            copy: copies.get(&heard.beat.leaf),
        }
    }
}

impl List {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaves = session.client.leaves().await?;
        for leaf in &leaves.unreadable {
            output.note(&format!(
                "leaf {leaf} is not listed: its last beat can't be read, or names another leaf"
            ));
        }
        let unreadable = leaves.unreadable.clone();
        let mut all = Vec::new();
        let mut missing = Vec::new();
        for Selected { leaf, heard } in session.listed(leaves)? {
            match heard {
                Some(heard) => all.push(heard),
                None if unreadable.contains(&leaf) => {}
                None => missing.push(leaf.to_string()),
            }
        }
        let copies = copies(session, output).await;
        if !copies.is_empty() {
            note_absent_agent(session, output).await;
        }
        let listed: Vec<Listed<'_>> = all.iter().map(|heard| Listed::of(heard, &copies)).collect();
        let document = json!({ "leaves": listed, "unreadable": unreadable });
        output.document(&document, |_| {
            let mut headings = vec![
                "LEAF",
                "STATE",
                "LABELS",
                "HOST",
                "VERSION",
                "STARTED",
                "LAST BEAT",
                "EVENTS",
                "INSTANCE",
            ];
            if !copies.is_empty() {
                headings.push("COPY");
            }
            let mut table = output.table(&headings);
            for heard in &all {
                let beat = &heard.beat;
                let mut row = vec![
                    beat.leaf.to_string(),
                    away_since(heard).map_or("online".to_owned(), |since| format!("away since {since}")),
                    labels::text(&beat.labels),
                    beat.hostname.clone(),
                    beat.version.clone(),
                    ago(beat.started_at),
                    ago(heard.at),
                    beat.sequence.to_string(),
                    beat.instance.to_string(),
                ];
                row.extend(copies.get(&beat.leaf).map(copy::text));
                table.add_row(row);
            }
            table
        })?;
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::NotFound(format!(
            "not listed: {}; no leaf of this name has ever held a lease on this server",
            missing.join(", ")
        )))
    }
}

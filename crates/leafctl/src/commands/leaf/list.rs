use clap::Args;
use leaf_core::beat::Beat;
use leaf_core::labels;
use serde::Serialize;
use serde_json::json;

use crate::error::Error;
use crate::leaf::away_since;
use crate::output::{Output, ago};
use crate::selection::{Selected, Selection};
use crate::session::Session;

/// List the leaves with their labels: those that are online, and on a hub those that are away.
///
/// --leaf with a pattern and --selector list only some.
#[derive(Debug, Args)]
pub(crate) struct List;

/// A leaf of the list.
#[derive(Serialize)]
struct Listed {
    /// `online` or `away`.
    state: &'static str,
    #[serde(flatten)]
    beat: Beat,
}

impl List {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaves = session.client.leaves().await?;
        for leaf in &leaves.unreadable {
            output.note(&format!(
                "leaf {leaf} is not listed: its last beat can't be read, or names another leaf"
            ));
        }
        let beats: Vec<Beat> = match session.selection() {
            Selection::Several(several) => {
                let selected = several.select(leaves)?.into_iter();
                selected.filter_map(|Selected { beat, .. }| beat).collect()
            }
            Selection::Only | Selection::One(_) => leaves.beats,
        };
        let listed: Vec<Listed> = beats
            .into_iter()
            .map(|beat| Listed {
                state: if away_since(&beat).is_none() {
                    "online"
                } else {
                    "away"
                },
                beat,
            })
            .collect();
        output.document(&json!({ "leaves": listed }), |_| {
            let mut table = output.table(&[
                "LEAF",
                "STATE",
                "LABELS",
                "HOST",
                "VERSION",
                "STARTED",
                "LAST BEAT",
                "EVENTS",
                "INSTANCE",
            ]);
            for Listed { beat, .. } in &listed {
                table.add_row([
                    beat.leaf.to_string(),
                    away_since(beat).map_or("online".to_owned(), |since| format!("away since {since}")),
                    labels::text(&beat.labels),
                    beat.hostname.clone(),
                    beat.version.clone(),
                    ago(beat.started_at),
                    ago(beat.time),
                    beat.sequence.to_string(),
                    beat.instance.to_string(),
                ]);
            }
            table
        })
    }
}

use clap::Args;
use serde_json::json;

use crate::error::Error;
use crate::output::{Output, ago};
use crate::session::Session;

/// List the running leaves (those that hold a lease).
#[derive(Debug, Args)]
pub(crate) struct List;

impl List {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaves = session.client.leaves().await?;
        output.document(&json!({ "leaves": leaves }), |_| {
            let mut table = output.table(&[
                "LEAF",
                "HOST",
                "VERSION",
                "STARTED",
                "LAST BEAT",
                "EVENTS",
                "INSTANCE",
            ]);
            for beat in &leaves {
                table.add_row([
                    beat.leaf.to_string(),
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

use clap::Args;
use futures::StreamExt as _;
use leaf_bus::client::EventsFrom;

use crate::commands::events::show;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Show hardware changes as they happen, until interrupted.
#[derive(Debug, Args)]
pub(crate) struct Watch;

impl Watch {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaf = session.leaf().await?;
        // The first event to print is fixed before the note, so that none is missed after it.
        let next = session.client.last_sequence(&leaf).await? + 1;
        let mut events = session.client.events(&leaf, EventsFrom::Sequence(next));
        output.note(&format!(
            "waiting for hardware changes of leaf {leaf}; press Ctrl-C to stop"
        ));
        while let Some(record) = events.next().await {
            let record = record?;
            if record
                .kind()
                .is_some_and(|kind| kind.starts_with("cim.leaf.device."))
            {
                show(output, &record)?;
            }
        }
        Ok(())
    }
}

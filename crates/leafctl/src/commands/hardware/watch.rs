use clap::Args;
use futures::StreamExt as _;
use leaf_bus::client::EventsFrom;

use crate::commands::events::show;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Show changes of the hardware as they happen, until interrupted.
#[derive(Debug, Args)]
pub(crate) struct Watch;

impl Watch {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaf = session.leaf().await?;
        // The next event is fixed here, so that none is missed once this says that it waits.
        let next = session.client.last_sequence(&leaf).await? + 1;
        let mut events = session.client.events(&leaf, EventsFrom::Sequence(next));
        output.note(&format!(
            "waiting for changes of the hardware of leaf {leaf}; Ctrl-C ends this"
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

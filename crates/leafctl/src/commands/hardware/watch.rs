use clap::Args;
use leaf_bus::client::EventsFrom;

use crate::commands::events::Reading;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Show hardware changes as they happen, until interrupted.
#[derive(Debug, Args)]
pub(crate) struct Watch;

impl Watch {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        // The first event to print is fixed before the note, so that none is missed after it.
        let reading = Reading::open(session, output, |last| Some(EventsFrom::Sequence(last + 1))).await?;
        output.note(&format!(
            "waiting for hardware changes of {}; press Ctrl-C to stop",
            reading.leaves()
        ));
        let is_of_hardware = |kind: &str| kind.starts_with("device.");
        reading.print_all(is_of_hardware).await
    }
}

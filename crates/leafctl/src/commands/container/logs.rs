use clap::Args;
use leaf_core::command::ReadContainerLog;
use leaf_core::id::ContainerName;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Print the end of a container's console.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The container's name.
    name: ContainerName,
    /// At most this many lines.
    #[arg(long, short = 'n', default_value_t = 200)]
    lines: u32,
}

impl Logs {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let log = session
            .call(&ReadContainerLog {
                name: self.name,
                lines: Some(self.lines),
                since: None,
                cursor: None,
            })
            .await?;
        output.document(&log, |log| log.text.clone())
    }
}

use clap::Args;
use leaf_core::command::ShowContainerHistory;
use leaf_core::id::ContainerName;
use leaf_core::spec::ContainerSource;

use crate::error::Error;
use crate::output::{Output, ago};
use crate::session::Session;

/// List a container's revisions, oldest first: the desired states that `container rollback` can restore.
#[derive(Debug, Args)]
pub(crate) struct History {
    /// The container's name.
    name: ContainerName,
}

impl History {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        session
            .show(&ShowContainerHistory { name: self.name }, output, |history| {
                let mut table = output.table(&["GENERATION", "SINCE", "BY", "SOURCE", "SYSTEM"]);
                for revision in &history.revisions {
                    let system = revision.toplevel.as_ref();
                    table.add_row([
                        revision.generation.to_string(),
                        ago(revision.at),
                        revision.by.to_string(),
                        source(&revision.source),
                        system.map_or("-".to_owned(), ToString::to_string),
                    ]);
                }
                table
            })
            .await
    }
}

/// Returns a description of a system's source.
fn source(source: &ContainerSource) -> String {
    match source {
        ContainerSource::Toplevel { .. } => "toplevel".to_owned(),
        ContainerSource::Flake { reference } => reference.clone(),
        ContainerSource::Template { name } => format!("template {name}"),
    }
}

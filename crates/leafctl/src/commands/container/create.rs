use clap::Args;
use leaf_core::command::CreateContainer;
use leaf_core::container::{ContainerPhase, ContainerSource};
use leaf_core::id::{ContainerName, StorePath};
use leaf_core::spec::ContainerOptions;

use super::show::text;
use crate::commands::nix::build::{flake_reference, follow};
use crate::error::Error;
use crate::output::Output;
use crate::progress::waiting;
use crate::session::Session;

/// Make a container of a system that is there, of a flake, or of a template.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name: at most 11 characters of a-z, A-Z, 0-9, '_' and '-'.
    name: ContainerName,
    #[command(flatten)]
    source: Source,
    /// Start it, too.
    #[arg(long)]
    start: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// A system in the leaf's store: a NixOS toplevel, or anything with an `init`.
    #[arg(long, value_name = "PATH")]
    toplevel: Option<StorePath>,
    /// A flake reference, built first.
    #[arg(long, value_name = "REF")]
    flake: Option<String>,
    /// A template of the leaf, built first.
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
}

impl Create {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let source = match (self.source.toplevel, self.source.flake, self.source.template) {
            (Some(path), _, _) => ContainerSource::Toplevel { path },
            (_, Some(reference), _) => ContainerSource::Flake {
                reference: flake_reference(&reference)?,
            },
            (_, _, Some(name)) => ContainerSource::Template { name },
            (None, None, None) => {
                return Err(Error::Usage(
                    "one of --toplevel, --flake and --template is needed".to_owned(),
                ));
            }
        };
        let leaf = session.leaf().await?;
        let request = CreateContainer {
            name: self.name.clone(),
            source,
            start: self.start,
            options: ContainerOptions::default(),
        };
        // The leaf answers when it is stored; here a person waits until it is done.
        let container = session.call_to(&leaf, &request).await?;
        if let (ContainerPhase::Building, Some(job)) = (container.phase, container.desired.build_job) {
            follow(session, &leaf, job, output).await?;
        }
        let container = waiting("making the container", session.settled(&leaf, &self.name)).await?;
        output.document(&container, text)
    }
}

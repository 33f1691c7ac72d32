use std::path::PathBuf;

use clap::{ArgGroup, Args};
use leaf_core::command::CreateContainer;
use leaf_core::id::{ContainerName, StorePath};
use leaf_core::spec::{ContainerOptions, ContainerSource, SpecRun};

use super::settle::change;
use super::spec_file::SpecFile;
use crate::commands::nix::build::flake_reference;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Make a container of a system that is there, of a flake, of a template, or as a spec says.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["toplevel", "flake", "template", "file"])))]
pub(crate) struct Create {
    /// Its name: at most 11 characters of a-z, A-Z, 0-9, '_' and '-'. A spec may hold it.
    name: Option<ContainerName>,
    /// A spec in TOML or JSON (*.json); '-' is standard input.
    #[arg(long, short, value_name = "SPEC")]
    file: Option<PathBuf>,
    #[command(flatten)]
    system: System,
    /// Start it, too.
    #[arg(long, conflicts_with = "file")]
    start: bool,
}

/// Where a container's system comes from.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct System {
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

impl System {
    /// Returns the source that was named, if one was.
    pub(super) fn source(self) -> Result<Option<ContainerSource>, Error> {
        Ok(match (self.toplevel, self.flake, self.template) {
            (Some(path), _, _) => Some(ContainerSource::Toplevel { path }),
            (_, Some(reference), _) => Some(ContainerSource::Flake {
                reference: flake_reference(&reference)?,
            }),
            (_, _, Some(name)) => Some(ContainerSource::Template { name }),
            (None, None, None) => None,
        })
    }
}

impl Create {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let request = match (self.file, self.system.source()?) {
            (Some(file), _) => {
                let file = SpecFile::read(&file)?;
                CreateContainer {
                    name: file.name(self.name)?,
                    source: file.spec.source,
                    start: file.spec.run == SpecRun::Running,
                    options: file.spec.options,
                }
            }
            (None, Some(source)) => CreateContainer {
                name: self.name.ok_or_else(|| {
                    Error::Usage("a name is needed: leafctl container create NAME …".to_owned())
                })?,
                source,
                start: self.start,
                options: ContainerOptions::default(),
            },
            (None, None) => {
                return Err(Error::Usage(
                    "one of --file, --toplevel, --flake and --template is needed".to_owned(),
                ));
            }
        };
        // The leaf answers when it is stored; here a person waits until it is done.
        change(session, &request, "making the container", output).await
    }
}

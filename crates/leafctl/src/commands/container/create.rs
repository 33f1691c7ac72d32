use std::path::PathBuf;

use clap::{ArgGroup, Args};
use leaf_core::command::CreateContainer;
use leaf_core::id::{ContainerName, StorePath};
use leaf_core::spec::{ContainerOptions, ContainerSource, SpecRun};

use super::settle::change;
use super::spec_file::SpecFile;
use crate::commands::nix::installables::flake_reference;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Create a container from a system in the store, a flake, a template, or a spec.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["toplevel", "flake", "template", "file"])))]
pub(crate) struct Create {
    /// The container's name: at most 11 characters of a-z, A-Z, 0-9, '_' and '-'. A spec may contain it.
    name: Option<ContainerName>,
    /// A spec in TOML or JSON (*.json); '-' is standard input.
    #[arg(long, short, value_name = "SPEC")]
    file: Option<PathBuf>,
    #[command(flatten)]
    system: System,
    /// Start the container after it is created.
    #[arg(long, conflicts_with = "file")]
    start: bool,
}

/// Where a container's system comes from.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct System {
    /// The system's path in the leaf's store: a NixOS toplevel, or another path with an `init`.
    #[arg(long, value_name = "PATH")]
    toplevel: Option<StorePath>,
    /// A flake reference, which is built first.
    #[arg(long, value_name = "REF")]
    flake: Option<String>,
    /// A template of the leaf, which is built first.
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
}

impl System {
    /// Returns the source given on the command line, if any.
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
                    Error::Usage(
                        "the container's name is missing: leafctl container create NAME …".to_owned(),
                    )
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
        // The leaf replies when the change is recorded; `change` waits until it is carried out.
        change(session, &request, "creating the container", output).await
    }
}

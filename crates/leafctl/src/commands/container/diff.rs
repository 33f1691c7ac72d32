use std::path::PathBuf;

use clap::Args;
use leaf_core::command::DiffContainer;
use leaf_core::id::ContainerName;
use leaf_core::printable::printable_line;
use leaf_core::spec::SpecDiff;
use serde_json::Value;

use super::spec_file::SpecFile;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Show what applying a spec would change, without changing anything.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The container's name, if the spec doesn't contain it.
    name: Option<ContainerName>,
    /// A spec in TOML or JSON (*.json); '-' is standard input.
    #[arg(long, short, value_name = "SPEC")]
    file: PathBuf,
}

impl Diff {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let file = SpecFile::read(&self.file)?;
        let request = DiffContainer {
            name: file.name(self.name)?,
            spec: file.spec,
        };
        session.show(&request, output, text).await
    }
}

/// Returns the changes, one value per line: `-` the current value, `+` the new one.
fn text(diff: &SpecDiff) -> String {
    if diff.changes.is_empty() {
        return "nothing would change".to_owned();
    }
    let line = |sign: char, place: &str, value: &Option<Value>| match value {
        Some(value) => format!("{sign} {place} = {value}\n"),
        None => String::new(),
    };
    diff.changes
        .iter()
        .map(|change| {
            let path = change.path.join(".");
            let place = printable_line(&path);
            line('-', &place, &change.now) + &line('+', &place, &change.then)
        })
        .collect()
}

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use leaf_core::change::{MAX_CA_BYTES, MAX_CREDENTIALS_BYTES};
use leaf_core::command::{MoveLeaf, OpenChange};
use leaf_core::host_op::Secret;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;
use crate::text::{Fields, fields};

/// Move a leaf to another hub; it goes back by itself unless that is confirmed in time.
///
/// The leaf's witness confirms it over a new connection to the new hub, or a person does with `leafctl leaf confirm`. For example:
/// `leafctl --leaf edge-1 leaf move-to tls://hub-b.example:7422`
#[derive(Debug, Args)]
pub(crate) struct MoveTo {
    /// The URL of the hub's port for leaf nodes; several have commas between them.
    url: String,
    /// The file of the CA certificates that are trusted there, in PEM. Without this flag: those that the leaf trusts now.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The file of the leaf's credentials there, which the present hub sees on their way. Without this flag: those that the leaf has now.
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// The time in which it must be confirmed: 30s to 1h.
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = humantime::parse_duration)]
    within: Duration,
    /// Don't ask the witness: only a person can confirm it.
    #[arg(long)]
    no_witness: bool,
}

impl MoveTo {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let read = |file: Option<PathBuf>, max| file.map(|file| read(&file, max)).transpose();
        let request = MoveLeaf {
            url: self.url,
            ca: read(self.ca, MAX_CA_BYTES)?,
            credentials: read(self.credentials, MAX_CREDENTIALS_BYTES)?.map(Secret::new),
            seconds: Some(u32::try_from(self.within.as_secs()).unwrap_or(u32::MAX)),
            no_witness: self.no_witness,
        };
        session
            .show_slow("waiting for the witness and the way back", &request, output, text)
            .await
    }
}

fn text(open: &OpenChange) -> Fields {
    let then = if open.unwitnessed {
        format!(
            "the leaf goes back unless somebody runs `leafctl leaf confirm {}`",
            open.id
        )
    } else {
        format!(
            "the leaf goes back unless the new hub confirms it over a new connection, or somebody runs `leafctl leaf confirm {}`",
            open.id
        )
    };
    fields(&[
        ("change", open.id.to_string()),
        ("to", open.url.clone().unwrap_or_default()),
        ("time left", format!("{} s", open.seconds_left)),
        ("then", then),
    ])
}

/// Reads a file of a limited size.
fn read(file: &Path, max: usize) -> Result<String, Error> {
    let failed = |why: String| Error::Usage(format!("can't use {}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    if text.len() > max {
        return Err(failed(format!(
            "it has {} bytes, at most {max} are allowed",
            text.len()
        )));
    }
    Ok(text)
}

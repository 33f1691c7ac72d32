use std::time::Duration;

use clap::Args;
use leaf_core::id::StorePath;
use serde::Serialize;

use super::toplevel::built;
use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::Output;
use crate::session::Session;
use crate::text::fields;

/// Build a leaf's system on the leaf, without switching to it.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// The system: a flake with NixOS configurations, `FLAKE#NAME` for one of another name than the leaf's, or a store path.
    installable: String,
    /// The time limit of the build, such as 30m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_limit: Option<Duration>,
}

/// The system that was built.
#[derive(Debug, Serialize)]
struct Built {
    toplevel: StorePath,
}

impl Build {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let build = async |leaf: &Leaf| {
            let toplevel = built(leaf, &self.installable, self.time_limit, output).await?;
            Ok(Built { toplevel })
        };
        session
            .each(output, build, |built| {
                fields(&[
                    ("system", built.toplevel.to_string()),
                    (
                        "switch to it",
                        format!("leafctl system switch {}", built.toplevel),
                    ),
                ])
            })
            .await
    }
}

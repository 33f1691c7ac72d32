//! The flags that every command has.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use leaf_core::id::LeafName;

use crate::output::Output;

/// The flags that every command has.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print JSON: one document, or one line an item.
    #[arg(long, global = true)]
    pub json: bool,
    /// The leaf to speak to; a single one is taken by itself.
    #[arg(long, global = true, value_name = "NAME", env = "LEAFCTL_LEAF")]
    pub leaf: Option<LeafName>,
    /// A context of the `nats` command line: its name, or a file. Without it, the selected one.
    #[arg(long, global = true, value_name = "NAME|FILE", env = "LEAFCTL_CONTEXT")]
    pub context: Option<String>,
    /// The NATS server, instead of the context's.
    #[arg(long, global = true, value_name = "URL")]
    pub server: Option<String>,
    /// The credentials file, instead of the context's.
    #[arg(long, global = true, value_name = "FILE")]
    pub creds: Option<PathBuf>,
    /// How long to wait for an answer, such as 5s or 2m.
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

impl Global {
    /// Returns how results are shown.
    pub(crate) fn output(&self) -> Output {
        Output::new(self.json)
    }
}

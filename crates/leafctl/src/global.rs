//! The global options.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use leaf_core::id::CommandId;
use leaf_core::selector::{NamePattern, Selector};

use crate::output::Output;

/// The global options.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print JSON: one document, or one line per item.
    #[arg(long, global = true)]
    pub json: bool,
    /// The leaf's name; may be omitted if there is only one leaf. Or several leaves: names and patterns such as 'edge-*',
    /// separated by commas. Without this flag: LEAFCTL_LEAF, which names one leaf.
    #[arg(long, global = true, value_name = "NAME,…", value_delimiter = ',')]
    pub leaf: Vec<NamePattern>,
    /// The leaves with these labels: KEY=VALUE, KEY!=VALUE, KEY or !KEY, separated by commas.
    #[arg(long, short = 'l', global = true, value_name = "TERM,…")]
    pub selector: Option<Selector>,
    /// All leaves.
    #[arg(long, short = 'A', global = true)]
    pub all_leaves: bool,
    /// A context of the `nats` command line: a name or a file. Without this flag: LEAFCTL_CONTEXT, the selected context, then
    /// the leaf on this host, which root and members of the group leafd can use.
    #[arg(long, global = true, value_name = "NAME|FILE", env = "LEAFCTL_CONTEXT")]
    pub context: Option<String>,
    /// The NATS server's URL, instead of the context's.
    #[arg(long, global = true, value_name = "URL")]
    pub server: Option<String>,
    /// A credentials file, instead of the context's.
    #[arg(long, global = true, value_name = "FILE")]
    pub creds: Option<PathBuf>,
    /// The time limit for a reply, such as 5s or 2m.
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// The key to sign with, where a leaf asks for a signature: an SSH key's private file, or a public one whose private part ssh-agent
    /// has; or `gpg:FINGERPRINT`, an OpenPGP key of `gpg`, where the leaf accepts those. Without this flag: the first key of ssh-agent, then ~/.ssh/id_ed25519, that the leaf lets sign.
    #[arg(
        long,
        global = true,
        value_name = "FILE|gpg:FINGERPRINT",
        env = "LEAFCTL_SIGN_WITH"
    )]
    pub sign_with: Option<PathBuf>,
    /// The id of the change: with the id of an attempt whose reply was lost, it is carried out once.
    #[arg(long, global = true, value_name = "ID")]
    pub command_id: Option<CommandId>,
}

impl Global {
    /// Returns whether flags select the leaves.
    pub(crate) fn selects_leaves(&self) -> bool {
        self.all_leaves || self.selector.is_some() || !self.leaf.is_empty()
    }

    /// Returns how results are shown.
    pub(crate) fn output(&self) -> Output {
        Output::new(self.json)
    }
}

use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;
use leaf_core::id::LeafName;

use super::shared::{host_key, open_to_write, print_given};
use crate::error::Error;
use crate::output::Output;

/// Add a leaf: its credentials at the hub, encrypted to its host key, and its settings for a flake.
///
/// The hub's server knows the leaf by the key that signed its credentials: nothing is pushed.
#[derive(Debug, Args)]
pub(super) struct AddLeaf {
    /// The leaf's name.
    name: LeafName,
    /// The leaf's SSH host key, /etc/ssh/ssh_host_ed25519_key.pub there: a file, or its line.
    #[arg(long, value_name = "FILE|KEY")]
    host_key: String,
    /// How long the credentials live, in days: longer than the leaf may be away.
    #[arg(long, default_value_t = 400)]
    days: u32,
    /// The flake with the directories hosts/ and secrets/. Without this flag: the current directory.
    #[arg(long, value_name = "DIR", default_value = ".")]
    flake: PathBuf,
}

impl AddLeaf {
    pub(super) fn run(self, dir: &Path, output: Output) -> Result<(), Error> {
        let key = host_key(&self.host_key)?;
        let mut directory = open_to_write(dir)?;
        let mut given = directory.add_leaf(&self.name, &key, self.days, &self.flake, Timestamp::now())?;
        given.files.retain(|file| file.exists());
        print_given(&[given], output)
    }
}

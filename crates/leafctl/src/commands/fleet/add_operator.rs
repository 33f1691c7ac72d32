use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;
use leaf_core::id::Caller;

use super::shared::{open_to_write, print_given};
use crate::error::Error;
use crate::output::Output;

/// Add a person who commands all leaves through the hub: a credentials file, and a context of the `nats` command line.
///
/// Nothing is pushed. Give the person the files, and delete them here: they are in no other place.
#[derive(Debug, Args)]
pub(super) struct AddOperator {
    /// The person's name as a caller.
    name: Caller,
    /// How long the credentials live, in days.
    #[arg(long, default_value_t = 30)]
    days: u32,
    /// Where the files are written. Without this flag: the current directory.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

impl AddOperator {
    pub(super) fn run(self, dir: &Path, output: Output) -> Result<(), Error> {
        let mut directory = open_to_write(dir)?;
        let given = directory.add_person(&self.name, self.days, &self.out, Timestamp::now())?;
        print_given(&[given], output)
    }
}

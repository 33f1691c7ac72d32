use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::commands::Cli;
use crate::error::Error;
use crate::output::Output;

/// Print the completions for a shell, to be sourced by it.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, output: Output) -> Result<(), Error> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "leafctl", &mut text);
        output.text(String::from_utf8_lossy(&text).into_owned())
    }
}

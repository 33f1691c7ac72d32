//! `leafctl`, the command line of cim-leaf. One file per command below `commands`; each begins with its clap struct,
//! whose doc comment is the help text.

mod advice;
mod attach;
mod command_line;
mod commands;
#[cfg(test)]
mod documents;
mod download;
mod error;
mod fleet;
mod fleet_keys;
mod global;
mod gpg;
mod interrupt;
mod leaf;
mod local_nix;
mod output;
mod progress;
mod selection;
mod session;
mod signing;
mod signing_error;
mod ssh_agent;
mod text;
mod upload;
mod view;

use std::process::ExitCode;

use crate::error::Error;

fn main() -> ExitCode {
    let cli = match command_line::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(unparsed) => return unparsed.tell(),
    };
    let output = cli.global.output();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a single-threaded runtime needs only memory");
    let result = runtime.block_on(async {
        tokio::select! {
            // Polled first, since an interrupted command may report what continues without it.
            biased;
            result = cli.run(&output) => result,
            () = interrupt::asked() => Err(Error::Interrupted { note: None }),
        }
    });
    // A thread may still wait for what is typed.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Exited(code)) => ExitCode::from(code),
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

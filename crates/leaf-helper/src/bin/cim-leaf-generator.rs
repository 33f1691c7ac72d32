//! The generator of containers' units: systemd starts it early at boot, and whenever it reads its units again
//! (systemd.generator(7)).

use std::process::ExitCode;

fn main() -> ExitCode {
    // Standard error goes to the kernel's log there.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .init();
    let Some(directory) = std::env::args_os().nth(1) else {
        tracing::error!("usage: cim-leaf-generator DIRECTORY [DIRECTORY DIRECTORY]; systemd calls this");
        return ExitCode::FAILURE;
    };
    match leaf_helper::generate_units(directory.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{}", leaf_core::error::chain(&e));
            ExitCode::FAILURE
        }
    }
}

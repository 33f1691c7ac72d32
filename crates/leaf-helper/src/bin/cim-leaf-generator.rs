//! The generator of containers' units: systemd runs it early at boot, and at each reload (systemd.generator(7)).

use std::process::ExitCode;

fn main() -> ExitCode {
    // At boot, standard error goes to the kernel's log.
    tracing_subscriber::fmt()
        .with_writer(leaf_host::log::stderr)
        .with_ansi(false)
        .without_time()
        .init();
    let Some(directory) = std::env::args_os().nth(1) else {
        tracing::error!("usage: cim-leaf-generator DIRECTORY [DIRECTORY DIRECTORY]; called by systemd");
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

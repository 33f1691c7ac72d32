//! First in a container, before its own init: what NixOS's start script does inside.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::anyhow;

/// Sets the network up as the environment says, and becomes the program. Returns only if that fails.
pub(crate) fn enter(program: &OsString, arguments: Vec<OsString>) -> anyhow::Result<()> {
    crate::runtime()?.block_on(crate::network::set_up())?;
    let error = Command::new(program).args(arguments).exec();
    Err(anyhow!(error).context(format!("run {}", program.display())))
}

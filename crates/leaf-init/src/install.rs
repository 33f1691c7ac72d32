//! The builder of the minimal system: a Nix derivation whose builder is this program (`containers/minimal`).

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::Context as _;

/// The line of `etc/os-release` by which a minimal system is known.
pub(crate) const ID: &str = "ID=leaf-minimal";

const OS_RELEASE: &str = concat!(
    "ID=leaf-minimal\nNAME=\"leaf minimal\"\nPRETTY_NAME=\"leaf minimal ",
    env!("CARGO_PKG_VERSION"),
    "\"\nVERSION_ID=\"",
    env!("CARGO_PKG_VERSION"),
    "\"\n"
);

/// Creates the system in `$out`: this program as `init`, and `etc/os-release`.
pub(crate) fn install() -> anyhow::Result<()> {
    let out = PathBuf::from(std::env::var_os("out").context("$out is not set; run this as a Nix builder")?);
    let init = out.join("init");
    std::fs::create_dir_all(out.join("etc")).with_context(|| format!("create {}", out.display()))?;
    std::fs::copy("/proc/self/exe", &init).with_context(|| format!("write {}", init.display()))?;
    std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o555))
        .with_context(|| format!("make {} executable", init.display()))?;
    std::fs::write(out.join("etc/os-release"), OS_RELEASE).context("write etc/os-release")
}

//! What test hosts need: their image, our programs, NixOS systems.

use std::path::Path;

use anyhow::{Context as _, Result};

use testhost::nixos::{Systems, nixpkgs};
use testhost::{Image, PROGRAMS_VARIABLE, Programs, can_run};

use crate::install::{self, Profile, install};
use crate::setup;

/// Installs what test hosts need, and returns their image, which is built if it does not exist.
///
/// # Errors
/// If this machine can't build or run it; the text says what is missing.
pub(crate) fn image() -> Result<Image> {
    can_run()?;
    Image::build(&setup::prepare_host()?.nats_server)
}

/// Returns the programs named by [`PROGRAMS_VARIABLE`]; without it compiles `leafd`, `leafctl`, `leaf-helper` and
/// `leaf-init`, and lays them out with their units for a test host.
pub(crate) fn programs(profile: Profile) -> Result<Programs> {
    if std::env::var_os(PROGRAMS_VARIABLE).is_some_and(|tree| !tree.is_empty()) {
        return Programs::here();
    }
    lay_out(&install(&setup::prepare(false)?, profile)?, profile)
}

/// Lays out the programs that were compiled with the tests.
pub(crate) fn programs_of_tests(tools: &setup::Tools) -> Result<Programs> {
    lay_out(&install::lay_out(tools, Profile::Debug)?, Profile::Debug)
}

fn lay_out(package: &Path, profile: Profile) -> Result<Programs> {
    let name = match profile {
        Profile::Debug => "host-programs",
        Profile::Release => "host-programs-released",
    };
    Programs::lay_out(package, name).context("can't lay out the test host's programs")
}

/// Builds the NixOS systems with these programs, and installs what that needs.
///
/// # Errors
/// If there is no nixpkgs tree, or they can't be built; the text says why.
pub(crate) fn nixos(programs: &Programs) -> Result<Systems> {
    can_run()?;
    nixpkgs()?;
    Systems::build(programs, &setup::prepare_nixos()?.nats_server)
}

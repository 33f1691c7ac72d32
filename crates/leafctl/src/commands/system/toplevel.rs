//! The system that a command names, and how a leaf gets it.

use std::time::Duration;

use leaf_core::command;
use leaf_core::id::{LeafName, StorePath};
use leaf_core::job::{Installable, JobResult};

use crate::commands::nix::build::follow;
use crate::commands::nix::installables::flake_reference;
use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::Output;

/// What a NixOS configuration has as its system.
const TOPLEVEL: &str = "config.system.build.toplevel";

/// Returns the installable of a leaf's system. `FLAKE` and `FLAKE#NAME` stand for a configuration: without a name, that of the leaf's own.
pub(super) fn installable(text: &str, leaf: &LeafName) -> Result<Installable, Error> {
    if let Ok(path) = StorePath::new(text) {
        return Ok(Installable::StorePath { path });
    }
    let reference = match text.split_once('#') {
        // An attribute of the flake, as `nix build` takes it.
        Some((_, attribute)) if attribute.contains('.') => text.to_owned(),
        Some((flake, "")) => format!("{flake}#nixosConfigurations.{leaf}.{TOPLEVEL}"),
        Some((flake, name)) => format!("{flake}#nixosConfigurations.{name}.{TOPLEVEL}"),
        None => format!("{text}#nixosConfigurations.{leaf}.{TOPLEVEL}"),
    };
    Ok(Installable::Flake {
        reference: flake_reference(&reference)?,
    })
}

/// Has a leaf build its system, or substitute it, as a job, whose GC root keeps it; returns its toplevel.
pub(super) async fn built(
    leaf: &Leaf,
    text: &str,
    time_limit: Option<Duration>,
    output: Output,
) -> Result<StorePath, Error> {
    let timeout_seconds = time_limit.map(|limit| u32::try_from(limit.as_secs()).unwrap_or(u32::MAX));
    let accepted = leaf
        .call(&command::Build {
            timeout_seconds,
            ..command::Build::of(vec![installable(text, &leaf.name)?])
        })
        .await?;
    let job = follow(leaf, accepted.job, output).await?;
    match job.result {
        Some(JobResult::Build(result)) => Ok(result.store_path),
        _ => Err(Error::NotFound(format!(
            "job {} has built nothing that could be a system",
            accepted.job
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flake_stands_for_the_leafs_configuration_and_a_name_for_one_of_its() {
        let leaf = LeafName::new("edge-1").expect("a name");
        let of = |text: &str| installable(text, &leaf).expect("an installable").to_string();
        let own = "github:acme/fleet#nixosConfigurations.edge-1.config.system.build.toplevel";
        assert_eq!(of("github:acme/fleet"), own);
        assert_eq!(of("github:acme/fleet#"), own);
        assert_eq!(of("github:acme/fleet#edge-1"), own);
        let attribute = "github:acme/fleet#packages.x86_64-linux.image";
        assert_eq!(of(attribute), attribute);
        let path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-nixos-system";
        assert_eq!(of(path), path);
    }
}

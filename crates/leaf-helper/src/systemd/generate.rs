//! The units at boot: a systemd generator (systemd.generator(7)) writes the units of all containers from their specs on
//! disk, so that containers with autostart start before `leafd`, and even if `leafd` does not start.
//!
//! It runs before any service, in a process that may only read files and write into the given directory.

use std::path::Path;

use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use leaf_core::spec::Autostart;

use crate::Helper;
use crate::error::{Error, Result};
use crate::systemd::start::WANTED;

/// The directory of the leaves' state directories.
pub const LEAVES: &str = "/var/lib/cim-leaf-containers";
/// The target that starts containers at boot, and the target that must start it.
const TARGET: &str = "machines.target";
const BOOT: &str = "multi-user.target";

/// Writes the units of all leaves' containers into a generator's directory. Unusable ones are left out and logged.
///
/// # Errors
/// An I/O error while writing.
pub(crate) fn generate(directory: &Path) -> Result<()> {
    generate_from(Path::new(LEAVES), directory)
}

fn generate_from(leaves: &Path, directory: &Path) -> Result<()> {
    for helper in Helper::all_recorded(leaves)? {
        if let Err(e) = helper.generate_units(directory) {
            let error = leaf_core::error::chain(&e);
            tracing::error!(leaf = %helper.leaf, error, "can't list a leaf's containers: they are left out");
        }
    }
    Ok(())
}

impl Helper {
    fn generate_units(&self, directory: &Path) -> Result<()> {
        if self.settings.runtime != Runtime::Systemd {
            return Ok(());
        }
        let failed = || Error::io(format!("read {}", self.paths.state.display()));
        for entry in std::fs::read_dir(&self.paths.state).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let Some(Ok(name)) = entry.file_name().to_str().map(ContainerName::new) else {
                continue;
            };
            if !entry.path().is_dir() {
                continue;
            }
            if let Err(e) = self.generate_unit(&name, directory) {
                tracing::error!(container = %name, error = leaf_core::error::chain(&e), "can't make a container's unit: it is left out");
            }
        }
        Ok(())
    }

    fn generate_unit(&self, name: &ContainerName, directory: &Path) -> Result<()> {
        let Some(spec) = self.spec(name)? else {
            return Ok(());
        };
        let unit = Runtime::unit(name);
        write(&directory.join(&unit), &self.unit_text(&spec)?)?;
        let wanted = self.paths.state.join(name.as_str()).join(WANTED).exists();
        if wanted && spec.options.autostart == Autostart::WithHost {
            want(directory, TARGET, &unit)?;
            // Debian ships the target, but does not enable it.
            want(directory, BOOT, TARGET)?;
        }
        Ok(())
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).map_err(Error::io(format!("write {}", file.display())))
}

/// Makes a target start a unit, by a link of which only the name matters (systemd.unit(5)).
fn want(directory: &Path, target: &str, unit: &str) -> Result<()> {
    let wants = directory.join(format!("{target}.wants"));
    std::fs::create_dir_all(&wants).map_err(Error::io(format!("create {}", wants.display())))?;
    let link = wants.join(unit);
    match std::os::unix::fs::symlink(format!("../{unit}"), &link) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::io(format!("create the link {}", link.display()))(e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use leaf_core::address_pool::AddressPool;
    use leaf_core::host_op::RunSpec;
    use leaf_core::id::{LeafName, StorePath};
    use leaf_host::contract::HostPaths;

    use super::*;
    use crate::Settings;

    #[test]
    fn each_container_gets_its_unit_and_only_those_with_autostart_start_at_boot() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let place = tempfile::tempdir().expect("a directory");
        let leaf = LeafName::new("edge").expect("a leaf");
        let state = place.path().join("leaves/edge");
        let helper = Helper::new(
            leaf.clone(),
            HostPaths {
                secrets: "/var/lib/cim-leaf-secrets/edge".into(),
                state: state.clone(),
                ..HostPaths::new(&leaf)
            },
            Settings::sample(),
        );
        helper.keep_record().expect("a record");
        for (number, (name, options, wanted)) in [
            ("web", r#"{"autostart":"with_host"}"#, true),
            ("db", "{}", true),
            ("old", r#"{"autostart":"with_host"}"#, false),
        ]
        .into_iter()
        .enumerate()
        {
            let spec = RunSpec {
                leaf: leaf.clone(),
                name: ContainerName::new(name).expect("a name"),
                toplevel: StorePath::new("/nix/store/00000000000000000000000000000000-system")
                    .expect("a path"),
                network: AddressPool::default().link(number as u8 + 1),
                options: serde_json::from_str(options).expect("options"),
                secrets: std::collections::BTreeMap::new(),
            };
            let directory = state.join(name);
            std::fs::create_dir(&directory).expect("a directory");
            let json = serde_json::to_string(&spec).expect("JSON");
            std::fs::write(directory.join("spec.json"), json).expect("a spec");
            if wanted {
                std::fs::write(directory.join(WANTED), "").expect("a mark");
            }
        }
        std::fs::create_dir(state.join("broken")).expect("a directory");
        std::fs::write(state.join("broken/spec.json"), "{").expect("half a spec");
        let out = place.path().join("normal");
        std::fs::create_dir(&out).expect("a directory");
        generate_from(&place.path().join("leaves"), &out).expect("made");
        for name in ["web", "db", "old"] {
            let text =
                std::fs::read_to_string(out.join(format!("container@{name}.service"))).expect("a unit");
            assert!(text.contains(&format!(" run {name} ")), "{text}");
        }
        let wants = |target: &str| {
            let mut names: Vec<_> = std::fs::read_dir(out.join(format!("{target}.wants")))
                .expect("a directory")
                .map(|entry| entry.expect("an entry").file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(wants("machines.target"), ["container@web.service"]);
        assert_eq!(wants("multi-user.target"), ["machines.target"]);
        assert!(!out.join("container@broken.service").exists());
        // Without any leaf, no unit is made.
        generate_from(&place.path().join("none"), &out).expect("nothing");
    }
}

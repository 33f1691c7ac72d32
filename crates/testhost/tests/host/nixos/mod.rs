//! Real NixOS systems (`crates/testhost/nixos/`): in containers on either host, and as the host itself.

mod guests;
mod host;
mod programs;
mod stock;
mod switch;

use std::time::Duration;

use anyhow::{Result, ensure};
use testhost::nixos::Systems;
use testhost::{Host, LIVES};

use crate::Trials;
use crate::leaf::{Leaf, SYSTEM, quoted};

/// The tests of all files here, but of those that need the stock program `nixos-container`.
pub(crate) const TRIALS: &[Trials] = &[guests::TRIALS, host::TRIALS, programs::TRIALS, switch::TRIALS];

/// The tests that need `nixos-container` on the NixOS host.
pub(crate) const WITH_NIXOS_CONTAINER: &[Trials] = &[stock::TRIALS];

/// The machine's memory, in MiB: systemd runs in each container.
const MEMORY_MIB: u64 = 2048;

/// Lets a command of `leafctl` wait for an emulated NixOS to start.
const PATIENT: &str = "--timeout 900s";

/// How long an emulated NixOS may take to start, to stop or to be switched.
const SLOW: Duration = Duration::from_secs(900);

/// Returns the leaf of a NixOS host, which its units have started.
fn leaf_on_nixos(systems: &Systems) -> Result<Leaf> {
    let host = Host::options()
        .nixos(systems)
        .memory_mib(MEMORY_MIB)
        .lives(2 * LIVES)
        .restore()?;
    let leaf = Leaf { host };
    leaf.answers()?;
    Ok(leaf)
}

/// Prints what is to be known of a system, and what that is where it is up and nothing in it has failed.
const STATE: &str =
    "systemctl is-active multi-user.target; systemctl is-system-running; systemctl --failed --no-legend";
const WELL: &str = "active\nrunning\n";

/// What runs a command line of bash in a container, with the environment of its own system.
fn inside(name: &str, command: &str) -> String {
    format!(
        "nsenter --target $(machinectl show {name} --property=Leader --value) --all \
         /run/current-system/sw/bin/env -i PATH=/run/current-system/sw/bin HOME=/root \
         /run/current-system/sw/bin/bash -c {}",
        quoted(command)
    )
}

impl Leaf {
    /// Runs a command line of bash in a container, with the environment of its own system, and returns what it prints.
    fn inside(&self, name: &str, command: &str) -> Result<String> {
        self.host.ok(&inside(name, command))
    }

    /// Waits until the system in a container is up and nothing in it has failed.
    fn until_well(&self, name: &str) -> Result<()> {
        self.until(&format!("all is well in container {name}"), || {
            let state = self.host.run(&inside(name, STATE))?;
            Ok(state.stdout == WELL)
        })
    }

    /// Checks that the system in a container is up and nothing in it has failed.
    fn is_well(&self, name: &str) -> Result<()> {
        let state = self.inside(name, STATE)?;
        ensure!(state == WELL, "container {name}: {state}");
        Ok(())
    }

    /// Puts what the tests' own small systems are built from where it is on the Debian host: their source, and a busybox.
    fn bring_tools(&self) -> Result<()> {
        self.host.put(SYSTEM.as_bytes(), "/var/tmp/system.nix", "0644")?;
        self.host
            .ok(
                "mkdir -p /var/tmp/tools && cp $(nix-store --query --requisites /run/current-system | grep busybox)/bin/busybox \
                 /var/tmp/tools/busybox",
            )
            .map(|_| ())
    }

    /// Returns the first process of a container.
    fn leader(&self, name: &str) -> Result<String> {
        let leader = self
            .host
            .ok(&format!("machinectl show {name} --property=Leader --value"))?;
        Ok(leader.trim().to_owned())
    }

    /// Creates a container with this system and more lines of its spec, and waits until it is ready.
    fn create(&self, name: &str, toplevel: &str, more: &str) -> Result<()> {
        let spec = self.spec(
            &format!("{name}.toml"),
            &format!(
                "name = '{name}'\nrun = 'running'\nsource = {{ type = 'toplevel', path = '{toplevel}' }}\n{more}\n"
            ),
        )?;
        self.ctl(&format!("{PATIENT} container create -f {spec}"))
            .map(|_| ())
    }
}

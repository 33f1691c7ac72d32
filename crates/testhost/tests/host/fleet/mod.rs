//! Several leaves and a hub, each a machine of its own, set up as docs/fleet.md says.

mod moves;
mod partition;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use testhost::fleet::leaf_name;
use testhost::{Fleet, Host, Output, Programs};

use crate::Trials;

/// The tests of all files here.
pub(crate) const TRIALS: &[Trials] = &[partition::TRIALS, moves::TRIALS];

/// The longest that a fleet may take for something on emulated machines, beside other work.
const PATIENCE: Duration = Duration::from_secs(180);

/// A fleet whose leaves are connected to the hub.
struct Hubbed {
    fleet: Fleet,
}

impl Hubbed {
    /// Returns a fresh fleet in which a person at the hub reaches every leaf.
    fn up(leaves: usize) -> Result<Self> {
        let options = Host::options().with(&Programs::here()?);
        let fleet = Fleet::restore(&options, &options, leaves)?;
        fleet.connect()?;
        let hubbed = Self { fleet };
        for number in 1..=leaves {
            hubbed.until_reached(&leaf_name(number))?;
        }
        hubbed.until_all_current(leaves)?;
        Ok(hubbed)
    }

    /// Runs `leafctl` at the hub.
    fn at_hub(&self, arguments: &str) -> Result<Output> {
        self.fleet.hub.run(&format!("leafctl --json {arguments}"))
    }

    /// Waits until a command that is sent at the hub is answered by a leaf.
    fn until_reached(&self, leaf: &str) -> Result<()> {
        self.until(&format!("{leaf} is reached"), |_| {
            let output = self.at_hub(&format!("--leaf {leaf} --timeout 5s leaf show"))?;
            Ok(output.status == 0)
        })
    }

    /// Waits until the hub says that all leaves are online, and their copies current.
    fn until_all_current(&self, leaves: usize) -> Result<()> {
        self.until("all leaves are online, with a copy of their events", |hub| {
            let list: Value = serde_json::from_str(&hub.ok("leafctl --json leaf list")?)?;
            let listed = list["leaves"].as_array().context("a list of leaves")?;
            let current = listed
                .iter()
                .filter(|leaf| leaf["state"] == "online" && leaf["copy"]["state"] == "current");
            Ok(listed.len() == leaves && current.count() == leaves)
        })
    }

    /// Changes a leaf's label at the hub. While its reply is lost, the command is repeated under its id.
    fn change(&self, leaf: &str, label: &str) -> Result<()> {
        let id = label.replace('=', "-");
        self.until(&format!("{leaf} has carried out {label}"), |_| {
            let output = self.at_hub(&format!(
                "--leaf {leaf} --timeout 20s --command-id {id} leaf label {label}"
            ))?;
            // No connection, no reply, temporarily unavailable: anything else is a refusal.
            ensure!(
                [0, 3, 4, 8].contains(&output.status),
                "{label} on {leaf}: {output:?}"
            );
            Ok(output.status == 0)
        })
    }

    /// Waits until something holds at the hub.
    fn until(&self, what: &str, mut holds: impl FnMut(&Host) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.fleet.hub)? {
            if Instant::now() > deadline {
                let mut logs = String::new();
                for host in self.fleet.machines() {
                    let units = "--unit leafd --unit 'leaf-h*' --unit 'leaf-change*' --unit 'nats*'";
                    let log = host.run(&format!("journalctl --no-pager --lines 30 {units}"))?;
                    logs.push_str(&format!("\n{}:\n{}", host.name(), log.stdout));
                }
                bail!("waited in vain until {what}:{logs}");
            }
        }
        Ok(())
    }
}

/// Returns a leaf's events, as a machine's `leafctl` shows them.
fn events(host: &Host, options: &str) -> Result<Vec<Value>> {
    let lines = host.ok(&format!(
        "leafctl --json --timeout 60s {options} events --since 1"
    ))?;
    lines
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("an event is JSON, not {line:?}")))
        .collect()
}

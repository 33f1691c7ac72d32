//! What runs on the machines of a fleet: the hub's server and agent, and leafd with the hub in its settings. The commands are
//! the blocks of `docs/fleet.md`, under "From nothing to a hub and three leaves".

use anyhow::{Result, bail};

use super::guide::Guide;
use super::{Fleet, HUB};
use crate::{Host, LIMIT, Running};

/// The blocks of the guide for the hub, before the leaves are connected.
const AT_HUB: [&str; 2] = [
    "On the hub: the keys, the accounts, the certificate",
    "On the hub: its server and its agent",
];
/// The block for each leaf.
const AT_LEAF: &str = "On a leaf: its link to the hub";
/// The block that makes the person `ann` of the root user of the hub.
const PERSON: &str = "On the hub: Ann";
/// Where the guide keeps what the hub's commands make.
const DIRECTORY: &str = "/etc/cim-hub";

impl Fleet {
    /// Starts nats-server and the hub agent on the hub, and leafd on the leaves, which connect to it. The machines need
    /// our programs. At the hub, `leafctl` needs no context: it is the person `ann`.
    ///
    /// # Errors
    /// If one of them does not start; the leaves may not be connected yet.
    pub fn connect(&self) -> Result<()> {
        let guide = Guide::read()?;
        let names: Vec<&str> = self.leaves.iter().map(Host::name).collect();
        let mut hub = String::new();
        for title in AT_HUB {
            hub.push_str(&guide.block_for(title, HUB, &names)?);
        }
        finish(carry_out(&self.hub, &hub)?)?;
        let certificate = self.hub.fetch(&format!("{DIRECTORY}/hub.pem"))?;
        let mut starting = Vec::new();
        for leaf in &self.leaves {
            let seed = format!("{}.seed", leaf.name());
            leaf.put(
                &self.hub.fetch(&format!("{DIRECTORY}/{seed}"))?,
                &format!("/root/{seed}"),
                "0600",
            )?;
            leaf.put(&certificate, "/root/hub.pem", "0644")?;
            starting.push(carry_out(leaf, &guide.block_for(AT_LEAF, HUB, &[leaf.name()])?)?);
        }
        finish(carry_out(&self.hub, &guide.block_for(PERSON, HUB, &names)?)?)?;
        starting.into_iter().try_for_each(finish)
    }
}

/// Starts commands in the home directory of root, which end at the first that fails.
fn carry_out<'a>(host: &'a Host, commands: &str) -> Result<Running<'a>> {
    host.put(commands.as_bytes(), "/run/guide.sh", "0700")?;
    host.start_within("cd; export HOME=/root; bash -eu /run/guide.sh", 2 * LIMIT)
}

/// Waits for their end.
fn finish(commands: Running<'_>) -> Result<()> {
    let host = commands.host;
    let output = commands.wait()?;
    if output.status == 0 {
        return Ok(());
    }
    let units = "--unit nats --unit leaf-hub --unit leafd";
    let log = host.run(&format!("journalctl --no-pager --lines 20 {units}"))?;
    bail!(
        "the commands of docs/fleet.md fail on {}: {output:?}\n{}",
        host.name(),
        log.stdout
    )
}

//! A fleet: several machines on one network, of which one is the hub.
//!
//! Each has its own name, machine id and hardware addresses, knows the others by name, and can be reached from outside as
//! any [`Host`]. [`Fleet::network`] changes their links, [`Fleet::connect`] makes a hub and leaves of them, [`Served`] lets other processes use a running fleet.

mod control;
mod guide;
mod hub;
mod moves;

use anyhow::{Context as _, Result, ensure};

use crate::{Host, Network, Options};

pub use control::{Reached, Served};
pub use guide::Guide;
pub use moves::{HUB_PORTS, SIGNER, hub_url};

/// The name of the hub.
pub const HUB: &str = "hub";
/// The most leaves that a fleet has room for.
pub const MOST_LEAVES: usize = 64;

/// A running fleet. Its machines end when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    /// The network of all machines; the links have the machines' names.
    pub network: Network,
    /// The hub, with the address [`address`] of 0.
    pub hub: Host,
    /// The leaves `leaf-1`, `leaf-2`, …
    pub leaves: Vec<Host>,
}

/// Returns a machine's address: of the hub for 0, and of the leaf with this number for others.
pub fn address(number: usize) -> String {
    format!("10.77.0.{}", number + 1)
}

/// Returns a leaf's name; the first has the number 1.
pub fn leaf_name(number: usize) -> String {
    format!("leaf-{number}")
}

impl Fleet {
    /// Restores a hub and this many leaves, with these options each, on a new network.
    ///
    /// # Errors
    /// As [`Host::restore`]; or if there is no room for so many leaves.
    pub fn restore(hub: &Options, leaf: &Options, leaves: usize) -> Result<Self> {
        ensure!(
            (1..=MOST_LEAVES).contains(&leaves),
            "a fleet has 1 to {MOST_LEAVES} leaves, not {leaves}"
        );
        let network = Network::new()?;
        let on_it = |options: &Options, name: &str, number: usize| {
            let options = options.clone().name(name);
            options.on(&network, &format!("{}/24", address(number)))
        };
        // One after the other: the first one makes the image that the others are restored from, and machines that start side
        // by side take as long.
        let hub = on_it(hub, HUB, 0).restore()?;
        let leaves = (1..=leaves).map(|number| on_it(leaf, &leaf_name(number), number).restore());
        let fleet = Self {
            leaves: leaves.collect::<Result<_>>()?,
            network,
            hub,
        };
        fleet.name_each_other()?;
        Ok(fleet)
    }

    /// Returns a leaf; the first has the number 1.
    ///
    /// # Panics
    /// If the fleet has no such leaf.
    pub fn leaf(&self, number: usize) -> &Host {
        &self.leaves[number - 1]
    }

    /// Returns all machines, the hub first.
    pub fn machines(&self) -> impl Iterator<Item = &Host> {
        std::iter::once(&self.hub).chain(&self.leaves)
    }

    /// Lets each machine find the others by name.
    fn name_each_other(&self) -> Result<()> {
        let mut lines = String::new();
        for (number, machine) in self.machines().enumerate() {
            lines.push_str(&format!("{} {}\\n", address(number), machine.name()));
        }
        for machine in self.machines() {
            machine
                .ok(&format!("printf '{lines}' >>/etc/hosts; sync /etc/hosts"))
                .with_context(|| {
                    format!(
                        "can't write the names of the fleet's machines on {}",
                        machine.name()
                    )
                })?;
        }
        Ok(())
    }
}

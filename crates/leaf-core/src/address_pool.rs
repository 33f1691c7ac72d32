//! The addresses of a leaf and its containers.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::container::{Container, ContainerNetwork};
use crate::state::State;

/// The address pool of a leaf and its containers: a `/16` network. `.0.1` is the leaf's address; `.N.1` and `.N.2` are
/// the two ends of a container's veth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct AddressPool(Ipv4Net);

impl AddressPool {
    /// Returns the network.
    #[must_use]
    pub fn network(self) -> Ipv4Net {
        self.0
    }

    /// Returns the first two octets of its addresses.
    fn octets(self) -> [u8; 2] {
        let [first, second, ..] = self.0.addr().octets();
        [first, second]
    }

    /// Returns the leaf's address.
    #[must_use]
    pub fn leaf_address(self) -> Ipv4Addr {
        let [first, second] = self.octets();
        Ipv4Addr::new(first, second, 0, 1)
    }

    /// Returns the addresses of the container network with this number, from 1 to 255.
    #[must_use]
    pub fn link(self, number: u8) -> ContainerNetwork {
        let [first, second] = self.octets();
        let end = |last| Ipv4Addr::new(first, second, number, last);
        let end6 = |last| {
            // fd63:6c66 is "cl" of cim-leaf in a unique local prefix (RFC 4193); the pool's octets tell leaves of one host
            // apart. Nothing routes these addresses beyond the leaf.
            let own = u16::from_be_bytes(self.octets());
            Ipv6Addr::new(0xfd63, 0x6c66, own, number.into(), 0, 0, 0, last)
        };
        ContainerNetwork {
            host_address: end(1),
            container_address: end(2),
            host_address6: Some(end6(1)),
            container_address6: Some(end6(2)),
        }
    }

    /// Returns whether an IPv6 address belongs to the pool.
    #[must_use]
    pub fn contains6(self, address: Ipv6Addr) -> bool {
        address.segments()[..3] == [0xfd63, 0x6c66, u16::from_be_bytes(self.octets())]
    }

    /// Returns whether an IPv4 address belongs to the pool.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.0.contains(&address)
    }

    /// Returns the first container network that no container of the state uses; `None` if all are in use.
    #[must_use]
    pub fn free_link(self, state: &State) -> Option<ContainerNetwork> {
        (1..=255).map(|number| self.link(number)).find(|link| {
            let taken = |c: &Container| c.desired.network.container_address == link.container_address;
            let address = Value::from(link.container_address.to_string());
            !state.containers.values().any(taken) && !state.raw_entry_has("container_address", &address)
        })
    }
}

impl Default for AddressPool {
    fn default() -> Self {
        Self(Ipv4Net::new_assert(Ipv4Addr::new(10, 233, 0, 0), 16))
    }
}

impl std::fmt::Display for AddressPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for AddressPool {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

impl From<AddressPool> for String {
    fn from(pool: AddressPool) -> Self {
        pool.to_string()
    }
}

impl TryFrom<String> for AddressPool {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a private /16 network such as 10.233.0.0/16");
        let network: Ipv4Net = text.parse().map_err(|_| bad())?;
        let is_first = network.addr() == network.network();
        if network.prefix_len() == 16 && is_first && network.addr().is_private() {
            Ok(Self(network))
        } else {
            Err(bad())
        }
    }
}

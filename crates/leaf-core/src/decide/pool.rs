//! The addresses of a leaf and its containers.

use std::net::{Ipv4Addr, Ipv6Addr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::container::{Container, ContainerNetwork};
use crate::state::State;

/// The addresses of a leaf and its containers: a `/16` network. `.0.1` is the leaf's, `.N.1` and `.N.2` are the two
/// ends of a container's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct AddressPool([u8; 2]);

impl AddressPool {
    /// The leaf's address.
    #[must_use]
    pub fn leaf_address(self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[0], self.0[1], 0, 1)
    }

    /// The link with this number, from 1 to 255.
    #[must_use]
    pub fn link(self, number: u8) -> ContainerNetwork {
        let end = |last| Ipv4Addr::new(self.0[0], self.0[1], number, last);
        let end6 = |last| {
            // fd63:6c66 is "cl" of cim-leaf in a unique local prefix (RFC 4193); the pool's octets tell leaves of one host
            // apart. Nothing routes these addresses beyond the leaf.
            let own = u16::from_be_bytes(self.0);
            Ipv6Addr::new(0xfd63, 0x6c66, own, number.into(), 0, 0, 0, last)
        };
        ContainerNetwork {
            host_address: end(1),
            container_address: end(2),
            host_address6: Some(end6(1)),
            container_address6: Some(end6(2)),
        }
    }

    /// Whether an IPv6 address is one of the network.
    #[must_use]
    pub fn contains6(self, address: Ipv6Addr) -> bool {
        address.segments()[..3] == [0xfd63, 0x6c66, u16::from_be_bytes(self.0)]
    }

    /// Whether an address is one of the network.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.octets()[..2] == self.0
    }

    /// The first link that no container of the state has, or nothing if all are taken.
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
        Self([10, 233])
    }
}

impl std::fmt::Display for AddressPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.0.0/16", self.0[0], self.0[1])
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
        let address: Ipv4Addr = text
            .strip_suffix("/16")
            .and_then(|a| a.parse().ok())
            .ok_or_else(bad)?;
        let [a, b, 0, 0] = address.octets() else {
            return Err(bad());
        };
        if address.is_private() {
            Ok(Self([a, b]))
        } else {
            Err(bad())
        }
    }
}

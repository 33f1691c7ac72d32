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

    /// Returns the first container network that neither a container of the state uses nor the host, which has these
    /// addresses and routes; `None` if all are in use. A route to the whole pool is no use of its parts.
    #[must_use]
    pub fn free_link(self, state: &State, host: &[Ipv4Net]) -> Option<ContainerNetwork> {
        let parts: Vec<_> = host
            .iter()
            .filter(|net| net.prefix_len() > self.0.prefix_len())
            .collect();
        (1..=255).map(|number| self.link(number)).find(|link| {
            let taken = |c: &Container| c.desired.network.container_address == link.container_address;
            let address = Value::from(link.container_address.to_string());
            let own = Ipv4Net::new_assert(link.host_address, 24).trunc();
            !parts.iter().any(|net| own.contains(*net) || net.contains(&own))
                && !state.containers.values().any(taken)
                && !state.raw_entry_has("container_address", &address)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_network_that_is_free_on_the_host_is_taken() {
        let pool = AddressPool::default();
        let free = |host: &[&str]| {
            let host: Vec<Ipv4Net> = host.iter().map(|net| net.parse().expect("a network")).collect();
            pool.free_link(&State::default(), &host)
        };
        assert_eq!(free(&[]), Some(pool.link(1)));
        // A foreign container's two addresses, and an interface of another kind.
        assert_eq!(
            free(&["10.233.1.1/32", "10.233.1.2/32", "10.233.2.77/32"]),
            Some(pool.link(3))
        );
        assert_eq!(free(&["10.233.1.0/24", "10.233.3.0/24"]), Some(pool.link(2)));
        assert_eq!(free(&["10.233.0.0/22"]), Some(pool.link(4)));
        // The leaf's own address, other networks, and routes that the links' own take precedence over.
        assert_eq!(
            free(&[
                "10.233.0.1/32",
                "192.168.1.0/24",
                "10.233.0.0/16",
                "10.0.0.0/8",
                "0.0.0.0/0"
            ]),
            Some(pool.link(1))
        );
        assert_eq!(free(&["10.233.0.0/17", "10.233.128.0/17"]), None);
    }
}

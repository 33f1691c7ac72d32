//! The openings of a container's closed network, in addition to its leaf's NATS.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::id::ContainerName;

/// An opening of a container's closed network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum Opening {
    /// The container may reach a port of another container of its leaf.
    Container {
        /// The other container's name.
        name: ContainerName,
        /// TCP or UDP.
        #[serde(default)]
        protocol: Protocol,
        /// The other container's port.
        port: u16,
    },
    /// The container may reach an address or a network outside the leaf.
    Outside {
        /// The address or network: `192.0.2.7`, `2001:db8::/32`.
        to: Destination,
        /// TCP or UDP.
        #[serde(default)]
        protocol: Protocol,
        /// The port; by default all ports.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
    /// A port of the leaf is forwarded to a port of the container.
    Ingress {
        /// TCP or UDP.
        #[serde(default)]
        protocol: Protocol,
        /// The leaf's port.
        host_port: u16,
        /// The container's port; by default the same number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// An address, or a network in CIDR notation (RFC 4632).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Destination(IpNet);

impl Destination {
    /// Returns the address; for a network, its first one.
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.0.addr()
    }

    /// Returns the length of the network's prefix, in bits.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.0.prefix_len()
    }
}

impl std::str::FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = match text.parse::<IpAddr>() {
            Ok(address) => address.into(),
            Err(_) => text
                .parse::<IpNet>()
                .map_err(|_| format!("{text:?} is neither an address nor a network such as 192.0.2.0/24"))?,
        };
        if net.addr() != net.network() {
            return Err(format!(
                "{text:?} has bits set after its prefix of {} bits, which would be ignored; write the network itself",
                net.prefix_len()
            ));
        }
        Ok(Self(net))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

impl Serialize for Destination {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Destination {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Checks the openings of a container.
pub(super) fn check(openings: &[Opening], own: &ContainerName) -> Result<(), String> {
    let mut ingress = BTreeSet::new();
    for opening in openings {
        let port = match opening {
            Opening::Container { name, .. } if name == own => {
                return Err(format!("allow: {own} can reach itself without an opening"));
            }
            Opening::Container { port, .. } => *port,
            Opening::Outside { port, .. } => port.unwrap_or(1),
            Opening::Ingress {
                protocol,
                host_port,
                port,
            } => {
                if !ingress.insert((*protocol, *host_port)) {
                    return Err(format!(
                        "allow: {protocol} port {host_port} of the leaf is listed twice"
                    ));
                }
                (*host_port).min(port.unwrap_or(*host_port))
            }
        };
        if port == 0 {
            return Err("allow: 0 is not a port; from 1 to 65535".to_owned());
        }
    }
    Ok(())
}

//! What a container's closed network opens beside its leaf's NATS.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::id::ContainerName;

/// One opening in a container's closed network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum Opening {
    /// It may reach a port of another container of its leaf.
    Container {
        /// The other one.
        name: ContainerName,
        /// TCP or UDP.
        #[serde(default)]
        protocol: Protocol,
        /// The port there.
        port: u16,
    },
    /// It may reach an address or a network outside.
    Outside {
        /// The address or network: `192.0.2.7`, `2001:db8::/32`.
        to: Destination,
        /// TCP or UDP.
        #[serde(default)]
        protocol: Protocol,
        /// The port there; all of them if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
    /// A port of the leaf leads to one of its own.
    Ingress {
        /// TCP or UDP.
        #[serde(default)]
        protocol: Protocol,
        /// The port of the leaf.
        host_port: u16,
        /// Its own port; the same number if not given.
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

/// An address or a network, as CIDR (RFC 4632) has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct Destination {
    address: IpAddr,
    prefix: u8,
}

impl Destination {
    /// The address; of a network its first.
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// How many bits of it count.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }
}

impl std::str::FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is neither an address nor a network such as 192.0.2.0/24");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let (bits, number) = match address {
            IpAddr::V4(v4) => (32, u128::from(v4.to_bits()) << 96),
            IpAddr::V6(v6) => (128, v6.to_bits()),
        };
        let prefix: u8 = prefix.map_or(Ok(bits), |p| p.parse().map_err(|_| bad()))?;
        if prefix > bits {
            return Err(bad());
        }
        if number.checked_shl(prefix.into()).unwrap_or(0) != 0 {
            return Err(format!(
                "{text:?} has bits set behind its first {prefix}, which would be ignored; write the network itself"
            ));
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.address.is_ipv4() { 32 } else { 128 };
        if self.prefix == whole {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
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
                return Err(format!("allow: {own} reaches itself without an opening"));
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
                        "allow: {protocol} port {host_port} of the leaf stands there twice"
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

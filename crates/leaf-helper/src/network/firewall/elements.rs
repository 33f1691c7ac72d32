//! A container's elements in the rules' sets: a pure function of its spec.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use leaf_core::host_op::RunSpec;
use leaf_core::id::ContainerName;
use leaf_core::spec::{Destination, Opening, Protocol};

use crate::error::{Error, Result};

/// All elements of one container.
pub(super) type Elements = BTreeSet<Element>;

/// An element, for the container whose link it names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Element {
    /// The link is a container's.
    Link,
    /// The container's own address.
    Source(IpAddr),
    /// The host's address on the veth.
    Gateway(IpAddr),
    /// The permitted ARP requests: sender and target.
    Asks { container: Ipv4Addr, host: Ipv4Addr },
    /// A port of another container that this one may reach.
    Reaches {
        other: ContainerName,
        protocol: Protocol,
        port: u16,
    },
    /// Ports outside that it may reach.
    Outside {
        to: Destination,
        protocol: Protocol,
        first: u16,
        last: u16,
    },
    /// A port of the container that ports of the leaf are forwarded to.
    Entry { protocol: Protocol, port: u16 },
    /// A port of the leaf that is forwarded to it.
    Ingress {
        protocol: Protocol,
        host_port: u16,
        to: IpAddr,
        port: u16,
    },
}

impl Element {
    /// Returns the part that only one container can have: a port of the leaf, in one family.
    pub(super) fn ingress(&self) -> Option<(Protocol, u16, bool)> {
        match self {
            Self::Ingress {
                protocol,
                host_port,
                to,
                ..
            } => Some((*protocol, *host_port, to.is_ipv4())),
            _ => None,
        }
    }
}

/// Returns the elements of a container.
///
/// # Errors
/// [`Error::Refused`] when its spec is invalid: although it was validated before, it is not trusted.
pub(super) fn of(spec: &RunSpec) -> Result<Elements> {
    spec.options.check(&spec.name).map_err(Error::Refused)?;
    let network = spec.network;
    let (container, host) = (network.container_address, network.host_address);
    let mut elements = Elements::from([
        Element::Link,
        Element::Source(container.into()),
        Element::Gateway(host.into()),
        Element::Asks { container, host },
    ]);
    let mut own: Vec<IpAddr> = vec![container.into()];
    if let (Some(container), Some(host)) = (network.container_address6, network.host_address6) {
        elements.extend([Element::Source(container.into()), Element::Gateway(host.into())]);
        own.push(container.into());
    }
    for opening in &spec.options.allow {
        match opening {
            Opening::Container { name, protocol, port } => {
                elements.insert(Element::Reaches {
                    other: name.clone(),
                    protocol: *protocol,
                    port: *port,
                });
            }
            Opening::Ingress {
                protocol,
                host_port,
                port,
            } => {
                let (protocol, host_port) = (*protocol, *host_port);
                let port = port.unwrap_or(host_port);
                elements.insert(Element::Entry { protocol, port });
                elements.extend(own.iter().map(|to| Element::Ingress {
                    protocol,
                    host_port,
                    to: *to,
                    port,
                }));
            }
            Opening::Outside { .. } => {}
        }
    }
    elements.extend(outside(&spec.options.allow));
    Ok(elements)
}

/// Returns the openings to the outside without overlaps: the kernel accepts no overlapping ranges in a set.
fn outside(allow: &[Opening]) -> Elements {
    let wanted: BTreeSet<(Protocol, Destination, Option<u16>)> = allow
        .iter()
        .filter_map(|opening| match opening {
            Opening::Outside { to, protocol, port } => Some((*protocol, *to, *port)),
            _ => None,
        })
        .collect();
    let covered = |one: &(Protocol, Destination, Option<u16>)| {
        wanted.iter().any(|other| {
            other != one
                && other.0 == one.0
                && contains(other.1, one.1)
                && (other.2.is_none() || other.2 == one.2)
        })
    };
    let kept: Vec<_> = wanted.iter().filter(|one| !covered(one)).collect();
    let mut elements = Elements::new();
    'openings: for (protocol, to, port) in &kept {
        let mut put = |first, last| {
            elements.insert(Element::Outside {
                to: *to,
                protocol: *protocol,
                first,
                last,
            });
        };
        if let Some(port) = port {
            put(*port, *port);
            continue;
        }
        // All ports are open here, and some of them also in a larger network, which covers those.
        let elsewhere: BTreeSet<u16> = kept
            .iter()
            .filter(|other| other.0 == *protocol && contains(other.1, *to))
            .filter_map(|other| other.2)
            .collect();
        let mut first = 0;
        for port in elsewhere {
            if let Some(before) = port.checked_sub(1).filter(|before| *before >= first) {
                put(first, before);
            }
            match port.checked_add(1) {
                Some(next) => first = next,
                None => continue 'openings,
            }
        }
        put(first, u16::MAX);
    }
    elements
}

/// Returns whether a network contains another one.
fn contains(large: Destination, small: Destination) -> bool {
    if large.prefix() > small.prefix() {
        return false;
    }
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, true),
        IpAddr::V6(v6) => (v6.to_bits(), false),
    };
    let ((a, a_is_v4), (b, b_is_v4)) = (bits(large.address()), bits(small.address()));
    let mask = u128::MAX
        .checked_shl(128 - u32::from(large.prefix()))
        .unwrap_or(0);
    a_is_v4 == b_is_v4 && (a ^ b) & mask == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(to: &str, port: Option<u16>) -> Opening {
        Opening::Outside {
            to: to.parse().expect("a destination"),
            protocol: Protocol::Tcp,
            port,
        }
    }

    fn told(allow: &[Opening]) -> Vec<String> {
        outside(allow)
            .iter()
            .map(|element| match element {
                Element::Outside { to, first, last, .. } => format!("{to} {first}-{last}"),
                other => unreachable!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn openings_covered_by_a_larger_one_are_left_out() {
        let allow = [
            opening("192.0.2.0/24", None),
            opening("192.0.2.7", Some(80)),
            opening("192.0.2.128/25", None),
            opening("198.51.100.1", Some(80)),
            opening("2001:db8::1", None),
            opening("2001:db8::/32", None),
        ];
        assert_eq!(
            told(&allow),
            [
                "192.0.2.0/24 0-65535",
                "198.51.100.1 80-80",
                "2001:db8::/32 0-65535"
            ]
        );
    }

    #[test]
    fn overlapping_openings_are_split() {
        let allow = [
            opening("0.0.0.0/0", Some(53)),
            opening("192.0.2.0/24", None),
            opening("192.0.0.0/16", Some(65535)),
            opening("::/0", Some(54)),
        ];
        assert_eq!(
            told(&allow),
            [
                "0.0.0.0/0 53-53",
                "192.0.0.0/16 65535-65535",
                "192.0.2.0/24 0-52",
                "192.0.2.0/24 54-65534",
                "::/0 54-54"
            ]
        );
    }

    #[test]
    fn exactly_the_packets_that_an_opening_permits_match_one_element() {
        let allow = [
            opening("10.0.0.0/8", Some(1)),
            opening("10.0.0.0/8", Some(65535)),
            opening("10.1.0.0/16", None),
            opening("10.1.1.0/24", Some(7)),
            opening("10.2.0.0/16", Some(7)),
            opening("10.2.2.0/24", None),
        ];
        let elements = outside(&allow);
        for address in [
            "10.0.0.1", "10.1.0.1", "10.1.1.1", "10.2.0.1", "10.2.2.1", "11.0.0.1",
        ] {
            let to: Destination = address.parse().expect("an address");
            for port in [1, 2, 6, 7, 8, 65534, 65535] {
                let named = allow.iter().any(|o| {
                    matches!(o, Opening::Outside { to: net, port: p, .. }
                        if contains(*net, to) && p.is_none_or(|p| p == port))
                });
                let hits = elements.iter().filter(|e| {
                    matches!(e, Element::Outside { to: net, first, last, .. }
                        if contains(*net, to) && (*first..=*last).contains(&port))
                });
                assert_eq!(hits.count(), usize::from(named), "{address} {port}");
            }
        }
    }
}

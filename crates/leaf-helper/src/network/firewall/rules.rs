//! The text of the rules, for `nft -f -`. It contains only names, numbers and addresses that their types have
//! validated.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use leaf_core::id::{ContainerName, LeafName};

use super::elements::{Element, Elements};
use crate::network::host_link;

/// Returns the script that replaces a leaf's rules by new ones without elements.
pub(super) fn table(leaf: &LeafName, leaf_address: Ipv4Addr, nats_port: u16) -> String {
    // Deleting requires that the table exists, and adding an existing one is not an error.
    format!(
        "add table inet leaf_{leaf}
delete table inet leaf_{leaf}
add table arp leaf_{leaf}
delete table arp leaf_{leaf}
table inet leaf_{leaf} {{
  set links {{ type ifname; }}
  set sources4 {{ type ifname . ipv4_addr; }}
  set sources6 {{ type ifname . ipv6_addr; }}
  set gateways4 {{ type ifname . ipv4_addr; }}
  set gateways6 {{ type ifname . ipv6_addr; }}
  set pairs {{ type ifname . ifname . inet_proto . inet_service; }}
  set outside4 {{ type ifname . ipv4_addr . inet_proto . inet_service; flags interval; }}
  set outside6 {{ type ifname . ipv6_addr . inet_proto . inet_service; flags interval; }}
  set entries {{ type ifname . inet_proto . inet_service; }}
  map ingress4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map ingress6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
  chain spoofed {{
    type filter hook prerouting priority raw; policy accept;
    iifname != @links accept
    iifname . ip saddr @sources4 accept
    iifname . ip6 saddr @sources6 accept
    counter drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname != @links accept
    ct state related accept
    ct state established ct direction reply accept
    ip daddr {leaf_address} tcp dport {nats_port} counter accept
    iifname . ip daddr @gateways4 tcp dport {nats_port} counter accept
    iifname . ip6 daddr @gateways6 tcp dport {nats_port} counter accept
    icmpv6 type nd-neighbor-solicit ip6 hoplimit 255 accept
    counter drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname != @links oifname != @links accept
    ct state related accept
    ct state established ct direction reply accept
    oifname @links goto inward
    iifname . ip daddr . meta l4proto . th dport @outside4 counter accept
    iifname . ip6 daddr . meta l4proto . th dport @outside6 counter accept
    counter drop
  }}
  chain inward {{
    oifname . ip daddr != @sources4 counter drop
    oifname . ip6 daddr != @sources6 counter drop
    iifname . oifname . meta l4proto . th dport @pairs counter accept
    iifname != @links ct status dnat oifname . meta l4proto . th dport @entries counter accept
    counter drop
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname != @links accept
    oifname . ip daddr @sources4 accept
    oifname . ip6 daddr @sources6 accept
    counter drop
  }}
  chain arriving {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname @links accept
    fib daddr type local goto ingress
  }}
  chain local {{
    type nat hook output priority -100; policy accept;
    ip daddr 127.0.0.0/8 accept
    ip6 daddr ::1 accept
    fib daddr type local goto ingress
  }}
  chain ingress {{
    dnat ip to meta l4proto . th dport map @ingress4
    dnat ip6 to meta l4proto . th dport map @ingress6
  }}
  chain leaving {{
    type nat hook postrouting priority srcnat; policy accept;
    iifname @links oifname != @links masquerade
  }}
}}
table arp leaf_{leaf} {{
  set links {{ type ifname; }}
  set asks {{ type ifname . ipv4_addr . ipv4_addr; }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname != @links accept
    iifname . arp saddr ip . arp daddr ip @asks accept
    counter drop
  }}
}}
"
    )
}

/// Returns the script that replaces the elements of one container. The old ones need not all exist.
pub(super) fn replace(leaf: &LeafName, name: &ContainerName, old: &Elements, new: &Elements) -> String {
    let mut script = String::new();
    for gone in old.difference(new) {
        // Only existing elements can be deleted, and adding existing ones is not an error: so it adds before deleting.
        line(&mut script, "add", leaf, name, gone);
        line(&mut script, "delete", leaf, name, gone);
    }
    for element in new {
        line(&mut script, "add", leaf, name, element);
    }
    script
}

fn line(script: &mut String, verb: &str, leaf: &LeafName, name: &ContainerName, element: &Element) {
    let link = format!("\"{}\"", host_link(name));
    let mut put = |family: &str, set: &str, element: std::fmt::Arguments<'_>| {
        writeln!(
            script,
            "{verb} element {family} leaf_{leaf} {set} {{ {element} }}"
        )
        .expect("writing to a string can't fail");
    };
    match element {
        Element::Link => {
            put("inet", "links", format_args!("{link}"));
            put("arp", "links", format_args!("{link}"));
        }
        Element::Source(address) => {
            put(
                "inet",
                of(*address, ["sources4", "sources6"]),
                format_args!("{link} . {address}"),
            );
        }
        Element::Gateway(address) => {
            put(
                "inet",
                of(*address, ["gateways4", "gateways6"]),
                format_args!("{link} . {address}"),
            );
        }
        Element::Asks { container, host } => {
            put("arp", "asks", format_args!("{link} . {container} . {host}"));
        }
        Element::Reaches {
            other,
            protocol,
            port,
        } => {
            let other = host_link(other);
            put(
                "inet",
                "pairs",
                format_args!("{link} . \"{other}\" . {protocol} . {port}"),
            );
        }
        Element::Outside {
            to,
            protocol,
            first,
            last,
        } => {
            let set = of(to.address(), ["outside4", "outside6"]);
            put(
                "inet",
                set,
                format_args!("{link} . {to} . {protocol} . {first}-{last}"),
            );
        }
        Element::Entry { protocol, port } => {
            put("inet", "entries", format_args!("{link} . {protocol} . {port}"));
        }
        Element::Ingress {
            protocol,
            host_port,
            to,
            port,
        } => {
            let map = of(*to, ["ingress4", "ingress6"]);
            put(
                "inet",
                map,
                format_args!("{protocol} . {host_port} : {to} . {port}"),
            );
        }
    }
}

fn of(address: IpAddr, [v4, v6]: [&'static str; 2]) -> &'static str {
    if address.is_ipv4() { v4 } else { v6 }
}

//! That the host forwards packets at all, which openings need.
//!
//! A host that does not forward is not made a router by an opening of a container: where the helper puts forwarding
//! on, it closes it for all but containers in the same breath, by a table of its own (`inet cim_leaf_forwarding`). Who wants
//! the host to forward for others sets the sysctls at boot, and then there is no such table.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::nft;
use crate::error::{Error, Result};

/// A family, and the file that says whether its packets are forwarded.
const FAMILIES: [(&str, &str); 2] = [
    ("ipv4", "/proc/sys/net/ipv4/ip_forward"),
    ("ipv6", "/proc/sys/net/ipv6/conf/all/forwarding"),
];
/// The settings of each interface, by IPv6.
const INTERFACES: &str = "/proc/sys/net/ipv6/conf";

/// Sees to it that the host forwards packets, by IPv4 and, where it has that, IPv6.
pub(super) async fn ensure(nft: &Path) -> Result<()> {
    for (family, setting) in FAMILIES {
        let forwards = match std::fs::read_to_string(setting) {
            Ok(value) => value.trim() != "0",
            Err(e) if e.kind() == ErrorKind::NotFound && family == "ipv6" => continue,
            Err(e) => return Err(Error::io(format!("read {setting}"))(e)),
        };
        if forwards {
            continue;
        }
        nft::run(nft, &closed_for_others(family))
            .await
            .map_err(nft::Failure::of_new_rules)?;
        if family == "ipv6" {
            keep_router_advertisements()?;
        }
        write(Path::new(setting), "1")?;
        tracing::warn!(
            family,
            "an opening needs this host to forward packets, which it did not: now it does, for containers only (nftables \
             table inet cim_leaf_forwarding); set net.ipv4.ip_forward and net.ipv6.conf.all.forwarding at boot if it \
             is to forward for others as well"
        );
    }
    Ok(())
}

fn closed_for_others(family: &str) -> String {
    format!(
        "add table inet cim_leaf_forwarding
add chain inet cim_leaf_forwarding {family} {{ type filter hook forward priority filter; policy accept; }}
flush chain inet cim_leaf_forwarding {family}
add rule inet cim_leaf_forwarding {family} meta nfproto != {family} accept
add rule inet cim_leaf_forwarding {family} iifname \"ve-*\" accept
add rule inet cim_leaf_forwarding {family} oifname \"ve-*\" accept
add rule inet cim_leaf_forwarding {family} counter drop
"
    )
}

/// A host that forwards by IPv6 no longer listens to its own router, unless it is told to (`accept_ra`, the kernel's
/// ip-sysctl.rst): one that has its address from there would lose it.
fn keep_router_advertisements() -> Result<()> {
    let unreadable = || Error::io(format!("read {INTERFACES}"));
    for entry in std::fs::read_dir(INTERFACES).map_err(unreadable())? {
        let setting: PathBuf = entry.map_err(unreadable())?.path().join("accept_ra");
        // An interface may go while this looks.
        if std::fs::read_to_string(&setting).is_ok_and(|value| value.trim() == "1") {
            match write(&setting, "2") {
                Err(_) if !setting.exists() => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn write(setting: &Path, value: &str) -> Result<()> {
    std::fs::write(setting, value).map_err(|e| {
        Error::Unsupported(format!(
            "allow: an opening needs this host to forward packets, which it does not, and that can't be changed from \
             here ({}: {e}); set net.ipv4.ip_forward = 1 and net.ipv6.conf.all.forwarding = 1 on the host",
            setting.display()
        ))
    })
}

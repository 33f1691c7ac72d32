//! Packet forwarding of the host, which openings need.
//!
//! An opening does not turn a host that does not forward into a router: when the helper enables forwarding, it first
//! closes it for everything but containers, by a table of its own (`inet cim_leaf_forwarding`). If the sysctls are set
//! at boot, to forward for others as well, there is no such table.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::nft;
use crate::error::{Error, Result};

/// The families, each with the file of its forwarding setting.
const FAMILIES: [(&str, &str); 2] = [
    ("ipv4", "/proc/sys/net/ipv4/ip_forward"),
    ("ipv6", "/proc/sys/net/ipv6/conf/all/forwarding"),
];
/// The IPv6 settings of each interface.
const INTERFACES: &str = "/proc/sys/net/ipv6/conf";

/// Makes the host forward packets, in IPv4 and, if it has it, IPv6.
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
            "enabled packet forwarding, which an opening needs, for containers only (nftables table inet \
            cim_leaf_forwarding); to forward for others as well, set net.ipv4.ip_forward and \
            net.ipv6.conf.all.forwarding at boot"
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

/// Keeps router advertisements accepted (`accept_ra`, the kernel's ip-sysctl.rst): by default a host that forwards IPv6
/// ignores them, and would lose an address that it has from its router.
fn keep_router_advertisements() -> Result<()> {
    let unreadable = || Error::io(format!("read {INTERFACES}"));
    for entry in std::fs::read_dir(INTERFACES).map_err(unreadable())? {
        let setting: PathBuf = entry.map_err(unreadable())?.path().join("accept_ra");
        // An interface may disappear in the meantime.
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
            "allow: an opening needs packet forwarding, which is off on this host and can't be enabled ({}: {e}); set \
            net.ipv4.ip_forward = 1 and net.ipv6.conf.all.forwarding = 1 on the host",
            setting.display()
        ))
    })
}

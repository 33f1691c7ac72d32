//! Packet forwarding of the host, which openings need.
//!
//! An opening does not turn a host that does not forward into a router: before the helper enables forwarding, it closes
//! it for everything but containers, by a table of its own (`inet cim_leaf_forwarding`). A note says which families were
//! enabled so. Where it exists, the table is among the rules that are set after a flush, forwarding is off while the
//! network is closed, and the last leaf without containers switches it off. If the sysctls are set at boot, to forward
//! for others as well, there is neither a note nor a table.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{nft, tables};
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::{Helper, lock};

/// The families, each with the file of its forwarding setting.
const FAMILIES: [(&str, &str); 2] = [
    ("ipv4", "/proc/sys/net/ipv4/ip_forward"),
    ("ipv6", "/proc/sys/net/ipv6/conf/all/forwarding"),
];
/// The IPv6 settings of each interface.
const INTERFACES: &str = "/proc/sys/net/ipv6/conf";
/// The table that drops what is forwarded and not a container's.
const TABLE: &str = "cim_leaf_forwarding";
/// The lock held while the setting, the table or a note is changed, beside the notes.
const LOCK: &str = "forwarding.lock";

/// The host's forwarding, locked.
#[derive(Debug)]
pub(super) struct Forwarding<'a> {
    nft: &'a Path,
    /// The directory of all leaves' run directories: the setting is the host's, and a reboot resets both.
    notes: Directory,
    _lock: File,
}

impl Helper {
    /// Locks the host's forwarding.
    pub(super) async fn forwarding(&self) -> Result<Forwarding<'_>> {
        let all = self.paths.run.parent().unwrap_or(&self.paths.run);
        let notes = Directory::make_root(all, 0o755)?;
        let lock = lock::hold(&notes, LOCK).await?;
        Ok(Forwarding {
            nft: &self.settings.nft,
            notes,
            _lock: lock,
        })
    }
}

impl Forwarding<'_> {
    /// Makes the host forward packets, in IPv4 and, if it has it, IPv6. If the network is closed,
    /// [`resume`](Self::resume) does so when it is opened.
    pub(super) async fn ensure(&self, is_closed: bool) -> Result<()> {
        for (family, setting) in FAMILIES {
            if !is_off(setting)? {
                continue;
            }
            nft::run(self.nft, &closed_for_others(family))
                .await
                .map_err(nft::Failure::of_new_rules)?;
            // Noted first, so that it is never enabled without the table being restored.
            self.notes.touch(&note(family), 0o600)?;
            if is_closed {
                continue;
            }
            if let Err(e) = enable(family, setting) {
                self.notes.remove_file(&note(family))?;
                return Err(e);
            }
            tracing::warn!(
                family,
                "enabled packet forwarding, which an opening needs, for containers only (nftables table inet \
                cim_leaf_forwarding); to forward for others as well, set net.ipv4.ip_forward and \
                net.ipv6.conf.all.forwarding at boot"
            );
        }
        Ok(())
    }

    /// Returns the script that closes forwarding again where the helper enabled it.
    pub(super) fn rules(&self) -> Result<String> {
        let noted = self.noted()?;
        Ok(noted
            .iter()
            .map(|(family, _)| closed_for_others(family))
            .collect())
    }

    /// Switches forwarding off where the helper enabled it, until [`resume`](Self::resume).
    pub(super) fn pause(&self) -> Result<()> {
        for (_, setting) in self.noted()? {
            std::fs::write(setting, "0").map_err(Error::io(format!("write {setting}")))?;
        }
        Ok(())
    }

    /// Switches forwarding on where the helper enabled it. The [rules](Self::rules) must be set.
    pub(super) fn resume(&self) -> Result<()> {
        for (family, setting) in self.noted()? {
            if is_off(setting)? {
                enable(family, setting)?;
            }
        }
        Ok(())
    }

    /// Undoes what the helper enabled: forwarding is off, and the table is gone.
    pub(super) fn release(&self) -> Result<()> {
        self.pause()?;
        let noted = self.noted()?;
        if !noted.is_empty() {
            tables::delete(tables::INET, TABLE)?;
        }
        for (family, _) in noted {
            self.notes.remove_file(&note(family))?;
        }
        Ok(())
    }

    /// Notes what a helper enabled that wrote no notes yet: there is its table.
    pub(super) async fn adopt(&self) -> Result<()> {
        let noted = self.noted()?;
        for (family, setting) in FAMILIES {
            let chain = format!("list chain inet {TABLE} {family}\n");
            if !noted.contains(&(family, setting))
                && !is_off(setting)?
                && nft::run(self.nft, &chain).await.is_ok()
            {
                self.notes.touch(&note(family), 0o600)?;
            }
        }
        Ok(())
    }

    /// Returns the families for which the helper enabled forwarding, with their settings.
    fn noted(&self) -> Result<Vec<(&'static str, &'static str)>> {
        let mut noted = Vec::new();
        for (family, setting) in FAMILIES {
            if self.notes.has(&note(family))? {
                noted.push((family, setting));
            }
        }
        Ok(noted)
    }
}

/// Returns the name of the note that forwarding was enabled by the helper. It is not a valid leaf name.
///
/// A helper of before the notes ignores them: it neither restores the table after a flush nor switches forwarding off.
/// Forwarding that it enabled itself is noted by the next newer one ([`Forwarding::adopt`]).
fn note(family: &str) -> String {
    format!("forwarding.{family}")
}

/// Returns whether a family is not forwarded; one that the host does not have counts as forwarded.
fn is_off(setting: &str) -> Result<bool> {
    match std::fs::read_to_string(setting) {
        Ok(value) => Ok(value.trim() == "0"),
        Err(e) if e.kind() == ErrorKind::NotFound && setting != FAMILIES[0].1 => Ok(false),
        Err(e) => Err(Error::io(format!("read {setting}"))(e)),
    }
}

fn closed_for_others(family: &str) -> String {
    format!(
        "add table inet {TABLE}
add chain inet {TABLE} {family} {{ type filter hook forward priority filter; policy accept; }}
flush chain inet {TABLE} {family}
add rule inet {TABLE} {family} meta nfproto != {family} accept
add rule inet {TABLE} {family} iifname \"ve-*\" accept
add rule inet {TABLE} {family} oifname \"ve-*\" accept
add rule inet {TABLE} {family} counter drop
"
    )
}

fn enable(family: &str, setting: &str) -> Result<()> {
    if family == "ipv6" {
        keep_router_advertisements()?;
    }
    write(Path::new(setting), "1")
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

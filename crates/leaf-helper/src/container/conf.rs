//! `NAME.conf`, by which NixOS's programs and this leaf know a container.

use std::net::Ipv4Addr;

use leaf_core::container::ContainerNetwork;
use leaf_core::host_op::RunSpec;
use leaf_core::id::ContainerName;
use leaf_core::spec::Users;
use leaf_host::contract::{CONF_DIGEST, conf_marker};
use leaf_host::files;

use crate::Helper;
use crate::error::{Error, Result};
use crate::files::Directory;

/// The largest `NAME.conf` of another container that is read, in bytes.
const MAX_CONF_BYTES: u64 = 1 << 20;

/// Returns the file name of a container's `NAME.conf`.
pub(crate) fn conf_name(name: &ContainerName) -> String {
    format!("{name}.conf")
}

/// Returns the addresses that a `NAME.conf` names.
fn addresses(conf: &str) -> impl Iterator<Item = Ipv4Addr> {
    conf.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        let value = value.trim_matches(['"', '\'']);
        matches!(key, "HOST_ADDRESS" | "LOCAL_ADDRESS")
            .then(|| value.split('/').next()?.parse().ok())
            .flatten()
    })
}

impl Helper {
    /// Returns the text of a container's `NAME.conf`, by the contract of NixOS's `nixos-containers.nix`.
    pub(crate) fn conf(&self, spec: &RunSpec) -> String {
        let RunSpec {
            toplevel, network, ..
        } = spec;
        let users = match spec.options.users {
            Users::Private => "pick",
            Users::Host => "no",
        };
        let mut text = format!(
            "{}\n{CONF_DIGEST}{}\n# It is replaced at the next change; destroy the container instead of editing this.\n\
             SYSTEM_PATH={toplevel}\nPRIVATE_NETWORK=1\nHOST_ADDRESS={}\nLOCAL_ADDRESS={}\n",
            conf_marker(&self.leaf),
            spec.digest(),
            network.host_address,
            network.container_address,
        );
        for (key, address) in [
            ("HOST_ADDRESS6", network.host_address6),
            ("LOCAL_ADDRESS6", network.container_address6),
        ] {
            if let Some(address) = address {
                text.push_str(&format!("{key}={address}\n"));
            }
        }
        text.push_str(&format!("PRIVATE_USERS={users}\nAUTO_START=0\n"));
        text
    }

    /// Refuses addresses that are not of this leaf, or that another container of the host has.
    pub(crate) fn check_network(
        &self,
        confs: &Directory,
        name: &ContainerName,
        network: ContainerNetwork,
    ) -> Result<()> {
        let ContainerNetwork {
            host_address,
            container_address,
            ..
        } = network;
        self.check_address(host_address)?;
        self.check_address(container_address)?;
        for address in [network.host_address6, network.container_address6]
            .into_iter()
            .flatten()
        {
            if !self.settings.pool.contains6(address) {
                return Err(Error::Refused(format!(
                    "{address} is not in this leaf's IPv6 address pool"
                )));
            }
        }
        if host_address == container_address {
            return Err(Error::Refused(format!(
                "{host_address} can't be the address of both ends of a veth"
            )));
        }
        let unreadable = || Error::io(format!("read {}", confs.path().display()));
        for entry in std::fs::read_dir(confs.path()).map_err(unreadable())? {
            let file = entry.map_err(unreadable())?.file_name();
            let Some(other) = file
                .to_str()
                .filter(|f| f.ends_with(".conf") && *f != conf_name(name))
            else {
                continue;
            };
            // A conf that is a link belongs to NixOS; its addresses are in use as well. One that can't be read has none.
            let bytes = files::read(&confs.path().join(other), MAX_CONF_BYTES).unwrap_or_default();
            for address in addresses(&String::from_utf8_lossy(&bytes)) {
                if address == host_address || address == container_address {
                    return Err(Error::Refused(format!(
                        "{address} is in use by the container of {other}"
                    )));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use leaf_core::address_pool::AddressPool;
    use leaf_core::id::LeafName;
    use leaf_host::contract::HostPaths;

    use super::*;
    use crate::Settings;

    #[test]
    fn an_odd_entry_beside_the_confs_keeps_no_container_from_being_created() {
        let place = tempfile::tempdir().expect("a directory");
        let leaf = LeafName::new("edge").expect("a leaf");
        let paths = HostPaths {
            confs: place.path().to_owned(),
            ..HostPaths::new(&leaf)
        };
        let helper = Helper::new(leaf, paths, Settings::sample());
        let at = |name: &str| place.path().join(name);
        let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        // Read as a file, the FIFO would block for ever, with the lock of NixOS's programs held.
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo.conf"), fifo, mode, 0).expect("a FIFO");
        std::fs::create_dir(at("directory.conf")).expect("a directory");
        std::fs::write(at("bytes.conf"), b"\xff\nLOCAL_ADDRESS=10.233.2.2\n").expect("a conf");
        let confs = Directory::make_root(place.path(), 0o755).expect("a directory");
        let name = ContainerName::new("web").expect("a name");
        let check = |number| helper.check_network(&confs, &name, AddressPool::default().link(number));
        check(1).expect("the addresses are free");
        let error = check(2).expect_err("another container has it").to_string();
        assert!(error.contains("in use by the container of bytes.conf"), "{error}");
    }
}

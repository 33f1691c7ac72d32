//! `NAME.conf`, by which NixOS's programs and this leaf know a container.

use std::net::Ipv4Addr;

use leaf_core::container::ContainerNetwork;
use leaf_core::host_op::RunSpec;
use leaf_core::id::ContainerName;
use leaf_core::spec::Users;
use leaf_host::contract::{CONF_DIGEST, conf_marker};

use crate::Helper;
use crate::error::{Error, Result};
use crate::files::Directory;

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
            // A conf that is a link belongs to NixOS; its addresses are in use as well.
            let text = std::fs::read_to_string(confs.path().join(other)).unwrap_or_default();
            for address in addresses(&text) {
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

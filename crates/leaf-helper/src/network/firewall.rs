//! The closed network of a leaf's containers: one set of rules for all of them, in nftables of its own (`inet leaf_LEAF`
//! and `arp leaf_LEAF`). Other tables are left alone, and several leaves on one machine don't meet.
//!
//! A container reaches the leaf's NATS port, at the leaf's address and at its own link's host end, and nothing else:
//! no other port or address of the host, no other container, nothing outside, no ping, no IPv6 link-local. What its
//! spec names in `allow` is opened, in one direction: a port of another container, an address outside (behind the
//! host's own address), and a port of the leaf that leads to the container (from outside, and from the host itself at
//! any of its addresses but the loopback's; a container does not come to another one by the leaf's ports). The host may
//! open connections into a container.
//!
//! Nobody can be somebody else. Each container has a link of its own to the host, without a bridge between them, so
//! there is no neighbour on it but the host: nothing that a container says by ARP or neighbour discovery reaches
//! another one, and the host, whose [neighbour entries](crate::network::make_link) are permanent, learns nothing from
//! it. What comes in by a link must have that link's address as its source, by IPv4 and IPv6; that is looked at before
//! all else, connection tracking included. By ARP a container learns its gateway's address and no other one of the host.
//!
//! Rules match by the *names* of links, so an opening towards another container holds as soon as that one is there,
//! whichever address it has then. Each packet of the side that opened a connection is held against the rules, not only
//! the first: what is closed on a running container is closed for its open connections as well.
//!
//! The elements of a container are in the sets before its first process runs ([`Helper::admit`]), are replaced in one
//! transaction when its spec changes ([`Helper::renew`]) and are taken out when it has ended ([`Helper::expel`]); which
//! ones they are stands in its run directory. What the rules are made of stands in the leaf's state directory, so a container that
//! systemd starts at boot has them before `leafd` is up, and nothing is taken away when `leafd` ends. If the rules are
//! gone (somebody flushed all of nftables), the next start or [`Helper::prepare_network`] makes them anew for all.

mod elements;
mod forwarding;
mod nft;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use leaf_core::host_op::RunSpec;
use leaf_core::id::ContainerName;
use leaf_core::spec::{Opening, Protocol};

use crate::container::directories::SHOWN_DIRECTORY;
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::{Helper, lock, network};

use elements::Elements;

/// What the rules are made of, in the leaf's state directory.
const PREPARED: &str = "network.json";
/// Held while the rules are changed, in the leaf's state directory.
const LOCK: &str = "network.lock";
/// The elements that a container has in the rules, in its run directory.
const ADMITTED: &str = "network.json";

/// What `PrepareNetwork` said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prepared {
    leaf_address: Ipv4Addr,
    nats_port: u16,
}

impl Helper {
    /// Makes the leaf's address and the rules, or sets them anew; the containers that are in stay in.
    pub(crate) async fn prepare_network(&self, leaf_address: Ipv4Addr, nats_port: u16) -> Result<()> {
        let prepared = Prepared {
            leaf_address,
            nats_port,
        };
        let lock = self.lock_network().await?;
        if self.prepared(&lock.state)? != Some(prepared) {
            lock.state.write(PREPARED, &json(&prepared), 0o600)?;
        }
        self.rebuild(&lock, prepared).await
    }

    /// Adds the elements of a container's spec to the rules. Idempotent.
    ///
    /// Where the rules are not there, after a boot, they are made first, by what `PrepareNetwork` said last.
    pub(crate) async fn admit(&self, name: &ContainerName) -> Result<()> {
        let lock = self.lock_network().await?;
        let spec = self
            .spec(name)?
            .ok_or_else(|| Error::Refused(format!("there is no container {name}")))?;
        self.open_forwarding(&spec).await?;
        self.set_elements(&lock, name, elements::of(&spec)?).await
    }

    /// Replaces the elements of a container in the rules by those of its spec, if it has any there.
    pub(crate) async fn renew(&self, name: &ContainerName) -> Result<()> {
        let lock = self.lock_network().await?;
        if !self.takes_part(name)? {
            return Ok(());
        }
        let Some(spec) = self.spec(name)? else {
            return Ok(());
        };
        self.open_forwarding(&spec).await?;
        self.set_elements(&lock, name, elements::of(&spec)?).await
    }

    /// Removes the elements of a container from the rules. Idempotent.
    pub(crate) async fn expel(&self, name: &ContainerName) -> Result<()> {
        if self.admitted(name)?.is_none() {
            return Ok(());
        }
        let lock = self.lock_network().await?;
        let Some(elements) = self.admitted(name)? else {
            return Ok(());
        };
        let script = rules::replace(&self.leaf, name, &elements, &Elements::new());
        let tried = nft::run(&self.settings.nft, &script).await;
        self.run_directory(name)?.remove_file(ADMITTED)?;
        match (tried, self.prepared(&lock.state)?) {
            (Ok(()), _) => Ok(()),
            // They are gone, or not as they were left: made anew, without this one.
            (Err(_), Some(prepared)) => self.rebuild_but(&lock, prepared, Some(name)).await,
            (Err(e), None) => Err(e.into()),
        }
    }

    /// Refuses openings that can't be: a port of the leaf that leads elsewhere already, a host that does not forward.
    pub(crate) async fn check_openings(&self, spec: &RunSpec) -> Result<()> {
        let wanted = ingress(spec);
        if !wanted.is_empty() {
            let state = Directory::make_root(&self.paths.state, SHOWN_DIRECTORY)?;
            if let Some(prepared) = self.prepared(&state)?
                && wanted.contains(&(Protocol::Tcp, prepared.nats_port))
            {
                return Err(Error::Refused(format!(
                    "allow: tcp port {} of the leaf is that of its NATS; choose another host_port",
                    prepared.nats_port
                )));
            }
            for other in self.specs()?.values().filter(|other| other.name != spec.name) {
                if let Some((protocol, port)) = ingress(other).intersection(&wanted).next() {
                    return Err(Error::Refused(format!(
                        "allow: {protocol} port {port} of the leaf leads to container {} already; choose another \
                         host_port",
                        other.name
                    )));
                }
            }
        }
        self.open_forwarding(spec).await
    }

    async fn open_forwarding(&self, spec: &RunSpec) -> Result<()> {
        if spec.options.allow.is_empty() {
            return Ok(());
        }
        forwarding::ensure(&self.settings.nft).await
    }

    /// Replaces the elements of one container. The record of them covers what there may be at any moment.
    async fn set_elements(&self, lock: &Lock, name: &ContainerName, new: Elements) -> Result<()> {
        let run = self.run_directory(name)?;
        let old = self.admitted(name)?.unwrap_or_default();
        let both: Elements = old.union(&new).cloned().collect();
        run.write(ADMITTED, &json(&both), 0o600)?;
        let script = rules::replace(&self.leaf, name, &old, &new);
        if let Err(e) = nft::run(&self.settings.nft, &script).await {
            let Some(prepared) = self.prepared(&lock.state)? else {
                return Err(Error::Failed(format!(
                    "the rules of the closed network are not there, and nothing says what they are made of; leafd \
                     prepares them when it starts ({e})"
                )));
            };
            tracing::info!(container = %name, error = %e, "the rules are made anew");
            return self.rebuild(lock, prepared).await;
        }
        run.write(ADMITTED, &json(&new), 0o600)
    }

    async fn rebuild(&self, lock: &Lock, prepared: Prepared) -> Result<()> {
        self.rebuild_but(lock, prepared, None).await
    }

    /// Makes the leaf's address and all rules anew, with the elements of each container that takes part, in one
    /// transaction: at no moment are there no rules.
    async fn rebuild_but(
        &self,
        _lock: &Lock,
        prepared: Prepared,
        leave_out: Option<&ContainerName>,
    ) -> Result<()> {
        let Prepared {
            leaf_address,
            nats_port,
        } = prepared;
        network::add_leaf_address(leaf_address).await?;
        let mut script = rules::table(&self.leaf, leaf_address, nats_port);
        let mut all = BTreeMap::new();
        let mut ports = BTreeSet::new();
        for (name, spec) in self.specs()? {
            if leave_out == Some(&name) || !self.takes_part(&name)? {
                continue;
            }
            let mut elements = elements::of(&spec)?;
            elements.retain(|element| match element.ingress() {
                Some(key) if !ports.insert(key) => {
                    tracing::warn!(container = %name, ?key, "a port of the leaf leads to another container already");
                    false
                }
                _ => true,
            });
            script += &rules::replace(&self.leaf, &name, &Elements::new(), &elements);
            all.insert(name, elements);
        }
        nft::run(&self.settings.nft, &script)
            .await
            .map_err(nft::Failure::of_new_rules)?;
        for (name, elements) in all {
            self.run_directory(&name)?
                .write(ADMITTED, &json(&elements), 0o600)?;
        }
        Ok(())
    }

    /// Whether a container's link may be in the rules, or is about to be there.
    fn takes_part(&self, name: &ContainerName) -> Result<bool> {
        Ok(self.admitted(name)?.is_some() || network::is_there(name)?)
    }

    /// The elements that a container may have in the rules; nothing if it takes no part.
    fn admitted(&self, name: &ContainerName) -> Result<Option<Elements>> {
        let Some(all) = Directory::open_root(&self.paths.run)? else {
            return Ok(None);
        };
        let Some(own) = all.open(name.as_str())? else {
            return Ok(None);
        };
        read_json(&own, ADMITTED)
    }

    fn prepared(&self, state: &Directory) -> Result<Option<Prepared>> {
        let prepared: Option<Prepared> = read_json(state, PREPARED)?;
        if let Some(prepared) = &prepared {
            self.check_address(prepared.leaf_address)?;
        }
        Ok(prepared)
    }

    /// The specs of all containers of the leaf; one that can't be read is left out.
    fn specs(&self) -> Result<BTreeMap<ContainerName, RunSpec>> {
        let Some(all) = Directory::open_root(&self.paths.state)? else {
            return Ok(BTreeMap::new());
        };
        let failed = || Error::io(format!("read {}", all.path().display()));
        let mut specs = BTreeMap::new();
        for entry in std::fs::read_dir(all.path()).map_err(failed())? {
            let file = entry.map_err(failed())?.file_name();
            let Some(name) = file.to_str().and_then(|file| ContainerName::new(file).ok()) else {
                continue;
            };
            match self.spec(&name) {
                Ok(Some(spec)) => {
                    specs.insert(name, spec);
                }
                Ok(None) => {}
                Err(e) => {
                    let error = leaf_core::error::chain(&e);
                    tracing::warn!(container = %name, error, "its spec can't be read, and so it has no rules");
                }
            }
        }
        Ok(specs)
    }

    async fn lock_network(&self) -> Result<Lock> {
        let state = Directory::make_root(&self.paths.state, SHOWN_DIRECTORY)?;
        let file = lock::hold(&state, LOCK).await?;
        Ok(Lock { state, _file: file })
    }
}

/// The right to change the rules, and the leaf's state directory.
#[derive(Debug)]
struct Lock {
    state: Directory,
    _file: File,
}

/// The ports of the leaf that lead to a container.
fn ingress(spec: &RunSpec) -> BTreeSet<(Protocol, u16)> {
    let port = |opening: &Opening| match opening {
        Opening::Ingress {
            protocol, host_port, ..
        } => Some((*protocol, *host_port)),
        _ => None,
    };
    spec.options.allow.iter().filter_map(port).collect()
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("these types have no maps and no failing parts")
}

fn read_json<T: serde::de::DeserializeOwned>(directory: &Directory, file: &str) -> Result<Option<T>> {
    let Some(text) = directory.read(file)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_str(&text);
    parsed.map(Some).map_err(|e| {
        Error::Failed(format!(
            "{}/{file} can't be understood ({e}); remove it",
            directory.path().display()
        ))
    })
}

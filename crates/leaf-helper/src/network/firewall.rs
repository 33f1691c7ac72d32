//! The closed network of a leaf's containers: one set of rules for all of them, in nftables tables of its own
//! (`inet leaf_LEAF` and `arp leaf_LEAF`). Other tables are left alone, and several leaves on one host don't interfere.
//!
//! A container reaches the leaf's NATS port, at the leaf's address and at the host's end of its veth, and nothing else:
//! no other port or address of the host, no other container, nothing outside, no ping, no IPv6 link-local. The openings
//! in `allow` of its spec permit one direction each: to a port of another container, to an address outside (masqueraded
//! as the host), and from a port of the leaf to the container (from outside, and from the host itself at any of its
//! addresses but the loopback's; a container can't reach another one through the leaf's ports). The host may open
//! connections into a container.
//!
//! Containers can't spoof addresses. Each has a veth of its own to the host, without a bridge between them, so the host
//! is its only neighbour: its ARP and neighbour discovery packets don't reach other containers, and the host, whose
//! [neighbour entries](crate::network::make_link) are permanent, ignores them. Packets from a veth must have its
//! container's address as their source, in IPv4 and IPv6; this is checked before everything else, connection tracking
//! included. By ARP a container learns its gateway's address, and no other one of the host.
//!
//! Rules match by the *names* of links, so an opening to another container takes effect as soon as that one exists,
//! whatever its address is. Every packet of the side that opened a connection is checked, not only the first: when an
//! opening of a running container is removed, its open connections are cut as well.
//!
//! A container's elements are added to the sets before its first process runs ([`Helper::admit`]), replaced in one
//! transaction when its spec changes ([`Helper::renew`]), and removed when it has ended ([`Helper::expel`]); they are
//! recorded in its run directory. The parameters of the rules are recorded in the leaf's state directory, so a
//! container that systemd starts at boot has rules before `leafd` is up, and nothing is removed when `leafd` ends. If
//! the rules are missing (another program flushed nftables), the next start or [`Helper::prepare_network`] restores
//! them for all.

mod elements;
mod forwarding;
mod nft;
mod rules;
mod tables;

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

/// The file with the parameters of the rules, in the leaf's state directory.
const PREPARED: &str = "network.json";
/// The lock held while the rules are changed, in the leaf's state directory.
const LOCK: &str = "network.lock";
/// The file with a container's elements in the rules, in its run directory.
pub(crate) const ADMITTED: &str = "network.json";
/// The mark of a container that is cut off until the rules are set, in its run directory.
pub(crate) const CUT_OFF: &str = "cut-off";

/// The parameters of the last `PrepareNetwork`. A newer helper may have added others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Prepared {
    leaf_address: Ipv4Addr,
    nats_port: u16,
}

/// The record of a container's elements in the rules.
enum Admitted {
    /// They are these, at most.
    Known(Elements),
    /// This version can't read it.
    Unreadable,
}

/// The specs of a leaf's containers.
#[derive(Default)]
struct Specs {
    read: BTreeMap<ContainerName, RunSpec>,
    /// The containers whose specs can't be read.
    unreadable: Vec<ContainerName>,
}

impl Helper {
    /// Adds the leaf's address and sets the rules, keeping the containers' elements.
    pub(crate) async fn prepare_network(&self, leaf_address: Ipv4Addr, nats_port: u16) -> Result<()> {
        let prepared = Prepared {
            leaf_address,
            nats_port,
        };
        let lock = self.lock_network().await?;
        let before = self.prepared(&lock.state).unwrap_or_else(|e| {
            let error = leaf_core::error::chain(&e);
            tracing::info!(
                error,
                "the record of the prepared network is of no use here, and replaced"
            );
            None
        });
        if before != Some(prepared) {
            lock.state.write(PREPARED, &json(&prepared), 0o600)?;
        }
        self.rebuild(&lock, prepared).await
    }

    /// Removes the leaf's tables, and its address, if it has no containers.
    pub(crate) async fn release_network(&self, leaf_address: Ipv4Addr) -> Result<()> {
        let lock = self.lock_network().await?;
        let Specs { read, unreadable } = self.specs()?;
        if !read.is_empty() || !unreadable.is_empty() {
            return Ok(());
        }
        tables::delete(&self.leaf)?;
        network::remove_leaf_address(leaf_address).await?;
        lock.state.remove_file(PREPARED)
    }

    /// Cuts all containers off until the rules are set again, because another program is about to remove them.
    pub(crate) async fn close_network(&self) -> Result<()> {
        let _lock = self.lock_network().await?;
        let Specs { read, unreadable } = self.specs()?;
        self.cut_off(read.keys().chain(&unreadable)).await
    }

    /// Sets the rules again, if the network was prepared.
    pub(crate) async fn open_network(&self) -> Result<()> {
        let lock = self.lock_network().await?;
        match self.prepared(&lock.state)? {
            Some(prepared) => self.rebuild(&lock, prepared).await,
            None => Ok(()),
        }
    }

    /// Cuts off those of these containers that participate.
    async fn cut_off<'a>(&self, names: impl Iterator<Item = &'a ContainerName>) -> Result<()> {
        for name in names {
            if self.takes_part(name)? {
                // Noted first, so that it is connected again whatever happens.
                self.run_directory(name)?.touch(CUT_OFF, 0o600)?;
                network::take_down(name).await?;
            }
        }
        Ok(())
    }

    /// Connects a container again, if it is cut off.
    async fn reconnect(&self, spec: &RunSpec) -> Result<()> {
        let run = self.run_directory(&spec.name)?;
        if run.has(CUT_OFF)? {
            network::bring_back(&spec.name, spec.network).await?;
            run.remove_file(CUT_OFF)?;
        }
        Ok(())
    }

    /// Adds the elements of a container's spec to the rules. Idempotent.
    ///
    /// If the rules are missing, as after a boot, they are set first, with the parameters of the last `PrepareNetwork`.
    pub(crate) async fn admit(&self, name: &ContainerName) -> Result<()> {
        let lock = self.lock_network().await?;
        let spec = self
            .spec(name)?
            .ok_or_else(|| Error::Refused(format!("container {name} does not exist")))?;
        self.open(&lock, name, &spec).await
    }

    /// Replaces a container's elements in the rules by those of its spec, if it has any in the rules.
    pub(crate) async fn renew(&self, name: &ContainerName) -> Result<()> {
        let lock = self.lock_network().await?;
        if !self.takes_part(name)? {
            return Ok(());
        }
        let Some(spec) = self.spec(name)? else {
            return Ok(());
        };
        self.open(&lock, name, &spec).await
    }

    async fn open(&self, lock: &Lock, name: &ContainerName, spec: &RunSpec) -> Result<()> {
        self.open_forwarding(spec).await?;
        self.set_elements(lock, name, elements::of(spec)?).await
    }

    /// Removes the elements of a container from the rules. Idempotent.
    pub(crate) async fn expel(&self, name: &ContainerName) -> Result<()> {
        if self.admitted(name)?.is_none() {
            return Ok(());
        }
        let lock = self.lock_network().await?;
        let tried = match self.admitted(name)? {
            None => return Ok(()),
            Some(Admitted::Known(elements)) => {
                let script = rules::replace(&self.leaf, name, &elements, &Elements::new());
                nft::run(&self.settings.nft, &script).await.map_err(Error::from)
            }
            Some(Admitted::Unreadable) => Err(Error::Failed("its elements in the rules are unknown".into())),
        };
        let run = self.run_directory(name)?;
        run.remove_file(ADMITTED)?;
        run.remove_file(CUT_OFF)?;
        match (tried, self.prepared(&lock.state)?) {
            (Ok(()), _) => Ok(()),
            // The rules are missing or were changed: set again, without this container.
            (Err(_), Some(prepared)) => self.rebuild_but(&lock, prepared, Some(name)).await,
            (Err(e), None) => Err(e),
        }
    }

    /// Refuses impossible openings: a port of the leaf that is already in use, a host that does not forward.
    pub(crate) async fn check_openings(&self, spec: &RunSpec) -> Result<()> {
        let wanted = ingress(spec);
        if !wanted.is_empty() {
            let state = Directory::make_root(&self.paths.state, SHOWN_DIRECTORY)?;
            if let Some(prepared) = self.prepared(&state)?
                && wanted.contains(&(Protocol::Tcp, prepared.nats_port))
            {
                return Err(Error::Refused(format!(
                    "allow: tcp port {} of the leaf is its NATS port; choose another host_port",
                    prepared.nats_port
                )));
            }
            for other in self
                .specs()?
                .read
                .values()
                .filter(|other| other.name != spec.name)
            {
                if let Some((protocol, port)) = ingress(other).intersection(&wanted).next() {
                    return Err(Error::Refused(format!(
                        "allow: {protocol} port {port} of the leaf is already forwarded to container {}; choose another \
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

    /// Replaces the elements of one container. Its record covers all elements that may exist at any moment.
    async fn set_elements(&self, lock: &Lock, name: &ContainerName, new: Elements) -> Result<()> {
        let run = self.run_directory(name)?;
        let old = match self.admitted(name)? {
            None => Some(Elements::new()),
            Some(Admitted::Known(old)) => Some(old),
            Some(Admitted::Unreadable) => None,
        };
        let both: Elements = old.iter().flatten().chain(&new).cloned().collect();
        run.write(ADMITTED, &json(&both), 0o600)?;
        let tried = match &old {
            Some(old) => nft::run(&self.settings.nft, &rules::replace(&self.leaf, name, old, &new)).await,
            None => Err(nft::Failure::Said(
                "the record of its elements can't be read".into(),
            )),
        };
        if let Err(e) = tried {
            let Some(prepared) = self.prepared(&lock.state)? else {
                return Err(Error::Failed(format!(
                    "the rules of the closed network are missing, and their parameters are not recorded; leafd \
                    prepares the network when it starts ({e})"
                )));
            };
            tracing::info!(container = %name, error = %e, "the rules are missing or were changed; setting them again");
            return self.rebuild(lock, prepared).await;
        }
        run.write(ADMITTED, &json(&new), 0o600)
    }

    async fn rebuild(&self, lock: &Lock, prepared: Prepared) -> Result<()> {
        self.rebuild_but(lock, prepared, None).await
    }

    /// Adds the leaf's address and sets all rules again, with the elements of every participating container, in one
    /// transaction, so that there is no moment without rules.
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
        let specs = self.specs()?;
        for name in &specs.unreadable {
            if leave_out != Some(name) && self.takes_part(name)? {
                // Its link is a container's, and nothing is permitted on it.
                let closed = Elements::from([elements::Element::Link]);
                script += &rules::replace(&self.leaf, name, &Elements::new(), &closed);
                all.insert(name, closed);
            }
        }
        for (name, spec) in &specs.read {
            if leave_out == Some(name) || !self.takes_part(name)? {
                continue;
            }
            let mut elements = elements::of(spec)?;
            elements.retain(|element| match element.ingress() {
                Some(key) if !ports.insert(key) => {
                    tracing::warn!(container = %name, ?key, "a port of the leaf is already forwarded to another container");
                    false
                }
                _ => true,
            });
            script += &rules::replace(&self.leaf, name, &Elements::new(), &elements);
            all.insert(name, elements);
        }
        let set = match nft::run(&self.settings.nft, &script).await {
            Err(nft::Failure::Killed(why)) => {
                tracing::warn!(
                    why,
                    "nft can't read the leaf's tables, which a newer nft may have made: they are removed and made again"
                );
                self.cut_off(all.keys().copied()).await?;
                tables::delete(&self.leaf)?;
                nft::run(&self.settings.nft, &script).await
            }
            set => set,
        };
        set.map_err(nft::Failure::of_new_rules)?;
        for (name, elements) in all {
            self.run_directory(name)?
                .write(ADMITTED, &json(&elements), 0o600)?;
            if let Some(spec) = specs.read.get(name)
                && let Err(e) = self.reconnect(spec).await
            {
                let error = leaf_core::error::chain(&e);
                tracing::warn!(container = %name, error, "can't connect a container again that was cut off");
            }
        }
        Ok(())
    }

    /// Returns whether a container participates: it has elements in the rules, or is about to have them.
    fn takes_part(&self, name: &ContainerName) -> Result<bool> {
        Ok(self.admitted(name)?.is_some() || network::is_there(name)?)
    }

    /// Returns the elements that a container may have in the rules; `None` if it does not participate.
    fn admitted(&self, name: &ContainerName) -> Result<Option<Admitted>> {
        let Some(all) = Directory::open_root(&self.paths.run)? else {
            return Ok(None);
        };
        let Some(own) = all.open(name.as_str())? else {
            return Ok(None);
        };
        Ok(match read_json(&own, ADMITTED) {
            Ok(elements) => elements.map(Admitted::Known),
            Err(e) => {
                let error = leaf_core::error::chain(&e);
                tracing::warn!(container = %name, error, "can't read a container's elements in the rules: all are set again");
                Some(Admitted::Unreadable)
            }
        })
    }

    fn prepared(&self, state: &Directory) -> Result<Option<Prepared>> {
        let prepared: Option<Prepared> = read_json(state, PREPARED)?;
        if let Some(prepared) = &prepared {
            self.check_address(prepared.leaf_address)?;
        }
        Ok(prepared)
    }

    /// Returns the specs of all containers of the leaf.
    fn specs(&self) -> Result<Specs> {
        let mut specs = Specs::default();
        let Some(all) = Directory::open_root(&self.paths.state)? else {
            return Ok(specs);
        };
        let failed = || Error::io(format!("read {}", all.path().display()));
        for entry in std::fs::read_dir(all.path()).map_err(failed())? {
            let file = entry.map_err(failed())?.file_name();
            let Some(name) = file.to_str().and_then(|file| ContainerName::new(file).ok()) else {
                continue;
            };
            match self.spec(&name) {
                Ok(Some(spec)) => {
                    specs.read.insert(name, spec);
                }
                Ok(None) => {}
                Err(e) => {
                    let error = leaf_core::error::chain(&e);
                    tracing::warn!(container = %name, error, "can't read a container's spec, so its network is closed");
                    specs.unreadable.push(name);
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

/// The lock of the rules, and the leaf's state directory.
#[derive(Debug)]
struct Lock {
    state: Directory,
    _file: File,
}

/// Returns the ports of the leaf that are forwarded to a container.
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
    serde_json::to_vec(value).expect("these types always serialize")
}

fn read_json<T: serde::de::DeserializeOwned>(directory: &Directory, file: &str) -> Result<Option<T>> {
    let Some(text) = directory.read(file)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_str(&text);
    parsed.map(Some).map_err(|e| {
        Error::Failed(format!(
            "can't parse {}/{file} ({e}); remove it",
            directory.path().display()
        ))
    })
}

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
//! container that systemd starts at boot has rules before `leafd` is up, and they stay when `leafd` ends, unless no
//! container is left ([`Helper::release_network`]). If the rules are missing (another program flushed nftables), the
//! next start or [`Helper::prepare_network`] restores them for all; a program that is about to flush them
//! [closes](Helper::close_network) the network before.

mod closing;
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

use crate::error::{Error, Result};
use crate::files::Directory;
use crate::{Helper, lock, network};

use elements::Elements;

pub(crate) use closing::CUT_OFF;

/// The file with the parameters of the rules, in the leaf's state directory.
const PREPARED: &str = "network.json";
/// The lock held while the rules are changed, in the leaf's state directory.
const LOCK: &str = "network.lock";
/// The file with a container's elements in the rules, in its run directory.
pub(crate) const ADMITTED: &str = "network.json";
/// The note with the leaf's address, if the helper added it to `lo`, in the leaf's run directory: a reboot removes both.
///
/// A helper of before the note ignores it, and removes the address with the tables in any case. An address that such a
/// helper added is kept by a newer one, until the next boot.
const ADDED_ADDRESS: &str = "network.address";

/// The parameters of the last `PrepareNetwork`. Newer helpers may add others, and keep these, so that an older one can set
/// the rules after a rollback.
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

    /// Removes the leaf's tables, and its address if the helper added it, unless the leaf has containers. The last leaf
    /// of the host disables forwarding as well, if a helper enabled it.
    pub(crate) async fn release_network(&self, leaf_address: Ipv4Addr) -> Result<()> {
        let lock = self.lock_network().await?;
        let Specs { read, unreadable } = self.specs()?;
        if !read.is_empty() || !unreadable.is_empty() {
            return Ok(());
        }
        tables::delete_all(&self.leaf)?;
        if let Some(run) = Directory::open_root(&self.paths.run)?
            && run.read(ADDED_ADDRESS)? == Some(leaf_address.to_string())
        {
            network::remove_leaf_address(leaf_address).await?;
            run.remove_file(ADDED_ADDRESS)?;
        }
        let forwarding = self.forwarding().await?;
        if !self.others_are_prepared()? {
            forwarding.release()?;
        }
        lock.state.remove_file(PREPARED)
    }

    /// Returns whether another leaf of this host has its network prepared.
    fn others_are_prepared(&self) -> Result<bool> {
        let Some(leaves) = self.paths.state.parent() else {
            return Ok(false);
        };
        let entries = std::fs::read_dir(leaves).map_err(Error::io(format!("read {}", leaves.display())))?;
        let mut states = entries.flatten().map(|entry| entry.path());
        Ok(states.any(|state| state != self.paths.state && state.join(PREPARED).exists()))
    }

    /// Notes what helpers changed that wrote no notes yet.
    pub(crate) async fn adopt_forwarding(&self) -> Result<()> {
        self.forwarding().await?.adopt().await
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
        self.open_forwarding(lock, spec).await?;
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
        if spec.options.allow.is_empty() {
            return Ok(());
        }
        let wanted = ingress(spec);
        if !wanted.is_empty() {
            let state = self.state_directories()?;
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
        let lock = self.lock_network().await?;
        self.open_forwarding(&lock, spec).await
    }

    async fn open_forwarding(&self, _lock: &Lock, spec: &RunSpec) -> Result<()> {
        if spec.options.allow.is_empty() {
            return Ok(());
        }
        self.forwarding().await?.ensure(self.is_closed()?).await
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
        if network::add_leaf_address(leaf_address).await? {
            let run = self.run_directories()?;
            run.write(ADDED_ADDRESS, leaf_address.to_string().as_bytes(), 0o600)?;
        }
        let forwarding = self.forwarding().await?;
        let mut script = rules::table(&self.leaf, leaf_address, nats_port);
        script += &forwarding.rules()?;
        let mut all = BTreeMap::new();
        let mut ports = BTreeSet::new();
        let specs = self.specs()?;
        // The link is a container's, and nothing is permitted on it.
        let closed = || Elements::from([elements::Element::Link]);
        let takes_part = |name: &ContainerName| {
            leave_out != Some(name)
                && self.takes_part(name).unwrap_or_else(|e| {
                    let error = leaf_core::error::chain(&e);
                    tracing::warn!(container = %name, error, "can't tell whether a container is connected, so it gets rules");
                    true
                })
        };
        for name in specs.unreadable.iter().filter(|name| takes_part(name)) {
            script += &rules::replace(&self.leaf, name, &Elements::new(), &closed());
            all.insert(name, closed());
        }
        for (name, spec) in specs.read.iter().filter(|(name, _)| takes_part(name)) {
            let mut elements = elements::of(spec).unwrap_or_else(|e| {
                let error = leaf_core::error::chain(&e);
                tracing::warn!(container = %name, error, "can't use a container's spec, so its network is closed");
                closed()
            });
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
                tables::delete_all(&self.leaf)?;
                nft::run(&self.settings.nft, &script).await
            }
            set => set,
        };
        set.map_err(nft::Failure::of_new_rules)?;
        let is_closed = self.is_closed()?;
        // An error about one container does not leave the others cut off.
        let mut first = Ok(());
        for (name, elements) in all {
            let noted = self
                .run_directory(name)
                .and_then(|run| run.write(ADMITTED, &json(&elements), 0o600));
            first = first.and(noted);
            if !is_closed
                && let Some(spec) = specs.read.get(name)
                && let Err(e) = self.reconnect(spec).await
            {
                let error = leaf_core::error::chain(&e);
                tracing::warn!(container = %name, error, "can't connect a container again that was cut off");
            }
        }
        if !is_closed {
            first = first.and(forwarding.resume());
        }
        first
    }

    /// Returns whether a container participates: it has elements in the rules, or is about to have them.
    fn takes_part(&self, name: &ContainerName) -> Result<bool> {
        Ok(network::is_there(name)? || self.admitted(name)?.is_some())
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
        let state = self.state_directories()?;
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

//! The names and IPv4 addresses that are in use on this host, so that a new container gets others.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use leaf_core::container::EntryProblem;
use leaf_core::decide::{InUse, NameHolder};

use crate::conf::problem_of;
use crate::foreign::is_declarative;
use crate::{Containers, ObserveError};

/// The kernel's routing table of this process's network namespace: all routes, and all addresses as local ones
/// (`Documentation/networking/proc_net_tcp.rst` does not describe it; `net/ipv4/fib_trie.c`, `fib_trie_seq_show`).
const ROUTES: &str = "/proc/self/net/fib_trie";

impl Containers {
    /// Returns the names of containers that are not this leaf's; and the host's IPv4 addresses and routes, and the addresses
    /// in the files of all containers, running or not, of any owner. Blocks.
    ///
    /// # Errors
    /// [`ObserveError::Read`] when the files or the kernel's table can't be read.
    pub fn in_use(&self) -> Result<InUse, ObserveError> {
        let (mut networks, mut names) = (Vec::new(), BTreeMap::new());
        let confs = self.confs()?;
        for (name, error) in confs.unreadable {
            let EntryProblem { entry, problem } = problem_of(&error);
            names.insert(name, NameHolder::Unreadable(format!("{entry}: {problem}")));
        }
        for conf in confs.found {
            if !conf.is_of(&self.leaf) {
                let holder = if is_declarative(&conf.path) {
                    NameHolder::Declared
                } else {
                    NameHolder::Foreign
                };
                names.insert(conf.name.clone(), holder);
            }
            let addresses = ["HOST_ADDRESS", "LOCAL_ADDRESS"]
                .into_iter()
                .filter_map(|key| conf.value(key)?.split('/').next()?.parse::<Ipv4Addr>().ok());
            networks.extend(addresses.map(Ipv4Net::from));
        }
        let table = std::fs::read_to_string(ROUTES).map_err(ObserveError::read(ROUTES.as_ref()))?;
        networks.extend(destinations(&table));
        networks.sort();
        networks.dedup();
        Ok(InUse { networks, names })
    }
}

/// Returns the destinations of a routing table: a line `|-- 10.0.0.1`, then one such as `/32 host LOCAL` for each of its
/// prefixes. Lines that begin with `+--` are nodes of the tree, and no destinations.
fn destinations(table: &str) -> Vec<Ipv4Net> {
    let (mut found, mut address) = (Vec::new(), None);
    for line in table.lines() {
        let line = line.trim_start();
        if let Some(text) = line.strip_prefix("|-- ") {
            address = text.trim().parse::<Ipv4Addr>().ok();
        } else if let Some(rest) = line.strip_prefix('/') {
            let prefix = rest.split(' ').next().and_then(|prefix| prefix.parse().ok());
            found.extend(
                address
                    .zip(prefix)
                    .and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok()),
            );
        } else {
            address = None;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use leaf_core::id::LeafName;
    use leaf_core::runtime::Runtime;
    use leaf_host::contract::{HostPaths, conf_marker};

    use super::*;

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts
            .iter()
            .map(|text| text.parse().expect("a network"))
            .collect()
    }

    #[test]
    fn the_kernels_table_lists_addresses_and_routes() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     \
                     +-- 10.233.0.0/23 2 0 2\n        |-- 10.233.1.2\n           /32 link UNICAST\n\
                     Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.233.1.1\n        /32 host LOCAL\n     \
                     |-- 127.0.0.0\n        /8 host LOCAL\n        /32 link BROADCAST\n";
        let expected = nets(&[
            "0.0.0.0/0",
            "10.233.1.2/32",
            "10.233.1.1/32",
            "127.0.0.0/8",
            "127.0.0.0/32",
        ]);
        assert_eq!(destinations(table), expected);
        assert_eq!(destinations("nothing of the kind\n/8\n"), []);
    }

    #[test]
    fn names_and_addresses_of_foreign_containers_and_of_the_host_are_in_use() {
        let place = tempfile::tempdir().expect("a directory");
        let leaf = LeafName::new("edge").expect("a leaf");
        let paths = HostPaths {
            confs: place.path().to_owned(),
            ..HostPaths::new(&leaf)
        };
        let conf = "HOST_ADDRESS=10.233.7.1\nLOCAL_ADDRESS=\"10.233.7.2/24\"\n";
        std::fs::write(place.path().join("other.conf"), conf).expect("a conf");
        std::fs::write(place.path().join("odd.conf"), "LOCAL_ADDRESS=none\n").expect("a conf");
        let own = format!("{}\nLOCAL_ADDRESS=10.233.8.2\n", conf_marker(&leaf));
        std::fs::write(place.path().join("own.conf"), own).expect("a conf");
        std::os::unix::fs::symlink("other.conf", place.path().join("linked.conf")).expect("a link");
        std::fs::create_dir(place.path().join("no-file.conf")).expect("a directory");
        let in_use = Containers::new(leaf, paths, Runtime::Nspawn)
            .in_use()
            .expect("an observation");
        for network in nets(&["10.233.7.1/32", "10.233.7.2/32", "10.233.8.2/32", "127.0.0.1/32"]) {
            assert!(in_use.networks.contains(&network), "{network}: {in_use:?}");
        }
        let holders: Vec<_> = in_use
            .names
            .iter()
            .map(|(name, holder)| (name.as_str(), holder))
            .collect();
        let [
            ("linked", NameHolder::Declared),
            ("no-file", NameHolder::Unreadable(why)),
            ("odd", NameHolder::Foreign),
            ("other", NameHolder::Foreign),
        ] = &holders[..]
        else {
            panic!("{holders:?}");
        };
        assert!(why.contains("/no-file.conf: "), "{why}");
    }
}

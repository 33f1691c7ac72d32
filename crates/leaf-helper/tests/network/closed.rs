//! What is closed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use leaf_core::host_op::HostOp;
use leaf_core::spec::{Opening, Protocol};
use leaf_helper::{Helper, Settings};
use serde_json::json;

use super::machine::{
    FORWARDING, HOST, Inside, Machine, OUTSIDE, Outside, Server, ask_from_host, both, run, until_answered,
};
use crate::host::{Host, NATS_PORT};

/// Ports on which a host often has something that answers by UDP.
const UDP_PORTS: [u16; 22] = [
    7, 53, 67, 68, 69, 111, 123, 137, 161, 443, 500, 514, 546, 547, 631, 1900, 4222, 4500, 5353, 5355, 51820,
    65535,
];

pub(crate) async fn a_container_reaches_its_leafs_nats_and_nothing_else() {
    let mut machine = Machine::new().await;
    let outside = Outside::new("out", HOST, OUTSIDE, &[53, 80, 443, NATS_PORT]);
    let _host = Server::on_host("host", &[22, 53, 111, NATS_PORT, 4223, 8222, 65535]);
    let (inside, other) = (machine.start(&[]).await, machine.start(&[]).await);
    let _other = other.serve("other", &[53, 80, NATS_PORT]);
    let leaf = machine.host.address(1);
    // Everything is there: the host reaches all of it.
    until_answered("outside", || ask_from_host("tcp", both(OUTSIDE)[1], 80)).await;
    for to in other.addresses() {
        assert_ne!(ask_from_host("tcp", to, 80), "closed");
    }
    let link_local = link_local_addresses(&inside);
    let mut all: Vec<IpAddr> = vec![leaf.into()];
    all.extend(inside.gateways());
    all.extend(other.gateways());
    all.extend(other.addresses());
    all.extend(both(HOST));
    all.extend(both(OUTSIDE));
    let pinged: Vec<IpAddr> = all.iter().chain(&link_local).copied().collect();
    let walked: Vec<&IpAddr> = pinged.iter().filter(|to| !to.is_multicast()).collect();
    let walk = |ports: &[u16]| {
        json!({
            "own4": inside.network.container_address, "own6": inside.network.container_address6,
            "alive": format!("{leaf}:{NATS_PORT}"), "link": link_index(&inside),
            "tcp": walked, "tcp_ports": ports, "udp": pinged, "udp_ports": UDP_PORTS, "ping": pinged,
        })
    };
    let every: Vec<u16> = (1..=u16::MAX).collect();
    let nats = |from: IpAddr| json!({ "from": from, "how": "tcp open", "port": NATS_PORT }).to_string();
    let mut open: Vec<String> = std::iter::once(leaf.into())
        .chain(inside.gateways())
        .map(nats)
        .collect();
    open.sort();
    let mut answered = inside.walk(&walk(&every));
    answered.sort();
    assert_eq!(answered, open);

    // The same walk without the rules, on a host that forwards: it finds what there is, so it would have before.
    machine.without_rules();
    for setting in FORWARDING {
        std::fs::write(setting, "1").expect("a setting");
    }
    let mut there: Vec<(IpAddr, &str)> = all
        .iter()
        .flat_map(|from| [(*from, "ping"), (*from, "tcp open")])
        .collect();
    // The host answers by UDP from the address that is nearest to whoever asks.
    let near = inside.gateways().into_iter().chain(other.addresses());
    there.extend(near.chain(both(OUTSIDE)).map(|from| (from, "udp open")));
    // A walk ends with an answer of the host's kernel; those by UDP are a program's, which may be later.
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut found = BTreeSet::new();
    let missing = loop {
        found.extend(inside.walk(&walk(&[22, 80, NATS_PORT, 65535])));
        let seen = |(from, how): &(IpAddr, &str)| {
            let from = format!("\"{from}\"");
            found
                .iter()
                .any(|line| line.contains(&from) && line.contains(how))
        };
        let missing: Vec<_> = there.iter().filter(|answer| !seen(answer)).collect();
        if missing.is_empty() || Instant::now() >= deadline {
            break missing;
        }
    };
    assert_eq!(missing, Vec::<&(IpAddr, &str)>::new(), "of {found:#?}");
    drop(outside);
    machine.host.end().await;
}

/// What there could be of link-local addresses at the host's end: all nodes, all routers, and the one that its hardware
/// address would give.
fn link_local_addresses(inside: &Inside) -> Vec<IpAddr> {
    let shown = run(Command::new("ip").args(["-o", "link", "show", "dev", &format!("ve-{}", inside.name)]));
    let mac = shown
        .split_whitespace()
        .skip_while(|word| *word != "link/ether")
        .nth(1)
        .expect("an address");
    let octets: Vec<u8> = mac
        .split(':')
        .map(|o| u8::from_str_radix(o, 16).expect("hexadecimal"))
        .collect();
    let word = |a: u8, b: u8| u16::from_be_bytes([a, b]);
    let own = std::net::Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        word(octets[0] ^ 2, octets[1]),
        word(octets[2], 0xff),
        word(0xfe, octets[3]),
        word(octets[4], octets[5]),
    );
    vec![
        own.into(),
        "ff02::1".parse().expect("an address"),
        "ff02::2".parse().expect("an address"),
    ]
}

fn link_index(inside: &Inside) -> u32 {
    let shown = run(inside.command("ip").args(["-o", "link", "show", "dev", "eth0"]));
    shown
        .split(':')
        .next()
        .and_then(|n| n.parse().ok())
        .expect("an index")
}

pub(crate) async fn a_container_cannot_spoof_addresses() {
    let mut machine = Machine::new().await;
    let target = machine.start(&[]).await;
    let _target = target.serve("target", &[53]);
    let to_target = |protocol| Opening::Container {
        name: target.name.clone(),
        protocol,
        port: 53,
    };
    let allow = [to_target(Protocol::Tcp), to_target(Protocol::Udp)];
    let (friend, stranger) = (machine.start(&allow).await, machine.start(&[]).await);
    let leaf: IpAddr = machine.host.address(1).into();
    let _host = Server::on_host("host", &[NATS_PORT]);
    let [own4, own6] = stranger.addresses();
    for (family, own) in [(0, own4), (1, own6)] {
        let (as_friend, to) = (friend.addresses()[family], target.addresses()[family]);
        for protocol in ["tcp", "udp"] {
            assert_eq!(friend.ask(protocol, to, 53), format!("target {as_friend}"));
            assert_eq!(stranger.ask(protocol, to, 53), "closed");
        }
        // It takes the address of one who may.
        let whole = if as_friend.is_ipv4() { 32 } else { 128 };
        let taken = format!("{as_friend}/{whole}");
        run(stranger
            .command("ip")
            .args(["addr", "add", &taken, "dev", "eth0"])
            .args((family == 1).then_some("nodad")));
        for protocol in ["tcp", "udp"] {
            assert_eq!(stranger.ask_as(protocol, to, 53, Some(as_friend)), "closed");
        }
        let gateway = stranger.gateways()[family];
        assert_eq!(
            stranger.ask_as("tcp", gateway, NATS_PORT, Some(as_friend)),
            "closed"
        );
        assert_eq!(
            stranger.ask_as("tcp", gateway, NATS_PORT, Some(own)),
            format!("host {own}")
        );
        run(stranger
            .command("ip")
            .args(["addr", "del", &taken, "dev", "eth0"]));
        // The one that it played is still who it is.
        assert_eq!(friend.ask("udp", to, 53), format!("target {as_friend}"));
    }
    let dropped = machine.rules();
    let spoofed = dropped.split("chain spoofed").nth(1).expect("the chain");
    let count = spoofed
        .split("counter packets ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .expect("a counter");
    assert_ne!(count, "0", "{dropped}");

    // By ARP it learns its gateway, no other address of the host, and nobody listens to what it claims.
    let arping = |what: &[&str], address: IpAddr| {
        let mut command = stranger.command("busybox");
        command
            .args(["arping", "-c", "2", "-w", "2", "-I", "eth0"])
            .args(what)
            .arg(address.to_string());
        command.output().expect("it runs").status.success()
    };
    assert!(arping(&[], stranger.gateways()[0]));
    for hidden in [leaf, friend.gateways()[0], target.addresses()[0]] {
        assert!(!arping(&[], hidden), "{hidden} answers by ARP");
    }
    for claimed in [target.addresses()[0], friend.addresses()[0], leaf] {
        arping(&["-U"], claimed);
        arping(&["-A"], claimed);
    }
    assert_eq!(
        friend.ask("tcp", target.addresses()[0], 53),
        format!("target {}", friend.addresses()[0])
    );
    assert_ne!(ask_from_host("tcp", target.addresses()[0], 53), "closed");
    machine.host.end().await;
}

pub(crate) async fn the_rules_of_a_container_are_restored_after_a_boot_and_after_a_flush() {
    let mut machine = Machine::new().await;
    let _host = Server::on_host("host", &[NATS_PORT, 4223]);
    let before = machine.start(&[]).await;
    machine.without_rules();
    let leaf: IpAddr = machine.host.address(1).into();
    assert_ne!(before.ask("tcp", leaf, 4223), "closed");
    // Nobody prepares the network: the start of a container does.
    let inside = machine.start(&[]).await;
    for inside in [&before, &inside] {
        assert_eq!(inside.ask("tcp", leaf, 4223), "closed");
        assert_ne!(inside.ask("tcp", leaf, NATS_PORT), "closed");
    }
    machine.host.ok(Host::stop(&before.name)).await;
    let rules = machine.rules();
    assert!(!rules.contains(&format!("\"ve-{}\"", before.name)), "{rules}");
    assert!(rules.contains(&format!("\"ve-{}\"", inside.name)), "{rules}");
    machine
        .host
        .ok(HostOp::DestroyContainer {
            name: before.name.clone(),
        })
        .await;
    machine.host.end().await;
}

pub(crate) async fn rules_that_nft_can_not_read_are_made_again() {
    let mut machine = Machine::new().await;
    let _host = Server::on_host("host", &[NATS_PORT, 4223]);
    let inside = machine.start(&[]).await;
    let table = format!("leaf_{}", machine.host.leaf);
    run(Command::new("nft").args(["add", "chain", "inet", &table, "newer"]));
    // Version 1.0.6 ends like this when it reads what version 1.1.3 made.
    let old = machine.host.directory.path().join("old-nft");
    let nft = machine.host.settings.nft.display();
    let text = format!(
        "#!/bin/sh\n{nft} list chain inet {table} newer >/dev/null 2>&1 && kill -SEGV $$\nexec {nft} \"$@\"\n"
    );
    std::fs::write(&old, text).expect("a script");
    run(Command::new("chmod").arg("755").arg(&old));
    let settings = Settings {
        nft: old,
        ..machine.host.settings.clone()
    };
    let helper = Helper::new(machine.host.leaf.clone(), machine.host.paths.clone(), settings);
    let prepared = helper.carry_out(&machine.host.prepare()).await;
    prepared.expect("the rules are made again");
    let rules = machine.rules();
    assert!(!rules.contains("chain newer"), "{rules}");
    let leaf: IpAddr = machine.host.address(1).into();
    until_answered("NATS again", || inside.ask("tcp", leaf, NATS_PORT)).await;
    assert_eq!(inside.ask("tcp", leaf, 4223), "closed");
    machine.host.end().await;
}

pub(crate) async fn a_container_whose_spec_can_not_be_read_is_closed() {
    let mut machine = Machine::new().await;
    let _host = Server::on_host("host", &[NATS_PORT, 4223]);
    let (inside, other) = (machine.start(&[]).await, machine.start(&[]).await);
    let leaf: IpAddr = machine.host.address(1).into();
    until_answered("NATS", || inside.ask("tcp", leaf, NATS_PORT)).await;
    let spec = machine
        .host
        .paths
        .state
        .join(inside.name.as_str())
        .join("spec.json");
    let before = std::fs::read(&spec).expect("its spec");
    std::fs::write(&spec, "{").expect("a file");
    // As after a boot or a flush: all rules come from the specs.
    machine.without_rules();
    assert_ne!(
        inside.ask("tcp", leaf, 4223),
        "closed",
        "nothing is closed without rules"
    );
    machine.host.ok(machine.host.prepare()).await;
    let gateways = inside.gateways();
    for port in [NATS_PORT, 4223] {
        for to in gateways.iter().chain([&leaf]) {
            assert_eq!(inside.ask("tcp", *to, port), "closed", "{to}:{port}");
        }
    }
    until_answered("NATS for the other", || other.ask("tcp", leaf, NATS_PORT)).await;
    assert_eq!(other.ask("tcp", leaf, 4223), "closed");
    std::fs::write(&spec, before).expect("a file");
    machine.host.ok(machine.host.prepare()).await;
    until_answered("NATS again", || inside.ask("tcp", leaf, NATS_PORT)).await;
    machine.host.end().await;
}

pub(crate) async fn a_leaf_without_containers_takes_its_tables_with_it() {
    let mut machine = Machine::new().await;
    let inside = machine
        .start(&[Opening::Ingress {
            protocol: Protocol::Tcp,
            host_port: 8080,
            port: None,
        }])
        .await;
    let release = machine.host.release();
    let address = format!("{}/32", machine.host.address(1));
    let on_lo = || run(Command::new("ip").args(["-o", "address", "show", "dev", "lo"]));
    machine.host.ok(release.clone()).await;
    assert!(machine.rules().contains("chain forward"));
    machine.host.ok(Host::stop(&inside.name)).await;
    machine
        .host
        .ok(HostOp::DestroyContainer {
            name: inside.name.clone(),
        })
        .await;
    assert!(on_lo().contains(&address));
    // Another leaf may have containers with openings.
    let other = machine.host.directory.path().join("other");
    std::fs::create_dir(&other).expect("a directory");
    std::fs::write(other.join("network.json"), "{}").expect("a file");
    machine.host.ok(release.clone()).await;
    assert_eq!(machine.forwards(), ["1", "1"]);
    assert_eq!(
        run(Command::new("nft").args(["list", "tables"])),
        "table inet cim_leaf_forwarding"
    );
    std::fs::remove_dir_all(&other).expect("it is there");
    machine.host.ok(release.clone()).await;
    assert_eq!(machine.forwards(), ["0", "0"]);
    assert_eq!(run(Command::new("nft").args(["list", "tables"])), "");
    assert!(!on_lo().contains(&address));
    // Idempotent, and prepared again by the next start.
    machine.host.ok(release).await;
    machine.host.ok(machine.host.prepare()).await;
    assert!(machine.rules().contains("chain forward"));
    machine.host.end().await;
}

pub(crate) async fn an_address_that_the_leaf_did_not_add_stays_when_it_releases_its_network() {
    let machine = Machine::new().await;
    let address = format!("{}/32", machine.host.address(1));
    let on_lo = || run(Command::new("ip").args(["-o", "address", "show", "dev", "lo"]));
    assert!(on_lo().contains(&address));
    machine.host.ok(machine.host.release()).await;
    assert!(!on_lo().contains(&address));
    run(Command::new("ip").args(["address", "add", &address, "dev", "lo"]));
    machine.host.ok(machine.host.prepare()).await;
    machine.host.ok(machine.host.release()).await;
    assert!(on_lo().contains(&address));
    machine.host.end().await;
}

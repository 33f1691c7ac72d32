//! What `allow` opens, which is exactly what it names.

use std::process::Command;

use leaf_core::host_op::{HostOp, HostOpErrorKind as Kind};
use leaf_core::id::ContainerName;
use leaf_core::spec::{Opening, Protocol};
use leaf_helper::Helper;

use super::machine::{HOST, Machine, OUTSIDE, Outside, Server, ask_from_host, both, run, until_answered};
use crate::host::{Host, NATS_PORT};

/// Another network of the host, with a program there that answers.
pub(crate) const HOST_THERE: [&str; 2] = ["198.51.100.1", "2001:db8:3::1"];
pub(crate) const THERE: [&str; 2] = ["198.51.100.2", "2001:db8:3::2"];

fn to_container(name: &ContainerName, protocol: Protocol, port: u16) -> Opening {
    Opening::Container {
        name: name.clone(),
        protocol,
        port,
    }
}

pub(crate) fn to_outside(to: &str, protocol: Protocol, port: Option<u16>) -> Opening {
    Opening::Outside {
        to: to.parse().expect("a destination"),
        protocol,
        port,
    }
}

fn ingress(protocol: Protocol, host_port: u16, port: Option<u16>) -> Opening {
    Opening::Ingress {
        protocol,
        host_port,
        port,
    }
}

pub(crate) async fn an_opening_to_a_container_permits_one_port_in_one_direction_also_if_it_is_created_later()
{
    let mut machine = Machine::new().await;
    let late = machine.host.name();
    let allow = [
        to_container(&late, Protocol::Tcp, 80),
        to_container(&late, Protocol::Udp, 53),
    ];
    let inside = machine.start(&allow).await;
    let _inside = inside.serve("inside", &[80, 53]);
    // Only now the other one comes, goes, and comes again.
    for _ in 0..2 {
        machine.create(&late, &[]).await;
        let other = machine.enter(&late).await;
        let server = other.serve("other", &[80, 53]);
        for (own, to) in inside.addresses().into_iter().zip(other.addresses()) {
            assert_eq!(inside.ask("tcp", to, 80), format!("other {own}"));
            assert_eq!(inside.ask("udp", to, 53), format!("other {own}"));
            assert_eq!(inside.ask("udp", to, 80), "closed");
            assert_eq!(inside.ask("tcp", to, 53), "closed");
            assert_eq!(other.ask("tcp", own, 80), "closed");
            assert_eq!(other.ask("udp", own, 53), "closed");
        }
        // What is closed on a running container is closed at once, and open again at once.
        machine.create(&inside.name, &allow[1..]).await;
        for (own, to) in inside.addresses().into_iter().zip(other.addresses()) {
            assert_eq!(inside.ask("tcp", to, 80), "closed");
            assert_eq!(inside.ask("udp", to, 53), format!("other {own}"));
        }
        machine.create(&inside.name, &allow).await;
        assert_ne!(inside.ask("tcp", other.addresses()[0], 80), "closed");
        drop(server);
        machine.host.ok(Host::stop(&late)).await;
        machine
            .host
            .ok(HostOp::DestroyContainer { name: late.clone() })
            .await;
    }
    machine.host.end().await;
}

pub(crate) async fn an_opening_to_the_outside_is_limited_to_its_destination_and_masqueraded() {
    let mut machine = Machine::new().await;
    let outside = Outside::new("out", HOST, OUTSIDE, &[53, 80, 443]);
    let there = Outside::new("lan", HOST_THERE, THERE, &[80]);
    let other = machine.start(&[]).await;
    let _other = other.serve("other", &[80]);
    let inside = machine
        .start(&[
            to_outside("192.0.2.2", Protocol::Tcp, Some(80)),
            to_outside("192.0.2.0/24", Protocol::Udp, None),
            to_outside("0.0.0.0/0", Protocol::Udp, Some(53)),
            to_outside("2001:db8:2::/64", Protocol::Tcp, Some(80)),
            to_outside("2001:db8:2::2", Protocol::Udp, None),
        ])
        .await;
    for family in [0, 1] {
        let (to, host) = (both(OUTSIDE)[family], both(HOST)[family]);
        until_answered("the outside", || ask_from_host("tcp", to, 80)).await;
        until_answered("the other network", || {
            ask_from_host("tcp", both(THERE)[family], 80)
        })
        .await;
        assert_eq!(inside.ask("tcp", to, 80), format!("out {host}"));
        assert_eq!(inside.ask("udp", to, 53), format!("out {host}"));
        assert_eq!(inside.ask("udp", to, 443), format!("out {host}"));
        assert_eq!(inside.ask("tcp", to, 443), "closed");
        assert_eq!(inside.ask("tcp", both(THERE)[family], 80), "closed");
        assert_eq!(inside.ask("udp", both(THERE)[family], 80), "closed");
        // Neither the host, nor another container, is outside; and the way is one.
        assert_eq!(inside.ask("udp", host, 53), "closed");
        assert_eq!(inside.ask("udp", other.addresses()[family], 80), "closed");
        assert_eq!(other.ask("tcp", to, 80), "closed");
        assert_eq!(outside.ask("tcp", inside.addresses()[family], 80), "closed");
        assert_eq!(outside.ask("tcp", other.addresses()[family], 80), "closed");
        // The host forwards now, and for containers only.
        assert_eq!(outside.ask("tcp", both(THERE)[family], 80), "closed");
        assert_eq!(there.ask("tcp", to, 80), "closed");
    }
    machine.host.end().await;
}

pub(crate) async fn a_port_of_the_leaf_is_forwarded_to_a_container_from_outside_and_from_the_host_only() {
    let mut machine = Machine::new().await;
    let outside = Outside::new("out", HOST, OUTSIDE, &[80]);
    let _host = Server::on_host("host", &[80]);
    let allow = [
        ingress(Protocol::Tcp, 8080, Some(80)),
        ingress(Protocol::Udp, 53, None),
    ];
    let (inside, other) = (machine.start(&allow).await, machine.start(&[]).await);
    let _inside = inside.serve("inside", &[53, 80, 81]);
    for family in [0, 1] {
        let (client, host) = (both(OUTSIDE)[family], both(HOST)[family]);
        until_answered("the outside", || ask_from_host("tcp", client, 80)).await;
        assert_eq!(outside.ask("tcp", host, 8080), format!("inside {client}"));
        assert_eq!(outside.ask("udp", host, 53), format!("inside {client}"));
        assert_eq!(outside.ask("tcp", host, 80), format!("host {client}"));
        for (protocol, port) in [("udp", 8080), ("tcp", 53), ("tcp", 81)] {
            assert_eq!(outside.ask(protocol, host, port), "closed");
        }
        for port in [80, 81, 8080] {
            assert_eq!(outside.ask("tcp", inside.addresses()[family], port), "closed");
        }
        assert_eq!(ask_from_host("tcp", host, 8080), format!("inside {host}"));
        for from in [&inside, &other] {
            assert_eq!(from.ask("tcp", host, 8080), "closed");
            assert_eq!(from.ask("tcp", from.gateways()[family], 8080), "closed");
        }
        assert_eq!(inside.ask("tcp", client, 80), "closed");
    }
    // It is one container's, and the leaf's NATS is nobody else's.
    let taken = machine.creation(&other.name, &[ingress(Protocol::Tcp, 8080, None)]);
    let error = machine.host.fails(taken, Kind::Refused).await;
    assert!(
        error
            .reason
            .contains(&format!("already forwarded to container {}", inside.name)),
        "{error}"
    );
    let nats = machine.creation(&other.name, &[ingress(Protocol::Tcp, NATS_PORT, Some(80))]);
    let error = machine.host.fails(nats, Kind::Refused).await;
    assert!(error.reason.contains("NATS"), "{error}");
    // Once it is free another one may have it, at once.
    machine.create(&inside.name, &[]).await;
    machine
        .create(&other.name, &[ingress(Protocol::Tcp, 8080, None)])
        .await;
    let _other = other.serve("other", &[8080]);
    for (client, host) in both(OUTSIDE).into_iter().zip(both(HOST)) {
        assert_eq!(outside.ask("tcp", host, 8080), format!("other {client}"));
        assert_eq!(outside.ask("udp", host, 53), "closed");
    }
    machine.host.end().await;
}

pub(crate) async fn a_missing_requirement_of_the_network_is_named() {
    let mut machine = Machine::new().await;
    let name = machine.host.name();
    // Its settings are read-only, as they are in a sandbox.
    run(Command::new("mount").args(["--bind", "/proc/sys", "/proc/sys"]));
    run(Command::new("mount").args(["-o", "remount,bind,ro", "/proc/sys"]));
    let opening = machine.creation(&name, &[ingress(Protocol::Tcp, 8080, None)]);
    let error = machine.host.fails(opening, Kind::Unsupported).await;
    assert!(error.reason.contains("net.ipv4.ip_forward = 1"), "{error}");
    // Nothing is noted of what could not be enabled.
    machine.host.ok(machine.host.prepare()).await;
    run(Command::new("umount").arg("/proc/sys"));
    let mut settings = machine.host.settings.clone();
    settings.nft = "/nowhere/nft".into();
    let helper = Helper::new(machine.host.leaf.clone(), machine.host.paths.clone(), settings);
    let error = helper
        .carry_out(&machine.host.prepare())
        .await
        .expect_err("there is no nft");
    assert_eq!(error.kind, Kind::Unsupported);
    assert!(error.reason.contains("install nftables"), "{error}");
    machine.host.end().await;
}

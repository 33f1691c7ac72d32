//! What another program's flush of all nftables rules opens: nothing, where the network is closed before it.

use std::net::IpAddr;
use std::process::Command;

use leaf_core::spec::Protocol;
use leaf_helper::Helper;

use super::machine::{
    HOST, Inside, Machine, OUTSIDE, Outside, Server, ask_from_host, both, run, until_answered,
};
use super::openings::{HOST_THERE, THERE, to_outside};
use crate::host::{Host, NATS_PORT};

/// Removes all rules, as the restart of a firewall does.
fn flush() {
    run(Command::new("nft").args(["flush", "ruleset"]));
}

/// The addresses at which a container reaches the leaf.
fn leaf_of(machine: &Machine, inside: &Inside) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = inside.gateways().into();
    all.push(machine.host.address(1).into());
    all
}

fn assert_cut_off(machine: &Machine, inside: &Inside) {
    let to = leaf_of(machine, inside)
        .into_iter()
        .flat_map(|to| [(to, NATS_PORT), (to, 4223)]);
    let answers = at_once(to.map(|(to, port)| move || (to, port, inside.ask("tcp", to, port))));
    for (to, port, answer) in answers {
        assert_eq!(answer, "closed", "{to}:{port}");
    }
}

/// The answers to questions that are asked at once: what is closed does not answer for seconds.
fn at_once<T: Send>(questions: impl Iterator<Item = impl FnOnce() -> T + Send>) -> Vec<T> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = questions.map(|question| scope.spawn(question)).collect();
        let answers = asked.into_iter().map(|asked| asked.join().expect("an answer"));
        answers.collect()
    })
}

async fn assert_reaches_nats_only(machine: &Machine, inside: &Inside) {
    for to in leaf_of(machine, inside) {
        until_answered("NATS", || inside.ask("tcp", to, NATS_PORT)).await;
        assert_eq!(inside.ask("tcp", to, 4223), "closed", "{to}");
    }
}

pub(crate) async fn a_flush_between_close_and_open_opens_nothing() {
    let mut machine = Machine::new().await;
    let _host = Server::on_host("host", &[NATS_PORT, 4223]);
    let inside = machine.start(&[]).await;
    assert!(machine.change_network("close"));
    flush();
    assert_cut_off(&machine, &inside);
    assert!(machine.change_network("open"));
    assert_reaches_nats_only(&machine, &inside).await;
    machine.host.end().await;
}

pub(crate) async fn nothing_connects_a_container_while_the_network_is_closed() {
    let mut machine = Machine::new().await;
    let _host = Server::on_host("host", &[NATS_PORT, 4223]);
    let running = machine.start(&[]).await;
    let late = machine.host.name();
    machine.create(&late, &[]).await;
    assert!(machine.change_network("close"));
    // leafd's check, and a start, between the close and the flush.
    machine.host.ok(machine.host.prepare()).await;
    let started = machine.enter(&late).await;
    flush();
    for inside in [&running, &started] {
        assert_cut_off(&machine, inside);
    }
    assert!(machine.change_network("open"));
    for inside in [&running, &started] {
        assert_reaches_nats_only(&machine, inside).await;
    }
    // Whoever closed it does not come back: leafd's check opens it after a while.
    assert!(machine.change_network("close"));
    flush();
    machine.host.ok(machine.host.prepare()).await;
    assert_cut_off(&machine, &running);
    std::fs::write(machine.host.paths.run.join("network.closed"), "0").expect("a time long ago");
    machine.host.ok(machine.host.prepare()).await;
    assert_reaches_nats_only(&machine, &running).await;
    machine.host.end().await;
}

pub(crate) async fn an_error_about_one_container_leaves_no_other_open_or_cut_off() {
    let mut machine = Machine::new().await;
    let _host = Server::on_host("host", &[NATS_PORT, 4223]);
    // The first by name, whose run directory is none.
    let odd = machine.host.name();
    machine.create(&odd, &[]).await;
    let inside = machine.start(&[]).await;
    let directory = machine.host.paths.run.join(odd.as_str());
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::write(&directory, "").expect("a file");
    assert!(!machine.change_network("close"));
    flush();
    assert_cut_off(&machine, &inside);
    assert!(!machine.change_network("open"));
    assert_reaches_nats_only(&machine, &inside).await;
    std::fs::remove_file(&directory).expect("it is there");
    // What it may have in the rules is unknown, until they are set again.
    machine.host.ok(machine.host.prepare()).await;
    machine.host.end().await;
}

pub(crate) async fn a_network_that_could_not_be_opened_is_opened_by_the_next_preparation() {
    let mut machine = Machine::new().await;
    let _host = Server::on_host("host", &[NATS_PORT, 4223]);
    let inside = machine.start(&[]).await;
    let record = machine.host.paths.state.join("network.json");
    let text = std::fs::read_to_string(&record).expect("a record");
    // A newer helper's record, with which an older one can set the rules.
    let newer = text.replace('{', r#"{"newer":{"some":"thing"},"#);
    std::fs::write(&record, newer).expect("a file");
    assert!(machine.change_network("close"));
    flush();
    assert!(machine.change_network("open"));
    assert_reaches_nats_only(&machine, &inside).await;
    // One that it can't read is replaced by leafd's next call, which connects the containers.
    std::fs::write(&record, "{}").expect("a file");
    assert!(machine.change_network("close"));
    flush();
    assert!(!machine.change_network("open"));
    assert_cut_off(&machine, &inside);
    machine.host.ok(machine.host.prepare()).await;
    assert_reaches_nats_only(&machine, &inside).await;
    machine.host.end().await;
}

pub(crate) async fn a_host_whose_forwarding_the_leaf_enabled_is_no_router_after_a_flush() {
    let mut machine = Machine::new().await;
    let outside = Outside::new("out", HOST, OUTSIDE, &[80]);
    let there = Outside::new("lan", HOST_THERE, THERE, &[80]);
    let opening = |to| to_outside(to, Protocol::Tcp, Some(80));
    let inside = machine
        .start(&[opening("192.0.2.2"), opening("2001:db8:2::2")])
        .await;
    assert_eq!(machine.forwards(), ["1", "1"]);
    let far = |family: usize| [both(OUTSIDE)[family], both(THERE)[family]];
    for to in [0, 1].into_iter().flat_map(far) {
        until_answered("the networks", || ask_from_host("tcp", to, 80)).await;
    }
    let is_router = || {
        let ways = [0, 1].into_iter().flat_map(|family| {
            let [out, lan] = far(family);
            [(&outside, lan), (&there, out)]
        });
        let answers = at_once(ways.map(|(from, to)| move || from.ask("tcp", to, 80)));
        answers.iter().any(|answer| answer != "closed")
    };
    // As it was enabled, and as a helper of before the notes did that.
    for notes in [true, false] {
        if !notes {
            for family in ["ipv4", "ipv6"] {
                let note = machine.host.directory.path().join(format!("forwarding.{family}"));
                std::fs::remove_file(note).expect("a note");
            }
            let host = &machine.host;
            let newer = Helper::new(host.leaf.clone(), host.paths.clone(), host.settings.clone());
            newer.carry_out(&host.prepare()).await.expect("it is prepared");
        }
        assert!(machine.change_network("close"));
        flush();
        assert!(!is_router(), "while it is closed");
        assert!(machine.change_network("open"));
        assert!(!is_router(), "when it is open again");
        assert_eq!(machine.forwards(), ["1", "1"]);
        for to in both(OUTSIDE) {
            until_answered("the opening", || inside.ask("tcp", to, 80)).await;
        }
    }
    // Nobody closes the network before the flush: the table returns with the rules.
    flush();
    assert!(is_router());
    machine.host.ok(machine.host.prepare()).await;
    assert!(!is_router());
    machine.host.ok(Host::stop(&inside.name)).await;
    machine.host.end().await;
}

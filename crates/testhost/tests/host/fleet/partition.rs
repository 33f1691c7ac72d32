//! The link between a leaf and the hub is cut, or bad; and clocks jump meanwhile.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use testhost::Host;
use testhost::fleet::leaf_name;

use super::{Hubbed, events};
use crate::{Outcome, Trials, ensure};

pub(crate) const TRIALS: Trials = &[(
    "a_leaf_that_is_cut_off_obeys_its_own_people_and_then_the_hub_has_all_its_events_also_where_clocks_jump",
    partition,
)];

const LEAVES: usize = 3;

/// The longest that a renewal and a command may take on an emulated machine.
const SOON: Duration = Duration::from_secs(15);

fn partition() -> Outcome {
    let hubbed = Hubbed::up(LEAVES)?;
    cut_off(&hubbed)?;
    bad_link(&hubbed)?;
    clocks(&hubbed)?;
    // The copies are the leaves' own streams.
    for number in 1..=LEAVES {
        let (leaf, host) = (leaf_name(number), hubbed.fleet.leaf(number));
        let recorded = events(host, "")?;
        let last = recorded.last().context("a leaf has events")?;
        hubbed.until(&format!("the hub has the last event of {leaf}"), |hub| {
            Ok(events(hub, &format!("--leaf {leaf}"))?.contains(last))
        })?;
        let copied = events(&hubbed.fleet.hub, &format!("--leaf {leaf}"))?;
        ensure(
            copied.starts_with(&recorded),
            format!("the hub has {copied:?}\ninstead of {recorded:?}"),
        )?;
    }
    Ok(())
}

/// One of three is cut off: the others go on, it obeys its own people, and what it recorded reaches the hub afterwards.
fn cut_off(hubbed: &Hubbed) -> Outcome {
    let own = hubbed.fleet.leaf(1);
    hubbed.fleet.network.cut("leaf-1")?;
    let asked = hubbed.at_hub("--all-leaves --timeout 30s leaf label stage=canary")?;
    ensure(
        asked.status != 0 && asked.stderr.contains("leaf-1"),
        format!("one of three does not answer: {asked:?}"),
    )?;
    for leaf in ["leaf-2", "leaf-3"] {
        ensure(
            asked.stdout.contains(leaf) && !asked.stderr.contains(leaf),
            format!("{leaf} goes on: {asked:?}"),
        )?;
    }
    own.ok("leafctl --timeout 60s leaf label site=cut-off")?;
    hubbed.fleet.network.mend("leaf-1")?;
    hubbed.until("the hub has what the leaf recorded meanwhile", |hub| {
        let copied = events(hub, "--leaf leaf-1")?;
        Ok(copied.iter().any(|event| event.to_string().contains("cut-off")))
    })?;
    hubbed.until_reached("leaf-1")
}

/// On a bad link each change is carried out, and once.
fn bad_link(hubbed: &Hubbed) -> Outcome {
    let network = &hubbed.fleet.network;
    network.delay("leaf-1", Duration::from_millis(50))?;
    network.loss("leaf-1", 0.1)?;
    for number in 0..4 {
        hubbed.change("leaf-1", &format!("bad-link={number}"))?;
    }
    network.mend("leaf-1")?;
    recorded_once(hubbed, "leaf-1", "bad-link", 4)
}

/// A leaf's clock and the hub's are weeks off, in opposite directions, and then the other way: every leaf is there, and each change
/// is one event.
fn clocks(hubbed: &Hubbed) -> Outcome {
    let (leaf, hub) = (hubbed.fleet.leaf(2), &hubbed.fleet.hub);
    let jumps = [("-3 weeks", "+3 weeks"), ("+6 weeks", "-6 weeks")];
    for (number, (of_leaf, of_hub)) in jumps.into_iter().enumerate() {
        leaf.ok(&format!("date --set '{of_leaf}'"))?;
        hub.ok(&format!("date --set '{of_hub}'"))?;
        own_people_are_let_in(hubbed, leaf)?;
        for number_of_leaf in 1..=LEAVES {
            hubbed.change(&leaf_name(number_of_leaf), &format!("clock={number}"))?;
        }
        hubbed.until_all_current(LEAVES)?;
    }
    for number in 1..=LEAVES {
        recorded_once(hubbed, &leaf_name(number), "clock", jumps.len())?;
    }
    for host in hubbed.fleet.machines() {
        let restarts = host
            .ok("systemctl show --property NRestarts --value leafd.service nats.service leaf-hub.service")?;
        ensure(
            restarts.split_whitespace().all(|count| count == "0"),
            format!("something ended on {}: {restarts:?}", host.name()),
        )?;
    }
    Ok(())
}

/// Fails unless the leaf's own people reach it soon after its clock was set: their credentials, which may have ended with that, are
/// renewed at once, not at leafd's next look at the clock, after half a minute.
fn own_people_are_let_in(hubbed: &Hubbed, leaf: &Host) -> Outcome {
    let set = Instant::now();
    hubbed.until("a leaf whose clock was set lets its own people in", |_| {
        Ok(leaf.run("leafctl --timeout 60s leaf show")?.status == 0)
    })?;
    ensure(set.elapsed() < SOON, format!("that took {:?}", set.elapsed()))
}

/// Fails unless a leaf recorded so many changes of a label.
fn recorded_once(hubbed: &Hubbed, leaf: &str, label: &str, changes: usize) -> Outcome {
    let host = hubbed.fleet.leaves.iter().find(|host| host.name() == leaf);
    let recorded: Vec<Value> = events(host.context("the leaf is in the fleet")?, "")?
        .into_iter()
        .filter(|event| event.to_string().contains(&format!("\"{label}\"")))
        .collect();
    ensure(
        recorded.len() == changes,
        format!("{changes} changes are as many events: {recorded:?}"),
    )
}

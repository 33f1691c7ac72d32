//! A boot of the host, at which systemd begins to start containers before the leaf runs.

use leaf_core::command::{Command, SetContainer, StartContainer};
use leaf_core::container::{ContainerPhase, Exit};
use leaf_core::id::ContainerName;
use leaf_core::spec::Autostart;
use serde_json::json;

use super::steps::Fate;
use super::world::World;
use super::{admin, built, with_running};

const FAILED: &str = "cim.leaf.container.failed.v1";

/// A leaf with the container `web`, which runs and is started like this when the host boots.
fn started_by(autostart: Autostart) -> (World, ContainerName) {
    let (mut world, name) = with_running();
    let change = SetContainer {
        name: name.clone(),
        patch: json!({ "autostart": autostart }),
        if_generation: None,
    };
    world.send(admin(), None, change.into());
    world.commit(usize::MAX);
    while !world.work.is_empty() {
        step(&mut world, Fate::Done);
    }
    assert_eq!(world.phase(&name), Some(ContainerPhase::Running));
    (world, name)
}

fn step(world: &mut World, fate: Fate) {
    world.finish_work(0, fate, &built());
    world.commit(usize::MAX);
}

/// The host ends the container as it shuts down, which the leaf sees before it ends as well; then the host boots.
fn boots_after_the_end_was_seen(world: &mut World, name: &ContainerName) {
    world.host.moves(name, Exit::Code { code: 0 }, world.now());
    world.begin_observation();
    world.deliver_observation();
    world.commit(usize::MAX);
    assert_eq!(world.phase(name), Some(ContainerPhase::Stopped));
    boots(world);
    assert_eq!(world.phase(name), Some(ContainerPhase::Starting));
}

fn boots(world: &mut World) {
    world.crash(Fate::Done, true);
    world.commit(usize::MAX);
    // Its scan, which every run begins with.
    step(world, Fate::Done);
}

#[test]
fn a_start_that_the_host_began_and_that_failed_while_the_leaf_waited_for_it_is_tried_once_more() {
    let (mut world, web) = started_by(Autostart::WithHost);
    boots_after_the_end_was_seen(&mut world, &web);
    step(&mut world, Fate::Fails(0));
    assert_eq!(world.phase(&web), Some(ContainerPhase::Starting));
    assert!(
        world.kinds().iter().any(|kind| kind == FAILED),
        "{:?}",
        world.kinds()
    );
    step(&mut world, Fate::Done);
    assert_eq!(world.phase(&web), Some(ContainerPhase::Running));
}

#[test]
fn it_is_tried_once_more_only() {
    let (mut world, web) = started_by(Autostart::WithHost);
    boots_after_the_end_was_seen(&mut world, &web);
    step(&mut world, Fate::Fails(0));
    step(&mut world, Fate::Fails(0));
    assert_eq!(world.phase(&web), Some(ContainerPhase::Failed));
    assert!(world.work.is_empty());
}

#[test]
fn a_start_of_the_leafs_own_that_fails_after_a_boot_is_not_repeated() {
    let (mut world, web) = started_by(Autostart::WithLeafd);
    boots_after_the_end_was_seen(&mut world, &web);
    step(&mut world, Fate::Fails(0));
    assert_eq!(world.phase(&web), Some(ContainerPhase::Failed));
    assert!(world.work.is_empty());
}

#[test]
fn a_start_that_was_under_way_when_the_power_was_cut_is_tried_once_more() {
    let (mut world, web) = started_by(Autostart::WithHost);
    boots_after_the_end_was_seen(&mut world, &web);
    boots(&mut world);
    assert_eq!(world.phase(&web), Some(ContainerPhase::Starting));
    step(&mut world, Fate::Fails(0));
    assert_eq!(world.phase(&web), Some(ContainerPhase::Starting));
}

#[test]
fn after_a_command_a_failed_start_is_final() {
    let (mut world, web) = started_by(Autostart::WithHost);
    boots_after_the_end_was_seen(&mut world, &web);
    for command in [super::stop(&web), start(&web)] {
        world.send(admin(), None, command);
        world.commit(usize::MAX);
    }
    while world.phase(&web) == Some(ContainerPhase::Starting) && !world.work.is_empty() {
        step(&mut world, Fate::Fails(0));
    }
    assert_eq!(world.phase(&web), Some(ContainerPhase::Failed));
    let failures = world.kinds().iter().filter(|kind| *kind == FAILED).count();
    assert_eq!(failures, 1);
}

fn start(name: &ContainerName) -> Command {
    StartContainer {
        name: name.clone(),
        if_generation: None,
    }
    .into()
}

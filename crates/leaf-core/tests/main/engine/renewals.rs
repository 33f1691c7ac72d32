//! Containers' credentials: renewed while a container is left alone, before it is started, and whatever happens meanwhile.

use leaf_core::command::{Command, ShowContainer, StartContainer};
use leaf_core::container::{Container, ContainerPhase, Exit};
use leaf_core::id::ContainerName;

use super::steps::Fate;
use super::world::World;
use super::{admin, built, destroy, stop, with_running};

const DAY: u64 = 24 * 3600;

/// Lets time pass, and ends what is begun.
fn pass(world: &mut World, seconds: u64, fate: Fate) {
    world.pass(seconds);
    finish(world, fate);
}

fn finish(world: &mut World, fate: Fate) {
    while !world.work.is_empty() {
        world.finish_work(0, fate, &built());
        world.commit(usize::MAX);
    }
}

fn start(name: &ContainerName) -> Command {
    StartContainer {
        name: name.clone(),
        if_generation: None,
    }
    .into()
}

/// When the credentials that a container has were issued.
fn issued(world: &World, name: &ContainerName) -> u64 {
    world.host.credentials[name]
}

fn shown(world: &mut World, name: &ContainerName) -> Container {
    world.send(admin(), None, ShowContainer { name: name.clone() }.into());
    let reply = world.commit_and_reply().expect("answered at once");
    serde_json::from_slice(&reply.expect("it is there")).expect("a container")
}

#[test]
fn a_container_that_is_left_alone_gets_new_credentials_at_two_thirds_of_their_life() {
    let (mut world, web) = with_running();
    let first = issued(&world, &web);
    pass(&mut world, DAY * 2 / 3 - 100, Fate::Done);
    assert_eq!(issued(&world, &web), first);
    pass(&mut world, 101, Fate::Done);
    let second = issued(&world, &web);
    assert!(second > first);
    let events = world.events().len();
    pass(&mut world, DAY * 3, Fate::Done);
    assert!(issued(&world, &web) > second);
    assert_eq!(world.events().len(), events, "a renewal is no event");
    assert_eq!(world.phase(&web), Some(ContainerPhase::Running));
}

#[test]
fn a_leaf_that_starts_renews_all_and_shows_until_when_they_are_valid() {
    let (mut world, web) = with_running();
    let until = shown(&mut world, &web)
        .credentials_until
        .expect("it was given some");
    world.crash(Fate::Done, false);
    world.commit(usize::MAX);
    finish(&mut world, Fate::Done);
    assert_eq!(shown(&mut world, &web).credentials_until, None, "not known yet");
    pass(&mut world, 1, Fate::Done);
    assert!(shown(&mut world, &web).credentials_until.expect("renewed") > until);
    assert_eq!(
        world.state().containers[&web].credentials_until,
        None,
        "it is no part of the state"
    );
}

#[test]
fn a_renewal_that_fails_changes_nothing_else_and_is_tried_again() {
    for fate in [Fate::HelperGone(0), Fate::Fails(0), Fate::Unobserved] {
        let (mut world, web) = with_running();
        let first = issued(&world, &web);
        pass(&mut world, DAY, fate);
        assert_eq!(world.phase(&web), Some(ContainerPhase::Running), "{fate:?}");
        if fate != Fate::Unobserved {
            assert_eq!(issued(&world, &web), first, "{fate:?}");
            pass(&mut world, 1, Fate::Done);
            assert_eq!(issued(&world, &web), first, "it pauses first");
            pass(&mut world, 10, Fate::Done);
        }
        assert!(issued(&world, &web) > first, "{fate:?}");
    }
}

#[test]
fn a_full_disk_keeps_no_container_from_new_credentials() {
    let (mut world, web) = with_running();
    let first = issued(&world, &web);
    world.disk_is_full = true;
    // Its end can't be recorded, and later effects wait for that.
    world
        .host
        .moves(&ContainerName::new("none").expect("a name"), Exit::Lost, 1);
    world.host.out_of_memory(&web);
    world.begin_observation();
    world.deliver_observation();
    assert!(world.has_uncommitted());
    pass(&mut world, DAY, Fate::Done);
    assert!(issued(&world, &web) > first);
}

#[test]
fn a_container_that_is_started_after_days_has_new_credentials_before() {
    let (mut world, web) = with_running();
    world.send(admin(), None, stop(&web));
    world.commit(usize::MAX);
    finish(&mut world, Fate::Done);
    let first = issued(&world, &web);
    pass(&mut world, 30 * DAY, Fate::Done);
    assert_eq!(issued(&world, &web), first, "a stopped container needs none");
    world.send(admin(), None, start(&web));
    world.commit(usize::MAX);
    finish(&mut world, Fate::Done);
    assert_eq!(world.phase(&web), Some(ContainerPhase::Running));
    assert!(issued(&world, &web) > first + 30 * DAY);
}

#[test]
fn a_start_goes_on_where_its_credentials_could_not_be_renewed() {
    let (mut world, web) = with_running();
    world.send(admin(), None, stop(&web));
    world.commit(usize::MAX);
    finish(&mut world, Fate::Done);
    let first = issued(&world, &web);
    pass(&mut world, DAY, Fate::Done);
    world.send(admin(), None, start(&web));
    world.commit(usize::MAX);
    world.host.renewals_fail = true;
    finish(&mut world, Fate::Done);
    assert_eq!(world.phase(&web), Some(ContainerPhase::Running));
    assert_eq!(issued(&world, &web), first);
    pass(&mut world, 1, Fate::Done);
    assert!(issued(&world, &web) > first);
}

#[test]
fn a_container_that_is_stopped_or_destroyed_amid_a_renewal_is_stopped_or_destroyed_after_it() {
    for (command, is_gone) in [(stop as fn(&ContainerName) -> Command, false), (destroy, true)] {
        for fate in [Fate::Done, Fate::HelperGone(0), Fate::Unobserved, Fate::Late] {
            let (mut world, web) = with_running();
            world.pass(DAY);
            assert_eq!(world.work.len(), 1, "the renewal");
            world.send(admin(), None, command(&web));
            world.commit(usize::MAX);
            assert_eq!(world.work.len(), 1, "no other step runs beside it");
            world.finish_work(0, fate, &built());
            world.commit(usize::MAX);
            finish(&mut world, Fate::Done);
            assert_eq!(world.host.containers.contains_key(&web), !is_gone, "{fate:?}");
            if !is_gone {
                assert_eq!(world.phase(&web), Some(ContainerPhase::Stopped));
            }
        }
    }
}

#[test]
fn a_leaf_that_stops_waits_for_a_renewal_and_begins_no_other() {
    let (mut world, web) = with_running();
    world.pass(DAY);
    world.stop();
    world.come_to_rest();
    assert_eq!(world.phase(&web), Some(ContainerPhase::Running));
}

//! Changes of secrets: one after the other, recorded after the helper has made them, and found again after a crash.

use leaf_core::decide::SecretChange;
use leaf_core::host_op::Secret;
use leaf_core::id::SecretName;
use leaf_core::problem::ProblemCode;
use leaf_core::secret::SecretRecord;

use super::*;
use crate::model_host::digest;

/// Its token in a subject or a key differs from it.
fn secret() -> SecretName {
    SecretName::new("DB_pass-word").expect("a name")
}

/// The age file of this number, as the model of the host has it: its users stand in the clear.
fn age(number: u32, users: &str) -> Secret {
    let users = if users.is_empty() {
        "for: container web"
    } else {
        users
    };
    Secret::new(format!("-----BEGIN AGE ENCRYPTED FILE-----\n{number}\n{users}\n"))
}

fn set(number: u32, users: &str) -> Command {
    SetSecret {
        name: secret(),
        age: age(number, users),
    }
    .into()
}

/// A leaf with a container that runs and has the secret, in this way.
fn with_user(on_change: &str) -> (World, ContainerName) {
    let (mut world, name) = with_running();
    let patch =
        serde_json::json!({ "secrets": { "password": { "secret": secret(), "on_change": on_change } } });
    let set = SetContainer {
        name: name.clone(),
        patch,
        if_generation: None,
    };
    world.send(admin(), None, set.into());
    world.come_to_rest();
    (world, name)
}

fn id(text: &str) -> Option<CommandId> {
    Some(CommandId::new(text).expect("an id"))
}

fn record(reply: &Result<Vec<u8>, leaf_core::problem::Problem>) -> SecretRecord {
    serde_json::from_slice(reply.as_ref().expect("a success")).expect("its reply")
}

fn desired_facts(world: &World) -> usize {
    let kinds = world.kinds();
    kinds
        .iter()
        .filter(|kind| kind.contains("container.desired"))
        .count()
}

#[test]
fn a_changed_secret_restarts_its_container_once_without_a_new_generation() {
    let (mut world, name) = with_user("restart");
    for number in 1..3 {
        let before = desired_facts(&world);
        world.send(admin(), None, set(number, ""));
        world.come_to_rest();
        assert_eq!(desired_facts(&world), before + 1);
        let container = &world.state().containers[&name];
        assert_eq!(container.desired.generation, 2);
        assert_eq!(container.desired.secrets[&secret()], digest(&age(number, "")));
        // The same file once more.
        world.send(admin(), None, set(number, ""));
        world.come_to_rest();
        assert_eq!(desired_facts(&world), before + 1);
    }
    assert_eq!(world.state().secrets[&secret()].generation, 2);
}

#[test]
fn a_changed_secret_leaves_a_container_alone_that_wants_nothing_or_may_not_have_it() {
    let (mut world, _) = with_user("nothing");
    let before = desired_facts(&world);
    world.send(admin(), None, set(1, ""));
    world.come_to_rest();
    assert_eq!(desired_facts(&world), before);
    let (mut world, _) = with_user("restart");
    world.send(admin(), None, set(1, "for: container other"));
    world.come_to_rest();
    assert_eq!(desired_facts(&world), before);
    world.send(admin(), None, set(2, "for: container web"));
    world.come_to_rest();
    assert_eq!(desired_facts(&world), before + 1);
}

#[test]
fn a_secret_that_is_gone_or_for_others_restarts_nobody_also_with_another_change() {
    for change in [
        Command::from(RemoveSecret { name: secret() }),
        set(2, "for: container other"),
    ] {
        let (mut world, name) = with_user("restart");
        world.send(admin(), None, set(1, ""));
        world.come_to_rest();
        let before = world.state().containers[&name].desired.secrets.clone();
        assert_eq!(before.len(), 1);
        world.send(admin(), None, change);
        let label = SetContainer {
            name: name.clone(),
            patch: serde_json::json!({ "labels": { "rack": "7" } }),
            if_generation: None,
        };
        world.send(admin(), None, label.into());
        world.come_to_rest();
        let container = &world.state().containers[&name];
        assert_eq!(container.desired.secrets, before);
        assert_eq!(container.phase, ContainerPhase::Running);
        // One that does not use it any more forgets it.
        let without = SetContainer {
            name: name.clone(),
            patch: serde_json::json!({ "secrets": null }),
            if_generation: None,
        };
        world.send(admin(), None, without.into());
        world.come_to_rest();
        assert!(world.state().containers[&name].desired.secrets.is_empty());
    }
}

#[test]
fn a_changed_secret_does_not_revive_a_container_whose_build_failed() {
    let mut world = World::new();
    let name = ContainerName::new("web").expect("a name");
    let create = CreateContainer {
        name: name.clone(),
        source: ContainerSource::Template {
            name: "minimal".to_owned(),
        },
        start: true,
        options: serde_json::from_value(serde_json::json!({ "secrets": { "a": { "secret": "db" } } }))
            .expect("options"),
    };
    world.send(admin(), None, create.into());
    world.come_to_rest();
    assert_eq!(world.phase(&name), Some(ContainerPhase::Failed));
    world.send(admin(), None, set(1, ""));
    world.come_to_rest();
    assert_eq!(world.phase(&name), Some(ContainerPhase::Failed));
}

#[test]
fn changes_of_one_secret_are_made_in_order_and_each_is_answered_with_its_own_outcome() {
    let mut world = World::new();
    world.come_to_rest();
    for number in 1..4u32 {
        world.send(admin(), id(&format!("c{number}")), set(number, ""));
    }
    // Sent again while it waits: both get the same reply.
    world.send(admin(), id("c2"), set(2, ""));
    world.send(admin(), id("c2"), set(9, ""));
    let problem = world
        .commit_and_reply()
        .expect("answered at once")
        .expect_err("another body");
    assert_eq!(problem.code, ProblemCode::CommandIdReused);
    for number in 1..4u32 {
        world.commit(usize::MAX);
        assert_eq!(world.changes_of_secrets(), 1);
        world.finish_work(0, Fate::Done, &built());
        world.commit(usize::MAX);
        let replies = world.replies(&CommandId::new(format!("c{number}")).expect("an id"));
        let replies: Vec<_> = replies.iter().filter(|reply| reply.is_ok()).map(record).collect();
        assert_eq!(replies.len(), if number == 2 { 2 } else { 1 });
        assert!(replies.iter().all(|reply| reply.generation == u64::from(number)));
    }
    world.come_to_rest();
}

#[test]
fn a_change_that_the_helper_made_before_leafd_was_killed_is_recorded_at_the_next_start() {
    let (mut world, name) = with_user("restart");
    world.send(admin(), id("c1"), set(1, ""));
    world.commit(usize::MAX);
    world.crash(Fate::Done, false);
    world.commit(usize::MAX);
    world.deliver_observation();
    world.commit(usize::MAX);
    let known = &world.state().secrets[&secret()];
    assert_eq!((known.generation, known.set_by.as_str()), (1, "leafd"));
    assert_eq!(world.state().containers[&name].desired.secrets.len(), 1);
    let before = desired_facts(&world);
    // Its sender sends it again, and nothing changes.
    world.send(admin(), id("c1"), set(1, ""));
    world.come_to_rest();
    assert_eq!(record(world.last_reply().expect("a reply")).generation, 1);
    assert_eq!(desired_facts(&world), before);
}

#[test]
fn a_change_that_was_begun_when_leafd_was_killed_is_made_once_however_often_and_whenever_it_is_sent_again() {
    let facts = |world: &World| {
        let kinds = world.kinds();
        kinds.iter().filter(|kind| kind.contains("secret.set")).count()
    };
    for fate in [Fate::Done, Fate::Fails(0)] {
        for before_the_observation in [true, false] {
            let mut world = World::new();
            world.come_to_rest();
            world.send(admin(), id("c1"), set(1, ""));
            world.commit(usize::MAX);
            world.crash(fate, false);
            world.commit(usize::MAX);
            if before_the_observation {
                for _ in 0..2 {
                    world.send(admin(), id("c1"), set(1, ""));
                }
                world.commit(usize::MAX);
                assert_eq!(world.changes_of_secrets(), 0, "the host was not observed yet");
            }
            world.deliver_observation();
            world.commit(usize::MAX);
            world.come_to_rest();
            for _ in 0..2 {
                world.send(admin(), id("c1"), set(1, ""));
                world.come_to_rest();
                assert_eq!(record(world.last_reply().expect("a reply")).generation, 1);
            }
            assert_eq!(facts(&world), 1, "{fate:?}, {before_the_observation}");
        }
    }
}

#[test]
fn a_change_of_the_last_instance_does_not_undo_a_later_one() {
    let mut world = World::new();
    world.come_to_rest();
    world.send(admin(), id("c1"), set(1, ""));
    world.commit(usize::MAX);
    world.crash(Fate::Done, false);
    world.commit(usize::MAX);
    // It waits until it is known what the host has.
    world.send(admin(), id("c2"), set(2, ""));
    world.commit(usize::MAX);
    assert_eq!(world.changes_of_secrets(), 0);
    world.send(admin(), id("c1"), set(1, ""));
    world.deliver_observation();
    world.come_to_rest();
    world.send(admin(), id("c1"), set(1, ""));
    world.come_to_rest();
    assert_eq!(record(world.last_reply().expect("a reply")).generation, 1);
    assert_eq!(world.state().secrets[&secret()].digest, digest(&age(2, "")));
}

#[test]
fn a_change_whose_helper_went_away_is_answered_with_a_failure_and_found_on_the_host() {
    for fate in [Fate::HelperGone(0), Fate::Fails(0)] {
        let mut world = World::new();
        world.come_to_rest();
        world.send(admin(), id("c1"), set(1, ""));
        world.commit(usize::MAX);
        world.finish_work(0, fate, &built());
        let reply = world.commit_and_reply().expect("a reply");
        assert_eq!(reply.expect_err("it failed").code, ProblemCode::Failed);
        world.come_to_rest();
        let is_known = world.state().secrets.contains_key(&secret());
        assert_eq!(is_known, fate == Fate::HelperGone(0));
    }
}

#[test]
fn what_can_be_no_secret_never_reaches_the_helper() {
    let mut world = World::new();
    world.come_to_rest();
    let mut refused = |age: &str| {
        let age = Secret::new(age);
        world.send(admin(), None, SetSecret { name: secret(), age }.into());
        let reply = world.commit_and_reply().expect("answered at once");
        assert_eq!(world.changes_of_secrets(), 0);
        reply.expect_err("refused")
    };
    assert_eq!(refused("hunter2").code, ProblemCode::Invalid);
    assert!(!refused("hunter2").detail.contains("hunter2"));
    let armor = "-----BEGIN AGE ENCRYPTED FILE-----\n";
    assert_eq!(refused(&format!("{armor}ä")).code, ProblemCode::Invalid);
    let large = armor.to_owned() + &"A".repeat(leaf_core::secret::MAX_FILE_BYTES);
    assert_eq!(refused(&large).code, ProblemCode::TooLarge);
}

#[test]
fn debug_shows_no_age_file() {
    let set = SetSecret {
        name: secret(),
        age: age(1, "hidden"),
    };
    let change = SecretChange::Set {
        name: secret(),
        age: age(1, "hidden"),
    };
    let texts = [
        format!("{set:?}"),
        format!("{:?}", Command::from(set)),
        format!("{change:?}"),
        format!("{:?}", change.into_op()),
    ];
    assert!(texts.iter().all(|text| !text.contains("hidden")), "{texts:?}");
}

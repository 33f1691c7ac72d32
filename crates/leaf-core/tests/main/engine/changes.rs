//! Changes that can cut the leaf off: armed and confirmed by commands, and found on the host.

use std::collections::BTreeMap;
use std::time::Duration;

use leaf_core::change::{Armed, Decided, Decision, Outcome, SystemMode};
use leaf_core::command::{
    BootSystem, Command, ConfirmLeafChange, LeafReport, MoveLeaf, OpenChange, ShowLeaf, SwitchSystem,
};
use leaf_core::command::{ConfirmedChange, HubInPlace};
use leaf_core::decide::{ChangeStep, ObservedChanges};
use leaf_core::host_op::Secret;
use leaf_core::id::{ChangeId, CommandId, StorePath};
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::signed::{CommandRules, Provenance};
use leaf_core::state::ChangeStage;
use uuid::Uuid;

use super::admin;
use super::steps::Fate;
use super::world::{Work, World};

const ARMED: &str = "cim.leaf.leaf.change_armed.v1";
const CONFIRMED: &str = "cim.leaf.leaf.change_confirmed.v1";
const BACK: &str = "cim.leaf.leaf.change_went_back.v1";
const ENDED: &str = "cim.leaf.leaf.hub_in_place_ended.v1";

fn world() -> World {
    let callers = BTreeMap::from([(admin(), vec!["cuts-off".to_owned()])]);
    World::with_rules(CommandRules::new(None, &callers).expect("rules"))
}

fn signed() -> Provenance {
    Provenance::Signed {
        signer: "SHA256:key".to_owned(),
    }
}

fn moves(url: &str) -> MoveLeaf {
    MoveLeaf {
        url: url.to_owned(),
        ca: None,
        credentials: Some(Secret::new("hush")),
        seconds: None,
        no_witness: false,
    }
}

fn send(world: &mut World, command: impl Into<Command>) {
    world.send_as(admin(), None, command.into(), signed());
    world.commit(usize::MAX);
}

fn reply(world: &World) -> Result<Vec<u8>, Problem> {
    world.last_reply().cloned().expect("answered")
}

/// The helper ends the step that is under way.
fn finish(world: &mut World, fate: Fate) {
    let is_step = |work: &Work| matches!(work, Work::Change { .. });
    let nth = world.work.iter().position(is_step).expect("a step");
    world.finish_work(nth, fate, &Err(String::new()));
}

/// Arms a change, and returns it as its reply has it.
fn armed(world: &mut World) -> OpenChange {
    send(world, moves("tls://b:7422"));
    assert!(
        world.last_reply().is_none(),
        "it is answered when the helper has armed it"
    );
    finish(world, Fate::Done);
    world.commit(usize::MAX);
    serde_json::from_slice(&reply(world).expect("armed")).expect("its reply")
}

fn report(world: &mut World) -> LeafReport {
    send(world, ShowLeaf {});
    serde_json::from_slice(&reply(world).expect("a report")).expect("its reply")
}

fn of_changes(world: &World) -> Vec<String> {
    let mut kinds = world.kinds();
    kinds.retain(|kind| [ARMED, CONFIRMED, BACK, ENDED].contains(&kind.as_str()));
    kinds
}

/// The record of a change, as the helper writes it.
fn record(id: ChangeId) -> Armed {
    serde_json::from_value(serde_json::json!({
        "version": 1, "id": id, "leaf": "edge-1", "kind": "hub", "caller": "admin",
    }))
    .expect("a record")
}

fn decided(id: ChangeId, decision: Decision) -> Decided {
    Decided {
        armed: record(id),
        outcome: Some(Outcome {
            decision,
            by: Some("SHA256:witness".to_owned()),
            why: Some("nobody confirmed it in time".to_owned()),
            at: None,
        }),
    }
}

fn id(number: u128) -> ChangeId {
    ChangeId(Uuid::from_u128(number))
}

#[test]
fn a_move_is_recorded_and_answered_once_it_is_armed() {
    let mut world = world();
    send(&mut world, moves("tls://b:7422"));
    let [ChangeStep::Move(order)] = &world.change_steps()[..] else {
        panic!("one step");
    };
    assert_eq!((order.seconds, order.caller.clone()), (120, admin()));
    assert!(of_changes(&world).is_empty());
    finish(&mut world, Fate::Done);
    world.commit(usize::MAX);
    let open: OpenChange = serde_json::from_slice(&reply(&world).expect("armed")).expect("its reply");
    assert_eq!((open.id, open.seconds_left), (order.id, 120));
    assert_eq!(of_changes(&world), [ARMED]);
    // Neither the event nor the record of the command has the credentials.
    let events = world
        .events()
        .iter()
        .map(|event| String::from_utf8_lossy(&event.body).into_owned());
    assert!(events.into_iter().all(|body| !body.contains("hush")));
}

fn switches(toplevel: &str) -> SwitchSystem {
    SwitchSystem {
        toplevel: StorePath::new(toplevel).expect("a store path"),
        seconds: None,
        no_witness: false,
        allow_failed: Vec::new(),
        uncounted: false,
    }
}

const SYSTEM: &str = "/nix/store/00000000000000000000000000000001-nixos-system";

/// A leaf whose administrator may switch its system.
fn world_of_systems() -> World {
    let callers = BTreeMap::from([(admin(), vec!["cuts-off".to_owned(), "runs-code".to_owned()])]);
    World::with_rules(CommandRules::new(None, &callers).expect("rules"))
}

#[test]
fn a_switch_of_the_system_is_recorded_once_it_is_armed_and_then_as_it_is_decided() {
    let mut world = world_of_systems();
    send(&mut world, switches(SYSTEM));
    let [ChangeStep::Switch(order)] = &world.change_steps()[..] else {
        panic!("one step");
    };
    assert_eq!((order.seconds, order.system.mode), (300, SystemMode::Switch));
    finish(&mut world, Fate::Done);
    world.commit(usize::MAX);
    let open: OpenChange = serde_json::from_slice(&reply(&world).expect("armed")).expect("its reply");
    assert_eq!((open.kind.as_str(), open.seconds_left), ("system", 300));
    assert_eq!(open.toplevel.map(String::from).as_deref(), Some(SYSTEM));
    assert_eq!(of_changes(&world), [ARMED]);

    let mut back = decided(open.id, Decision::Back);
    back.armed.kind = "system".to_owned();
    for _ in 0..2 {
        world.observe_changes(ObservedChanges {
            decided: vec![back.clone()],
            ..ObservedChanges::default()
        });
        world.commit(usize::MAX);
    }
    assert_eq!(of_changes(&world), [ARMED, BACK]);
}

#[test]
fn a_switch_that_is_sent_again_after_a_crash_is_the_same_change() {
    let mut world = world_of_systems();
    let command_id: CommandId = Uuid::from_u128(7).into();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let command = switches(SYSTEM).into();
        world.send_as(admin(), Some(command_id.clone()), command, signed());
        world.commit(usize::MAX);
        ids.extend(world.change_steps().into_iter().map(|step| match step {
            ChangeStep::Switch(order) => order.id,
            other => panic!("{other:?}"),
        }));
        world.crash(Fate::Late, false);
        world.commit(usize::MAX);
    }
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
}

#[test]
fn a_switch_of_the_system_needs_a_signature_a_named_caller_and_a_form_that_can_be_carried_out() {
    // Named for other changes only.
    let mut world = world();
    send(&mut world, switches(SYSTEM));
    assert_eq!(reply(&world).expect_err("refused").code, ProblemCode::Forbidden);
    let mut world = world_of_systems();
    world.send_as(admin(), None, switches(SYSTEM).into(), Provenance::Unsigned);
    world.commit(usize::MAX);
    assert_eq!(
        reply(&world).expect_err("refused").code,
        ProblemCode::SignatureRequired
    );
    let toplevel = StorePath::new(SYSTEM).expect("a store path");
    let too_short = SwitchSystem {
        seconds: Some(29),
        ..switches(SYSTEM)
    };
    let no_unit = SwitchSystem {
        allow_failed: vec!["--all".to_owned()],
        ..switches(SYSTEM)
    };
    let unguarded = BootSystem {
        toplevel,
        uncounted: false,
    };
    let commands: [Command; 3] = [too_short.into(), no_unit.into(), unguarded.into()];
    for command in commands {
        send(&mut world, command);
        assert_eq!(reply(&world).expect_err("refused").code, ProblemCode::Invalid);
    }
    assert!(world.change_steps().is_empty());
}

#[test]
fn a_move_that_is_not_armed_leaves_nothing_behind() {
    let mut world = world();
    send(&mut world, moves("tls://b:7422"));
    finish(&mut world, Fate::Late);
    world.commit(usize::MAX);
    let problem = reply(&world).expect_err("refused");
    assert_eq!(problem.code, ProblemCode::Conflict);
    assert!(of_changes(&world).is_empty());
    for (seconds, url) in [
        (Some(29), "tls://b"),
        (Some(3601), "tls://b"),
        (None, ""),
        (None, "tls://b\u{1b}"),
    ] {
        send(
            &mut world,
            MoveLeaf {
                seconds,
                ..moves(url)
            },
        );
        assert_eq!(
            reply(&world).expect_err("refused").code,
            ProblemCode::Invalid,
            "{seconds:?} {url:?}"
        );
        assert!(world.change_steps().is_empty());
    }
}

#[test]
fn what_can_cut_the_leaf_off_needs_a_signature_and_a_caller_who_is_named_for_it() {
    let mut named = world();
    for command in [
        Command::from(moves("tls://b")),
        ConfirmLeafChange { id: id(1) }.into(),
    ] {
        named.send(admin(), None, command.clone());
        named.commit(usize::MAX);
        let code = reply(&named).expect_err("refused").code;
        assert_eq!(code, ProblemCode::SignatureRequired);
        let mut unnamed = World::new();
        unnamed.send_as(admin(), None, command, signed());
        unnamed.commit(usize::MAX);
        assert_eq!(reply(&unnamed).expect_err("refused").code, ProblemCode::Forbidden);
    }
}

#[test]
fn a_person_confirms_a_change_once() {
    let mut world = world();
    let open = armed(&mut world);
    let confirm = ConfirmLeafChange { id: open.id };
    for _ in 0..2 {
        send(&mut world, confirm.clone());
        finish(&mut world, Fate::Done);
        world.commit(usize::MAX);
        let confirmed: ConfirmedChange =
            serde_json::from_slice(&reply(&world).expect("confirmed")).expect("its reply");
        assert_eq!(confirmed.id, open.id);
    }
    assert_eq!(of_changes(&world), [ARMED, CONFIRMED]);
    // What the host has says the same.
    world.observe_changes(ObservedChanges {
        decided: vec![decided(open.id, Decision::Confirmed)],
        ..ObservedChanges::default()
    });
    assert_eq!(of_changes(&world), [ARMED, CONFIRMED]);
}

#[test]
fn what_was_decided_without_leafd_is_recorded_once_also_over_a_crash() {
    let mut world = world();
    let open = armed(&mut world);
    let seen = ObservedChanges {
        decided: vec![
            decided(open.id, Decision::Back),
            decided(id(7), Decision::Confirmed),
        ],
        ..ObservedChanges::default()
    };
    world.crash(Fate::Done, true);
    world.commit(usize::MAX);
    for _ in 0..2 {
        world.observe_changes(seen.clone());
        let mut kinds = of_changes(&world);
        kinds.sort();
        // That of which no event told is told of from its beginning.
        assert_eq!(kinds, [ARMED, ARMED, CONFIRMED, BACK]);
        world.crash(Fate::Done, false);
        world.commit(usize::MAX);
    }
    let changes = &world.state().leaf.as_ref().expect("a leaf").changes;
    let stage = |id| changes.get(&id).map(|told| told.stage);
    assert_eq!(stage(open.id), Some(ChangeStage::WentBack));
    assert_eq!(stage(id(7)), Some(ChangeStage::Confirmed));
    for number in 100..200 {
        world.observe_changes(ObservedChanges {
            decided: vec![decided(id(number), Decision::Back)],
            ..ObservedChanges::default()
        });
    }
    assert!(world.state().leaf.as_ref().expect("a leaf").changes.len() <= 32);
}

#[test]
fn the_report_has_the_open_change_with_its_time_and_the_hub_in_place() {
    let mut world = world();
    assert_eq!(report(&mut world).change, None);
    let hub = HubInPlace {
        change: id(7),
        url: "tls://b:7422".to_owned(),
    };
    world.observe_changes(ObservedChanges {
        open: Some(record(id(7))),
        left: Duration::from_secs(90),
        hub: Some(hub.clone()),
        is_hub_used: true,
        ..ObservedChanges::default()
    });
    assert_eq!(of_changes(&world), [ARMED]);
    let shown = report(&mut world);
    let open = shown.change.expect("an open change");
    assert_eq!((open.id, open.url.as_deref()), (id(7), Some("tls://b:7422")));
    assert!((80..=90).contains(&open.seconds_left), "{}", open.seconds_left);
    assert_eq!(shown.hub_in_place, Some(hub));
    world.observe_changes(ObservedChanges::default());
    let shown = report(&mut world);
    assert_eq!((shown.change, shown.hub_in_place), (None, None));
}

#[test]
fn that_the_settings_have_another_hub_now_is_recorded_once() {
    let mut world = world();
    let seen = ObservedChanges {
        hub: Some(HubInPlace {
            change: id(7),
            url: "tls://b:7422".to_owned(),
        }),
        is_hub_used: false,
        ..ObservedChanges::default()
    };
    for _ in 0..2 {
        world.observe_changes(seen.clone());
        assert_eq!(of_changes(&world), [ENDED]);
        assert_eq!(report(&mut world).hub_in_place, None);
        world.crash(Fate::Done, false);
        world.commit(usize::MAX);
    }
}

#[test]
fn a_move_that_is_sent_again_while_it_is_armed_is_armed_once() {
    let mut world = world();
    let command_id = CommandId::new("move").expect("an id");
    for _ in 0..2 {
        world.send_as(
            admin(),
            Some(command_id.clone()),
            moves("tls://b").into(),
            signed(),
        );
        world.commit(usize::MAX);
    }
    assert_eq!(world.change_steps().len(), 1);
    finish(&mut world, Fate::Done);
    world.commit(usize::MAX);
    let replies = world.replies(&command_id);
    assert_eq!(replies.len(), 2);
    assert_eq!(replies[0], replies[1]);
}

#[test]
fn a_move_that_is_sent_again_after_a_crash_asks_for_the_same_change() {
    let mut world = world();
    let command_id = CommandId::new("move").expect("an id");
    let mut ids = Vec::new();
    for _ in 0..2 {
        world.send_as(
            admin(),
            Some(command_id.clone()),
            moves("tls://b").into(),
            signed(),
        );
        world.commit(usize::MAX);
        ids.extend(world.change_steps().into_iter().filter_map(|step| match step {
            ChangeStep::Move(order) => Some(order.id),
            ChangeStep::Switch(_) | ChangeStep::Confirm { .. } => None,
        }));
        world.crash(Fate::Late, false);
        world.commit(usize::MAX);
    }
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
}

#[test]
fn a_leaf_that_stops_waits_for_the_answer_of_a_move() {
    let mut world = world();
    send(&mut world, moves("tls://b"));
    world.stop();
    assert_eq!(of_changes(&world), [ARMED]);
}

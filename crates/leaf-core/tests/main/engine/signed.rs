//! Signed commands: a query is answered once, also on a disk that is almost full, and refused signatures are recorded.

use std::collections::BTreeMap;

use leaf_core::command::{Command, LabelLeaf, ShowLeaf};
use leaf_core::id::CommandId;
use leaf_core::labels::Labels;
use leaf_core::problem::ProblemCode;
use leaf_core::signed::{CommandRules, Provenance, RefusedSignature};

use super::admin;
use super::steps::Fate;
use super::world::World;

const REFUSED: &str = "cim.leaf.leaf.signature_refused.v1";

fn signed() -> Provenance {
    Provenance::Signed {
        signer: "SHA256:key".to_owned(),
    }
}

fn refused() -> Provenance {
    Provenance::Refused(RefusedSignature {
        signer: Some("SHA256:key".to_owned()),
        reason: format!("altered {}", "x".repeat(2000)),
        is_named: true,
    })
}

/// Rules by which each query must be signed.
fn all_reads_signed() -> CommandRules {
    let listed = ["runs-code", "cuts-off", "reads"].map(str::to_owned);
    CommandRules::new(Some(&listed), &BTreeMap::new()).expect("rules")
}

fn id(id: &str) -> Option<CommandId> {
    Some(CommandId::new(id).expect("an id"))
}

/// Sends a command, and returns the code of the problem with which it is answered.
fn code(
    world: &mut World,
    id: Option<CommandId>,
    command: Command,
    provenance: Provenance,
) -> Option<ProblemCode> {
    world.send_as(admin(), id, command, provenance);
    world.commit(usize::MAX);
    let reply = world.last_reply().cloned().expect("answered at once");
    reply.err().map(|problem| problem.code)
}

fn show() -> Command {
    ShowLeaf {}.into()
}

fn label() -> Command {
    let set: Labels = [("rack".to_owned(), "7".to_owned())].into();
    let remove = std::collections::BTreeSet::new();
    LabelLeaf { set, remove }.into()
}

#[test]
fn a_signed_query_is_answered_once_also_over_a_crash() {
    let mut world = World::new();
    let again = Some(ProblemCode::SignatureInvalid);
    assert_eq!(code(&mut world, id("q"), show(), signed()), None);
    assert_eq!(code(&mut world, id("q"), show(), signed()), again);
    world.crash(Fate::Done, false);
    world.commit(usize::MAX);
    assert_eq!(code(&mut world, id("q"), show(), signed()), again);
    // Without a signature its id means nothing, and for a change it was used.
    assert_eq!(code(&mut world, id("q"), show(), Provenance::Unsigned), None);
    let reused = Some(ProblemCode::CommandIdReused);
    assert_eq!(code(&mut world, id("q"), label(), signed()), reused);
    // A query whose answer a crash lost was not recorded either, so it can be asked again.
    world.send_as(admin(), id("lost"), show(), signed());
    world.crash(Fate::Done, false);
    world.commit(usize::MAX);
    assert_eq!(code(&mut world, id("lost"), show(), signed()), None);
}

#[test]
fn a_signed_change_is_a_change_and_a_refused_signature_changes_nothing() {
    let mut world = World::new();
    let invalid = Some(ProblemCode::SignatureInvalid);
    assert_eq!(code(&mut world, id("c"), label(), refused()), invalid);
    assert!(
        world
            .state()
            .leaf
            .as_ref()
            .is_some_and(|leaf| leaf.labels.is_empty())
    );
    assert_eq!(code(&mut world, id("c"), label(), signed()), None);
    assert_eq!(code(&mut world, id("c"), label(), signed()), None);
    assert_eq!(code(&mut world, id("c"), label(), refused()), invalid);
    assert!(
        world
            .state()
            .leaf
            .as_ref()
            .is_some_and(|leaf| leaf.labels.len() == 1)
    );
}

#[test]
fn refused_signatures_are_recorded_once_in_a_while_and_not_on_a_full_disk() {
    let mut world = World::new();
    let recorded = |world: &World| world.kinds().iter().filter(|kind| *kind == REFUSED).count();
    for _ in 0..5 {
        code(&mut world, None, show(), refused());
    }
    assert_eq!(recorded(&world), 1);
    let event = world
        .events()
        .iter()
        .find(|event| event.subject.ends_with(".signature_refused"));
    let event = event.expect("recorded");
    assert!(event.body.len() < 1000, "a long reason is shortened");
    let mut full = World::new();
    full.disk_is_low = true;
    assert_eq!(
        code(&mut full, None, show(), refused()),
        Some(ProblemCode::SignatureInvalid)
    );
    assert_eq!(recorded(&full), 0);
}

#[test]
fn a_signed_query_is_answered_while_the_leaf_stops_or_uses_its_reserve_and_once_all_the_same() {
    for is_stopping in [true, false] {
        let mut world = World::with_rules(all_reads_signed());
        if is_stopping {
            world.begin_to_stop();
        } else {
            world.disk_is_low = true;
        }
        let again = Some(ProblemCode::SignatureInvalid);
        assert_eq!(code(&mut world, id("q"), show(), signed()), None);
        assert_eq!(code(&mut world, id("q"), show(), signed()), again);
        world.crash(Fate::Done, false);
        world.commit(usize::MAX);
        assert_eq!(code(&mut world, id("q"), show(), signed()), again);
    }
}

#[test]
fn a_signed_query_whose_id_cannot_be_kept_is_answered_only_where_it_need_not_be_signed() {
    for (rules, refused) in [
        (CommandRules::default(), None),
        (all_reads_signed(), Some(ProblemCode::DiskFull)),
    ] {
        let mut world = World::with_rules(rules);
        assert_eq!(code(&mut world, id("before"), show(), signed()), None);
        world.disk_is_full = true;
        for _ in 0..2 {
            assert_eq!(code(&mut world, id("q"), show(), signed()), refused);
        }
        // What was kept before still says that it was used.
        let again = Some(ProblemCode::SignatureInvalid);
        assert_eq!(code(&mut world, id("before"), show(), signed()), again);
        world.disk_is_full = false;
        assert_eq!(code(&mut world, id("q"), show(), signed()), None);
        assert_eq!(code(&mut world, id("q"), show(), signed()), again);
    }
}

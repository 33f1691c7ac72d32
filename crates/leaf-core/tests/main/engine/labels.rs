//! Labels of the leaf: set and removed by commands, kept over restarts, beside those of the settings.

use leaf_core::command::{LabelLeaf, LeafLabels, LeafReport, ShowLeaf};
use leaf_core::labels::Labels;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::state::State;

use super::admin;
use super::steps::Fate;
use super::world::World;

fn labels(all: &[(&str, &str)]) -> Labels {
    all.iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// Sends the command, and returns its reply.
fn label(world: &mut World, set: &[(&str, &str)], remove: &[&str]) -> Result<LeafLabels, Problem> {
    let command = LabelLeaf {
        set: labels(set),
        remove: remove.iter().map(|key| (*key).to_owned()).collect(),
    };
    world.send(admin(), None, command.into());
    world.commit(usize::MAX);
    let reply = world.last_reply().cloned().expect("answered at once")?;
    Ok(serde_json::from_slice(&reply).expect("its reply"))
}

fn report(world: &mut World) -> LeafReport {
    world.send(admin(), None, ShowLeaf {}.into());
    world.commit(usize::MAX);
    let reply = world.last_reply().cloned().expect("answered at once");
    serde_json::from_slice(&reply.expect("a report")).expect("its reply")
}

#[test]
fn labels_are_set_and_removed_and_add_up_with_those_of_the_settings() {
    let mut world = World::new();
    let reply = label(&mut world, &[("rack", "7"), ("gpu", "yes")], &[]).expect("set");
    let all = labels(&[("gpu", "yes"), ("rack", "7"), ("site", "hall-2")]);
    assert_eq!(reply.labels, all);
    assert_eq!(reply.of_settings, ["site".to_owned()].into());
    assert_eq!(report(&mut world).labels, all);
    let events = world.kinds().len();
    label(&mut world, &[("rack", "7")], &["none"]).expect("it has it already");
    assert_eq!(
        world.kinds().len(),
        events,
        "nothing changes, nothing is recorded"
    );
    let reply = label(&mut world, &[("rack", "8")], &["gpu"]).expect("changed");
    assert_eq!(reply.labels, labels(&[("rack", "8"), ("site", "hall-2")]));
    assert_eq!(
        world.kinds().last().map(String::as_str),
        Some("cim.leaf.leaf.labelled.v1")
    );
}

#[test]
fn labels_outlast_restarts_and_snapshots() {
    let mut world = World::new();
    label(&mut world, &[("rack", "7")], &[]).expect("set");
    for boot in [false, true] {
        world.crash(Fate::Done, boot);
        world.commit(usize::MAX);
        let all = labels(&[("rack", "7"), ("site", "hall-2")]);
        assert_eq!(report(&mut world).labels, all, "boot: {boot}");
    }
    let mut replayed = State::default();
    let snapshot = world.state().snapshot(&crate::strategies::leaf(), 7, 1 << 20);
    let facts = snapshot.into_iter().map(Into::into).collect();
    for event in crate::strategies::events(1, facts) {
        leaf_core::state::apply(&mut replayed, &event);
    }
    let leaf = replayed.leaf.expect("the leaf");
    assert_eq!(leaf.labels, labels(&[("rack", "7")]));
}

#[test]
fn a_label_of_the_settings_and_one_that_breaks_the_rules_is_refused() {
    let mut world = World::new();
    world.commit(usize::MAX);
    let events = world.kinds().len();
    let no: &[(&str, &str)] = &[];
    for (set, remove, code, says) in [
        (
            &[("site", "x")][..],
            &[][..],
            ProblemCode::Conflict,
            "stand in the leaf's settings",
        ),
        (no, &["site"], ProblemCode::Conflict, "leafd.toml"),
        (no, &[], ProblemCode::Invalid, "nothing"),
        (&[("Rack", "7")], &[], ProblemCode::Invalid, "key of a label"),
        (
            &[("rack", "\u{1b}[2J")],
            &[],
            ProblemCode::Invalid,
            "do not print",
        ),
        (&[("rack", "7")], &["rack"], ProblemCode::Invalid, "both"),
        (no, &["a b"], ProblemCode::Invalid, "key of a label"),
    ] {
        let problem = label(&mut world, set, remove).expect_err(says);
        assert_eq!(problem.code, code, "{problem}");
        assert!(problem.detail.contains(says), "{problem}");
        assert!(!problem.detail.contains('\u{1b}'), "{problem}");
    }
    let many: Vec<String> = (0..32).map(|n| format!("k{n:02}")).collect();
    let set: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "x")).collect();
    let problem = label(&mut world, &set, &[]).expect_err("33 with that of the settings");
    assert!(problem.detail.contains("33 labels"), "{problem}");
    assert_eq!(world.kinds().len(), events, "nothing is recorded");
    label(&mut world, &set[1..], &[]).expect("32 are allowed");
}

//! A history, whatever it is, gives one state: event by event, from a snapshot on, from the journal's entries.

use std::collections::BTreeMap;

use leaf_core::command::{Command, CommandKind};
use leaf_core::decide::{Question, Reply, SecretChange, Target, decide};
use leaf_core::diff::diff;
use leaf_core::event::{Event, EventRecord, Fact, LeafSnapshotted, header};
use leaf_core::state::{State, apply};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;

use crate::strategies::{apply_to_store, command, context, events, fact, inventory, leaf};

pub(crate) fn replay<'a>(events: impl IntoIterator<Item = &'a Event>) -> State {
    let mut state = State::default();
    for event in events {
        apply(&mut state, event);
    }
    state
}

/// All of a state but the parts of a snapshot that is not whole yet.
pub(crate) fn shown(state: &State) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        (state.sequence, state.snapshot_sequence, state.leaf.clone()),
        (
            state.devices.clone(),
            state.containers.clone(),
            state.jobs.clone(),
        ),
    )
}

fn stored(event: &Event) -> Event {
    let record = event.to_record(&leaf(), 7);
    let bytes = serde_json::to_vec(&record).expect("JSON");
    let read: EventRecord = serde_json::from_slice(&bytes).expect("a record");
    assert_eq!(read, record);
    assert_eq!(read.epoch(), Some(7));
    assert_eq!(read.attribute(header::TYPE).as_deref(), Some(event.fact.kind()));
    Event::from_record(&read).expect("an event")
}

pub(crate) fn snapshot_events(state: &State, part_bytes: usize) -> Vec<Event> {
    let parts = state.snapshot(&leaf(), 7, part_bytes);
    events(state.sequence + 1, parts.into_iter().map(Fact::from).collect())
}

proptest! {
    #[test]
    fn an_event_survives_the_round_trip_through_its_record(fact in fact()) {
        for event in events(41, vec![fact]) {
            prop_assert_eq!(stored(&event), event);
        }
    }

    #[test]
    fn a_replay_of_stored_events_gives_the_same_state(facts in vec(fact(), 0..60)) {
        let events = events(1, facts);
        let stored: Vec<Event> = events.iter().map(stored).collect();
        prop_assert_eq!(replay(&stored), replay(&events));
    }

    #[test]
    fn a_state_is_restored_from_its_entries(facts in vec(fact(), 0..60)) {
        let state = replay(&events(1, facts));
        let again = State::from_entries(state.sequence, state.entries());
        prop_assert_eq!(shown(&again), shown(&state));
    }

    #[test]
    fn a_store_that_writes_only_the_changed_keys_holds_all_entries(facts in vec(fact(), 0..60)) {
        let mut state = State::default();
        let mut store: BTreeMap<String, Value> = BTreeMap::new();
        for event in events(1, facts) {
            apply_to_store(&mut store, &mut state, &event);
            prop_assert_eq!(&store, &state.entries(), "after {:?}", event);
        }
    }

    #[test]
    fn a_replay_from_a_snapshot_equals_one_of_the_whole_history(
        before in vec(fact(), 0..40), after in vec(fact(), 0..20), part_bytes in 1usize..4000,
    ) {
        let mut whole = replay(&events(1, before));
        let snapshot = snapshot_events(&whole, part_bytes);
        let mut from_snapshot = replay(&snapshot);
        for event in &snapshot {
            apply(&mut whole, event);
        }
        prop_assert_eq!(&from_snapshot, &whole);
        for event in events(whole.sequence + 1, after) {
            apply(&mut whole, &event);
            apply(&mut from_snapshot, &event);
        }
        prop_assert_eq!(from_snapshot, whole);
    }

    #[test]
    fn a_snapshot_says_how_many_parts_it_has_and_each_has_an_entry(
        facts in vec(fact(), 0..40), part_bytes in 1usize..4000,
    ) {
        let state = replay(&events(1, facts));
        let parts: Vec<LeafSnapshotted> = state.snapshot(&leaf(), 7, part_bytes);
        let numbers: Vec<u32> = parts.iter().map(|p| p.part).collect();
        let count = u32::try_from(parts.len()).expect("few");
        prop_assert_eq!(numbers, (1..=count).collect::<Vec<u32>>());
        prop_assert!(parts.iter().all(|p| p.parts == count));
        prop_assert!(parts.len() == 1 || parts.iter().all(|p| !p.entries.is_empty()));
    }

    #[test]
    fn an_unknown_field_is_ignored(
        fact in fact().prop_filter("known", |fact| !matches!(fact, Fact::Unknown(_))),
    ) {
        for event in events(3, vec![fact]) {
            let mut record = event.to_record(&leaf(), 7);
            let mut body: Value = serde_json::from_slice(&record.body).expect("JSON");
            body["of_a_later_day"] = Value::from("new");
            record.body = serde_json::to_vec(&body).expect("JSON");
            prop_assert_eq!(Event::from_record(&record).expect("an event"), event);
        }
    }

    #[test]
    fn applying_a_diff_makes_the_next_one_empty(looks in vec(inventory(), 1..6)) {
        let mut state = State::default();
        for look in looks {
            let facts = diff(&state.devices, &look);
            for event in events(state.sequence + 1, facts) {
                apply(&mut state, &event);
            }
            prop_assert_eq!(diff(&state.devices, &look), Vec::new());
            for (id, device) in &look.devices {
                prop_assert_eq!(state.devices.get(id), Some(device));
            }
        }
    }

    #[test]
    fn decisions_are_deterministic_and_queries_record_nothing(
        facts in vec(fact(), 0..40), command in command(), fresh in 1u128..9,
    ) {
        let state = replay(&events(1, facts));
        let decision = decide(&state, &command, &context(fresh));
        prop_assert_eq!(&decision, &decide(&state, &command, &context(fresh)));
        match decision {
            Ok(decision) if command.kind() == CommandKind::Query => prop_assert!(decision.facts.is_empty()),
            Ok(decision) => prop_assert!(
                command.kind() != CommandKind::Job
                    || (matches!(decision.reply, Reply::Known(_)) && !decision.facts.is_empty()),
                "a job command gets its job's id"
            ),
            Err(problem) => prop_assert!((400..600).contains(&problem.status) && !problem.detail.is_empty()),
        }
    }

    #[test]
    fn the_state_holds_what_was_decided(
        facts in vec(fact(), 0..40), commands in vec(command(), 1..6),
    ) {
        let mut state = replay(&events(1, facts));
        for (fresh, command) in (100u128..).zip(&commands) {
            let Ok(decision) = decide(&state, command, &context(fresh)) else { continue };
            for event in events(state.sequence + 1, decision.facts) {
                apply(&mut state, &event);
            }
            match decision.reply {
                Reply::When(Target::Container(name))
                | Reply::Container(name)
                | Reply::ContainerReport(name)
                | Reply::FromHost(Question::ContainerStats(name)) => {
                    prop_assert!(state.containers.contains_key(&name));
                }
                Reply::When(Target::Job(id))
                | Reply::JobReport(id)
                | Reply::FromHost(Question::JobLog { job: id, .. } | Question::JobActivities { job: id, .. }) => {
                    prop_assert!(state.jobs.contains_key(&id));
                }
                Reply::FromHost(Question::ContainerLog(query)) => {
                    prop_assert!(state.containers.contains_key(&query.name));
                }
                Reply::FromHost(Question::Containers(listed)) => {
                    prop_assert_eq!(listed.len(), state.containers.len());
                }
                Reply::AfterSearch(name) => prop_assert!(!state.containers.contains_key(&name)),
                Reply::WhenMade(SecretChange::Remove { name }) => {
                    prop_assert!(state.secrets.contains_key(&name));
                }
                Reply::Known(_)
                | Reply::LeafReport
                | Reply::WhenChanged(_)
                | Reply::When(Target::Hardware)
                | Reply::WhenMade(SecretChange::Set { .. })
                | Reply::FromHost(
                    Question::Recipient
                    | Question::Challenge(_)
                    | Question::Generations
                    | Question::Lacking(..)
                    | Question::Stored { .. },
                ) => {}
            }
        }
    }

    #[test]
    fn no_body_makes_the_parser_panic(noun in "[a-z]{0,9}", verb in "[a-z]{0,7}", body in vec(any::<u8>(), 0..200)) {
        if let Err(problem) = Command::parse(&noun, &verb, &body) {
            prop_assert!(!problem.detail.is_empty());
        }
    }

    #[test]
    fn no_record_makes_the_reader_panic(
        kind in "(cim\\.leaf\\.(leaf|device|container|job)\\.[a-z]{1,8}\\.v1|.{0,9})",
        sequence in ".{0,22}", time in ".{0,22}", body in vec(any::<u8>(), 0..200),
    ) {
        use leaf_core::event::header;
        let record = EventRecord {
            sequence: 1,
            subject: "leaf.v1.evt.edge-1.leaf.edge-1.started".to_owned(),
            headers: [
                (header::TYPE, kind.clone()),
                (header::SEQUENCE, sequence),
                (header::TIME, time),
            ]
            .into_iter()
            .collect(),
            body,
        };
        if let Ok(event) = Event::from_record(&record) {
            prop_assert_eq!(event.fact.kind(), kind);
        }
    }
}

//! What a newer leafd wrote and this one can't read is kept as it is, passed on, and not acted on (decision 9).

use std::collections::BTreeMap;

use leaf_core::aggregate::Aggregate;
use leaf_core::command::{Command, CreateContainer, ListContainers, ShowContainer, ShowLeaf, StartContainer};
use leaf_core::container::Container;
use leaf_core::decide::{Reply, decide, needless_jobs};
use leaf_core::diff::{changes, diff};
use leaf_core::event::{Event, EventRecord, Fact};
use leaf_core::hardware::Inventory;
use leaf_core::id::ContainerName;
use leaf_core::problem::ProblemCode;
use leaf_core::spec::ContainerSource;
use leaf_core::state::{State, apply};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use crate::replay::{replay, shown, snapshot_events};
use crate::strategies::{apply_to_store, command, context, device, events, fact, leaf, unknown_fact};

/// Every text in a value: any may be the name of a variant that is new.
fn texts<'v>(value: &'v mut Value, found: &mut Vec<&'v mut Value>) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|inner| texts(inner, found)),
        Value::Array(items) => items.iter_mut().for_each(|inner| texts(inner, found)),
        Value::String(_) => found.push(value),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// One of the objects in a value, itself included, in depth-first order.
fn objects<'v>(value: &'v mut Value, at: &mut usize) -> Option<&'v mut serde_json::Map<String, Value>> {
    match value {
        Value::Object(fields) => {
            if *at == 0 {
                return Some(fields);
            }
            *at -= 1;
            fields.values_mut().find_map(|inner| objects(inner, at))
        }
        Value::Array(items) => items.iter_mut().find_map(|inner| objects(inner, at)),
        _ => None,
    }
}

/// Something that a newer version says in an entry, and this one doesn't know.
#[derive(Debug, Clone)]
enum Novelty {
    /// A text, such as the name of a variant, at one of the places where texts stand.
    Text(Index, Index),
    /// A field in one of the objects.
    Field(Index, usize, Value),
    /// An entry of a new kind.
    Kind(String, Value),
}

fn novelty() -> impl Strategy<Value = Novelty> {
    let value = prop_oneof![
        Just(json!("new")),
        Just(json!(7)),
        Just(json!(["a", { "b": 1 }])),
        Just(json!({ "inner": { "deep": true } })),
    ];
    prop_oneof![
        3 => (any::<Index>(), any::<Index>()).prop_map(|(entry, place)| Novelty::Text(entry, place)),
        3 => (any::<Index>(), 0usize..12, value.clone()).prop_map(|(entry, at, value)| Novelty::Field(entry, at, value)),
        1 => ("(tunnel|site|zone)\\.[a-z]{1,4}", value).prop_map(|(key, value)| Novelty::Kind(key, value)),
    ]
}

/// Returns the entries as a newer leafd would have written them.
fn of_a_later_day(state: &State, novelties: Vec<Novelty>) -> BTreeMap<String, Value> {
    let mut entries = state.entries();
    entries.remove("snapshot");
    for novelty in novelties {
        let at = |index: &Index, entries: &BTreeMap<String, Value>| {
            (!entries.is_empty()).then(|| {
                let keys: Vec<&String> = entries.keys().collect();
                (*index.get(&keys)).clone()
            })
        };
        match novelty {
            Novelty::Text(entry, place) => {
                let Some(key) = at(&entry, &entries) else { continue };
                let mut found = Vec::new();
                texts(entries.get_mut(&key).expect("it is one of them"), &mut found);
                // The entry of the leaf is written anew by each run of leafd.
                if !found.is_empty() && key != "leaf" && !key.starts_with("raw.") {
                    let place = place.index(found.len());
                    *found[place] = json!("of_a_later_day");
                }
            }
            Novelty::Field(entry, mut place, value) => {
                let Some(key) = at(&entry, &entries) else { continue };
                let entry = entries.get_mut(&key).expect("it is one of them");
                if let Some(fields) = objects(entry, &mut place) {
                    fields.insert("of_a_later_day".to_owned(), value);
                }
            }
            Novelty::Kind(key, value) => {
                entries.insert(key, value);
            }
        }
    }
    entries
}

/// Facts that are no snapshot: one of those replaces the whole state.
fn facts(up_to: usize) -> impl Strategy<Value = Vec<Fact>> {
    vec(fact(), 0..up_to).prop_map(|mut facts| {
        facts.retain(|fact| fact.kind() != "cim.leaf.leaf.snapshotted.v1");
        facts
    })
}

/// The entries that a store holds after these events, if it writes only what each changes.
fn written(
    mut store: BTreeMap<String, Value>,
    state: &mut State,
    events: &[Event],
) -> BTreeMap<String, Value> {
    for event in events {
        apply_to_store(&mut store, state, event);
    }
    store
}

proptest! {
    #[test]
    fn raw_entries_are_returned_unchanged(before in facts(40), new in vec(novelty(), 1..4)) {
        let entries = of_a_later_day(&replay(&events(1, before)), new);
        let state = State::from_entries(41, entries.clone());
        prop_assert_eq!(&state.entries(), &entries);
        for (key, value) in &entries {
            let json = state.entry_json(key).expect("it is there");
            prop_assert_eq!(&serde_json::from_slice::<Value>(&json).expect("JSON"), value);
        }
    }

    #[test]
    fn raw_entries_survive_a_snapshot(
        before in facts(40), new in vec(novelty(), 1..4), part_bytes in 1usize..4000,
    ) {
        let entries = of_a_later_day(&replay(&events(1, before)), new);
        let state = State::from_entries(41, entries.clone());
        let mut restored = replay(&snapshot_events(&state, part_bytes)).entries();
        restored.remove("snapshot");
        prop_assert_eq!(restored, entries);
    }

    #[test]
    fn raw_entries_survive_any_events(
        before in facts(40), new in vec(novelty(), 1..4), after in facts(40),
    ) {
        let entries = of_a_later_day(&replay(&events(1, before)), new);
        let mut state = State::from_entries(41, entries.clone());
        let mut raw: Vec<String> = state.raw_entries().into_iter().map(|raw| raw.key).collect();
        // Its entry is written anew by each run of leafd.
        raw.retain(|key| key != "leaf");
        let store = written(entries.clone(), &mut state, &events(42, after));
        prop_assert_eq!(&store, &state.entries(), "the store has all entries");
        for key in raw {
            prop_assert_eq!(store.get(&key), entries.get(&key), "{}", key);
        }
    }

    #[test]
    fn kept_events_that_become_readable_give_the_same_state(
        before in facts(30), after in facts(30),
    ) {
        let whole: Vec<Event> = events(1, before.iter().chain(&after).cloned().collect());
        let state = replay(&whole[..before.len()]);
        let mut entries = state.entries();
        // As a leafd kept them that could not read the first of them.
        for event in &whole[before.len()..] {
            let record = event.to_record(&leaf(), 7);
            let about = match (&event.fact, event.fact.about()) {
                (Fact::Unknown(fact), _) => fact.about(),
                (_, about) => about.expect("it is known").key(),
            };
            let mut raw = json!({
                "sequence": event.sequence, "time": event.time, "kind": event.fact.kind(), "about": about,
                "body": serde_json::from_slice::<Value>(&record.body).expect("JSON"),
            });
            for (field, value) in [("causation", json!(event.causation)), ("correlation", json!(event.correlation))] {
                if !value.is_null() {
                    raw[field] = value;
                }
            }
            entries.insert(format!("raw.{:020}", event.sequence), raw);
        }
        let mut read = State::from_entries(whole.len() as u64, entries.clone());
        let expected = replay(&whole);
        prop_assert_eq!(shown(&read), shown(&expected));
        prop_assert_eq!(read.raw_entries(), expected.raw_entries());
        // What changed by that goes into the store with the next event.
        let next = events(whole.len() as u64 + 1, vec![unknown_leaf_fact()]);
        let store = written(entries, &mut read, &next);
        prop_assert_eq!(store, read.entries());
    }

    #[test]
    fn an_event_of_a_newer_version_is_kept_with_all_later_ones_about_its_aggregate(
        before in facts(40), unknown in unknown_fact(), after in facts(20),
    ) {
        let mut state = replay(&events(1, before));
        let mut expected = state.clone();
        expected.sequence += 1;
        let Fact::Unknown(new) = &unknown else { unreachable!("it is unknown") };
        let (about, body) = (new.about(), new.body.clone());
        let sequence = expected.sequence;
        let keys = apply(&mut state, &events(sequence, vec![unknown.clone()]).remove(0));
        let key = format!("raw.{sequence:020}");
        prop_assert_eq!(&keys, &vec![key.clone()]);
        prop_assert_eq!(&state.entry(&key).expect("it is kept")["body"], &body);
        let mut others = state.entries();
        others.remove(&key);
        prop_assert_eq!(others, expected.entries());
        let entry = state.entry(&about);
        let whole = events(sequence + 1, after);
        for event in &whole {
            apply(&mut state, event);
        }
        if about != "leaf" {
            prop_assert_eq!(state.entry(&about), entry);
        }
    }

    #[test]
    fn commands_about_raw_entries_are_refused(
        before in facts(40), new in vec(novelty(), 1..4), command in command(), fresh in 20u128..29,
    ) {
        let state = State::from_entries(41, of_a_later_day(&replay(&events(1, before)), new));
        let raw: Vec<String> = state.raw_entries().into_iter().map(|raw| raw.key).collect();
        let about = command.about().key();
        match decide(&state, &command, &context(fresh)) {
            Ok(decision) => {
                prop_assert!(about == "leaf" || !raw.contains(&about));
                // A leaf that a newer leafd wrote is started all the same, and not labelled.
                for fact in decision.facts {
                    let about = fact.about().expect("it is known").key();
                    prop_assert!(!raw.contains(&about), "{}", about);
                }
            }
            Err(problem) if raw.contains(&about) && about != "leaf" => {
                prop_assert_eq!(problem.code, ProblemCode::Unsupported);
                prop_assert!(problem.detail.contains("was written by a newer leafd"), "{}", problem);
                prop_assert!(problem.detail.contains(&about), "{}", problem);
            }
            Err(_) => {}
        }
        for id in needless_jobs(&state) {
            prop_assert!(!raw.contains(&Aggregate::Job(&id).key()));
        }
    }

    #[test]
    fn a_device_with_a_raw_entry_makes_no_events(seen in device(), others in vec(device(), 0..3)) {
        let key = Aggregate::Device(&seen.id).key();
        let mut entry = serde_json::to_value(&seen).expect("JSON");
        entry["kind"] = json!("hologram");
        let state = State::from_entries(3, [(key, entry)]);
        let look = Inventory {
            devices: others.into_iter().chain([seen.clone()]).map(|d| (d.id.clone(), d)).collect(),
        };
        let told = changes(&state, &look);
        let about = Aggregate::Device(&seen.id);
        prop_assert!(told.iter().all(|fact| fact.about() != Some(about)));
        prop_assert_eq!(told.len() + 1, diff(&state.devices, &look).len());
    }
}

fn unknown_leaf_fact() -> Fact {
    Fact::Unknown(leaf_core::event::UnknownFact {
        kind: "cim.leaf.leaf.moved.v1".to_owned(),
        subject: "leaf.v1.evt.edge-1.leaf.edge-1.moved".to_owned(),
        body: json!({}),
    })
}

fn create(name: &str, path: &str) -> CreateContainer {
    let path = leaf_core::id::StorePath::new(path).expect("a path");
    CreateContainer {
        name: ContainerName::new(name).expect("a name"),
        source: ContainerSource::Toplevel { path },
        start: false,
        options: Default::default(),
    }
}

const SYSTEM: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-minimal";

/// A state with the container `new`, made with this JSON merged into what is desired of it.
fn with_container(desired: Value) -> State {
    let mut state = State::default();
    let command = Command::from(create("new", SYSTEM));
    let decision = decide(&state, &command, &context(1)).expect("accepted");
    for event in events(1, decision.facts) {
        apply(&mut state, &event);
    }
    let mut entry = state.entry("container.new").expect("it was made");
    let fields = entry["desired"].as_object_mut().expect("an object");
    for (name, value) in desired.as_object().expect("an object") {
        fields.insert(name.clone(), value.clone());
    }
    State::from_entries(state.sequence, [("container.new".to_owned(), entry)])
}

#[test]
fn the_name_the_addresses_and_the_ports_of_a_raw_container_stay_in_use() {
    let state = with_container(
        json!({ "gpu": 1, "options": { "allow": [{ "type": "ingress", "host_port": 8080 }] } }),
    );
    assert!(state.containers.is_empty());
    let refused = decide(&state, &create("new", SYSTEM).into(), &context(2)).expect_err("taken");
    assert_eq!(refused.code, ProblemCode::Unsupported);
    let start = StartContainer {
        name: ContainerName::new("new").expect("a name"),
        if_generation: None,
    };
    let refused = decide(&state, &start.into(), &context(2)).expect_err("it is left alone");
    assert_eq!(refused.code, ProblemCode::Unsupported);
    let free = context(2).pool.free_link(&state, &[]).expect("there are more");
    assert_eq!(free, context(2).pool.link(2));
    let mut other = create("other", SYSTEM);
    other.options = serde_json::from_value(json!({ "allow": [{ "type": "ingress", "host_port": 8080 }] }))
        .expect("options");
    let refused = decide(&state, &other.clone().into(), &context(2)).expect_err("the port is taken");
    assert_eq!(refused.code, ProblemCode::Conflict);
    assert!(refused.detail.contains("8080"), "{refused}");
    other.options = serde_json::from_value(json!({ "allow": [{ "type": "ingress", "host_port": 8081 }] }))
        .expect("options");
    assert!(decide(&state, &other.into(), &context(2)).is_ok());
    // All else goes on.
    for query in [Command::from(ShowLeaf {}), Command::from(ListContainers {})] {
        assert!(decide(&state, &query, &context(2)).is_ok());
    }
    assert_eq!(
        state
            .raw_entries()
            .into_iter()
            .map(|u| (u.key, u.reason))
            .collect::<Vec<_>>(),
        [(
            "container.new".to_owned(),
            "the value of desired.gpu is unknown".to_owned()
        )]
    );
}

#[test]
fn an_unknown_field_outside_the_desired_state_is_kept_and_the_container_is_managed() {
    let state = with_container(json!({}));
    let mut entry = state.entry("container.new").expect("it is there");
    entry["health"] = json!({ "last": "ok" });
    entry["cause"]["reason"] = json!("rain");
    let mut state = State::from_entries(1, [("container.new".to_owned(), entry)]);
    assert_eq!(state.raw_entries(), []);
    let name = ContainerName::new("new").expect("a name");
    let shown =
        decide(&state, &ShowContainer { name: name.clone() }.into(), &context(2)).expect("it is known");
    assert!(matches!(shown.reply, Reply::ContainerReport(_)));
    let created = leaf_core::event::ContainerCreated { name };
    for event in events(2, vec![created.into()]) {
        assert_eq!(apply(&mut state, &event), ["container.new"]);
    }
    let entry = state.entry("container.new").expect("it is there");
    assert_eq!(entry["health"], json!({ "last": "ok" }));
    assert_eq!(entry["cause"]["reason"], "rain");
    assert_eq!(entry["phase"], "stopped");
    let known: Container = serde_json::from_value(entry).expect("a container");
    assert_eq!(Some(&known), state.containers.values().next());
}

#[test]
fn a_change_of_a_newer_stage_is_kept_in_the_leafs_entry_and_its_other_changes_are_known() {
    let known = "0193f6b0-4c1e-7000-8000-000000000000";
    let newer = "0193f6b0-4c1e-7000-8000-000000000001";
    let entry = json!({
        "name": "edge-1", "instance": known, "version": "9", "started_at": "2026-11-30T12:00:00Z", "stopped": false,
        "host": { "hostname": "edge-1", "system": "x86_64-linux", "kernel": "6.12", "boot_id": "b" },
        "changes": {
            known: { "stage": "armed", "told_at": 7, "witness": "hub-b" },
            newer: { "stage": "asked_again", "told_at": 8 },
            "by_name": { "a": 1 },
        },
    });
    let state = State::from_entries(8, [("leaf".to_owned(), entry.clone())]);
    let changes = &state.leaf.as_ref().expect("it is known").changes;
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(state.entry("leaf"), Some(entry));
}

#[test]
fn an_event_with_an_unknown_desired_field_or_variant_is_not_read_partially() {
    let state = with_container(json!({}));
    let container = state.containers.values().next().expect("it is there").clone();
    let desired = leaf_core::event::ContainerDesired {
        name: container.name.clone(),
        desired: container.desired,
        caller: leaf_core::id::Caller::new("admin").expect("a caller"),
    };
    let record = events(2, vec![desired.into()]).remove(0).to_record(&leaf(), 7);
    let read = |change: &dyn Fn(&mut Value)| {
        let mut body: Value = serde_json::from_slice(&record.body).expect("JSON");
        change(&mut body);
        let body = serde_json::to_vec(&body).expect("JSON");
        let record = EventRecord {
            body,
            ..record.clone()
        };
        let event = Event::from_record(&record).expect("it is kept");
        // It is passed on as it came.
        let again = event.to_record(&leaf(), 7);
        assert_eq!(
            (&again.subject, &again.headers),
            (&record.subject, &record.headers)
        );
        event
    };
    assert!(matches!(read(&|_| {}).fact, Fact::Container(_)));
    assert!(matches!(
        read(&|body| body["mood"] = json!("good")).fact,
        Fact::Container(_)
    ));
    for change in [
        &|body: &mut Value| body["desired"]["gpu"] = json!("pci-1"),
        &|body: &mut Value| body["desired"]["run"] = json!("frozen"),
    ] as [&dyn Fn(&mut Value); 2]
    {
        let event = read(change);
        assert!(
            matches!(&event.fact, Fact::Unknown(fact) if fact.about() == "container.new"),
            "{event:?}"
        );
    }
}

#[test]
fn a_name_that_only_a_raw_event_has_stays_in_use() {
    let mut state = State::default();
    let unknown = Fact::Unknown(leaf_core::event::UnknownFact {
        kind: "cim.leaf.container.desired.v2".to_owned(),
        subject: "leaf.v1.evt.edge-1.container.new.desired".to_owned(),
        body: json!({ "network": { "container_address": "10.233.1.2" } }),
    });
    for event in events(1, vec![unknown]) {
        apply(&mut state, &event);
    }
    let refused = decide(&state, &create("new", SYSTEM).into(), &context(2)).expect_err("taken");
    assert_eq!(refused.code, ProblemCode::Unsupported);
    assert!(
        refused
            .detail
            .contains("event 1 of type cim.leaf.container.desired.v2"),
        "{refused}"
    );
    assert_eq!(
        context(2).pool.free_link(&state, &[]),
        Some(context(2).pool.link(2))
    );
}

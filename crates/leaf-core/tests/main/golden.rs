//! Golden messages: what was once sent stays readable for good.
//!
//! `tests/golden/v1/NAME.json` holds one message of the type NAME, as it looks on the wire: `{"subject", "headers",
//! "body"}`, the first two where they belong to it. `NAME--VARIANT.json` is another of the same type. A golden is
//! written once and not changed afterwards; a type's new version gets new goldens beside the old ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use leaf_core::command::{self, Command};
use leaf_core::event::{Event, EventRecord, header};
use leaf_core::id::{CommandId, LeafName};
use leaf_core::schema::{Bundle, catalogue};
use leaf_core::state::State;
use leaf_core::subject::{CommandSubject, key_of_state};
use serde_json::Value;

use crate::schema::Reader;

/// One golden message.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    #[serde(skip)]
    file: String,
    #[serde(skip)]
    name: String,
    subject: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Value,
}

fn goldens() -> Vec<Golden> {
    let directory = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/v1"));
    let mut goldens: Vec<Golden> = std::fs::read_dir(&directory)
        .expect("tests/golden/v1 is there")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let file = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).expect("a golden is text");
            let mut golden: Golden = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
            golden.name = file.split("--").next().expect("it has a first part").to_owned();
            golden.file = file;
            golden
        })
        .collect();
    goldens.sort_by(|a, b| a.file.cmp(&b.file));
    goldens
}

/// Reads a message by its type, and writes it again.
fn read_and_write(golden: &Golden) -> Value {
    let message = catalogue()
        .into_iter()
        .find(|message| message.name == golden.name)
        .unwrap_or_else(|| panic!("{} is of no type that is known now", golden.file));
    (message.shape.reread)(golden.body.clone())
        .unwrap_or_else(|e| panic!("{} can't be read any more: {e}", golden.file))
}

fn is_event(golden: &Golden) -> bool {
    golden
        .subject
        .as_deref()
        .is_some_and(|subject| subject.starts_with("leaf.v1.evt."))
}

#[test]
fn every_golden_entry_of_the_state_is_read_by_its_key() {
    let leaf = LeafName::new("edge-1").expect("a leaf");
    let goldens = goldens();
    let entries = goldens.iter().filter(|golden| golden.name.starts_with("state."));
    for golden in entries {
        let subject = golden.subject.as_deref().expect("an entry has a subject");
        let key = key_of_state(&leaf, subject).unwrap_or_else(|| panic!("{}: {subject}", golden.file));
        let state = State::from_entries(0, [(key.to_owned(), golden.body.clone())]);
        let understood = state.raw_entries().is_empty() || golden.name == "state.raw";
        assert!(understood, "{}", golden.file);
        assert_eq!(state.entry(key).as_ref(), Some(&golden.body), "{}", golden.file);
    }
}

#[test]
fn the_correlation_id_of_a_golden_event_is_decoded() {
    let goldens = goldens();
    let golden = goldens
        .iter()
        .find(|golden| golden.file == "cim.leaf.container.desired.v1--correlation")
        .expect("it is there");
    let event = Event::from_record(&record_of(golden)).expect("an event");
    assert_eq!(event.correlation.as_deref(), Some("Müller: 100% \"ok\""));
}

fn record_of(golden: &Golden) -> EventRecord {
    EventRecord {
        sequence: golden.headers[header::SEQUENCE].parse().expect("a number"),
        subject: golden.subject.clone().expect("an event has a subject"),
        headers: golden.headers.clone().into_iter().collect(),
        body: serde_json::to_vec(&golden.body).expect("JSON"),
    }
}

#[test]
fn every_message_type_has_a_golden_message() {
    let written: BTreeSet<String> = goldens().into_iter().map(|golden| golden.name).collect();
    let missing: Vec<String> = catalogue()
        .into_iter()
        .map(|message| message.name)
        .filter(|name| !written.contains(name))
        .collect();
    assert!(
        missing.is_empty(),
        "write tests/golden/v1/NAME.json for {missing:?}"
    );
}

#[test]
fn every_golden_message_survives_a_round_trip() {
    for golden in goldens().iter() {
        assert_eq!(read_and_write(golden), golden.body, "{}", golden.file);
    }
}

#[test]
fn every_golden_command_is_parsed_from_its_subject_and_body() {
    let goldens = goldens();
    let commands = goldens.iter().filter(|golden| golden.name.starts_with("cmd."));
    for golden in commands {
        let subject = CommandSubject::parse(golden.subject.as_deref().expect("a command has a subject"))
            .unwrap_or_else(|e| panic!("{}: {e}", golden.file));
        assert_eq!(golden.name, format!("cmd.{}.{}", subject.noun, subject.verb));
        let body = serde_json::to_vec(&golden.body).expect("JSON");
        let command = Command::parse(&subject.noun, &subject.verb, &body)
            .unwrap_or_else(|e| panic!("{} is refused now: {e}", golden.file));
        assert_eq!(command.declaration().request_name, golden.name);
        if let Some(id) = golden.headers.get(command::COMMAND_ID_HEADER) {
            CommandId::new(id.as_str()).unwrap_or_else(|e| panic!("{}: {e}", golden.file));
        }
    }
}

#[test]
fn every_golden_event_survives_a_round_trip_with_its_subject_and_headers() {
    let leaf = LeafName::new("edge-1").expect("a leaf");
    for golden in goldens().iter().filter(|golden| is_event(golden)) {
        let record = record_of(golden);
        let event = Event::from_record(&record).unwrap_or_else(|e| panic!("{}: {e:?}", golden.file));
        assert_eq!(event.fact.kind(), golden.name, "{} is unknown now", golden.file);
        let written = event.to_record(&leaf, record.epoch().expect("an event's id has the epoch"));
        assert_eq!(written.subject, record.subject, "{}", golden.file);
        assert_eq!(written.headers, record.headers, "{}", golden.file);
        assert_eq!(written.sequence, record.sequence, "{}", golden.file);
        let body: Value = serde_json::from_slice(&written.body).expect("JSON");
        assert_eq!(body, golden.body, "{}", golden.file);
    }
}

#[test]
fn every_golden_message_is_valid_by_its_schema() {
    let bundle = Bundle::new();
    for golden in goldens() {
        let schema = bundle
            .resolve(&golden.name)
            .unwrap_or_else(|| panic!("{} has no schema any more", golden.file));
        let found = Reader::new(&schema)
            .and_then(|mut reader| reader.errors("", &golden.body))
            .expect("a schema");
        assert_eq!(found, "", "{}", golden.file);
    }
}

#[test]
fn every_golden_message_is_valid_by_the_address_of_its_schema_in_the_bundle() {
    let ids: BTreeMap<String, String> = catalogue()
        .into_iter()
        .map(|message| (message.name.clone(), message.id()))
        .collect();
    let mut bundle = Bundle::new().document();
    for (name, id) in &ids {
        bundle["$defs"][format!("address of {name}")] = serde_json::json!({ "$ref": id });
    }
    let mut reader = Reader::new(&bundle).expect("the bundle");
    for golden in goldens() {
        let address = format!("#/$defs/address of {}", golden.name).replace(' ', "%20");
        let found = reader.errors(&address, &golden.body).expect("a schema");
        assert_eq!(found, "", "{}", golden.file);
        // A body that no message has: the reference leads to a schema that says something.
        let found = reader.errors(&address, &Value::Null).expect("a schema");
        assert_ne!(found, "", "{}", golden.file);
    }
}

#[test]
fn an_unknown_field_of_a_golden_event_is_ignored() {
    for golden in goldens().iter().filter(|golden| is_event(golden)) {
        let record = |body: &Value| EventRecord {
            body: serde_json::to_vec(body).expect("JSON"),
            ..record_of(golden)
        };
        let mut more = golden.body.clone();
        more["of_a_later_day"] = Value::from(7);
        let (before, after) = (
            Event::from_record(&record(&golden.body)).expect("an event"),
            Event::from_record(&record(&more)).unwrap_or_else(|e| panic!("{}: {e:?}", golden.file)),
        );
        assert_eq!(before, after, "{}", golden.file);
    }
}

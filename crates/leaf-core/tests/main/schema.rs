//! The committed schemas in `docs/protocol/` are those of the Rust types.

use std::collections::BTreeSet;
use std::path::PathBuf;

use leaf_core::schema::catalogue;
use serde_json::Value;

fn protocol() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol"))
}

#[test]
fn every_committed_schema_is_that_of_its_type() {
    for message in catalogue() {
        let path = protocol().join(format!("{}.schema.json", message.name));
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}; run `cargo xtask docs`", path.display()));
        let committed: Value = serde_json::from_str(&text).expect("a schema is JSON");
        assert_eq!(
            committed,
            message.document(),
            "{} has changed; run `cargo xtask docs`, and if a reader of the old form can't read the new one, make a \
             new version of the type instead",
            message.name
        );
    }
}

#[test]
fn no_schema_is_left_of_a_type_that_is_gone() {
    let known: BTreeSet<String> = catalogue()
        .into_iter()
        .map(|message| format!("{}.schema.json", message.name))
        .collect();
    let committed: BTreeSet<String> = std::fs::read_dir(protocol())
        .expect("docs/protocol is there")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.ends_with(".schema.json"))
        .collect();
    assert_eq!(committed, known, "run `cargo xtask docs`");
}

#[test]
fn every_schema_is_of_the_2020_12_dialect_and_valid_in_it() {
    for message in catalogue() {
        let document = message.document();
        assert_eq!(
            document["$schema"], "https://json-schema.org/draft/2020-12/schema",
            "{}",
            message.name
        );
        jsonschema::draft202012::meta::validate(&document)
            .unwrap_or_else(|e| panic!("{} is no schema: {e}", message.name));
    }
}

#[test]
fn every_message_type_and_each_of_its_fields_is_described() {
    for message in catalogue() {
        let document = message.document();
        assert!(
            document["description"].is_string(),
            "{} has no description",
            message.name
        );
        for (field, schema) in document["properties"].as_object().into_iter().flatten() {
            assert!(
                schema["description"].is_string(),
                "{}.{field} has no description",
                message.name
            );
        }
    }
}

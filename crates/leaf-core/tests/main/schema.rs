//! The committed schemas in `docs/protocol/` are those of the Rust types.

use std::collections::BTreeSet;

use boon::{CompileError, Compiler, SchemaIndex, Schemas};
use leaf_core::schema::{Bundle, catalogue};
use serde_json::Value;

fn committed() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/protocol/messages.schema.json"
    );
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}; run `cargo xtask docs`"));
    serde_json::from_str(&text).expect("a schema is JSON")
}

/// Reads a document of schemas, which must be valid by that of its dialect, and holds messages against them.
pub(crate) struct Reader {
    compiler: Compiler,
    schemas: Schemas,
}

impl Reader {
    pub(crate) fn new(document: &Value) -> Result<Self, String> {
        let (mut compiler, schemas) = (Compiler::new(), Schemas::new());
        compiler.add_resource(PLACE, document.clone()).map_err(text)?;
        let mut reader = Self { compiler, schemas };
        reader.compile("")?;
        Ok(reader)
    }

    /// Returns what is wrong with a message by the schema at a fragment of the document, or an empty text.
    pub(crate) fn errors(&mut self, fragment: &str, message: &Value) -> Result<String, String> {
        let index = self.compile(fragment)?;
        let found = self.schemas.validate(message, index);
        Ok(found.err().map(|error| error.to_string()).unwrap_or_default())
    }

    fn compile(&mut self, fragment: &str) -> Result<SchemaIndex, String> {
        let place = format!("{PLACE}{fragment}");
        self.compiler.compile(&place, &mut self.schemas).map_err(text)
    }
}

fn text(error: CompileError) -> String {
    format!("{error:#}")
}

/// Where the reader of schemas finds the one that it is given.
const PLACE: &str = "memory:schema";

#[test]
fn each_committed_definition_matches_its_type() {
    let (committed, made) = (committed(), Bundle::new().document());
    for (name, definition) in made["$defs"].as_object().expect("definitions") {
        assert_eq!(
            &committed["$defs"][name], definition,
            "{name} has changed; run `cargo xtask docs`, and if a reader of the old form can't read the new one, make a \
             new version of the type instead"
        );
    }
    // A type that is gone is left in neither.
    assert_eq!(committed, made, "run `cargo xtask docs`");
}

#[test]
fn each_message_type_has_an_address_of_its_own() {
    let committed = committed();
    let ids: BTreeSet<String> = catalogue()
        .into_iter()
        .map(|message| {
            let id = &committed["$defs"][&message.name]["$id"];
            assert_eq!(id, &message.id(), "{}", message.name);
            message.id()
        })
        .collect();
    assert_eq!(ids.len(), catalogue().len());
    assert!(ids.contains("urn:cim-leaf:schema:v1:cmd.container.create"));
    assert!(ids.contains("urn:cim-leaf:schema:cim.leaf.container.started.v1"));
}

#[test]
fn every_schema_is_of_the_2020_12_dialect_and_valid_in_it() {
    let bundle = Bundle::new();
    let each = catalogue().into_iter().map(|message| {
        let schema = bundle.resolve(&message.name).expect("it is in the bundle");
        (message.name, schema)
    });
    for (name, document) in each.chain([("the bundle".to_owned(), bundle.document())]) {
        assert_eq!(
            document["$schema"], "https://json-schema.org/draft/2020-12/schema",
            "{name}"
        );
        if let Err(error) = Reader::new(&document) {
            panic!("{name} is no schema: {error}");
        }
    }
}

#[test]
fn every_message_type_and_each_of_its_fields_is_described() {
    let bundle = Bundle::new();
    for message in catalogue() {
        assert!(
            !message.description().is_empty(),
            "{} has no description",
            message.name
        );
        let document = bundle.resolve(&message.name).expect("it is in the bundle");
        for (field, schema) in document["properties"].as_object().into_iter().flatten() {
            assert!(
                schema["description"].is_string(),
                "{}.{field} has no description",
                message.name
            );
        }
    }
}

//! The message types and their JSON Schemas (2020-12), generated from the Rust types.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::beat::Beat;
use crate::command::COMMANDS;
use crate::container::Container;
use crate::event;
use crate::fleet::witness::{WitnessReply, WitnessRequest};
use crate::fleet::work::{WorkReply, WorkReport, WorkTakenOver};
use crate::fleet::{
    ActiveAgent, Claim, ClaimReply, CopyReply, CopyStatus, Fill, FillReply, ReadCopy, Release, Released,
};
use crate::hardware::Device;
use crate::host_op::ContainerBinding;
use crate::job::{ENDED_TYPE, Job, JobEnded, PROGRESS_TYPE, Progress};
use crate::problem::Problem;
use crate::secret::SecretRecord;
use crate::shape::Shape;
use crate::state::{LeafState, RawEvent};
use crate::subject::VERSION;

/// A message type.
#[derive(Debug, Clone)]
pub struct MessageType {
    /// Its name: the `ce-type` of an event or a job's message, `cmd.<noun>.<verb>`, `reply.<noun>.<verb>`,
    /// `state.<kind>`, or a name of its own.
    pub name: String,
    /// Its role.
    pub role: Role,
    schema: Schema,
    /// Its form.
    pub shape: Shape,
}

/// The role of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A command.
    Command,
    /// The reply to a successful command.
    Reply,
    /// A domain event, kept in the leaf's stream.
    Event,
    /// A message about a running job, not stored.
    Job,
    /// An entry of the state in the bucket [`STATE_BUCKET`](crate::subject::STATE_BUCKET).
    State,
    /// Something else.
    Other,
}

impl MessageType {
    /// Returns the schema's `$id`: `urn:cim-leaf:schema:` and the name; before a name without a version of its own, the
    /// protocol's version is inserted.
    #[must_use]
    pub fn id(&self) -> String {
        match self.role {
            Role::Event | Role::Job => format!("urn:cim-leaf:schema:{}", self.name),
            _ => format!("{}:{}", bundle_id(), self.name),
        }
    }

    /// Returns the description of the Rust type.
    #[must_use]
    pub fn description(&self) -> &str {
        self.schema
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Returns the name of the Rust type, its schema, and the schemas of the types that it refers to, by name.
    fn definitions(&self) -> (String, Value, Map<String, Value>) {
        let mut schema = self.schema.clone();
        let shared = match schema.remove("$defs") {
            Some(Value::Object(shared)) => shared,
            _ => Map::new(),
        };
        schema.remove("$schema");
        let Some(Value::String(name)) = schema.remove("title") else {
            unreachable!("schemars uses a type's name as the title of its schema")
        };
        (name, schema.to_value(), shared)
    }
}

/// All message types of this version in one JSON Schema document.
///
/// Its `$defs` hold each Rust type once, under its name, and each message type under its own: a schema with an `$id` that
/// refers to the type. A validator that has read the document resolves a `$ref` to any of these `$id`s (JSON Schema 2020-12,
/// section 9.3, "Compound documents").
#[derive(Debug, Clone)]
pub struct Bundle {
    definitions: Map<String, Value>,
}

impl Bundle {
    /// Returns the bundle of the Rust types.
    ///
    /// # Panics
    ///
    /// If two types have the same name and different schemas; a test makes this bundle.
    #[must_use]
    pub fn new() -> Self {
        let mut bundle = Self {
            definitions: Map::new(),
        };
        for message in catalogue() {
            let (of_type, schema, shared) = message.definitions();
            for (name, schema) in shared {
                bundle.define(name, schema);
            }
            let entry = serde_json::json!({
                "$id": message.id(),
                "title": message.name,
                "$ref": format!("{}{LOCAL}{of_type}", bundle_id()),
            });
            bundle.define(of_type, schema);
            bundle.define(message.name, entry);
        }
        bundle
    }

    fn define(&mut self, name: String, schema: Value) {
        if let Some(there) = self.definitions.get(&name) {
            assert_eq!(there, &schema, "two types are called {name}; rename one");
        }
        self.definitions.insert(name, schema);
    }

    /// Returns the whole document.
    #[must_use]
    pub fn document(&self) -> Value {
        serde_json::json!({
            "$schema": DIALECT,
            "$id": bundle_id(),
            "title": format!("The messages of a leaf, {VERSION}"),
            "description": "$defs holds each message type under its name, with an $id to refer to it by, and each type \
                            that messages are made of.",
            "$defs": self.definitions,
        })
    }

    /// Returns the schema of one message type as a self-contained document; `None` if there is no such type.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Option<Value> {
        let entry = self.definitions.get(name)?;
        // A Rust type has no `$id`, and is not a message type.
        let (id, of_type) = (entry.get("$id")?, target_of(entry.get("$ref")?)?);
        let mut needed = BTreeMap::new();
        let schema = self.definitions.get(of_type)?;
        self.collect(schema, &mut needed);
        let mut document = schema.clone();
        document["$schema"] = DIALECT.into();
        document["$id"] = id.clone();
        document["title"] = name.into();
        if !needed.is_empty() {
            document["$defs"] = needed
                .into_iter()
                .map(|(name, schema)| (name, schema.clone()))
                .collect();
        }
        Some(document)
    }

    /// Adds the definitions that a schema refers to, directly or indirectly.
    fn collect<'a>(&'a self, schema: &'a Value, needed: &mut BTreeMap<&'a str, &'a Value>) {
        match schema {
            Value::Object(keywords) => {
                for (key, value) in keywords {
                    if key == "$ref"
                        && let Some(name) = target_of(value)
                        && let Some(definition) = self.definitions.get(name)
                    {
                        if needed.insert(name, definition).is_none() {
                            self.collect(definition, needed);
                        }
                    } else {
                        self.collect(value, needed);
                    }
                }
            }
            Value::Array(schemas) => schemas.iter().for_each(|schema| self.collect(schema, needed)),
            _ => {}
        }
    }
}

impl Default for Bundle {
    fn default() -> Self {
        Self::new()
    }
}

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
const LOCAL: &str = "#/$defs/";

/// Returns the `$id` of the [`Bundle`].
fn bundle_id() -> String {
    format!("urn:cim-leaf:schema:{VERSION}")
}

/// Returns the name of the definition that a `$ref` points to.
fn target_of(reference: &Value) -> Option<&str> {
    reference.as_str()?.split_once(LOCAL).map(|(_, name)| name)
}

/// The sequence number at which the newest snapshot of the leaf's history begins: a replay can start there.
#[derive(Serialize, Deserialize, JsonSchema)]
struct SnapshotSequence(u64);

/// Returns every message type of this version, sorted by name.
#[must_use]
pub fn catalogue() -> Vec<MessageType> {
    let others = [
        (PROGRESS_TYPE, Role::Job, Shape::of::<Progress>()),
        (ENDED_TYPE, Role::Job, Shape::of::<JobEnded>()),
        ("state.leaf", Role::State, Shape::of::<LeafState>()),
        ("state.snapshot", Role::State, Shape::of::<SnapshotSequence>()),
        ("state.device", Role::State, Shape::of::<Device>()),
        ("state.container", Role::State, Shape::of::<Container>()),
        ("state.job", Role::State, Shape::of::<Job>()),
        ("state.secret", Role::State, Shape::of::<SecretRecord>()),
        ("state.raw", Role::State, Shape::of::<RawEvent>()),
        ("beat", Role::Other, Shape::of::<Beat>()),
        ("hub.claim", Role::Other, Shape::of::<Claim>()),
        ("hub.claim.reply", Role::Other, Shape::of::<ClaimReply>()),
        ("hub.fill", Role::Other, Shape::of::<Fill>()),
        ("hub.fill.reply", Role::Other, Shape::of::<FillReply>()),
        ("hub.copy.read", Role::Other, Shape::of::<ReadCopy>()),
        ("hub.copy.read.reply", Role::Other, Shape::of::<CopyReply>()),
        ("hub.release", Role::Other, Shape::of::<Release>()),
        ("hub.release.reply", Role::Other, Shape::of::<Released>()),
        ("hub.witness", Role::Other, Shape::of::<WitnessRequest>()),
        ("hub.witness.reply", Role::Other, Shape::of::<WitnessReply>()),
        ("hub.work", Role::Other, Shape::of::<WorkReport>()),
        ("hub.work.reply", Role::Other, Shape::of::<WorkReply>()),
        ("fleet.taken_over", Role::Other, Shape::of::<WorkTakenOver>()),
        ("fleet.agent", Role::Other, Shape::of::<ActiveAgent>()),
        ("fleet.copy", Role::Other, Shape::of::<CopyStatus>()),
        ("container.binding", Role::Other, Shape::of::<ContainerBinding>()),
        ("problem", Role::Other, Shape::of::<Problem>()),
    ];
    let events = event::types().map(|event| (event.name, Role::Event, event.shape));
    let commands = COMMANDS.iter().flat_map(|command| {
        [
            (command.request_name, Role::Command, command.request),
            (command.reply_name, Role::Reply, command.reply),
        ]
    });
    let mut types: Vec<MessageType> = others
        .into_iter()
        .chain(events)
        .chain(commands)
        .map(|(name, role, shape)| MessageType {
            name: name.to_owned(),
            role,
            schema: (shape.schema)(),
            shape,
        })
        .collect();
    types.sort_by(|a, b| a.name.cmp(&b.name));
    types
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_resolves_a_type_to_its_own_schema() {
        let bundle = Bundle::new();
        for message in catalogue() {
            let mut alone = message.schema.clone();
            alone.insert("$id".to_owned(), message.id().into());
            alone.insert("title".to_owned(), message.name.clone().into());
            assert_eq!(
                bundle.resolve(&message.name),
                Some(alone.to_value()),
                "{}",
                message.name
            );
        }
    }

    #[test]
    fn a_rust_type_is_not_a_message_type() {
        let bundle = Bundle::new();
        assert!(bundle.definitions.contains_key("Container"));
        assert_eq!(bundle.resolve("Container"), None);
        assert_eq!(bundle.resolve("no.such.message"), None);
    }
}

//! Every message type and its JSON Schema (2020-12), generated from the Rust types.

use schemars::{JsonSchema, Schema, schema_for};

use crate::beat::Beat;
use crate::container::Container;
use crate::hardware::Device;
use crate::host_op::ContainerBinding;
use crate::job::{ENDED_TYPE, Job, JobEnded, PROGRESS_TYPE, Progress};
use crate::problem::Problem;
use crate::state::LeafState;
use crate::subject::VERSION;

/// One message type.
#[derive(Debug, Clone)]
pub struct MessageType {
    /// Its name: the `ce-type` of an event or a job's message, `cmd.<noun>.<verb>`, `reply.<noun>.<verb>`,
    /// `state.<kind>`, or a name of its own.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its schema.
    pub schema: Schema,
}

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A command.
    Command,
    /// The reply to a command that worked.
    Reply,
    /// A domain event, kept in the leaf's stream.
    Event,
    /// What a job says while it runs, not kept.
    Job,
    /// An entry of the state in the bucket [`STATE_BUCKET`](crate::subject::STATE_BUCKET).
    State,
    /// Something else.
    Other,
}

impl MessageType {
    /// Returns the schema as a document that stands by itself. Its `$id` is `urn:cim-leaf:schema:` and the name; where the
    /// name has no version of its own, that of the protocol stands before it. The name is the title, too.
    #[must_use]
    pub fn document(&self) -> serde_json::Value {
        let id = match self.role {
            Role::Event | Role::Job => format!("urn:cim-leaf:schema:{}", self.name),
            _ => format!("urn:cim-leaf:schema:{VERSION}:{}", self.name),
        };
        let mut document = self.schema.clone();
        document.insert("$id".to_owned(), id.into());
        document.insert("title".to_owned(), self.name.clone().into());
        document.to_value()
    }
}

/// The sequence number with which the newest snapshot of the leaf's history begins: a replay may start there.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "it describes a number")]
struct SnapshotSequence(u64);

/// Returns every message type of this version, sorted by name.
#[must_use]
pub fn catalogue() -> Vec<MessageType> {
    let others = [
        (PROGRESS_TYPE, Role::Job, schema_for!(Progress)),
        (ENDED_TYPE, Role::Job, schema_for!(JobEnded)),
        ("state.leaf", Role::State, schema_for!(LeafState)),
        ("state.snapshot", Role::State, schema_for!(SnapshotSequence)),
        ("state.device", Role::State, schema_for!(Device)),
        ("state.container", Role::State, schema_for!(Container)),
        ("state.job", Role::State, schema_for!(Job)),
        ("beat", Role::Other, schema_for!(Beat)),
        ("container.binding", Role::Other, schema_for!(ContainerBinding)),
        ("problem", Role::Other, schema_for!(Problem)),
    ];
    let events = crate::event::schemas()
        .into_iter()
        .map(|(name, schema)| (name, Role::Event, schema));
    let commands = crate::command::schemas().into_iter().map(|(name, schema)| {
        let role = if name.starts_with("cmd.") {
            Role::Command
        } else {
            Role::Reply
        };
        (name, role, schema)
    });
    let mut types: Vec<MessageType> = others
        .map(|(name, role, schema)| (name.to_owned(), role, schema))
        .into_iter()
        .chain(events)
        .chain(commands)
        .map(|(name, role, schema)| MessageType { name, role, schema })
        .collect();
    types.sort_by(|a, b| a.name.cmp(&b.name));
    types
}

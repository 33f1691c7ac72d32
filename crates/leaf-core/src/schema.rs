//! Every message type and its JSON Schema (2020-12), generated from the Rust types.

use schemars::{JsonSchema, Schema, schema_for};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::beat::Beat;
use crate::command::COMMANDS;
use crate::container::Container;
use crate::event;
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
    /// Its form.
    pub shape: Shape,
}

/// The form of a message, as its Rust type has it.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Makes its schema.
    pub schema: fn() -> Schema,
    /// Reads a message and writes it again: what this version knows of it.
    pub reread: fn(Value) -> Result<Value, serde_json::Error>,
}

impl Shape {
    /// Returns the form of a Rust type.
    #[must_use]
    pub const fn of<T: JsonSchema + Serialize + DeserializeOwned>() -> Self {
        Self {
            schema: || schema_for!(T),
            reread: |message| serde_json::to_value(serde_json::from_value::<T>(message)?),
        }
    }
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
    pub fn document(&self) -> Value {
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
        ("beat", Role::Other, Shape::of::<Beat>()),
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

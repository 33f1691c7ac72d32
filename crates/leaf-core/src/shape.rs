//! What can be done with every message type, whatever it is.

use schemars::{JsonSchema, Schema, schema_for};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

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

//! The operations on message types that don't depend on the type.

use schemars::{JsonSchema, Schema, schema_for};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The form of a message, defined by its Rust type.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Returns its schema.
    pub schema: fn() -> Schema,
    /// Parses a message and serializes it again: the part of it that this version knows.
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

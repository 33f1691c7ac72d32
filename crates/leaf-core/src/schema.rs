//! Every message type and its JSON Schema (2020-12), generated from the Rust types.

use schemars::Schema;

use crate::beat::Beat;
use crate::host_op::ContainerBinding;
use crate::job::Progress;
use crate::problem::Problem;

/// One message type.
#[derive(Debug, Clone)]
pub struct MessageType {
    /// Its name: an event's `ce-type`, `cmd.<noun>.<verb>`, `reply.<noun>.<verb>`, or a name of its own.
    pub name: String,
    /// Its schema.
    pub schema: Schema,
}

impl MessageType {
    /// Returns the schema as a document that stands by itself: `$id` is `urn:cim-leaf:schema:` and the name, which
    /// is the title, too.
    #[must_use]
    pub fn document(&self) -> serde_json::Value {
        let mut document = self.schema.clone();
        document.insert(
            "$id".to_owned(),
            format!("urn:cim-leaf:schema:{}", self.name).into(),
        );
        document.insert("title".to_owned(), self.name.clone().into());
        document.to_value()
    }
}

/// Returns every message type of this version, sorted by name.
#[must_use]
pub fn catalogue() -> Vec<MessageType> {
    let others = [
        ("beat", schemars::schema_for!(Beat)),
        ("container.binding", schemars::schema_for!(ContainerBinding)),
        ("job.progress", schemars::schema_for!(Progress)),
        ("problem", schemars::schema_for!(Problem)),
    ];
    let mut types: Vec<MessageType> = crate::event::schemas()
        .into_iter()
        .chain(crate::command::schemas())
        .chain(others.map(|(name, schema)| (name.to_owned(), schema)))
        .map(|(name, schema)| MessageType { name, schema })
        .collect();
    types.sort_by(|a, b| a.name.cmp(&b.name));
    types
}

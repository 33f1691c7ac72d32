//! The cause of a change.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::CommandId;

/// The cause of a change: the command that led to it. It is passed on to everything that follows, and into every event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cause {
    /// The command that led to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandId>,
    /// The sender's correlation id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
}

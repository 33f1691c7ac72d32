//! Where a change comes from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::CommandId;

/// Where a change comes from: it goes along with all that follows from it, into every event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cause {
    /// The command that led to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandId>,
    /// The sender's own mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
}

//! Where a container's system comes from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::StorePath;

/// The source of a container's system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum ContainerSource {
    /// A system in the leaf's store.
    Toplevel {
        /// Its store path.
        path: StorePath,
    },
    /// A flake reference, which is built first.
    Flake {
        /// The reference with its fragment, such as `github:owner/repo#web`.
        reference: String,
    },
    /// A template of this leaf, which is built first.
    Template {
        /// The template's directory name, such as `minimal`.
        name: String,
    },
}

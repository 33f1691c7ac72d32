//! Installables: what Nix can build, evaluate or run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::StorePath;

/// An installable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum Installable {
    /// A flake reference with an optional fragment, such as `github:owner/repo#package`.
    Flake {
        /// The reference.
        reference: String,
    },
    /// A store path or derivation to realise.
    StorePath {
        /// The path; a derivation ends in `.drv`.
        path: StorePath,
    },
    /// A Nix file on the leaf, as `nix build -f FILE ATTRIBUTE` takes it.
    File {
        /// An absolute path on the leaf.
        path: String,
        /// The attribute to build; by default the whole file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attribute: Option<String>,
    },
    /// A container template of this leaf, such as `minimal`.
    Template {
        /// The template's directory name.
        name: String,
    },
}

//! The task `nix build` and its result.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Installable;
use crate::id::{ContainerName, StorePath};

/// The task of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BuildTask {
    /// The installable to build.
    pub installable: Installable,
    /// The time limit, in seconds.
    pub timeout_seconds: u32,
    /// The container that waits for the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerName>,
}

/// The result of a build. An installable may have several derivations, such as a file with a list of them: store path,
/// outputs and references are those of the first one, in Nix's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BuildResult {
    /// The store path of the output `out`, or else of the first output by name.
    pub store_path: StorePath,
    /// All outputs of the derivation by name; a plain store path has the one output `out`.
    pub outputs: BTreeMap<String, StorePath>,
    /// The derivation, if the installable has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derivation: Option<StorePath>,
    /// The wall-clock time from start to result, in milliseconds.
    pub build_time_ms: u64,
    /// The NAR size of the whole closure of `store_path`, in bytes.
    pub closure_size_bytes: u64,
    /// The direct references of `store_path`, except itself, sorted.
    pub references: Vec<StorePath>,
    /// The number of further references, which were left out because the NATS server accepts only smaller messages.
    #[serde(default, skip_serializing_if = "none_left_out")]
    pub references_left_out: u64,
    /// The number of derivations that were built; 0 if all were in the store or substituted.
    pub built: u32,
    /// The other derivations of the installable, in Nix's order: at most 32, and no more than fit into a message. GC roots
    /// hold all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<BuiltDerivation>,
    /// The number of further derivations, which were left out.
    #[serde(default, skip_serializing_if = "none_left_out")]
    pub others_left_out: u64,
}

/// A derivation that was built, or was in the store, with its outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BuiltDerivation {
    /// The derivation, if Nix named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derivation: Option<StorePath>,
    /// Its outputs by name; a plain store path has the one output `out`.
    pub outputs: BTreeMap<String, StorePath>,
}

impl BuiltDerivation {
    /// Returns the main output: `out`, or else the first by name.
    #[must_use]
    pub fn main_output(&self) -> Option<&StorePath> {
        self.outputs.get("out").or_else(|| self.outputs.values().next())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn none_left_out(count: &u64) -> bool {
    *count == 0
}

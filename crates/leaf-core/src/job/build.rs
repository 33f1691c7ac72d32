//! `nix build`: its task and its result.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Installable;
use crate::id::{ContainerName, StorePath};

/// What to build, and within what bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BuildTask {
    /// What to build.
    pub installable: Installable,
    /// The time it may take, in seconds.
    pub timeout_seconds: u32,
    /// The container that waits for the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerName>,
}

/// What a build made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BuildResult {
    /// The store path of the first output.
    pub store_path: StorePath,
    /// All outputs by name; a plain store path has the one output `out`.
    pub outputs: BTreeMap<String, StorePath>,
    /// The derivation, if it was built from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derivation: Option<StorePath>,
    /// Wall-clock time from start to result, in milliseconds.
    pub build_time_ms: u64,
    /// Size of the NARs of the whole closure, in bytes.
    pub closure_size_bytes: u64,
    /// What the first output refers to directly, itself left out, sorted.
    pub references: Vec<StorePath>,
    /// How many derivations were built; 0 means all was there.
    pub built: u32,
}

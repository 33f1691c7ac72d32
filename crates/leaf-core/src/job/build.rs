//! The task `nix build` and its result.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Installable;
use crate::id::{ContainerName, StorePath};

/// The maximum number of installables of a job.
const MOST_INSTALLABLES: usize = 32;
/// The maximum length of the installables of a job together, in bytes.
const MOST_INSTALLABLE_BYTES: usize = 16 * 1024;

/// The task of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BuildTask {
    /// The installable to build, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installable: Option<Installable>,
    /// The installables to build, if they are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub installables: Vec<Installable>,
    /// Whether a failure does not prevent the build of what does not depend on what failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_going: bool,
    /// Whether flakes are evaluated impurely.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub impure: bool,
    /// The time limit, in seconds.
    pub timeout_seconds: u32,
    /// The container that waits for the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerName>,
}

impl BuildTask {
    /// Returns the task to build these installables, which have been [checked](check_all), without `keep_going` or a
    /// container.
    #[must_use]
    pub fn new(mut installables: Vec<Installable>, timeout_seconds: u32) -> Self {
        let installable = (installables.len() == 1).then(|| installables.pop()).flatten();
        Self {
            installable,
            installables,
            keep_going: false,
            impure: false,
            timeout_seconds,
            container: None,
        }
    }

    /// Returns the installables.
    pub fn all(&self) -> impl Iterator<Item = &Installable> {
        self.installable.iter().chain(&self.installables)
    }
}

/// Checks the installables of a job, each by itself and all together.
///
/// # Errors
/// The reason, for the caller.
pub fn check_all<'a>(installables: impl IntoIterator<Item = &'a Installable>) -> Result<(), String> {
    let (mut count, mut bytes) = (0, 0);
    for installable in installables {
        installable.check()?;
        count += 1;
        bytes += installable.length();
    }
    match count {
        0 => Err("there is nothing to build: give an installable".to_owned()),
        MOST_INSTALLABLES.. if count > MOST_INSTALLABLES => Err(format!(
            "{count} installables are too many for a job: give at most {MOST_INSTALLABLES}, or several jobs"
        )),
        _ if bytes > MOST_INSTALLABLE_BYTES => Err(format!(
            "the installables have {bytes} bytes together: a job takes at most {MOST_INSTALLABLE_BYTES}"
        )),
        _ => Ok(()),
    }
}

/// How the outputs of a derivation came into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The derivation was built by this job.
    Built,
    /// An output was substituted.
    Substituted,
    /// They were in the store.
    Present,
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
    /// How the outputs came into the store; unknown for a build by an older leafd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The wall-clock time from start to result, in milliseconds.
    pub build_time_ms: u64,
    /// The NAR size of the whole closure of `store_path`, in bytes.
    pub closure_size_bytes: u64,
    /// The NAR size of `store_path` alone, in bytes; unknown for a build by an older leafd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nar_size_bytes: Option<u64>,
    /// The SHA-256 of the NARs of the outputs, in hexadecimal, by the output's name; unknown for a build by an older leafd.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nar_sha256: BTreeMap<String, String>,
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
    /// What the flake references of the task meant, each without its attribute. References that were locked already are not here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<LockedSource>,
}

/// The source that a flake reference meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LockedSource {
    /// The reference of the task, without the attribute.
    pub reference: String,
    /// The locked reference, as far as Nix can lock it: one of a working tree with changes has no revision.
    pub locked: String,
    /// The revision, if the source has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The SHA-256 of the source's NAR, in hexadecimal, if Nix printed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nar_sha256: Option<String>,
}

/// A derivation that was built, or was in the store, with its outputs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BuiltDerivation {
    /// The derivation, if Nix named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derivation: Option<StorePath>,
    /// Its outputs by name; a plain store path has the one output `out`.
    pub outputs: BTreeMap<String, StorePath>,
    /// How they came into the store, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The NAR size of its main output, in bytes, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nar_size_bytes: Option<u64>,
    /// The NAR size of the closure of its main output, in bytes, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closure_size_bytes: Option<u64>,
    /// The SHA-256 of the NARs of the outputs, in hexadecimal, by the output's name, as far as they are known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nar_sha256: BTreeMap<String, String>,
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

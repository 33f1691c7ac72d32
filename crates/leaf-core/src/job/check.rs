//! The task `nix build --rebuild` and its result.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BuiltDerivation, Installable};

/// The number of files that an explanation lists at most.
pub const MOST_DIFFERENCES: usize = 32;

/// The task of building something a second time, and comparing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckTask {
    /// The flake reference, the file or the derivation to build again.
    pub installable: Installable,
    /// Whether a flake is evaluated impurely.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub impure: bool,
    /// The time limit of all builds together, in seconds.
    pub timeout_seconds: u32,
}

impl CheckTask {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// The reason, for the caller.
    pub fn check(&self) -> Result<(), String> {
        self.installable.check_derivation("build to repeat")
    }
}

/// The result of a check that found no difference. A check that found one has failed, with an explanation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckResult {
    /// The derivations whose second build gave the same outputs, bit for bit; `origin` says how the first came into the store.
    pub derivations: Vec<BuiltDerivation>,
    /// The locked flake reference that was evaluated, without the attribute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<String>,
    /// The version of Nix, such as `nix (Nix) 2.8.0`.
    pub nix: String,
    /// The wall-clock time of the second builds, in milliseconds.
    pub check_time_ms: u64,
}

/// A file that differs between two builds of one derivation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileDifference {
    /// The file in the store path of the first build; at most 400 bytes of it, and text from outside. The second build is at the
    /// store path with `.check` behind it, until the store's garbage is collected.
    pub file: String,
    /// The kind of difference.
    pub what: DifferenceKind,
    /// The place of the first byte that differs, from 0, if the contents differ; it is the length of the shorter one if that is
    /// the beginning of the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte: Option<u64>,
}

/// The kind of a difference: what a NAR has of a file. A later version may have more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// The contents.
    Content,
    /// One is executable.
    Executable,
    /// One is a directory, a file or a link, and the other something else.
    Type,
    /// The targets of the links.
    LinkTarget,
    /// Only the first build has it.
    OnlyInFirst,
    /// Only the second build has it.
    OnlyInSecond,
    /// None of these.
    #[default]
    #[serde(other)]
    Unknown,
}

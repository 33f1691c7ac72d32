//! Why a job failed, for programs and for people.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::FileDifference;
use crate::id::StorePath;
use crate::text::shorten_text;

/// The number of derivations that each list of an explanation has at most.
pub const MOST_DERIVATIONS: usize = 16;

/// Why a job failed: made when it ends, from what Nix printed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The kind of failure.
    pub kind: FailureKind,
    /// The first error in Nix's words, at most 1 KiB. It is text from outside, without control characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The derivation that failed first, or was building when the time limit was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derivation: Option<StorePath>,
    /// The exit code of its builder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended its builder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The last lines of its log: at most 10, of at most 400 bytes. They are text from outside, without control characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_tail: Vec<String>,
    /// The derivations that failed because one that they need did, in Nix's order: nearest first. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needed_by: Vec<StorePath>,
    /// The number of further such derivations, which were left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub needed_by_left_out: u64,
    /// Further derivations that failed by themselves, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_failed: Vec<StorePath>,
    /// The place of an error of the evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// The hashes of a fixed-output derivation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashMismatch>,
    /// The files in which a second build differs from the first, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<FileDifference>,
    /// The number of further such files, which were left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub differences_left_out: u64,
}

/// The kind of a failure. A later version may have more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// A builder ended with another exit code than 0, or by a signal.
    BuilderFailed,
    /// A fixed-output derivation gave other bytes.
    HashMismatch,
    /// A second build gave other bytes.
    NotReproducible,
    /// The expression is wrong.
    EvaluationError,
    /// The expression or the command names an attribute that isn't there.
    MissingAttribute,
    /// The expression or the command names a file that isn't there.
    MissingFile,
    /// nixpkgs refuses the package: it is unfree, broken, insecure, or for another system.
    RefusedPackage,
    /// The lock file of a flake would have to change.
    LocksDiffer,
    /// A source or a store path could not be fetched.
    FetchFailed,
    /// A time limit was reached.
    TimedOut,
    /// The memory did not suffice.
    OutOfMemory,
    /// The value is larger than a result may be.
    OutputTooLarge,
    /// No space was left on a disk.
    DiskFull,
    /// A dependency failed, and Nix does not say how.
    DependencyFailed,
    /// Nix or the leaf refuses it by a setting.
    Policy,
    /// A caller cancelled it.
    Cancelled,
    /// The host or the runner crashed.
    Interrupted,
    /// None of these.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// The column, from 1; 0 if it is unknown.
    pub column: u64,
}

/// The hashes of a fixed-output derivation, in the form in which Nix prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HashMismatch {
    /// The hash in the expression.
    pub specified: String,
    /// The hash of what the builder gave.
    pub got: String,
}

impl Explanation {
    /// Returns an explanation of this kind with this message.
    #[must_use]
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            ..Self::default()
        }
    }

    /// Shortens its text and its lists to about this many bytes each.
    pub(crate) fn shorten(&mut self, max_bytes: usize) {
        shorten_text(&mut self.message, max_bytes);
        // The last lines say most.
        let mut bytes = 0;
        let fits = self.log_tail.iter().rev().take_while(|line| {
            bytes += line.len() + 3;
            bytes <= max_bytes
        });
        let left_out = self.log_tail.len() - fits.count();
        self.log_tail.drain(..left_out);
        let fitting = |paths: &[StorePath]| {
            let mut bytes = 0;
            let fits = paths.iter().take_while(|path| {
                bytes += path.as_str().len() + 3;
                bytes <= max_bytes
            });
            fits.count()
        };
        let kept = fitting(&self.needed_by);
        self.needed_by_left_out += (self.needed_by.len() - kept) as u64;
        self.needed_by.truncate(kept);
        self.also_failed.truncate(fitting(&self.also_failed));
        let mut bytes = 0;
        let fits = self.differences.iter().take_while(|difference| {
            // The keys and the other values.
            bytes += difference.file.len() + 60;
            bytes <= max_bytes
        });
        let kept = fits.count();
        self.differences_left_out += (self.differences.len() - kept) as u64;
        self.differences.truncate(kept);
    }

    /// Returns the kind alone, for a list.
    pub(crate) fn brief(&self) -> Self {
        Self {
            kind: self.kind,
            ..Self::default()
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

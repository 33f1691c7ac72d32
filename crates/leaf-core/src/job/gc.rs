//! The tasks of the store's garbage: collecting it, and finding what holds a path.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{JobId, StorePath};

/// The number of store paths that a result lists at most.
pub const MOST_PATHS: usize = 64;
/// The number of roots that a result lists at most.
pub const MOST_ROOTS: usize = 256;
/// The maximum length of a root's name in a result, in bytes.
pub const ROOT_BYTES: usize = 300;

/// The task of collecting garbage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GcTask {
    /// Whether it is only found out what would be deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// The number of bytes that suffice: no more is deleted after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// The jobs whose results and logs are given up first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gives_up: Vec<JobId>,
    /// The time limit, in seconds.
    pub timeout_seconds: u32,
}

/// The result of collecting garbage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GcResult {
    /// Whether nothing was deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// The number of store paths that were deleted, or would be.
    pub paths: u64,
    /// The NAR size of the store paths that would be deleted, in bytes; only of a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nar_bytes: Option<u64>,
    /// The largest of the store paths that would be deleted, at most 64; only of a dry run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub largest: Vec<StorePath>,
    /// The number of jobs whose results were given up, or would be. What only they hold is not counted in a dry run.
    pub given_up_jobs: u64,
    /// The free space of the store's disk before, in bytes.
    pub free_bytes_before: u64,
    /// The free space of the store's disk afterwards, in bytes.
    pub free_bytes_after: u64,
}

/// The task of finding what holds a store path, or all roots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RootsTask {
    /// The store path; by default all roots are listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<StorePath>,
    /// The time limit, in seconds.
    pub timeout_seconds: u32,
}

/// What holds store paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RootsResult {
    /// The roots, at most 256. None means that the path may be deleted.
    pub roots: Vec<Root>,
    /// The number of further ones.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub roots_left_out: u64,
}

/// A root: what is not deleted, and with it nothing that it refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Root {
    /// The link, or the process (`/proc/…`) as Nix names it; `{censored}` if Nix does not tell it to the user of jobs. At most 300
    /// bytes of it.
    pub link: String,
    /// The store path that it holds by itself.
    pub path: StorePath,
    /// The job whose result it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
}

impl GcResult {
    /// Leaves out paths above about this many bytes.
    pub(crate) fn shorten(&mut self, max_bytes: usize) {
        self.largest.truncate(max_bytes / 100);
    }
}

impl RootsResult {
    /// Leaves out roots above about this many bytes.
    pub(crate) fn shorten(&mut self, max_bytes: usize) {
        let mut bytes = 0;
        let fits = self.roots.iter().take_while(|root| {
            bytes += root.link.len() + root.path.as_str().len() + 80;
            bytes <= max_bytes
        });
        let kept = fits.count();
        self.roots_left_out += (self.roots.len() - kept) as u64;
        self.roots.truncate(kept);
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

//! The activities of a running job: a bounded snapshot of its builds and transfers.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::StorePath;

/// The most builds of a snapshot.
pub const MOST_BUILDS: usize = 64;
/// The most transfers of a snapshot.
pub const MOST_TRANSFERS: usize = 32;
/// The most bytes of each text of a snapshot.
const MAX_TEXT_BYTES: usize = 240;

/// What a running job of Nix is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Activities {
    /// The builds that run, and those of this job that have ended: the running ones first, then the newest; at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub builds: Vec<BuildActivity>,
    /// The number of further builds that run or have ended.
    #[serde(default)]
    pub builds_left_out: u64,
    /// What is being fetched or copied: at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transfers: Vec<Transfer>,
    /// The number of further transfers.
    #[serde(default)]
    pub transfers_left_out: u64,
    /// The counts of derivations. What is expected grows while Nix finds out more.
    #[serde(default)]
    pub derivations: Counts,
    /// The counts of store paths that are fetched.
    #[serde(default)]
    pub paths: Counts,
    /// The current activity, such as `evaluating`, if nothing is built or fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<String>,
}

/// The build of a derivation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BuildActivity {
    /// The derivation.
    pub derivation: StorePath,
    /// How far it is.
    pub state: BuildState,
    /// The machine on which it is built, if it is another one, such as `ssh://builder`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The phase of its builder, such as `buildPhase`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The last line of its log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_line: Option<String>,
    /// When it began.
    pub since: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The derivations that it needs, of those in the list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<StorePath>,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildState {
    /// It runs.
    Running,
    /// It has ended, and Nix printed no error about it.
    Ended,
    /// It has failed.
    Failed,
}

/// A store path or a file that is being fetched or copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Transfer {
    /// The store path, the address, or another text that names it.
    pub what: String,
    /// The store that it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// When it began.
    pub since: Timestamp,
    /// The bytes that have arrived.
    #[serde(default)]
    pub done_bytes: u64,
    /// The bytes that are expected; 0 if that is not known.
    #[serde(default)]
    pub expected_bytes: u64,
}

/// Counts of one kind of work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counts {
    /// Done.
    pub done: u64,
    /// Expected in all, with those that are done.
    pub expected: u64,
    /// In progress.
    pub running: u64,
    /// Failed.
    pub failed: u64,
}

impl Counts {
    /// Returns the number of those that wait.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        let begun = self.done.saturating_add(self.running).saturating_add(self.failed);
        self.expected.saturating_sub(begun)
    }
}

impl Activities {
    /// Returns it within its bounds: the process that made it is a job's, which is not trusted.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let more = self.builds.len().saturating_sub(MOST_BUILDS) as u64;
        self.builds_left_out = self.builds_left_out.saturating_add(more);
        self.builds.truncate(MOST_BUILDS);
        let more = self.transfers.len().saturating_sub(MOST_TRANSFERS) as u64;
        self.transfers_left_out = self.transfers_left_out.saturating_add(more);
        self.transfers.truncate(MOST_TRANSFERS);
        for build in &mut self.builds {
            for text in [&mut build.machine, &mut build.phase, &mut build.last_line]
                .into_iter()
                .flatten()
            {
                shorten(text);
            }
            build.needs.truncate(MOST_BUILDS);
        }
        for transfer in &mut self.transfers {
            shorten(&mut transfer.what);
            transfer.from.as_mut().map(shorten);
        }
        self.activity.as_mut().map(shorten);
        self
    }
}

fn shorten(text: &mut String) {
    if text.len() > MAX_TEXT_BYTES {
        let end = (0..=MAX_TEXT_BYTES).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_of_a_hostile_process_is_bounded() {
        let build = BuildActivity {
            derivation: StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a.drv").expect("a path"),
            state: BuildState::Running,
            machine: Some("é".repeat(1000)),
            phase: None,
            last_line: Some("x".repeat(1000)),
            since: Timestamp::UNIX_EPOCH,
            until: None,
            needs: Vec::new(),
        };
        let transfer = Transfer {
            what: "y".repeat(1000),
            from: None,
            since: Timestamp::UNIX_EPOCH,
            done_bytes: u64::MAX,
            expected_bytes: 0,
        };
        let bounded = Activities {
            builds: vec![build; 1000],
            builds_left_out: u64::MAX - 1,
            transfers: vec![transfer; 1000],
            activity: Some("z".repeat(1000)),
            ..Activities::default()
        }
        .bounded();
        assert_eq!((bounded.builds.len(), bounded.builds_left_out), (64, u64::MAX));
        assert_eq!((bounded.transfers.len(), bounded.transfers_left_out), (32, 968));
        assert!(serde_json::to_string(&bounded).expect("JSON").len() < 64 * 1024);
        let counts = Counts {
            done: u64::MAX,
            expected: 3,
            running: 1,
            failed: 1,
        };
        assert_eq!(counts.waiting(), 0);
    }
}

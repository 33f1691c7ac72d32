//! Commands about the leaf's own NixOS system (docs/deploy.md).

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use super::{JobAccepted, OpenChange};
use crate::change::{Decision, SystemMode};
use crate::id::{Caller, ChangeId, StorePath};
use crate::job::verify::Stated;

/// The maximum number of generations in a reply.
pub const MAX_GENERATIONS: usize = 256;

commands! {
    "system";

    /// Switches the leaf to another system, and installs it once that is confirmed: by a witness over a new connection, or by a person
    /// with `leaf.confirm`. Otherwise the leaf goes back by itself. Answered when the way back is armed; the switch begins some
    /// seconds later.
    Switch: SwitchSystem = "switch" {
        kind: Change, about: Leaf, needs: Nothing, disk: Takes, power: RunsCode,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The toplevel of the system, which the leaf's store has.
        toplevel: StorePath,
        /// The time in which it must be confirmed, in seconds: 30 to 3600, without it 300.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u32>,
        /// Whether only a person can confirm it: where no witness is set, or it does not answer now.
        #[serde(default, skip_serializing_if = "is_false")]
        no_witness: bool,
        /// The units whose failure is no reason to go back; at most 32.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        allow_failed: Vec<String>,
        /// Whether another kernel, initrd or kernel parameters than those of the booted system are accepted, which come into use at the
        /// next boot, and which nobody guards.
        #[serde(default, skip_serializing_if = "is_false")]
        uncounted: bool,
    } -> OpenChange

    /// Switches the leaf to another system until the next boot, which is of the system of before. Confirmed as `system.switch`.
    Test: TestSystem = "test" {
        kind: Change, about: Leaf, needs: Nothing, disk: Takes, power: RunsCode,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The toplevel of the system, which the leaf's store has.
        toplevel: StorePath,
        /// The time in which it must be confirmed, in seconds: 30 to 3600, without it 300.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u32>,
        /// Whether only a person can confirm it: where no witness is set, or it does not answer now.
        #[serde(default, skip_serializing_if = "is_false")]
        no_witness: bool,
        /// The units whose failure is no reason to go back; at most 32.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        allow_failed: Vec<String>,
    } -> OpenChange

    /// Installs another system for the next boot, without activating it. Nothing is confirmed, since nothing is in use before; nobody
    /// guards that boot.
    Boot: BootSystem = "boot" {
        kind: Change, about: Leaf, needs: Nothing, disk: Takes, power: RunsCode,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The toplevel of the system, which the leaf's store has.
        toplevel: StorePath,
        /// The consent to a boot without a way back: if it fails, nothing boots the system before. Without it the command is refused.
        #[serde(default, skip_serializing_if = "is_false")]
        uncounted: bool,
    } -> OpenChange

    /// Shows the leaf's systems: what runs, what was booted, the generations of the profile, and its last changes.
    Generations: ListGenerations = "generations" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Answered,
    } {} -> SystemReport

    /// Verifies the system that runs, as a job: where each store path of its closure comes from, and what in `/etc` differs from it.
    Verify: VerifySystem = "verify" {
        kind: Job, about: Leaf, needs: Nix, disk: Takes, power: Builds,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The NAR hashes of store paths by signed statements, at most 1024. The caller has checked the signatures.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        stated: Vec<Stated>,
        /// Whether the contents of each store path are hashed, which reads all of the system from the disk.
        #[serde(default, skip_serializing_if = "is_false")]
        contents: bool,
        /// The time limit of the job, in seconds; by default the leaf's setting.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
    } -> JobAccepted
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// The systems of a leaf.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SystemReport {
    /// The system that runs (`/run/current-system`); absent if the host is no NixOS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<StorePath>,
    /// The system whose kernel runs (`/run/booted-system`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<StorePath>,
    /// The number of the generation that the profile names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<u64>,
    /// The generations of the profile, newest first, at most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generations: Vec<Generation>,
    /// The change of the system that is not decided yet, if one is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<OpenChange>,
    /// Whether the open change is in use, and can be confirmed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub can_be_confirmed: bool,
    /// The last changes of the system that were decided, newest first, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decided: Vec<DecidedSwitch>,
}

/// A generation of the host's profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Generation {
    /// Its number.
    pub number: u64,
    /// Its system.
    pub toplevel: StorePath,
    /// When it was made, if the file system says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_at: Option<Timestamp>,
}

/// A change of the system that was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DecidedSwitch {
    /// The change.
    pub id: ChangeId,
    /// The decision on the change: `confirmed` or `back`.
    pub decision: Decision,
    /// The system that was switched to, if the record says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toplevel: Option<StorePath>,
    /// The mode of the change, if the record names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<SystemMode>,
    /// Who asked for it, if the record says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<Caller>,
    /// Who confirmed it: a caller's name, or the fingerprint of a witness's key (`SHA256:…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why it went back, or why it is confirmed and not installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When, by the leaf's wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

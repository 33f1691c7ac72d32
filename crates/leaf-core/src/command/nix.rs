//! Commands about Nix: each begins a job.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use crate::id::{JobId, StorePath};
use crate::job::{Installable, JobPhase};
use crate::placement::demand::{Features, Priority};
use crate::placement::offer::Offer;
use crate::placement::work::Work;
use crate::provenance::envelope::Envelope;
use crate::session::SessionTask;
use crate::transfer::stored::Stored;
use crate::transfer::{Lacking, SentPath};

commands! {
    "nix";

    /// Runs a Nix build of one installable or several.
    Build: Build = "build" {
        kind: Job, about: Leaf, needs: Nix, disk: Takes, power: Builds,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The installable to build, if it is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        installable: Option<Installable>,
        /// The installables to build, if they are several: at most 32, of 16 KiB together.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        installables: Vec<Installable>,
        /// Whether a failure does not prevent the build of what does not depend on what failed. The job fails all the same.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keep_going: bool,
        /// Whether a flake is evaluated impurely: a leaf refuses it unless its policy has it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        impure: bool,
        /// The time limit of the job, in seconds; by default the leaf's setting.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
        /// The systems for which it may be built, such as `x86_64-linux`, at most 8: one is enough. Without them, any.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        systems: BTreeSet<String>,
        /// The count of each of the leaf's features that the build takes while it runs, such as `{"kvm": 1}`.
        #[serde(default, skip_serializing_if = "Features::is_empty")]
        features: Features,
        /// Its priority among the queued jobs.
        #[serde(default, skip_serializing_if = "Priority::is_normal")]
        priority: Priority,
        /// Whether it is refused with `no_room` instead of being queued, unless it would start at once, or a job about the same is open.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        only_if_room: bool,
        /// The work that it is an attempt of: it goes to both leaves of the work, of which the second takes it over if the first is gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        work: Option<Work>,
    } -> JobAccepted

    /// Evaluates a Nix expression to JSON: purely, if it is of a flake, and without building anything.
    Eval: Eval = "eval" {
        kind: Job, about: Leaf, needs: Nix, disk: Takes, power: Builds,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The flake reference or the file to evaluate.
        installable: Installable,
        /// A function in the Nix language, whose result for the installable is the value: at most 16 KiB.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        apply: Option<String>,
        /// Whether a flake is evaluated impurely: a leaf refuses it unless its policy has it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        impure: bool,
        /// The time limit of the job, in seconds; by default 60.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
    } -> JobAccepted

    /// Prints the environment in which a derivation is built, as JSON: `nix print-dev-env`. It builds the dependencies.
    PrintEnv: PrintEnv = "print_env" {
        kind: Job, about: Leaf, needs: Nix, disk: Takes, power: Builds,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The flake reference, the file or the derivation.
        installable: Installable,
        /// Whether a flake is evaluated impurely: a leaf refuses it unless its policy has it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        impure: bool,
        /// The time limit of the job, in seconds; by default the leaf's setting.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
    } -> JobAccepted

    /// Builds something a second time, and fails if that gives other bytes: `nix build --rebuild`.
    Check: Check = "check" {
        kind: Job, about: Leaf, needs: Nix, disk: Takes, power: Builds,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The flake reference, the file or the derivation; what is not built yet is built first.
        installable: Installable,
        /// Whether a flake is evaluated impurely: a leaf refuses it unless its policy has it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        impure: bool,
        /// The time limit of the job, in seconds; by default the leaf's setting.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
    } -> JobAccepted

    /// Builds packages, and runs a program with them, under a user of its own. The job's result has its exit status and the end of its output.
    Run: Run = "run" {
        kind: Job, about: Leaf, needs: Nix, disk: Takes, power: RunsCode,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The packages: at most 32, of 16 KiB together. Their `bin` directories are the beginning of the program's `PATH`.
        packages: Vec<Installable>,
        /// The program, a path or a name that is looked up on its `PATH`, and its arguments: at most 256, of 32 KiB together.
        command: Vec<String>,
        /// Variables of its environment: at most 64, of 32 KiB together. They are a part of the job's record.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        environment: BTreeMap<String, String>,
        /// Whether its `PATH` has nothing but the packages.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pure: bool,
        /// The time limit, in seconds, of the build, and again of the program, unless it has a session; by default the leaf's setting.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
        /// The session through which its input and output go. Without it, it has no input, and the result has the end of its output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<SessionTask>,
    } -> JobAccepted

    /// Begins a shell in the environment of a derivation's build, or with packages: `nix develop`. It is a program as that of `run`.
    Develop: Develop = "develop" {
        kind: Job, about: Leaf, needs: Nix, disk: Takes, power: RunsCode,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The flake reference, the file or the derivation whose build environment it has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        installable: Option<Installable>,
        /// The packages, if there is no installable: at most 32, of 16 KiB together. Their `bin` directories are the beginning of its `PATH`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        packages: Vec<Installable>,
        /// The program that the shell becomes, and its arguments: at most 256, of 32 KiB together. Without it, the shell is interactive on a
        /// terminal, and else reads commands from its standard input.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        command: Vec<String>,
        /// Bash commands that are run last, before the command: at most 16 KiB. They are a part of the job's record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shell_hook: Option<String>,
        /// Variables of its environment: at most 64, of 32 KiB together. They are a part of the job's record.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        environment: BTreeMap<String, String>,
        /// Whether its `PATH` has no directory of the host.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pure: bool,
        /// Whether a flake is evaluated impurely: a leaf refuses it unless its policy has it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        impure: bool,
        /// The time limit, in seconds, of the build, and again of the program, unless it has a session; by default the leaf's setting.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
        /// The session through which its input and output go. Without it, there must be a command, and the result has the end of its output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<SessionTask>,
    } -> JobAccepted

    /// Returns the leaf's signed statements about what built a store path: of the jobs that it remembers, newest first.
    Attestations: ListAttestations = "attestations" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Answered,
    } {
        /// The store path.
        path: StorePath,
    } -> Attestations

    /// Asks the leaf what would come of a build. It changes nothing, and promises nothing.
    Offer: OfferBuild = "offer" {
        kind: Query, about: Leaf, needs: Nix, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The build.
        build: Build,
    } -> Offer

    /// Says which store paths the caller means to send, and asks what the leaf lacks of them. Nothing is recorded; the leaf keeps
    /// room for an upload.
    Put: PutPaths = "put" {
        kind: Query, about: Leaf, needs: Nix, disk: Takes, power: Builds,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The store paths: at most 512.
        paths: Vec<SentPath>,
    } -> Lacking

    /// Says what the leaf's store has of these store paths, and offers their NARs to be read. Nothing is recorded; the leaf holds
    /// the paths for a day.
    Get: GetPaths = "get" {
        kind: Query, about: Leaf, needs: Nix, disk: Untouched, power: Builds,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The store paths: at most 512.
        paths: Vec<StorePath>,
        /// Whether their closure is listed, at most 8192 paths, instead of their NARs being offered.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        closure: bool,
    } -> Stored

    /// Deletes what nothing needs from the Nix store: no GC root, no running build, no container and no result of a job. It is
    /// admitted where the disk is too full for other commands.
    Gc: Gc = "gc" {
        kind: Job, about: Leaf, needs: Nix, disk: Frees, power: Changes,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// Whether it is only found out what would be deleted.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dry_run: bool,
        /// Give up the results and the logs of jobs that ended longer ago than this, in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        older_than_seconds: Option<u64>,
        /// Delete no more once this many bytes are freed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        free_bytes: Option<u64>,
        /// The time limit of the job, in seconds; by default the leaf's setting.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
    } -> JobAccepted

    /// Finds what keeps a store path from being deleted, or lists all GC roots.
    Roots: Roots = "roots" {
        kind: Job, about: Leaf, needs: Nix, disk: Takes, power: Builds,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The store path; by default all roots are listed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<StorePath>,
        /// The time limit of the job, in seconds; by default the leaf's setting.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
    } -> JobAccepted

    /// Compares the closures of two store paths, above all of two NixOS systems: packages, sizes, and units.
    Diff: Diff = "diff" {
        kind: Job, about: Leaf, needs: Nix, disk: Takes, power: Builds,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The store path of before, which is in the store.
        from: StorePath,
        /// The store path of afterwards, which is in the store.
        to: StorePath,
        /// The time limit of the job, in seconds; by default the leaf's setting.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
    } -> JobAccepted
}

impl Build {
    /// Returns the command to build these installables, in the form that the oldest leafd knows.
    #[must_use]
    pub fn of(installables: impl IntoIterator<Item = Installable>) -> Self {
        let mut installables: Vec<Installable> = installables.into_iter().collect();
        Self {
            installable: (installables.len() == 1).then(|| installables.pop()).flatten(),
            installables,
            keep_going: false,
            impure: false,
            timeout_seconds: None,
            systems: BTreeSet::new(),
            features: Features::new(),
            priority: Priority::Normal,
            only_if_room: false,
            work: None,
        }
    }
}

/// A job that was accepted and will run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobAccepted {
    /// The job's id.
    pub job: JobId,
    /// Its phase.
    pub phase: JobPhase,
}

/// A leaf's signed statements about what built a store path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attestations {
    /// The public key that the leaf signs with now, as a line of a `.pub` file; absent if it makes no statements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The statements, newest first: at most 8.
    pub attestations: Vec<Attestation>,
}

/// A leaf's signed statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attestation {
    /// The job that it is about.
    pub job: JobId,
    /// The signed statement.
    pub envelope: Envelope,
}

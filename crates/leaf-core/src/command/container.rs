//! Commands about containers.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use crate::container::{Container, ContainerSource, ContainerStats, ForeignContainer, Revision};
use crate::id::ContainerName;
use crate::spec::{ContainerOptions, ContainerSpec};

commands! {
    "container";

    /// Makes a container. The answer comes as soon as that is stored: the phase is `creating`, or for one of a flake or a
    /// template `building`, with `build_job` as the job to follow; `container.show` says how it goes on.
    Create: CreateContainer = "create" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// Its name.
        name: ContainerName,
        /// Where its system comes from.
        source: ContainerSource,
        /// Whether it is to be started, too.
        #[serde(default)]
        start: bool,
        /// What else is wanted of it.
        #[serde(default, skip_serializing_if = "ContainerOptions::is_default")]
        options: ContainerOptions,
    } -> Container

    /// Makes a container, or what is wanted of one that is there, what this spec says. The answer comes as soon as that is
    /// stored; `container.show` says how it goes on. The same spec again changes nothing.
    Apply: ApplyContainer = "apply" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: CheckedOrAbsent, success: Answered, while_stuck: Refused,
    } {
        /// Its name.
        name: ContainerName,
        /// All that is wanted of it.
        spec: ContainerSpec,
    } -> Container

    /// Gives a container another system, or builds that of its source anew. The answer comes as soon as that is stored; the
    /// container runs on with what it has until the new one is there, and goes back to it if that does not become ready.
    Update: UpdateContainer = "update" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Checked, success: Answered, while_stuck: Refused,
    } {
        /// Which one.
        name: ContainerName,
        /// Where the system comes from; from where it did if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<ContainerSource>,
    } -> Container

    /// Changes a part of what is wanted of a container. The answer comes as soon as that is stored.
    Set: SetContainer = "set" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Checked, success: Answered, while_stuck: Refused,
    } {
        /// Which one.
        name: ContainerName,
        /// A JSON merge patch (RFC 7396) to its spec: what is `null` in it goes, objects are merged, all else is replaced.
        patch: serde_json::Value,
    } -> Container

    /// Wants again what was wanted of a container before; whether it runs stays as it is. The answer comes as soon as that is
    /// stored.
    Rollback: RollbackContainer = "rollback" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Checked, success: Answered, while_stuck: Refused,
    } {
        /// Which one.
        name: ContainerName,
        /// The generation to go back to; the last one that differs from what is wanted now if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
    } -> Container

    /// Takes over a container that somebody else made on this host, with its files. The answer comes as soon as that is
    /// stored; one that runs is restarted.
    Adopt: AdoptContainer = "adopt" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// Which one.
        name: ContainerName,
    } -> Container

    /// Says what a spec would change, and changes nothing.
    Diff: DiffContainer = "diff" {
        kind: Query, about: Container(name), needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// Which one.
        name: ContainerName,
        /// What would be wanted of it.
        spec: ContainerSpec,
    } -> SpecDiff

    /// Lists what was wanted of a container, the oldest first.
    History: ShowContainerHistory = "history" {
        kind: Query, about: Container(name), needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// Which one.
        name: ContainerName,
    } -> ContainerHistory

    /// Says what a container uses now.
    Stats: ReadContainerStats = "stats" {
        kind: Query, about: Container(name), needs: Containers, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// Which one.
        name: ContainerName,
    } -> ContainerStats

    /// Starts a container, and answers when it is ready.
    Start: StartContainer = "start" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Checked, success: ContainerRuns, while_stuck: Refused,
    } {
        /// Which one.
        name: ContainerName,
    } -> Container

    /// Stops a container, and answers when it has ended.
    Stop: StopContainer = "stop" {
        kind: Change, about: Container(name), needs: Containers, disk: Frees,
        if_generation: Checked, success: ContainerStopped, while_stuck: Refused,
    } {
        /// Which one.
        name: ContainerName,
    } -> Container

    /// Stops a container if it runs, and removes it with all its files.
    Destroy: DestroyContainer = "destroy" {
        kind: Change, about: Container(name), needs: Containers, disk: Frees,
        if_generation: Checked, success: ContainerGone, while_stuck: Refused,
    } {
        /// Which one.
        name: ContainerName,
    } -> Destroyed

    /// Lists the containers of the leaf, and those on its host that are somebody else's.
    List: ListContainers = "list" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {} -> ContainerList

    /// Shows one container.
    Show: ShowContainer = "show" {
        kind: Query, about: Container(name), needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// Which one.
        name: ContainerName,
    } -> Container

    /// Reads a container's console: its end, or with a cursor what came since.
    Logs: ReadContainerLog = "logs" {
        kind: Query, about: Container(name), needs: Containers, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// Which one.
        name: ContainerName,
        /// At most this many lines; 200 if not given, and never more than 512 KiB.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lines: Option<u32>,
        /// Only what was written at this time or later.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Timestamp>,
        /// Only what follows the answer that gave this cursor.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<String>,
    } -> LogText
}

/// The containers of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerList {
    /// All of them, sorted by name, without their revisions.
    pub containers: Vec<Container>,
    /// Those on its host that are somebody else's, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<ForeignContainer>,
}

/// What was wanted of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerHistory {
    /// The revisions that are remembered, the oldest first.
    pub revisions: Vec<Revision>,
}

/// What a spec would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpecDiff {
    /// Each value that would be another, sorted by its place.
    pub changes: Vec<SpecChange>,
}

/// One value of a spec that would be another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpecChange {
    /// Its place: the names of the fields on the way to it.
    pub path: Vec<String>,
    /// What it is now; nothing if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<serde_json::Value>,
    /// What it would be; nothing if it would go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<serde_json::Value>,
}

/// A container that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Destroyed {
    /// Its name, which is free again.
    pub name: ContainerName,
}

/// The end of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogText {
    /// The lines, each with its end. What is not UTF-8 is replaced.
    pub text: String,
    /// Whether lines before these were left out.
    pub truncated: bool,
    /// Where to read on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

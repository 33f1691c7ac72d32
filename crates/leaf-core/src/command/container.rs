//! Commands about containers.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use crate::container::{Container, ContainerStats, ForeignContainer, Revision};
use crate::id::ContainerName;
use crate::spec::{ContainerOptions, ContainerSource, ContainerSpec, SpecDiff};

commands! {
    "container";

    /// Creates a container. Answered as soon as the desired state is stored: the phase is `creating`, or `building` for a flake or
    /// a template, with `build_job` as the job to follow; `container.show` tells how it proceeds.
    Create: CreateContainer = "create" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// Where its system comes from.
        source: ContainerSource,
        /// Whether to start it as well.
        #[serde(default)]
        start: bool,
        /// Its other options.
        #[serde(default, skip_serializing_if = "ContainerOptions::is_default")]
        options: ContainerOptions,
    } -> Container

    /// Creates a container from this spec, or makes the spec the desired state of an existing one. Answered as soon as that is
    /// stored; `container.show` tells how it proceeds. Idempotent.
    Apply: ApplyContainer = "apply" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: CheckedOrAbsent, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// The whole desired state.
        spec: ContainerSpec,
    } -> Container

    /// Gives a container another system, or builds the one of its source anew. Answered as soon as that is stored; the
    /// container keeps its system until the new one is built, and goes back to it if the new one does not become ready.
    Update: UpdateContainer = "update" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Checked, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// Where the system comes from; its present source if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<ContainerSource>,
    } -> Container

    /// Changes a part of a container's spec. Answered as soon as that is stored.
    Set: SetContainer = "set" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Checked, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// A JSON merge patch (RFC 7396) of its spec: `null` removes, objects are merged, everything else is replaced.
        patch: serde_json::Value,
    } -> Container

    /// Goes back to an earlier revision of a container; whether it runs stays as it is. Answered as soon as that is stored.
    Rollback: RollbackContainer = "rollback" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Checked, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// The generation to go back to; the newest that differs from the present one if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
    } -> Container

    /// Adopts a container of this host that the leaf did not create, with its files. Answered as soon as that is stored; a
    /// running one is restarted.
    Adopt: AdoptContainer = "adopt" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Container

    /// Tells what a spec would change, without changing anything.
    Diff: DiffContainer = "diff" {
        kind: Query, about: Container(name), needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// The spec to compare with the present one.
        spec: ContainerSpec,
    } -> SpecDiff

    /// Lists the revisions of a container, the oldest first.
    History: ShowContainerHistory = "history" {
        kind: Query, about: Container(name), needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> ContainerHistory

    /// Tells the resources that a container uses.
    Stats: ReadContainerStats = "stats" {
        kind: Query, about: Container(name), needs: Containers, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> ContainerStats

    /// Starts a container, and answers when it is ready.
    Start: StartContainer = "start" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Checked, success: ContainerRuns, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Container

    /// Stops a container, and answers when it has ended.
    Stop: StopContainer = "stop" {
        kind: Change, about: Container(name), needs: Containers, disk: Frees,
        if_generation: Checked, success: ContainerStopped, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Container

    /// Pauses a container: its processes keep their memory and get no processor time. Answered when they are frozen.
    Pause: PauseContainer = "pause" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Checked, success: ContainerRuns, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Container

    /// Resumes a paused container, and answers when its processes go on.
    Resume: ResumeContainer = "resume" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes,
        if_generation: Checked, success: ContainerRuns, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Container

    /// Stops a container if it runs, and removes it with all its files.
    Destroy: DestroyContainer = "destroy" {
        kind: Change, about: Container(name), needs: Containers, disk: Frees,
        if_generation: Checked, success: ContainerGone, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Destroyed

    /// Lists the leaf's containers, and the others on its host.
    List: ListContainers = "list" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {} -> ContainerList

    /// Shows one container.
    Show: ShowContainer = "show" {
        kind: Query, about: Container(name), needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Container

    /// Reads the end of a container's log, or with a cursor what was added since.
    Logs: ReadContainerLog = "logs" {
        kind: Query, about: Container(name), needs: Containers, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// At most this many lines; 200 if not given, and never more than 512 KiB.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lines: Option<u32>,
        /// Only lines written at this time or later.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Timestamp>,
        /// Only lines after the answer that gave this cursor.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<String>,
    } -> LogText
}

/// The containers of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerList {
    /// All of them, sorted by name, without their revisions.
    pub containers: Vec<Container>,
    /// The containers on its host that are not the leaf's, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<ForeignContainer>,
}

/// The revisions of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerHistory {
    /// The revisions that are remembered, the oldest first.
    pub revisions: Vec<Revision>,
}

/// A container that was destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Destroyed {
    /// Its name, which is free again.
    pub name: ContainerName,
}

/// A page of a container's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogText {
    /// The lines, each with its end. What is not UTF-8 is replaced.
    pub text: String,
    /// Whether lines before these were left out.
    pub truncated: bool,
    /// The cursor of the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

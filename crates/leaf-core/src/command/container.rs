//! Commands about containers.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use crate::container::{Container, ContainerStats, EntryProblem, ForeignContainer, Revision};
use crate::id::ContainerName;
use crate::spec::{ContainerOptions, ContainerSource, ContainerSpec, SpecDiff};

commands! {
    "container";

    /// Creates a container. Answered as soon as the desired state is recorded: the phase is `creating`, or `building`
    /// for a flake or a template, with the job's id in `build_job`; `container.show` shows its progress.
    Create: CreateContainer = "create" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes, power: Builds,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// The source of its system.
        source: ContainerSource,
        /// Whether to start it after it is created.
        #[serde(default)]
        start: bool,
        /// Its other options.
        #[serde(default, skip_serializing_if = "ContainerOptions::is_default")]
        options: ContainerOptions,
    } -> Container

    /// Creates a container from a spec, or makes the spec the desired state of an existing one. Answered as soon as
    /// that is recorded; `container.show` shows its progress. Idempotent.
    Apply: ApplyContainer = "apply" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes, power: Builds,
        if_generation: CheckedOrAbsent, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// The complete spec.
        spec: ContainerSpec,
    } -> Container

    /// Updates a container to another system, or builds its present source again. Answered as soon as that is recorded;
    /// the container keeps its system until the new one is built, and is reverted to it if the new one does not become
    /// ready.
    Update: UpdateContainer = "update" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes, power: Builds,
        if_generation: Checked, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// The source of the system; by default the present one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<ContainerSource>,
    } -> Container

    /// Changes parts of a container's spec. Answered as soon as that is recorded.
    Set: SetContainer = "set" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes, power: Builds,
        if_generation: Checked, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// A JSON merge patch (RFC 7396) of its spec: `null` removes a field, objects are merged, other values replace.
        patch: serde_json::Value,
    } -> Container

    /// Restores an earlier revision of a container; whether it runs is not changed. Answered as soon as that is
    /// recorded.
    Rollback: RollbackContainer = "rollback" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes, power: Changes,
        if_generation: Checked, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// The generation to restore; by default the latest that differs from the present one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
    } -> Container

    /// Adopts a foreign container of the host, with its files. Answered as soon as that is recorded; a running one is
    /// restarted.
    Adopt: AdoptContainer = "adopt" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes, power: Changes,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Container

    /// Returns what applying a spec would change, without changing anything.
    Diff: DiffContainer = "diff" {
        kind: Query, about: Container(name), needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// The spec to compare with the present one.
        spec: ContainerSpec,
    } -> SpecDiff

    /// Lists the revisions of a container, oldest first.
    History: ShowContainerHistory = "history" {
        kind: Query, about: Container(name), needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> ContainerHistory

    /// Returns a container's resource usage.
    Stats: ReadContainerStats = "stats" {
        kind: Query, about: Container(name), needs: Containers, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> ContainerStats

    /// Starts a container. Answered when it is ready.
    Start: StartContainer = "start" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes, power: Changes,
        if_generation: Checked, success: ContainerRuns, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Container

    /// Stops a container. Answered when it has stopped.
    Stop: StopContainer = "stop" {
        kind: Change, about: Container(name), needs: Containers, disk: Frees, power: Changes,
        if_generation: Checked, success: ContainerStopped, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Container

    /// Pauses a container: its processes keep their memory and get no processor time. Answered when they are frozen.
    Pause: PauseContainer = "pause" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes, power: Changes,
        if_generation: Checked, success: ContainerRuns, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Container

    /// Resumes a paused container. Answered when its processes are thawed.
    Resume: ResumeContainer = "resume" {
        kind: Change, about: Container(name), needs: Containers, disk: Takes, power: Changes,
        if_generation: Checked, success: ContainerRuns, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Container

    /// Stops a container if it is running, and removes it with all its files.
    Destroy: DestroyContainer = "destroy" {
        kind: Change, about: Container(name), needs: Containers, disk: Frees, power: Changes,
        if_generation: Checked, success: ContainerGone, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Destroyed

    /// Lists the leaf's containers and the foreign ones on its host.
    List: ListContainers = "list" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {} -> ContainerList

    /// Shows one container.
    Show: ShowContainer = "show" {
        kind: Query, about: Container(name), needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
    } -> Container

    /// Reads the end of a container's log or, with a cursor, what was added since.
    Logs: ReadContainerLog = "logs" {
        kind: Query, about: Container(name), needs: Containers, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The container's name.
        name: ContainerName,
        /// The maximum number of lines, by default 200. A reply has at most 512 KiB.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lines: Option<u32>,
        /// Only lines written at or after this time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Timestamp>,
        /// Only lines after the page that returned this cursor.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<String>,
    } -> LogText
}

/// The containers of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerList {
    /// The containers, sorted by name, without their revisions.
    pub containers: Vec<Container>,
    /// The foreign containers of its host, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<ForeignContainer>,
    /// The files of its host's containers, of any owner, that can't be used: unreadable ones, and foreign containers
    /// whose names a leaf does not accept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<EntryProblem>,
}

/// The revisions of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerHistory {
    /// The remembered revisions, oldest first.
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
    /// The lines, each with its line end. Invalid UTF-8 is replaced.
    pub text: String,
    /// Whether earlier lines were left out.
    pub truncated: bool,
    /// The cursor of the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

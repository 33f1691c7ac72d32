//! What a leaf knows: the sum of its events. [`apply`] adds one event to it.
//!
//! The state is a set of entries by key (`leaf`, `snapshot`, `device.<id>`, `container.<token>`, `job.<id>`): so it is stored in
//! the journal, shown in the KV bucket `leaf_state`, and cut into the parts of a snapshot.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cause::Cause;
use crate::container::{
    Container, ContainerPhase, ContainerSource, Desired, DesiredRun, REMEMBERED_REVISIONS, Revision,
};
use crate::event::{
    ContainerDesired, ContainerStep, Event, Fact, HostFacts, LeafSnapshotted, StopCause, to_json,
};
use crate::hardware::{Device, DeviceStatus};
use crate::id::{Caller, ContainerName, DeviceId, InstanceId, JobId, LeafName};
use crate::job::{Job, JobPhase};

/// How many ended jobs are remembered.
pub const REMEMBERED_JOBS: usize = 200;

/// What a leaf knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The sequence number of the last event in it; 0 before the first.
    pub sequence: u64,
    /// The sequence number with which the newest snapshot begins; 0 before the first.
    pub snapshot_sequence: u64,
    /// The leaf itself, from the first start on.
    pub leaf: Option<LeafState>,
    /// The devices that it has seen.
    pub devices: BTreeMap<DeviceId, Device>,
    /// Its containers.
    pub containers: BTreeMap<ContainerName, Container>,
    /// Its jobs: all that have not ended, and the last [`REMEMBERED_JOBS`] that have.
    pub jobs: BTreeMap<JobId, Job>,
    partial: Partial,
}

/// The parts of a snapshot that have come so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Partial {
    parts: u32,
    entries: BTreeMap<String, Value>,
}

/// The leaf itself: the entry `leaf`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeafState {
    /// Its name.
    pub name: LeafName,
    /// The last run of `leafd`.
    pub instance: InstanceId,
    /// Its version.
    pub version: String,
    /// When that run began.
    pub started_at: Timestamp,
    /// The host it ran on.
    pub host: HostFacts,
    /// Whether that run has ended as it should.
    pub stopped: bool,
}

/// An entry of the state, as it stands there.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Leaf(&'a LeafState),
    Snapshot(u64),
    Device(&'a Device),
    Container(&'a Container),
    Job(&'a Job),
}

/// Why entries are not a state.
#[derive(Debug, thiserror::Error)]
#[error("the entry {key:?} of the state can't be read")]
pub struct EntryError {
    /// The entry's key.
    pub key: String,
    /// What serde says, if the key is known.
    pub source: Option<serde_json::Error>,
}

/// Adds one event to the state, and returns the keys of the entries that it changed.
///
/// An event that does not fit (of a container that the state doesn't have, say) changes nothing but the sequence
/// number: a replay may begin in the middle of a history.
pub fn apply(state: &mut State, event: &Event) -> Vec<String> {
    state.sequence = event.sequence;
    if !matches!(event.fact, Fact::LeafSnapshotted(_)) {
        state.partial = Partial::default();
    }
    let now = event.time;
    match &event.fact {
        Fact::LeafStarted(f) => {
            state.leaf = Some(LeafState {
                name: f.leaf.clone(),
                instance: f.instance,
                version: f.version.clone(),
                started_at: now,
                host: f.host.clone(),
                stopped: false,
            });
            vec![LEAF_KEY.to_owned()]
        }
        Fact::LeafStopped(f) => match &mut state.leaf {
            Some(leaf) if leaf.instance == f.instance => {
                leaf.stopped = true;
                vec![LEAF_KEY.to_owned()]
            }
            _ => Vec::new(),
        },
        Fact::LeafSnapshotted(f) => restore(state, f, event.sequence),
        Fact::DeviceAppeared(f) => put_device(state, &f.device),
        Fact::DeviceChanged(f) => put_device(state, &f.device),
        Fact::DeviceVanished(f) => match state.devices.get_mut(&f.id) {
            Some(device) => {
                device.status = DeviceStatus::Absent;
                vec![device_key(&f.id)]
            }
            None => Vec::new(),
        },
        Fact::ContainerDesired(f) => {
            let container = container_of_desire(state.containers.remove(&f.name), f, event);
            state.containers.insert(f.name.clone(), container);
            vec![container_key(&f.name)]
        }
        Fact::ContainerBuilt(f) => change(state, &f.name, now, |c| {
            c.desired.build_job = None;
            if c.desired.toplevel.as_ref() == Some(&f.toplevel) {
                return;
            }
            let before = c.desired.toplevel.replace(f.toplevel.clone());
            if let Some(revision) = c.revisions.last_mut() {
                revision.toplevel = Some(f.toplevel.clone());
            }
            if c.phase == ContainerPhase::Building {
                c.phase = ContainerPhase::Creating;
            } else if c.desired.run != DesiredRun::Absent {
                c.phase = ContainerPhase::Updating;
                c.desired.fallback = before.filter(|_| c.ready_at.is_some());
            }
        }),
        Fact::ContainerCreated(f) => change(state, &f.name, now, |c| {
            if c.phase == ContainerPhase::Creating {
                c.phase = match c.desired.run {
                    DesiredRun::Running => ContainerPhase::Starting,
                    DesiredRun::Stopped | DesiredRun::Absent => ContainerPhase::Stopped,
                };
            }
        }),
        Fact::ContainerStarted(f) => change(state, &f.name, now, |c| {
            c.phase = ContainerPhase::Running;
            c.ready_at = Some(now);
            c.oom_kills = 0;
            c.error = None;
            c.desired.fallback = None;
        }),
        Fact::ContainerStopped(f) => change(state, &f.name, now, |c| {
            c.ready_at = None;
            c.error = match (f.cause, f.exit) {
                (StopCause::Exited, Some(exit)) => Some(format!("it ended by itself: {exit}")),
                (StopCause::Exited, None) => Some("it ended by itself".to_owned()),
                (StopCause::OutOfMemory, _) => Some("it was ended for want of memory".to_owned()),
                (StopCause::Requested | StopCause::HostRestarted, _) => None,
            };
            let by_itself = matches!(f.cause, StopCause::Exited | StopCause::OutOfMemory);
            c.phase = match (c.desired.run, f.cause) {
                (DesiredRun::Absent, _) => ContainerPhase::Destroying,
                (DesiredRun::Running, StopCause::HostRestarted) => ContainerPhase::Starting,
                (DesiredRun::Running, _) if by_itself && c.desired.options.restart.when.covers(f.exit) => {
                    ContainerPhase::Restarting
                }
                _ => ContainerPhase::Stopped,
            };
        }),
        Fact::ContainerUpdated(f) => change(state, &f.name, now, |c| {
            if c.desired.generation != f.generation {
                return;
            }
            if f.running {
                c.phase = ContainerPhase::Running;
                if f.ready_after_ms.is_some() || c.ready_at.is_none() {
                    c.ready_at = Some(now);
                    c.oom_kills = 0;
                }
            } else {
                c.phase = ContainerPhase::Stopped;
                c.ready_at = None;
            }
            c.error = None;
            c.desired.fallback = None;
        }),
        Fact::ContainerReverted(f) => change(state, &f.name, now, |c| {
            c.desired.generation += 1;
            c.desired.toplevel = Some(f.toplevel.clone());
            c.desired.source = ContainerSource::Toplevel {
                path: f.toplevel.clone(),
            };
            c.desired.fallback = None;
            c.reverted = Some(f.reason.clone());
            c.error = None;
            c.phase = ContainerPhase::Updating;
            remember(c, now, &Caller::daemon());
        }),
        Fact::ContainerOutOfMemory(f) => change(state, &f.name, now, |c| c.oom_kills = f.oom_kills),
        Fact::ContainerDestroyed(f) => {
            state.containers.remove(&f.name);
            vec![container_key(&f.name)]
        }
        Fact::ContainerFailed(f) => change(state, &f.name, now, |c| {
            c.error = Some(format!("{}: {}", f.step, f.reason));
            if f.step == ContainerStep::Build {
                c.desired.build_job = None;
                // One that has a system goes on with it.
                if c.desired.toplevel.is_some() {
                    return;
                }
            }
            c.phase = ContainerPhase::Failed;
            c.ready_at = None;
        }),
        Fact::JobQueued(f) => {
            state.jobs.insert(
                f.id,
                Job {
                    id: f.id,
                    owner: f.owner.clone(),
                    task: f.task.clone(),
                    phase: JobPhase::Queued,
                    cause: cause_of(event),
                    queued_at: now,
                    started_at: None,
                    ended_at: None,
                    result: None,
                    failure: None,
                    error: None,
                },
            );
            vec![job_key(f.id)]
        }
        Fact::JobStarted(f) => match state.jobs.get_mut(&f.id) {
            Some(job) if !job.phase.is_final() => {
                job.phase = JobPhase::Running;
                job.started_at = Some(now);
                vec![job_key(f.id)]
            }
            _ => Vec::new(),
        },
        Fact::JobSucceeded(f) => end_job(state, f.id, now, JobPhase::Succeeded, |job| {
            job.result = Some(f.result.clone());
        }),
        Fact::JobFailed(f) => end_job(state, f.id, now, JobPhase::Failed, |job| {
            job.failure = Some(f.cause);
            job.error = Some(f.error.clone());
        }),
        Fact::JobCancelled(f) => end_job(state, f.id, now, JobPhase::Cancelled, |job| {
            job.error = Some(format!("cancelled by {}", f.by));
        }),
        Fact::JobInterrupted(f) => end_job(state, f.id, now, JobPhase::Interrupted, |job| {
            job.error = Some(f.reason.clone());
        }),
        Fact::Unknown { .. } => Vec::new(),
    }
}

fn cause_of(event: &Event) -> Cause {
    Cause {
        command: event.causation.clone(),
        correlation: event.correlation.clone(),
    }
}

/// Returns a container as it is after somebody wants something of it.
fn container_of_desire(known: Option<Container>, f: &ContainerDesired, event: &Event) -> Container {
    let now = event.time;
    let phase = phase_of_desire(known.as_ref(), &f.desired);
    let mut container = Container {
        name: f.name.clone(),
        desired: f.desired.clone(),
        phase,
        cause: cause_of(event),
        created_at: known.as_ref().map_or(now, |c| c.created_at),
        changed_at: now,
        ready_at: known.as_ref().and_then(|c| c.ready_at),
        error: None,
        reverted: None,
        oom_kills: known.as_ref().map_or(0, |c| c.oom_kills),
        revisions: known.map(|c| c.revisions).unwrap_or_default(),
    };
    if f.desired.run != DesiredRun::Absent {
        remember(&mut container, now, &f.caller);
    }
    container
}

/// Remembers what is wanted now, if it is another thing than before; to run or not is none.
fn remember(container: &mut Container, now: Timestamp, by: &Caller) {
    let desired = &container.desired;
    let same = container.revisions.last().is_some_and(|last| {
        last.source == desired.source && last.toplevel == desired.toplevel && last.options == desired.options
    });
    if same {
        return;
    }
    container.revisions.push(Revision {
        generation: desired.generation,
        at: now,
        by: by.clone(),
        source: desired.source.clone(),
        toplevel: desired.toplevel.clone().filter(|_| desired.build_job.is_none()),
        options: desired.options.clone(),
    });
    let over = container.revisions.len().saturating_sub(REMEMBERED_REVISIONS);
    container.revisions.drain(..over);
}

/// Where a container stands after somebody wants something of it.
fn phase_of_desire(known: Option<&Container>, desired: &Desired) -> ContainerPhase {
    use ContainerPhase as Phase;
    let Some(known) = known else {
        return if desired.toplevel.is_none() {
            Phase::Building
        } else {
            Phase::Creating
        };
    };
    let before = &known.desired;
    let other = before.toplevel != desired.toplevel || before.options != desired.options;
    match (desired.run, known.phase) {
        (DesiredRun::Absent, _) => Phase::Destroying,
        _ if desired.toplevel.is_none() => Phase::Building,
        (_, Phase::Creating | Phase::Building) => Phase::Creating,
        (_, Phase::Updating) => Phase::Updating,
        _ if other => Phase::Updating,
        (DesiredRun::Running, Phase::Running) => Phase::Running,
        (DesiredRun::Running, _) => Phase::Starting,
        (DesiredRun::Stopped, Phase::Stopped) => Phase::Stopped,
        (DesiredRun::Stopped, _) => Phase::Stopping,
    }
}

fn put_device(state: &mut State, device: &Device) -> Vec<String> {
    state.devices.insert(device.id.clone(), device.clone());
    vec![device_key(&device.id)]
}

fn change(
    state: &mut State,
    name: &ContainerName,
    now: Timestamp,
    with: impl FnOnce(&mut Container),
) -> Vec<String> {
    let Some(container) = state.containers.get_mut(name) else {
        return Vec::new();
    };
    with(container);
    container.changed_at = now;
    vec![container_key(name)]
}

fn end_job(
    state: &mut State,
    id: JobId,
    now: Timestamp,
    phase: JobPhase,
    with: impl FnOnce(&mut Job),
) -> Vec<String> {
    let Some(job) = state.jobs.get_mut(&id) else {
        return Vec::new();
    };
    if job.phase.is_final() {
        return Vec::new();
    }
    job.phase = phase;
    job.ended_at = Some(now);
    with(job);
    let mut keys = vec![job_key(id)];
    let ended: Vec<JobId> = state
        .jobs
        .values()
        .filter(|job| job.phase.is_final())
        .map(|job| job.id)
        .collect();
    for old in ended.iter().take(ended.len().saturating_sub(REMEMBERED_JOBS)) {
        state.jobs.remove(old);
        keys.push(job_key(*old));
    }
    keys
}

/// Takes in a part of a snapshot. It counts when all of its parts have come one after the other; a leaf may have ended
/// in the middle of one.
fn restore(state: &mut State, snapshot: &LeafSnapshotted, sequence: u64) -> Vec<String> {
    let mut partial = if snapshot.part == 1 {
        Partial::default()
    } else {
        std::mem::take(&mut state.partial)
    };
    if snapshot.part != partial.parts + 1 {
        return Vec::new();
    }
    partial.parts = snapshot.part;
    partial.entries.extend(snapshot.entries.clone());
    if snapshot.part < snapshot.parts {
        state.partial = partial;
        return Vec::new();
    }
    let mut keys: BTreeSet<String> = state.entries().into_keys().collect();
    *state = State {
        sequence,
        snapshot_sequence: sequence.saturating_sub(u64::from(snapshot.parts.saturating_sub(1))),
        ..State::default()
    };
    for (key, value) in partial.entries {
        // An entry of a newer version is left out, as an unknown event is.
        if state.put(&key, value).is_ok() {
            keys.insert(key);
        }
    }
    keys.insert(SNAPSHOT_KEY.to_owned());
    keys.into_iter().collect()
}

const LEAF_KEY: &str = "leaf";

/// The key of the entry that says with which sequence number the newest snapshot begins.
pub const SNAPSHOT_KEY: &str = "snapshot";

fn device_key(id: &DeviceId) -> String {
    format!("device.{id}")
}

fn container_key(name: &ContainerName) -> String {
    format!("container.{}", name.token())
}

fn job_key(id: JobId) -> String {
    format!("job.{id}")
}

impl State {
    /// Returns the entry of this key, or nothing if there is none (any more).
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<Value> {
        let entry = self.find(key)?;
        Some(serde_json::to_value(entry).expect("an entry of the state has string keys only"))
    }

    /// Returns the entry of this key as JSON, or nothing if there is none (any more).
    #[must_use]
    pub fn entry_json(&self, key: &str) -> Option<Vec<u8>> {
        self.find(key).map(|entry| to_json(&entry))
    }

    fn find(&self, key: &str) -> Option<Entry<'_>> {
        if key == LEAF_KEY {
            return self.leaf.as_ref().map(Entry::Leaf);
        }
        if key == SNAPSHOT_KEY {
            return (self.snapshot_sequence > 0).then_some(Entry::Snapshot(self.snapshot_sequence));
        }
        match key.split_once('.')? {
            ("device", id) => self.devices.get(&DeviceId::new(id).ok()?).map(Entry::Device),
            ("container", token) => self
                .containers
                .get(&ContainerName::new(crate::id::decode_token(token)?).ok()?)
                .map(Entry::Container),
            ("job", id) => self.jobs.get(&id.parse().ok()?).map(Entry::Job),
            _ => None,
        }
    }

    /// Returns all entries by key.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<String, Value> {
        let keys = self
            .leaf
            .iter()
            .map(|_| LEAF_KEY.to_owned())
            .chain((self.snapshot_sequence > 0).then(|| SNAPSHOT_KEY.to_owned()))
            .chain(self.devices.keys().map(device_key))
            .chain(self.containers.keys().map(container_key))
            .chain(self.jobs.keys().map(|id| job_key(*id)));
        keys.filter_map(|key| self.entry(&key).map(|value| (key, value)))
            .collect()
    }

    /// Returns the state that has these entries and ends with this sequence number.
    ///
    /// # Errors
    /// [`EntryError`] for the first entry that is not one of a state.
    pub fn from_entries(
        sequence: u64,
        entries: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<Self, EntryError> {
        let mut state = Self {
            sequence,
            ..Self::default()
        };
        for (key, value) in entries {
            state.put(&key, value)?;
        }
        Ok(state)
    }

    /// Returns the snapshot of the state in parts of about `part_bytes`, each with at least one entry.
    #[must_use]
    pub fn snapshot(&self, leaf: &LeafName, epoch: u64, part_bytes: usize) -> Vec<LeafSnapshotted> {
        let mut parts: Vec<BTreeMap<String, Value>> = vec![BTreeMap::new()];
        let mut size = 0;
        // Where the newest snapshot begins is told by the snapshot itself.
        for (key, value) in self.entries().into_iter().filter(|(key, _)| key != SNAPSHOT_KEY) {
            let bytes = key.len() + value.to_string().len();
            if size > 0 && size + bytes > part_bytes {
                parts.push(BTreeMap::new());
                size = 0;
            }
            size += bytes;
            parts
                .last_mut()
                .expect("it begins with one part")
                .insert(key, value);
        }
        let count = u32::try_from(parts.len()).expect("a state has fewer parts");
        (1..)
            .zip(parts)
            .map(|(part, entries)| LeafSnapshotted {
                leaf: leaf.clone(),
                epoch,
                part,
                parts: count,
                entries,
            })
            .collect()
    }

    fn put(&mut self, key: &str, value: Value) -> Result<(), EntryError> {
        let unknown = || EntryError {
            key: key.to_owned(),
            source: None,
        };
        let read = |source| EntryError {
            key: key.to_owned(),
            source: Some(source),
        };
        if key == LEAF_KEY {
            self.leaf = Some(serde_json::from_value(value).map_err(read)?);
            return Ok(());
        }
        if key == SNAPSHOT_KEY {
            self.snapshot_sequence = serde_json::from_value(value).map_err(read)?;
            return Ok(());
        }
        match key.split_once('.').ok_or_else(unknown)?.0 {
            "device" => {
                let device: Device = serde_json::from_value(value).map_err(read)?;
                self.devices.insert(device.id.clone(), device);
            }
            "container" => {
                let container: Container = serde_json::from_value(value).map_err(read)?;
                self.containers.insert(container.name.clone(), container);
            }
            "job" => {
                let job: Job = serde_json::from_value(value).map_err(read)?;
                self.jobs.insert(job.id, job);
            }
            _ => return Err(unknown()),
        }
        Ok(())
    }
}

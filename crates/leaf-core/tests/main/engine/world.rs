//! A model of the shell: a journal that keeps exactly what was committed, requests, and work on the host that takes its
//! time. It checks what must hold after each input.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use leaf_core::accepted::CommandRecord;
use leaf_core::command::{Command, CommandKind};
use leaf_core::container::{Container, ContainerPhase, DesiredRun};
use leaf_core::decide::{Question, needless_jobs};
use leaf_core::engine::{
    Answer, At, Capabilities, Conditions, Effect, Engine, EngineSettings, FreeSpace, FreshIds, History,
    Immediate, Input, Limits, Outputs, Record, Request, RequestId, Resumed, Scope, Seen, Snapshots,
};
use leaf_core::event::{Event, EventRecord, HostFacts, header};
use leaf_core::hardware::Inventory;
use leaf_core::id::{Caller, CommandId, ContainerName, InstanceId, JobId};
use leaf_core::job::{Job, JobOutcome, JobPhase, JobResult};
use leaf_core::plan::plan;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::reconcile::{Interruption, Resource};
use leaf_core::runtime::Runtime;
use leaf_core::state::{State, apply};
use serde_json::Value;
use uuid::Uuid;

use super::steps::{Fate, moment};
use crate::model_host::{ModelHost, plan_context};
use crate::strategies::{leaf, time};

const EPOCH: u64 = 7;
const RESERVE_BYTES: u64 = 1000;
/// How many jobs run at a time, and how many may wait.
pub(super) const MAX_JOBS: usize = 2;
pub(super) const MAX_QUEUED_JOBS: usize = 3;
/// How long things may take to come to rest, in rounds of "commit all, do all work, observe all".
const ROUNDS: usize = 40;

/// Exactly what was committed.
#[derive(Default)]
struct ModelJournal {
    events: Vec<EventRecord>,
    entries: BTreeMap<String, Value>,
    commands: BTreeMap<(Caller, CommandId), CommandRecord>,
    /// The state that its events add up to.
    replayed: State,
}

/// A request that was sent.
struct Sent {
    caller: Caller,
    id: Option<CommandId>,
    command: Command,
    /// The run of leafd that took it.
    run: u64,
    answers: usize,
    reply: Option<Result<Vec<u8>, Problem>>,
}

/// Work on the host that was begun, and whose end the engine does not know yet.
pub(super) enum Work {
    Steps {
        container: Box<Container>,
        told: Interruption,
    },
    Job {
        job: Box<Job>,
        cancelled: bool,
    },
    Scan {
        rescan: u64,
    },
    Foreign(ContainerName),
}

pub(super) struct World {
    engine: Engine,
    journal: ModelJournal,
    /// Records that are not committed.
    pending: VecDeque<Record>,
    committed: u64,
    pub(super) host: ModelHost,
    pub(super) work: Vec<Work>,
    /// Observations of all containers that are under way, in order.
    observations: VecDeque<Input>,
    pub(super) inventory: Inventory,
    sent: Vec<Sent>,
    /// The state that all events, committed or not, add up to.
    replayed: State,
    /// What steps are told when they begin.
    told: Interruption,
    /// Jobs of this run whose end was asked for.
    cancelled: BTreeSet<JobId>,
    now: u64,
    ids: u128,
    run: u64,
    boots: u64,
    pub(super) disk_is_full: bool,
    pub(super) disk_is_low: bool,
}

impl World {
    pub(super) fn new() -> Self {
        let journal = ModelJournal::default();
        let mut world = Self {
            engine: engine(&journal, 1),
            journal,
            pending: VecDeque::new(),
            committed: 0,
            host: ModelHost::default(),
            work: Vec::new(),
            observations: VecDeque::new(),
            inventory: Inventory::default(),
            sent: Vec::new(),
            replayed: State::default(),
            told: Interruption::None,
            cancelled: BTreeSet::new(),
            now: 1,
            ids: 0,
            run: 1,
            boots: 1,
            disk_is_full: false,
            disk_is_low: false,
        };
        world.start();
        world
    }

    fn start(&mut self) {
        let host = HostFacts {
            hostname: "edge".to_owned(),
            system: "x86_64-linux".to_owned(),
            kernel: "6.12".to_owned(),
            boot_id: format!("boot-{}", self.boots),
        };
        self.feed(Input::Started {
            version: "1".to_owned(),
            host,
        });
        // As the hardware's task does it.
        self.work.push(Work::Scan { rescan: 0 });
    }

    /// The state, with what is not committed.
    pub(super) fn state(&self) -> &State {
        self.engine.state()
    }

    /// Returns the answer to the last request, if there is one.
    pub(super) fn last_reply(&self) -> Option<&Result<Vec<u8>, Problem>> {
        self.sent.last()?.reply.as_ref()
    }

    /// Returns the jobs that run on the host.
    pub(super) fn running_jobs(&self) -> Vec<JobId> {
        let jobs = self.work.iter().filter_map(|work| match work {
            Work::Job { job, .. } => Some(job.id),
            Work::Steps { .. } | Work::Scan { .. } | Work::Foreign(_) => None,
        });
        jobs.collect()
    }

    /// Returns the types of all committed events.
    pub(super) fn kinds(&self) -> Vec<String> {
        let kind = |event: &EventRecord| event.attribute(header::TYPE).map(|kind| kind.into_owned());
        self.journal.events.iter().filter_map(kind).collect()
    }

    /// Returns where a container stands, if the leaf knows it.
    pub(super) fn phase(&self, name: &ContainerName) -> Option<ContainerPhase> {
        let container = self.engine.state().containers.get(name)?;
        Some(container.phase)
    }

    /// Returns why a container went back to the system before, if it did.
    pub(super) fn reverted(&self, name: &ContainerName) -> Option<&String> {
        self.engine.state().containers.get(name)?.reverted.as_ref()
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    // ---- inputs ----------------------------------------------------------------------------------------------

    fn conditions(&self) -> Conditions {
        Conditions {
            full_since: self.disk_is_full.then(|| time(0)),
            queued_bytes: 0,
            free_bytes: FreeSpace::Bytes(if self.disk_is_low {
                RESERVE_BYTES - 1
            } else {
                1 << 30
            }),
            durable_sequence: self.journal.replayed.sequence,
            committed: self.committed,
        }
    }

    fn feed(&mut self, input: Input) {
        self.now += 1;
        self.ids += 1 << 64;
        let at = At {
            time: time(self.now),
            moment: moment(self.now),
            ids: FreshIds::new(Uuid::from_u128(self.ids)),
            conditions: self.conditions(),
        };
        let bound = 4
            + self.engine.state().containers.len() * 4
            + self.engine.state().jobs.len() * 4
            + self.sent.len();
        let Outputs { now, record } = self.engine.handle(at, input);
        for immediate in now {
            match immediate {
                Immediate::Answer(answer) => {
                    let is_report = answer.reply.is_ok() && self.disk_is_full;
                    assert!(
                        answer.reply.is_err() || is_report,
                        "only refusals go out at once: {answer:?}"
                    );
                    self.count_answer(&answer);
                }
                Immediate::InterruptAll(told) => {
                    self.told = told;
                    for work in &mut self.work {
                        if let Work::Steps { told: known, .. } = work {
                            *known = told;
                        }
                    }
                }
            }
        }
        if let Some(record) = record {
            assert!(record.effects.len() <= bound, "unbounded: {:?}", record.effects);
            for event in &record.batch.events {
                assert_eq!(
                    event.sequence,
                    self.replayed.sequence + 1,
                    "events are contiguous"
                );
                let event = Event::from_record(event).expect("its own event");
                apply(&mut self.replayed, &event);
            }
            self.cancelled
                .extend(record.effects.iter().filter_map(|effect| match effect {
                    Effect::CancelJob(id) => Some(*id),
                    _ => None,
                }));
            self.pending.push_back(record);
        }
        for id in needless_jobs(self.engine.state()) {
            assert!(
                self.cancelled.contains(&id),
                "nothing needs job {id}, and it goes on"
            );
        }
        let (state, replayed) = (self.engine.state(), &self.replayed);
        assert_eq!(state.sequence, replayed.sequence);
        assert_eq!(
            state.containers, replayed.containers,
            "a replay gives the same state"
        );
        assert_eq!(state.jobs, replayed.jobs, "a replay gives the same state");
        assert_eq!(state.devices, replayed.devices, "a replay gives the same state");
        assert_eq!(state.leaf, replayed.leaf, "a replay gives the same state");
    }

    pub(super) fn send(&mut self, caller: Caller, id: Option<CommandId>, command: Command) {
        self.sent.push(Sent {
            caller: caller.clone(),
            id: id.clone(),
            command: command.clone(),
            run: self.run,
            answers: 0,
            reply: None,
        });
        let mut request = Request {
            id: RequestId(self.sent.len() as u64 - 1),
            caller,
            command_id: id,
            correlation: None,
            command: Ok(command),
            seen: Seen::No,
        };
        if let Some((caller, id)) = request.is_repeatable() {
            request.seen = self.seen(caller, id);
        }
        self.feed(Input::Command(Box::new(request)));
    }

    /// Sends the request that is this many before the last once more, under the same id.
    pub(super) fn send_again(&mut self, before_last: usize) {
        let Some(sent) = self.sent.iter().rev().nth(before_last) else {
            return;
        };
        if sent.id.is_some() {
            self.send(sent.caller.clone(), sent.id.clone(), sent.command.clone());
        }
    }

    fn seen(&self, caller: &Caller, id: &CommandId) -> Seen {
        let is_same = |record: &&CommandRecord| record.caller == *caller && record.id == *id;
        let mut pending = self
            .pending
            .iter()
            .rev()
            .flat_map(|r| r.batch.commands.iter().rev());
        let known = pending
            .find(is_same)
            .or_else(|| self.journal.commands.get(&(caller.clone(), id.clone())));
        known.map_or(Seen::No, |record| Seen::Before(Box::new(record.clone())))
    }

    pub(super) fn nth_job(&self, nth: usize) -> Option<JobId> {
        let jobs = &self.engine.state().jobs;
        jobs.keys().nth(nth.checked_rem(jobs.len())?).copied()
    }

    pub(super) fn begin_observation(&mut self) {
        self.now += 1;
        self.observations.push_back(Input::ContainersObserved {
            began: moment(self.now),
            scope: Scope::All,
            observed: self.host.containers.clone(),
        });
    }

    pub(super) fn deliver_observation(&mut self) {
        if let Some(observation) = self.observations.pop_front() {
            self.feed(observation);
        }
    }

    pub(super) fn publish(&mut self) {
        self.feed(Input::Published {
            first: 1,
            last: self.journal.replayed.sequence,
        });
    }

    // ---- commits and effects ---------------------------------------------------------------------------------

    /// Commits the oldest records, and carries out their effects.
    pub(super) fn commit(&mut self, records: usize) {
        for _ in 0..records {
            if self.disk_is_full
                && self
                    .pending
                    .front()
                    .is_some_and(|record| !record.batch.is_empty())
            {
                return;
            }
            let Some(Record { batch, effects }) = self.pending.pop_front() else {
                return;
            };
            self.committed += 1;
            for (key, json) in batch.entries {
                match json {
                    Some(json) => {
                        let value = serde_json::from_slice(&json).expect("JSON");
                        self.journal.entries.insert(key, value);
                    }
                    None => {
                        self.journal.entries.remove(&key);
                    }
                }
            }
            for command in batch.commands {
                let key = (command.caller.clone(), command.id.clone());
                self.journal.commands.insert(key, command);
            }
            for event in batch.events {
                apply(
                    &mut self.journal.replayed,
                    &Event::from_record(&event).expect("its own event"),
                );
                self.journal.events.push(event);
            }
            for effect in effects {
                self.carry_out(effect);
            }
        }
    }

    /// Begins what an effect asks for. What it is about must be committed.
    fn carry_out(&mut self, effect: Effect) {
        let known = &self.journal.replayed;
        match effect {
            Effect::Answer(answer) => {
                self.check_answer(&answer);
                self.count_answer(&answer);
            }
            Effect::Ask { to, question, .. } => {
                if let Question::Containers(listed) = &question {
                    assert!(listed.iter().all(|container| container.revisions.is_empty()));
                }
                self.sent[usize::try_from(to.0).expect("small")].answers += 1;
            }
            Effect::ScanHardware { rescan } => self.work.push(Work::Scan { rescan }),
            Effect::FindForeign(name) => self.work.push(Work::Foreign(name)),
            Effect::TakeSteps { container, .. } => {
                let name = &container.name;
                let committed = known.containers.get(name).map(|container| &container.desired);
                assert_eq!(
                    committed,
                    Some(&container.desired),
                    "steps for what is not committed"
                );
                let is_same =
                    |work: &Work| matches!(work, Work::Steps { container, .. } if container.name == *name);
                assert!(!self.work.iter().any(is_same), "two runs of the steps for {name}");
                self.work.push(Work::Steps {
                    container,
                    told: self.told,
                });
            }
            Effect::Interrupt {
                resource: Resource::Container(name),
                interruption,
            } => {
                for work in &mut self.work {
                    if let Work::Steps { container, told } = work
                        && container.name == name
                    {
                        *told = interruption;
                    }
                }
            }
            Effect::RunJob(job) => {
                let phase = known.jobs.get(&job.id).map(|job| job.phase);
                assert_eq!(
                    phase,
                    Some(JobPhase::Running),
                    "a job whose start is not committed"
                );
                let is_same =
                    |work: &Work| matches!(work, Work::Job { job: other, .. } if other.id == job.id);
                assert!(!self.work.iter().any(is_same), "two runs of job {}", job.id);
                self.work.push(Work::Job {
                    job,
                    cancelled: false,
                });
            }
            Effect::CancelJob(id) => {
                for work in &mut self.work {
                    if let Work::Job { job, cancelled } = work
                        && job.id == id
                    {
                        *cancelled = true;
                    }
                }
            }
            Effect::ForgetJobs(ids) => {
                assert!(
                    ids.iter().all(|id| !known.jobs.contains_key(id)),
                    "a job that is known is forgotten"
                );
            }
            Effect::PublishJobEnd(id) => {
                let is_final = known.jobs.get(&id).is_none_or(|job| job.phase.is_final());
                assert!(
                    is_final,
                    "the end of job {id} is published before it is committed"
                );
            }
        }
    }

    fn count_answer(&mut self, answer: &Answer) {
        let sent = &mut self.sent[usize::try_from(answer.to.0).expect("small")];
        sent.answers += 1;
        sent.reply = Some(answer.reply.clone());
        assert_eq!(sent.answers, 1, "answered twice: {answer:?}");
        assert_eq!(
            sent.run, self.run,
            "a request of an earlier run is answered: {answer:?}"
        );
    }

    /// An answer to a change is what the journal has for its id, or a refusal.
    fn check_answer(&self, answer: &Answer) {
        let sent = &self.sent[usize::try_from(answer.to.0).expect("small")];
        if sent.command.kind() == CommandKind::Query {
            return;
        }
        let key = (sent.caller.clone(), answer.id.clone());
        match (self.journal.commands.get(&key), &answer.reply) {
            (Some(record), reply) if record.fingerprint == sent.command.fingerprint() => {
                let outcome = record.outcome.as_ref().expect("an answer follows its outcome");
                match reply {
                    Ok(body) => assert!(!outcome.problem && *body == outcome.body),
                    Err(problem) => {
                        assert!(outcome.problem);
                        let kept = serde_json::from_slice(&outcome.body).ok();
                        assert_eq!(Some(problem), kept.as_ref());
                    }
                }
            }
            (Some(_), Err(problem)) => assert_eq!(problem.code, ProblemCode::CommandIdReused),
            (None, Err(_)) => {}
            (_, Ok(_)) => panic!("a success that the journal does not have: {answer:?}"),
        }
    }

    // ---- the host --------------------------------------------------------------------------------------------

    /// Ends one piece of work.
    pub(super) fn finish_work(&mut self, nth: usize, fate: Fate, build: &Result<JobResult, String>) {
        let Some(nth) = nth.checked_rem(self.work.len()) else {
            return;
        };
        self.now += 1;
        let input = match self.work.remove(nth) {
            Work::Steps { container, told } => Input::StepsEnded {
                outcome: self.host.take_steps(&container, told, fate, self.now),
                name: container.name,
            },
            Work::Job { job, cancelled } => {
                let outcome = match (cancelled, build) {
                    (true, _) => JobOutcome::Cancelled,
                    (false, Ok(result)) => JobOutcome::Succeeded(result.clone()),
                    (false, Err(why)) => JobOutcome::Failed(why.clone()),
                };
                Input::JobEnded(job.id, outcome)
            }
            Work::Scan { rescan } => Input::HardwareScanned {
                scanned: Ok(self.inventory.clone()),
                rescan,
            },
            Work::Foreign(name) => Input::ForeignObserved {
                found: Ok(self.host.foreign.get(&name).cloned()),
                name,
            },
        };
        self.feed(input);
    }

    // ---- ends ------------------------------------------------------------------------------------------------

    /// leafd is killed: what is not committed has never been. `steps` says how far those under way get without it.
    pub(super) fn crash(&mut self, steps: Fate, boot: bool) {
        for work in std::mem::take(&mut self.work) {
            if let Work::Steps { container, told } = work {
                self.host.take_steps(&container, told, steps, self.now);
            }
        }
        if boot {
            self.boots += 1;
            self.host.boot();
        }
        self.pending.clear();
        self.observations.clear();
        self.committed = 0;
        self.told = Interruption::None;
        self.cancelled.clear();
        self.run += 1;
        self.replayed = self.journal.replayed.clone();
        self.engine = engine(&self.journal, self.run);
        self.start();
    }

    /// leafd is stopped, drains, and is started again.
    pub(super) fn stop(&mut self) {
        self.feed(Input::Stop { reason: "SIGTERM" });
        self.feed(Input::Drained);
        for _ in 0..ROUNDS {
            if self.engine.may_end(moment(self.now), &self.conditions()) {
                if !self.engine.is_stuck(&self.conditions()) {
                    self.feed(Input::Ended);
                    self.commit(usize::MAX);
                }
                self.crash(Fate::Late, false);
                return;
            }
            self.do_all();
        }
        panic!("it does not end");
    }

    /// Commits all, ends all work that there is, and observes all containers.
    fn do_all(&mut self) {
        self.commit(usize::MAX);
        for _ in 0..self.work.len() {
            self.finish_work(0, Fate::Done, &Err("the builder failed".to_owned()));
        }
        self.host.rest(self.now);
        self.begin_observation();
        while !self.observations.is_empty() {
            self.deliver_observation();
        }
    }

    /// Lets all come to rest with a host that answers, and checks that everybody has what they asked for, or knows why
    /// not.
    pub(super) fn come_to_rest(&mut self) {
        self.disk_is_full = false;
        self.disk_is_low = false;
        // Whoever got no answer from an earlier run asks again.
        for nth in 0..self.sent.len() {
            let sent = &self.sent[nth];
            if sent.run < self.run && sent.answers == 0 && sent.id.is_some() {
                self.send(sent.caller.clone(), sent.id.clone(), sent.command.clone());
            }
        }
        let mut rounds = 0;
        while !self.pending.is_empty() || !self.work.is_empty() || rounds < 2 {
            assert!(rounds < ROUNDS, "it does not come to rest");
            self.do_all();
            rounds += 1;
        }
        for sent in &self.sent {
            let expected = usize::from(sent.run == self.run);
            let is_right = sent.answers == expected || (sent.run < self.run && sent.answers <= 1);
            assert!(is_right, "{} answers to {:?}", sent.answers, sent.command);
        }
        for record in self.journal.commands.values() {
            assert!(record.outcome.is_some(), "without an outcome: {record:?}");
        }
        for job in self.engine.state().jobs.values() {
            assert!(job.phase.is_final(), "it does not end: {job:?}");
        }
        for container in self.engine.state().containers.values() {
            self.check_container(container);
        }
        for name in self.host.containers.keys() {
            assert!(
                self.engine.state().containers.contains_key(name),
                "{name} is on the host and unknown"
            );
        }
        let entries = self.engine.state().entries();
        assert_eq!(
            entries, self.journal.entries,
            "the journal's entries are the state"
        );
    }

    /// A container is in its desired state, or says why not.
    fn check_container(&self, container: &Container) {
        let observed = self.host.containers.get(&container.name);
        let is_explained = container.error.is_some();
        match (container.phase, container.desired.run) {
            (ContainerPhase::Running, DesiredRun::Running)
            | (ContainerPhase::Stopped, DesiredRun::Stopped) => {
                let left = plan(container, observed, &plan_context());
                // One that does not run and that somebody removed is made again when a caller wants something of it.
                let is_removed = observed.is_none() && container.phase == ContainerPhase::Stopped;
                assert!(
                    is_removed || left.is_empty(),
                    "left to do for {container:?}: {left:?}"
                );
            }
            (ContainerPhase::Stopped, DesiredRun::Running) | (ContainerPhase::Failed, _) => {
                assert!(is_explained, "not explained: {container:?}, {observed:?}");
            }
            _ => panic!("neither reached nor explained: {container:?}, {observed:?}"),
        }
    }
}

/// Returns the engine that continues from what the journal holds.
fn engine(journal: &ModelJournal, run: u64) -> Engine {
    let settings = EngineSettings {
        instance: InstanceId(Uuid::from_u128(run.into())),
        runtime: Runtime::Systemd,
        capabilities: Capabilities {
            containers: Ok(()),
            nix: Ok(()),
        },
        limits: Limits {
            backlog_bytes: 1 << 30,
            reserve_bytes: RESERVE_BYTES,
        },
        pool: leaf_core::decide::AddressPool::default(),
        max_jobs: MAX_JOBS,
        max_queued_jobs: MAX_QUEUED_JOBS,
        job_timeout_seconds: 3600,
    };
    let state = State::from_entries(journal.replayed.sequence, journal.entries.clone());
    let snapshots = Snapshots {
        every_events: 50,
        every_bytes: 1 << 20,
    };
    let unfinished = journal
        .commands
        .values()
        .filter(|record| record.outcome.is_none());
    Engine::new(
        settings,
        Resumed {
            history: History::new(leaf(), EPOCH, state, snapshots),
            unfinished: unfinished.cloned().collect(),
            held_events: journal.replayed.sequence,
        },
    )
}

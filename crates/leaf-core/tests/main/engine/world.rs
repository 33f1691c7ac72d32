//! A model of the shell: a journal that keeps exactly what was committed, requests, and work on the host that takes its
//! time. It checks what must hold after each input; `commits` carries out what the engine puts out, `checks` has what must
//! hold of answers and at rest.

mod checks;
mod commits;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use leaf_core::command::{Command, CommandRecord};
use leaf_core::container::{Container, ContainerPhase};
use leaf_core::decide::{ChangeStep, InUse, ObservedChanges, SecretChange, needless_jobs};
use leaf_core::engine::{
    At, Capabilities, Conditions, Effect, Engine, EngineSettings, FreeSpace, FreshIds, History, Immediate,
    Input, Limits, Outputs, Record, Request, RequestId, Resumed, Scope, Seen, Snapshots,
};
use leaf_core::event::{Event, EventRecord, HostFacts, header};
use leaf_core::fleet::work::WorkTold;
use leaf_core::hardware::Inventory;
use leaf_core::id::{Caller, CommandId, ContainerName, InstanceId, JobId, LeafName};
use leaf_core::job::Job;
use leaf_core::labels::Labels;
use leaf_core::placement::demand::Features;
use leaf_core::placement::pressure::Pressure;
use leaf_core::placement::room::JobRules;
use leaf_core::problem::Problem;
use leaf_core::reconcile::Interruption;
use leaf_core::renewal::CONTAINER_VALID;
use leaf_core::runtime::Runtime;
use leaf_core::signed::{CommandRules, Provenance};
use leaf_core::state::{State, apply};
use serde_json::Value;
use uuid::Uuid;

use super::steps::{Fate, Of, moment};
use crate::model_host::ModelHost;
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
        of: Of,
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
    Secret(SecretChange),
    /// A step of a change that can cut the leaf off.
    Change {
        number: u64,
        step: ChangeStep,
    },
}

pub(super) struct World {
    engine: Engine,
    name: LeafName,
    /// Whether time passes only as the test says.
    clock_stands: bool,
    /// The works of the last report to the hub agent.
    pub(super) told_works: Vec<WorkTold>,
    capabilities: Capabilities,
    rules: CommandRules,
    journal: ModelJournal,
    /// Records that are not committed.
    pending: VecDeque<Record>,
    committed: u64,
    pub(super) host: ModelHost,
    pub(super) work: Vec<Work>,
    /// Observations of all containers that are under way, in order.
    observations: VecDeque<Input>,
    /// Observations of the host's secrets.
    of_secrets: VecDeque<Input>,
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
    pub(super) store_free_bytes: Option<u64>,
    /// The largest message that the NATS server accepts.
    pub(super) max_message_bytes: Option<usize>,
    /// What its settings say that it has.
    pub(super) features: Features,
    /// The pressure of the host.
    pub(super) pressure: Option<Pressure>,
    /// The networks and names in use on the host when a command arrives.
    pub(super) in_use: InUse,
}

impl World {
    pub(super) fn new() -> Self {
        Self::of(Capabilities {
            containers: Ok(()),
            nix: Ok(()),
            secrets: Ok(()),
        })
    }

    /// A leaf with these rules of signatures.
    pub(super) fn with_rules(rules: CommandRules) -> Self {
        Self::make(leaf(), rules, Self::new().capabilities)
    }

    /// A leaf whose host can do this.
    pub(super) fn of(capabilities: Capabilities) -> Self {
        Self::make(leaf(), CommandRules::default(), capabilities)
    }

    /// A leaf of another name, whose clock only the test moves.
    pub(super) fn named(name: LeafName) -> Self {
        let mut world = Self::make(name, CommandRules::default(), Self::new().capabilities);
        world.clock_stands = true;
        world
    }

    fn make(name: LeafName, rules: CommandRules, capabilities: Capabilities) -> Self {
        let journal = ModelJournal::default();
        let features: Features = [("kvm".to_owned(), 2)].into();
        let mut world = Self {
            engine: engine(&name, &journal, 1, &capabilities, &rules, &features),
            name,
            clock_stands: false,
            told_works: Vec::new(),
            capabilities,
            rules,
            journal,
            pending: VecDeque::new(),
            committed: 0,
            host: ModelHost::default(),
            work: Vec::new(),
            observations: VecDeque::new(),
            of_secrets: VecDeque::new(),
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
            store_free_bytes: None,
            max_message_bytes: None,
            features,
            pressure: None,
            in_use: InUse::default(),
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

    /// Commits everything, and returns the answer to the last request, if there is one.
    pub(super) fn commit_and_reply(&mut self) -> Option<Result<Vec<u8>, Problem>> {
        self.commit(usize::MAX);
        self.last_reply().cloned()
    }

    /// Returns the answers to all requests with this id.
    pub(super) fn replies(&self, id: &CommandId) -> Vec<Result<Vec<u8>, Problem>> {
        let with_id = self.sent.iter().filter(|sent| sent.id.as_ref() == Some(id));
        with_id.filter_map(|sent| sent.reply.clone()).collect()
    }

    /// Returns whether a record waits for its commit.
    pub(super) fn has_uncommitted(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Returns how many searches for foreign containers are under way.
    pub(super) fn searches(&self) -> usize {
        let is_search = |work: &&Work| matches!(work, Work::Foreign(_));
        self.work.iter().filter(is_search).count()
    }

    /// Returns how many changes of secrets are being made.
    pub(super) fn changes_of_secrets(&self) -> usize {
        let is_change = |work: &&Work| matches!(work, Work::Secret(_));
        self.work.iter().filter(is_change).count()
    }

    /// Returns the jobs that run on the host.
    pub(super) fn running_jobs(&self) -> Vec<JobId> {
        let jobs = self.work.iter().filter_map(|work| match work {
            Work::Job { job, .. } => Some(job.id),
            Work::Steps { .. }
            | Work::Scan { .. }
            | Work::Foreign(_)
            | Work::Secret(_)
            | Work::Change { .. } => None,
        });
        jobs.collect()
    }

    /// Returns all committed events.
    pub(super) fn events(&self) -> &[EventRecord] {
        &self.journal.events
    }

    /// Ends the job that runs, in this way.
    pub(super) fn end_job(&mut self, outcome: leaf_core::job::JobOutcome) {
        let id = self.running_jobs()[0];
        self.work
            .retain(|work| !matches!(work, Work::Job { job, .. } if job.id == id));
        self.feed(Input::JobEnded {
            id,
            outcome,
            attestation: None,
        });
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
            store_free_bytes: self.store_free_bytes,
            durable_sequence: self.journal.replayed.sequence,
            committed: self.committed,
            max_message_bytes: self.max_message_bytes,
            pressure: self.pressure,
        }
    }

    /// Sets the clock.
    pub(super) fn at(&mut self, seconds: u64) {
        self.now = seconds;
    }

    pub(super) fn feed(&mut self, input: Input) {
        self.now += u64::from(!self.clock_stands);
        self.ids += 1 << 64;
        let at = At {
            time: time(self.now),
            moment: moment(self.now),
            ids: FreshIds::new(Uuid::from_u128(self.ids)),
            conditions: self.conditions(),
            in_use: self.in_use.clone(),
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
                Immediate::RenewCredentials(container) => {
                    self.begin_steps(container, Of::Renewal, Interruption::None);
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
        assert_eq!(state.secrets, replayed.secrets, "a replay gives the same state");
        assert_eq!(state.devices, replayed.devices, "a replay gives the same state");
        assert_eq!(state.leaf, replayed.leaf, "a replay gives the same state");
    }

    /// Time passes, and the leaf looks at the clock.
    pub(super) fn pass(&mut self, seconds: u64) {
        self.now += seconds;
        self.feed(Input::TimePassed);
    }

    /// Begins steps for a container, of which there are none.
    fn begin_steps(&mut self, container: Box<Container>, of: Of, told: Interruption) {
        let name = &container.name;
        let is_same = |work: &Work| matches!(work, Work::Steps { container, .. } if container.name == *name);
        assert!(!self.work.iter().any(is_same), "two runs of the steps for {name}");
        self.work.push(Work::Steps { container, of, told });
    }

    pub(super) fn send(&mut self, caller: Caller, id: Option<CommandId>, command: Command) {
        self.send_as(caller, id, command, Provenance::Unsigned);
    }

    /// Sends a command whose signature was judged so.
    pub(super) fn send_as(
        &mut self,
        caller: Caller,
        id: Option<CommandId>,
        command: Command,
        provenance: Provenance,
    ) {
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
            provenance,
            is_local: false,
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

    /// An observation of all containers but these finds none.
    pub(super) fn observe_none_but(&mut self, unobserved: BTreeSet<ContainerName>) {
        self.feed(Input::ContainersObserved {
            began: moment(self.now),
            scope: Scope::AllBut(unobserved),
            observed: BTreeMap::new(),
        });
    }

    pub(super) fn begin_observation(&mut self) {
        self.now += 1;
        self.observations.push_back(Input::ContainersObserved {
            began: moment(self.now),
            scope: Scope::AllBut(BTreeSet::new()),
            observed: self.host.containers.clone(),
        });
    }

    pub(super) fn deliver_observation(&mut self) {
        let next = [self.observations.pop_front(), self.of_secrets.pop_front()];
        for observation in next.into_iter().flatten() {
            self.feed(observation);
        }
    }

    pub(super) fn publish(&mut self) {
        self.feed(Input::Published {
            first: 1,
            last: self.journal.replayed.sequence,
        });
    }

    /// The host's changes that can cut the leaf off are observed.
    pub(super) fn observe_changes(&mut self, seen: ObservedChanges) {
        self.feed(Input::ChangesObserved(Box::new(seen)));
        self.commit(usize::MAX);
    }

    /// The steps of changes that are under way.
    pub(super) fn change_steps(&self) -> Vec<ChangeStep> {
        let steps = self.work.iter().filter_map(|work| match work {
            Work::Change { step, .. } => Some(step.clone()),
            _ => None,
        });
        steps.collect()
    }

    // ---- ends ------------------------------------------------------------------------------------------------

    /// leafd is killed: what is not committed has never been. `steps` says how far those under way get without it.
    pub(super) fn crash(&mut self, steps: Fate, boot: bool) {
        for work in std::mem::take(&mut self.work) {
            match work {
                Work::Steps { container, of, told } => {
                    self.host.take_steps(&container, of, told, steps, self.now);
                }
                // The helper has got as far as the file, or has not.
                Work::Secret(change) if steps == Fate::Done => {
                    self.host.change_secret(&change);
                }
                Work::Secret(_)
                | Work::Change { .. }
                | Work::Job { .. }
                | Work::Scan { .. }
                | Work::Foreign(_) => {}
            }
        }
        if boot {
            self.boots += 1;
            self.host.boot();
        }
        self.pending.clear();
        self.observations.clear();
        self.of_secrets.clear();
        self.committed = 0;
        self.told = Interruption::None;
        self.cancelled.clear();
        self.run += 1;
        self.replayed = self.journal.replayed.clone();
        self.told_works.clear();
        self.engine = engine(
            &self.name,
            &self.journal,
            self.run,
            &self.capabilities,
            &self.rules,
            &self.features,
        );
        self.start();
    }

    /// leafd is told to stop, and drains.
    pub(super) fn begin_to_stop(&mut self) {
        self.feed(Input::Stop { reason: "SIGTERM" });
    }

    /// leafd is stopped, drains, and is started again.
    pub(super) fn stop(&mut self) {
        self.begin_to_stop();
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
        // Longer than any pause after a failure.
        self.now += 600;
        for _ in 0..self.engine.state().containers.len() {
            self.pass(1);
        }
        for _ in 0..self.work.len() {
            self.finish_work(0, Fate::Done, &Err("the builder failed".to_owned()));
        }
        self.host.rest(self.now);
        self.begin_observation();
        while !(self.observations.is_empty() && self.of_secrets.is_empty()) {
            self.deliver_observation();
        }
    }
}

/// The labels in the leaf's settings.
pub(super) fn labels_of_settings() -> Labels {
    [("site".to_owned(), "hall-2".to_owned())].into()
}

/// Returns the engine that continues from what the journal holds.
fn engine(
    name: &LeafName,
    journal: &ModelJournal,
    run: u64,
    capabilities: &Capabilities,
    rules: &CommandRules,
    features: &Features,
) -> Engine {
    let settings = EngineSettings {
        instance: InstanceId(Uuid::from_u128(run.into())),
        runtime: Runtime::Systemd,
        labels: labels_of_settings(),
        capabilities: capabilities.clone(),
        provenance_key: None,
        limits: Limits {
            backlog_bytes: 1 << 30,
            reserve_bytes: RESERVE_BYTES,
            store_kept_bytes: 800,
        },
        pool: leaf_core::address_pool::AddressPool::default(),
        jobs: Arc::new(JobRules {
            max_running: MAX_JOBS,
            max_queued: MAX_QUEUED_JOBS,
            timeout_seconds: 3600,
            features: features.clone(),
            system: "x86_64-linux".to_owned(),
            more_systems: ["aarch64-linux".to_owned()].into(),
            ..JobRules::default()
        }),
        nix_policy: leaf_core::job::NixPolicy::default(),
        rules: rules.clone(),
        container_valid: CONTAINER_VALID,
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
            history: History::new(name.clone(), EPOCH, state, snapshots),
            unfinished: unfinished.cloned().collect(),
            held_events: journal.replayed.sequence,
        },
    )
}

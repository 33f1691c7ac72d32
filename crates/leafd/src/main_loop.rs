//! The loop that owns the state. One [`Input`] at a time: look it up, decide, record; what follows comes back as an
//! [`Effect`] once the journal has it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use leaf_bus::identity::daemon_caller;
use leaf_bus::serve::Responder;
use leaf_container::Changed;
use leaf_core::cause::Cause;
use leaf_core::event::{Fact, JobFact, LeafStopped};
use leaf_core::host_op::Runtime;
use leaf_core::id::{Caller, ContainerName, InstanceId, JobId};
use leaf_core::job::{JobPhase, Progress};
use leaf_journal::CommandRecord;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use crate::guard::Guard;
use crate::input::{Effect, Input};
use crate::ledger::Ledger;
use crate::notify;
use crate::on_command::Accepted;
use crate::settings::Settings;
use crate::steps::{Hurry, InSteps};
use crate::tasks::Tasks;
use crate::workers::Workers;

/// How long commands are remembered, so that the same id gives the first reply: 24 hours.
const COMMANDS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// How long the daemon waits, when it stops, for the commands that are under way to it.
const LAST_COMMANDS: Duration = Duration::from_secs(5);

/// How often the loop looks after itself: the watchdog, the disk, what may be forgotten.
const TICK: Duration = Duration::from_secs(10);

/// The main loop and all that it owns.
pub struct MainLoop {
    /// The state and its journal.
    pub ledger: Ledger<Effect>,
    /// This run.
    pub instance: InstanceId,
    /// The settings.
    pub settings: Settings,
    /// What runs the containers of this host.
    pub runtime: Runtime,
    /// Those who take steps on the host.
    pub workers: Workers,
    /// Why commands are refused just now, if they are.
    pub guard: Guard,
    /// Commands that are accepted and wait for something to be done.
    pub waiting: BTreeMap<Target, Vec<Waiter>>,
    /// Commands that wait for a look at a container that is not this leaf's.
    pub adopting: BTreeMap<ContainerName, Vec<Accepted>>,
    /// Containers for which steps are being taken.
    pub in_steps: InSteps,
    /// Containers that ran before the host was booted, until it is seen how they do now.
    pub booting: BTreeSet<ContainerName>,
    /// When the look began that followed the last steps for a container, as long as an older look may come.
    pub looked_at: BTreeMap<ContainerName, Instant>,
    /// Jobs that run, and how far they are.
    pub running: BTreeMap<JobId, Option<Progress>>,
    /// Who asked for running jobs to be cancelled.
    pub cancelling: BTreeMap<JobId, Caller>,
    /// The number of the last rescan.
    pub rescan: u64,
    /// Since when and why the loop is to end.
    pub stopping: Option<(Instant, &'static str)>,
    /// Whether no more commands will come.
    pub drained: bool,
}

/// What a command waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A container that is to settle.
    Container(ContainerName),
    /// A job that is to end.
    Job(JobId),
    /// A look at the hardware.
    Hardware,
}

/// A command that is accepted and not done.
pub struct Waiter {
    /// Its record in the journal.
    pub record: CommandRecord,
    /// Where it comes from.
    pub cause: Cause,
    /// Where answers go: several if it was sent several times, none after a restart.
    pub responders: Vec<Responder>,
    /// What must have been reached: the generation of the container that it made, or the number of its rescan. The
    /// largest number for a command of the last run: whatever comes is its answer.
    pub generation: u64,
}

impl Target {
    /// The target as it stands in the journal: the key of the state's entry.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Container(name) => format!("container.{}", name.token()),
            Self::Job(id) => format!("job.{id}"),
            Self::Hardware => "hardware".to_owned(),
        }
    }

    /// Reads back what [`Self::key`] wrote.
    #[must_use]
    pub fn from_key(key: &str) -> Option<Self> {
        if key == "hardware" {
            return Some(Self::Hardware);
        }
        match key.split_once('.')? {
            ("container", token) => Some(Self::Container(
                ContainerName::new(leaf_core::id::decode_token(token)?).ok()?,
            )),
            ("job", id) => Some(Self::Job(id.parse().ok()?)),
            _ => None,
        }
    }
}

impl MainLoop {
    /// Runs until `stop` says why the daemon is to stop, and records that it stopped.
    ///
    /// # Errors
    /// When the journal can't promise anything any more, or a task ended that should not have.
    pub async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        tasks: &mut Tasks,
        mut stop: oneshot::Receiver<&'static str>,
    ) -> anyhow::Result<Self> {
        let mut health = self.ledger.journal().health();
        let mut tick =
            tokio::time::interval(notify::watchdog_period().map_or(TICK, |period| period.min(TICK)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.resume();
        loop {
            tokio::select! {
                effects = self.ledger.committed(), if self.ledger.has_pending() => {
                    for effect in effects.context("the journal can't promise anything any more")? {
                        self.perform(effect);
                    }
                    self.mirror();
                }
                Some(input) = inputs.recv() => self.handle(input),
                Ok(reason) = &mut stop, if self.stopping.is_none() => self.begin_to_stop(reason),
                // A full disk holds up an end that waits for a commit.
                Ok(()) = health.changed() => {}
                error = tasks.unexpected_end() => return Err(error),
                error = self.workers.unexpected_end() => return Err(error),
                _ = tick.tick() => self.tick(),
            }
            if self.stopping.is_some() && self.may_end() {
                break;
            }
        }
        let reason = self.stopping.map_or("the end", |(_, reason)| reason).to_owned();
        if self.ledger.is_stuck() {
            tracing::warn!(
                "the disk is full: the end is not recorded, and what was not accepted yet is forgotten"
            );
            return Ok(self);
        }
        let stopped = Fact::from(LeafStopped {
            instance: self.instance,
            reason,
        });
        self.record(&Cause::default(), vec![stopped], Vec::new(), Vec::new());
        while self.ledger.has_pending() && !self.ledger.is_stuck() {
            tokio::select! {
                effects = self.ledger.committed() => {
                    for effect in effects.context("the last events can't be stored")? {
                        self.perform(effect);
                    }
                }
                _ = health.changed() => {}
            }
        }
        self.mirror();
        Ok(self)
    }

    fn begin_to_stop(&mut self, reason: &'static str) {
        tracing::info!(reason, "stopping");
        notify::stopping();
        self.workers.hurry_all();
        self.stopping = Some((Instant::now(), reason));
        self.guard.drain();
    }

    /// Hands on what changed in the state, if it can be taken now.
    fn mirror(&mut self) {
        if self.ledger.has_changed() {
            self.workers.mirror(|| self.ledger.take_changed());
        }
    }

    /// Takes up what the last run left: containers that were moving, jobs that were running or waiting.
    fn resume(&mut self) {
        let moving: Vec<ContainerName> = self
            .ledger
            .state()
            .containers
            .values()
            .filter(|container| container.phase.is_moving())
            .map(|container| container.name.clone())
            .collect();
        let mut effects: Vec<Effect> = moving.into_iter().map(Effect::Reconcile).collect();
        let running: Vec<JobId> = self
            .ledger
            .state()
            .jobs
            .values()
            .filter(|job| job.phase == JobPhase::Running)
            .map(|job| job.id)
            .collect();
        for id in running {
            self.running.insert(id, None);
            effects.push(Effect::RunJob(id));
        }
        // A cancel that was accepted is a promise: the job's end answers it.
        let cancels = self.waiting.iter().filter_map(|(target, waiters)| match target {
            Target::Job(id) if self.running.contains_key(id) => {
                Some((*id, waiters.last()?.record.caller.clone()))
            }
            _ => None,
        });
        self.cancelling = cancels.collect();
        effects.extend(self.cancelling.keys().copied().map(Effect::CancelJob));
        self.ledger.after(effects);
        self.cancel_needless_jobs(&daemon_caller());
        self.ledger.after(vec![Effect::StartJobs]);
        let done: Vec<Target> = self.waiting.keys().cloned().collect();
        for target in done {
            self.settle(&target);
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Command(incoming) => self.handle_command(*incoming),
            Input::HardwareSeen { seen, rescan } => self.handle_hardware(seen, rescan),
            Input::ContainersSeen { looked_at, at, seen } => {
                // What was seen before the last steps were taken says nothing of what is so now.
                let stale =
                    |name: &ContainerName| self.looked_at.get(name).is_some_and(|last| *last > looked_at);
                let within = |name: &ContainerName| match &at {
                    Changed::Any => true,
                    Changed::These(names) => names.contains(name),
                };
                let names: Vec<ContainerName> = self
                    .ledger
                    .state()
                    .containers
                    .keys()
                    .filter(|name| within(name) && !self.in_steps.has(name) && !stale(name))
                    .cloned()
                    .collect();
                // The looks come in order: those to come are all younger.
                self.looked_at.retain(|_, last| *last > looked_at);
                for name in names {
                    self.take_in(&name, seen.get(&name));
                }
            }
            Input::Reconciled {
                name,
                generation,
                taken,
            } => {
                self.in_steps.remove(&name);
                self.workers.reconciled(&name);
                self.looked_at.insert(name.clone(), taken.looked_at);
                self.handle_reconciled(&name, generation, taken);
            }
            Input::ForeignSeen { name, seen } => self.handle_foreign(&name, &seen),
            Input::JobProgress(id, progress) => {
                if let Some(slot) = self.running.get_mut(&id) {
                    *slot = Some(progress);
                }
            }
            Input::JobEnded(id, outcome) => self.handle_job_end(id, outcome),
            Input::Published(published) => {
                self.guard.published(published.sequence);
                // A stream that begins in the middle of the history: a replay needs a snapshot to start from.
                if published.first > self.ledger.state().snapshot_sequence.max(1) {
                    let bytes = self.ledger.snapshot(Timestamp::now());
                    self.guard.recorded(self.ledger.state().sequence, bytes);
                }
            }
            Input::Drained => self.drained = true,
        }
    }

    /// Whether all that was accepted and can be done soon is done.
    fn may_end(&self) -> bool {
        let late = self
            .stopping
            .is_some_and(|(since, _)| since.elapsed() > LAST_COMMANDS);
        let answered = (self.drained && !self.waiting.contains_key(&Target::Hardware)) || late;
        self.in_steps.is_empty() && (self.ledger.is_stuck() || (answered && !self.ledger.has_pending()))
    }

    fn tick(&mut self) {
        notify::alive();
        self.guard.look(self.ledger.journal());
        self.mirror();
        let before = Timestamp::now() - COMMANDS_KEPT;
        self.workers.housekeep(self.ledger.journal(), before);
    }

    pub(crate) fn record(
        &mut self,
        cause: &Cause,
        facts: Vec<Fact>,
        commands: Vec<CommandRecord>,
        effects: Vec<Effect>,
    ) {
        for fact in &facts {
            tracing::info!(
                kind = fact.kind(),
                about = fact.aggregate_id(self.ledger.leaf()),
                "recorded"
            );
        }
        let jobs: BTreeSet<JobId> = if facts.iter().any(ends_job) {
            self.ledger.state().jobs.keys().copied().collect()
        } else {
            BTreeSet::new()
        };
        let bytes = self
            .ledger
            .record(Timestamp::now(), cause, facts, commands, effects);
        let known = &self.ledger.state().jobs;
        let forgotten: Vec<JobId> = jobs.into_iter().filter(|id| !known.contains_key(id)).collect();
        if !forgotten.is_empty() {
            self.ledger.after(vec![Effect::ForgetJobs(forgotten)]);
        }
        self.guard.recorded(self.ledger.state().sequence, bytes);
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Reply { responder, id, reply } => self.workers.reply(responder, id, reply),
            Effect::Answer {
                responder,
                id,
                question,
            } => self.workers.answer(responder, id, question),
            Effect::LookForForeign(name) => self.workers.look_for_foreign(name),
            Effect::LookAtHardware(number) => self.workers.look_at_hardware(number),
            Effect::Reconcile(name) => {
                let Some(container) = self.ledger.state().containers.get(&name) else {
                    return;
                };
                let settled = !container.phase.is_moving();
                if settled || self.stopping.is_some() {
                    return;
                }
                if self.in_steps.insert(&name) {
                    self.workers.reconcile(container.clone());
                } else {
                    // Steps towards what was wanted before are being taken; the rest follows them.
                    self.workers.hurry(&name, Hurry::of(container.desired.run));
                }
            }
            Effect::StartJobs => self.start_jobs(),
            Effect::RunJob(id) => {
                if let Some(job) = self.ledger.state().jobs.get(&id) {
                    self.workers.run_job(job.clone());
                }
            }
            Effect::CancelJob(id) => self.workers.cancel_job(id),
            Effect::ForgetJobs(ids) => self.workers.forget_jobs(ids),
            Effect::TellJobEnd(id) => self.workers.tell_job_end(id),
        }
    }
}

/// Whether a fact ends a job: then the state may forget an older one.
fn ends_job(fact: &Fact) -> bool {
    matches!(
        fact,
        Fact::Job(
            JobFact::Succeeded(_) | JobFact::Failed(_) | JobFact::Cancelled(_) | JobFact::Interrupted(_)
        )
    )
}

/// Returns a message as JSON.
pub(crate) fn to_body(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a message has string keys only")
}

//! The engine, the pure loop of a leaf: from state and input to outputs.
//!
//! [`Engine::handle`] takes one [`Input`] and returns [`Outputs`]. It does no I/O and reads no clock: times, fresh ids and
//! the state of the disk come with the input ([`At`]), and requests are ids, whose responders the shell keeps.
//!
//! # Contract with the shell
//!
//! - The first input is [`Input::Started`], the last is [`Input::Ended`].
//! - [`Immediate`] outputs, and only these, are carried out at once.
//! - [`Record`]s are committed in order. The effects of a record are carried out in order, after it and all records before
//!   it are durable. Memory may be ahead of the disk, but effects never are: an effect carries the values that it is
//!   about, as they were when it was decided. After a crash, the effects of records that are not durable have never
//!   happened, and those of durable ones may have.
//! - A new engine continues from the state's entries and the commands without an outcome in the journal. It repeats
//!   effects that may not have been carried out: every effect is idempotent.
//! - Each request is answered once, by an [`Immediate::Answer`], an [`Effect::Answer`] or an [`Effect::Ask`]. A request
//!   whose command still waits when the daemon ends is not answered: its sender sends it again, with the same command
//!   id.
//! - Steps for one container, and one job, are never in flight twice: the next begins after the input with the end of
//!   the last.
//!
//! # Inside
//!
//! A turn records facts ([`history`]), which *touch* targets. At its end everything touched is followed up once:
//! needless builds are cancelled, jobs started up to the limit, containers reconciled, and commands answered whose
//! target has settled. So the rules about the consequences of facts are in one place, `Engine::follow_up`, whatever led
//! to the fact. The consequences of one input are bounded by the size of the state.

mod admission;
mod changes;
mod commands;
mod containers;
mod hardware;
pub mod history;
mod input;
mod jobs;
mod output;
mod report;
mod secrets;
mod turn;
mod waiting;
mod works;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::address_pool::AddressPool;
use crate::aggregate::Aggregate;
use crate::cause::Cause;
use crate::command::{CommandRecord, HubReport, LocalAccess};
use crate::decide::Target;
use crate::event::{ContainerFact, Fact, HostFacts, JobFact, LeafFact, LeafStarted, LeafStopped};
use crate::id::{Caller, InstanceId};
use crate::job::NixPolicy;
use crate::labels::{self, Labels};
use crate::moment::Moment;
use crate::placement::room::JobRules;
use crate::plan::{after_boot, may_have_started_early};
use crate::problem::Problem;
use crate::reconcile::{Interruption, Reconciler, Resource};
use crate::renewal::Renewals;
use crate::runtime::Runtime;
use crate::signed::{CommandRules, Refusals};
use crate::state::State;

pub use admission::{Capabilities, Limits};
pub use history::{History, Snapshots};
pub use input::{At, Conditions, FreeSpace, FreshIds, Input, Request, RequestId, Scope, Seen};
pub use output::{Answer, Batch, Effect, Immediate, Outputs, Record};

use admission::Admission;
use changes::Changes;
use jobs::RunningJobs;
use secrets::SecretChanges;
use turn::Turn;
use waiting::Waiting;
use works::Works;

/// How long a stopping daemon waits for commands that are in transit.
const LAST_COMMANDS: Duration = Duration::from_secs(5);

/// The settings of an engine, constant for an instance.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// The id of this instance of leafd.
    pub instance: InstanceId,
    /// The runtime of the host's containers.
    pub runtime: Runtime,
    /// The labels of the leaf's settings.
    pub labels: Labels,
    /// The leaf's capabilities.
    pub capabilities: Capabilities,
    /// The public key of its statements about builds, as a line of a `.pub` file.
    pub provenance_key: Option<String>,
    /// The limits at which commands are refused.
    pub limits: Limits,
    /// The network that containers' addresses are taken from.
    pub pool: AddressPool,
    /// What the leaf has for jobs, and its rules for them.
    pub jobs: Arc<JobRules>,
    /// What callers may build and evaluate.
    pub nix_policy: NixPolicy,
    /// Which commands need a signature, or a caller who is named for them.
    pub rules: CommandRules,
    /// How long the credentials of containers are valid.
    pub container_valid: Duration,
}

/// The journal's content when an instance starts.
#[derive(Debug, Clone)]
pub struct Resumed {
    /// The state with its history.
    pub history: History,
    /// The accepted commands that have no outcome.
    pub unfinished: Vec<CommandRecord>,
    /// The number of events in the journal: all of them count as unpublished until the publisher reports otherwise.
    pub held_events: u64,
}

/// The engine. It owns the state.
#[derive(Debug, Clone)]
pub struct Engine {
    settings: EngineSettings,
    history: History,
    waiting: Waiting,
    reconciler: Reconciler,
    renewals: Renewals,
    /// The time until the next look at the clock.
    look_again_after: Option<Duration>,
    jobs: RunningJobs,
    works: Works,
    admission: Admission,
    secrets: SecretChanges,
    changes: Changes,
    /// The number of the last rescan.
    rescan: u64,
    /// The last sequence number acknowledged by the stream.
    published: u64,
    /// The connection to the hub, as the shell heard it last.
    hub: Option<HubReport>,
    /// When the leaf's credentials at a given NATS server end.
    credentials_until: Option<Timestamp>,
    /// The access of the leaf's own people, if it has a server of its own.
    local_access: Option<LocalAccess>,
    /// The refused signatures of the last seconds.
    refusals: Refusals,
    /// The number of records returned so far.
    recorded: u64,
    stop: Option<Stop>,
}

/// The reason and the time at which the daemon began to stop.
#[derive(Debug, Clone, Copy)]
struct Stop {
    reason: &'static str,
    since: Moment,
    /// Whether no more commands will arrive.
    drained: bool,
}

impl Engine {
    /// Returns an engine that continues from the journal's content.
    #[must_use]
    pub fn new(settings: EngineSettings, resumed: Resumed) -> Self {
        let Resumed {
            history,
            unfinished,
            held_events,
        } = resumed;
        let mut admission = Admission::new(settings.limits, settings.capabilities.clone());
        if held_events > 0 {
            let bytes = held_events * history::EARLIER_EVENT_BYTES;
            admission.recorded(history.state().sequence, bytes);
        }
        let (secrets, unfinished) = SecretChanges::of_last_run(unfinished, history.state());
        Self {
            waiting: Waiting::of_last_run(unfinished, history.state()),
            history,
            reconciler: Reconciler::default(),
            look_again_after: settings.capabilities.containers.is_ok().then_some(Duration::ZERO),
            renewals: Renewals::new(settings.container_valid),
            jobs: RunningJobs::default(),
            works: Works::default(),
            admission,
            secrets,
            changes: Changes::default(),
            rescan: 0,
            published: 0,
            hub: None,
            credentials_until: None,
            local_access: None,
            refusals: Refusals::default(),
            recorded: 0,
            stop: None,
            settings,
        }
    }

    /// Returns the state, including changes that are not durable yet.
    #[must_use]
    pub fn state(&self) -> &State {
        self.history.state()
    }

    /// Handles one input and returns the outputs.
    pub fn handle(&mut self, at: At, input: Input) -> Outputs {
        if let Some(bytes) = at.conditions.max_message_bytes {
            self.history.fit_into(bytes);
        }
        let mut turn = Turn::new(at, self.recorded + 1);
        self.take_input(&mut turn, input);
        self.tell_of_store(&mut turn);
        self.follow_up(&mut turn);
        self.tell_works(&mut turn);
        self.outputs(turn)
    }

    /// Records that the disk of the store has filled, or has room again.
    fn tell_of_store(&mut self, turn: &mut Turn) {
        let conditions = &turn.at.conditions;
        let was_full = self.state().leaf.as_ref().map(|leaf| leaf.store_filled);
        let news = was_full.and_then(|was_full| self.admission.news_of_store(conditions, was_full));
        if let Some(news) = news
            && Admission::cannot_keep(conditions).is_none()
        {
            self.record(turn, &Cause::default(), [Fact::Leaf(news)]);
        }
    }

    fn take_input(&mut self, turn: &mut Turn, input: Input) {
        match input {
            Input::Started { version, host } => self.started(turn, version, host),
            Input::Command(request) => self.command(turn, *request),
            Input::HardwareScanned { scanned, rescan } => self.hardware_scanned(turn, scanned, rescan),
            Input::ContainersObserved {
                began,
                scope,
                observed,
            } => self.containers_observed(turn, began, &scope, &observed),
            Input::StepsEnded { name, outcome } => self.steps_ended(turn, &name, outcome),
            Input::ForeignObserved { name, found } => self.foreign_observed(turn, &name, &found),
            Input::TimePassed => self.renew_credentials(turn),
            Input::JobProgressed(id, progress) => self.jobs.progressed(id, progress),
            Input::JobRunsProgram(id) => self.job_runs_program(turn, id),
            Input::JobEnded {
                id,
                outcome,
                attestation,
            } => self.job_ended(turn, id, outcome, attestation),
            Input::SecretMade { name, outcome } => self.secret_made(turn, &name, outcome),
            Input::SecretsObserved { moves, found } => self.secrets_seen(turn, moves, &found),
            Input::Changed { number, outcome } => self.changed(turn, number, outcome),
            Input::ChangesObserved(seen) => self.changes_seen(turn, *seen),
            Input::Published { first, last } => self.stream_holds(turn, first, last),
            Input::HubHeard(report) => self.hub = Some(*report),
            Input::WorksHeard { told_at, answers } => self.works_heard(turn, told_at, answers),
            Input::CredentialsUntil(time) => self.credentials_until = time,
            Input::LocalAccess(access) => self.local_access = Some(access),
            Input::Stop { reason } => self.stop(turn, reason),
            Input::Drained => {
                if let Some(stop) = &mut self.stop {
                    stop.drained = true;
                }
            }
            Input::Ended => self.ended(turn),
        }
    }

    /// Follows up everything that was touched.
    fn follow_up(&mut self, turn: &mut Turn) {
        if let Some(by) = turn.desired_by.take() {
            self.cancel_needless_jobs(turn, &by);
        }
        if turn.may_start_jobs {
            self.start_jobs(turn);
        }
        for target in std::mem::take(&mut turn.touched) {
            if let Target::Container(name) = &target {
                self.reconcile(turn, name);
            }
            self.settle(turn, &target);
        }
    }

    fn outputs(&mut self, turn: Turn) -> Outputs {
        let Turn {
            at,
            now,
            draft,
            commands,
            effects,
            ..
        } = turn;
        let (mut batch, bytes) = self.history.finish(draft, at.time);
        batch.commands = commands;
        if bytes > 0 {
            self.admission.recorded(self.history.state().sequence, bytes);
        }
        let record = Record { batch, effects };
        let is_empty = record.batch.is_empty() && record.effects.is_empty();
        self.recorded += u64::from(!is_empty);
        Outputs {
            now,
            record: (!is_empty).then_some(record),
        }
    }

    /// Records facts, and marks their targets as touched.
    fn record(&mut self, turn: &mut Turn, cause: &Cause, facts: impl IntoIterator<Item = Fact>) {
        for fact in facts {
            self.note(turn, &fact);
            let time = turn.time();
            let forgotten = self.history.record(&mut turn.draft, time, cause, fact);
            if !forgotten.is_empty() {
                turn.effects.push(Effect::ForgetJobs(forgotten));
            }
        }
    }

    /// Marks a fact's target as touched, and updates the bookkeeping of what is in flight.
    fn note(&mut self, turn: &mut Turn, fact: &Fact) {
        let mut touched = None;
        match fact.about() {
            Some(Aggregate::Container(name)) => touched = Some(Target::Container(name.clone())),
            Some(Aggregate::Job(id)) => touched = Some(Target::Job(*id)),
            Some(Aggregate::Leaf | Aggregate::Device(_) | Aggregate::Secret(_)) | None => {}
        }
        match (fact, &touched) {
            (Fact::Container(fact), Some(Target::Container(name))) => {
                if let ContainerFact::Desired(fact) = fact {
                    turn.desired_by = Some(fact.caller.clone());
                }
                if matches!(fact, ContainerFact::Destroyed(_)) {
                    self.renewals.forget(name);
                }
                if changes_desired(fact) {
                    self.reconciler
                        .desired_changed(&Resource::Container(name.clone()));
                }
            }
            (Fact::Job(JobFact::Queued(fact)), _) => {
                turn.may_start_jobs = true;
                if fact.work.is_some() {
                    self.works.accepted(fact.id, turn.at.moment);
                    turn.may_tell_works = true;
                }
            }
            (Fact::Job(JobFact::StoodBy(_) | JobFact::Superseded(_)), _) => turn.may_tell_works = true,
            (Fact::Job(JobFact::TakenOver(_)), _) => {
                turn.may_start_jobs = true;
                turn.may_tell_works = true;
            }
            (Fact::Job(fact), Some(Target::Job(id))) if ends_job(fact) => {
                turn.effects.push(Effect::PublishJobEnd(*id));
                turn.may_tell_works = true;
            }
            (Fact::Job(JobFact::Taken(fact)), _) => {
                turn.effects.push(Effect::TakeSession(fact.id, fact.key.clone()));
            }
            (Fact::Leaf(LeafFact::Labelled(fact)), _) => {
                let labels = labels::effective(&self.settings.labels, &fact.labels);
                turn.effects.push(Effect::ShowLabels(labels));
            }
            _ => {}
        }
        turn.touched.extend(touched);
    }

    // ---- start and end ---------------------------------------------------------------------------------------

    /// Records that the instance started, and resumes what the last one left: containers in transition, jobs, commands.
    fn started(&mut self, turn: &mut Turn, version: String, host: HostFacts) {
        let state = self.history.state();
        let is_booted = state
            .leaf
            .as_ref()
            .is_some_and(|before| before.host.boot_id != host.boot_id);
        let mut facts = vec![Fact::from(LeafStarted {
            leaf: self.history.leaf().clone(),
            instance: self.settings.instance,
            version,
            host,
            provenance_key: self.settings.provenance_key.clone(),
        })];
        if is_booted {
            facts.extend(after_boot(state));
        }
        self.record(turn, &Cause::default(), facts);
        if is_booted {
            let containers = self.history.state().containers.values();
            for container in containers.filter(|container| may_have_started_early(container)) {
                self.reconciler
                    .may_have_started_early(Resource::Container(container.name.clone()));
            }
        }
        self.resume_jobs(turn);
        self.resume_works(turn);
        self.observe_secrets(turn);
        let containers = self.history.state().containers.keys().cloned();
        turn.touched.extend(containers.map(Target::Container));
        turn.touched.extend(self.waiting.targets().cloned());
        turn.desired_by = Some(Caller::daemon());
        turn.may_start_jobs = true;
    }

    fn stream_holds(&mut self, turn: &mut Turn, first: u64, last: u64) {
        self.published = last;
        self.admission.published(last);
        // A stream that begins in the middle of the history needs a snapshot from which a replay can start.
        if first > self.state().snapshot_sequence.max(1) {
            let time = turn.time();
            self.history.snapshot(&mut turn.draft, time);
        }
    }

    fn stop(&mut self, turn: &mut Turn, reason: &'static str) {
        if self.stop.is_some() {
            return;
        }
        self.stop = Some(Stop {
            reason,
            since: turn.at.moment,
            drained: false,
        });
        self.admission.drain();
        self.reconciler.interrupt_all(Interruption::DaemonStops);
        turn.now.push(Immediate::InterruptAll(Interruption::DaemonStops));
    }

    fn ended(&mut self, turn: &mut Turn) {
        let reason = self.stop.map_or("the end", |stop| stop.reason).to_owned();
        let fact = Fact::from(LeafStopped {
            instance: self.settings.instance,
            reason,
        });
        self.record(turn, &Cause::default(), [fact]);
    }

    // ---- queries of the shell --------------------------------------------------------------------------------

    /// Returns the commands that a newer leafd accepted and this one can't answer: they keep waiting.
    #[must_use]
    pub fn set_aside(&self) -> &[CommandRecord] {
        self.waiting.set_aside()
    }

    /// Returns the problem for which changes are refused at the moment; `None` if they are admitted.
    #[must_use]
    pub fn refuses(&self, conditions: &Conditions) -> Option<Problem> {
        self.admission.refuses_changes(conditions)
    }

    /// Returns whether records wait for disk space, so that the state in memory is ahead of the disk.
    #[must_use]
    pub fn is_stuck(&self, conditions: &Conditions) -> bool {
        conditions.full_since.is_some() && self.recorded > conditions.committed
    }

    /// Returns after which time [`Input::TimePassed`] is due, counted from the last one; `None` if it is not needed.
    #[must_use]
    pub fn look_again_after(&self) -> Option<Duration> {
        self.look_again_after
    }

    /// Returns whether the daemon is stopping.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// Returns whether the daemon is stopping, and all accepted work that can be finished soon is finished.
    #[must_use]
    pub fn may_end(&self, moment: Moment, conditions: &Conditions) -> bool {
        let Some(stop) = self.stop else { return false };
        let is_late = moment.since(stop.since) > LAST_COMMANDS;
        let is_waiting = self.waiting.is_soon_over() || !self.secrets.is_idle() || !self.changes.is_idle();
        let is_answered = (stop.drained && !is_waiting) || is_late;
        let is_committed = self.recorded == conditions.committed;
        !self.reconciler.is_under_way(conditions.committed)
            && (self.is_stuck(conditions) || (is_answered && is_committed))
    }
}

/// Returns whether a fact changes the desired state of a container, or ends it.
fn changes_desired(fact: &ContainerFact) -> bool {
    match fact {
        ContainerFact::Desired(_)
        | ContainerFact::Built(_)
        | ContainerFact::Reverted(_)
        | ContainerFact::Destroyed(_) => true,
        ContainerFact::Created(_)
        | ContainerFact::Started(_)
        | ContainerFact::Stopped(_)
        | ContainerFact::Updated(_)
        | ContainerFact::OutOfMemory(_)
        | ContainerFact::Failed(_) => false,
    }
}

/// Returns whether a fact ends a job.
fn ends_job(fact: &JobFact) -> bool {
    match fact {
        JobFact::Succeeded(_) | JobFact::Failed(_) | JobFact::Cancelled(_) | JobFact::Interrupted(_) => true,
        JobFact::Queued(_)
        | JobFact::StoodBy(_)
        | JobFact::TakenOver(_)
        | JobFact::Superseded(_)
        | JobFact::Started(_)
        | JobFact::Attested(_)
        | JobFact::Taken(_) => false,
    }
}

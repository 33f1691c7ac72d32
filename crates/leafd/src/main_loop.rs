//! The shell around the [`Engine`]: passes in the tasks' inputs, commits the records, and carries out their effects.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use leaf_bus::serve::{Incoming, Responder};
use leaf_core::command::{Command, CommandKind};
use leaf_core::decide::InUse;
use leaf_core::engine::{
    Answer, At, Conditions, Effect, Engine, FreeSpace, FreshIds, Immediate, Input, Record, Request,
    RequestId, Seen,
};
use leaf_core::event::HostFacts;
use leaf_core::moment::Moment;
use leaf_core::reconcile::Resource;
use leaf_core::repeats::Repeats;
use leaf_core::signed::Provenance;
use leaf_journal::{Journal, JournalHealth};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use crate::clock::Clock;
use crate::commits::Commits;
use crate::steps::Of;
use crate::tasks::Tasks;
use crate::wake::Wake;
use crate::workers::Workers;
use leaf_host::{notify, pressure};

/// How long commands are remembered, so that a repeated id gets the first reply: 24 hours.
const COMMANDS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// The period in which the watchdog is notified, free disk space is read, and the journal is tidied if due.
const TICK: Duration = Duration::from_secs(10);

/// How old the free disk space may be that a query tells. A change gets it read again.
const FREE_SPACE_LASTS: Duration = Duration::from_millis(100);
/// How old it may be for any other input.
const STORE_SPACE_LASTS: Duration = Duration::from_secs(1);

/// How many inputs are handled at once: a look at everything that may wake the main loop costs as much as a query.
const AT_ONCE: usize = 32;

/// The main loop.
pub struct MainLoop {
    engine: Engine,
    commits: Commits,
    journal: Journal,
    health: watch::Receiver<JournalHealth>,
    requests: Requests,
    workers: Workers,
    clock: Clock,
    /// The free space of the journal's disk, as last read, and when.
    free_bytes: FreeSpace,
    free_bytes_at: Moment,
    store_free_bytes: Option<u64>,
    /// The directory of the Nix store.
    store: PathBuf,
    was_refusing: bool,
    repeats: Repeats,
    /// Whether commands that come from no hub come from clients of the leaf's own server.
    has_own_server: bool,
}

/// The unanswered requests, with their responders.
#[derive(Default)]
struct Requests {
    last: u64,
    responders: BTreeMap<RequestId, Responder>,
}

impl Requests {
    fn add(&mut self, responder: Responder) -> RequestId {
        self.last += 1;
        let id = RequestId(self.last);
        self.responders.insert(id, responder);
        id
    }
}

impl MainLoop {
    /// Returns the main loop of this engine. `has_own_server` says that the leaf has an embedded NATS server.
    #[must_use]
    pub fn new(
        engine: Engine,
        journal: Journal,
        workers: Workers,
        clock: Clock,
        has_own_server: bool,
        store: PathBuf,
    ) -> Self {
        Self {
            engine,
            commits: Commits::new(journal.clone()),
            health: journal.health(),
            journal,
            requests: Requests::default(),
            workers,
            clock,
            free_bytes: FreeSpace::default(),
            free_bytes_at: Moment::default(),
            store_free_bytes: None,
            store,
            was_refusing: false,
            repeats: Repeats::within(COMMANDS_KEPT),
            has_own_server,
        }
    }

    /// Passes the start of the instance to the engine. The effects wait for [`Self::run`].
    pub fn begin(&mut self, version: &str, host: HostFacts) {
        self.read_free_space();
        self.feed(Input::Started {
            version: version.to_owned(),
            host,
        });
    }

    /// Runs until `stop` yields the reason to stop, and records that the leaf stopped. Returns the workers, for their
    /// end.
    ///
    /// # Errors
    /// When the journal can't commit any more, or a task ended unexpectedly.
    pub async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Wake>,
        tasks: &mut Tasks,
        mut stop: oneshot::Receiver<&'static str>,
    ) -> anyhow::Result<Workers> {
        let mut health = self.journal.health();
        let mut tick =
            tokio::time::interval(notify::watchdog_period().map_or(TICK, |period| period.min(TICK)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked_at = Instant::now();
        loop {
            let look = self.engine.look_again_after().map(|after| looked_at + after);
            tokio::select! {
                effects = self.commits.committed(), if self.commits.has_pending() => {
                    self.carry_out(effects.context("the journal can't commit any more")?);
                }
                Some(wake) = inputs.recv() => self.wake_all(wake, &mut inputs),
                Ok(reason) = &mut stop, if !self.engine.is_stopping() => self.begin_to_stop(reason),
                // With a full disk, the end can't wait for a commit.
                Ok(()) = health.changed() => {}
                error = tasks.unexpected_end() => return Err(error),
                error = self.workers.unexpected_end() => return Err(error),
                _ = tick.tick() => self.tick(),
                () = sleep_until(look) => {
                    looked_at = Instant::now();
                    self.feed(Input::TimePassed);
                }
            }
            if self.engine.is_stopping() && self.engine.may_end(self.clock.now(), &self.conditions()) {
                break;
            }
        }
        if self.is_stuck() {
            tracing::warn!(
                "the disk is full: the end is not recorded, and commands that were not accepted yet are dropped"
            );
            return Ok(self.workers);
        }
        self.feed(Input::Ended);
        while self.commits.has_pending() && !self.is_stuck() {
            tokio::select! {
                effects = self.commits.committed() => {
                    self.carry_out(effects.context("can't store the last events")?);
                }
                _ = health.changed() => {}
            }
        }
        Ok(self.workers)
    }

    fn is_stuck(&self) -> bool {
        self.engine.is_stuck(&self.conditions())
    }

    fn begin_to_stop(&mut self, reason: &'static str) {
        tracing::info!(reason, "stopping");
        notify::stopping();
        self.feed(Input::Stop { reason });
    }

    fn tick(&mut self) {
        notify::alive();
        self.read_free_space();
        let problem = self.engine.refuses(&self.conditions());
        match &problem {
            Some(problem) if !self.was_refusing => {
                tracing::warn!(reason = problem.detail, "commands are refused");
            }
            None if self.was_refusing => tracing::info!("commands are accepted again"),
            _ => {}
        }
        self.was_refusing = problem.is_some();
        // The engine tells of the store's disk with any input.
        self.feed(Input::TimePassed);
        self.mirror();
        let before = self.repeats.begin(Timestamp::now(), self.clock.now());
        let jobs = self.engine.state().jobs.values();
        self.workers
            .show_open_jobs(jobs.filter(|job| !job.phase.is_final()));
        self.workers.housekeep(&self.journal, before);
    }

    // ---- in --------------------------------------------------------------------------------------------------

    /// Handles an input, and those that wait behind it.
    fn wake_all(&mut self, first: Wake, inputs: &mut mpsc::Receiver<Wake>) {
        self.wake(first);
        for _ in 1..AT_ONCE {
            let Ok(next) = inputs.try_recv() else { break };
            self.wake(next);
        }
    }

    fn wake(&mut self, wake: Wake) {
        let input = match wake {
            Wake::Command(incoming, provenance) => self.request(*incoming, provenance),
            Wake::Input(input) => *input,
        };
        if let Input::StepsEnded { name, .. } = &input {
            self.workers.steps_ended(name);
        } else if let Input::JobEnded { id, .. } = &input {
            self.workers.job_ended(*id);
        }
        self.feed(input);
    }

    /// Returns an arrived command as an input, with the facts that the engine can't look up.
    fn request(&mut self, incoming: Incoming, provenance: Provenance) -> Input {
        let Incoming {
            caller,
            noun,
            verb,
            command_id,
            correlation,
            signed: _,
            session: _,
            transfer: _,
            from_hub,
            body,
            responder,
        } = incoming;
        let command = Command::parse(&noun, &verb, &body);
        let is_query = command
            .as_ref()
            .is_ok_and(|command| command.kind() == CommandKind::Query);
        if !is_query || self.clock.now().since(self.free_bytes_at) > FREE_SPACE_LASTS {
            self.read_free_space();
        }
        let mut request = Request {
            id: self.requests.add(responder),
            caller,
            command_id,
            correlation,
            command,
            provenance,
            is_local: self.has_own_server && !from_hub,
            seen: Seen::No,
        };
        if let Some((caller, id)) = request.is_repeatable() {
            request.seen = self.commits.seen(caller, id);
        }
        Input::Command(Box::new(request))
    }

    fn read_free_space(&mut self) {
        self.free_bytes = match self.journal.free_bytes() {
            Ok(bytes) => FreeSpace::Bytes(bytes),
            Err(error) => FreeSpace::Unknown(error.to_string()),
        };
        self.store_free_bytes = leaf_nix::gc::free_bytes(&self.store).ok();
        self.free_bytes_at = self.clock.now();
    }

    fn conditions(&self) -> Conditions {
        let full_since = match &*self.health.borrow() {
            JournalHealth::DiskFull { since } => Some(*since),
            JournalHealth::Ok | JournalHealth::Failed { .. } => None,
        };
        Conditions {
            full_since,
            queued_bytes: self.journal.queued_bytes() as u64,
            free_bytes: self.free_bytes.clone(),
            store_free_bytes: self.store_free_bytes,
            durable_sequence: self.journal.last_sequence(),
            committed: self.commits.count(),
            max_message_bytes: self.workers.max_message_bytes(),
            pressure: None,
        }
    }

    fn feed(&mut self, input: Input) {
        if self.clock.now().since(self.free_bytes_at) > STORE_SPACE_LASTS {
            self.read_free_space();
        }
        let mut conditions = self.conditions();
        if input.depends_on_pressure() {
            conditions.pressure = pressure::read();
        }
        let at = At {
            time: Timestamp::now(),
            moment: self.clock.now(),
            ids: FreshIds::new(Uuid::now_v7()),
            conditions,
            in_use: if input.adds_container() {
                self.workers.in_use()
            } else {
                InUse::default()
            },
        };
        let outputs = self.engine.handle(at, input);
        for immediate in outputs.now {
            match immediate {
                Immediate::Answer(answer) => self.answer(answer),
                Immediate::InterruptAll(interruption) => self.workers.interrupt_all(interruption),
                Immediate::RenewCredentials(container) => {
                    self.workers.take_steps(*container, Of::Renewal, Duration::ZERO);
                }
            }
        }
        if let Some(record) = outputs.record {
            log(&record);
            let effects = self.commits.push(record);
            self.carry_out(effects);
        }
    }

    // ---- out -------------------------------------------------------------------------------------------------

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Answer(answer) => self.answer(answer),
                Effect::Ask { to, id, question } => {
                    if let Some(responder) = self.requests.responders.remove(&to) {
                        self.workers.ask(responder, id, question);
                    }
                }
                Effect::ScanHardware { rescan } => self.workers.scan_hardware(rescan),
                Effect::FindForeign(name) => self.workers.find_foreign(name),
                Effect::ChangeSecret(change) => self.workers.change_secret(change),
                Effect::ObserveSecrets { moves } => self.workers.observe_secrets(moves),
                Effect::Change { number, step } => self.workers.change(number, step),
                Effect::TakeSteps {
                    container,
                    after,
                    renew,
                } => self.workers.take_steps(*container, Of::Desired { renew }, after),
                Effect::Interrupt {
                    resource: Resource::Container(name),
                    interruption,
                } => self.workers.interrupt(&name, interruption),
                Effect::RunJob(job) => self.workers.run_job(*job),
                Effect::CancelJob(id) => self.workers.cancel_job(id),
                Effect::ForgetJobs(ids) => self.workers.forget_jobs(ids),
                Effect::PublishJobEnd(id) => self.workers.publish_job_end(id),
                Effect::TakeSession(id, key) => self.workers.take_session(id, key),
                Effect::TellWorks(works) => self.workers.tell_works(works),
                Effect::ShowLabels(labels) => self.workers.show_labels(labels),
            }
        }
        self.mirror();
    }

    fn answer(&mut self, answer: Answer) {
        let Answer { to, id, reply } = answer;
        if let Err(problem) = &reply {
            tracing::info!(command = %id, %problem, "answered with a problem");
        }
        if let Some(responder) = self.requests.responders.remove(&to) {
            self.workers.reply(responder, id, reply);
        }
    }

    /// Passes changed entries of the state to the bucket's writer, if it has room for them.
    fn mirror(&mut self) {
        if self.commits.has_changed() {
            self.workers.mirror(|| self.commits.take_changed());
        }
    }
}

/// Waits until then; forever without a time.
async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Logs the recorded facts.
fn log(record: &Record) {
    for event in &record.batch.events {
        tracing::info!(sequence = event.sequence, subject = event.subject, "recorded");
    }
    for command in &record.batch.commands {
        let (id, caller, what) = (&command.id, &command.caller, &command.noun_verb);
        match &command.outcome {
            None => tracing::info!(command = %id, %caller, what, "accepted"),
            Some(outcome) if outcome.problem => tracing::warn!(command = %id, %caller, what, "failed"),
            Some(_) => tracing::info!(command = %id, %caller, what, "succeeded"),
        }
    }
}

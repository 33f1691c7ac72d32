//! Carries out the engine's effects. Work that takes time runs beside the main loop, and its end comes back as an
//! [`Input`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use jiff::Timestamp;
use leaf_bus::connect::Bus;
use leaf_bus::serve::Responder;
use leaf_container::{Foreign, ObserveError, ObserveErrorKind};
use leaf_core::command::{ContainerList, JobActivities, LogChunk};
use leaf_core::container::Container;
use leaf_core::decide::{ChangeStep, InUse, Question, SecretChange};
use leaf_core::engine::{Capabilities, Input};
use leaf_core::error::chain;
use leaf_core::event::ContainerStep;
use leaf_core::fleet::work::WorkTold;
use leaf_core::id::{CommandId, ContainerName, JobId, LeafName};
use leaf_core::job::{Job, JobOutcome};
use leaf_core::json::to_json;
use leaf_core::labels::Labels;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::reconcile::Interruption;
use leaf_core::reconcile::container::{StepFailure, StepsOutcome};
use leaf_job::JobError;
use leaf_journal::Journal;
use leaf_nix::Nix;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::changes::{self, HubSettings};
use crate::clock::Clock;
use crate::helper::HostHelper;
use crate::job::{self, JobHost};
use crate::provenance::Attester;
use crate::publisher::Published;
use crate::secrets;
use crate::sessions::News;
use crate::steps::{ContainerHost, InFlight, Interruptions, Of, Steps};
use crate::systems::SystemLinks;
use crate::tasks::Tasks;
use crate::transfers;
use crate::trust::Trust;
use crate::wake::Wake;

/// The period in which the journal is tidied; keeping more costs only disk space.
const TIDY_EVERY: Duration = Duration::from_secs(600);

/// The size of a log page, in bytes.
const LOG_BYTES: usize = 512 * 1024;
/// The least size of a log page, in bytes, and the room for the other fields of a page.
const LEAST_LOG_BYTES: usize = 256;
const LOG_ROOM: usize = 256;

/// Carries out effects beside the main loop.
pub struct Workers {
    equipment: Equipment,
    tasks: Tasks,
    /// Tasks that may block a thread: files, processes.
    steps: Tasks,
    tidied_at: Instant,
    interruptions: Interruptions,
    cancels: BTreeMap<JobId, watch::Sender<bool>>,
}

/// The workers' channels, and what they work with.
pub struct Equipment {
    /// The leaf.
    pub leaf: LeafName,
    /// Messages to the main loop.
    pub inputs: mpsc::Sender<Wake>,
    /// The connection.
    pub bus: Bus,
    /// The host of containers, or the reason why this leaf runs none.
    pub containers: Result<Arc<ContainerHost>, String>,
    /// The helper that keeps secrets, or the reason why this leaf keeps none.
    pub secrets: Result<HostHelper, String>,
    /// The helper that makes changes which can cut the leaf off, or the reason why this leaf makes none.
    pub changes: Result<HostHelper, String>,
    /// The hub, and the settings that it comes from.
    pub hub: HubSettings,
    /// The host of jobs, or the reason why this leaf runs none.
    pub jobs: Result<JobHost, String>,
    /// Numbers of requested rescans.
    pub scans: mpsc::Sender<u64>,
    /// Changed entries of the state, for the bucket.
    pub mirror: mpsc::Sender<BTreeMap<String, Option<Bytes>>>,
    /// The known content of the stream.
    pub published: watch::Receiver<Published>,
    /// The leaf's labels, for its beat.
    pub labels: watch::Sender<Labels>,
    /// The works that the hub agent is told of.
    pub works: watch::Sender<Vec<WorkTold>>,
    /// The runtime for steps on the host, so that they don't delay replies.
    pub steps: Handle,
    /// The containers with steps in flight.
    pub in_flight: InFlight,
    /// The monotonic clock of this run.
    pub clock: Clock,
    /// Judges signatures.
    pub trust: Trust,
    /// Takes the news of jobs with a session.
    pub sessions: mpsc::Sender<News>,
    /// Takes what callers mean to send to the store.
    pub transfers: mpsc::Sender<transfers::Message>,
}

impl Workers {
    /// Returns the workers; nothing runs yet.
    #[must_use]
    pub fn new(equipment: Equipment) -> Self {
        Self {
            tasks: Tasks::default(),
            steps: Tasks::on(equipment.steps.clone()),
            tidied_at: Instant::now(),
            interruptions: Interruptions::new(equipment.in_flight.clone()),
            cancels: BTreeMap::new(),
            equipment,
        }
    }

    /// Returns the capabilities of this leaf.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        Capabilities {
            containers: self.equipment.containers.as_ref().map(drop).map_err(Clone::clone),
            nix: self.equipment.jobs.as_ref().map(drop).map_err(Clone::clone),
            secrets: self.equipment.secrets.as_ref().map(drop).map_err(Clone::clone),
        }
    }

    /// Returns the system of the leaf's Nix and the further ones that it builds for; empty if it runs no jobs.
    #[must_use]
    pub fn systems(&self) -> (String, BTreeSet<String>) {
        let jobs = self.equipment.jobs.as_ref();
        jobs.map(|host| (host.system.clone(), host.more_systems.clone()))
            .unwrap_or_default()
    }

    /// Returns the public key of the leaf's statements about builds, if it makes any.
    #[must_use]
    pub fn provenance_key(&self) -> Option<String> {
        let jobs = self.equipment.jobs.as_ref().ok()?;
        jobs.attester.as_ref().map(Attester::public_key)
    }

    /// Returns the largest message that the NATS server accepts, in bytes; `None` before the first connection.
    #[must_use]
    pub fn max_message_bytes(&self) -> Option<usize> {
        self.equipment.bus.max_message_bytes()
    }

    /// Returns the networks and names in use on the host, for a new container. If they can't be read, the helper still
    /// refuses the name or an address of another container. Blocks for a moment.
    #[must_use]
    pub fn in_use(&self) -> InUse {
        let Ok(host) = &self.equipment.containers else {
            return InUse::default();
        };
        host.view.in_use().unwrap_or_else(|error| {
            tracing::warn!(
                error = chain(&error),
                "can't read the names and addresses in use on this host"
            );
            InUse::default()
        })
    }

    /// Waits until a worker ends that should not have ended, and returns the error.
    pub async fn unexpected_end(&mut self) -> anyhow::Error {
        tokio::select! {
            error = self.tasks.unexpected_end() => error,
            error = self.steps.unexpected_end() => error,
        }
    }

    /// Ends all running work; containers and jobs continue.
    pub async fn stop(self) {
        self.steps.stop().await;
        self.tasks.stop().await;
    }

    /// Passes changed entries of the state to the bucket's writer, if it has room.
    pub fn mirror(&self, take: impl FnOnce() -> BTreeMap<String, Option<Bytes>>) {
        if let Ok(permit) = self.equipment.mirror.try_reserve() {
            permit.send(take());
        }
    }

    /// Tidies the journal if due: removes events that the stream has on its disk, and commands accepted before
    /// `before`.
    pub fn housekeep(&mut self, journal: &Journal, before: Timestamp) {
        if self.tidied_at.elapsed() < TIDY_EVERY {
            return;
        }
        self.tidied_at = Instant::now();
        let stored = self.equipment.published.borrow().stored;
        let journal = journal.clone();
        let trusted = self.equipment.trust.trusted_time();
        self.tasks.run(async move {
            if stored > 0 && stored >= journal.first_sequence() {
                warn_if_failed(journal.forget_events(stored).await);
            }
            warn_if_failed(journal.forget_commands(before, trusted).await);
        });
    }

    // ---- replies ---------------------------------------------------------------------------------------------

    /// Sends a reply.
    pub fn reply(&mut self, responder: Responder, id: CommandId, reply: Result<Vec<u8>, Problem>) {
        let mut sent = Box::pin(async move { responder.reply(Some(&id), reply).await });
        // The connection nearly always has room for it. A task of its own would cost more than the reply.
        if sent.as_mut().now_or_never().is_none() {
            self.tasks.run(sent);
        }
    }

    /// Answers a question from the host's observed state.
    pub fn ask(&mut self, responder: Responder, id: CommandId, question: Question) {
        let containers = self.equipment.containers.clone();
        let room = responder.room();
        let view = move || {
            containers
                .map(|host| host.view.clone())
                .map_err(|why| Problem::new(ProblemCode::Unsupported, why))
        };
        match question {
            Question::JobLog { job, offset, ended } => {
                let host = self.equipment.jobs.clone();
                self.reply_with(responder, id, move || {
                    let host = host.map_err(|why| Problem::new(ProblemCode::Unsupported, why))?;
                    log_page(room, |bytes| match host.jobs.read_log(job, offset, bytes) {
                        Ok(chunk) => Ok(chunk),
                        // A job that was never started has no log: for now, or for good if it has ended.
                        Err(JobError::NoJob(_)) => Ok(LogChunk {
                            text: String::new(),
                            next_offset: offset,
                            complete: ended,
                        }),
                        Err(error) => Err(failed("can't read the log", &error)),
                    })
                });
            }
            Question::JobActivities { job, now, running } => {
                let host = self.equipment.jobs.clone();
                self.reply_with(responder, id, move || {
                    let host = host.map_err(|why| Problem::new(ProblemCode::Unsupported, why))?;
                    let activities = running.then(|| host.jobs.activities(job)).flatten();
                    Ok(to_json(&JobActivities { now, activities }))
                });
            }
            Question::ContainerLog(query) => self.reply_with(responder, id, move || {
                let view = view()?;
                log_page(room, |bytes| {
                    view.logs(&query, bytes)
                        .map_err(|error| not_observed("can't read the log", &error))
                })
            }),
            Question::ContainerStats(name) => self.reply_with(responder, id, move || {
                let stats = view()?
                    .stats(&name)
                    .map_err(|error| not_observed("can't read its resource usage", &error))?;
                Ok(to_json(&stats))
            }),
            Question::Challenge(caller) => {
                let trust = self.equipment.trust.clone();
                self.reply_with(responder, id, move || Ok(to_json(&trust.challenge(&caller))));
            }
            Question::Recipient => {
                let helper = self.equipment.secrets.clone();
                self.tasks.run(async move {
                    let reply = secrets::recipient(helper).await;
                    let reply = reply.map_err(|problem| problem.about(&id));
                    responder.reply(Some(&id), reply).await;
                });
            }
            Question::Lacking(caller, paths) => {
                let put = transfers::Message::Put {
                    caller,
                    paths,
                    id: id.clone(),
                    responder,
                };
                if let Err(error) = self.equipment.transfers.try_send(put)
                    && let transfers::Message::Put { responder, .. } = error.into_inner()
                {
                    let problem = Problem::new(
                        ProblemCode::Overloaded,
                        "too many uploads begin at once: try again later",
                    );
                    self.reply(responder, id, Err(problem));
                }
            }
            Question::Stored {
                caller,
                paths,
                closure,
            } => {
                let wanted = transfers::Message::Get(transfers::Wanted {
                    caller,
                    paths,
                    closure,
                    id: id.clone(),
                    responder,
                });
                if let Err(error) = self.equipment.transfers.try_send(wanted)
                    && let transfers::Message::Get(wanted) = error.into_inner()
                {
                    let why = "too many transfers begin at once: try again later";
                    let problem = Problem::new(ProblemCode::Overloaded, why);
                    self.reply(wanted.responder, id, Err(problem));
                }
            }
            Question::Generations => {
                let hub = self.equipment.hub.clone();
                self.reply_with(responder, id, move || {
                    let changes = changes::of_the_system(&hub).map_err(|(path, error)| {
                        Problem::new(
                            ProblemCode::Failed,
                            format!("can't read {}: {error}", path.display()),
                        )
                    })?;
                    Ok(to_json(&SystemLinks::default().report(changes)))
                });
            }
            Question::Containers(containers) => self.reply_with(responder, id, move || {
                // A leaf that runs no containers may still have some in its state.
                let seen = match view() {
                    Ok(view) => view
                        .foreign()
                        .map_err(|error| failed("can't list the host's containers", &error))?,
                    Err(_) => Foreign::default(),
                };
                Ok(to_json(&ContainerList {
                    containers,
                    foreign: seen.containers,
                    problems: seen.problems,
                }))
            }),
        }
    }

    fn reply_with(
        &mut self,
        responder: Responder,
        id: CommandId,
        read: impl FnOnce() -> Result<Vec<u8>, Problem> + Send + 'static,
    ) {
        self.tasks.run(async move {
            let reply = tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| {
                Err(Problem::new(
                    ProblemCode::Failed,
                    "the worker ended unexpectedly: see the leaf's log",
                ))
            });
            responder
                .reply(Some(&id), reply.map_err(|problem| problem.about(&id)))
                .await;
        });
    }

    // ---- steps -----------------------------------------------------------------------------------------------

    /// Requests a hardware scan for this rescan.
    pub fn scan_hardware(&mut self, rescan: u64) {
        let scans = self.equipment.scans.clone();
        self.tasks.run(async move {
            // Fails only when the daemon is ending and the scanning task is gone.
            let _ = scans.send(rescan).await;
        });
    }

    /// Searches the host for a foreign container of this name.
    pub fn find_foreign(&mut self, name: ContainerName) {
        let Ok(host) = &self.equipment.containers else {
            return;
        };
        let (view, inputs) = (host.view.clone(), self.equipment.inputs.clone());
        self.tasks.run(async move {
            let found = tokio::task::spawn_blocking(move || view.foreign()).await;
            let found = match found {
                Ok(Ok(all)) => Ok(all.containers.into_iter().find(|foreign| foreign.name == name)),
                Ok(Err(error)) => Err(failed("can't list the host's containers", &error)),
                Err(error) => Err(Problem::new(ProblemCode::Failed, error.to_string())),
            };
            // Fails only when the daemon is ending and the main loop is gone.
            let _ = inputs.send(Input::ForeignObserved { name, found }.into()).await;
        });
    }

    /// Has the helper change a secret.
    pub fn change_secret(&mut self, change: SecretChange) {
        let (helper, inputs) = (self.equipment.secrets.clone(), self.equipment.inputs.clone());
        self.steps.run(async move {
            let name = change.name().clone();
            let outcome = secrets::change(helper, change).await;
            // Fails only when the daemon is ending and the main loop is gone.
            let _ = inputs.send(Input::SecretMade { name, outcome }.into()).await;
        });
    }

    /// Has the helper carry out a step of a change that can cut the leaf off.
    pub fn change(&mut self, number: u64, step: ChangeStep) {
        let (helper, hub) = (self.equipment.changes.clone(), self.equipment.hub.clone());
        let inputs = self.equipment.inputs.clone();
        self.steps.run(async move {
            let outcome = changes::carry_out(helper, hub, step).await;
            // Fails only when the daemon is ending and the main loop is gone.
            let _ = inputs.send(Input::Changed { number, outcome }.into()).await;
        });
    }

    /// Observes the host's secrets.
    pub fn observe_secrets(&mut self, moves: u64) {
        let (helper, inputs) = (self.equipment.secrets.clone(), self.equipment.inputs.clone());
        self.tasks.run(async move {
            let found = secrets::observe(helper).await;
            let _ = inputs.send(Input::SecretsObserved { moves, found }.into()).await;
        });
    }

    /// Takes a container's steps, after a pause.
    pub fn take_steps(&mut self, container: Container, of: Of, after: Duration) {
        let (inputs, name) = (self.equipment.inputs.clone(), container.name.clone());
        let interruption = self.interruptions.begin(&name);
        let steps = self.equipment.containers.clone().map(|host| Steps {
            leaf: self.equipment.leaf.clone(),
            host,
            clock: self.equipment.clock,
            container,
            interruption,
            of,
            given: None,
        });
        self.steps.run(async move {
            let outcome = match steps {
                Ok(steps) => steps.take(after).await,
                Err(reason) => StepsOutcome {
                    observed: None,
                    failure: Some(StepFailure {
                        step: ContainerStep::Look,
                        reason,
                        helper_gone: false,
                    }),
                    interrupted: false,
                    given: None,
                },
            };
            let _ = inputs.send(Input::StepsEnded { name, outcome }.into()).await;
        });
    }

    /// Interrupts a container's steps in flight.
    pub fn interrupt(&mut self, name: &ContainerName, interruption: Interruption) {
        self.interruptions.tell(name, interruption);
    }

    /// Interrupts all steps in flight, and those that begin later.
    pub fn interrupt_all(&mut self, interruption: Interruption) {
        self.interruptions.tell_all(interruption);
    }

    /// Removes a container's steps, which have ended.
    pub fn steps_ended(&mut self, name: &ContainerName) {
        self.interruptions.end(name);
    }

    /// Runs a job, or follows a running one.
    pub fn run_job(&mut self, job: Job) {
        let inputs = self.equipment.inputs.clone();
        let host = self.equipment.jobs.clone();
        let bus = self.equipment.bus.clone();
        let leaf = self.equipment.leaf.clone();
        let (cancel, cancelled) = watch::channel(false);
        self.cancels.insert(job.id, cancel.clone());
        let sessions = self.equipment.sessions.clone();
        self.steps.run(async move {
            match host {
                Ok(host) => {
                    let began = News::Began {
                        job: Box::new(job.clone()),
                        cancel,
                    };
                    // Fails only when the daemon is ending.
                    let _ = sessions.send(began).await;
                    job::run(&host, &job, &bus, &leaf, &inputs, &sessions, cancelled).await;
                    let _ = sessions.send(News::Ended(job.id)).await;
                }
                Err(why) => {
                    let outcome = JobOutcome::Failed(why.into());
                    let _ = inputs
                        .send(
                            Input::JobEnded {
                                id: job.id,
                                outcome,
                                attestation: None,
                            }
                            .into(),
                        )
                        .await;
                }
            }
        });
    }

    /// Cancels a job that runs or is about to. Its end is an input from the task that runs it.
    pub fn cancel_job(&mut self, id: JobId) {
        if let Some(cancel) = self.cancels.get(&id) {
            cancel.send_replace(true);
        }
    }

    /// Removes the cancellation channel of a job, which has ended.
    pub fn job_ended(&mut self, id: JobId) {
        self.cancels.remove(&id);
    }

    /// Removes logs and GC roots of jobs that the leaf does not remember any more.
    pub fn forget_jobs(&mut self, forgotten: Vec<JobId>) {
        let Ok(host) = self.equipment.jobs.clone() else {
            return;
        };
        self.steps.run(async move {
            for id in forgotten {
                if let Err(error) = host.remove(id).await {
                    tracing::warn!(%id, error = chain(&error), "can't remove a job's files");
                }
            }
        });
    }

    /// Has a session belong to the client with this key.
    pub fn take_session(&mut self, id: JobId, key: String) {
        let sessions = self.equipment.sessions.clone();
        self.tasks.run(async move {
            // Fails only when the daemon is ending.
            let _ = sessions.send(News::Taken(id, key)).await;
        });
    }

    /// Says what the open jobs are about, so that what callers sent for them is held.
    pub fn show_open_jobs<'a>(&self, jobs: impl Iterator<Item = &'a Job>) {
        let texts = jobs.map(|job| String::from_utf8_lossy(&to_json(&job.task)).into_owned());
        // Said again in a moment.
        let _ = self
            .equipment
            .transfers
            .try_send(transfers::Message::Jobs(texts.collect()));
    }

    /// Returns Nix, if this leaf has it.
    #[must_use]
    pub fn nix(&self) -> Option<Nix> {
        self.equipment.jobs.as_ref().ok().map(|host| host.nix.clone())
    }

    /// Puts labels of the leaf into its beat.
    pub fn show_labels(&self, labels: Labels) {
        self.equipment.labels.send_replace(labels);
    }

    /// Has the hub agent told of these works, also if they are the same as before.
    pub fn tell_works(&self, works: Vec<WorkTold>) {
        self.equipment.works.send_replace(works);
    }

    /// Publishes that a job has ended.
    pub fn publish_job_end(&mut self, job: JobId) {
        let bus = self.equipment.bus.clone();
        let leaf = self.equipment.leaf.clone();
        self.tasks.run(async move { bus.publish_ended(&leaf, job).await });
    }
}

/// Returns a page of a log, as JSON, that fits into one message with this room for its body. JSON may need several bytes for
/// one of the text.
fn log_page<T: Serialize>(
    room: usize,
    read: impl Fn(usize) -> Result<T, Problem>,
) -> Result<Vec<u8>, Problem> {
    let mut bytes = LOG_BYTES.min(room.saturating_sub(LOG_ROOM)).max(LEAST_LOG_BYTES);
    loop {
        let page = to_json(&read(bytes)?);
        if page.len() <= room || bytes == LEAST_LOG_BYTES {
            return Ok(page);
        }
        bytes = (bytes / 2).max(LEAST_LOG_BYTES);
    }
}

fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> Problem {
    tracing::warn!(error, "{what}");
    Problem::new(ProblemCode::Failed, format!("{what}: {}", chain(error)))
}

/// Returns the problem of a failed observation of a container, which is not always the host's fault.
fn not_observed(what: &str, error: &ObserveError) -> Problem {
    let code = match error.kind() {
        ObserveErrorKind::NotNow => ProblemCode::Conflict,
        ObserveErrorKind::Invalid => ProblemCode::Invalid,
        ObserveErrorKind::Unsupported => ProblemCode::Unsupported,
        ObserveErrorKind::Failed => return failed(what, error),
    };
    Problem::new(code, error.to_string())
}

fn warn_if_failed<E: std::error::Error + 'static>(result: Result<(), E>) {
    if let Err(error) = result {
        tracing::warn!(error = chain(&error), "can't tidy the journal");
    }
}

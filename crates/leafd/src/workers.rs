//! Those who take steps on the host: each works beside the main loop and comes back to it as an [`Input`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use leaf_bus::connect::Bus;
use leaf_bus::serve::Responder;
use leaf_container::{LookError, LookErrorKind};
use leaf_core::command::{Command, ContainerList, LogChunk, Need};
use leaf_core::container::Container;
use leaf_core::error::chain;
use leaf_core::event::ContainerStep;
use leaf_core::host_op::{HostOpError, HostOpErrorKind};
use leaf_core::id::{CommandId, ContainerName, JobId, LeafName};
use leaf_core::job::{Job, JobOutcome};
use leaf_core::problem::{Problem, ProblemCode};
use leaf_job::JobError;
use leaf_journal::Journal;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::input::{Input, Question};
use crate::job::{self, JobHost};
use crate::main_loop::to_body;
use crate::publisher::Published;
use crate::steps::{self, ContainerHost, Hurry, Taken};
use crate::tasks::Tasks;

/// How often the journal is tidied; what is kept longer costs only disk space.
const TIDY_EVERY: Duration = Duration::from_secs(600);

/// How much of a log goes into one answer, in bytes.
const LOG_BYTES: usize = 512 * 1024;

/// Those who take steps on the host.
pub struct Workers {
    leaf: LeafName,
    inputs: mpsc::Sender<Input>,
    tasks: Tasks,
    /// What may hold up a thread: files, processes.
    steps: Tasks,
    bus: Bus,
    containers: Result<Arc<ContainerHost>, String>,
    jobs: Result<JobHost, String>,
    looks: mpsc::Sender<u64>,
    mirror: mpsc::Sender<BTreeMap<String, Option<Bytes>>>,
    published: watch::Receiver<Published>,
    tidied_at: Instant,
    hurries: BTreeMap<ContainerName, watch::Sender<Hurry>>,
    cancels: BTreeMap<JobId, watch::Sender<bool>>,
}

/// The ends of the channels that the workers hold, and what they work with.
pub struct Equipment {
    /// The leaf.
    pub leaf: LeafName,
    /// To the main loop.
    pub inputs: mpsc::Sender<Input>,
    /// The connection.
    pub bus: Bus,
    /// Containers, or why there are none.
    pub containers: Result<Arc<ContainerHost>, String>,
    /// Nix, or why it can't be used.
    pub jobs: Result<JobHost, String>,
    /// Asks for a look at the hardware.
    pub looks: mpsc::Sender<u64>,
    /// Takes changed entries of the state for the bucket.
    pub mirror: mpsc::Sender<BTreeMap<String, Option<Bytes>>>,
    /// What the stream is known to hold.
    pub published: watch::Receiver<Published>,
    /// Where steps on the host are taken, so that they don't hold up answers.
    pub steps: Handle,
}

impl Workers {
    /// Returns the workers; nobody works yet.
    #[must_use]
    pub fn new(equipment: Equipment) -> Self {
        let Equipment {
            leaf,
            inputs,
            bus,
            containers,
            jobs,
            looks,
            mirror,
            published,
            steps,
        } = equipment;
        Self {
            leaf,
            inputs,
            tasks: Tasks::default(),
            steps: Tasks::on(steps),
            bus,
            containers,
            jobs,
            looks,
            mirror,
            published,
            tidied_at: Instant::now(),
            hurries: BTreeMap::new(),
            cancels: BTreeMap::new(),
        }
    }

    /// Returns a problem if this leaf lacks what the command needs.
    ///
    /// # Errors
    /// A [`Problem`] that says what is missing.
    pub fn can_do(&self, command: &Command) -> Result<(), Problem> {
        let unsupported = |why: &String| Problem::new(ProblemCode::Unsupported, why.clone());
        match command.declaration().need {
            Need::Nothing => Ok(()),
            Need::Containers => self.containers.as_ref().map(drop).map_err(unsupported),
            Need::Nix => self.jobs.as_ref().map(drop).map_err(unsupported),
        }
    }

    /// The last sequence number that the stream is known to hold.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.published.borrow().sequence
    }

    /// Waits until one of the workers ends who should not have.
    pub async fn unexpected_end(&mut self) -> anyhow::Error {
        tokio::select! {
            error = self.tasks.unexpected_end() => error,
            error = self.steps.unexpected_end() => error,
        }
    }

    /// Ends what is still under way; containers and jobs go on.
    pub async fn stop(self) {
        self.steps.stop().await;
        self.tasks.stop().await;
    }

    /// Hands changed entries of the state to the bucket's writer, if it can take more.
    pub fn mirror(&self, take: impl FnOnce() -> BTreeMap<String, Option<Bytes>>) {
        if let Ok(permit) = self.mirror.try_reserve() {
            permit.send(take());
        }
    }

    /// Lets go, from time to time, of what need not be kept: events that the stream has on its disk, and commands accepted before this.
    pub fn housekeep(&mut self, journal: &Journal, before: Timestamp) {
        if self.tidied_at.elapsed() < TIDY_EVERY {
            return;
        }
        self.tidied_at = Instant::now();
        let stored = self.published.borrow().stored;
        let journal = journal.clone();
        self.tasks.run(async move {
            if stored > 0 && stored >= journal.first_sequence() {
                warn_if_failed(journal.forget_events(stored).await);
            }
            warn_if_failed(journal.forget_commands(before).await);
        });
    }

    // ---- answers ---------------------------------------------------------------------------------------------

    /// Sends an answer.
    pub fn reply(&mut self, responder: Responder, id: CommandId, reply: Result<Vec<u8>, Problem>) {
        self.tasks
            .run(async move { responder.reply(Some(&id), reply).await });
    }

    /// Answers what only the host can answer.
    pub fn answer(&mut self, responder: Responder, id: CommandId, question: Question) {
        let containers = self.containers.clone();
        let view = move || {
            containers
                .map(|host| host.view.clone())
                .map_err(|why| Problem::new(ProblemCode::Unsupported, why))
        };
        match question {
            Question::JobLog { job, offset, ended } => {
                let host = self.jobs.clone();
                self.reply_with(responder, id, move || {
                    let host = host.map_err(|why| Problem::new(ProblemCode::Unsupported, why))?;
                    match host.jobs.read_log(job, offset, LOG_BYTES) {
                        Ok(chunk) => Ok(to_body(&chunk)),
                        // A job that was never begun has none: so far, or for good if it has ended.
                        Err(JobError::NoJob(_)) => Ok(to_body(&LogChunk {
                            text: String::new(),
                            next_offset: offset,
                            complete: ended,
                        })),
                        Err(error) => Err(failed("the log can't be read", &error)),
                    }
                });
            }
            Question::ContainerLog(query) => self.reply_with(responder, id, move || {
                let log = view()?
                    .logs(&query, LOG_BYTES)
                    .map_err(|error| not_seen("the log can't be read", &error))?;
                Ok(to_body(&log))
            }),
            Question::ContainerStats(name) => self.reply_with(responder, id, move || {
                let stats = view()?
                    .stats(&name)
                    .map_err(|error| not_seen("what it uses can't be told", &error))?;
                Ok(to_body(&stats))
            }),
            Question::Containers(containers) => self.reply_with(responder, id, move || {
                // A leaf that runs none may have some in its state all the same.
                let foreign = match view() {
                    Ok(view) => view
                        .foreign()
                        .map_err(|error| failed("the host's containers can't be listed", &error))?,
                    Err(_) => Vec::new(),
                };
                Ok(to_body(&ContainerList { containers, foreign }))
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
                    "the reader ended unexpectedly: see the leaf's log",
                ))
            });
            responder
                .reply(Some(&id), reply.map_err(|problem| problem.about(&id)))
                .await;
        });
    }

    // ---- steps -----------------------------------------------------------------------------------------------

    /// Asks for a look at the hardware.
    pub fn look_at_hardware(&mut self, rescan: u64) {
        let looks = self.looks.clone();
        self.tasks.run(async move {
            // Nobody looks any more when the daemon ends.
            let _ = looks.send(rescan).await;
        });
    }

    /// Looks whether the host has a container of this name that is not this leaf's.
    pub fn look_for_foreign(&mut self, name: ContainerName) {
        let Ok(host) = &self.containers else { return };
        let (view, inputs) = (host.view.clone(), self.inputs.clone());
        self.tasks.run(async move {
            let seen = tokio::task::spawn_blocking(move || view.foreign()).await;
            let seen = match seen {
                Ok(Ok(all)) => Ok(all.into_iter().find(|foreign| foreign.name == name)),
                Ok(Err(error)) => Err(failed("the host's containers can't be listed", &error)),
                Err(error) => Err(Problem::new(ProblemCode::Failed, error.to_string())),
            };
            // The loop is gone when the daemon ends.
            let _ = inputs.send(Input::ForeignSeen { name, seen }).await;
        });
    }

    /// Makes a container what it is wanted to be.
    pub fn reconcile(&mut self, container: Container) {
        let inputs = self.inputs.clone();
        let leaf = self.leaf.clone();
        let host = self.containers.clone();
        let (hurry, hurries) = watch::channel(Hurry::None);
        self.hurries.insert(container.name.clone(), hurry);
        self.steps.run(async move {
            let name = container.name.clone();
            let generation = container.desired.generation;
            let taken = match &host {
                Ok(host) => steps::take(&leaf, host, &container, hurries).await,
                Err(why) => {
                    let error = HostOpError {
                        op: format!("run container {name}"),
                        kind: HostOpErrorKind::Unsupported,
                        reason: why.clone(),
                    };
                    Taken {
                        looked_at: Instant::now(),
                        observed: None,
                        failure: Some((ContainerStep::Look, error)),
                        cut_short: false,
                    }
                }
            };
            let reconciled = Input::Reconciled {
                name,
                generation,
                taken,
            };
            let _ = inputs.send(reconciled).await;
        });
    }

    /// Tells those who take steps for a container that there is a hurry.
    pub fn hurry(&mut self, name: &ContainerName, hurry: Hurry) {
        if let Some(hurries) = self.hurries.get(name) {
            hurries.send_replace(hurry);
        }
    }

    /// Tells all who take steps for containers that the daemon ends.
    pub fn hurry_all(&mut self) {
        for hurries in self.hurries.values() {
            hurries.send_replace(Hurry::DaemonEnds);
        }
    }

    /// Forgets who took steps for a container: they are taken.
    pub fn reconciled(&mut self, name: &ContainerName) {
        self.hurries.remove(name);
    }

    /// Runs a job, or goes on with one that runs already.
    pub fn run_job(&mut self, job: Job) {
        let inputs = self.inputs.clone();
        let host = self.jobs.clone();
        let bus = self.bus.clone();
        let leaf = self.leaf.clone();
        let (cancel, cancelled) = watch::channel(false);
        self.cancels.insert(job.id, cancel);
        self.steps.run(async move {
            match host {
                Ok(host) => job::run(&host, &job, &bus, &leaf, &inputs, cancelled).await,
                Err(why) => {
                    let _ = inputs
                        .send(Input::JobEnded(job.id, JobOutcome::Failed(why)))
                        .await;
                }
            }
        });
    }

    /// Ends a job that runs, or is about to; that it has ended comes from who runs it.
    pub fn cancel_job(&mut self, id: JobId) {
        if let Some(cancel) = self.cancels.get(&id) {
            cancel.send_replace(true);
        }
    }

    /// Forgets who ran a job: it has ended.
    pub fn job_ended(&mut self, id: JobId) {
        self.cancels.remove(&id);
    }

    /// Takes away what is on the disk of jobs that the leaf does not remember any more: logs and GC roots.
    pub fn forget_jobs(&mut self, forgotten: Vec<JobId>) {
        let Ok(host) = self.jobs.clone() else { return };
        self.steps.run(async move {
            for id in forgotten {
                if let Err(error) = host.remove(id).await {
                    tracing::warn!(%id, error = &error as &dyn std::error::Error, "a job's files stay");
                }
            }
        });
    }

    /// Tells those who wait for a job that it has ended.
    pub fn tell_job_end(&mut self, job: JobId) {
        let bus = self.bus.clone();
        let leaf = self.leaf.clone();
        self.tasks.run(async move { bus.publish_ended(&leaf, job).await });
    }
}

fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> Problem {
    tracing::warn!(error, "{what}");
    Problem::new(ProblemCode::Failed, format!("{what}: {}", chain(error)))
}

/// The problem of a question on a container that was not answered: not always the host's fault.
fn not_seen(what: &str, error: &LookError) -> Problem {
    let code = match error.kind() {
        LookErrorKind::NotNow => ProblemCode::Conflict,
        LookErrorKind::Invalid => ProblemCode::Invalid,
        LookErrorKind::Unsupported => ProblemCode::Unsupported,
        LookErrorKind::Failed => return failed(what, error),
    };
    Problem::new(code, error.to_string())
}

fn warn_if_failed<E: std::error::Error + 'static>(result: Result<(), E>) {
    if let Err(error) = result {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the journal could not be tidied"
        );
    }
}

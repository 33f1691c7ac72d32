//! Process jobs: where the crates that know a task meet the crate that runs jobs.
//!
//! A task is connected in two places: [`JobHost::start`] turns it into an order, in the daemon, and [`run_process`] turns the
//! order into work, in the job's own process. An order of any task but a build is to name its task, since those on disk
//! that name none are builds.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use leaf_bus::connect::Bus;
use leaf_core::engine::Input;
use leaf_core::error::chain;
use leaf_core::id::{JobId, LeafName};
use leaf_core::job::{Job, JobOutcome, Task};
use leaf_job::{Found, JobError, JobUpdate, Jobs, RunningJob, Work};
use leaf_nix::Nix;
use leaf_nix::build::{self, Build};
use tokio::sync::{mpsc, watch};

use crate::input::Wake;

/// The pause before something is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// What runs the process jobs of this leaf.
#[derive(Debug, Clone)]
pub struct JobHost {
    /// The jobs themselves.
    pub jobs: Jobs,
    /// The Nix that tasks are for.
    pub nix: Nix,
}

impl JobHost {
    fn start(&self, job: &Job) -> Result<RunningJob, JobOutcome> {
        let Task::Build(task) = &job.task;
        let order = self
            .nix
            .build(task)
            .map_err(|error| JobOutcome::Failed(chain(&error)))?;
        let time_limit = Duration::from_secs(task.timeout_seconds.into());
        self.jobs
            .start(job.id, &order, time_limit)
            .map_err(|error| JobOutcome::Failed(chain(&error)))
    }

    /// Removes the files of the jobs that the leaf does not know, and ends those of them that run. To be called before the
    /// first job is started.
    pub async fn remove_unknown(&self, known: BTreeSet<JobId>) {
        let swept = match self.jobs.sweep(&known).await {
            Ok(swept) => swept,
            Err(error) => return tracing::warn!(error = chain(&error), "the files of old jobs stay"),
        };
        for id in swept.running {
            tracing::warn!(%id, "a job runs that this leaf does not know; it is ended");
            let ended = match self.jobs.cancel(id).await {
                Ok(()) => self.remove(id).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                tracing::warn!(%id, error = chain(&error), "it could not be ended");
            }
        }
    }

    /// Removes a job's files and what holds its result.
    ///
    /// # Errors
    /// [`JobError::Runs`], or what [`Jobs::forget`] and [`Jobs::release`] say.
    pub async fn remove(&self, id: JobId) -> Result<(), JobError> {
        self.jobs.forget(id).await?;
        self.jobs.release(id)
    }
}

/// Runs the job of this directory, in a process of its own: all that `leafd nix-job` does.
#[must_use]
pub fn run_process(directory: &Path) -> ExitCode {
    leaf_job::runner::main(directory, |job| {
        let order = job.task::<build::Order>();
        let work = order.map(|order| Work {
            state: Build::new(order, job.result_dir()),
            next: Build::next,
            read_line: Build::read_line,
            progress: Build::progress,
            error: Build::error,
        });
        job.run(work)
    })
}

/// Runs a job, or follows one that runs already, and passes on its progress, its log and its end. It ends early once
/// `cancelled` is true; if that is so before, it is not even started.
pub async fn run(
    host: &JobHost,
    job: &Job,
    bus: &Bus,
    leaf: &LeafName,
    inputs: &mpsc::Sender<Wake>,
    mut cancelled: watch::Receiver<bool>,
) {
    let ended = |outcome| inputs.send(Input::JobEnded(job.id, outcome).into());
    let before = *cancelled.borrow();
    let mut running = match begin(host, job, before).await {
        Ok(running) => running,
        Err(outcome) => {
            let _ = ended(outcome).await;
            return;
        }
    };
    let cancel = async {
        if cancelled.wait_for(|cancelled| *cancelled).await.is_ok() {
            // The cancellation was acknowledged.
            while let Err(error) = host.jobs.cancel(job.id).await {
                tracing::warn!(id = %job.id, error = chain(&error), "the job is not cancelled yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
        // Its outcome comes from the branch that follows it.
        std::future::pending().await
    };
    let outcome = tokio::select! {
        outcome = follow(&mut running, bus, leaf, inputs) => outcome,
        outcome = cancel => outcome,
    };
    let _ = ended(outcome).await;
    // Not before: the kernel takes up to 20 ms to close what watches the job's directory.
    drop(running);
}

/// Starts a job, or finds it: it may run since before this run of the daemon, or have ended meanwhile.
async fn begin(host: &JobHost, job: &Job, cancelled: bool) -> Result<RunningJob, JobOutcome> {
    loop {
        match host.jobs.find(job.id).await {
            Ok(Found::Running(running)) => return Ok(*running),
            Ok(Found::Ended(outcome)) => return Err(outcome),
            Ok(Found::NotStarted(_)) if cancelled => return Err(JobOutcome::Cancelled),
            // That it runs is recorded before it is started; so this is one that is to be started.
            Ok(Found::NotStarted(why)) => {
                tracing::debug!(id = %job.id, why, "to be started");
                break;
            }
            // It may run: nothing is known of it until its files can be read.
            Err(error) => {
                tracing::warn!(id = %job.id, error = chain(&error), "the job's files can't be read");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    host.start(job)
}

/// Passes on the progress and the log of a job, until it ends.
async fn follow(
    running: &mut RunningJob,
    bus: &Bus,
    leaf: &LeafName,
    inputs: &mpsc::Sender<Wake>,
) -> JobOutcome {
    let id = running.id();
    // Its log is published from the beginning, also of a job that is found again.
    let mut offset = 0;
    loop {
        match running.next_update().await {
            JobUpdate::Progress(progress) => {
                bus.publish_progress(leaf, id, &progress).await;
                let _ = inputs.send(Input::JobProgressed(id, progress).into()).await;
            }
            JobUpdate::Log(chunk) => {
                bus.publish_log(leaf, id, offset, &chunk).await;
                offset = chunk.next_offset;
            }
            JobUpdate::Ended(outcome) => return outcome,
        }
    }
}

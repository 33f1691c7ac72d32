//! One job, from its start, or from when it is found again, to its end.

use std::time::Duration;

use leaf_bus::connect::Bus;
use leaf_core::error::chain;
use leaf_core::id::LeafName;
use leaf_core::job::{Job, JobOutcome, Task};
use leaf_nix::{Found, JobNews, Nix, NixError, RunningJob};
use tokio::sync::{mpsc, watch};

use crate::input::Input;

/// How long to wait before something is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs a job, or goes on with one that runs already, and passes on what it says, its end too. It ends early once
/// `cancelled` is true; it is not even started if that is so before.
pub async fn run(
    nix: &Nix,
    job: &Job,
    bus: &Bus,
    leaf: &LeafName,
    inputs: &mpsc::Sender<Input>,
    mut cancelled: watch::Receiver<bool>,
) {
    let ended = |outcome| inputs.send(Input::JobEnded(job.id, outcome));
    let before = *cancelled.borrow();
    let mut running = match begin(nix, job, before).await {
        Ok(running) => running,
        Err(outcome) => {
            let _ = ended(outcome).await;
            return;
        }
    };
    let cancel = async {
        if cancelled.wait_for(|cancelled| *cancelled).await.is_ok() {
            // That it is cancelled was promised.
            while let Err(error) = nix.cancel(job.id).await {
                tracing::warn!(id = %job.id, error = &error as &dyn std::error::Error, "the job is not cancelled yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
        // How it ended is told by who follows it.
        std::future::pending().await
    };
    let outcome = tokio::select! {
        outcome = follow(&mut running, bus, leaf, inputs) => outcome,
        outcome = cancel => outcome,
    };
    let _ = ended(outcome).await;
    // Not before: the kernel takes up to 20 ms to let go of what watches the job's folder.
    drop(running);
}

/// Starts a job, or finds it: it may run since before this run of the daemon, or have ended meanwhile.
async fn begin(nix: &Nix, job: &Job, cancelled: bool) -> Result<RunningJob, JobOutcome> {
    loop {
        match nix.find(job.id).await {
            Ok(Found::Running(running)) => return Ok(*running),
            Ok(Found::Ended(outcome)) => return Err(outcome),
            Ok(Found::Lost(_)) if cancelled => return Err(JobOutcome::Cancelled),
            // That it runs is recorded before it is started; so this is one that is to be started.
            Ok(Found::Lost(why)) => {
                tracing::debug!(id = %job.id, why, "to be started");
                break;
            }
            // It may run: nothing can be said of it before it can be looked at.
            Err(error) => {
                tracing::warn!(id = %job.id, error = &error as &dyn std::error::Error, "the job can't be looked at");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    let Task::Build(task) = &job.task;
    nix.start(job.id, task)
        .map_err(|error: NixError| JobOutcome::Failed(chain(&error)))
}

/// Passes on what a job says, until it ends.
async fn follow(
    running: &mut RunningJob,
    bus: &Bus,
    leaf: &LeafName,
    inputs: &mpsc::Sender<Input>,
) -> JobOutcome {
    let id = running.id();
    // Its log is told from the beginning, also of a job that is found again.
    let mut offset = 0;
    loop {
        match running.next().await {
            JobNews::Progress(progress) => {
                bus.publish_progress(leaf, id, &progress).await;
                let _ = inputs.send(Input::JobProgress(id, progress)).await;
            }
            JobNews::Log(chunk) => {
                bus.publish_log(leaf, id, offset, &chunk).await;
                offset = chunk.next_offset;
            }
            JobNews::Ended(outcome) => return outcome,
        }
    }
}

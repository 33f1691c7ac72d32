//! The runner of a job: a process that starts the job's programs, follows and ends them, and writes the outcome.
//!
//! It is a session leader and a subreaper, so that no descendant can escape. It moves itself and its programs into the
//! job's cgroup, in which leafd finds remaining processes if the runner is killed.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use leaf_core::job::JobOutcome;
use leaf_host::cgroup::Cgroup;
use leaf_host::signals;
use rustix::process::{getpid, set_child_subreaper, setsid};
use serde::de::DeserializeOwned;
use tokio::signal::unix::{Signal, SignalKind};

use crate::descendants::kill_descendants;
use crate::directory::{JobDirectory, ORDER};
use crate::order::{Order, remove_result};
use crate::outcome::Ended;
use crate::supervise::Supervisor;
use crate::work::Work;

/// Runs the job of a directory to its end. This is the main function of a program: it must be called before a tokio
/// runtime is made, with the job's lock as standard input unless the job is a unit. `run` reads the task and calls
/// [`ProcessJob::run`].
#[must_use]
pub fn main(directory: &Path, run: impl FnOnce(ProcessJob) -> io::Result<()>) -> ExitCode {
    match begin(JobDirectory::new(directory)).and_then(|job| match job {
        Ok(job) => run(job),
        Err((directory, why)) => block_on(fail(directory, why)),
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use io::Write;
            // Written into the job's directory, where leafd finds it.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn context(what: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

/// Makes this process a job's runner, and reads the order; returns the reason if it can't be read.
fn begin(directory: JobDirectory) -> io::Result<Result<ProcessJob, (JobDirectory, String)>> {
    directory
        .write_pid(std::process::id())
        .map_err(context("can't write the pid"))?;
    // If systemd started this process, the unit counts as started now.
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        sd_notify::notify(&[sd_notify::NotifyState::Ready]).map_err(context("can't notify systemd"))?;
    }
    // Fails only for a process that is already a session leader.
    let _ = setsid();
    set_child_subreaper(Some(getpid()))?;
    Ok(match directory.read_json::<Order>(ORDER) {
        Ok(Some(order)) => Ok(ProcessJob { directory, order }),
        Ok(None) => Err((directory, format!("the job has no {ORDER}"))),
        Err(error) => Err((directory, format!("can't read the job's {ORDER}: {error}"))),
    })
}

fn block_on(job: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(job)
}

fn reserve_outcome(directory: &JobDirectory) -> io::Result<File> {
    directory
        .reserve_outcome()
        .map_err(context("can't reserve space for the outcome"))
}

async fn fail(directory: JobDirectory, why: String) -> io::Result<()> {
    let reserved = reserve_outcome(&directory)?;
    write_outcome(&directory, reserved, JobOutcome::Failed(why.into()), None)
}

fn write_outcome(
    directory: &JobDirectory,
    reserved: File,
    outcome: JobOutcome,
    log_missing: Option<String>,
) -> io::Result<()> {
    directory
        .write_outcome(reserved, &Ended::new(outcome, log_missing))
        .map_err(context("can't write the outcome"))
}

/// A process job in its runner, before its first program.
#[derive(Debug)]
pub struct ProcessJob {
    directory: JobDirectory,
    order: Order,
}

impl ProcessJob {
    /// Returns the task's part of the order.
    ///
    /// # Errors
    /// The reason why it can't be read.
    pub fn task<T: DeserializeOwned>(&self) -> Result<T, String> {
        match self.directory.read_json(ORDER) {
            Ok(Some(task)) => Ok(task),
            Ok(None) => Err(format!("the job has no {ORDER}")),
            Err(error) => Err(format!("can't read the job's {ORDER}: {error}")),
        }
    }

    /// Returns the job's result directory, for GC roots, for example. It is removed if the job does not succeed.
    #[must_use]
    pub fn result_dir(&self) -> &Path {
        &self.order.result_dir
    }

    /// Does the work, and writes the outcome; `Err` is the reason why the work can't begin, with which the job fails.
    ///
    /// # Errors
    /// The outcome can't be written.
    pub fn run<S>(self, work: Result<Work<S>, String>) -> io::Result<()> {
        block_on(self.run_to_end(work))
    }

    /// Runs a program, and writes the outcome. `run` gets the directory, the order, and the signal that ends the job.
    pub(crate) fn host(
        self,
        run: impl AsyncFnOnce(&JobDirectory, &Order, &mut Signal) -> io::Result<JobOutcome>,
    ) -> io::Result<()> {
        block_on(async move {
            let reserved = reserve_outcome(&self.directory)?;
            let mut terminate = signals::receive(SignalKind::terminate())?;
            // Those of a terminal or of the end of a session don't end a job.
            let _ignored = (
                signals::receive(SignalKind::hangup())?,
                signals::receive(SignalKind::interrupt())?,
            );
            let outcome = if self.directory.is_cancelled() {
                JobOutcome::Cancelled
            } else {
                run(&self.directory, &self.order, &mut terminate).await?
            };
            self.conclude(reserved, outcome, None).await
        })
    }

    async fn run_to_end<S>(self, work: Result<Work<S>, String>) -> io::Result<()> {
        let reserved = reserve_outcome(&self.directory)?;
        let (outcome, log_missing) = match work {
            Ok(work) => Supervisor::new(&self.directory, &self.order, work).run().await?,
            Err(why) => (JobOutcome::Failed(why.into()), None),
        };
        self.conclude(reserved, outcome, log_missing).await
    }

    async fn conclude(
        &self,
        reserved: File,
        outcome: JobOutcome,
        log_missing: Option<String>,
    ) -> io::Result<()> {
        let all_ended = kill_descendants().await;
        if !matches!(outcome, JobOutcome::Succeeded(_)) {
            remove_result(&self.order.result_dir);
        }
        write_outcome(&self.directory, reserved, outcome, log_missing)?;
        if let (false, Some(path)) = (all_ended, &self.order.cgroup) {
            // Kills this process as well, which has done its work.
            Cgroup::at(path).kill().map_err(io::Error::other)?;
        }
        Ok(())
    }
}

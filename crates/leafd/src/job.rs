//! Process jobs: connects the crates that implement tasks with the crate that runs jobs.
//!
//! A task is connected in two places: in the daemon, [`JobHost::start`] turns it into an order; in the job's own
//! process, [`run_process`] carries out the order. The order of any task but a build must name its task: orders on disk
//! that name none are builds.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use leaf_bus::connect::Bus;
use leaf_core::engine::Input;
use leaf_core::error::chain;
use leaf_core::id::{JobId, LeafName, StorePath};
use leaf_core::job::process::Program;
use leaf_core::job::{
    Activities, BuildResult, BuildTask, Explanation, Failure, FailureKind, Installable, Job, JobOutcome,
    JobResult, Task,
};
use leaf_job::program::{self, ProgramOrder};
use leaf_job::runner::ProcessJob;
use leaf_job::{Found, JobError, JobUpdate, Jobs, RunningJob, Work};
use leaf_nix::build::{self, Build};
use leaf_nix::check::{self, Check};
use leaf_nix::develop;
use leaf_nix::diff::{self, Diff};
use leaf_nix::eval::{self, Eval};
use leaf_nix::gc::{self, Gc};
use leaf_nix::print_env::{self, PrintEnv};
use leaf_nix::verify::{self, Verify};
use leaf_nix::{Nix, NixError};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use crate::provenance::Attester;
use crate::sessions::News;
use crate::wake::Wake;

/// The size of the pages of a log that is hashed, in bytes.
const LOG_PAGE_BYTES: usize = 256 << 10;
/// The pause before a retry.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs the process jobs of this leaf.
#[derive(Debug, Clone)]
pub struct JobHost {
    /// Starts, finds and cancels jobs.
    pub jobs: Jobs,
    /// The Nix installation that tasks use.
    pub nix: Nix,
    /// The system that it evaluates and builds for.
    pub system: String,
    /// The further systems that it builds for.
    pub more_systems: BTreeSet<String>,
    /// Signs statements about builds, if there is a key.
    pub attester: Option<Attester>,
}

impl JobHost {
    /// Starts a job, or returns the failure if it can't be started.
    fn start(&self, job: &Job) -> Result<RunningJob, Failure> {
        let time_limit = Duration::from_secs(job.task.timeout_seconds().into());
        let started = match &job.task {
            Task::Build(task) => {
                let order = self.nix.build(task).map_err(|error| refusal(&error))?;
                self.jobs.start(job.id, &order, time_limit)
            }
            Task::Eval(task) => {
                let order = self.nix.eval(task).map_err(|error| refusal(&error))?;
                self.jobs.start(job.id, &order, time_limit)
            }
            Task::PrintEnv(task) => {
                let order = self.nix.print_env(task).map_err(|error| refusal(&error))?;
                self.jobs.start(job.id, &order, time_limit)
            }
            Task::Check(task) => {
                let order = self.nix.check_build(task).map_err(|error| refusal(&error))?;
                self.jobs.start(job.id, &order, time_limit)
            }
            Task::Gc(task) => self.jobs.start(job.id, &self.nix.gc(task), time_limit),
            Task::Roots(task) => self.jobs.start(job.id, &self.nix.roots(task), time_limit),
            Task::Diff(task) => self.jobs.start(job.id, &self.nix.diff(task), time_limit),
            Task::Verify(task) => self.jobs.start(job.id, &self.nix.verify(task), time_limit),
            Task::Run(task) => self.start_packages(job, &task.packages)?,
            Task::Develop(task) => match &task.installable {
                Some(installable) => {
                    let order = self
                        .nix
                        .develop(task, installable)
                        .map_err(|error| refusal(&error))?;
                    self.jobs.start(job.id, &order, time_limit)
                }
                None => self.start_packages(job, &task.packages)?,
            },
        };
        started.map_err(|error| chain(&error).into())
    }

    /// Starts the build of a program's packages.
    fn start_packages(
        &self,
        job: &Job,
        packages: &[Installable],
    ) -> Result<Result<RunningJob, JobError>, Failure> {
        let seconds = job.task.timeout_seconds();
        let packages = BuildTask::new(packages.to_vec(), seconds);
        let order = self.nix.build(&packages).map_err(|error| refusal(&error))?;
        let time_limit = Duration::from_secs(seconds.into());
        Ok(self.jobs.start(job.id, &order, time_limit))
    }

    /// Returns the order of the program of a job whose first stage ended so; `None` of a job that has no program.
    fn program_order(&self, job: &Job, outcome: &JobOutcome) -> Option<ProgramOrder> {
        let JobOutcome::Succeeded(result) = outcome else {
            return None;
        };
        let starter = self.jobs.runner().to_owned();
        match (&job.task, result) {
            (Task::Run(task), JobResult::Build(built)) => {
                Some(ProgramOrder::new(task, all_outputs(built), starter))
            }
            (Task::Develop(task), JobResult::Build(built)) => {
                let shell = develop::shell(task, None);
                Some(ProgramOrder::of_shell(task, shell, all_outputs(built), starter))
            }
            (Task::Develop(task), JobResult::PrintEnv(result)) => {
                let shell = develop::shell(task, Some(&result.environment));
                Some(ProgramOrder::of_shell(task, shell, Vec::new(), starter))
            }
            _ => None,
        }
    }

    /// Starts the program of a job, or returns the reason why it can't be started.
    fn start_program(&self, job: &Job, order: ProgramOrder) -> Result<RunningJob, Failure> {
        let time_limit = Duration::from_secs(job.task.timeout_seconds().into());
        let started = self.jobs.start_program(job.id.program(), order, time_limit);
        started.map_err(|error| chain(&error).into())
    }

    /// Ends the jobs that the leaf does not know, and removes their files. Must be called before the first job is
    /// started.
    pub async fn remove_unknown(&self, jobs: BTreeSet<JobId>) {
        let programs = jobs.iter().map(|job| job.program());
        let known = programs.chain(jobs.iter().copied()).collect();
        let swept = match self.jobs.sweep(&known).await {
            Ok(swept) => swept,
            Err(error) => {
                return tracing::warn!(error = chain(&error), "can't list the jobs' files, old ones stay");
            }
        };
        for (id, error) in swept.kept {
            tracing::warn!(%id, error, "can't remove the files of an unknown job");
        }
        for id in swept.running {
            tracing::warn!(%id, "ending a running job that this leaf does not know");
            let ended = match self.jobs.cancel(id).await {
                Ok(()) => self.remove(id).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                tracing::warn!(%id, error = chain(&error), "can't end or remove the unknown job");
            }
        }
    }

    /// Removes the files of jobs that have ended, with the GC roots of their results; what can't be removed stays.
    async fn give_up(&self, jobs: &[JobId]) {
        for id in jobs {
            if let Err(error) = self.remove(*id).await {
                tracing::warn!(%id, error = chain(&error), "can't remove the files of a job that is given up");
            }
        }
    }

    /// Removes a job's files and the GC root of its result.
    ///
    /// # Errors
    /// [`JobError::Runs`], or an error of [`Jobs::forget`] or [`Jobs::release`].
    pub async fn remove(&self, id: JobId) -> Result<(), JobError> {
        if self.jobs.exists(id.program()) {
            self.jobs.forget(id.program()).await?;
            self.jobs.release(id.program())?;
        }
        self.jobs.forget(id).await?;
        self.jobs.release(id)
    }
}

/// Returns all outputs that a build has made or found.
fn all_outputs(built: &BuildResult) -> Vec<StorePath> {
    let others = built.others.iter().flat_map(|other| other.outputs.values());
    built.outputs.values().chain(others).cloned().collect()
}

/// Returns the failure of a job that leaf-nix refuses.
fn refusal(error: &NixError) -> Failure {
    let why = chain(error);
    let kind = match error {
        NixError::Policy { .. } => FailureKind::Policy,
        _ => FailureKind::Unknown,
    };
    Failure {
        explanation: Some(Box::new(Explanation::new(kind, why.clone()))),
        error: why,
        partial: Vec::new(),
    }
}

/// Runs the job of a directory in this process: `leafd nix-job`.
#[must_use]
pub fn run_process(directory: &Path) -> ExitCode {
    leaf_job::runner::main(directory, |job| match job.task::<Named>() {
        Ok(Named { task: None }) => build(job),
        Ok(Named { task: Some(task) }) if task == build::TASK => build(job),
        Ok(Named { task: Some(task) }) if task == eval::TASK => eval(job),
        Ok(Named { task: Some(task) }) if task == print_env::TASK => print_env(job),
        Ok(Named { task: Some(task) }) if task == check::TASK => check(job),
        Ok(Named { task: Some(task) }) if task == gc::TASK => collect(job),
        Ok(Named { task: Some(task) }) if task == diff::TASK => diff(job),
        Ok(Named { task: Some(task) }) if task == verify::TASK => verify(job),
        Ok(Named { task: Some(task) }) if task == program::TASK || task == program::SHELL_TASK => {
            program::run(job)
        }
        // A newer leafd wrote the order, and its helper started this older one.
        Ok(Named { task: Some(task) }) => {
            let task: String = task.chars().take(40).collect();
            job.run::<Build>(Err(format!(
                "this version of leafd does not know the task {task:?}"
            )))
        }
        Err(why) => job.run::<Build>(Err(why)),
    })
}

/// The name of the task in an order; a build of one installable has none.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    task: Option<String>,
}

fn build(job: ProcessJob) -> io::Result<()> {
    let order = job.task::<build::Order>();
    let work = order.map(|order| Work {
        state: Build::new(order, job.result_dir()),
        next: Build::next,
        read_line: Build::read_line,
        progress: Build::progress,
        activities: Build::activities,
        error: Build::error,
        after_failure: Build::after_failure,
        failure: Build::failure,
    });
    job.run(work)
}

fn eval(job: ProcessJob) -> io::Result<()> {
    let order = job.task::<eval::Order>();
    let work = order.map(|order| Work {
        state: Eval::new(order),
        next: Eval::next,
        read_line: Eval::read_line,
        progress: Eval::progress,
        activities: Eval::activities,
        error: Eval::error,
        after_failure: |_, _| None,
        failure: Eval::failure,
    });
    job.run(work)
}

fn print_env(job: ProcessJob) -> io::Result<()> {
    let order = job.task::<print_env::Order>();
    let work = order.map(|order| Work {
        state: PrintEnv::new(order, job.result_dir()),
        next: PrintEnv::next,
        read_line: PrintEnv::read_line,
        progress: PrintEnv::progress,
        activities: PrintEnv::activities,
        error: PrintEnv::error,
        after_failure: |_, _| None,
        failure: PrintEnv::failure,
    });
    job.run(work)
}

fn check(job: ProcessJob) -> io::Result<()> {
    let order = job.task::<check::Order>();
    // This program, also if its file was replaced meanwhile.
    let compare = Program::new("/proc/self/exe".into(), ["nix-compare".into()]);
    let work = order.map(|order| Work {
        state: Check::new(order, job.result_dir(), compare),
        next: Check::next,
        read_line: Check::read_line,
        progress: Check::progress,
        activities: Check::activities,
        error: Check::error,
        after_failure: Check::after_failure,
        failure: Check::failure,
    });
    job.run(work)
}

fn collect(job: ProcessJob) -> io::Result<()> {
    let order = job.task::<gc::Order>();
    let work = order.map(|order| Work {
        state: Gc::new(order),
        next: Gc::next,
        read_line: Gc::read_line,
        progress: Gc::progress,
        activities: |_| Activities::default(),
        error: Gc::error,
        after_failure: |_, _| None,
        failure: Gc::failure,
    });
    job.run(work)
}

fn diff(job: ProcessJob) -> io::Result<()> {
    let order = job.task::<diff::Order>();
    let work = order.map(|order| Work {
        state: Diff::new(order),
        next: Diff::next,
        read_line: Diff::read_line,
        progress: Diff::progress,
        activities: |_| Activities::default(),
        error: Diff::error,
        after_failure: |_, _| None,
        failure: Diff::failure,
    });
    job.run(work)
}

fn verify(job: ProcessJob) -> io::Result<()> {
    let order = job.task::<verify::Order>();
    let work = order.map(|order| Work {
        state: Verify::new(order),
        next: Verify::next,
        read_line: Verify::read_line,
        progress: Verify::progress,
        activities: |_| Activities::default(),
        error: Verify::error,
        after_failure: Verify::after_failure,
        failure: Verify::failure,
    });
    job.run(work)
}

/// Prints the differences of two store paths as JSON: `leafd nix-compare`, a program of a check.
///
/// # Errors
/// One of them can't be read.
pub fn print_comparison(first: &Path, second: &Path) -> anyhow::Result<()> {
    let differences = leaf_nix::compare::compare(first, second)
        .with_context(|| format!("can't compare {} with {}", first.display(), second.display()))?;
    serde_json::to_writer(io::stdout().lock(), &differences)?;
    Ok(())
}

/// Runs a job, or follows a running one, and passes on its progress, its log and its end. It is cancelled once
/// `cancelled` is true, and not started if it was true before.
pub async fn run(
    host: &JobHost,
    job: &Job,
    bus: &Bus,
    leaf: &LeafName,
    inputs: &mpsc::Sender<Wake>,
    sessions: &mpsc::Sender<News>,
    mut cancelled: watch::Receiver<bool>,
) {
    let stages = Stages {
        host,
        bus,
        leaf,
        inputs,
    };
    if let Task::Gc(task) = &job.task
        && !task.dry_run
    {
        host.give_up(&task.gives_up).await;
    }
    let (mut outcome, mut running) = stages.run(job.id, &mut cancelled, || host.start(job)).await;
    // What the program needs is built.
    if let Some(order) = host.program_order(job, &outcome) {
        let _ = inputs.send(Input::JobRunsProgram(job.id).into()).await;
        if job.task.session().is_some() {
            let socket = host.jobs.session_socket(job.id);
            let _ = sessions.send(News::RunsProgram(job.id, socket)).await;
        }
        let start = || host.start_program(job, order);
        let (program, runner) = stages.run(job.id.program(), &mut cancelled, start).await;
        running = runner.or(running);
        outcome = match program {
            // Its user writes the outcome.
            JobOutcome::Succeeded(result) if !matches!(result, JobResult::Run(_)) => JobOutcome::Failed(
                "the program's runner wrote the outcome of another task"
                    .to_owned()
                    .into(),
            ),
            outcome => outcome,
        };
    }
    if let (Task::Eval(task), JobOutcome::Succeeded(JobResult::Eval(result))) = (&job.task, &outcome)
        && let Err(error) = host.nix.remember(job.id, task, result)
    {
        tracing::warn!(id = %job.id, error = chain(&error), "can't keep the value for later evaluations");
    }
    let attestation = host
        .attester
        .as_ref()
        .and_then(|attester| {
            let log = |offset| host.jobs.read_log(job.id, offset, LOG_PAGE_BYTES);
            attester.attest(job, &outcome, log)
        })
        .map(Box::new);
    let ended = Input::JobEnded {
        id: job.id,
        outcome,
        attestation,
    };
    let _ = inputs.send(ended.into()).await;
    // Dropped only here: the kernel takes up to 20 ms to close the inotify watch on the job's directory.
    drop(running);
}

/// Runs the stages of a job: each has a runner of its own.
#[derive(Clone, Copy)]
struct Stages<'a> {
    host: &'a JobHost,
    bus: &'a Bus,
    leaf: &'a LeafName,
    inputs: &'a mpsc::Sender<Wake>,
}

impl Stages<'_> {
    /// Runs a stage to its end, or follows it. Returns its outcome, and what followed it.
    async fn run(
        self,
        id: JobId,
        cancelled: &mut watch::Receiver<bool>,
        start: impl FnOnce() -> Result<RunningJob, Failure>,
    ) -> (JobOutcome, Option<RunningJob>) {
        let before = *cancelled.borrow();
        let mut running = match self.begin(id, before, start).await {
            Ok(running) => running,
            Err(outcome) => return (outcome, None),
        };
        let cancel = async {
            if cancelled.wait_for(|cancelled| *cancelled).await.is_ok() {
                // The cancellation is acknowledged.
                while let Err(error) = self.host.jobs.cancel(id).await {
                    tracing::warn!(%id, error = chain(&error), "can't cancel the job yet");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            // The outcome comes from the other branch, which follows the job.
            std::future::pending().await
        };
        let outcome = tokio::select! {
            outcome = self.follow(&mut running) => outcome,
            outcome = cancel => outcome,
        };
        (outcome, Some(running))
    }

    /// Starts a stage, or finds one that an earlier instance started and that runs or has ended.
    async fn begin(
        self,
        id: JobId,
        cancelled: bool,
        start: impl FnOnce() -> Result<RunningJob, Failure>,
    ) -> Result<RunningJob, JobOutcome> {
        loop {
            match self.host.jobs.find(id).await {
                Ok(Found::Running(running)) => return Ok(*running),
                Ok(Found::Ended(outcome)) => return Err(outcome),
                Ok(Found::NotStarted(_)) if cancelled => return Err(JobOutcome::Cancelled),
                // A job is recorded as running before it is started, so this one is yet to be started.
                Ok(Found::NotStarted(why)) => {
                    tracing::debug!(%id, why, "the job is to be started");
                    break;
                }
                // It may be running: its state is unknown until its files can be read.
                Err(error) => {
                    tracing::warn!(%id, error = chain(&error), "can't read the job's files");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        start().map_err(JobOutcome::Failed)
    }

    /// Passes on the progress and the log of a stage, until it ends.
    async fn follow(self, running: &mut RunningJob) -> JobOutcome {
        let id = running.id();
        // The log is published from its beginning, also that of a job that was found again.
        let mut offset = 0;
        loop {
            match running.next_update().await {
                JobUpdate::Progress(progress) => {
                    self.bus.publish_progress(self.leaf, id, &progress).await;
                    let _ = self.inputs.send(Input::JobProgressed(id, progress).into()).await;
                }
                JobUpdate::Log(chunk) => {
                    self.bus.publish_log(self.leaf, id, offset, &chunk).await;
                    offset = chunk.next_offset;
                }
                JobUpdate::Ended(outcome) => return outcome,
            }
        }
    }
}

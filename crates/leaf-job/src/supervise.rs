//! Runs the programs of a job one after another: starts each, follows it line by line, and ends it.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use leaf_core::error::chain;
use leaf_core::job::process::{End, Finished, Program, Step};
use leaf_core::job::{Activities, Failure, JobOutcome, Progress};
use leaf_host::cgroup::Cgroup;
use leaf_host::signals;
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as SignalStream, SignalKind};
use tokio::time::{Instant, sleep_until};

use crate::descendants::{enter_cgroup, kill_descendants};
use crate::directory::{ACTIVITIES, JobDirectory, PROGRESS, UPDATE_INTERVAL};
use crate::lines::Lines;
use crate::log::LogWriter;
use crate::order::Order;
use crate::work::Work;

const MAX_STDOUT_BYTES: usize = 16 * 1024 * 1024;
const MAX_LINE_BYTES: usize = 1024 * 1024;
/// How long a program's pipes may stay open after its end before the processes that hold them are killed.
const PIPE_PATIENCE: Duration = Duration::from_millis(500);
/// How long a program may take to end after a SIGTERM until it gets the next: a program may miss one,
/// as Nix seems to if it is just beginning to wait for its builders.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest time between two files that say what the job is doing.
const ACTIVITIES_INTERVAL: Duration = Duration::from_secs(1);

/// The end of a program.
enum ProgramEnd {
    Exited(ExitStatus, Vec<u8>),
    Cancelled,
    TimedOut,
    /// It printed more than so many bytes.
    TooMuchOutput(usize),
}

/// Runs the programs of one job.
pub(crate) struct Supervisor<'a, S> {
    directory: &'a JobDirectory,
    order: &'a Order,
    work: Work<S>,
    log: LogWriter,
    deadline: Instant,
    next_flush: Instant,
    progress: Progress,
    activities: Activities,
    /// When what the job is doing may be written again, and whether it may have changed since.
    next_activities: Instant,
    stale: bool,
    in_cgroup: bool,
    unflushed: bool,
}

impl<'a, S> Supervisor<'a, S> {
    pub(crate) fn new(directory: &'a JobDirectory, order: &'a Order, work: Work<S>) -> Self {
        Self {
            log: LogWriter::new(directory.path(), order.max_log_bytes),
            deadline: Instant::now() + order.timeout(),
            next_flush: Instant::now() + UPDATE_INTERVAL,
            progress: Progress::default(),
            activities: Activities::default(),
            next_activities: Instant::now(),
            stale: false,
            in_cgroup: false,
            unflushed: false,
            directory,
            order,
            work,
        }
    }

    /// Runs the programs to the job's end; returns the outcome, and a notice if the end of the log could not be
    /// written.
    pub(crate) async fn run(mut self) -> io::Result<(JobOutcome, Option<String>)> {
        let mut terminate = signals::receive(SignalKind::terminate())?;
        let mut hang_up = signals::receive(SignalKind::hangup())?;
        let mut interrupt = signals::receive(SignalKind::interrupt())?;
        let outcome = if self.directory.is_cancelled() {
            JobOutcome::Cancelled
        } else {
            // Signals of a terminal or of the end of a session don't end a job.
            let ignored = async {
                loop {
                    tokio::select! { _ = hang_up.recv() => {}, _ = interrupt.recv() => {} }
                }
            };
            tokio::select! {
                outcome = self.steps(&mut terminate) => outcome,
                () = ignored => unreachable!("this loop has no end"),
            }
        };
        self.directory.remove_activities();
        Ok((outcome, self.log.finish()))
    }

    async fn steps(&mut self, terminate: &mut SignalStream) -> JobOutcome {
        let mut step = (self.work.next)(&mut self.work.state, None);
        loop {
            let program = match step {
                Ok(Step::Run(program)) => program,
                Ok(Step::Done(result)) => return JobOutcome::Succeeded(result),
                Err(error) => return JobOutcome::Failed(self.failure(error, End::Unusable)),
            };
            let begin = Instant::now();
            let end = match self.supervise(&program, terminate).await {
                Ok(end) => end,
                Err(error) => {
                    let error = format!("can't run {}: {error}", program.program.display());
                    return JobOutcome::Failed(self.failure(error, End::Unusable));
                }
            };
            step = match end {
                ProgramEnd::Exited(status, stdout) if status.success() => {
                    let finished = Finished {
                        stdout,
                        duration: begin.elapsed(),
                    };
                    (self.work.next)(&mut self.work.state, Some(finished))
                }
                ProgramEnd::Exited(status, _) => {
                    let end = match (status.code(), status.signal()) {
                        (Some(code), _) => End::Code(code),
                        (None, Some(signal)) => End::Signal(signal),
                        (None, None) => End::Unusable,
                    };
                    match (self.work.after_failure)(&mut self.work.state, end) {
                        Some(step) => Ok(step),
                        None => {
                            let error = self.error(&program.program, status);
                            return JobOutcome::Failed(self.failure(error, end));
                        }
                    }
                }
                ProgramEnd::TooMuchOutput(bytes) => {
                    let error = format!("{} prints more than {bytes} bytes", program.program.display());
                    return JobOutcome::Failed(self.failure(error, End::TooMuchOutput));
                }
                ProgramEnd::Cancelled => return JobOutcome::Cancelled,
                ProgramEnd::TimedOut => {
                    let seconds = self.order.timeout().as_secs();
                    let error = format!("it took longer than {seconds} s, and was ended");
                    return JobOutcome::TimedOut(self.failure(error, End::TimedOut));
                }
            };
        }
    }

    fn failure(&self, error: String, end: End) -> Failure {
        (self.work.failure)(&self.work.state, error, end)
    }

    fn error(&self, program: &Path, status: ExitStatus) -> String {
        let (said, program) = ((self.work.error)(&self.work.state), program.display());
        match (status.signal(), said) {
            (None, Some(said)) => said,
            (None, None) => format!("{program} printed no error, and ended with {status}"),
            (Some(signal), None) => format!("{program} was ended by signal {signal}, and printed no error"),
            (Some(signal), Some(said)) => {
                format!("{program} was ended by signal {signal}; before that: {said}")
            }
        }
    }

    /// Runs one program to its end.
    async fn supervise(&mut self, program: &Program, terminate: &mut SignalStream) -> io::Result<ProgramEnd> {
        let mut child = Command::new(&program.program)
            .args(&program.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        if let Some(bytes) = program.limits.memory_bytes {
            limit_memory(&child, bytes)?;
        }
        let max_stdout_bytes = program.limits.max_stdout_bytes.unwrap_or(MAX_STDOUT_BYTES);
        self.enter_cgroup(&child);
        let mut stdout = child.stdout.take().expect("it was piped");
        let mut stderr = child.stderr.take().expect("it was piped");
        let (mut written, mut stdout_open, mut stderr_open) = (Vec::new(), true, true);
        let (mut stdout_buffer, mut stderr_buffer) = (vec![0; 16 * 1024], vec![0; 64 * 1024]);
        let mut lines = Lines::new(MAX_LINE_BYTES);
        let mut stopping: Option<ProgramEnd> = None;
        let mut status: Option<ExitStatus> = None;
        // The end of patience with a program that was asked to end, or with pipes that stay open after its end.
        let mut patience: Option<Instant> = None;
        let mut ask_again = Instant::now();
        loop {
            if status.is_some() && !stdout_open && !stderr_open {
                break;
            }
            tokio::select! {
                read = stderr.read(&mut stderr_buffer), if stderr_open => match read? {
                    0 => stderr_open = false,
                    n => {
                        let (work, log) = (&mut self.work, &mut self.log);
                        lines.feed(&stderr_buffer[..n], |line| read_line(work, log, line));
                        self.unflushed = true;
                        self.stale = true;
                    }
                },
                read = stdout.read(&mut stdout_buffer), if stdout_open => match read? {
                    0 => stdout_open = false,
                    // Dropped, it is killed.
                    n if written.len() + n > max_stdout_bytes => {
                        return Ok(ProgramEnd::TooMuchOutput(max_stdout_bytes));
                    }
                    n => written.extend_from_slice(&stdout_buffer[..n]),
                },
                ended = child.wait(), if status.is_none() => {
                    status = Some(ended?);
                    patience = Some(Instant::now() + PIPE_PATIENCE);
                }
                _ = terminate.recv(), if stopping.is_none() && status.is_none() => {
                    stopping = Some(ProgramEnd::Cancelled);
                    patience = Some(Instant::now() + self.order.grace());
                    ask_again = Instant::now();
                }
                () = sleep_until(self.deadline), if stopping.is_none() && status.is_none() => {
                    stopping = Some(ProgramEnd::TimedOut);
                    patience = Some(Instant::now() + self.order.grace());
                    ask_again = Instant::now();
                }
                () = sleep_until(ask_again), if stopping.is_some() && status.is_none() && patience.is_some() => {
                    ask_to_end(&child);
                    ask_again = Instant::now() + ASK_INTERVAL;
                }
                () = sleep_until(patience.unwrap_or(self.deadline)), if patience.is_some() => {
                    patience = None;
                    if status.is_none() {
                        child.start_kill()?;
                    } else {
                        kill_descendants().await;
                        patience = Some(Instant::now() + PIPE_PATIENCE);
                    }
                }
                () = sleep_until(self.next_flush), if self.unflushed => self.flush(),
                () = sleep_until(self.next_activities), if self.stale => self.write_activities(),
            }
        }
        let (work, log) = (&mut self.work, &mut self.log);
        lines.finish(|line| read_line(work, log, line));
        let status = status.expect("the loop ends when it is known");
        Ok(stopping.unwrap_or(ProgramEnd::Exited(status, written)))
    }

    /// Moves this process, the program and its children into the job's cgroup. This is done after the program's start,
    /// since the kernel takes some 10 ms for it, in which the program can start.
    fn enter_cgroup(&mut self, child: &Child) {
        let Some(path) = self.order.cgroup.as_ref().filter(|_| !self.in_cgroup) else {
            return;
        };
        let tasks = self.order.tasks_cgroup.iter();
        let entered = tasks
            .chain([path])
            .try_for_each(|path| enter_cgroup(&Cgroup::at(path), child.id()));
        match entered {
            Ok(()) => self.in_cgroup = true,
            Err(error) => {
                let error = chain(&error);
                self.log
                    .line(&format!("[the job has no cgroup of its own: {error}]"));
            }
        }
    }

    /// Writes what the job is doing for those who look, if that has changed: at most once a second.
    fn write_activities(&mut self) {
        self.next_activities = Instant::now() + ACTIVITIES_INTERVAL;
        self.stale = false;
        let activities = (self.work.activities)(&self.work.state);
        if activities != self.activities && self.directory.write_json(ACTIVITIES, &activities).is_ok() {
            self.activities = activities;
        }
    }

    fn flush(&mut self) {
        self.next_flush = Instant::now() + UPDATE_INTERVAL;
        self.unflushed = false;
        if self.log.has_unwritten() {
            self.log.flush();
        }
        let progress = (self.work.progress)(&self.work.state);
        if progress != self.progress && self.directory.write_json(PROGRESS, &progress).is_ok() {
            self.progress = progress;
        }
    }
}

/// Bounds the address space of a program that was just started: what it has more of is refused from now on.
fn limit_memory(child: &Child, bytes: u64) -> io::Result<()> {
    let Some(pid) = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) else {
        return Ok(());
    };
    let limit = Rlimit {
        current: Some(bytes),
        maximum: Some(bytes),
    };
    match prlimit(Some(pid), Resource::As, limit) {
        // It has ended.
        Err(Errno::SRCH) => Ok(()),
        set => Ok(set.map(drop)?),
    }
}

/// Sends SIGTERM to a program.
fn ask_to_end(child: &Child) {
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    if let Some(pid) = pid {
        let _ = kill_process(pid, Signal::TERM);
    }
}

fn read_line<S>(work: &mut Work<S>, log: &mut LogWriter, line: &[u8]) {
    if let Some(text) = (work.read_line)(&mut work.state, line) {
        for line in text.split('\n') {
            log.line(line);
        }
    }
}

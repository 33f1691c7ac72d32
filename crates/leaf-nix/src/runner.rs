//! The runner of one job: a process of its own, which starts Nix, follows it, ends it, and writes down how it went.
//!
//! It becomes the leader of a session and a subreaper, so nothing that Nix starts can get away from it, and it moves
//! itself and Nix into the job's cgroup, by which the daemon finds what is left if the runner itself is killed.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use leaf_core::job::{BuildResult, JobOutcome, JobResult, Progress};
use rustix::process::{Pid, Signal, getpid, kill_process, set_child_subreaper, setsid};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::NixVersion;
use crate::cgroup::{Cgroup, kill_descendants};
use crate::folder::{Folder, ORDER, PROGRESS};
use crate::internal_json::{Lines, Tracker};
use crate::log::LogWriter;
use crate::order::{Order, Target};
use crate::outcome::Ended;
use crate::result::{read_build, read_path_info};
use crate::running::NEWS_EVERY;

const MAX_STDOUT_BYTES: usize = 16 * 1024 * 1024;
const MAX_LINE_BYTES: usize = 1024 * 1024;
/// How long the ends of Nix's pipes may stay open after its end, before those who hold them are killed.
const PIPE_PATIENCE: Duration = Duration::from_millis(500);
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// Runs the job whose folder this is, to its end. The whole of a program: it must be called before a tokio runtime
/// is made, with the job's lock as stdin, as [`Nix::start`](crate::Nix::start) does.
#[must_use]
pub fn main(folder: &Path) -> ExitCode {
    match run(Folder::new(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use io::Write;
            // Goes into the job's folder, where the daemon finds it.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn about(what: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

fn run(folder: Folder) -> io::Result<()> {
    folder.write_pid(getpid()).map_err(about("can't write the pid"))?;
    // Where a unit is started, that is done now.
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        sd_notify::notify(&[sd_notify::NotifyState::Ready]).map_err(about("can't tell that it runs"))?;
    }
    // It fails only for one who leads a session already.
    let _ = setsid();
    set_child_subreaper(Some(getpid()))?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run_job(folder))
}

async fn run_job(folder: Folder) -> io::Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let order: Order = folder
        .read_json(ORDER)?
        .ok_or_else(|| io::Error::other("there is no order"))?;
    let room = folder
        .reserve_outcome()
        .map_err(about("can't set room aside for the outcome"))?;
    let mut job = Runner {
        log: LogWriter::new(folder.path(), order.max_log_bytes),
        tracker: Tracker::default(),
        deadline: Instant::now() + Duration::from_millis(order.timeout_ms),
        next_flush: Instant::now() + NEWS_EVERY,
        progress: Progress::default(),
        in_cgroup: false,
        unflushed: false,
        folder,
        order,
    };
    let outcome = if job.folder.is_cancelled() {
        JobOutcome::Cancelled
    } else {
        // From a terminal or a dying session nothing is taken but the daemon's own word.
        let ignored = async {
            loop {
                tokio::select! { _ = hang_up.recv() => {}, _ = interrupt.recv() => {} }
            }
        };
        tokio::select! {
            outcome = job.build(&mut stop) => outcome,
            () = ignored => unreachable!("this loop has no end"),
        }
    };
    job.conclude(outcome, room).await
}

/// How one run of Nix ended.
enum Run {
    Exited(ExitStatus, Vec<u8>),
    Cancelled,
    TimedOut,
}

struct Runner {
    folder: Folder,
    order: Order,
    log: LogWriter,
    tracker: Tracker,
    deadline: Instant,
    next_flush: Instant,
    progress: Progress,
    in_cgroup: bool,
    unflushed: bool,
}

impl Runner {
    async fn build(&mut self, stop: &mut SignalStream) -> JobOutcome {
        match self.try_build(stop).await {
            Ok(outcome) => outcome,
            Err(error) => JobOutcome::Failed(error),
        }
    }

    async fn try_build(&mut self, stop: &mut SignalStream) -> Result<JobOutcome, String> {
        let begin = Instant::now();
        let mut command = self.nix("build");
        command
            .args(["--log-format", "internal-json", "-v", "--out-link"])
            .arg(self.order.gc_root.join("result"));
        match &self.order.target {
            Target::Derivation(path) => {
                // Since 2.15 the path alone is the derivation itself; `^*` is understood since 2.13.
                let version = Command::new(&self.order.nix)
                    .arg("--version")
                    .stdin(Stdio::null())
                    .output()
                    .await;
                let said = version.map(|output| output.stdout).unwrap_or_default();
                let version = NixVersion::parse(&String::from_utf8_lossy(&said));
                let outputs = version.is_none_or(|v| (v.major, v.minor) >= (2, 13));
                command
                    .arg("--")
                    .arg(format!("{path}{}", if outputs { "^*" } else { "" }));
            }
            Target::Other { flags, installable } => {
                command.args(flags);
                if let Some(installable) = installable {
                    command.arg("--").arg(installable);
                }
            }
        }
        let stdout = match self.follow(command, stop).await? {
            Ok(stdout) => stdout,
            Err(outcome) => return Ok(outcome),
        };
        let build_time = begin.elapsed();
        let built = read_build(&stdout)?;
        let first = built.first().cloned().ok_or("nix build named no output")?;
        if !self.root_holds(first.as_str()) {
            return Err(format!("nix made no GC root for {first}"));
        }
        let mut command = self.nix("path-info");
        command
            .args(["--log-format", "internal-json", "--closure-size", "--"])
            .arg(first.as_str());
        let info = match self.follow(command, stop).await? {
            Ok(stdout) => read_path_info(&stdout, &first)?,
            Err(outcome) => return Ok(outcome),
        };
        Ok(JobOutcome::Succeeded(JobResult::Build(BuildResult {
            store_path: first,
            outputs: built.outputs,
            derivation: built.derivation,
            build_time_ms: u64::try_from(build_time.as_millis()).unwrap_or(u64::MAX),
            closure_size_bytes: info.closure_size_bytes,
            references: info.references,
            built: self.tracker.built(),
        })))
    }

    fn nix(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.order.nix);
        command.args([
            verb,
            "--json",
            "--extra-experimental-features",
            "nix-command flakes",
        ]);
        for (name, value) in &self.order.options {
            command.args(["--option", name, value]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    fn root_holds(&self, path: &str) -> bool {
        fs::read_dir(&self.order.gc_root)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == path))
    }

    /// Runs Nix to its end. Returns its stdout, or the outcome if there is nothing more to do.
    async fn follow(
        &mut self,
        command: Command,
        stop: &mut SignalStream,
    ) -> Result<Result<Vec<u8>, JobOutcome>, String> {
        let program = self.order.nix.display().to_string();
        match self
            .supervise(command, stop)
            .await
            .map_err(|e| format!("can't run {program}: {e}"))?
        {
            Run::Exited(status, stdout) if status.success() => Ok(Ok(stdout)),
            Run::Exited(status, _) => Err(self
                .tracker
                .error()
                .unwrap_or_else(|| format!("nix said nothing, and ended with {status}"))),
            Run::Cancelled => Ok(Err(JobOutcome::Cancelled)),
            Run::TimedOut => {
                let seconds = self.order.timeout_ms / 1000;
                Ok(Err(JobOutcome::TimedOut(format!(
                    "it took longer than {seconds} s, and was ended"
                ))))
            }
        }
    }

    async fn supervise(&mut self, mut command: Command, stop: &mut SignalStream) -> io::Result<Run> {
        let mut child = command.spawn()?;
        self.enter_cgroup(&child);
        let mut stdout = child.stdout.take().expect("it was piped");
        let mut stderr = child.stderr.take().expect("it was piped");
        let (mut said, mut said_open, mut err_open) = (Vec::new(), true, true);
        let (mut out_buffer, mut err_buffer) = (vec![0; 16 * 1024], vec![0; 64 * 1024]);
        let mut lines = Lines::new(MAX_LINE_BYTES);
        let mut stopping: Option<Run> = None;
        let mut status: Option<ExitStatus> = None;
        // When patience ends: with Nix after it was asked to end, with open pipes after it ended.
        let mut patience: Option<Instant> = None;
        loop {
            if status.is_some() && !said_open && !err_open {
                break;
            }
            tokio::select! {
                read = stderr.read(&mut err_buffer), if err_open => match read? {
                    0 => err_open = false,
                    n => {
                        let (tracker, log) = (&mut self.tracker, &mut self.log);
                        lines.feed(&err_buffer[..n], |line| take(tracker, log, line));
                        self.unflushed = true;
                    }
                },
                read = stdout.read(&mut out_buffer), if said_open => match read? {
                    0 => said_open = false,
                    n if said.len() + n > MAX_STDOUT_BYTES => return Err(io::Error::other("it prints too much")),
                    n => said.extend_from_slice(&out_buffer[..n]),
                },
                ended = child.wait(), if status.is_none() => {
                    status = Some(ended?);
                    patience = Some(Instant::now() + PIPE_PATIENCE);
                }
                _ = stop.recv(), if stopping.is_none() && status.is_none() => {
                    stopping = Some(Run::Cancelled);
                    patience = Some(self.ask_to_end(&child));
                }
                () = sleep_until(self.deadline), if stopping.is_none() && status.is_none() => {
                    stopping = Some(Run::TimedOut);
                    patience = Some(self.ask_to_end(&child));
                }
                () = sleep_until(patience.unwrap_or(self.deadline)), if patience.is_some() => {
                    patience = None;
                    if status.is_none() {
                        child.start_kill()?;
                    } else {
                        kill_descendants(KILL_PATIENCE).await;
                        patience = Some(Instant::now() + PIPE_PATIENCE);
                    }
                }
                () = sleep_until(self.next_flush), if self.unflushed => self.flush(),
            }
        }
        let (tracker, log) = (&mut self.tracker, &mut self.log);
        lines.finish(|line| take(tracker, log, line));
        let status = status.expect("the loop ends when it is there");
        Ok(stopping.unwrap_or(Run::Exited(status, said)))
    }

    fn ask_to_end(&self, child: &Child) -> Instant {
        if let Some(pid) = pid_of(child) {
            let _ = kill_process(pid, Signal::TERM);
        }
        Instant::now() + Duration::from_millis(self.order.grace_ms)
    }

    /// After the start of Nix and not before, since the kernel takes some 10 ms for it, which Nix takes to start, too;
    /// whatever it has started meanwhile is moved as well.
    fn enter_cgroup(&mut self, child: &Child) {
        let Some(path) = self.order.cgroup.clone().filter(|_| !self.in_cgroup) else {
            return;
        };
        match Cgroup::new(path).adopt(pid_of(child)) {
            Ok(()) => self.in_cgroup = true,
            Err(error) => self
                .log
                .line(&format!("[the job has no cgroup of its own: {error}]")),
        }
    }

    fn flush(&mut self) {
        self.next_flush = Instant::now() + NEWS_EVERY;
        self.unflushed = false;
        if self.log.has_unwritten() {
            self.log.flush();
        }
        let progress = self.tracker.progress();
        if progress != self.progress && self.folder.write_json(PROGRESS, &progress).is_ok() {
            self.progress = progress;
        }
    }

    async fn conclude(self, outcome: JobOutcome, room: File) -> io::Result<()> {
        let all_dead = kill_descendants(KILL_PATIENCE).await;
        if !matches!(outcome, JobOutcome::Succeeded(_)) {
            let _ = fs::remove_dir_all(&self.order.gc_root);
        }
        let ended = Ended {
            outcome: outcome.into(),
            log_missing: self.log.finish(),
        };
        self.folder
            .write_outcome(room, &ended)
            .map_err(about("the outcome can't be written"))?;
        if let (false, Some(path)) = (all_dead, &self.order.cgroup) {
            // Ends this process, too, which has done its work.
            Cgroup::new(path).kill();
        }
        Ok(())
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
}

fn take(tracker: &mut Tracker, log: &mut LogWriter, line: &[u8]) {
    if let Some(text) = tracker.line(line) {
        for line in text.split('\n') {
            log.line(line);
        }
    }
}

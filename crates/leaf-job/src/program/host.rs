//! The runner of a program: it starts it, holds its pipes, keeps the end of its output, and ends it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use leaf_core::job::run::{TAIL_BYTES, Tail};
use leaf_core::job::{JobOutcome, JobResult, ProgramExit, RunResult};
use leaf_host::cgroup::Cgroup;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::signal::unix::Signal as SignalStream;
use tokio::time::{Instant, sleep_until};

use super::ProgramOrder;
use super::buffer::Buffer;
use super::start::Start;
use crate::descendants::{enter_cgroup, kill_descendants};
use crate::directory::JobDirectory;
use crate::order::Order;

/// How long what is left of a program may take after its end, until it is killed.
const AFTER_EXIT: Duration = Duration::from_millis(500);
/// The most bytes that are read at once.
const READ_BYTES: usize = 64 * 1024;
/// The file that the program's process reads first.
const START: &str = "program.json";

/// Runs a program to its end.
pub(super) async fn run(
    order: &ProgramOrder,
    directory: &JobDirectory,
    order_of_job: &Order,
    terminate: &mut SignalStream,
) -> io::Result<JobOutcome> {
    let place = match Place::make(order, directory) {
        Ok(place) => place,
        Err(error) => {
            let why = format!("can't make the directories of the program: {error}");
            return Ok(JobOutcome::Failed(why.into()));
        }
    };
    let outcome = match Host::start(order, directory, order_of_job, &place) {
        Ok(host) => host.run(order_of_job, terminate).await,
        Err(error) => Ok(JobOutcome::Failed(
            format!("can't start the program: {error}").into(),
        )),
    };
    kill_descendants().await;
    place.remove();
    outcome
}

/// The directories of a program, and the file with which it starts.
struct Place {
    base: PathBuf,
    start: PathBuf,
}

impl Place {
    /// Makes them, for the program's user.
    fn make(order: &ProgramOrder, directory: &JobDirectory) -> io::Result<Self> {
        let base = match order.user {
            // The program's user can't enter leafd's state directory.
            Some(user) => std::env::temp_dir().join(format!("leaf-program-{user}")),
            None => directory.path().join("program"),
        };
        let make = |path: &Path| {
            DirBuilder::new().mode(0o700).create(path)?;
            match order.user {
                Some(user) => std::os::unix::fs::chown(path, Some(user), Some(user)),
                None => Ok(()),
            }
        };
        make(&base)?;
        let place = Self {
            start: directory.path().join(START),
            base,
        };
        make(&place.home())?;
        make(&place.temporary())?;
        let start = Start {
            command: order.command.clone(),
            environment: place.environment(order),
            directory: place.home(),
            user: order.user,
            terminal: false,
        };
        let json = serde_json::to_vec(&start).map_err(io::Error::other)?;
        fs::write(&place.start, json)?;
        Ok(place)
    }

    fn home(&self) -> PathBuf {
        self.base.join("home")
    }

    fn temporary(&self) -> PathBuf {
        self.base.join("tmp")
    }

    /// Returns the program's environment: nothing of this process's.
    fn environment(&self, order: &ProgramOrder) -> BTreeMap<String, String> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut all: BTreeMap<String, String> = [
            ("HOME", text(self.home())),
            ("PWD", text(self.home())),
            ("TMPDIR", text(self.temporary())),
            ("USER", "leaf-program".to_owned()),
            ("LOGNAME", "leaf-program".to_owned()),
            ("SHELL", "/bin/sh".to_owned()),
            ("PATH", order.path.clone()),
            ("LANG", "C.UTF-8".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        all.extend(order.environment.clone());
        all
    }

    fn remove(&self) {
        for path in [&self.base, &self.start] {
            let removed = if path.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            };
            if let Err(error) = removed
                && error.kind() != io::ErrorKind::NotFound
            {
                use io::Write as _;
                let _ = writeln!(io::stderr(), "can't remove {}: {error}", path.display());
            }
        }
    }
}

/// An output of the program.
struct Output {
    /// `None` when it has ended.
    source: Option<AsyncFd<OwnedFd>>,
    kept: Buffer,
}

impl Output {
    fn new(source: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            source: Some(not_blocking(source)?),
            kept: Buffer::new(TAIL_BYTES),
        })
    }

    /// Waits until something was read into the buffer, and returns how much; 0 at the end. Cancel-safe.
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.source {
            Some(source) => read(source, buffer).await,
            None => std::future::pending().await,
        }
    }

    /// Notes what was read.
    fn add(&mut self, read: io::Result<usize>, buffer: &[u8]) {
        match read {
            Ok(0) | Err(_) => self.source = None,
            Ok(count) => self.kept.push(&buffer[..count]),
        }
    }

    fn tail(&mut self) -> Tail {
        let before = self.kept.first();
        Tail::of(self.kept.all(), before)
    }
}

/// A program that runs.
struct Host {
    child: Child,
    group: Option<Pid>,
    stdout: Output,
    stderr: Output,
    began: Instant,
    /// How it ended, and since when its outputs are waited for.
    ended: Option<(ExitStatus, Instant)>,
    result: RunResult,
}

enum Event {
    Read(Which, io::Result<usize>),
    Exited(io::Result<ExitStatus>),
    Terminate,
    TimedOut,
    Patience,
}

#[derive(Clone, Copy)]
enum Which {
    Stdout,
    Stderr,
}

impl Host {
    fn start(
        order: &ProgramOrder,
        directory: &JobDirectory,
        order_of_job: &Order,
        place: &Place,
    ) -> io::Result<Self> {
        let (stdout, stdout_end) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, stderr_end) = pipe_with(PipeFlags::CLOEXEC)?;
        let child = Command::new(&order.starter)
            .arg("job-program")
            .arg(&place.start)
            .current_dir(directory.path())
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::from(stdout_end))
            .stderr(Stdio::from(stderr_end))
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(path) = &order_of_job.cgroup {
            // Without one, the program's user still bounds it.
            let _ = enter_cgroup(&Cgroup::at(path), child.id());
        }
        Ok(Self {
            child,
            group,
            stdout: Output::new(stdout)?,
            stderr: Output::new(stderr)?,
            began: Instant::now(),
            ended: None,
            result: RunResult {
                exit: ProgramExit::Code(0),
                run_time_ms: 0,
                stdout: Tail::default(),
                stderr: Tail::default(),
                packages: order.packages.clone(),
            },
        })
    }

    async fn run(mut self, order: &Order, terminate: &mut SignalStream) -> io::Result<JobOutcome> {
        let deadline = self.began + order.timeout();
        let mut buffers = [vec![0; READ_BYTES], vec![0; READ_BYTES]];
        // Why it was asked to end, and when it is killed.
        let mut ending: Option<(JobOutcome, Instant)> = None;
        loop {
            if self.ended.is_some() && self.stdout.source.is_none() && self.stderr.source.is_none() {
                break;
            }
            let [stdout_buffer, stderr_buffer] = &mut buffers;
            let patience = match (&self.ended, &ending) {
                (Some((_, at)), _) => Some(*at + AFTER_EXIT),
                (None, Some((_, at))) => Some(*at),
                (None, None) => None,
            };
            let is_running = self.ended.is_none();
            let event = tokio::select! {
                read = self.stdout.read(stdout_buffer) => Event::Read(Which::Stdout, read),
                read = self.stderr.read(stderr_buffer) => Event::Read(Which::Stderr, read),
                ended = self.child.wait(), if is_running => Event::Exited(ended),
                _ = terminate.recv(), if ending.is_none() && is_running => Event::Terminate,
                () = sleep_until(deadline), if ending.is_none() && is_running => Event::TimedOut,
                () = sleep_until(patience.unwrap_or(deadline)), if patience.is_some() => Event::Patience,
            };
            match event {
                Event::Read(Which::Stdout, read) => self.stdout.add(read, stdout_buffer),
                Event::Read(Which::Stderr, read) => self.stderr.add(read, stderr_buffer),
                Event::Exited(status) => {
                    self.ended = Some((status?, Instant::now()));
                    let time = self.began.elapsed().as_millis();
                    self.result.run_time_ms = u64::try_from(time).unwrap_or(u64::MAX);
                    self.ask_to_end();
                }
                Event::Terminate => {
                    self.ask_to_end();
                    ending = Some((JobOutcome::Cancelled, Instant::now() + order.grace()));
                }
                Event::TimedOut => {
                    self.ask_to_end();
                    let seconds = order.timeout().as_secs();
                    let why = format!("the program took longer than {seconds} s, and was ended");
                    ending = Some((JobOutcome::TimedOut(why.into()), Instant::now() + order.grace()));
                }
                // What holds the pipes after the program's end is killed, and what does not end when it is asked to.
                Event::Patience => {
                    if let Some((_, at)) = &mut self.ended {
                        kill_descendants().await;
                        *at = Instant::now();
                    } else if let Some((_, at)) = &mut ending {
                        self.child.start_kill()?;
                        *at = Instant::now() + AFTER_EXIT;
                    }
                }
            }
        }
        if let Some((outcome, _)) = ending {
            return Ok(outcome);
        }
        let (status, _) = self.ended.expect("the loop ends when it is known");
        self.result.exit = exit_of(status);
        self.result.stdout = self.stdout.tail();
        self.result.stderr = self.stderr.tail();
        Ok(JobOutcome::Succeeded(JobResult::Run(self.result)))
    }

    /// Asks what is left in the program's process group to end.
    fn ask_to_end(&self) {
        for signal in [Signal::CONT, Signal::TERM] {
            if let Some(group) = self.group {
                let _ = kill_process_group(group, signal);
            }
        }
    }
}

/// Returns how a program ended.
fn exit_of(status: ExitStatus) -> ProgramExit {
    match (status.code(), status.signal()) {
        (Some(code), _) => ProgramExit::Code(code),
        (None, signal) => ProgramExit::Signal(signal_name(signal.unwrap_or_default())),
    }
}

/// Returns the name of a signal without `SIG`, or its number.
fn signal_name(number: i32) -> String {
    let named = [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::ILL, "ILL"),
        (Signal::TRAP, "TRAP"),
        (Signal::ABORT, "ABRT"),
        (Signal::BUS, "BUS"),
        (Signal::FPE, "FPE"),
        (Signal::KILL, "KILL"),
        (Signal::USR1, "USR1"),
        (Signal::SEGV, "SEGV"),
        (Signal::USR2, "USR2"),
        (Signal::PIPE, "PIPE"),
        (Signal::ALARM, "ALRM"),
        (Signal::TERM, "TERM"),
        (Signal::XCPU, "XCPU"),
        (Signal::XFSZ, "XFSZ"),
        (Signal::SYS, "SYS"),
    ];
    let name = named.iter().find(|(signal, _)| signal.as_raw() == number);
    name.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

/// Returns a file for reading and writing that does not block.
fn not_blocking(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::NONBLOCK)?;
    leaf_host::process::async_fd(file)
}

/// Reads once there is something. Cancel-safe.
async fn read(file: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = file.readable().await?;
        let read = ready.try_io(|file| Ok(rustix::io::read(file, &mut *buffer)?));
        if let Ok(read) = read {
            return read;
        }
    }
}

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

use leaf_core::job::develop::ShellStart;
use leaf_core::job::run::{TAIL_BYTES, Tail};
use leaf_core::job::{JobOutcome, JobResult, ProgramExit, RunResult};
use leaf_core::session::wire::{FromRunner, Kept, Stream, ToRunner};
use leaf_core::session::{self, Terminal};
use leaf_host::cgroup::Cgroup;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcgetpgrp, tcsetattr, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::signal::unix::Signal as SignalStream;
use tokio::time::{Instant, sleep_until};

use super::ProgramOrder;
use super::buffer::Buffer;
use super::shell;
use super::side::{Happened, Side, WITHOUT_LEAFD, hello};
use super::start::Start;
use crate::descendants::{enter_cgroup, kill_descendants};
use crate::directory::JobDirectory;
use crate::order::Order;

/// How long what is left of a program may take after its end, until it is killed.
const AFTER_EXIT: Duration = Duration::from_millis(500);
/// The most bytes that are read at once.
const READ_BYTES: usize = 64 * 1024;
/// The bytes of an output of a session that are kept before they are received, and the received ones of a terminal.
const MAX_UNRECEIVED: usize = 512 * 1024;
const RECEIVED: usize = 64 * 1024;
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
        let mut command = order.command.clone();
        let mut environment = place.environment(order);
        if let Some(shell) = &order.shell {
            let directory = place.base.join("shell");
            make(&directory)?;
            let script = shell::write(shell, &directory, &place.home(), order.user)?;
            command = shell::command(shell, order, &script);
            if shell.start == ShellStart::Input {
                let script = script.to_string_lossy().into_owned();
                environment.insert("BASH_ENV".to_owned(), script);
            }
        }
        let start = Start {
            command,
            environment,
            directory: place.home(),
            user: order.user,
            terminal: order.terminal().is_some(),
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
            (
                "TERM",
                order
                    .terminal()
                    .map_or_else(|| "dumb".to_owned(), |terminal| terminal.term.clone()),
            ),
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
    fn new(source: Option<OwnedFd>, kept: Buffer) -> io::Result<Self> {
        Ok(Self {
            source: source.map(not_blocking).transpose()?,
            kept,
        })
    }

    /// Returns the range of what is kept.
    fn range(&self) -> Kept {
        Kept {
            first: self.kept.first(),
            end: self.kept.end(),
        }
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
    /// The other side of its terminal.
    terminal: Option<OwnedFd>,
    session: Option<Side>,
    /// Whether standard error was the last that was sent.
    was_stderr: bool,
    began: Instant,
    /// How it ended, and since when its outputs are waited for.
    ended: Option<(ExitStatus, Instant)>,
    /// Whether leafd was told.
    is_told: bool,
    result: RunResult,
}

enum Event {
    Read(Which, io::Result<usize>),
    Exited(io::Result<ExitStatus>),
    Happened(Happened),
    Terminate,
    TimedOut,
    Patience,
}

#[derive(Clone, Copy)]
enum Which {
    Stdout,
    Stderr,
}

/// The child's ends of its standard streams, and this process's.
struct Streams {
    child: [OwnedFd; 3],
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

impl Streams {
    fn open(order: &ProgramOrder) -> io::Result<Self> {
        if let Some(terminal) = order.terminal() {
            return Self::terminal(terminal, order.user);
        }
        let (stdin_end, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stdout, stdout_end) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, stderr_end) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self {
            child: [stdin_end, stdout_end, stderr_end],
            // Without a session it is closed, so that the program reads its end.
            stdin: order.session.is_some().then_some(stdin),
            stdout,
            stderr: Some(stderr),
            terminal: None,
        })
    }

    /// Opens a terminal that belongs to the program's user.
    fn terminal(terminal: &Terminal, user: Option<u32>) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        if let Some(user) = user {
            std::os::unix::fs::fchown(&slave, Some(user), None)?;
        }
        let mut modes = tcgetattr(&slave)?;
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&slave, OptionalActions::Now, &modes)?;
        let (columns, rows) = session::size(terminal.columns, terminal.rows);
        resize(&master, columns, rows)?;
        Ok(Self {
            stdin: Some(master.try_clone()?),
            stdout: master.try_clone()?,
            stderr: None,
            terminal: Some(master),
            child: [slave.try_clone()?, slave.try_clone()?, slave],
        })
    }
}

fn resize(terminal: &OwnedFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

impl Host {
    fn start(
        order: &ProgramOrder,
        directory: &JobDirectory,
        order_of_job: &Order,
        place: &Place,
    ) -> io::Result<Self> {
        let streams = Streams::open(order)?;
        let session = match (&order.session, streams.stdin) {
            (Some(_), Some(stdin)) => Some(Side::open(directory.path(), not_blocking(stdin)?)?),
            _ => None,
        };
        let [stdin_end, stdout_end, stderr_end] = streams.child;
        let child = Command::new(&order.starter)
            .arg("job-program")
            .arg(&place.start)
            .current_dir(directory.path())
            .env_clear()
            .stdin(Stdio::from(stdin_end))
            .stdout(Stdio::from(stdout_end))
            .stderr(Stdio::from(stderr_end))
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        for path in order_of_job.tasks_cgroup.iter().chain(&order_of_job.cgroup) {
            // Without one, the program's user still bounds it.
            let _ = enter_cgroup(&Cgroup::at(path), child.id());
        }
        let buffer = || match (&session, &streams.terminal) {
            (None, _) => Buffer::new(TAIL_BYTES, 0),
            (Some(_), None) => Buffer::new(MAX_UNRECEIVED, 0),
            (Some(_), Some(_)) => Buffer::new(MAX_UNRECEIVED, RECEIVED),
        };
        Ok(Self {
            child,
            group,
            stdout: Output::new(Some(streams.stdout), buffer())?,
            stderr: Output::new(streams.stderr, buffer())?,
            terminal: streams.terminal,
            session,
            was_stderr: true,
            began: Instant::now(),
            ended: None,
            is_told: false,
            result: RunResult {
                exit: ProgramExit::Code(0),
                run_time_ms: 0,
                stdout: Tail::default(),
                stderr: Tail::default(),
                packages: order.packages.clone(),
            },
        })
    }

    /// Returns how many bytes may be read of an output now: with a full buffer the program waits as it writes, unless the oldest output
    /// is dropped.
    fn limit(&self, output: &Output) -> usize {
        let drops = match &self.session {
            None => true,
            Some(side) => self.terminal.is_some() && !side.is_attached,
        };
        if drops {
            READ_BYTES
        } else {
            output.kept.room().min(READ_BYTES)
        }
    }

    async fn run(mut self, order: &Order, terminate: &mut SignalStream) -> io::Result<JobOutcome> {
        let time_limit = self.began + order.timeout();
        let mut buffers = [vec![0; READ_BYTES], vec![0; READ_BYTES]];
        // Why it was asked to end, and when it is killed.
        let mut ending: Option<(JobOutcome, Instant)> = None;
        loop {
            let is_over =
                self.ended.is_some() && self.stdout.source.is_none() && self.stderr.source.is_none();
            if is_over {
                self.tell_exit();
                if self.session.is_none() || ending.is_some() {
                    break;
                }
            }
            if self.ended.is_some() && self.session.as_ref().is_some_and(|side| side.is_finished) {
                break;
            }
            let patience = match (&self.ended, &ending) {
                (Some((_, at)), _) if !is_over => Some(*at + AFTER_EXIT),
                (None, Some((_, at))) => Some(*at),
                _ => None,
            };
            let deadline = match &self.session {
                Some(side) => side.heard + WITHOUT_LEAFD,
                None => time_limit,
            };
            let is_running = self.ended.is_none();
            match self
                .next(&mut buffers, deadline, patience, terminate, ending.is_some())
                .await
            {
                Event::Read(Which::Stdout, read) => {
                    self.stdout.add(read, &buffers[0]);
                    self.give();
                }
                Event::Read(Which::Stderr, read) => {
                    self.stderr.add(read, &buffers[1]);
                    self.give();
                }
                Event::Exited(status) => self.exited(status?),
                Event::Happened(happened) => self.happened(happened),
                Event::Terminate if is_running => {
                    self.ask_to_end();
                    ending = Some((JobOutcome::Cancelled, Instant::now() + order.grace()));
                }
                Event::TimedOut if is_running => {
                    self.ask_to_end();
                    let why = match &self.session {
                        None => format!(
                            "the program took longer than {} s, and was ended",
                            order.timeout().as_secs()
                        ),
                        Some(_) => {
                            "no leafd spoke to the program's runner for a day, and it was ended".to_owned()
                        }
                    };
                    ending = Some((JobOutcome::TimedOut(why.into()), Instant::now() + order.grace()));
                }
                // The program has ended, and has a result.
                Event::Terminate | Event::TimedOut => {
                    if let Some(side) = &mut self.session {
                        side.is_finished = true;
                        side.heard = Instant::now();
                    }
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
        if self.session.is_none() {
            self.result.stdout = self.stdout.tail();
            self.result.stderr = self.stderr.tail();
        }
        Ok(JobOutcome::Succeeded(JobResult::Run(self.result)))
    }

    /// Waits for the next event.
    async fn next(
        &mut self,
        buffers: &mut [Vec<u8>; 2],
        deadline: Instant,
        patience: Option<Instant>,
        terminate: &mut SignalStream,
        is_ending: bool,
    ) -> Event {
        let [stdout_buffer, stderr_buffer] = buffers;
        let limits = [self.limit(&self.stdout), self.limit(&self.stderr)];
        let is_running = self.ended.is_none();
        let happened = async {
            match &mut self.session {
                Some(side) => side.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = self.stdout.read(&mut stdout_buffer[..limits[0]]), if limits[0] > 0 => Event::Read(Which::Stdout, read),
            read = self.stderr.read(&mut stderr_buffer[..limits[1]]), if limits[1] > 0 => Event::Read(Which::Stderr, read),
            ended = self.child.wait(), if is_running => Event::Exited(ended),
            happened = happened => Event::Happened(happened),
            _ = terminate.recv(), if !is_ending => Event::Terminate,
            () = sleep_until(deadline), if !is_ending => Event::TimedOut,
            () = sleep_until(patience.unwrap_or(deadline)), if patience.is_some() => Event::Patience,
        }
    }

    fn exited(&mut self, status: ExitStatus) {
        self.ended = Some((status, Instant::now()));
        let time = self.began.elapsed().as_millis();
        self.result.run_time_ms = u64::try_from(time).unwrap_or(u64::MAX);
        self.result.exit = exit_of(status);
        self.ask_to_end();
        if let Some(side) = &mut self.session {
            side.close_input();
        }
        // Its own end of the terminal would keep that open.
        if self.terminal.is_some() && self.stdout.source.is_none() {
            self.terminal = None;
        }
    }

    /// Tells leafd once that the program has ended.
    fn tell_exit(&mut self) {
        if self.is_told {
            return;
        }
        self.is_told = true;
        let exited = FromRunner::Exited {
            exit: self.result.exit.clone(),
            stdout: self.stdout.kept.end(),
            stderr: self.stderr.kept.end(),
        };
        if let Some(side) = &mut self.session {
            side.tell(&exited, &[]);
        }
    }

    /// Handles what leafd asks for.
    fn happened(&mut self, happened: Happened) {
        let kept = [self.stdout.range(), self.stderr.range()];
        let Some(side) = &mut self.session else { return };
        match happened {
            Happened::Connected => {
                side.pull = None;
                let exit = self.is_told.then(|| self.result.exit.clone());
                let hello = hello(side, kept, exit);
                side.tell(&hello, &[]);
            }
            Happened::Gone => side.pull = None,
            Happened::InputMoved => {
                let input = side.input();
                side.tell(&FromRunner::Taken(input), &[]);
            }
            Happened::Heard(frames) => {
                for (message, bytes) in frames {
                    self.obey(message, &bytes);
                }
            }
        }
    }

    fn obey(&mut self, message: ToRunner, bytes: &[u8]) {
        let Some(side) = &mut self.session else { return };
        match message {
            pull @ ToRunner::Pull { .. } => {
                side.pull = Some(pull);
                self.give();
            }
            ToRunner::Free { stdout, stderr } => {
                self.stdout.kept.free(stdout);
                self.stderr.kept.free(stderr);
            }
            ToRunner::Input { offset } => {
                side.take_input(offset, bytes);
                let input = side.input();
                side.tell(&FromRunner::Taken(input), &[]);
            }
            ToRunner::EndInput { at } => side.end_input(at),
            ToRunner::Resize { columns, rows } => {
                if let Some(terminal) = &self.terminal {
                    let _ = resize(terminal, columns, rows);
                }
            }
            ToRunner::Signal { name } => {
                if self.ended.is_none()
                    && let Some((signal, _)) = SIGNALS.iter().find(|(_, known)| *known == name)
                {
                    self.signal(*signal);
                }
            }
            ToRunner::Attached { attached } => side.is_attached = attached,
            ToRunner::Finish => side.is_finished = true,
        }
    }

    /// Answers the pull that waits, if there is output for it: of the two outputs by turns.
    fn give(&mut self) {
        let Some(side) = &mut self.session else { return };
        let Some(ToRunner::Pull {
            stdout,
            stderr,
            max,
            number,
        }) = &side.pull
        else {
            return;
        };
        let (number, max) = (*number, *max);
        let mut streams = [
            (Stream::Stdout, *stdout, &self.stdout.kept),
            (Stream::Stderr, *stderr, &self.stderr.kept),
        ];
        if !self.was_stderr {
            streams.reverse();
        }
        for (stream, from, kept) in streams {
            let Some(from) = from.filter(|from| *from < kept.end()) else {
                continue;
            };
            let (offset, bytes) = kept.read(from, max);
            side.pull = None;
            self.was_stderr = stream == Stream::Stderr;
            let output = FromRunner::Output {
                stream,
                offset,
                number,
            };
            side.tell(&output, &bytes);
            return;
        }
    }

    /// Sends a signal to the foreground of the terminal, or else to the program's process group.
    fn signal(&self, signal: Signal) {
        let foreground = self
            .terminal
            .as_ref()
            .and_then(|terminal| tcgetpgrp(terminal).ok());
        if let Some(group) = foreground.or(self.group) {
            let _ = kill_process_group(group, signal);
        }
    }

    /// Asks what is left in the program's process group to end.
    fn ask_to_end(&self) {
        let ends = if self.terminal.is_some() {
            Signal::HUP
        } else {
            Signal::TERM
        };
        for signal in [Signal::CONT, ends] {
            if let Some(group) = self.group {
                let _ = kill_process_group(group, signal);
            }
        }
    }
}

/// The signals that have a name here, without `SIG`.
const SIGNALS: [(Signal, &str); 20] = [
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
    (Signal::TSTP, "TSTP"),
    (Signal::CONT, "CONT"),
];

/// Returns how a program ended.
fn exit_of(status: ExitStatus) -> ProgramExit {
    match (status.code(), status.signal()) {
        (Some(code), _) => ProgramExit::Code(code),
        (None, signal) => ProgramExit::Signal(signal_name(signal.unwrap_or_default())),
    }
}

/// Returns the name of a signal without `SIG`, or its number.
fn signal_name(number: i32) -> String {
    let name = SIGNALS.iter().find(|(signal, _)| signal.as_raw() == number);
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

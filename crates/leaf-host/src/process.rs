//! Bounded runs of programs, the list of processes, and handles of those that are not children of this one.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, pidfd_open, pidfd_send_signal, setrlimit,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

/// Has this process write no core (core(5)), which could have keys and secrets in it, nor those that it starts, unless they set another
/// limit: the hard limit stays, so that a container can have cores.
///
/// systemd-coredump, to which the kernel may pipe cores, goes by this limit as well.
///
/// # Errors
/// The error of setrlimit(2).
pub fn write_no_core() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        ..getrlimit(Resource::Core)
    };
    Ok(setrlimit(Resource::Core, none)?)
}

/// The bounds of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The time limit.
    pub time: Duration,
    /// The limit of its standard output, in bytes; more is an error.
    pub stdout_bytes: usize,
    /// How many bytes of its standard error are kept, from the beginning; the rest is read and dropped.
    pub stderr_bytes: usize,
}

impl Bounds {
    /// Returns bounds with this time limit, 1 MiB of standard output and 8 KiB of standard error.
    #[must_use]
    pub fn of_time(time: Duration) -> Self {
        Self {
            time,
            stdout_bytes: 1 << 20,
            stderr_bytes: 8 << 10,
        }
    }
}

/// The result of a bounded run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// The kept part of its standard error, trimmed.
    pub stderr: String,
}

impl Finished {
    /// Returns why a program that failed did: the signal that ended it, if one did, and the first three lines of its
    /// standard error.
    #[must_use]
    pub fn failure(&self) -> String {
        let said: Vec<_> = self.stderr.lines().take(3).collect();
        let said = said.join(" | ");
        let end = match (self.status.code(), self.status.signal()) {
            (_, Some(signal)) => format!("it was ended by signal {signal}"),
            (Some(_), None) if !said.is_empty() => return said,
            (code, None) => format!(
                "it ended with exit code {} and wrote no error",
                code.unwrap_or_default()
            ),
        };
        if said.is_empty() {
            end
        } else {
            format!("{end}: {said}")
        }
    }
}

/// An error of a bounded run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program does not exist.
    #[error("the program {program} does not exist")]
    NotFound {
        /// The program.
        program: String,
    },
    /// The program can't be started.
    #[error("can't start {program}")]
    Start {
        /// The program.
        program: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// Its output can't be read, or its end can't be waited for.
    #[error("can't follow {program}")]
    Follow {
        /// The program.
        program: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// It exceeded its time limit and was killed.
    #[error("{program} did not end within {} s and was killed", after.as_secs())]
    TimedOut {
        /// The program.
        program: String,
        /// The time limit.
        after: Duration,
    },
    /// It exceeded the limit of its output and was killed.
    #[error("{program} wrote more than {limit} bytes and was killed")]
    TooLarge {
        /// The program.
        program: String,
        /// The limit, in bytes.
        limit: usize,
    },
}

/// Runs a program to its end, in a process group of its own, with `input` as its standard input. The group is killed
/// when a bound is exceeded or the future is dropped.
///
/// # Errors
/// [`RunError`]; an exit code other than 0 is not an error.
pub async fn run(mut command: Command, input: &[u8], bounds: Bounds) -> Result<Finished, RunError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let spawned = command
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let child = match spawned {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(RunError::NotFound { program }),
        Err(source) => return Err(RunError::Start { program, source }),
        Ok(child) => child,
    };
    let mut group = Group::of(child);
    let followed = tokio::time::timeout(bounds.time, follow(&mut group.child, input, bounds)).await;
    match followed {
        Ok(Ok(Some(finished))) => {
            // It was reaped, so its id may soon belong to another group.
            group.led_by = None;
            Ok(finished)
        }
        Ok(Ok(None)) => {
            group.end().await;
            Err(RunError::TooLarge {
                program,
                limit: bounds.stdout_bytes,
            })
        }
        Ok(Err(source)) => {
            group.end().await;
            Err(RunError::Follow { program, source })
        }
        Err(_) => {
            group.end().await;
            Err(RunError::TimedOut {
                program,
                after: bounds.time,
            })
        }
    }
}

/// Runs a program to its end, in a process group of its own, without input, and with its standard output and error appended to a
/// file. The group is killed at the time limit, or when the future is dropped.
///
/// # Errors
/// [`RunError`]; an exit code other than 0 is not an error.
pub async fn run_into(
    mut command: Command,
    log: std::fs::File,
    time: Duration,
) -> Result<ExitStatus, RunError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let start = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            RunError::NotFound {
                program: program.clone(),
            }
        } else {
            RunError::Start {
                program: program.clone(),
                source,
            }
        }
    };
    let errors = log.try_clone().map_err(start)?;
    command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0);
    let mut group = Group::of(command.spawn().map_err(start)?);
    match tokio::time::timeout(time, group.child.wait()).await {
        Ok(Ok(status)) => {
            // It was reaped, so its id may soon belong to another group.
            group.led_by = None;
            Ok(status)
        }
        Ok(Err(source)) => {
            group.end().await;
            Err(RunError::Follow { program, source })
        }
        Err(_) => {
            group.end().await;
            Err(RunError::TimedOut { program, after: time })
        }
    }
}

/// Returns the result of a program; `None` if it exceeded the limit of its output.
async fn follow(child: &mut Child, input: &[u8], bounds: Bounds) -> io::Result<Option<Finished>> {
    let stdin = child.stdin.take();
    let mut stdout = child.stdout.take().expect("it is piped");
    let mut stderr = child.stderr.take().expect("it is piped");
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that ends without reading all of it reports the reason itself.
            let _ = stdin.write_all(input).await;
        }
        Ok(())
    };
    let read_stdout = async {
        let one_more = bounds.stdout_bytes.saturating_add(1);
        let written = read_at_most(&mut stdout, one_more).await.map_err(Some)?;
        // Not the kernel's error, and no reason to wait for the others.
        if written.len() > bounds.stdout_bytes {
            Err(None)
        } else {
            Ok(written)
        }
    };
    let read_stderr = async {
        let said = read_at_most(&mut stderr, bounds.stderr_bytes)
            .await
            .map_err(Some)?;
        // Otherwise the program would block on writing the rest.
        let rest = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        rest.map_err(Some).map(|_| said)
    };
    let (stdout, said) = match tokio::try_join!(feed, read_stdout, read_stderr) {
        Ok(((), stdout, said)) => (stdout, said),
        Err(None) => return Ok(None),
        Err(Some(error)) => return Err(error),
    };
    Ok(Some(Finished {
        status: child.wait().await?,
        stdout,
        stderr: String::from_utf8_lossy(&said).trim().to_owned(),
    }))
}

async fn read_at_most(source: &mut (impl AsyncRead + Unpin), limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    source.take(limit).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// A child that leads a process group, which is killed when this is dropped.
#[derive(Debug)]
struct Group {
    child: Child,
    led_by: Option<Pid>,
}

impl Group {
    fn of(child: Child) -> Self {
        let led_by = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Self { child, led_by }
    }

    fn kill(&mut self) {
        if let Some(pid) = self.led_by.take() {
            // Fails only if no process of the group is left.
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }

    async fn end(&mut self) {
        self.kill();
        // The kernel keeps its id until it is reaped.
        let _ = self.child.wait().await;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the ids of all processes, as `/proc` lists them (proc_pid(5)); none if it can't be read.
pub fn all() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

/// A handle of a process that stays valid when the process id is reused: pidfd_open(2). Needs tokio with I/O.
#[derive(Debug)]
pub struct ProcessHandle(AsyncFd<OwnedFd>);

impl ProcessHandle {
    /// Opens the process with this id; `None` if it does not exist.
    ///
    /// # Errors
    /// The kernel's error, for lack of file descriptors or before Linux 5.10.
    pub fn open(pid: u32) -> io::Result<Option<Self>> {
        match i32::try_from(pid).ok().and_then(Pid::from_raw) {
            Some(pid) => Self::of(pid),
            None => Ok(None),
        }
    }

    /// Opens this process; `None` if it does not exist.
    ///
    /// # Errors
    /// The kernel's error, for lack of file descriptors or before Linux 5.10.
    pub fn of(pid: Pid) -> io::Result<Option<Self>> {
        match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(handle) => async_fd(handle).map(|handle| Some(Self(handle))),
            Err(Errno::SRCH) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Sends a signal, and returns whether the process still existed.
    ///
    /// # Errors
    /// The kernel's error, if this user may not send it.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for its end. Cancel-safe.
    ///
    /// # Errors
    /// The kernel's error.
    pub async fn ended(&self) -> io::Result<()> {
        // A pidfd is readable once the process has ended.
        self.0.readable().await.map(drop)
    }
}

/// Registers a file descriptor for readiness events of tokio. Needs tokio with I/O.
///
/// # Errors
/// The kernel's error.
#[expect(
    deprecated,
    reason = "its successor is unsafe, for the sake of types that don't own what they name; an OwnedFd does"
)]
pub fn async_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn bounds(time: Duration) -> Bounds {
        Bounds {
            stdout_bytes: 10,
            stderr_bytes: 20,
            ..Bounds::of_time(time)
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    /// Waits for the end of the process whose number is in this file: it was sent SIGKILL, and dies on its own time.
    async fn child_ends(pid_file: &Path) {
        let pid = std::fs::read_to_string(pid_file).expect("text");
        let pid = pid.trim().parse().expect("a number");
        if let Some(handle) = ProcessHandle::open(pid).expect("a look") {
            tokio::time::timeout(LONG, handle.ended())
                .await
                .expect("it was killed")
                .expect("a wait");
        }
    }

    #[tokio::test]
    async fn a_program_gets_its_input_and_its_output_is_kept_up_to_the_bounds() {
        let script = "cat; seq 100000 >&2; exit 3";
        let finished = run(shell(script), b"ten bytes!", bounds(LONG))
            .await
            .expect("a run");
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.stdout, b"ten bytes!");
        assert_eq!(finished.stderr, "1\n2\n3\n4\n5\n6\n7\n8\n9\n10");
        let refused = run(shell("cat"), b"eleven byte", bounds(LONG)).await;
        assert!(
            matches!(refused, Err(RunError::TooLarge { limit: 10, .. })),
            "{refused:?}"
        );
    }

    #[tokio::test]
    async fn a_program_that_runs_into_a_file_ends_with_its_code_or_with_its_group_at_the_time_limit() {
        let place = tempfile::tempdir().expect("a directory");
        let log = || std::fs::File::create(place.path().join("log")).expect("a file");
        let said = || std::fs::read_to_string(place.path().join("log")).expect("text");
        let status = run_into(shell("echo out; echo err >&2; exit 4"), log(), LONG).await;
        assert_eq!(status.expect("a run").code(), Some(4));
        assert_eq!(said(), "out\nerr\n");
        let pid = place.path().join("pid");
        let script = format!("sleep 600 & echo $! >{}; wait", pid.display());
        let late = run_into(shell(&script), log(), Duration::from_millis(300)).await;
        assert!(matches!(late, Err(RunError::TimedOut { .. })), "{late:?}");
        child_ends(&pid).await;
        let none = run_into(Command::new("/nowhere/at-all"), log(), LONG).await;
        assert!(matches!(none, Err(RunError::NotFound { .. })), "{none:?}");
    }

    #[test]
    fn a_failure_names_the_signal_or_what_was_said() {
        // As wait(2) returns them: a signal, or an exit code in the second byte.
        for (status, stderr, says) in [
            (11, "", "it was ended by signal 11"),
            (11, "oh", "it was ended by signal 11: oh"),
            (1 << 8, "a\nb\nc\nd", "a | b | c"),
            (7 << 8, "", "it ended with exit code 7 and wrote no error"),
        ] {
            let finished = Finished {
                status: ExitStatus::from_raw(status),
                stdout: Vec::new(),
                stderr: stderr.to_owned(),
            };
            assert_eq!(finished.failure(), says);
        }
    }

    #[tokio::test]
    async fn a_program_that_takes_too_long_is_killed_with_its_children() {
        let place = tempfile::tempdir().expect("a directory");
        let pid_file = place.path().join("pid");
        let script = format!("sleep 600 & echo $! >{}; wait", pid_file.display());
        let refused = run(shell(&script), b"", bounds(Duration::from_secs(1))).await;
        assert!(matches!(refused, Err(RunError::TimedOut { .. })), "{refused:?}");
        child_ends(&pid_file).await;
    }

    #[tokio::test]
    async fn a_missing_program_is_distinguished_from_an_invalid_one() {
        let missing = run(Command::new("/no/such/program"), b"", bounds(LONG)).await;
        assert!(matches!(missing, Err(RunError::NotFound { .. })), "{missing:?}");
        let no_program = run(Command::new("/etc/passwd"), b"", bounds(LONG)).await;
        assert!(
            matches!(no_program, Err(RunError::Start { .. })),
            "{no_program:?}"
        );
    }

    #[tokio::test]
    async fn a_process_is_signalled_and_its_end_is_observed_by_its_handle() {
        let mut child = shell("exec sleep 600").spawn().expect("a child");
        let pid = child.id().expect("a number");
        let handle = ProcessHandle::open(pid).expect("a handle").expect("it lives");
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        assert!(all().any(|other| other.as_raw_nonzero().get().unsigned_abs() == pid));
        assert!(handle.signal(Signal::TERM).expect("a signal"));
        tokio::time::timeout(LONG, handle.ended())
            .await
            .expect("it ends")
            .expect("a wait");
        child.wait().await.expect("its end");
        assert!(!handle.signal(Signal::TERM).expect("no signal"));
        assert!(ProcessHandle::open(pid).expect("a look").is_none());
        assert!(ProcessHandle::open(u32::MAX).expect("a look").is_none());
    }
}

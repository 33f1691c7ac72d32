//! Signals that arrive while their handler is being installed. The test traces a program (ptrace(2)) up to that moment, so
//! that it needs no luck. Where tracing is not permitted, it counts as ignored.

#![allow(clippy::print_stderr, reason = "a test program says why it skips")]

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use leaf_host::signals;
use libtest_mimic::{Arguments, Trial};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::SignalKind;

/// The variable that makes this program the traced one; its value is the place in which it asks for the signal.
const TRACED: &str = "LEAF_HOST_TEST_TRACED";
/// How long the traced program waits for the signal.
const LONG: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    if let Some(place) = std::env::var_os(TRACED) {
        // It is traced from then on.
        std::io::stdin().read_exact(&mut [0]).expect("the test writes");
        return match place.to_str() {
            Some("in a runtime") => in_a_runtime(),
            _ => before_the_runtime(),
        };
    }
    let mut trials = Vec::new();
    for place in ["in a runtime", "before the runtime"] {
        let name = format!("a signal that arrives while its handler is installed is received, {place}");
        let lack = lacking();
        if let Some(lack) = &lack {
            eprintln!("the tests of signals are skipped: {lack}");
        }
        let trial = Trial::test(name, move || arrives_while_installed(place).map_err(Into::into));
        trials.push(trial.with_ignored_flag(lack.is_some()));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn in_a_runtime() -> ExitCode {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let terminate = signals::receive(SignalKind::terminate()).expect("a receiver");
        received(terminate).await
    })
}

fn before_the_runtime() -> ExitCode {
    let terminate = signals::receive(SignalKind::terminate()).expect("a receiver");
    Runtime::new().expect("a runtime").block_on(received(terminate))
}

async fn received(mut terminate: tokio::signal::unix::Signal) -> ExitCode {
    match tokio::time::timeout(LONG, terminate.recv()).await {
        Ok(Some(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn traced(place: &str) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .env(TRACED, place)
        .stdin(Stdio::piped())
        .spawn()
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a process id"))
}

/// Returns why no process can be traced here.
fn lacking() -> Option<String> {
    let mut child = traced("").ok()?;
    let attached = ptrace::attach(pid(&child));
    let _ = child.kill();
    let _ = child.wait();
    attached.err().map(|error| format!("needs ptrace: {error}"))
}

fn arrives_while_installed(place: &str) -> Result<(), String> {
    let mut child = traced(place).map_err(|e| e.to_string())?;
    let pid = pid(&child);
    let wait = || waitpid(pid, None).map_err(|e| e.to_string());
    ptrace::attach(pid).map_err(|e| e.to_string())?;
    wait()?;
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(b"\n").map_err(|e| e.to_string())?;
    // From one system call to the next, up to the end of the one that installs the handler.
    while !catches(pid, Signal::SIGTERM) {
        ptrace::syscall(pid, None).map_err(|e| e.to_string())?;
        if let WaitStatus::Exited(..) | WaitStatus::Signaled(..) = wait()? {
            return Err("it ended before it had a handler".to_owned());
        }
    }
    kill(pid, Signal::SIGTERM).map_err(|e| e.to_string())?;
    let mut pass_on = None;
    loop {
        ptrace::cont(pid, pass_on.take()).map_err(|e| e.to_string())?;
        match wait()? {
            WaitStatus::Stopped(_, signal) => pass_on = Some(signal),
            WaitStatus::Exited(_, 0) => return Ok(()),
            end => return Err(format!("the signal is lost: {end:?}")),
        }
    }
}

/// Returns whether a process has a handler of a signal: proc_pid_status(5), `SigCgt`.
fn catches(pid: Pid, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|caught| u64::from_str_radix(caught.trim(), 16).ok());
    caught.is_some_and(|caught| caught >> (signal as i32 - 1) & 1 == 1)
}

//! Runs test programs: several at a time, and never two of one [`Lane`].

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::programs::Lane;
use super::times::{self, Times};
use crate::tally::Tally;

/// How long a process that a test left behind may hold a program's output open after its end.
const AFTER_THE_END: Duration = Duration::from_secs(5);

/// A job that runs tests.
pub(super) struct Job<'a> {
    pub(super) label: String,
    pub(super) lane: Lane,
    pub(super) work: Work<'a>,
}

/// The work of a [`Job`].
pub(super) enum Work<'a> {
    /// Start a program with libtest's output.
    Program(Command),
    /// Call a function of this program.
    Checks(&'a (dyn Fn(&mut Tally) -> Result<()> + Sync)),
}

/// Runs all jobs, and adds their tests to the tally and their times to the table, in the order of their ends.
pub(super) fn run(mut waiting: Vec<Job<'_>>, at_once: usize, tally: &mut Tally, times: &mut Times) {
    let (sender, ended) = mpsc::channel();
    std::thread::scope(|scope| {
        // The lanes of the running jobs.
        let mut running: Vec<Lane> = Vec::new();
        loop {
            while running.len() < at_once
                && let Some(job) = next(&mut waiting, &running)
            {
                running.push(job.lane);
                let sender = sender.clone();
                scope.spawn(move || {
                    // The receiver lives until the last job has ended.
                    let _ = sender.send(carry_out(job));
                });
            }
            if running.is_empty() {
                break;
            }
            let done: Done = ended.recv().expect("a running job sends its end");
            if let Some(index) = running.iter().position(|lane| *lane == done.lane) {
                running.swap_remove(index);
            }
            println!(
                "{}: {} in {:.1} s",
                done.label,
                done.tally.closing_line(),
                done.took.as_secs_f64()
            );
            times.add(done.label, done.took, done.processor);
            tally.add(done.tally);
        }
    });
}

/// Takes the first job whose lane is free.
fn next<'a>(waiting: &mut Vec<Job<'a>>, running: &[Lane]) -> Option<Job<'a>> {
    let free = |job: &Job<'_>| job.lane == Lane::Nothing || !running.contains(&job.lane);
    let index = waiting.iter().position(free)?;
    Some(waiting.remove(index))
}

/// A job that has ended.
struct Done {
    label: String,
    lane: Lane,
    tally: Tally,
    took: Duration,
    /// The CPU time of the job and its children, if known.
    processor: Option<Duration>,
}

fn carry_out(job: Job<'_>) -> Done {
    let began = Instant::now();
    let Job { label, lane, work } = job;
    let (tally, processor) = match work {
        Work::Program(mut command) => {
            let mut tally = Tally::of(&label);
            let processor = start(&label, &mut command, &mut tally).unwrap_or_else(|error| {
                tally.fail(format!("{label}: {error:#}"));
                None
            });
            (tally, processor)
        }
        Work::Checks(checks) => {
            let mut tally = Tally::default();
            if let Err(error) = checks(&mut tally) {
                tally.fail(format!("{label}: {error:#}"));
            }
            (tally, None)
        }
    };
    Done {
        label,
        lane,
        tally,
        took: began.elapsed(),
        processor,
    }
}

/// Starts a program, prints its output line by line with its label, and counts its tests. Returns its CPU time.
fn start(label: &str, command: &mut Command, tally: &mut Tally) -> Result<Option<Duration>> {
    println!("{label}: begins");
    // One pipe for both outputs, so that a reason comes before the tests that are skipped for it.
    let (reader, writer) = std::io::pipe().context("can't make a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("can't share a pipe")?)
        .stderr(writer);
    let mut child = command.spawn().context("can't start it")?;
    // The command holds the pipe's end as well.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    let mut ended = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(text) => {
                if !text.is_empty() {
                    println!("{label}: {text}");
                }
                tally.line(&text);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                if ended.is_none() && has_ended(&child)? {
                    ended = Some(Instant::now());
                }
                if ended.is_some_and(|since| since.elapsed() > AFTER_THE_END) {
                    tally.fail(format!(
                        "{label}: it left a process behind that holds its output open"
                    ));
                    break;
                }
            }
        }
    }
    tally.end_program();
    wait_without_reaping(&child)?;
    let processor = times::used_by(child.id());
    let status = child.wait().context("can't wait for it")?;
    if !status.success() && tally.failed.is_empty() {
        tally.fail(format!("{label}: it ended with {status}"));
    }
    Ok(processor)
}

fn has_ended(child: &Child) -> Result<bool> {
    wait(child, rustix::process::WaitIdOptions::NOHANG)
}

fn wait_without_reaping(child: &Child) -> Result<()> {
    wait(child, rustix::process::WaitIdOptions::empty()).map(drop)
}

/// Waits for the end of a child without reaping it, so that its CPU time can still be read.
fn wait(child: &Child, how: rustix::process::WaitIdOptions) -> Result<bool> {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let pid = Pid::from_child(child);
    let options = how | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(pid), options)
        .context("can't wait for it")?
        .is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(label: &str, lane: Lane, script: &str) -> Job<'static> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Job {
            label: label.to_owned(),
            lane,
            work: Work::Program(command),
        }
    }

    fn run_all(jobs: Vec<Job<'_>>, at_once: usize) -> (Tally, Times) {
        let (mut tally, mut times) = (Tally::default(), Times::default());
        run(jobs, at_once, &mut tally, &mut times);
        (tally, times)
    }

    #[test]
    fn stdout_and_stderr_are_counted_in_one_order() {
        let script = "echo 'all tests are skipped: no root' >&2; echo 'running 2 tests'; echo 'test x ... ok'; \
                      echo 'test y ... ignored'; echo 'test result: ok. 1 passed; 0 failed; 1 ignored'";
        let (tally, times) = run_all(vec![job("a", Lane::Nothing, script)], 1);
        assert_eq!(tally.closing_line(), "1 passed, 0 failed, 1 skipped");
        assert_eq!(tally.skipped, [("a: y".to_owned(), "no root".to_owned())]);
        assert!(times.table().contains("less than"), "{}", times.table());
    }

    #[test]
    fn an_unexplained_exit_status_is_a_failure() {
        let script =
            "echo 'running 0 tests'; echo 'test result: ok. 0 passed; 0 failed; 0 ignored'; exit 101";
        let (tally, _) = run_all(vec![job("a", Lane::Nothing, script)], 1);
        assert_eq!(tally.closing_line(), "0 passed, 1 failed, 0 skipped");
        assert!(tally.failed[0].name.contains("exit status: 101"), "{tally:?}");
    }

    #[test]
    fn checks_that_fail_to_run_are_a_failure() {
        let checks = |tally: &mut Tally| {
            tally.pass(2);
            anyhow::bail!("no nix")
        };
        let job = Job {
            label: "nix".to_owned(),
            lane: Lane::Nothing,
            work: Work::Checks(&checks),
        };
        let (tally, _) = run_all(vec![job], 1);
        assert_eq!(tally.closing_line(), "2 passed, 1 failed, 0 skipped");
        assert_eq!(tally.failed[0].name, "nix: no nix");
    }

    /// Returns a script that fails if another of the same lane runs, and waits until one of another lane has begun.
    fn exclusive(directory: &std::path::Path, own: &str, other: &str) -> String {
        let at = directory.display();
        format!(
            "mkdir {at}/{own}.lock || exit 1; : >{at}/{own}; i=0; while [ ! -e {at}/{other} ] && [ $i -lt 300 ]; do \
             i=$((i+1)); sleep 0.1; done; rmdir {at}/{own}.lock; echo 'running 1 test'; [ -e {at}/{other} ] && \
             echo 'test result: ok. 1 passed; 0 failed; 0 ignored'"
        )
    }

    #[test]
    fn two_of_one_lane_never_run_at_once_and_two_of_different_ones_do() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let script = |own, other| exclusive(directory.path(), own, other);
        let jobs = vec![
            job("m", Lane::Machines, &script("machines", "host")),
            job("m", Lane::Machines, &script("machines", "host")),
            job("h", Lane::Host, &script("host", "machines")),
            job("h", Lane::Host, &script("host", "machines")),
        ];
        let (tally, _) = run_all(jobs, 4);
        assert_eq!(tally.closing_line(), "4 passed, 0 failed, 0 skipped", "{tally:?}");
    }
}

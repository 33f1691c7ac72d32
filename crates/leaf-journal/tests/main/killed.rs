//! A process that is killed while it commits.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::tempdir;

use crate::support::{Test, assert_whole, open, run, step};

pub(crate) const TESTS: &[Test] = &[(
    "after_sigkill_every_acknowledged_commit_is_there_without_a_gap_twenty_times",
    twenty_times,
)];

/// The argument that makes this program the process that is killed.
pub(crate) const CHILD: &str = "--commit-until-killed";

/// Commits without end, eight at a time, and writes each number when its commit is durable.
pub(crate) fn child(directory: &Path) {
    let (journal, opened) = open(directory).expect("opens");
    let mut out = std::io::stdout();
    let mut next = opened.held.last_sequence + 1;
    let mut waiting = VecDeque::new();
    run(async {
        loop {
            while waiting.len() < 8 {
                waiting.push_back((next, journal.commit(step(next))));
                next += 1;
            }
            let (number, receipt) = waiting.pop_front().expect("eight");
            receipt.await.expect("durable");
            if writeln!(out, "{number}").and_then(|()| out.flush()).is_err() {
                return;
            }
            if number % 100 == 0 {
                journal.forget_events(number - 50).await.expect("durable");
            }
        }
    });
}

fn twenty_times() {
    let directory = tempdir().expect("a directory");
    let mut before = 0;
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg(CHILD)
            .arg(directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut acknowledged = 0;
        for _ in 0..(1 + round * 17 % 150) {
            acknowledged = lines
                .next()
                .expect("goes on")
                .expect("a line")
                .parse()
                .expect("a number");
        }
        child.kill().expect("killed");
        // What it had said before it died counts as well; a line may be cut.
        for line in lines {
            acknowledged = line
                .expect("a line")
                .parse()
                .map_or(acknowledged, |n: u64| n.max(acknowledged));
        }
        child.wait().expect("ended");

        let (journal, opened) = open(directory.path()).expect("opens after a SIGKILL");
        let last = opened.held.last_sequence;
        assert!(
            last >= acknowledged,
            "{acknowledged} was acknowledged, {last} is the last"
        );
        assert!(acknowledged > before, "it went on");
        assert_eq!(opened.entries["n"], last);
        assert_whole(&journal);
        before = last;
    }
}

//! The program of the tests' jobs, which needs no shell and no Nix: it carries out the words of its command line.

use std::io::Write as _;
use std::process::{Command, ExitCode};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// Carries out words such as `say begun, sleep 100, exit 7`, one after the other.
pub(crate) fn main(words: impl Iterator<Item = String>) -> ExitCode {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(run(words))
}

#[expect(
    clippy::zombie_processes,
    reason = "a process in the background outlives its parent, as the test wants it"
)]
#[expect(
    clippy::disallowed_methods,
    reason = "a test sends a signal when the program has said that it is ready"
)]
async fn run(mut words: impl Iterator<Item = String>) -> ExitCode {
    let mut ignored = Vec::new();
    while let Some(word) = words.next() {
        let mut next = || words.next().expect("another word");
        match word.as_str() {
            // Stands in the command line only, where tests look for it.
            "named" => drop(next()),
            "say" => eprintln!("{}", next()),
            "print" => print!("{}", next()),
            "sleep" => {
                tokio::time::sleep(Duration::from_millis(next().parse().expect("milliseconds"))).await;
            }
            "hang" => std::future::pending().await,
            "ignore-signals" => ignored.extend(
                [
                    SignalKind::terminate(),
                    SignalKind::interrupt(),
                    SignalKind::hangup(),
                ]
                .map(|kind| signal(kind).expect("a handler")),
            ),
            "end-at-signal" => {
                let mut signals = signal(SignalKind::terminate()).expect("a handler");
                eprintln!("ready");
                for _ in 0..next().parse().expect("a number") {
                    signals.recv().await;
                }
                eprintln!("ends by itself");
            }
            // So many of the next words are those of a process of another session, whose parent has ended.
            "background" => {
                let count = next().parse().expect("a number");
                let own = std::env::current_exe().expect("this program");
                let status = Command::new(own)
                    .args(["program", "fork"])
                    .args(words.by_ref().take(count))
                    .status();
                assert!(status.expect("started").success());
            }
            "fork" => {
                rustix::process::setsid().expect("no leader yet");
                let own = std::env::current_exe().expect("this program");
                Command::new(own)
                    .arg("program")
                    .args(words)
                    .spawn()
                    .expect("started");
                return ExitCode::SUCCESS;
            }
            // Starts processes that hang until that fails, at most so many.
            "forks" => {
                let own = std::env::current_exe().expect("this program");
                let words = ["program", "named", next().leak(), "ignore-signals", "hang"];
                let count = next().parse::<u32>().expect("a number");
                let started = (0..count).map_while(|_| Command::new(&own).args(words).spawn().ok());
                eprintln!("{} processes", started.count());
            }
            // So many lines of so many bytes each.
            "lines" => {
                let count: usize = next().parse().expect("a number");
                let line = "x".repeat(next().parse().expect("a number"));
                for n in 0..count {
                    eprintln!("{n} {line}");
                }
            }
            // One line of so many mebibytes.
            "line" => {
                let count: usize = next().parse().expect("a number");
                let mebibyte = vec![b'x'; 1 << 20];
                let mut stderr = std::io::stderr().lock();
                for _ in 0..count {
                    stderr.write_all(&mebibyte).expect("written");
                }
                stderr.write_all(b"\n").expect("written");
            }
            "exit" => return ExitCode::from(next().parse::<u8>().expect("an exit code")),
            other => panic!("{other:?} is no word of the test program"),
        }
    }
    ExitCode::SUCCESS
}

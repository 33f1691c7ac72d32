//! Runs `cargo build`, and shows its progress.

use std::io::{BufReader, IsTerminal as _, Read};
use std::process::{ChildStderr, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command::{cargo, typed};

/// The width of cargo's progress bar.
const WIDTH: &str = "80";

/// Compiles what `arguments` select, and returns cargo's messages about the artifacts.
///
/// On a terminal cargo draws its own bar. Elsewhere a line is printed at each tenth.
pub(crate) fn compile<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Vec<Value>> {
    compile_by(cargo(), arguments)
}

/// Like [`compile`], by this cargo, with its environment.
pub(crate) fn compile_by<'a>(
    mut command: Command,
    arguments: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<Value>> {
    command
        .arg("build")
        .args(arguments)
        .arg("--message-format=json-render-diagnostics");
    let shown = typed(&command);
    eprintln!("{shown}");
    let on_terminal = std::io::stderr().is_terminal();
    if !on_terminal {
        command
            .env("CARGO_TERM_PROGRESS_WHEN", "always")
            .env("CARGO_TERM_PROGRESS_WIDTH", WIDTH)
            .stderr(Stdio::piped());
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't run {shown}"))?;
    let mut messages = String::new();
    let stderr = child.stderr.take();
    let mut stdout = child.stdout.take().expect("it is a pipe");
    std::thread::scope(|scope| {
        if let Some(stderr) = stderr {
            scope.spawn(move || show(stderr));
        }
        stdout.read_to_string(&mut messages)
    })
    .with_context(|| format!("can't read what {shown} prints"))?;
    let status = child.wait().with_context(|| format!("can't wait for {shown}"))?;
    ensure!(status.success(), "{shown} ended with {status}");
    Ok(messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

/// Prints cargo's output: warnings and errors unchanged, its bar as a line at each tenth, and no lines about single
/// crates.
fn show(stderr: ChildStderr) {
    let began = Instant::now();
    let mut line = Vec::new();
    let mut tenths = 0;
    for byte in BufReader::new(stderr).bytes().map_while(Result::ok) {
        if byte != b'\n' && byte != b'\r' {
            line.push(byte);
            continue;
        }
        let text = String::from_utf8_lossy(&line).replace("\x1b[K", "");
        line.clear();
        match Said::of(&text) {
            Said::Progress { done, of } => {
                let now = done * 10 / of.max(1);
                if now > tenths {
                    tenths = now;
                    eprintln!(
                        "compiling: {done} of {of} done after {} s",
                        began.elapsed().as_secs()
                    );
                }
            }
            Said::Crate => {}
            Said::Else => eprintln!("{text}"),
        }
    }
}

/// A line of cargo's output.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// The bar: the number of compiled units, and of all units.
    Progress {
        done: u64,
        of: u64,
    },
    /// The start of a crate, or an empty line.
    Crate,
    Else,
}

impl Said {
    fn of(line: &str) -> Self {
        let text = line.trim();
        let progress = text
            .strip_prefix("Building [")
            .and_then(|rest| rest.split_once("] "))
            .and_then(|(_, rest)| rest.split(':').next()?.trim().split_once('/'))
            .and_then(|(done, of)| Some((done.parse().ok()?, of.parse().ok()?)));
        if let Some((done, of)) = progress {
            return Self::Progress { done, of };
        }
        let per_crate = ["Compiling ", "Downloaded ", "Downloading ", "Building "];
        // In the output of a failed test these words would be indented differently.
        if text.is_empty() || per_crate.iter().any(|word| text.starts_with(word)) {
            Self::Crate
        } else {
            Self::Else
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_of_cargo_is_read() {
        let bar = "    Building [=====>                   ] 120/315: tokio, serde_json";
        assert_eq!(Said::of(bar), Said::Progress { done: 120, of: 315 });
        assert_eq!(
            Said::of("    Building [===] 3/4"),
            Said::Progress { done: 3, of: 4 }
        );
    }

    #[test]
    fn lines_about_one_crate_are_left_out_and_all_others_shown() {
        assert_eq!(Said::of("   Compiling serde v1.0.229"), Said::Crate);
        assert_eq!(Said::of(""), Said::Crate);
        assert_eq!(Said::of("error[E0308]: mismatched types"), Said::Else);
        assert_eq!(Said::of("    Finished `dev` profile in 1m"), Said::Else);
    }
}

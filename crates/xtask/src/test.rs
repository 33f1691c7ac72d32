//! `cargo xtask test`: every test that can run here, and one closing line that says how many did.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use testhost::{LACK_VARIABLE, PROGRAMS_VARIABLE, READY_VARIABLE, nixos};

use crate::command::{cargo, run, typed};
use crate::host;
use crate::install::Profile;
use crate::tally::Tally;
use crate::{nats_server, nix_checks, setup, static_programs};

/// How long a process that a test left behind may hold the output after `cargo test` has ended.
const AFTER_THE_END: Duration = Duration::from_secs(5);

/// Install what is missing, and run every test that can run here
///
/// The last line says how many tests passed, failed and were skipped; before it stands each that was skipped, with
/// its reason, and each that failed. It ends with 0 only if none failed.
#[derive(clap::Args)]
pub(crate) struct Test {
    /// Unit tests only, and no Nix
    #[arg(long)]
    quick: bool,
    /// Only the tests that need a real machine (`cargo xtask host`): the test programs named `host`
    #[arg(long, conflicts_with = "quick")]
    host_only: bool,
    /// Only tests with this text in their name
    filter: Option<String>,
}

impl Test {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let tools = setup::prepare(false)?;
        let mut tally = Tally::default();
        match self.programs(&tools, &mut tally) {
            Ok(()) => {}
            Err(error) => {
                eprintln!("error: {error:#}");
                tally.fail(format!("{error}"));
            }
        }
        if !self.quick && !self.host_only {
            nix_checks::run(&mut tally, self.filter.as_deref())?;
        }
        Ok(report(&tally))
    }

    /// Builds and runs the tests of the workspace.
    fn programs(&self, tools: &setup::Tools, tally: &mut Tally) -> Result<()> {
        let leaf_init = if self.quick {
            None
        } else {
            Some(static_programs::build(Profile::Debug, &["leaf-init"])?.join("leaf-init"))
        };
        run(cargo().args(["build", "--quiet", "--workspace"])).context("the workspace can't be built")?;
        let of_host: &[&str] = if self.host_only { &HOST_TESTS } else { &[] };
        *tally = Tally::new(build_tests(of_host).context("the tests can't be built")?);

        let mut command = cargo();
        command.args(["test", "--workspace", "--no-fail-fast", "--color", "never"]);
        command.args(of_host);
        if self.quick {
            command.args(["--lib", "--bins"]).env("CIM_LEAF_QUICK", "1");
        } else {
            self.host(&mut command)?;
        }
        if let Some(filter) = &self.filter {
            command.args(["--", filter]);
        }
        command.env(nats_server::VARIABLE, &tools.nats_server);
        if let Some(leaf_init) = &leaf_init {
            command.envs(static_programs::VARIABLES.map(|name| (name, leaf_init)));
        }
        run_tests(command, tally)
    }

    /// Makes the test host and what is put on it, so that tests find both; where it can't be had, they get the reason.
    fn host(&self, command: &mut Command) -> Result<()> {
        match host::image() {
            Ok(_) => {
                let programs = host::programs(Profile::Debug)?;
                command
                    .env(READY_VARIABLE, "1")
                    .env(PROGRAMS_VARIABLE, programs.tree());
                match host::nixos(&programs) {
                    Ok(systems) => command.env(nixos::VARIABLE, systems.directory()),
                    Err(error) => {
                        eprintln!("note: no NixOS systems: {error:#}");
                        let reason = format!("{error:#}").replace('\n', " ");
                        command
                            .env_remove(nixos::VARIABLE)
                            .env(nixos::LACK_VARIABLE, reason)
                    }
                };
            }
            Err(error) if self.host_only => return Err(error),
            Err(error) => {
                eprintln!("note: no test host: {error:#}");
                let reason = format!("{error:#}").replace('\n', " ");
                command.env_remove(READY_VARIABLE).env(LACK_VARIABLE, reason);
            }
        }
        Ok(())
    }
}

/// What makes cargo build and run the tests on the test host alone.
const HOST_TESTS: [&str; 2] = ["--test", "host"];

/// Compiles the test programs, and returns their packages by their file names.
fn build_tests(which: &[&str]) -> Result<BTreeMap<String, String>> {
    let mut command = cargo();
    command.args([
        "test",
        "--workspace",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    command.args(which);
    let shown = typed(&command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("can't run {shown}"))?;
    anyhow::ensure!(output.status.success(), "{shown} ended with {}", output.status);
    let artifacts = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok());
    Ok(artifacts.filter_map(|artifact| program_of(&artifact)).collect())
}

/// The file name and the package of a test program that cargo has built.
fn program_of(artifact: &serde_json::Value) -> Option<(String, String)> {
    let program = Path::new(artifact["executable"].as_str()?).file_name()?;
    // `path+file:///…/crates/leaf-core#0.1.0`: the folder has the package's name.
    let id = artifact["package_id"].as_str()?;
    let package = id.split('#').next()?.rsplit('/').next()?;
    Some((program.to_string_lossy().into_owned(), package.to_owned()))
}

/// Runs `cargo test`, shows what it prints and counts it.
fn run_tests(mut command: Command, tally: &mut Tally) -> Result<()> {
    let shown = typed(&command);
    println!("{shown}");
    // One pipe for both: only so is known which program prints what.
    let (reader, writer) = std::io::pipe().context("can't make a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("can't share a pipe")?)
        .stderr(writer);
    let mut child = command.spawn().with_context(|| format!("can't run {shown}"))?;
    drop(command);
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
    let failures_before = tally.failed.len();
    let mut ended = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(text) => {
                println!("{text}");
                tally.line(&text);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                if ended.is_none() && child.try_wait().context("can't wait for cargo test")?.is_some() {
                    ended = Some(Instant::now());
                }
                if ended.is_some_and(|since| since.elapsed() > AFTER_THE_END) {
                    tally.fail("the tests left a process behind that holds their output");
                    break;
                }
            }
        }
    }
    tally.end_program();
    let status = child.wait().context("can't wait for cargo test")?;
    if !status.success() && tally.failed.len() == failures_before {
        tally.fail(format!("{shown} ended with {status}"));
    }
    Ok(())
}

fn report(tally: &Tally) -> ExitCode {
    if !tally.skipped.is_empty() {
        println!("\nskipped:");
        for (name, reason) in &tally.skipped {
            let reason = if reason.is_empty() {
                "no reason given"
            } else {
                reason
            };
            println!("  {name} ({reason})");
        }
    }
    if !tally.failed.is_empty() {
        println!("\nfailed:");
        for failure in &tally.failed {
            println!("  {}", failure.name);
            failure.said.iter().for_each(|line| println!("    {line}"));
        }
    }
    println!("\n{}", tally.closing_line());
    // What reads the closing line may read a pipe.
    let _ = std::io::stdout().flush();
    if tally.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(script: &str) -> Tally {
        let mut tally = Tally::default();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run_tests(command, &mut tally).expect("sh runs");
        tally
    }

    #[test]
    fn what_goes_to_stdout_and_stderr_is_counted_in_one_order() {
        let tally = count(
            "echo '     Running tests/a.rs (target/a-1)' >&2; echo 'running 1 test'; echo 'test x ... ok'; \
             echo 'test result: ok. 1 passed; 0 failed; 0 ignored'",
        );
        assert_eq!(tally.closing_line(), "1 passed, 0 failed, 0 skipped");
    }

    #[test]
    fn an_end_with_an_error_that_nothing_explains_is_a_failure() {
        let tally = count("exit 101");
        assert_eq!(tally.closing_line(), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn the_package_of_a_program_is_read_from_cargos_message() {
        let artifact = serde_json::json!({
            "reason": "compiler-artifact",
            "package_id": "path+file:///src/crates/leaf-core#0.1.0",
            "executable": "/src/target/debug/deps/main-0a1b",
        });
        let expected = ("main-0a1b".to_owned(), "leaf-core".to_owned());
        assert_eq!(program_of(&artifact), Some(expected));
        assert_eq!(program_of(&serde_json::json!({"reason": "build-finished"})), None);
    }
}

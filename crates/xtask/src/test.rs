//! `cargo xtask test`: runs every test that can run here, and prints a closing line with the counts.
//!
//! [`programs`] compiles everything once, [`run`] starts the programs, [`times`] records where the time went.

mod nix_versions;
mod older;
mod openpgp;
mod programs;
mod run;
mod times;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use testhost::{LACK_VARIABLE, PROGRAMS_VARIABLE, READY_VARIABLE, nixos};

use crate::command::{cargo, target, workspace};
use crate::host;
use crate::tally::Tally;
use crate::{nats_server, nix_checks, pypi, setup};
use programs::{Lane, Program};
use run::{Job, Work};
use times::Times;

/// The variables with the path of the static `leaf-init`, for tests.
const LEAF_INIT_VARIABLES: [&str; 2] = ["CIM_LEAF_STATIC_INIT", "CIM_LEAF_LEAF_INIT"];
/// The variable with the path of leaf-helper's test program, for the tests on the test host.
const HELPER_TESTS_VARIABLE: &str = "CIM_LEAF_HELPER_TESTS";
/// The test programs that run with further versions of Nix as well, and the beginning of their tests' names, if those are not all.
const WITH_OTHER_NIX: [(&str, Option<&str>); 2] = [
    ("leaf-nix tests/main/main.rs", None),
    ("leafd tests/main.rs", Some("transfers: ")),
];

/// Install what is missing, and run every test that can run here
///
/// One test program per processor runs at a time; those that share the host or the test hosts run one after another.
/// The last line has the numbers of passed, failed and skipped tests; before it are the skipped tests, with their
/// reasons, and the failed ones. Exits with 0 only if none failed.
#[derive(clap::Args)]
pub(crate) struct Test {
    /// Run only unit tests, and no Nix
    #[arg(long)]
    quick: bool,
    /// Run only the tests that need a test host (`cargo xtask host`)
    #[arg(long, conflicts_with = "quick")]
    host_only: bool,
    /// Compile benchmarks and examples as well
    #[arg(long)]
    all_targets: bool,
    /// The number of test programs that run at a time [default: one per processor]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=64))]
    at_once: Option<u16>,
    /// Write the table of times into docs/development.md, between the marks of this name
    #[arg(long, value_name = "NAME")]
    write_times: Option<String>,
    /// Run only tests with this text in their name
    filter: Option<String>,
}

impl Test {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let (mut tally, mut times) = (Tally::default(), Times::default());
        let tools = times.phase("tools", || setup::prepare(false))?;
        if let Err(error) = self.all(&tools, &mut tally, &mut times) {
            eprintln!("error: {error:#}");
            tally.fail(format!("{error:#}"));
        }
        let table = times.table();
        println!("\n{table}");
        if let Some(name) = &self.write_times {
            times::write(name, &table)?;
        }
        Ok(report(&tally))
    }

    /// Compiles and runs the tests.
    fn all(&self, tools: &setup::Tools, tally: &mut Tally, times: &mut Times) -> Result<()> {
        let selected: &[&str] = if self.all_targets {
            &["--all-targets"]
        } else {
            &["--bins", "--tests"]
        };
        let mut programs = times
            .phase("compile", || programs::build(selected))
            .context("can't compile the tests")?;
        let mut environment = Environment::new();
        if let Ok(tree) = nixos::nixpkgs() {
            environment.push((nixos::TREE_VARIABLE, Some(tree.into())));
        }
        if !self.quick {
            environment
                .extend(times.phase("images and programs of the test hosts", || self.machines(tools))?);
        }
        if !self.quick && !self.host_only {
            environment.extend(times.phase("leafd of an earlier commit", older_leafd));
            let (leafd, tests) = times.phase("compile with OpenPGP", openpgp::build)?;
            environment.push((openpgp::VARIABLE, Some(leafd.into())));
            programs.extend(tests);
            // Without it, what needs it is skipped by name.
            if let Ok(oldest) = nats_server::oldest() {
                environment.push((nats_server::OLDEST_VARIABLE, Some(oldest.into())));
            }
            environment.push((nix_versions::VARIABLE, nix_versions::directories()));
            match pypi::securesystemslib() {
                Ok(library) => environment.push((pypi::SECURESYSTEMSLIB_VARIABLE, Some(library.into()))),
                Err(error) => eprintln!("note: no securesystemslib: {error:#}"),
            }
        }
        let helper_tests = programs
            .iter()
            .find(|program| program.label == "leaf-helper tests/main.rs")
            .map(|program| program.file.clone());
        let set_up = |command: &mut Command| {
            command.env(nats_server::VARIABLE, &tools.nats_server);
            let leaf_init = target().join("debug/leaf-init");
            command.envs(LEAF_INIT_VARIABLES.map(|name| (name, &leaf_init)));
            command.envs(helper_tests.iter().map(|file| (HELPER_TESTS_VARIABLE, file)));
            for (name, value) in &environment {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
            if self.quick {
                command.env("CIM_LEAF_QUICK", "1");
            }
        };
        let nix = |tally: &mut Tally| nix_checks::run(tally, self.filter.as_deref());
        let mut jobs: Vec<Job<'_>> = programs
            .iter()
            .filter(|program| !self.host_only || program.lane == Lane::Machines)
            .filter(|program| !self.quick || program.unit)
            .map(|program| self.job(program, set_up))
            .collect();
        if !self.quick && !self.host_only {
            jobs.extend(times.phase("further versions of Nix", || {
                self.with_other_nix(&programs, set_up, tally)
            }));
            if programs::has_examples(&workspace().join("crates"))? {
                jobs.push(self.doc_tests(set_up));
            }
            jobs.push(Job {
                label: "Nix".to_owned(),
                lane: Lane::Nothing,
                work: Work::Checks(&nix),
            });
        }
        let at_once = self.at_once.map_or_else(processors, usize::from);
        run::run(jobs, at_once, tally, times);
        Ok(())
    }

    fn job(&self, program: &Program, set_up: impl Fn(&mut Command)) -> Job<'static> {
        Self::job_of(program, self.filter.as_deref(), set_up)
    }

    fn job_of(program: &Program, filter: Option<&str>, set_up: impl Fn(&mut Command)) -> Job<'static> {
        let mut command = Command::new(&program.file);
        // As cargo would start it.
        command
            .current_dir(&program.directory)
            .env("CARGO_MANIFEST_DIR", &program.directory)
            .args(["--color", "never"])
            .args(filter);
        set_up(&mut command);
        Job {
            label: program.label.clone(),
            lane: program.lane,
            work: Work::Program(command),
        }
    }

    /// Returns the jobs of the tests that run with further versions of Nix; one that is not to be had is skipped.
    fn with_other_nix(
        &self,
        programs: &[Program],
        set_up: impl Fn(&mut Command) + Copy,
        tally: &mut Tally,
    ) -> Vec<Job<'static>> {
        let mut jobs = Vec::new();
        for (label, own) in WITH_OTHER_NIX {
            let Some(program) = programs.iter().find(|program| program.label == label) else {
                tally.fail(format!("{label} was not compiled"));
                continue;
            };
            let filter = match (self.filter.as_deref(), own) {
                (filter, None) | (None, filter) => filter,
                (Some(filter), Some(own)) if filter.starts_with(own) => Some(filter),
                // A program takes one filter.
                (Some(_), Some(_)) => continue,
            };
            for suite in nix_versions::SUITES {
                match nix_versions::of(suite) {
                    Ok(version) => {
                        let mut job = Self::job_of(program, filter, |command| {
                            set_up(command);
                            command.env("PATH", &version.path);
                        });
                        job.label = format!("{label} with Nix {}", version.number);
                        jobs.push(job);
                    }
                    Err(error) => {
                        tally.skip(format!("{label} with the Nix of {suite}"), format!("{error:#}"));
                    }
                }
            }
        }
        jobs
    }

    /// Returns the job of documentation examples, which rustdoc compiles and runs.
    fn doc_tests(&self, set_up: impl Fn(&mut Command)) -> Job<'static> {
        let mut command = cargo();
        command.args([
            "test",
            "--workspace",
            "--doc",
            "--no-fail-fast",
            "--color",
            "never",
        ]);
        if let Some(filter) = &self.filter {
            command.args(["--", filter]);
        }
        set_up(&mut command);
        Job {
            label: "examples in the documentation".to_owned(),
            lane: Lane::Nothing,
            work: Work::Program(command),
        }
    }

    /// Prepares the test hosts and their programs, and returns the environment by which tests find them; if they are
    /// not available, it has the reason for which the tests are skipped.
    fn machines(&self, tools: &setup::Tools) -> Result<Environment> {
        match host::image() {
            Ok(_) => {
                let programs = host::programs_of_tests(tools)?;
                let mut environment = vec![
                    (READY_VARIABLE, Some("1".into())),
                    (PROGRAMS_VARIABLE, Some(programs.tree().into())),
                ];
                match nixos::nixpkgs() {
                    // Where the tree is there, systems that can't be built are a fault.
                    Ok(_) => {
                        let systems = host::nixos(&programs)?;
                        environment.push((nixos::VARIABLE, Some(systems.directory().into())));
                    }
                    Err(error) => {
                        eprintln!("note: no NixOS systems: {error:#}");
                        environment.extend([
                            (nixos::VARIABLE, None),
                            (nixos::LACK_VARIABLE, Some(reason(&error))),
                        ]);
                    }
                }
                Ok(environment)
            }
            Err(error) if self.host_only => Err(error),
            Err(error) => {
                eprintln!("note: no test host: {error:#}");
                Ok(vec![
                    (READY_VARIABLE, None),
                    (LACK_VARIABLE, Some(reason(&error))),
                ])
            }
        }
    }
}

/// Tells the test that goes to an older leafd and back where that is; without one it is skipped.
fn older_leafd() -> Environment {
    match older::leafd() {
        Ok(program) => vec![(older::VARIABLE, Some(program.into()))],
        Err(error) => {
            eprintln!("note: no leafd of an earlier commit: {error:#}");
            vec![(older::VARIABLE, None)]
        }
    }
}

/// Variables of the environment, each set or removed.
type Environment = Vec<(&'static str, Option<OsString>)>;

/// Returns an error in one line.
fn reason(error: &anyhow::Error) -> OsString {
    format!("{error:#}").replace('\n', " ").into()
}

/// Returns the number of test programs that run at a time: at least two, since tests often wait.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().max(2))
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
        println!("\nwhat the failed ones said:");
        for failure in &tally.failed {
            println!("  {}", failure.name);
            failure.said().for_each(|line| println!("    {line}"));
        }
        // Once more, since whoever sees only the last lines should see all of the names, and why.
        println!("\nfailed:");
        for failure in &tally.failed {
            println!("  {}", failure.name);
            if let Some(reason) = failure.reason() {
                println!("    {reason}");
            }
        }
    }
    println!("\n{}", tally.closing_line());
    // Flushed, since a reader of the closing line may read a pipe.
    let _ = std::io::stdout().flush();
    if tally.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

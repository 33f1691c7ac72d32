//! `cargo xtask check`: the checks that run no tests.

use std::process::ExitCode;

use anyhow::Result;

use crate::command::{cargo, find, run, typed};
use crate::docs;

/// Check format, lints, generated documents and, if cargo deny is installed, dependencies
#[derive(clap::Args)]
pub(crate) struct Check {}

impl Check {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let mut steps = vec![
            vec!["fmt", "--check"],
            vec![
                "clippy",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "--deny",
                "warnings",
            ],
        ];
        if find("cargo-deny").is_some() {
            // Advisories need the network; a machine without it must be able to check the rest.
            steps.push(vec!["deny", "check", "bans", "licenses", "sources"]);
            println!("note: `cargo deny check advisories` needs the network, and is not part of this");
        } else {
            eprintln!("note: cargo deny is not installed, so the licenses of dependencies were not checked");
        }
        let mut good = true;
        for args in steps {
            let mut step = cargo();
            step.args(&args);
            println!("{}", typed(&step));
            if let Err(error) = run(&mut step) {
                eprintln!("error: {error:#}");
                good = false;
            }
        }
        println!("cargo xtask docs --check");
        let drift = docs::drift()?;
        drift
            .iter()
            .for_each(|file| eprintln!("error: {file} is out of date; run `cargo xtask docs`"));
        good &= drift.is_empty();
        Ok(if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

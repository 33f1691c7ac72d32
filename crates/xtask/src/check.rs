//! `cargo xtask check`: all that is looked at without running anything.

use std::process::ExitCode;

use anyhow::Result;

use crate::command::{cargo, find, line, run};
use crate::docs;

/// Check formatting, lints, generated documents and, where it is installed, cargo deny
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
            steps.push(vec!["deny", "--all-features", "check"]);
        } else {
            eprintln!("note: cargo deny is not installed, so licenses and advisories were not looked at");
        }
        let mut good = true;
        for args in steps {
            let mut step = cargo();
            step.args(&args);
            println!("{}", line(&step));
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

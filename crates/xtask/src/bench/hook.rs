//! Builds of a stock Nix by `leafctl nix build-hook`: how long Nix waits for each answer, and many small derivations compared with `ssh-ng`.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::numbers::{Row, median, ms};
use super::programs::Programs;
use super::sshd::Sshd;
use super::timing::timed;
use super::two_leaves::Fleet;
use crate::build_shell::BUILD_SHELL;

/// The number of derivations, and of places for them.
const BUILDS: usize = 50;
const PLACES: usize = 8;
/// The number of answers that are timed in a round.
const ANSWERS: usize = 20;

/// What a Nix without settings asks: a derivation without features, of which only the system counts.
fn question() -> Vec<u8> {
    let mut bytes = 0_u64.to_le_bytes().to_vec();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    };
    text(&mut bytes, "try");
    bytes.extend(0_u64.to_le_bytes());
    text(&mut bytes, &format!("{}-linux", std::env::consts::ARCH));
    text(&mut bytes, "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a.drv");
    bytes.extend(0_u64.to_le_bytes());
    bytes
}

/// Returns the time from the start of a hook to its answer, in seconds.
fn answer(hook: &Path, runtime: &Path) -> Result<f64> {
    let began = Instant::now();
    let mut child = Command::new(hook)
        .arg("3")
        .env("XDG_RUNTIME_DIR", runtime)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("can't run the hook")?;
    let mut input = child.stdin.take().context("it has an input")?;
    input.write_all(&question()).context("can't ask the hook")?;
    let mut line = String::new();
    BufReader::new(child.stderr.take().context("it has an output")?)
        .read_line(&mut line)
        .context("can't read the answer")?;
    let took = began.elapsed().as_secs_f64();
    let _ = child.kill();
    let _ = child.wait();
    ensure!(line.trim() == "# accept", "the hook answers {line:?}");
    Ok(took)
}

/// The time of an answer, and of many derivations.
pub(super) fn measure(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let fleet = Fleet::start(programs, 1, PLACES)?;
    let directory = tempfile::Builder::new()
        .prefix("cim-leaf-bench-")
        .tempdir()
        .context("can't make a temporary directory")?;
    let at = |name: &str| directory.path().join(name);
    let script = |name: &str, text: String| -> Result<()> {
        fs::write(at(name), format!("#!/bin/sh\n{text}\n"))
            .and_then(|()| fs::set_permissions(at(name), fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("can't write {name}"))
    };
    let leafctl = programs.tree.join("bin/leafctl");
    script(
        "hook",
        format!(
            "exec {} --context {} nix build-hook \"$@\"",
            leafctl.display(),
            fleet.context().display()
        ),
    )?;
    // The first one reads the leaves.
    answer(&at("hook"), directory.path())?;
    let mut answers = Vec::new();
    let mut times = [Vec::new(), Vec::new()];
    let sshd = Sshd::start(directory.path())?;
    script(
        "nix-daemon",
        "NIX_CONFIG='build-users-group =' exec nix-daemon \"$@\"".to_owned(),
    )?;
    let builders = format!(
        "ssh-ng://root@127.0.0.1?remote-program={} {}-linux - {PLACES}",
        at("nix-daemon").display(),
        std::env::consts::ARCH
    );
    let hook = at("hook").display().to_string();
    let ways = [
        ["--option", "build-hook", hook.as_str()],
        ["--option", "builders", builders.as_str()],
    ];
    for round in 0..rounds {
        for _ in 0..ANSWERS {
            answers.push(answer(&at("hook"), directory.path())?);
        }
        for (number, (way, times)) in ways.iter().zip(&mut times).enumerate() {
            let unique = format!("{}-{round}-{number}", std::process::id());
            let file = at("builds.nix");
            fs::write(&file, expression(&unique)).context("can't write the derivations")?;
            let mut nix = Command::new("nix");
            nix.args(["build", "--no-link", "--max-jobs", "0"])
                .args(["--extra-experimental-features", "nix-command"])
                .args([
                    "--option",
                    "substituters",
                    "",
                    "--option",
                    "build-users-group",
                    "",
                ])
                .args(way)
                .arg("--store")
                .arg(at("store"))
                .arg("--file")
                .arg(&file)
                .env("XDG_RUNTIME_DIR", directory.path())
                .env("NIX_SSHOPTS", sshd.options().join(" "));
            times.push(timed(&mut nix)?);
        }
    }
    fleet.stop()?;
    let [ours, ssh] = times.map(|times| median(&times));
    Ok(vec![
        Row::report(
            "From the start of `leafctl nix build-hook` to its answer, for which Nix waits",
            ms(median(&answers)),
        ),
        Row::report(
            format!(
                "{BUILDS} derivations that do nothing, by a `nix build` without places of its own, on a leaf with {PLACES} by the build hook, \
                 compared with `ssh-ng` to this machine with as many"
            ),
            format!("{ours:.1} s"),
        )
        .against(format!("{ssh:.1} s"), ours / ssh),
    ])
}

fn expression(unique: &str) -> String {
    format!(
        "let shell = {BUILD_SHELL}; in builtins.genList (number: derivation {{ name = \"cim-leaf-bench-{unique}-${{toString number}}\"; \
         system = builtins.currentSystem; inherit (shell) builder; args = shell.args ++ [ \"echo built > $out\" ]; }}) {BUILDS}"
    )
}

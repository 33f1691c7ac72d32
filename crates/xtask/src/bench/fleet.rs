//! A leaf and its hub, compared with bare servers over the same kind of connection.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::measures::json;
use super::numbers::{Row, Target, median, number};
use super::programs::Programs;

/// How many events are measured one after the other in each round.
const EVENTS: u64 = 2000;
/// How many events a hub lacks.
const ABSENCE: u64 = 1_000_000;
/// How many commands are sent one after the other; ten times as many are sent 64 at once.
const COMMANDS: u64 = 2000;
/// How many leaves have one hub, few and many: what a leaf costs must not grow.
const LEAVES: [u64; 2] = [100, 1000];

pub(super) fn measure(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let mut rows = events(programs, rounds)?;
    rows.extend(commands(programs, rounds)?);
    rows.push(catch_up(programs, rounds.min(3))?);
    rows.extend(many(programs)?);
    Ok(rows)
}

/// The keys of a fleet with many leaves.
pub(super) fn keys(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let mut found: [Vec<f64>; 4] = Default::default();
    for _ in 0..rounds.min(3) {
        let figures = keys_once(programs)?;
        for (all, figure) in found.iter_mut().zip(figures) {
            all.push(figure);
        }
    }
    let [init, leaves, show, bytes] = found.map(|figures| median(&figures));
    let number = *LEAVES.last().context("a number of leaves")?;
    Ok(vec![
        Row::report("`leafctl fleet init`", format!("{init:.0} ms")),
        Row::report(
            format!("`leafctl fleet add-leaf` for {number} leaves, one after the other, and for each"),
            format!("{:.1} s, {:.1} ms", leaves / 1e3, leaves / number as f64),
        ),
        Row::report(
            format!("`leafctl fleet show` of {number} leaves"),
            format!("{show:.0} ms"),
        ),
        Row::report(
            format!("the JWT of the account `LINKS` of {number} leaves, compared with a scoped key for each"),
            format!("{:.1} kB", bytes / 1e3),
        )
        .against(format!("{:.0} kB", KEY_FOR_EACH / 1e3), bytes / KEY_FOR_EACH),
    ])
}

/// The size of an account's JWT with 1,000 scoped signing keys, as nats-server 2.15.1 was tried with it, in bytes.
const KEY_FOR_EACH: f64 = 569e3;

fn keys_once(programs: &Programs) -> Result<[f64; 4]> {
    let directory = tempfile::Builder::new()
        .prefix("cim-leaf-bench-")
        .tempdir()
        .context("can't make a temporary directory")?;
    let host_key = directory.path().join("key");
    run_quietly(
        Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&host_key),
    )?;
    let keys = directory.path().join("fleet");
    let leafctl = |arguments: &[&str]| -> Result<f64> {
        let mut command = Command::new(programs.tree.join("bin/leafctl"));
        command
            .arg("fleet")
            .args(arguments)
            .env("LEAFCTL_FLEET", &keys)
            .current_dir(directory.path());
        let start = Instant::now();
        run_quietly(&mut command)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    let init = leafctl(&["init", "fleet", "--hub", "tls://hub.example:7422"])?;
    let number = *LEAVES.last().context("a number of leaves")?;
    let start = Instant::now();
    for leaf in 0..number {
        leafctl(&["add-leaf", &format!("edge-{leaf}"), "--host-key", "key.pub"])?;
    }
    let leaves = start.elapsed().as_secs_f64() * 1e3;
    let show = leafctl(&["show"])?;
    let jwt = keys.join("stores/fleet/accounts/LINKS/LINKS.jwt");
    let bytes = jwt.metadata().context("the JWT of LINKS")?.len();
    Ok([init, leaves, show, bytes as f64])
}

fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("can't run a command")?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn run(programs: &Programs, what: &str, count: u64) -> Result<Value> {
    let directory = tempfile::Builder::new()
        .prefix("cim-leaf-bench-")
        .tempdir()
        .context("can't make a temporary directory")?;
    json(
        Command::new(&programs.fleet)
            .args([&programs.nats_server, &programs.leaf_hub, &programs.leafd])
            .arg(what)
            .arg(directory.path())
            .arg(count.to_string()),
    )
}

/// Runs a measurement some times, and returns the medians of these figures.
fn medians<const N: usize>(
    programs: &Programs,
    rounds: usize,
    (what, count): (&str, u64),
    figures: [&[&str]; N],
) -> Result<[f64; N]> {
    let mut found = Vec::new();
    for _ in 0..rounds {
        found.push(run(programs, what, count)?);
    }
    Ok(figures.map(|figure| {
        median(
            &found
                .iter()
                .map(|found| number(found, figure))
                .collect::<Vec<_>>(),
        )
    }))
}

fn events(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let figures: [&[&str]; 5] = [
        &["leaf", "p50"],
        &["bare", "p50"],
        &["leaf", "p99"],
        &["bare", "p99"],
        &["heard", "p50"],
    ];
    let [leaf, bare, leaf_99, bare_99, heard] = medians(programs, rounds, ("events", EVENTS), figures)?;
    let row = |what: &str, leaf: f64, bare: f64| {
        let what = format!(
            "an event on the leaf until it is stored at the hub, {what}, compared with a bare publish over the same connection"
        );
        Row::report(what, format!("{leaf:.0} µs"))
            .against(format!("{bare:.0} µs"), leaf / bare)
            .target(Target::AtMost(1.2))
    };
    Ok(vec![
        row("median", leaf, bare),
        row("99th percentile", leaf_99, bare_99),
        Row::report(
            "an event on the leaf until a client of the hub hears it, median",
            format!("{heard:.0} µs"),
        ),
    ])
}

fn commands(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let figures: [&[&str]; 7] = [
        &["leaf", "p50"],
        &["bare", "p50"],
        &["leaf", "p99"],
        &["bare", "p99"],
        &["leaf", "per_second"],
        &["bare", "per_second"],
        &["in_place", "per_second"],
    ];
    let [leaf, bare, leaf_99, bare_99, leaf_rate, bare_rate, in_place] =
        medians(programs, rounds, ("commands", COMMANDS), figures)?;
    let at_once = |against: &str, rate: f64| {
        Row::report(
            format!("64 `leaf.show` at once through the hub, compared with a bare responder {against}"),
            format!("{leaf_rate:.0}/s"),
        )
        .against(format!("{rate:.0}/s"), leaf_rate / rate)
        .target(Target::AtLeast(0.8))
    };
    let row = |what: &str, leaf: f64, bare: f64| {
        let what = format!(
            "`leaf.show` through the hub, {what}, compared with a bare responder over the same connection"
        );
        Row::report(what, format!("{leaf:.0} µs")).against(format!("{bare:.0} µs"), leaf / bare)
    };
    Ok(vec![
        row("median", leaf, bare).target(Target::AtMost(1.2)),
        row("99th percentile", leaf_99, bare_99),
        at_once("over the same connection, without accounts", bare_rate),
        at_once("in the place of leafd, with its accounts and rights", in_place),
    ])
}

fn catch_up(programs: &Programs, rounds: usize) -> Result<Row> {
    let figures: [&[&str]; 2] = [&["leaf_seconds"], &["bare_seconds"]];
    let [leaf, bare] = medians(programs, rounds, ("catch-up", ABSENCE), figures)?;
    let what = format!("{ABSENCE} events that the hub lacks, compared with a JetStream source");
    Ok(Row::report(what, format!("{leaf:.1} s"))
        .against(format!("{bare:.1} s"), leaf / bare)
        .target(Target::AtMost(1.2)))
}

fn many(programs: &Programs) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut fewer: Option<(u64, [f64; 2])> = None;
    for leaves in LEAVES {
        let found = run(programs, "many", leaves)?;
        let list = number(&found, &["list_ms"]);
        rows.push(
            Row::report(
                format!("the list of {leaves} leaves, read at the hub"),
                format!("{list:.0} ms"),
            )
            .limit(list, Target::AtMost(300.0)),
        );
        let memory = number(&found, &["bytes_a_leaf"]);
        let mut of_memory = Row::report(
            format!(
                "memory of the hub's server and its agent with {leaves} leaves at rest, and for each leaf"
            ),
            format!(
                "{:.0} MB, {:.0} kB",
                number(&found, &["hub_bytes"]) / 1e6,
                memory / 1e3
            ),
        );
        let share = number(&found, &["processor_share"]) / leaves as f64;
        let mut of_time = Row::report(
            format!("their processor time with {leaves} leaves at rest, and for each leaf"),
            format!("{:.1} %, {:.3} %", share * leaves as f64 * 100.0, share * 100.0),
        );
        // What a leaf costs must not grow with their number.
        if let Some((number, [memory_before, share_before])) = fewer {
            let each = |figure: String| format!("{figure} for each of {number}");
            of_memory = of_memory
                .against(
                    each(format!("{:.0} kB", memory_before / 1e3)),
                    memory / memory_before,
                )
                .target(Target::AtMost(1.2));
            of_time = of_time
                .against(
                    each(format!("{:.3} %", share_before * 100.0)),
                    share / share_before,
                )
                .target(Target::AtMost(1.2));
        } else {
            rows.push(Row::report(
                "messages of a leaf at rest in a day: its claims and their replies",
                format!("{:.1} MB", number(&found, &["bytes_a_day"]) / 1e6),
            ));
        }
        rows.extend([of_memory, of_time]);
        fewer = Some((leaves, [memory, share]));
    }
    Ok(rows)
}

//! Many lives of containers: nothing is left of them, on the host and in leafd.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use testhost::LIVES;

use super::{Leaf, WAITS};
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[("many_lifecycles_of_containers_leave_nothing_behind", many)];

/// The longest that one life may take on an emulated machine, on the average.
const A_LIFE: Duration = Duration::from_secs(20);
/// How many lives; `cargo xtask soak` sets 1,000.
const CYCLES_VARIABLE: &str = "CIM_LEAF_CYCLES";
/// A file that gets a line of JSON with the figures.
const REPORT_VARIABLE: &str = "CIM_LEAF_SOAK_REPORT";

/// Appends figures to the report, where one is wanted.
pub(crate) fn report(figures: &serde_json::Value) -> anyhow::Result<()> {
    let Some(path) = std::env::var_os(REPORT_VARIABLE) else {
        return Ok(());
    };
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)?;
    writeln!(file, "{figures}").context("the report takes no line")
}

/// What leafd and the host hold that could grow.
#[derive(Debug, Clone, Copy)]
struct Held {
    memory_kib: u64,
    descriptors: u64,
    units: u64,
    mounts: u64,
    links: u64,
    rules: u64,
    roots: u64,
}

fn held(leaf: &Leaf) -> anyhow::Result<Held> {
    let text = leaf.host.ok(
        "pid=$(systemctl show -P MainPID leafd); awk '/^VmRSS/{print $2}' /proc/$pid/status; ls /proc/$pid/fd | wc -l; \
         systemctl list-units --all --plain --no-legend | wc -l; wc -l </proc/mounts; ls /sys/class/net | wc -l; \
         nft list ruleset | wc -l; find /nix/var/nix/gcroots /etc/nixos-containers /var/lib/nixos-containers \
         /var/lib/cim-leaf/containers /run/cim-leaf /run/systemd/system 2>/dev/null | wc -l",
    )?;
    let figures: Vec<u64> = text
        .split_whitespace()
        .map(|word| word.parse().context("a number"))
        .collect::<anyhow::Result<_>>()?;
    let [memory_kib, descriptors, units, mounts, links, rules, roots] = figures[..] else {
        anyhow::bail!("not seven figures: {text}");
    };
    Ok(Held {
        memory_kib,
        descriptors,
        units,
        mounts,
        links,
        rules,
        roots,
    })
}

fn many() -> Outcome {
    let cycles: u32 = std::env::var(CYCLES_VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(12);
    let leaf = Leaf::up_for(LIVES + cycles * A_LIFE)?;
    let toplevel = leaf.system("waits", WAITS)?;
    let cycle = format!(
        "set -e; for i in $(seq $N); do for command in 'create web --toplevel {toplevel}' 'start web' 'stop web' 'destroy web'; do \
         leafctl --json --timeout 120s --context /var/lib/cim-leaf/context.json container $command >/var/tmp/out 2>&1 || {{ cat /var/tmp/out; exit 1; }}; done; done"
    );
    let lives = |count: u32| -> anyhow::Result<()> {
        let limit = Duration::from_secs(120) + count * A_LIFE;
        let output = leaf.host.run_within(&format!("N={count}; {cycle}"), limit)?;
        ensure!(output.status == 0, "{output:?}");
        Ok(())
    };
    // What is made once is made by then.
    lives(3)?;
    let before = held(&leaf)?;
    let began = Instant::now();
    lives(cycles)?;
    let seconds = began.elapsed().as_secs_f64();
    let after = held(&leaf)?;
    leaf.nothing_left("web")?;
    leaf.agrees()?;
    let same = (
        before.units,
        before.mounts,
        before.links,
        before.rules,
        before.roots,
    ) == (after.units, after.mounts, after.links, after.rules, after.roots);
    ensure!(same, "before {before:?}, after {after:?}");
    ensure!(
        after.descriptors <= before.descriptors + 3,
        "before {before:?}, after {after:?}"
    );
    // Remembered commands take their part: some hundred bytes each.
    let allowed = before.memory_kib + 4096 + u64::from(cycles) * 8;
    ensure!(after.memory_kib <= allowed, "before {before:?}, after {after:?}");
    report(&serde_json::json!({
        "what": "create, start, stop and destroy of a container",
        "times": cycles,
        "seconds": seconds,
        "found": format!(
            "no unit, mount, link, rule or file left; leafd's memory {} KiB before, {} KiB after; its files {} before, {} after",
            before.memory_kib, after.memory_kib, before.descriptors, after.descriptors
        ),
    }))?;
    Ok(())
}

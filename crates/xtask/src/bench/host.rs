//! Measurements on the test host: lifecycles of containers, compared with the same by hand (`host/by-hand.sh`), and a leaf that is moved to
//! another hub ([`moves`]).

mod moves;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testhost::Host;

use super::numbers::{Row, Target, each, median, ms, number, table};
use super::programs::Programs;
use crate::host;
use crate::install::Profile;

/// The number of containers that are started at once.
const CROWD: usize = 100;
/// The time limit for each to become ready, in seconds.
const READY_SECONDS: u32 = 600;
/// The number of requests per round.
const REQUESTS: usize = 500;
/// The machine's memory, in MiB, for a hundred containers.
const MEMORY_MIB: u64 = 4096;
/// The number of its processors.
const PROCESSORS: u32 = 2;
/// The time limit of the machine.
const LIVES: Duration = Duration::from_secs(3 * 3600);
/// The time limit of a measurement.
const PATIENCE: Duration = Duration::from_secs(3600);
/// The directory of copied files on the machine.
const DIRECTORY: &str = "/opt/bench";
/// The program of measurements on the machine.
const REQUEST: &str = "/mnt/bench/requests";
/// The leaf's directory on the machine, and its name.
const STATE: &str = "/var/lib/cim-leaf";
const CONTEXT: &str = "leafctl --context /var/lib/cim-leaf/context.json";

/// The ways to run a container without a leaf: the name in `by-hand.sh`, the description, and the maximum ratio of a
/// leaf's time to it.
const BY_HAND: [(&str, &str, Option<f64>); 4] = [
    (
        "systemctl",
        "hand-written files of the NixOS contract and `systemctl`",
        Some(1.1),
    ),
    ("least", "a minimal unit", None),
    ("nspawn", "bare `systemd-nspawn`", Some(1.1)),
    (
        "nix-env",
        "the steps of `nixos-container`, with `nix-env`",
        Some(0.5),
    ),
];

/// Builds a container's system that is ready at once and waits for its end, and prints its path.
const SYSTEM: &str = r#"set -e; mkdir -p /var/tmp/busybox /var/tmp/waits; cp /usr/bin/busybox /var/tmp/busybox/
b=$(nix-store --add /var/tmp/busybox)/busybox
cat >/var/tmp/waits/init <<EOF
#!$b sh
exec /run/leaf/init ready -- $b sh -c 'echo ready; trap "exit 0" 37; while :; do $b sleep 1000 & wait; done'
EOF
chmod +x /var/tmp/waits/init; nix-store --add /var/tmp/waits"#;

/// Takes all measurements.
pub(super) fn rows(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let machine = Machine::start(programs)?;
    let mut rows = machine.lives(rounds)?;
    // The following measurements take long, and may fail.
    eprintln!("{}", table(&rows));
    rows.extend(machine.request(rounds)?);
    rows.extend(machine.crowd()?);
    drop(machine);
    eprintln!("{}", table(&rows));
    rows.extend(moves::rows(&host::programs(Profile::Release)?, rounds)?);
    Ok(rows)
}

/// The test host with a leaf and the measuring programs.
struct Machine {
    host: Host,
    /// The leaf's name.
    leaf: String,
    /// The system of all containers.
    toplevel: String,
    /// The directory shared with it.
    _directory: tempfile::TempDir,
}

impl Machine {
    fn start(programs: &Programs) -> Result<Self> {
        host::image()?;
        let released = host::programs(Profile::Release)?;
        let directory = tempfile::tempdir().context("can't make a temporary directory")?;
        std::fs::copy(&programs.requests, directory.path().join("requests"))
            .context("can't copy the program that sends the requests")?;
        let mut host = Host::options()
            .with(&released)
            .memory_mib(MEMORY_MIB)
            .processors(PROCESSORS)
            .lives(LIVES)
            .restore()?;
        host.share(directory.path(), "/mnt/bench")?;
        host.ok(&format!("mkdir -p {DIRECTORY}"))?;
        let script = include_bytes!("host/by-hand.sh");
        host.put(script, &format!("{DIRECTORY}/by-hand.sh"), "0755")?;
        let contract = include_bytes!("host/contract@.service");
        host.put(contract, "/etc/systemd/system/contract@.service", "0644")?;
        let least = include_bytes!("host/least@.service");
        host.put(least, "/etc/systemd/system/least@.service", "0644")?;
        let toplevel = host.ok(SYSTEM)?.trim().to_owned();
        // A hundred containers on one emulated processor wait for each other.
        host.ok(&format!(
            "printf '\\n[containers]\\nready_timeout_seconds = {READY_SECONDS}\\n' >>/etc/cim-leaf/leafd.toml; \
             systemctl daemon-reload && systemctl start leafd"
        ))?;
        host.ok(&format!(
            "until {CONTEXT} leaf show >/dev/null 2>&1; do sleep 0.2; done"
        ))?;
        let shown = host.ok(&format!("{CONTEXT} --json leaf show"))?;
        let shown: Value = serde_json::from_str(&shown).context("leafctl printed invalid JSON")?;
        let leaf = shown["name"].as_str().context("a leaf has a name")?.to_owned();
        Ok(Self {
            host,
            leaf,
            toplevel,
            _directory: directory,
        })
    }

    fn does(&self, command: &str) -> Result<String> {
        let output = self.host.run_within(command, PATIENCE)?;
        ensure!(output.status == 0, "{command}: {output:?}");
        Ok(output.stdout)
    }

    fn asks(&self, command: &str) -> Result<Value> {
        let text = self.does(&format!("{REQUEST} {command}"))?;
        serde_json::from_str(&text).with_context(|| format!("{command} printed invalid JSON: {text}"))
    }

    /// Measures a container's lifecycle (create, ready, stopped, destroyed), in microseconds.
    fn life_of_leaf(&self) -> Result<[f64; 4]> {
        let Self { leaf, toplevel, .. } = self;
        let times = self.asks(&format!("life {STATE} {leaf} {toplevel}"))?;
        Ok([0, 1, 2, 3].map(|step| times[step].as_f64().unwrap_or(f64::NAN)))
    }

    fn life_by_hand(&self, manner: &str) -> Result<[f64; 4]> {
        let text = self.does(&format!(
            "{DIRECTORY}/by-hand.sh life {manner} hand {}",
            self.toplevel
        ))?;
        let mut times = text.lines().map(|line| line.parse().unwrap_or(f64::NAN));
        Ok([(); 4].map(|()| times.next().unwrap_or(f64::NAN)))
    }

    /// Measures the same with a `leafctl` for each step, in microseconds.
    fn life_by_leafctl(&self) -> Result<f64> {
        let text = self.does(&format!(
            "began=${{EPOCHREALTIME/[.,]/}}; for step in 'create life --toplevel {}' 'start life' 'stop life' 'destroy life'; do \
             {CONTEXT} container $step >/dev/null || exit 1; done; echo $((${{EPOCHREALTIME/[.,]/}} - began))",
            self.toplevel
        ))?;
        text.trim()
            .parse()
            .context("the lifecycle by leafctl printed no time")
    }

    fn lives(&self, rounds: usize) -> Result<Vec<Row>> {
        let (mut leaf, mut leafctl) = (Vec::new(), Vec::new());
        let mut by_hand: [Vec<[f64; 4]>; BY_HAND.len()] = Default::default();
        // The first round fills caches.
        for round in 0..=rounds {
            let of_leaf = self.life_of_leaf()?;
            let of_leafctl = self.life_by_leafctl()?;
            if round > 0 {
                leaf.push(of_leaf);
                leafctl.push(of_leafctl);
            }
            for (lives, (manner, ..)) in by_hand.iter_mut().zip(BY_HAND) {
                let life = self.life_by_hand(manner)?;
                if round > 0 {
                    lives.push(life);
                }
            }
        }
        let whole = |lives: &[[f64; 4]]| {
            let sums: Vec<f64> = lives.iter().map(|life| life.iter().sum::<f64>() / 1e6).collect();
            median(&sums)
        };
        let steps = |lives: &[[f64; 4]]| {
            let step = |which: usize| {
                let times: Vec<f64> = lives.iter().map(|life| life[which] / 1e3).collect();
                median(&times)
            };
            format!(
                "{:.0} + {:.0} + {:.0} + {:.0} ms",
                step(0),
                step(1),
                step(2),
                step(3)
            )
        };
        let mut rows = Vec::new();
        for (lives, (_, name, target)) in by_hand.iter().zip(BY_HAND) {
            let row = Row::report(
                format!("a container created, ready, stopped, destroyed, compared with {name}"),
                format!("{} ({})", ms(whole(&leaf)), steps(&leaf)),
            )
            .against(
                format!("{} ({})", ms(whole(lives)), steps(lives)),
                whole(&leaf) / whole(lives),
            );
            rows.push(match target {
                Some(most) => row.target(Target::AtMost(most)),
                None => row,
            });
        }
        let typed = median(&leafctl) / 1e6;
        rows.push(
            Row::report("the same by four `leafctl`, compared with `systemctl`", ms(typed))
                .against(ms(whole(&by_hand[0])), typed / whole(&by_hand[0])),
        );
        Ok(rows)
    }

    /// Measures many containers at once, and leafd's resource usage for it.
    fn crowd(&self) -> Result<Vec<Row>> {
        let Self { leaf, toplevel, .. } = self;
        let before = self.leafd()?;
        let found = self.asks(&format!("crowd {STATE} {leaf} {CROWD} {toplevel}"))?;
        let after = self.leafd()?;
        let seconds = number(&found, &["seconds"]);
        let by_hand = self.does(&format!(
            "{DIRECTORY}/by-hand.sh crowd systemctl {CROWD} {toplevel}"
        ))?;
        let by_hand: f64 = by_hand
            .trim()
            .parse()
            .context("the containers by hand printed no time")?;
        let by_hand = by_hand / 1e6;
        Ok(vec![
            Row::report(
                format!("{CROWD} containers started at once, compared with `systemctl start` of as many units written by hand"),
                format!("{seconds:.1} s"),
            )
            .against(format!("{by_hand:.1} s"), seconds / by_hand),
            Row::report(
                format!("`leafd`'s CPU time for creating, starting and destroying the {CROWD}, and its peak memory"),
                format!(
                    "{:.1} s, {:.1} MB",
                    after.seconds - before.seconds,
                    after.most_kib * 1024.0 / 1e6
                ),
            ),
        ])
    }

    fn leafd(&self) -> Result<Used> {
        let text = self.host.ok(
            "pid=$(systemctl show --property=MainPID --value leafd); \
             awk '{print ($14 + $15) / '$(getconf CLK_TCK)'}' /proc/$pid/stat; awk '/^VmHWM/{print $2}' /proc/$pid/status",
        )?;
        let mut figures = text.lines().map(|line| line.parse().unwrap_or(f64::NAN));
        Ok(Used {
            seconds: figures.next().unwrap_or(f64::NAN),
            most_kib: figures.next().unwrap_or(f64::NAN),
        })
    }

    /// Measures a request over NATS to a container, compared with the same to a process beside the leaf.
    fn request(&self, rounds: usize) -> Result<Vec<Row>> {
        let leaf = &self.leaf;
        self.does(&format!(
            "{CONTEXT} --timeout 600s container create asked --template minimal --start"
        ))?;
        let found = self.asks(&format!("health {STATE} {leaf} {rounds} {REQUESTS} asked"))?;
        self.does(&format!("{CONTEXT} container destroy asked"))?;
        let of = |who: &str, figure: &str| median(&each(&found, "rounds", &[who, figure]));
        let bytes = number(&found, &["bytes"]);
        Ok([("p50_us", "median"), ("p99_us", "99th percentile")]
            .map(|(figure, name)| {
                let (inside, beside) = (of("container", figure), of("bare", figure));
                Row::report(
                    format!(
                        "a request answered inside a container, {bytes} bytes, {name}, compared with a bare responder on the host"
                    ),
                    format!("{inside:.0} µs"),
                )
                .against(format!("{beside:.0} µs"), inside / beside)
            })
            .into())
    }
}

/// The resource usage of a process.
struct Used {
    /// CPU time.
    seconds: f64,
    /// Peak memory.
    most_kib: f64,
}

/// Returns a description of the virtualization.
pub(super) fn accelerator() -> Result<String> {
    Ok(format!("{:?}", host::image()?.accelerator()).to_lowercase())
}

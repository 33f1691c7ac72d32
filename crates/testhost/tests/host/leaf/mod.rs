//! A machine with a leaf on it, and what a person does there: `leafctl`, `systemctl`, a look.

mod access;
mod boots;
mod boundaries;
mod change;
mod cycles;
mod ends;
mod faults;
mod lifecycle;
mod pause;
pub(crate) mod sample;
mod secrets;
mod specs;
mod updates;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use testhost::{Host, LIVES, Output, Programs};

use crate::Trials;

/// The tests of all files here.
pub(crate) const TRIALS: &[Trials] = &[
    lifecycle::TRIALS,
    specs::TRIALS,
    updates::TRIALS,
    ends::TRIALS,
    pause::TRIALS,
    boots::TRIALS,
    faults::TRIALS,
    boundaries::TRIALS,
    change::TRIALS,
    cycles::TRIALS,
    access::TRIALS,
    secrets::TRIALS,
];

/// Builds a container's system without nixpkgs: busybox, an init, and what it does.
pub(crate) const SYSTEM: &str = include_str!("system.nix");

/// What root lets containers have of the machine.
const HELPER: &str = "bind_folders = ['/srv']\nsecret_folders = ['/run/secrets']\nhost_users = true\n";

/// What a container does that just runs, and halts when it is asked to.
pub(crate) const WAITS: &str = "trap 'exit 0' 37; while :; do sleep 3600 & wait $!; done";

/// The longest that a leaf may take for something on an emulated machine, beside other work.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long `leafctl` may take: longer than any `--timeout` that a test gives it.
const LEAFCTL: Duration = Duration::from_secs(930);

/// What all machines with a leaf continue from: leafd is running, and systems can be built fast.
fn preparation() -> String {
    format!(
        "set -e; mkdir -p /var/tmp/tools /srv /run/secrets; cp /usr/bin/busybox /var/tmp/tools/
cat >/var/tmp/system.nix <<'END'
{SYSTEM}
END
printf %s {} >/etc/cim-leaf/helper.toml
{}
systemctl start leafd
until leafctl --context /var/lib/cim-leaf/context.json leaf show >/dev/null 2>&1; do sleep 0.2; done",
        quoted(HELPER),
        build("waits", &waits())
    )
}

/// Returns the arguments that make [`SYSTEM`] one that does nothing but run.
fn waits() -> String {
    format!("--argstr main {}", quoted(WAITS))
}

/// Returns the command that builds [`SYSTEM`] with these arguments.
fn build(name: &str, arguments: &str) -> String {
    format!(
        "nix-build --no-out-link /var/tmp/system.nix --argstr name {name} {arguments} 2>/var/tmp/nix-build.log || \
         {{ cat /var/tmp/nix-build.log >&2; exit 1; }}"
    )
}

/// A machine with a leaf on it.
pub(crate) struct Leaf {
    /// The machine.
    pub(crate) host: Host,
}

impl Leaf {
    /// Returns a fresh one, which answers.
    pub(crate) fn up() -> Result<Self> {
        Self::up_for(LIVES)
    }

    /// Returns a fresh one that lives longer.
    pub(crate) fn up_for(lives: Duration) -> Result<Self> {
        let host = Host::options()
            .with(&Programs::here()?)
            .after(&preparation())
            .lives(lives)
            .restore()?;
        let leaf = Self { host };
        leaf.answers()?;
        Ok(leaf)
    }

    /// Waits until the leaf answers.
    pub(crate) fn answers(&self) -> Result<()> {
        self.until("the leaf answers", || Ok(self.run("leaf show")?.status == 0))
    }

    /// Runs `leafctl` with `--json`.
    pub(crate) fn run(&self, arguments: &str) -> Result<Output> {
        // An emulated machine on a busy disk may stand still for longer than a person's ten seconds.
        let patient = if arguments.contains("--timeout") {
            ""
        } else {
            "--timeout 60s "
        };
        let command = format!("leafctl --json {patient}--context /var/lib/cim-leaf/context.json {arguments}");
        self.host.run_within(&command, LEAFCTL)
    }

    /// Runs `leafctl`, which must succeed, and returns what it printed.
    pub(crate) fn ctl(&self, arguments: &str) -> Result<Value> {
        let output = self.run(arguments)?;
        if output.status != 0 {
            let log = self
                .host
                .run("journalctl --no-pager -n 60 -u leafd -u leaf-helper -u 'container@*'")?;
            bail!("leafctl {arguments} failed: {output:?}\n{}", log.stdout);
        }
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("leafctl {arguments} printed no JSON: {:?}", output.stdout))
    }

    /// Runs `leafctl`, which must fail, and returns its problem.
    pub(crate) fn refused(&self, arguments: &str) -> Result<Value> {
        let output = self.run(arguments)?;
        ensure!(
            output.status != 0,
            "leafctl {arguments} should have failed: {output:?}"
        );
        let last = output.stderr.trim().lines().last().unwrap_or_default().to_owned();
        serde_json::from_str(&last).with_context(|| format!("leafctl {arguments} said {:?}", output.stderr))
    }

    /// Returns one container.
    pub(crate) fn show(&self, name: &str) -> Result<Value> {
        self.ctl(&format!("container show {name}"))
    }

    /// Waits until a container is in a phase, and returns it.
    pub(crate) fn until_phase(&self, name: &str, phase: &str) -> Result<Value> {
        let mut last = Value::Null;
        self.until(&format!("container {name} is {phase}"), || {
            last = self.show(name)?;
            Ok(last["phase"] == phase)
        })
        .with_context(|| last.to_string())?;
        self.show(name)
    }

    /// Waits until nothing moves any more about a container, be it there or not.
    pub(crate) fn settled(&self, name: &str) -> Result<()> {
        self.until("the leaf has settled", || {
            let list = self.ctl("container list")?;
            let containers = list["containers"].as_array().context("a list")?;
            let container = containers.iter().find(|container| container["name"] == name);
            Ok(container.is_none_or(|c| {
                ["running", "stopped", "failed"]
                    .iter()
                    .any(|phase| c["phase"] == *phase)
            }))
        })
    }

    /// Waits until something holds.
    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds()? {
            if Instant::now() > deadline {
                let log = self
                    .host
                    .run("journalctl --no-pager -n 80 -u leafd -u leaf-helper -u 'container@*'")?;
                bail!("waited in vain until {what}:\n{}", log.stdout);
            }
        }
        Ok(())
    }

    /// Builds a system that does this, and returns its store path.
    pub(crate) fn system(&self, name: &str, main: &str) -> Result<String> {
        self.build(name, &format!("--argstr main {}", quoted(main)))
    }

    /// Builds a system with these arguments of its Nix function, and returns its store path.
    pub(crate) fn build(&self, name: &str, arguments: &str) -> Result<String> {
        let path = self.host.ok(&build(name, arguments))?;
        Ok(path.trim().to_owned())
    }

    /// Writes a spec to the machine, and returns its path there.
    pub(crate) fn spec(&self, file: &str, toml: &str) -> Result<String> {
        let path = format!("/var/tmp/{file}");
        self.host.put(toml.as_bytes(), &path, "0644")?;
        Ok(path)
    }

    /// Makes and starts a container that runs until it is asked to halt.
    pub(crate) fn running(&self, name: &str) -> Result<String> {
        let toplevel = self.build("waits", &waits())?;
        self.ctl(&format!("container create {name} --toplevel {toplevel} --start"))?;
        Ok(toplevel)
    }

    /// The leaf's events of a type, the oldest first.
    pub(crate) fn events(&self, kind: &str) -> Result<Vec<Value>> {
        let output = self.run(&format!("events --since 1 --type '{kind}'"))?;
        ensure!(output.status == 0, "events: {output:?}");
        output
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).context("an event is JSON"))
            .collect()
    }

    /// Checks that the stream has every sequence number once, in order, and that what the leaf says of its containers is
    /// what the host shows, or soon is: it may be about to see what has just happened.
    pub(crate) fn agrees(&self) -> Result<()> {
        let numbers: Vec<u64> = self
            .events("*")?
            .iter()
            .map(|event| {
                let number = event["sequence"].as_str().context("an event has a number")?;
                number.parse().context("a number")
            })
            .collect::<Result<_>>()?;
        let wanted: Vec<u64> = (1..=numbers.len() as u64).collect();
        ensure!(numbers == wanted, "the stream has {numbers:?}");
        let mut differs = None;
        self.until("the leaf and systemd agree", || {
            differs = self.difference()?;
            Ok(differs.is_none())
        })
        .with_context(|| differs.unwrap_or_default())
    }

    /// Returns what the leaf says otherwise of a container than systemd does.
    fn difference(&self) -> Result<Option<String>> {
        let list = self.ctl("container list")?;
        for container in list["containers"].as_array().context("a list")? {
            let name = container["name"].as_str().context("a name")?;
            let active = self.host.run(&format!("systemctl is-active container@{name}"))?;
            let (phase, active) = (&container["phase"], active.stdout.trim());
            if (phase == "running") != (active == "active") {
                return Ok(Some(format!(
                    "container {name} is {phase} for the leaf, and {active} for systemd"
                )));
            }
        }
        Ok(None)
    }

    /// Checks that nothing of a container is left on the host.
    pub(crate) fn nothing_left(&self, name: &str) -> Result<()> {
        let left = self.host.ok(&format!(
            "for f in /etc/nixos-containers/{name}.conf /var/lib/nixos-containers/{name} \
             /run/systemd/system/container@{name}.service /nix/var/nix/gcroots/per-container/{name} \
             /var/lib/cim-leaf/containers/*/{name} /run/cim-leaf/containers/*/{name} \
             /run/systemd/nspawn/unix-export/{name} /run/systemd/machines/{name} /sys/class/net/ve-{name} \
             /sys/fs/cgroup/machine.slice/container@{name}.service; do [ ! -e $f ] || echo $f; done; \
             nft list ruleset | grep -F 've-{name}' || true; grep -F '/{name}' /proc/mounts | grep nspawn || true"
        ))?;
        ensure!(left.trim().is_empty(), "left of container {name}:\n{left}");
        Ok(())
    }
}

/// Returns a text as one word of a shell's command line.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

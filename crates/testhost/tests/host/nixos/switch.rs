//! Switches of a NixOS host by `leafctl system`: it stays on a system that was confirmed, and comes back from any other.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testhost::nixos::Systems;

use super::{SLOW, leaf_on_nixos};
use crate::leaf::Leaf;
use crate::leaf::sample::Sample;
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[
    (
        "a_nixos_host_comes_back_from_a_system_that_is_not_well_and_says_why",
        not_well,
    ),
    (
        "a_nixos_host_stays_on_a_system_that_was_confirmed_and_a_power_cut_before_boots_the_one_of_before",
        confirmed,
    ),
];

/// A host whose person may switch it.
struct Switched {
    leaf: Leaf,
    systems: Systems,
}

impl Switched {
    fn up() -> Result<Self> {
        let systems = Systems::here()?;
        let leaf = leaf_on_nixos(&systems)?;
        leaf.host
            .ok("ssh-keygen -q -t ed25519 -N '' -C '' -f /root/key && \
             echo \"admin $(cat /root/key.pub)\" >/var/lib/test-signers && chmod 644 /var/lib/test-signers")?;
        // As an installed host has it.
        leaf.host
            .ok("nix-env --profile /nix/var/nix/profiles/system --set $(readlink /run/current-system)")?;
        Ok(Self { leaf, systems })
    }

    /// Runs `leafctl system` as the person who may switch.
    fn system(&self, arguments: &str) -> Result<testhost::Output> {
        self.leaf.host.run_within(
            &format!("LEAFCTL_SIGN_WITH=/root/key leafctl --json --timeout 60s system {arguments}"),
            SLOW,
        )
    }

    fn report(&self) -> Result<Value> {
        self.leaf.ctl("system generations")
    }

    /// Returns what runs, what the profile names, and what is booted next.
    fn now(&self) -> Result<[String; 3]> {
        let links = self.leaf.host.ok(
            "readlink -f /run/current-system; readlink -f /nix/var/nix/profiles/system || echo none; \
             dirname $(readlink /sbin/init)",
        )?;
        let links: Vec<String> = links.lines().map(str::to_owned).collect();
        links.try_into().map_err(|links| anyhow::anyhow!("{links:?}"))
    }

    /// Checks that the last change went back for a reason with this text, and that the host is as it was.
    fn is_back(&self, because: &str) -> Outcome {
        self.leaf.answers()?;
        self.leaf.until("the change has gone back", || {
            let report = self.report()?;
            Ok(report["change"].is_null())
        })?;
        let report = self.report()?;
        let last = &report["decided"][0];
        ensure!(last["decision"] == "back", "{report}");
        let why = last["why"].as_str().context("a reason")?;
        ensure!(why.contains(because), "{why:?} has no {because:?}");
        let old = self.systems.host("leaf")?;
        let [running, _, boots] = self.now()?;
        ensure!([running.as_str(), &boots] == [old, old], "{running} {boots}");
        let failed = self.leaf.host.ok("systemctl --failed --no-legend")?;
        ensure!(failed.is_empty(), "{failed}");
        // What is left over is removed after the decision is written.
        self.leaf.until("nothing of the change is left", || {
            let left = self
                .leaf
                .host
                .ok("ls /var/lib/cim-leaf-change | grep -v -e decided -e lock -e switch.log || true")?;
            Ok(left.is_empty())
        })
    }

    /// Fails with the logs of a switch behind the error, whose first line a report of failed tests has.
    fn logged<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|error| {
            let log = self
                .leaf
                .host
                .run("journalctl --no-pager -o cat -n 150 -u leaf-switch -u leaf-change -u leaf-helper -u leafd")
                .map(|output| output.stdout)
                .unwrap_or_default();
            anyhow::anyhow!("{error:#}\n{log}")
        })
    }
}

fn not_well() -> Outcome {
    let host = Switched::up()?;
    host.logged(comes_back(&host))
}

fn comes_back(host: &Switched) -> Outcome {
    // What is no system is refused before anything is written.
    let hello = host
        .leaf
        .host
        .ok("nix-store --query --requisites /run/current-system | grep nats-server | head -1")?;
    let refused = host.system(&format!("switch {}", hello.trim()))?;
    ensure!(refused.status == 6, "{refused:?}");
    ensure!(refused.stderr.contains("is no NixOS system"), "{refused:?}");
    // That of a container has no leaf.
    let without = host.systems.host("without")?;
    let refused = host.system(&format!("switch {without}"))?;
    ensure!(
        refused.status == 6 && refused.stderr.contains("has no cim-leaf"),
        "{refused:?}"
    );
    host.leaf
        .host
        .ok("! ls /var/lib/cim-leaf-change/*.json 2>/dev/null")?;

    // One of them takes a minute or two, so a run has one.
    let sample = Sample::from_environment()?;
    eprintln!("systems that are not well are tried in {}", sample.of("variant"));
    for (nth, comes_back_from) in (0..).zip([a_failing_unit, a_crashing_leafd, a_closed_firewall]) {
        if sample.takes_one_of(3, nth) {
            comes_back_from(host)?;
        }
    }
    Ok(())
}

/// Comes back from a system in which a unit fails.
fn a_failing_unit(host: &Switched) -> Outcome {
    let (failing, began) = (host.systems.host("failing")?, Instant::now());
    let back = host.system(&format!("switch --confirm {failing}"))?;
    ensure!(
        back.status == 7 && back.stderr.contains("failing.service"),
        "{back:?}"
    );
    host.is_back("failing.service")?;
    eprintln!(
        "back from a unit that fails after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Comes back from a system whose leafd ends at once.
fn a_crashing_leafd(host: &Switched) -> Outcome {
    let (crashing, began) = (host.systems.host("crashing")?, Instant::now());
    let back = host.system(&format!("switch --confirm {crashing}"))?;
    ensure!(back.status == 7, "{back:?}");
    host.is_back("leafd.service")?;
    eprintln!(
        "back from a leafd that crashes after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Comes back from a system whose firewall blocks NATS.
fn a_closed_firewall(host: &Switched) -> Outcome {
    let (closed, began) = (host.systems.host("closed")?, Instant::now());
    let open = host.system(&format!("switch --no-witness --detach --within 120s {closed}"))?;
    ensure!(open.status == 0, "{open:?}");
    host.leaf.until("the new system is in use", || {
        Ok(host
            .leaf
            .host
            .run("nft list table inet closed >/dev/null")?
            .status
            == 0)
    })?;
    // Nobody reaches it, and nobody has to.
    let lost = host.leaf.host.run("leafctl --json --timeout 2s leaf show")?;
    ensure!(lost.status != 0, "{lost:?}");
    // Beside other work the switch itself may take all of the time; then it is killed.
    host.is_back("in time")?;
    eprintln!(
        "back from a firewall that blocks NATS after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

fn confirmed() -> Outcome {
    let mut host = Switched::up()?;
    let outcome = stays(&mut host);
    host.logged(outcome)
}

/// Verifies a host that runs this system: nothing is wrong, and what is changed by hand is found.
fn verified(host: &Switched, system: &str) -> Outcome {
    let verify = |status: i32| -> Result<Value> {
        let ended = host.system("verify")?;
        ensure!(ended.status == status, "{ended:?}");
        serde_json::from_str(ended.stdout.trim()).with_context(|| ended.stdout.clone())
    };
    let clean = verify(0)?;
    let is_whole = clean["toplevel"] == *system
        && clean["wrong"].as_array().is_some_and(Vec::is_empty)
        && clean["etc"]["of_system"].as_u64() > Some(50)
        && clean["paths"].as_u64() > Some(50);
    ensure!(is_whole, "{clean}");
    host.leaf.host.ok(
        "cp --remove-destination $(readlink -f /etc/hosts) /etc/hosts && echo 192.0.2.1 cache >>/etc/hosts && \
         echo x >/etc/by-hand",
    )?;
    let changed = verify(7)?;
    let found = |name: &str, what: &str| {
        let found = serde_json::json!({ "name": name, "what": what });
        changed["etc"]["differences"]
            .as_array()
            .is_some_and(|all| all.contains(&found))
    };
    ensure!(
        changed["etc"]["unexplained"] == 2 && found("hosts", "changed") && found("by-hand", "added"),
        "{changed}"
    );
    host.leaf
        .host
        .ok("rm /etc/by-hand && ln -sfn /etc/static/hosts /etc/hosts")?;
    let clean = verify(0)?;
    ensure!(clean["etc"]["unexplained"] == 0, "{clean}");
    Ok(())
}

fn stays(host: &mut Switched) -> Outcome {
    let old = host.systems.host("leaf")?.to_owned();
    let well = host.systems.host("well")?.to_owned();
    host.leaf.bring_tools()?;
    host.leaf.running("web")?;
    let runs = "machinectl show web --property=Leader --value";
    let leader = host.leaf.host.ok(runs)?;

    // What it would change is shown before.
    let diff = host.system(&format!("diff {well}"))?;
    ensure!(diff.status == 0, "{diff:?}");
    let diff: Value = serde_json::from_str(diff.stdout.trim()).with_context(|| diff.stdout.clone())?;
    ensure!(
        diff["from"] == *old && diff["to"] == *well && diff["system"]["at_next_boot"].is_null(),
        "{diff}"
    );
    let units = diff["system"]["units"].as_array().context("units")?;
    ensure!(
        units.contains(&serde_json::json!({ "unit": "speaker.service", "effect": "starts" })),
        "{diff}"
    );

    verified(host, &old)?;

    // The power is cut when it waits to be confirmed.
    let open = host.system(&format!("switch --no-witness --detach {well}"))?;
    ensure!(open.status == 0, "{open:?}");
    host.leaf.until("it can be confirmed", || {
        let report = host.leaf.run("system generations")?;
        let report: Value = serde_json::from_str(&report.stdout).unwrap_or_default();
        Ok(report["can_be_confirmed"] == true)
    })?;
    ensure!(host.now()?[0] == well, "{:?}", host.now()?);
    ensure!(
        host.leaf.host.ok(runs)? == leader,
        "a container noticed the switch"
    );
    let second = host.system(&format!("test {well}"))?;
    ensure!(
        second.status == 6 && second.stderr.contains("is open"),
        "{second:?}"
    );
    host.leaf.host.ok("sync")?;
    host.leaf.host.cut_power();
    host.leaf.host.boot()?;
    host.is_back("was rebooted before it was confirmed")?;

    // And now it is confirmed, over a new connection.
    host.leaf.until_phase("web", "running")?;
    let leader = host.leaf.host.ok(runs)?;
    let began = Instant::now();
    let done = host.system(&format!("switch --confirm {well}"))?;
    ensure!(done.status == 0, "{done:?}");
    eprintln!(
        "confirmed and installed after {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let shown: Value = serde_json::from_str(done.stdout.trim()).with_context(|| done.stdout.clone())?;
    ensure!(
        shown["outcome"] == "confirmed" && shown["by"] == "admin",
        "{shown}"
    );
    ensure!(
        host.now()? == [well.clone(), well.clone(), well.clone()],
        "{:?}",
        host.now()?
    );
    ensure!(
        host.leaf.host.ok(runs)? == leader,
        "a container noticed the switch"
    );
    let kinds = host.leaf.events("leaf.change_confirmed")?;
    ensure!(kinds.len() == 1, "{kinds:?}");
    host.leaf.host.ok("sync")?;
    host.leaf.host.cut_power();
    host.leaf.host.boot()?;
    host.leaf.answers()?;
    ensure!(
        host.now()? == [well.clone(), well.clone(), well.clone()],
        "{:?}",
        host.now()?
    );

    // An earlier generation is switched to as any other system, and becomes the newest.
    let rolled = host.system("rollback --confirm")?;
    ensure!(rolled.status == 0, "{rolled:?}");
    ensure!(
        host.now()? == [old.clone(), old.clone(), old],
        "{:?}",
        host.now()?
    );
    let report = host.report()?;
    ensure!(
        report["generations"].as_array().map(Vec::len) == Some(3) && report["profile"] == 3,
        "{report}"
    );
    host.leaf.answers()?;
    // What the same takes by hand, for docs/performance.md.
    if Sample::from_environment()? == Sample::All {
        let began = Instant::now();
        let by_hand = format!(
            "{well}/bin/switch-to-configuration test && nix-env --profile /nix/var/nix/profiles/system --set {well} && \
             {well}/bin/switch-to-configuration boot"
        );
        let done = host.leaf.host.run_within(&by_hand, SLOW)?;
        ensure!(done.status == 0, "{done:?}");
        eprintln!("by hand after {:.1} s", began.elapsed().as_secs_f64());
    }
    Ok(())
}

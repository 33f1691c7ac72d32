//! A NixOS host with `services.cim-leaf`: its units, reboots, power cuts, and switches to other systems.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testhost::nixos::Systems;

use super::{PATIENT, SLOW, leaf_on_nixos};
use crate::leaf::Leaf;
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[
    (
        "on_nixos_leafd_and_its_helper_start_by_their_units_and_what_the_readme_does_by_hand_works",
        by_hand,
    ),
    (
        "a_nixos_host_is_switched_without_disturbing_a_container_or_job_and_has_all_back_after_a_reboot_and_a_power_cut",
        lives,
    ),
];

fn by_hand() -> Outcome {
    let leaf = leaf_on_nixos(&Systems::here()?)?;
    leaf.host.ok(
        "[ $(ps -o user= -p $(systemctl show -P MainPID leafd)) = leafd ] && systemctl is-active leaf-helper.socket && \
         [ -z \"$(systemctl --failed --no-legend)\" ]",
    )?;
    // systemd starts them again however often they fail.
    for unit in ["leafd.service", "leaf-helper.service"] {
        let limit = leaf
            .host
            .ok(&format!("systemctl show {unit} -P StartLimitIntervalUSec"))?;
        ensure!(limit.trim() == "0", "{unit}: {limit}");
    }
    leaf.host
        .ok("leafd check-config /etc/cim-leaf/leafd.toml && leafd inventory --json | jq -e .devices")?;
    let shown = leaf.ctl("leaf show")?;
    ensure!(shown["name"] == "leaf", "{shown}");
    leaf.ctl("leaf list")?;
    leaf.ctl("hardware list")?;
    leaf.bring_tools()?;
    leaf.running("web")?;
    // The helper was called, by its socket.
    leaf.host.ok("systemctl is-active leaf-helper.service")?;
    leaf.ctl("container stop web")?;
    leaf.ctl("container destroy web")?;
    leaf.nothing_left("web")?;

    // A leaf that a person starts, in the place of the one of the units, with the nats-server that those have from the store.
    leaf.host.ok("systemctl stop leafd")?;
    leaf.host.ok(
        "nats=$(nix-store --query --requisites /run/current-system | grep nats-server) && \
         systemd-run --quiet --unit=by-hand -p Environment=PATH=$nats/bin:$PATH -- \
         $(command -v leafd) run --embedded-nats --state-dir /var/tmp/demo --name demo",
    )?;
    leaf.until("the leaf by hand answers", || {
        let shown = leaf
            .host
            .run("leafctl --json --context /var/tmp/demo/context.json leaf show")?;
        Ok(shown.status == 0 && shown.stdout.contains("\"demo\""))
    })?;
    leaf.host.ok("systemctl stop by-hand && systemctl start leafd")?;
    leaf.answers()
}

/// Creates a container of each kind of start: a NixOS that starts with the host, and the least that leafd starts itself.
fn two_kinds(leaf: &Leaf, toplevel: &str) -> Outcome {
    leaf.create(
        "early",
        toplevel,
        "autostart = 'with_host'\nlimits = { tasks = 150 }",
    )?;
    leaf.bring_tools()?;
    leaf.running("late").map(|_| ())
}

/// Checks that both run, as they were.
fn both_run(leaf: &Leaf) -> Outcome {
    leaf.until_well("early")?;
    for name in ["early", "late"] {
        leaf.until_phase(name, "running")?;
        leaf.leader(name)?;
    }
    leaf.host
        .ok("[ $(cat /sys/fs/cgroup/machine.slice/container@early.service/payload/pids.max) = 150 ]")?;
    leaf.agrees()
}

/// What must not change while the host is switched.
fn runs(leaf: &Leaf) -> Result<String> {
    leaf.host.ok(
        "for name in early late; do machinectl show $name --property=Leader --value; \
         systemctl show container@$name -P ActiveEnterTimestampMonotonic -P NRestarts -P MainPID; done",
    )
}

fn switch(leaf: &Leaf, toplevel: &str) -> Outcome {
    // In a unit of its own, since it may stop what runs this command.
    let switch = format!(
        "systemd-run --quiet --wait --pipe --collect -p Environment=PATH=$PATH {toplevel}/bin/switch-to-configuration switch 2>&1"
    );
    leaf.host.ok_within(&switch, SLOW).map(|_| ())
}

/// Returns the phase of the one job that there is.
fn job(leaf: &Leaf) -> Result<Value> {
    let jobs = leaf.ctl("nix jobs")?;
    Ok(jobs["jobs"][0]["phase"].clone())
}

/// One life of a host: it is switched to another leafd, to none and back, rebooted, and loses its power.
fn lives() -> Outcome {
    let systems = Systems::here()?;
    let mut leaf = leaf_on_nixos(&systems)?;
    two_kinds(&leaf, systems.container("hello")?)?;
    switched(&leaf, &systems)?;

    leaf.host.ok("sync")?;
    leaf.host.reboot()?;
    leaf.answers()?;
    both_run(&leaf)?;
    leaf.host.cut_power();
    leaf.host.boot()?;
    leaf.answers()?;
    both_run(&leaf)
}

/// Returns the rules of the containers' closed network.
fn rules(leaf: &Leaf) -> Result<String> {
    leaf.host
        .ok("for family in inet arp; do nft --stateless list table $family leaf_leaf; done")
}

/// Checks that the host's `nftables.service`, which flushes all rules, leaves the containers with theirs and connected.
fn flushes_keep_the_rules(leaf: &Leaf, before: &str) -> Outcome {
    for verb in ["reload", "restart"] {
        leaf.host.ok(&format!(
            "nft add table inet other && systemctl {verb} nftables && ! nft list table inet other 2>/dev/null && \
             nft list table inet nixos-fw >/dev/null && for name in early late; do ip -oneline link show up ve-$name | grep .; done"
        ))?;
        let now = rules(leaf)?;
        ensure!(
            now == before,
            "after the {verb} the rules were {now}, before {before}"
        );
    }
    // A reload that fails ends after it has closed the network; what it reads first is a file of its own.
    let own = "/var/lib/nftables/deletions.nft";
    leaf.host.ok(&format!(
        "cp {own} /run/deletions && echo nonsense >{own} && ! systemctl reload nftables 2>/dev/null"
    ))?;
    leaf.until("the containers are connected after a failed reload", || {
        let connected =
            "for name in early late; do ip -oneline link show up ve-$name | grep . || exit 1; done";
        Ok(leaf.host.run(connected)?.status == 0)
    })?;
    leaf.host
        .ok(&format!("cat /run/deletions >{own} && systemctl reload nftables"))
        .map(|_| ())
}

/// Checks that no switch of the host is noticed by a container, and that a job goes on over that to another leafd.
fn switched(leaf: &Leaf, systems: &Systems) -> Outcome {
    leaf.host.ok("install -d -m 0755 /test")?;
    let before = runs(leaf)?;
    let program = leaf
        .host
        .ok("readlink /proc/$(systemctl show -P MainPID leafd)/exe")?;

    // A build that ends when it is told to; a job sees no /var/tmp but its own.
    leaf.host.put(
        b"derivation { name = \"waits\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; \
          args = [ \"-c\" \"echo begun; until [ -e /test/go ]; do sleep 1; done; echo done >$out\" ]; }",
        "/test/waits.nix",
        "0644",
    )?;
    leaf.ctl("nix build --detach --file /test/waits.nix")?;
    leaf.until("the job builds", || {
        Ok(leaf.host.run("pgrep --full '[e]cho begun; until'")?.status == 0)
    })?;
    let builder = leaf.host.ok("pgrep --full --oldest '[e]cho begun; until'")?;
    let unnoticed = |to: &str| -> Outcome {
        let now = runs(leaf)?;
        ensure!(
            now == before,
            "a container noticed the switch {to}: {before} {now}"
        );
        leaf.host
            .ok(&format!(
                "[ $(pgrep --full --oldest '[e]cho begun; until') = {} ]",
                builder.trim()
            ))
            .with_context(|| format!("the job did not go on over the switch {to}"))
            .map(|_| ())
    };

    let rules = rules(leaf)?;
    switch(leaf, systems.host("next")?)?;
    leaf.answers()?;
    flushes_keep_the_rules(leaf, &rules)?;
    let now = leaf
        .host
        .ok("readlink /proc/$(systemctl show -P MainPID leafd)/exe")?;
    ensure!(now != program, "the other leafd was not started: {now}");
    unnoticed("to another leafd")?;
    ensure!(job(leaf)? == "running", "{}", job(leaf)?);

    switch(leaf, systems.host("without")?)?;
    leaf.host.ok(
        "! systemctl is-active leafd && ! systemctl is-active leaf-helper.socket && ! command -v leafctl",
    )?;
    unnoticed("to a system without cim-leaf")?;

    switch(leaf, systems.host("leaf")?)?;
    leaf.answers()?;
    unnoticed("back")?;
    both_run(leaf)?;
    leaf.host.ok("touch /test/go")?;
    leaf.until("the job has succeeded", || Ok(job(leaf)? == "succeeded"))?;
    let goodbye = systems.container("goodbye")?;
    leaf.ctl(&format!("{PATIENT} container update early --toplevel {goodbye}"))
        .map(|_| ())
}

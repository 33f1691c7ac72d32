//! NixOS in containers: a whole life, on a Debian host and on a NixOS host.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testhost::nixos::Systems;
use testhost::{Host, LIVES};

use super::{MEMORY_MIB, PATIENT, leaf_on_nixos};
use crate::leaf::Leaf;
use crate::leaf::sample::Sample;
use crate::{Outcome, Trials};
use testhost::Programs;

pub(crate) const TRIALS: Trials = &[
    (
        "a_nixos_container_on_a_debian_host_is_switched_in_place_reverted_rebooted_and_leaves_no_trace",
        on_debian,
    ),
    (
        "a_nixos_container_on_a_nixos_host_is_switched_in_place_reverted_rebooted_and_leaves_no_trace",
        on_nixos,
    ),
];

fn on_debian() -> Outcome {
    let systems = Systems::here()?;
    let mut host = Host::options()
        .with(&Programs::here()?)
        .memory_mib(MEMORY_MIB)
        .lives(2 * LIVES)
        .restore()?;
    host.bring_containers(&systems)?;
    host.ok(
        "printf '\\n[containers]\\nready_timeout_seconds = 900\\n' >>/etc/cim-leaf/leafd.toml
         printf 'host_users = true\\n' >>/etc/cim-leaf/helper.toml
         systemctl start leafd",
    )?;
    let leaf = Leaf { host };
    leaf.answers()?;
    let sample = Sample::from_environment()?;
    eprintln!(
        "what takes long in a NixOS container is done in {}",
        sample.of("variant")
    );
    life(&leaf, &systems, sample.takes_one_of(2, 0))?;
    if sample.takes_one_of(2, 1) {
        stock_with_the_hosts_users(&leaf, systems.container("stock")?)?;
    }
    if sample.takes_one_of(2, 0) {
        stock_in_a_user_namespace(&leaf, &systems)?;
        whole_in_a_user_namespace(&leaf, systems.container("whole")?)?;
    }
    Ok(())
}

fn on_nixos() -> Outcome {
    let systems = Systems::here()?;
    let sample = Sample::from_environment()?;
    life(&leaf_on_nixos(&systems)?, &systems, sample.takes_one_of(2, 1))
}

/// One container from its creation to its end, with an update to a broken system or without.
fn life(leaf: &Leaf, systems: &Systems, is_broken_once: bool) -> Outcome {
    let (hello, goodbye) = (systems.container("hello")?, systems.container("goodbye")?);
    leaf.create("web", hello, "limits = { memory_bytes = '512 MiB', tasks = 200 }")?;
    started(leaf)?;
    switched(leaf, goodbye)?;
    if is_broken_once {
        went_back(leaf, systems.container("broken")?, goodbye)?;
    }

    // A reboot inside is one: with another first process, and the same system.
    let before = leaf.leader("web")?;
    leaf.inside("web", "systemctl reboot")?;
    leaf.until("the container has rebooted", || {
        let shown = leaf.host.run("machinectl show web --property=Leader --value")?;
        Ok(shown.status == 0 && shown.stdout.trim() != before)
    })?;
    leaf.until_well("web")?;
    leaf.until_phase("web", "running")?;

    // Its services are stopped in order, with time for their last words.
    leaf.host
        .ok("rm -f /var/lib/nixos-containers/web/var/lib/last-words")?;
    let stopped = leaf.ctl(&format!("{PATIENT} container stop web"))?;
    ensure!(
        stopped["phase"] == "stopped" && stopped.get("error").is_none(),
        "{stopped}"
    );
    leaf.host
        .ok("test -s /var/lib/nixos-containers/web/var/lib/last-words")?;

    leaf.ctl(&format!("{PATIENT} container destroy web"))?;
    leaf.nothing_left("web")?;
    leaf.agrees()
}

/// It is ready when its `multi-user.target` is, in a user namespace, within its limits.
fn started(leaf: &Leaf) -> Outcome {
    let shown = leaf.show("web")?;
    ensure!(shown["phase"] == "running", "{shown}");
    leaf.is_well("web")?;
    let leader = leaf.leader("web")?;
    leaf.host.ok(&format!(
        "[ $(stat -c %u /proc/{leader}) != 0 ] && ! grep -q '^ *0  *0 ' /proc/{leader}/uid_map"
    ))?;
    let payload = "/sys/fs/cgroup/machine.slice/container@web.service/payload";
    leaf.host.ok(&format!(
        "[ $(cat {payload}/memory.max) = 536870912 ] && [ $(cat {payload}/pids.max) = 200 ]"
    ))?;
    // The container's own processes are those that count.
    leaf.host.ok(&format!(
        "[ $(cat {payload}/pids.current) -gt 3 ] && ! ls /proc/{leader}/root/nix/var/nix/daemon-socket/socket"
    ))?;
    let log = leaf
        .host
        .ok("leafctl --context /var/lib/cim-leaf/context.json container logs web")?;
    ensure!(
        log.contains("running activation script") && log.contains("Multi-User System"),
        "its console shows no start of NixOS: {log}"
    );
    Ok(())
}

/// Which run of a service it is (`InvocationID=` of systemd.exec(5)).
fn invocation(leaf: &Leaf, unit: &str) -> Result<String> {
    leaf.inside(
        "web",
        &format!("systemctl show --property=InvocationID --value {unit}"),
    )
}

/// An update restarts the service that changed, and nothing else.
fn switched(leaf: &Leaf, toplevel: &str) -> Outcome {
    let before = (
        leaf.leader("web")?,
        invocation(leaf, "bystander")?,
        invocation(leaf, "speaker")?,
    );
    let updated = leaf.ctl(&format!("{PATIENT} container update web --toplevel {toplevel}"))?;
    ensure!(
        updated["phase"] == "running" && updated["desired"]["toplevel"] == toplevel,
        "{updated}"
    );
    let after = (
        leaf.leader("web")?,
        invocation(leaf, "bystander")?,
        invocation(leaf, "speaker")?,
    );
    ensure!(before.0 == after.0, "the container was restarted");
    ensure!(before.1 == after.1, "a service that is the same was restarted");
    ensure!(
        before.2 != after.2,
        "the service that is another was not restarted"
    );
    let done = &updated["last_update"];
    ensure!(
        done.get("restarted").is_none() && done["restarted_units"] == json!(["speaker.service"]),
        "{updated}"
    );
    let said = leaf.inside(
        "web",
        "journalctl --unit=speaker --output=cat | grep -c goodbye; readlink /run/current-system",
    )?;
    ensure!(said == format!("1\n{toplevel}\n"), "{said}");
    Ok(())
}

/// A system that neither can be switched to nor starts is gone back from.
fn went_back(leaf: &Leaf, broken: &str, to: &str) -> Outcome {
    let problem = leaf.refused(&format!("{PATIENT} container update web --toplevel {broken}"))?;
    ensure!(
        problem["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("was reverted")),
        "{problem}"
    );
    let back = leaf.until_phase("web", "running")?;
    ensure!(
        back["desired"]["toplevel"] == to && back["reverted"].is_string(),
        "{back}"
    );
    leaf.is_well("web")?;
    let system = leaf.inside("web", "readlink /run/current-system")?;
    ensure!(system.trim() == to, "it runs {system}");
    Ok(())
}

/// A NixOS as it comes is well with the host's users, and its immutable directory is removed with it.
fn stock_with_the_hosts_users(leaf: &Leaf, system: &str) -> Outcome {
    leaf.create("plain", system, "users = 'host'")?;
    leaf.is_well("plain")?;
    let empty = leaf
        .host
        .ok("lsattr -d /var/lib/nixos-containers/plain/var/empty")?;
    ensure!(
        empty.split(' ').next().is_some_and(|flags| flags.contains('i')),
        "{empty}"
    );
    leaf.ctl(&format!("{PATIENT} container destroy plain"))?;
    leaf.nothing_left("plain")
}

/// A NixOS as it comes starts with a failed unit in a user namespace. An update switches it in place all the same, unless
/// something else fails at the switch.
fn stock_in_a_user_namespace(leaf: &Leaf, systems: &Systems) -> Outcome {
    leaf.create("mapped", systems.container("stock")?, "")?;
    let state = leaf.inside("mapped", "systemctl is-active multi-user.target; systemctl is-system-running; systemctl --failed --no-legend --plain | cut -d' ' -f1")?;
    ensure!(state == "active\ndegraded\nsystemd-sysctl.service\n", "{state}");
    let before = leaf.leader("mapped")?;
    let update = |system: &str| -> Result<Value> {
        let toplevel = systems.container(system)?;
        let updated = leaf.ctl(&format!(
            "{PATIENT} container update mapped --toplevel {toplevel}"
        ))?;
        ensure!(
            updated["phase"] == "running" && updated["desired"]["toplevel"] == toplevel,
            "{updated}"
        );
        Ok(updated["last_update"].clone())
    };
    let done = update("stock-goodbye")?;
    ensure!(leaf.leader("mapped")? == before, "it was restarted: {done}");
    ensure!(
        done.get("restarted").is_none()
            && done["restarted_units"] == json!(["speaker.service"])
            && done["failed_units"] == json!(["systemd-sysctl.service"]),
        "{done}"
    );
    let done = update("stock-faulty")?;
    ensure!(
        leaf.leader("mapped")? != before,
        "it was switched in place: {done}"
    );
    ensure!(
        done["restarted"] == "the switch in place failed: unit faulty.service failed",
        "{done}"
    );
    leaf.ctl(&format!("{PATIENT} container destroy mapped"))?;
    leaf.nothing_left("mapped")
}

/// With `nixosModules.container`, nothing of a whole NixOS fails in a user namespace.
fn whole_in_a_user_namespace(leaf: &Leaf, system: &str) -> Outcome {
    leaf.create("whole", system, "")?;
    leaf.is_well("whole")?;
    leaf.ctl(&format!("{PATIENT} container destroy whole"))?;
    leaf.nothing_left("whole")
}

//! Another system for a container: by a switch inside, by a restart, and back when it does not become ready.

use anyhow::ensure;

use super::{Leaf, WAITS, quoted};
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[
    (
        "a_system_that_can_switch_is_switched_to_without_a_restart",
        switched,
    ),
    (
        "a_container_is_restarted_into_another_system_and_reverted_from_a_broken_one",
        restarted,
    ),
    (
        "a_container_of_nixos_container_is_adopted_with_its_files",
        adopted,
    ),
];

const LEADER: &str = "machinectl show web --property=Leader --value";

fn switched() -> Outcome {
    let leaf = Leaf::up()?;
    leaf.running("web")?;
    let before = leaf.host.ok(LEADER)?;
    let better = leaf.build(
        "better",
        &format!(
            "--argstr main {} --argstr switch {}",
            quoted(WAITS),
            quoted("echo switched >/switched")
        ),
    )?;
    let updated = leaf.ctl(&format!("container update web --toplevel {better}"))?;
    ensure!(
        updated["phase"] == "running" && updated["desired"]["toplevel"] == better.as_str(),
        "{updated}"
    );
    ensure!(leaf.host.ok(LEADER)? == before, "it was restarted");
    leaf.host
        .ok("grep -q switched /var/lib/nixos-containers/web/switched")?;
    // And it starts with the new one.
    leaf.ctl("container restart web")?;
    leaf.host.ok(&format!(
        "tr '\\0' ' ' </proc/$({LEADER})/cmdline | grep -q {better}"
    ))?;
    Ok(())
}

fn restarted() -> Outcome {
    let leaf = Leaf::up()?;
    let first = leaf.running("web")?;
    let before = leaf.host.ok(LEADER)?;
    let second = leaf.system("second", WAITS)?;
    leaf.ctl(&format!("container update web --toplevel {second}"))?;
    ensure!(leaf.host.ok(LEADER)? != before, "it was not restarted");
    let bad = leaf.system("bad", "exit 3")?;
    let bad = leaf
        .build("bad-unready", "--argstr main 'exit 3' --arg ready false")
        .unwrap_or(bad);
    let problem = leaf.refused(&format!("container update web --toplevel {bad}"))?;
    ensure!(
        problem["detail"]
            .as_str()
            .is_some_and(|d| d.contains("was reverted")),
        "{problem}"
    );
    let back = leaf.until_phase("web", "running")?;
    ensure!(
        back["desired"]["toplevel"] == second.as_str() && back["reverted"].is_string(),
        "{back}"
    );
    ensure!(leaf.events("container.reverted")?.len() == 1, "it goes back once");
    leaf.ctl(&format!("container update web --toplevel {first}"))?;
    leaf.agrees()?;
    Ok(())
}

fn adopted() -> Outcome {
    let leaf = Leaf::up()?;
    let toplevel = leaf.system("theirs", WAITS)?;
    leaf.host.ok(&format!(
        "mkdir -p /etc/nixos-containers /var/lib/nixos-containers/old/etc && \
         printf 'SYSTEM_PATH={toplevel}\\nPRIVATE_NETWORK=0\\nPRIVATE_USERS=no\\n' >/etc/nixos-containers/old.conf && \
         echo theirs >/var/lib/nixos-containers/old/etc/mark"
    ))?;
    let list = leaf.ctl("container list")?;
    ensure!(list["foreign"][0]["name"] == "old", "{list}");
    let problem = leaf.refused(&format!("container create old --toplevel {toplevel}"))?;
    ensure!(
        problem["detail"].as_str().is_some_and(|d| d.contains("old")),
        "{problem}"
    );
    let _ = leaf.run("container destroy old")?;
    leaf.host
        .ok("grep -q theirs /var/lib/nixos-containers/old/etc/mark")?;
    leaf.ctl("container adopt old")?;
    leaf.ctl("container start old")?;
    leaf.host
        .ok("grep -q theirs /var/lib/nixos-containers/old/etc/mark && systemctl is-active container@old")?;
    let list = leaf.ctl("container list")?;
    ensure!(list.get("foreign").is_none(), "{list}");
    Ok(())
}

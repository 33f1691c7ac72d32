//! Specs: what they say holds, what is wrong in them is refused with the place.

use anyhow::{Context as _, ensure};

use super::{Leaf, WAITS};
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[
    (
        "a_spec_gives_a_container_its_environment_secret_directory_and_limits",
        given,
    ),
    ("limits_change_while_a_container_runs", live),
    ("an_invalid_spec_is_refused_with_the_place", refused),
    ("a_spec_is_compared_applied_and_rolled_back", history),
];

fn given() -> Outcome {
    let leaf = Leaf::up()?;
    let main = format!(
        "[ $MODE = edge ] && [ $(cat $CREDENTIALS_DIRECTORY/word) = hush ] && echo written >/data/file && {WAITS}"
    );
    let toplevel = leaf.system("given", &main)?;
    leaf.host
        .ok("mkdir -p /srv/web /run/secrets && chown 1234:1234 /srv/web && printf hush >/run/secrets/word")?;
    let spec = leaf.spec(
        "web.toml",
        &format!(
            "name = 'web'\nrun = 'running'\nsource = {{ type = 'toplevel', path = '{toplevel}' }}\n\
             environment = {{ MODE = 'edge' }}\nsecrets = {{ word = '/run/secrets/word' }}\n\
             binds = [{{ source = '/srv/web', target = '/data', writable = true }}]\n\
             limits = {{ memory_bytes = '64 MiB', cpu_percent = 50, tasks = 32 }}\n"
        ),
    )?;
    leaf.ctl(&format!("container create -f {spec}"))?;
    leaf.until("the directory is written to", || {
        Ok(leaf.host.run("cat /srv/web/file")?.stdout == "written\n")
    })?;
    leaf.host.ok("[ $(stat -c %u /srv/web/file) = 1234 ]")?;
    let payload = "/sys/fs/cgroup/machine.slice/container@web.service/payload";
    leaf.host.ok(&format!(
        "[ $(cat {payload}/memory.max) = 67108864 ] && [ $(cat {payload}/pids.max) = 32 ]"
    ))?;
    leaf.host
        .ok(&format!("[ \"$(cat {payload}/cpu.max)\" = '50000 100000' ]"))?;
    let stats = leaf.ctl("container stats web")?;
    ensure!(
        stats["memory_limit_bytes"] == 67_108_864 && stats["tasks"].as_u64() > Some(0),
        "{stats}"
    );
    // The secret is in no file of the leaf's, and in no event.
    leaf.host
        .ok("! grep -rqF hush /etc/nixos-containers /etc/cim-leaf")?;
    ensure!(
        !format!("{:?}", leaf.events("*")?).contains("hush"),
        "a secret is in an event"
    );
    Ok(())
}

fn live() -> Outcome {
    let leaf = Leaf::up()?;
    leaf.running("web")?;
    let before = leaf
        .host
        .ok("machinectl show web -P Leader 2>/dev/null || machinectl show web --property=Leader --value")?;
    leaf.ctl("container set web limits.memory_bytes=48MiB limits.tasks=20")?;
    let payload = "/sys/fs/cgroup/machine.slice/container@web.service/payload";
    leaf.host.ok(&format!(
        "[ $(cat {payload}/memory.max) = 50331648 ] && [ $(cat {payload}/pids.max) = 20 ]"
    ))?;
    leaf.ctl("container set web limits.tasks=")?;
    leaf.host.ok(&format!("[ $(cat {payload}/pids.max) = max ]"))?;
    let after = leaf
        .host
        .ok("machinectl show web -P Leader 2>/dev/null || machinectl show web --property=Leader --value")?;
    ensure!(
        before == after,
        "it was restarted for its limits: {before} {after}"
    );
    Ok(())
}

fn refused() -> Outcome {
    let leaf = Leaf::up()?;
    let toplevel = leaf.system("waits", WAITS)?;
    let source = format!("source = {{ type = 'toplevel', path = '{toplevel}' }}");
    for (file, more, says) in [
        ("a.toml", "limits = { memory_bytes = 0 }", "limits.memory_bytes"),
        (
            "b.toml",
            "limits = { memory_bytes = '10 EiB' }",
            "limits.memory_bytes",
        ),
        ("c.toml", "limits = { tasks = -1 }", "-1"),
        ("d.toml", "colour = 'red'", "unknown field `colour`"),
        ("e.toml", "binds = [{ source = '/etc' }]", "/etc"),
        ("f.toml", "secrets = { a = '/etc/shadow' }", "/etc/shadow"),
    ] {
        let spec = leaf.spec(
            file,
            &format!("name = 'web'\nrun = 'running'\n{source}\n{more}\n"),
        )?;
        let problem = leaf.refused(&format!("container create -f {spec}"))?;
        ensure!(
            problem["detail"].as_str().is_some_and(|d| d.contains(says)),
            "{more}: {problem}"
        );
        let _ = leaf.run("container destroy web")?;
        leaf.nothing_left("web")?;
    }
    let missing = leaf.refused(
        "container create web --toplevel /nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-gone --start",
    )?;
    ensure!(
        missing["detail"]
            .as_str()
            .is_some_and(|d| d.contains("does not exist")),
        "{missing}"
    );
    Ok(())
}

fn history() -> Outcome {
    let leaf = Leaf::up()?;
    let toplevel = leaf.running("web")?;
    let spec = leaf.spec(
        "web.toml",
        &format!(
            "name = 'web'\nrun = 'running'\nsource = {{ type = 'toplevel', path = '{toplevel}' }}\n\
             labels = {{ team = 'edge' }}\nenvironment = {{ MODE = 'edge' }}\n"
        ),
    )?;
    let diff = leaf.ctl(&format!("container diff -f {spec}"))?;
    ensure!(
        diff["changes"]
            .as_array()
            .is_some_and(|changes| changes.len() == 2),
        "{diff}"
    );
    leaf.ctl(&format!("container apply -f {spec}"))?;
    let leader = leaf.show("web")?;
    ensure!(
        leader["desired"]["options"]["environment"]["MODE"] == "edge",
        "{leader}"
    );
    let again = leaf.ctl(&format!("container apply -f {spec}"))?;
    ensure!(
        again["desired"]["generation"] == leader["desired"]["generation"],
        "{again}"
    );
    let diff = leaf.ctl(&format!("container diff -f {spec}"))?;
    ensure!(diff["changes"].as_array().is_some_and(Vec::is_empty), "{diff}");
    let history = leaf.ctl("container history web")?;
    ensure!(
        history["revisions"].as_array().context("revisions")?.len() == 2,
        "{history}"
    );
    let back = leaf.ctl("container rollback web")?;
    ensure!(
        back["desired"].get("options").is_none() && back["phase"] == "running",
        "{back}"
    );
    leaf.agrees()?;
    Ok(())
}

//! One container, from its create to its destroy, with what happens to it in between.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use leaf_bus::client::{CallOptions, Client};
use leaf_core::command::{Request, RescanReport, ShowContainer};
use leaf_core::container::{ContainerPhase as Phase, DesiredRun};
use leaf_core::id::{ContainerName, LeafName, StorePath};
use leaf_core::job::JobResult;
use leaf_core::problem::ProblemCode;
use leaf_host::contract::HostPaths;
use libtest_mimic::Trial;

use super::systems::{NEVER_READY, WAITS, system};
use super::{destroy, is_problem, leaf, minimal, name, nothing_left, start, toplevel, traces};
use crate::support::{Host, Need, TestLeaf, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let needs = &[Need::Containers];
    vec![
        host.trial(
            "a container of the minimal template is built, started, healthy, stopped and destroyed, and nothing is left",
            needs,
            whole_life,
        ),
        host.trial("a container that ends by itself is reported as stopped", needs, ends_by_itself),
        host.trial("a container that reboots is started again", needs, reboots),
        host.trial(
            "a container that is not ready yet is destroyed at once, without waiting for its start",
            needs,
            destroyed_while_starting,
        ),
        host.trial(
            "a container gets addresses that neither a foreign container nor the host uses",
            needs,
            addresses_in_use,
        ),
        host.trial(
            "odd files beside the containers' are listed with their problems, and containers are observed all the same",
            needs,
            odd_files,
        ),
        host.trial(
            "the name of a foreign container is refused, and that container is left alone",
            needs,
            foreign,
        ),
        host.trial(
            "a foreign container that appears after the decision fails the leaf's own, whose destroy leaves it alone",
            needs,
            foreign_after_the_decision,
        ),
        host.trial("a container's start does not change the hardware", needs, no_device),
        host.trial(
            "a container whose files were removed is reported once and created again",
            needs,
            removed_by_somebody,
        ),
    ]
}

async fn whole_life() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let made = leaf.create(&name, minimal(), false).await?;
    ensure!(made.phase == Phase::Building, "{made:?}");
    let job = made.desired.build_job.context("a job builds it")?;
    let made = leaf.in_phase(&name, Phase::Stopped).await?;
    ensure!(
        made.desired.toplevel.is_some() && made.error.is_none(),
        "{made:?}"
    );
    let job = leaf.job_ended(job).await?;
    let result = job.result.as_ref().and_then(JobResult::build);
    ensure!(
        result.map(|r| &r.store_path) == made.desired.toplevel.as_ref(),
        "{job:?}"
    );

    let runs = leaf.start_container(&name).await?;
    ensure!(
        runs.phase == Phase::Running && runs.ready_at.is_some(),
        "{runs:?}"
    );
    ensure!(leaf.show().await?.containers_running == 1);
    let (client, own) = (leaf.client().await?, leaf.name.clone());
    let health = client
        .request_container_health(&own, &name, Duration::from_secs(5))
        .await?;
    ensure!(
        health["container"] == name.as_str() && health["leaf"] == own.as_str() && health["status"] == "ok",
        "{health}"
    );
    // The console comes by another way than the word that it is ready.
    until("the console says that it is connected", async || {
        let console = leaf.console(&name).await?;
        Ok(console.contains("connected to nats://").then_some(()))
    })
    .await?;
    let again = leaf.start_container(&name).await?;
    ensure!(again == runs, "a second start changes nothing: {again:?}");

    let stopped = leaf.stop_container(&name).await?;
    ensure!(
        stopped.phase == Phase::Stopped && stopped.ready_at.is_none(),
        "{stopped:?}"
    );
    ensure!(stopped.error.is_none(), "{stopped:?}");
    leaf.destroy_without_a_trace(&name).await?;
    is_problem(leaf.container(&name).await, ProblemCode::NotFound, name.as_str())?;
    leaf.told_a_whole_life(&name, &["desired", "built"]).await?;

    // With start, and destroyed while it runs.
    let made = leaf.create(&name, minimal(), true).await?;
    ensure!(
        made.desired.run == DesiredRun::Running && made.desired.generation == 1,
        "{made:?}"
    );
    leaf.in_phase(&name, Phase::Running).await?;
    leaf.destroy_without_a_trace(&name).await
}

async fn ends_by_itself() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let script = "exec /run/leaf/init ready -- $b sh -c 'while ! $b test -e /root/end; do $b sleep 0.05; done; exit 5'";
    leaf.create(&name, toplevel(&system(script).await?), true).await?;
    let root = HostPaths::new(&leaf.name).roots.join(name.as_str());
    std::fs::write(root.join("root/end"), "")?;
    let ended = leaf.in_phase(&name, Phase::Stopped).await?;
    ensure!(
        ended
            .error
            .as_deref()
            .is_some_and(|e| e.contains("by itself: exit code 5")),
        "{ended:?}"
    );
    let data = leaf.told_last(&name, "cim.leaf.container.stopped.v1").await?;
    ensure!(
        data["cause"] == "exited" && data["exit"] == serde_json::json!({"by": "code", "code": 5}),
        "{data}"
    );
    // It stays where it is until somebody wants something.
    std::fs::remove_file(root.join("root/end"))?;
    let runs = leaf.start_container(&name).await?;
    ensure!(runs.phase == Phase::Running && runs.error.is_none(), "{runs:?}");
    leaf.destroy(&name).await
}

async fn reboots() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let asks = "/run/leaf/init ready -- $b sh -c 'while ! $b test -e /root/end; do $b sleep 0.05; done; $b reboot -f'";
    let script = format!("if $b test -e /root/end; then {WAITS}; fi; exec {asks}");
    leaf.create(&name, toplevel(&system(&script).await?), true)
        .await?;
    let root = HostPaths::new(&leaf.name).roots.join(name.as_str());
    std::fs::write(root.join("root/end"), "")?;
    until("it was started again", async || {
        let told = leaf.told(&name.token()).await?;
        let starts = told
            .iter()
            .filter(|(kind, _)| kind == "cim.leaf.container.started.v1");
        Ok((starts.count() == 2).then_some(()))
    })
    .await?;
    let runs = leaf.container(&name).await?;
    ensure!(runs.phase == Phase::Running && runs.error.is_none(), "{runs:?}");
    let stopped = leaf.stop_container(&name).await?;
    ensure!(
        stopped.phase == Phase::Stopped && stopped.error.is_none(),
        "{stopped:?}"
    );
    leaf.destroy_without_a_trace(&name).await
}

async fn destroyed_while_starting() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    leaf.create(&name, toplevel(&system(NEVER_READY).await?), false)
        .await?;
    for again in 0..4 {
        // Once right after, and later.
        let is_starting = async |leaf: &Client, own: &LeafName| {
            let show = ShowContainer { name: name.clone() };
            let phase = leaf.call(own, &show, Default::default()).await?.phase;
            let up = again % 2 == 0 || traces::status(own, &name).is_some_and(|s| s.leader_pid.is_some());
            Ok(phase == Phase::Starting && up)
        };
        let stopped = cut_short(&mut leaf, &name, is_starting, &super::stop(&name)).await?;
        ensure!(stopped.phase == Phase::Stopped, "{stopped:?}");
    }
    let is_starting = async |_: &Client, own: &LeafName| Ok(traces::status(own, &name).is_some());
    cut_short(&mut leaf, &name, is_starting, &destroy(&name)).await?;
    nothing_left(&leaf, &name)
}

/// Starts a container that does not become ready and, once it `is_starting`, ends that start with another command, which
/// does not wait for it.
async fn cut_short<R: Request>(
    leaf: &mut TestLeaf,
    name: &ContainerName,
    is_starting: impl AsyncFn(&Client, &LeafName) -> anyhow::Result<bool>,
    end: &R,
) -> anyhow::Result<R::Reply> {
    let (client, own) = (leaf.client().await?, leaf.name.clone());
    let patience = CallOptions {
        timeout: Duration::from_secs(60),
        ..Default::default()
    };
    let start = start(name);
    let starting = client.call(&own, &start, patience.clone());
    let ending = async {
        until("it starts", async || {
            Ok(is_starting(&client, &own).await?.then_some(()))
        })
        .await?;
        let began = Instant::now();
        let answer = client.call(&own, end, patience.clone()).await?;
        anyhow::Ok((answer, began.elapsed()))
    };
    let (started, ended) = tokio::join!(starting, ending);
    is_problem(started, ProblemCode::Conflict, "in the meantime")?;
    let (answer, took) = ended?;
    ensure!(
        took < Duration::from_secs(15),
        "it took {took:?}; the log:\n{}",
        leaf.log()
    );
    Ok(answer)
}

async fn addresses_in_use() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let waits = system(WAITS).await?;
    let (first, second, foreign) = (name(), name(), name());
    let made = leaf.create(&first, toplevel(&waits), true).await?;
    let [a, b, number, _] = made.desired.network.container_address.octets();
    // The next is a stopped foreign container's, and the one after that an interface's of the host.
    let conf = HostPaths::new(&leaf.name).conf(&foreign);
    std::fs::write(&conf, format!("LOCAL_ADDRESS={a}.{b}.{}.2\n", number + 1))?;
    let address = format!("{a}.{b}.{}.1/32", number + 2);
    let ip = |verb: &str| {
        let status = std::process::Command::new("ip")
            .args(["addr", verb, &address, "dev", "lo"])
            .status();
        status.is_ok_and(|status| status.success())
    };
    let added = ip("add");
    let made = leaf.create(&second, toplevel(&waits), true).await;
    ip("del");
    std::fs::remove_file(&conf)?;
    ensure!(added, "can't add {address} to lo");
    let given = made?.desired.network.container_address.octets();
    ensure!(given == [a, b, number + 3, 2], "{given:?}");
    leaf.in_phase(&second, Phase::Running).await?;
    for name in [&first, &second] {
        leaf.destroy_without_a_trace(name).await?;
    }
    Ok(())
}

async fn odd_files() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let paths = HostPaths::new(&leaf.name);
    let (odd, torn, well) = (name(), name(), name());
    let waits = system(WAITS).await?;
    leaf.create(&torn, toplevel(&waits), true).await?;
    let fifo = paths.conf(&odd);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )?;
    let status = paths.status(&torn);
    let before = std::fs::read(&status)?;
    std::fs::write(&status, "{")?;
    let outcome = beside_odd_files(&mut leaf, &well, &[&fifo, &status]).await;
    std::fs::remove_file(&fifo)?;
    std::fs::write(&status, before)?;
    outcome?;
    for name in [&torn, &well] {
        leaf.destroy_without_a_trace(name).await?;
    }
    Ok(())
}

async fn beside_odd_files(
    leaf: &mut TestLeaf,
    well: &ContainerName,
    odd: &[&std::path::Path],
) -> anyhow::Result<()> {
    leaf.create(well, toplevel(&system(WAITS).await?), true).await?;
    leaf.in_phase(well, Phase::Running).await?;
    let list = leaf.call(&leaf_core::command::ListContainers {}).await?;
    for path in odd {
        let entry = path.display().to_string();
        ensure!(
            list.problems.iter().any(|found| found.entry == entry),
            "{entry}: {list:?}"
        );
    }
    // Its end is observed, not only its start.
    leaf.stop_container(well).await?;
    leaf.in_phase(well, Phase::Stopped).await?;
    Ok(())
}

async fn foreign() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let conf = HostPaths::new(&leaf.name).conf(&name);
    std::fs::create_dir_all(conf.parent().context("a directory")?)?;
    std::fs::write(&conf, "PRIVATE_NETWORK=1\n")?;
    let outcome = foreign_conf(&mut leaf, &name).await;
    let text = std::fs::read_to_string(&conf)?;
    std::fs::remove_file(&conf)?;
    outcome?;
    ensure!(text == "PRIVATE_NETWORK=1\n", "{text}");
    Ok(())
}

async fn foreign_conf(leaf: &mut TestLeaf, name: &ContainerName) -> anyhow::Result<()> {
    let waits = system(WAITS).await?;
    let answer = leaf.create(name, toplevel(&waits), true).await;
    is_problem(
        answer,
        ProblemCode::AlreadyExists,
        &format!("foreign container {name}, which this leaf did not create"),
    )?;
    is_problem(leaf.container(name).await, ProblemCode::NotFound, name.as_str())?;
    let list = leaf.call(&leaf_core::command::ListContainers {}).await?;
    ensure!(list.containers.iter().all(|one| one.name != *name), "{list:?}");
    ensure!(list.foreign.iter().any(|one| one.name == *name), "{list:?}");
    Ok(())
}

async fn foreign_after_the_decision() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let conf = HostPaths::new(&leaf.name).conf(&name);
    // It is in the state, and nothing of it is on the host.
    let absent = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-absent")?;
    let answer = leaf.create(&name, toplevel(&absent), false).await;
    is_problem(answer, ProblemCode::Failed, "does not exist")?;
    std::fs::write(&conf, "PRIVATE_NETWORK=1\n")?;
    let outcome = foreign_meanwhile(&mut leaf, &name).await;
    let text = std::fs::read_to_string(&conf)?;
    std::fs::remove_file(&conf)?;
    outcome?;
    ensure!(text == "PRIVATE_NETWORK=1\n", "{text}");
    nothing_left(&leaf, &name)
}

async fn foreign_meanwhile(leaf: &mut TestLeaf, name: &ContainerName) -> anyhow::Result<()> {
    let update = leaf_core::command::UpdateContainer {
        name: name.clone(),
        source: Some(toplevel(&system(WAITS).await?)),
        if_generation: None,
    };
    leaf.call(&update).await?;
    until("the update has failed on the foreign container", async || {
        let error = leaf.container(name).await?.error.unwrap_or_default();
        Ok(error.contains("was not made by leaf").then_some(()))
    })
    .await?;
    is_problem(
        leaf.start_container(name).await,
        ProblemCode::Failed,
        "was not made by leaf",
    )?;
    let failed = leaf.container(name).await?;
    ensure!(failed.phase == Phase::Failed, "{failed:?}");
    leaf.destroy(name).await?;
    is_problem(leaf.container(name).await, ProblemCode::NotFound, name.as_str())
}

/// Fails unless a scan found no change.
fn unchanged(scan: &RescanReport) -> anyhow::Result<()> {
    ensure!(
        scan.appeared.is_empty() && scan.changed.is_empty() && scan.vanished.is_empty(),
        "{scan:?}"
    );
    Ok(())
}

async fn no_device() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let rescan = leaf_core::command::RescanHardware {};
    leaf.call(&rescan).await?;
    let devices = async |leaf: &mut TestLeaf| -> anyhow::Result<usize> {
        leaf.published().await?;
        let events = leaf.events().await?;
        Ok(events
            .iter()
            .filter(|event| event.subject.contains(".device."))
            .count())
    };
    let before = devices(&mut leaf).await?;
    ensure!(before > 0, "there is hardware");
    let waits = system(WAITS).await?;
    let names: Vec<ContainerName> = (0..3).map(|_| name()).collect();
    for name in &names {
        leaf.create(name, toplevel(&waits), true).await?;
    }
    unchanged(&leaf.call(&rescan).await?)?;
    for name in &names {
        leaf.destroy(name).await?;
    }
    unchanged(&leaf.call(&rescan).await?)?;
    let after = devices(&mut leaf).await?;
    ensure!(before == after, "{before} events of devices, then {after}");
    Ok(())
}

async fn removed_by_somebody() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    leaf.create(&name, toplevel(&system(WAITS).await?), true).await?;
    let before = leaf.kinds_told(&name.token()).await?.len();
    std::fs::remove_file(HostPaths::new(&leaf.name).conf(&name))?;
    // The directory of the confs is not watched; the next look finds it.
    leaf.stop().await?;
    leaf.back().await?;
    until("it is made again", async || {
        Ok(HostPaths::new(&leaf.name).conf(&name).exists().then_some(()))
    })
    .await?;
    leaf.in_phase(&name, Phase::Running).await?;
    let told = leaf.kinds_told(&name.token()).await?;
    ensure!(
        told[before..] == ["container.stopped", "container.started"],
        "{told:?}"
    );
    leaf.destroy_without_a_trace(&name).await
}

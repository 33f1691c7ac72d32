//! Containers and jobs while leafd is killed, stopped and started again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use leaf_bus::client::CallOptions;
use leaf_core::command::{CancelJob, CreateContainer, DestroyContainer, ShowContainer};
use leaf_core::container::ContainerPhase as Phase;
use leaf_core::id::{CommandId, ContainerName, JobId};
use leaf_core::job::JobPhase;
use leaf_core::problem::ProblemCode;
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use uuid::Uuid;

use super::jobs::HANGS;
use super::systems::{WAITS, mark, script, system};
use super::{is_problem, leaf, minimal, name, nothing_left, toplevel, traces};
use crate::support::{Host, Need, Setup, TestLeaf, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let containers = &[Need::Containers];
    let jobs = &[Need::Root, Need::Nix];
    vec![
        host.trial(
            "containers survive a SIGKILL of leafd, and the same processes are found again",
            containers,
            survive,
        ),
        host.trial(
            "a container that ended while leafd was down is reported with its exit",
            containers,
            ended_meanwhile,
        ),
        host.trial(
            "a command accepted before leafd was killed is carried out at the next start, and repeating it gets its reply",
            containers,
            accepted_is_done,
        ),
        host.trial(
            "destroying containers leaves nothing even if leafd was killed while it created them",
            containers,
            killed_while_creating,
        ),
        host.trial(
            "leafd stops quickly while a container starts and a job runs, and finds both again",
            containers,
            stopped_meanwhile,
        ),
        host.trial("jobs survive a SIGKILL of leafd and end with their outcome", jobs, jobs_survive),
        host.trial("a job whose runner is killed is interrupted and leaves no process", jobs, runner_killed),
        host.trial("the queue of jobs survives a restart", jobs, queue_survives),
        host.trial(
            "a cancel accepted before leafd was killed is carried out at the next start",
            jobs,
            cancel_survives,
        ),
    ]
}

async fn survive() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let (one, two) = (name(), name());
    leaf.create(&one, minimal(), true).await?;
    leaf.create(&two, toplevel(&system(WAITS).await?), true).await?;
    leaf.in_phase(&one, Phase::Running).await?;
    let leader = |leaf: &TestLeaf, name| traces::status(&leaf.name, name).and_then(|s| s.leader_pid);
    let before = (leader(&leaf, &one), leader(&leaf, &two));
    ensure!(before.0.is_some() && before.1.is_some(), "{before:?}");
    let told = (
        leaf.kinds_told(&one.token()).await?,
        leaf.kinds_told(&two.token()).await?,
    );
    for _ in 0..3 {
        leaf.kill().await?;
        leaf.back().await?;
        for name in [&one, &two] {
            let shown = leaf.container(name).await?;
            ensure!(shown.phase == Phase::Running, "{shown:?}");
        }
    }
    ensure!(before == (leader(&leaf, &one), leader(&leaf, &two)));
    let after = (
        leaf.kinds_told(&one.token()).await?,
        leaf.kinds_told(&two.token()).await?,
    );
    ensure!(told == after, "nothing happened to them: {after:?}");
    // The one with a NATS connection comes back to the new server by itself.
    let (client, own) = (leaf.client().await?, leaf.name.clone());
    until("it answers for its health", async || {
        let health = client
            .request_container_health(&own, &one, Duration::from_secs(2))
            .await?;
        Ok((health["status"] == "ok").then_some(()))
    })
    .await?;
    for name in [&one, &two] {
        let stopped = leaf.stop_container(name).await?;
        ensure!(stopped.phase == Phase::Stopped, "{stopped:?}");
        leaf.destroy(name).await?;
    }
    Ok(())
}

async fn ended_meanwhile() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let (code, signal, killed) = (name(), name(), name());
    let ends = "exec /run/leaf/init ready -- $b sh -c 'while ! $b test -e /root/end; do $b sleep 0.05; done; exit 5'";
    let waits = system(WAITS).await?;
    leaf.create(&code, toplevel(&system(ends).await?), true).await?;
    leaf.create(&signal, toplevel(&waits), true).await?;
    leaf.create(&killed, toplevel(&waits), true).await?;
    leaf.kill().await?;
    let status = |name| traces::status(&leaf.name, name).context("a status");
    let root = leaf_host::contract::HostPaths::new(&leaf.name)
        .roots
        .join(code.as_str());
    std::fs::write(root.join("root/end"), "")?;
    kill(status(&signal)?.leader_pid.context("a leader")?)?;
    kill(status(&killed)?.supervisor_pid)?;
    until("both have ended", async || {
        let ended = status(&code)?.exit.is_some() && status(&signal)?.exit.is_some();
        Ok(ended.then_some(()))
    })
    .await?;
    leaf.back().await?;
    for (name, how) in [
        (&code, "exit code 5"),
        (&signal, "by itself"),
        (&killed, "an unknown status, since its supervisor was killed"),
    ] {
        let shown = leaf.in_phase(name, Phase::Stopped).await?;
        ensure!(
            shown.error.as_deref().is_some_and(|e| e.contains(how)),
            "{shown:?}"
        );
        let told = leaf.told(&name.token()).await?;
        let (kind, data) = told.last().context("an event")?;
        ensure!(
            kind == "cim.leaf.container.stopped.v1" && data["cause"] == "exited",
            "{kind} {data}"
        );
        let runs = leaf.start_container(name).await;
        // One ends again at once: its file is still there.
        ensure!(
            name == &code || runs.is_ok_and(|c| c.phase == Phase::Running),
            "{name}"
        );
    }
    for name in [&code, &signal, &killed] {
        leaf.destroy(name).await?;
        nothing_left(&leaf, name)?;
    }
    Ok(())
}

fn kill(pid: u32) -> anyhow::Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("a process")?;
    Ok(kill_process(pid, Signal::KILL)?)
}

fn id() -> CommandId {
    CommandId::from(Uuid::now_v7())
}

fn soon() -> CallOptions {
    CallOptions {
        timeout: Duration::from_secs(1),
        ..CallOptions::default()
    }
}

async fn accepted_is_done() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let waits = toplevel(&system(WAITS).await?);
    let (client, own) = (leaf.client().await?, leaf.name.clone());
    // Killed after the acceptance, at another time each round.
    for delay in [0, 2, 5, 10, 20, 40, 80, 150] {
        let name = name();
        let create = CreateContainer {
            name: name.clone(),
            source: waits.clone(),
            start: true,
            options: Default::default(),
        };
        let sent = id();
        let options = CallOptions {
            id: Some(sent.clone()),
            ..soon()
        };
        {
            let asked = client.call(&own, &create, options);
            tokio::pin!(asked);
            let show = ShowContainer { name: name.clone() };
            let accepted = until("it is accepted", async || {
                Ok(client.call(&own, &show, soon()).await.ok())
            });
            tokio::select! {
                _ = &mut asked => {}
                shown = accepted => drop(shown?),
            }
        }
        tokio::time::sleep(Duration::from_millis(delay)).await;
        leaf.kill().await?;
        leaf.back().await?;
        let answer = leaf.call_as(&sent, &create).await.with_context(|| leaf.log())?;
        ensure!(
            answer.name == name && answer.desired.generation == 1,
            "{answer:?}"
        );
        leaf.in_phase(&name, Phase::Running).await?;
        let again = leaf.call_as(&sent, &create).await?;
        ensure!(again == answer, "the first reply again: {again:?}");

        let destroy = super::destroy(&name);
        let sent = id();
        let options = CallOptions {
            id: Some(sent.clone()),
            timeout: Duration::from_millis(delay.max(1)),
            ..CallOptions::default()
        };
        let _ = client.call(&own, &destroy, options).await;
        leaf.kill().await?;
        leaf.back().await?;
        let gone = leaf.call_as(&sent, &destroy).await?;
        ensure!(gone.name == name);
        is_problem(leaf.container(&name).await, ProblemCode::NotFound, "")?;
        nothing_left(&leaf, &name)?;
    }
    Ok(())
}

async fn killed_while_creating() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let waits = toplevel(&system(WAITS).await?);
    let mut names: Vec<ContainerName> = Vec::new();
    for delay in [3, 6, 9, 15, 30] {
        let (client, own) = (leaf.client().await?, leaf.name.clone());
        let fresh: Vec<ContainerName> = (0..3).map(|_| name()).collect();
        names.extend(fresh.clone());
        let creates: Vec<CreateContainer> = fresh
            .iter()
            .map(|name| CreateContainer {
                name: name.clone(),
                source: waits.clone(),
                start: true,
                options: Default::default(),
            })
            .collect();
        let calls = creates.iter().map(|create| client.call(&own, create, soon()));
        let _ = tokio::time::timeout(Duration::from_millis(delay), futures::future::join_all(calls)).await;
        leaf.kill().await?;
        leaf.back().await?;
    }
    for name in &names {
        match leaf.destroy(name).await {
            Ok(()) => {}
            // Killed before it was accepted.
            Err(error)
                if error
                    .to_string()
                    .contains(&format!("container {name} does not exist")) => {}
            Err(error) => return Err(error),
        }
    }
    for name in &names {
        nothing_left(&leaf, name)?;
    }
    let rules = traces::rules(&leaf.name);
    ensure!(rules.contains("chain") && !rules.contains("\"ve-"), "{rules}");
    Ok(())
}

async fn stopped_meanwhile() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    // Ready once the test says so.
    let patient = format!("while ! $b test -e /root/works; do $b sleep 0.05; done\n{WAITS}");
    leaf.create(&name, toplevel(&system(&patient).await?), false)
        .await?;
    let job = leaf.build(script(&leaf, "hangs", HANGS)?).await?;
    leaf.job_says(job, "hangs").await?;
    let (client, own) = (leaf.client().await?, leaf.name.clone());
    let sent = id();
    let start = super::start(&name);
    let options = CallOptions {
        id: Some(sent.clone()),
        ..soon()
    };
    let _ = client.call(&own, &start, options).await;
    let leader = until("it starts", async || {
        Ok(traces::status(&own, &name).and_then(|s| s.leader_pid))
    })
    .await?;
    let runner = traces::runner(&leaf, job).context("a runner")?;
    let began = Instant::now();
    let status = leaf.stop().await?;
    let took = began.elapsed();
    ensure!(status.success(), "{status}; the log:\n{}", leaf.log());
    ensure!(
        took < Duration::from_secs(10),
        "it took {took:?}; the log:\n{}",
        leaf.log()
    );
    ensure!(traces::runner(&leaf, job) == Some(runner), "the job goes on");

    leaf.back().await?;
    let shown = leaf.container(&name).await?;
    ensure!(shown.phase == Phase::Starting, "{shown:?}");
    ensure!(leaf.job(job).await?.job.phase == JobPhase::Running);
    let root = leaf_host::contract::HostPaths::new(&own)
        .roots
        .join(name.as_str());
    std::fs::write(root.join("root/works"), "")?;
    let runs = leaf.call_as(&sent, &start).await?;
    ensure!(runs.phase == Phase::Running, "{runs:?}");
    ensure!(traces::status(&own, &name).and_then(|s| s.leader_pid) == Some(leader));
    ensure!(traces::runner(&leaf, job) == Some(runner));
    let ended = leaf.call(&CancelJob { id: job }).await?;
    ensure!(ended.phase == JobPhase::Cancelled, "{ended:?}");
    leaf.destroy(&name).await
}

async fn jobs_survive() -> anyhow::Result<()> {
    let mut leaf = Setup::new().set("nix.max_jobs", 4).start().await?;
    // Long enough to outlive leafd, by counting: nothing from outside reaches the sandbox.
    let long = |then: &str| format!("echo begun; i=0; while test $i -lt 400000; do i=$((i+1)); done; {then}");
    let works = leaf
        .build(script(&leaf, "works", &long("echo made > $out"))?)
        .await?;
    let fails = leaf
        .build(script(&leaf, "fails", &long("echo no; exit 4"))?)
        .await?;
    let hangs = leaf.build(script(&leaf, "hangs", HANGS)?).await?;
    for (id, says) in [(works, "begun"), (fails, "begun"), (hangs, "hangs")] {
        leaf.job_says(id, says).await?;
    }
    leaf.kill().await?;
    leaf.back().await?;
    ensure!(leaf.job(hangs).await?.job.phase == JobPhase::Running);
    leaf.kill().await?;
    until("two end while nobody looks", async || {
        let gone = traces::runner(&leaf, works).is_none() && traces::runner(&leaf, fails).is_none();
        Ok(gone.then_some(()))
    })
    .await?;
    leaf.back().await?;
    let job = leaf.job_ended(works).await?;
    ensure!(job.phase == JobPhase::Succeeded, "{job:?}");
    let result = job
        .result
        .as_ref()
        .and_then(leaf_core::job::JobResult::build)
        .context("a result")?;
    ensure!(std::fs::read_link(traces::gc_root(&leaf, works))?.as_os_str() == result.store_path.as_str());
    let job = leaf.job_ended(fails).await?;
    ensure!(job.phase == JobPhase::Failed, "{job:?}");
    ensure!(
        job.error.as_deref().is_some_and(|e| e.contains("exit code 4")),
        "{job:?}"
    );
    ensure!(leaf.job_log(fails).await?.contains("no"));
    let job = leaf.call(&CancelJob { id: hangs }).await?;
    ensure!(job.phase == JobPhase::Cancelled, "{job:?}");
    let left = traces::processes_with(&format!(": {};", mark(&leaf)));
    ensure!(left.is_empty(), "{left:#?}");
    for id in [works, fails, hangs] {
        let kinds = leaf.kinds_told(&id.to_string()).await?;
        // What was built is attested as well.
        let steps = if id == works { 4 } else { 3 };
        ensure!(kinds.len() == steps, "each step once: {kinds:?}");
    }
    Ok(())
}

async fn runner_killed() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let interrupted = async |leaf: &mut TestLeaf, id: JobId| {
        let job = leaf.job_ended(id).await?;
        ensure!(job.phase == JobPhase::Interrupted, "{job:?}");
        ensure!(job.error.is_some(), "{job:?}");
        let left = traces::processes_with(&format!(": {};", mark(leaf)));
        ensure!(left.is_empty(), "{left:#?}");
        leaf.job_log(id).await
    };
    let id = leaf.build(script(&leaf, "hangs", HANGS)?).await?;
    leaf.job_says(id, "hangs").await?;
    kill(traces::runner(&leaf, id).context("a runner")?)?;
    ensure!(interrupted(&mut leaf, id).await?.contains("hangs"));
    // And while leafd is down.
    let id = leaf.build(script(&leaf, "again", HANGS)?).await?;
    leaf.job_says(id, "hangs").await?;
    leaf.kill().await?;
    kill(traces::runner(&leaf, id).context("a runner")?)?;
    leaf.back().await?;
    ensure!(interrupted(&mut leaf, id).await?.contains("hangs"));
    let kinds = leaf.kinds_told(&id.to_string()).await?;
    ensure!(
        kinds == ["job.queued", "job.started", "job.interrupted"],
        "{kinds:?}"
    );
    Ok(())
}

async fn queue_survives() -> anyhow::Result<()> {
    let mut leaf = Setup::new().set("nix.max_jobs", 1).start().await?;
    let first = leaf.build(script(&leaf, "hangs", HANGS)?).await?;
    leaf.job_says(first, "hangs").await?;
    let mut waiting = Vec::new();
    for number in 0..4 {
        let quick = script(&leaf, &format!("quick{number}"), "echo made > $out")?;
        waiting.push(leaf.build(quick).await?);
    }
    leaf.stop().await?;
    leaf.back().await?;
    leaf.kill().await?;
    leaf.back().await?;
    let shown = leaf.show().await?;
    ensure!((shown.jobs_running, shown.jobs_queued) == (1, 4), "{shown:?}");
    leaf.call(&CancelJob { id: first }).await?;
    let mut ends = Vec::new();
    for id in &waiting {
        let job = leaf.job_ended(*id).await?;
        ensure!(job.phase == JobPhase::Succeeded, "{job:?}");
        ends.push((
            job.started_at.context("it began")?,
            job.ended_at.context("it ended")?,
        ));
    }
    for pair in ends.windows(2) {
        ensure!(pair[0].1 <= pair[1].0, "one after the other, in order: {ends:?}");
    }
    Ok(())
}

async fn cancel_survives() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    for round in 0..6 {
        let job = leaf
            .build(script(&leaf, &format!("hangs{round}"), HANGS)?)
            .await?;
        leaf.job_says(job, "hangs").await?;
        let cancel = CancelJob { id: job };
        let sent = id();
        let options = CallOptions {
            id: Some(sent.clone()),
            timeout: Duration::from_millis(1 + round),
            ..CallOptions::default()
        };
        let client = leaf.client().await?;
        let _ = client.call(&leaf.name, &cancel, options).await;
        leaf.kill().await?;
        leaf.back().await?;
        // The same once more: whether it was accepted before is the leaf's to know.
        let ended = leaf.call_as(&sent, &cancel).await.with_context(|| leaf.log())?;
        ensure!(ended.phase == JobPhase::Cancelled, "{ended:?}");
        ensure!(ended.error.as_deref() == Some("cancelled by admin"), "{ended:?}");
        let left = traces::processes_with(&format!(": {};", mark(&leaf)));
        ensure!(left.is_empty(), "{left:#?}");
    }
    let destroyed = DestroyContainer {
        name: name(),
        if_generation: None,
    };
    // Nothing of all that made a container.
    is_problem(leaf.call(&destroyed).await, ProblemCode::Unsupported, "")
}

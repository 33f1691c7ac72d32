//! Many at once: callers who want different things of one container, many containers, many cycles.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures::future::join_all;
use leaf_bus::client::{CallError, CallOptions, Client};
use leaf_core::container::{Container, ContainerPhase as Phase};
use leaf_core::id::{ContainerName, LeafName};
use leaf_core::problem::ProblemCode;
use libtest_mimic::Trial;

use super::systems::{WAITS, system};
use super::{destroy, jobs, leaf, name, nothing_left, start, stop, toplevel};
use crate::support::{Host, Need, TestLeaf};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let needs = &[Need::Containers];
    vec![
        host.trial(
            "concurrent starts and stops of many callers end in the desired state of one of them, and nothing is stuck",
            needs,
            storm,
        ),
        host.trial("twenty containers run at once", needs, twenty),
        host.trial(
            "thirty lifecycles of a container don't grow the leaf's files and memory",
            needs,
            cycles,
        ),
    ]
}

fn patient() -> CallOptions {
    CallOptions {
        timeout: Duration::from_secs(120),
        ..CallOptions::default()
    }
}

async fn start_or_stop(
    client: &Client,
    leaf: &LeafName,
    name: &ContainerName,
    run: bool,
) -> Result<Container, CallError> {
    if run {
        client.call(leaf, &start(name), patient()).await
    } else {
        client.call(leaf, &stop(name), patient()).await
    }
}

async fn storm() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    leaf.create(&name, toplevel(&system(WAITS).await?), false).await?;
    let own = leaf.name.clone();
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(leaf.connect().await?);
    }
    for round in 0..6 {
        // Each caller wants something else a few times, one after the other, all callers at once.
        let callers = clients.iter().enumerate().map(|(caller, client)| {
            let (own, name) = (&own, &name);
            async move {
                let mut answers = Vec::new();
                for turn in 0..3 {
                    let run = (caller + turn + round) % 2 == 0;
                    answers.push((run, start_or_stop(client, own, name, run).await));
                }
                answers
            }
        });
        for (run, answer) in join_all(callers).await.into_iter().flatten() {
            match answer {
                Ok(container) => {
                    let wanted = if run { Phase::Running } else { Phase::Stopped };
                    ensure!(container.phase == wanted, "{container:?}");
                }
                Err(CallError::Problem(problem)) if problem.code == ProblemCode::Conflict => {}
                Err(error) => bail!("{error}; the log:\n{}", leaf.log()),
            }
        }
        let after = leaf.container(&name).await?;
        ensure!(!after.phase.is_moving(), "{after:?}");
        let run = round % 2 == 0;
        let last = start_or_stop(&clients[0], &own, &name, run).await?;
        ensure!(
            last.phase == if run { Phase::Running } else { Phase::Stopped },
            "{last:?}"
        );
        ensure!(last.error.is_none(), "{last:?}");
    }
    // And one destroy among them.
    let others = clients[1..]
        .iter()
        .map(|client| start_or_stop(client, &own, &name, true));
    let destroy = destroy(&name);
    let (gone, others) = tokio::join!(clients[0].call(&own, &destroy, patient()), join_all(others));
    gone?;
    for answer in others {
        match answer {
            Ok(container) => ensure!(container.phase == Phase::Running, "{container:?}"),
            Err(CallError::Problem(problem))
                if matches!(problem.code, ProblemCode::Conflict | ProblemCode::NotFound) => {}
            Err(error) => bail!("{error}"),
        }
    }
    nothing_left(&leaf, &name)?;
    Ok(())
}

async fn twenty() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let waits = toplevel(&system(WAITS).await?);
    let (client, own) = (leaf.client().await?, leaf.name.clone());
    let names: Vec<ContainerName> = (0..20).map(|_| name()).collect();
    let all = async |what: &'static str| -> anyhow::Result<Vec<Container>> {
        let calls = names.iter().map(|name| {
            let (client, own, waits) = (&client, &own, waits.clone());
            async move {
                match what {
                    "create" => {
                        let create = leaf_core::command::CreateContainer {
                            name: name.clone(),
                            source: waits,
                            start: false,
                            options: Default::default(),
                        };
                        client.call(own, &create, patient()).await
                    }
                    "start" => start_or_stop(client, own, name, true).await,
                    _ => start_or_stop(client, own, name, false).await,
                }
            }
        });
        let answers: Result<Vec<Container>, CallError> = join_all(calls).await.into_iter().collect();
        answers.context(what)
    };
    all("create").await?;
    let mut made = Vec::new();
    for name in &names {
        made.push(leaf.in_phase(name, Phase::Stopped).await?);
    }
    ensure!(made.iter().all(|c| c.phase == Phase::Stopped), "{made:?}");
    let mut addresses: Vec<_> = made.iter().map(|c| c.desired.network.container_address).collect();
    addresses.sort();
    addresses.dedup();
    ensure!(addresses.len() == 20, "{addresses:?}");
    let runs = all("start").await?;
    ensure!(runs.iter().all(|c| c.phase == Phase::Running), "{runs:?}");
    ensure!(leaf.show().await?.containers_running == 20);
    let stopped = all("stop").await?;
    ensure!(stopped.iter().all(|c| c.phase == Phase::Stopped), "{stopped:?}");
    let destroys: Vec<_> = names.iter().map(destroy).collect();
    for gone in join_all(destroys.iter().map(|d| client.call(&own, d, patient()))).await {
        gone?;
    }
    ensure!(leaf.show().await?.containers == 0);
    for name in &names {
        nothing_left(&leaf, name)?;
        leaf.told_a_whole_life(name, &["desired"]).await?;
    }
    Ok(())
}

async fn cycles() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let waits = toplevel(&system(WAITS).await?);
    let cycle = async |leaf: &mut TestLeaf| -> anyhow::Result<()> {
        let name = name();
        leaf.create(&name, waits.clone(), true).await?;
        leaf.stop_container(&name).await?;
        leaf.destroy(&name).await
    };
    // Until all is there that is made once.
    for _ in 0..5 {
        cycle(&mut leaf).await?;
    }
    let files = open_files(&leaf)?;
    let memory = jobs::resident(&leaf)?;
    for _ in 0..30 {
        cycle(&mut leaf).await?;
    }
    crate::support::until("as many files are open as before", async || {
        let now = open_files(&leaf)?;
        anyhow::ensure!(now == files, "before: {files:#?}, now: {now:#?}");
        Ok(Some(()))
    })
    .await?;
    let grown = jobs::resident(&leaf)?.saturating_sub(memory);
    ensure!(grown < 16 * 1024 * 1024, "leafd grew by {grown} bytes");
    Ok(())
}

/// What a leaf's process has open, without numbers.
fn open_files(leaf: &TestLeaf) -> anyhow::Result<Vec<String>> {
    let pid = leaf.pid().context("it runs")?;
    let mut open: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))?
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|target| {
            target
                .to_string_lossy()
                .split(":[")
                .next()
                .unwrap_or_default()
                .to_owned()
        })
        .collect();
    open.sort();
    Ok(open)
}

//! Many leaves at one hub. Each is a client with the rights of a leaf, which claims its name: what a leaf does at rest.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::Client;
use leaf_bus::client::Client as LeafClient;
use leaf_core::fleet::Claim;
use leaf_core::id::LeafName;
use leaf_core::subject;
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::ours::{TheHub, beat_of};
use crate::{Programs, WITHIN};

/// How long the leaves rest while processor time is counted.
const REST: Duration = Duration::from_secs(20);

/// The period of claims.
const PERIOD: Duration = Duration::from_secs(10);
const CLAIMS_A_DAY: u64 = 24 * 60 * 60 / PERIOD.as_secs();

pub(crate) async fn measure(programs: &Programs<'_>, dir: &Path, count: u64) -> Result<Value> {
    let keys: Vec<(LeafName, KeyPair)> = (1..=count)
        .map(|n| Ok((LeafName::new(format!("edge-{n}"))?, KeyPair::new_user())))
        .collect::<Result<_>>()?;
    let leaves = keys
        .iter()
        .map(|(leaf, key)| (leaf.clone(), key.public_key()))
        .collect();
    // Here the leaves are clients.
    let as_clients =
        |accounts: String| accounts.replace(r#""allowed_connection_types":["LEAFNODE","LEAFNODE_WS"],"#, "");
    let hub = TheHub::start(programs, &dir.join("hub"), leaves, as_clients).await?;
    let agent = hub.start_agent(programs)?;
    let agent_pid = agent.id().context("the agent's process")?;
    let memory_before = memory(hub.server.pid)? + memory(agent_pid)?;
    let mut clients = Vec::new();
    for (leaf, key) in &keys {
        let client = async_nats::ConnectOptions::with_nkey(key.seed()?)
            .custom_inbox_prefix(subject::leaf_inbox_prefix(leaf))
            .connect(hub.server.url())
            .await?;
        let mut held = Vec::new();
        for down in leaf_bus::identity::Permissions::leaf_at_hub(leaf).subscribe {
            if !down.starts_with("_INBOX") {
                held.push(client.subscribe(down).await?);
            }
        }
        clients.push((leaf.clone(), client, held));
    }
    let claimed = async {
        for (leaf, client, _) in &clients {
            while claim(leaf, client).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    tokio::time::timeout(WITHIN, claimed)
        .await
        .context("all claims")?;
    let reader = LeafClient::connect(&hub.person()?, WITHIN).await?;
    let listed = async {
        while (reader.leaves().await?.heard.len() as u64) < count {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(WITHIN, listed)
        .await
        .context("all leaves are listed")??;
    let mut times = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        let found = reader.leaves().await?.heard.len() as u64;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(found == count, "{found} of {count} leaves are listed");
    }
    times.sort_by(f64::total_cmp);
    // At rest: each leaf claims every ten seconds.
    let (before, began) = (
        processor_time(hub.server.pid)? + processor_time(agent_pid)?,
        Instant::now(),
    );
    let pause = PERIOD / u32::try_from(count)?;
    let mut next = tokio::time::interval(pause);
    let mut all = clients.iter().cycle();
    let (mut claims, mut bytes) = (0, 0);
    while began.elapsed() < REST {
        next.tick().await;
        let (leaf, client, _) = all.next().context("a leaf")?;
        bytes += claim(leaf, client).await?;
        claims += 1;
    }
    let busy = processor_time(hub.server.pid)? + processor_time(agent_pid)? - before;
    let memory = memory(hub.server.pid)? + memory(agent_pid)?;
    Ok(json!({
        "leaves": count,
        "list_ms": times[times.len() / 2],
        "hub_bytes": memory,
        "bytes_a_leaf": memory.saturating_sub(memory_before) / count,
        "processor_share": busy / began.elapsed().as_secs_f64(),
        "bytes_a_day": bytes / claims * CLAIMS_A_DAY,
    }))
}

/// Claims the name, and returns the bytes of the request and its reply: subjects and bodies.
async fn claim(leaf: &LeafName, client: &Client) -> Result<u64> {
    let claim = Claim {
        beat: beat_of(leaf, 0),
        predecessor: None,
        stream_last: 0,
    };
    let (subject, body) = (subject::hub_claim(leaf), serde_json::to_vec(&claim)?);
    let sent = subject.len() + body.len();
    let reply = client.request(subject, body.into()).await?;
    // The reply's subject crosses with the request as well.
    Ok((sent + 2 * reply.subject.len() + reply.payload.len()) as u64)
}

/// Returns the resident memory of a process in bytes (proc_pid_status(5)).
fn memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .context("VmRSS")?;
    Ok(kib << 10)
}

/// Returns the processor time of a process in seconds (proc_pid_stat(5)).
fn processor_time(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("the fields behind the name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

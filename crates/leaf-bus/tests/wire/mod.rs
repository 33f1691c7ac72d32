//! Connecting, commands, streams, leases and the filling of copies, against a real nats-server.

mod commands;
mod connecting;
mod fill;
mod forged;
mod leases;
mod relay;
mod renewal;
mod sizes;
mod streams;

use std::time::Duration;

use anyhow::Context as _;
use leaf_bus::client::Client;
use leaf_bus::connect::{Bus, ConnectSettings, Credentials};
use leaf_bus::identity::{admin_caller, daemon_caller};
use leaf_core::event::{Event, EventRecord, Fact, LeafStopped};
use leaf_core::host_op::Secret;
use leaf_core::id::{Caller, InstanceId};
use leaf_core::subject;
use libtest_mimic::Trial;

use crate::support::{LIMIT, Site, leaf};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = connecting::trials();
    trials.extend(commands::trials());
    trials.extend(streams::trials());
    trials.extend(leases::trials());
    trials.extend(forged::trials());
    trials.extend(relay::trials());
    trials.extend(renewal::trials());
    trials.extend(sizes::trials());
    trials.extend(fill::trials());
    trials
}

fn settings_for(url: &str, credentials: &Secret, caller: &Caller) -> ConnectSettings {
    let mut settings = ConnectSettings::new(url);
    settings.credentials = Credentials::Text(credentials.clone());
    settings.inbox_prefix = subject::inbox_prefix(caller);
    settings
}

/// The daemon's two connections: where its callers are, and where the streams are.
fn daemon_settings(site: &Site) -> [ConnectSettings; 2] {
    let url = site.server.client_url();
    [
        site.identity.service_credentials(),
        site.identity.leaf_credentials(),
    ]
    .map(|credentials| settings_for(&url, &credentials, &daemon_caller()))
}

async fn daemon(site: &Site) -> anyhow::Result<Bus> {
    let [callers, streams] = daemon_settings(site);
    let bus = Bus::connect_apart(&callers, &streams).await?;
    tokio::time::timeout(LIMIT, bus.connected())
        .await
        .context("the daemon's connection")?;
    Ok(bus)
}

/// A server of its own, with the daemon connected.
async fn site_with_daemon() -> anyhow::Result<(Site, Bus)> {
    let site = Site::start().await?;
    let bus = daemon(&site).await?;
    Ok((site, bus))
}

async fn admin(site: &Site) -> anyhow::Result<Client> {
    let settings = settings_for(
        &site.server.client_url(),
        &site.identity.admin_credentials(),
        &admin_caller(),
    );
    Ok(Client::connect(&settings, LIMIT).await?)
}

fn kill(pid: u32) -> anyhow::Result<()> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a process")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

/// An event with this sequence number; equal numbers make equal events.
fn record(sequence: u64) -> EventRecord {
    record_saying(sequence, &format!("reason {sequence}"))
}

fn record_saying(sequence: u64, reason: &str) -> EventRecord {
    let event = Event {
        sequence,
        time: jiff::Timestamp::from_second(1_700_000_000).expect("a time"),
        causation: None,
        correlation: Some("mark".to_owned()),
        fact: Fact::from(LeafStopped {
            instance: instance(1),
            reason: reason.to_owned(),
        }),
    };
    event.to_record(&leaf(), 7)
}

fn instance(n: u128) -> InstanceId {
    InstanceId(uuid::Uuid::from_u128(n))
}

/// Asks until the answer is there, within the limit.
async fn until<T, F>(what: &str, mut ask: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Option<T>>,
{
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, asked)
        .await
        .with_context(|| format!("waiting for {what}"))
}

//! Commands from the hub while the credentials of the leaf's link end, again and again, and the link comes back with renewed ones.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use leaf_bus::client::{CallError, CallOptions, Client};
use leaf_bus::connect::{ConnectSettings, Credentials, Tls};
use leaf_core::command::LabelLeaf;
use leaf_core::id::{CommandId, LeafName};
use leaf_core::subject;

use crate::support::{FleetSite, LIMIT, until};

/// How long the link's credentials are valid.
const LIFE: Duration = Duration::from_secs(6);
/// How long commands are sent: over several ends.
const DURING: Duration = Duration::from_secs(24);
/// How long leafctl waits for one reply before it sends the command again under its id, in this test.
const ATTEMPT: Duration = Duration::from_millis(500);

/// Writes credentials of the leaf's link that end soon, in place of the former ones.
fn renew(site: &FleetSite, leaf: &LeafName, file: &Path) -> anyhow::Result<()> {
    let now = Timestamp::now().as_second();
    let ends = now + i64::try_from(LIFE.as_secs())?;
    let credentials = site.by_hand("LINKS/leaf", leaf.as_str(), now, ends)?;
    let new = file.with_extension("new");
    std::fs::write(&new, credentials.expose())?;
    Ok(std::fs::rename(new, file)?)
}

/// Sends a label under one id until there is an answer, and returns how long that took.
async fn label(client: &Client, leaf: &LeafName, number: u32) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let id = CommandId::new(format!("number-{number}"))?;
    let request = LabelLeaf {
        set: [("number".to_owned(), number.to_string())].into(),
        remove: [].into(),
    };
    loop {
        let options = CallOptions {
            id: Some(id.clone()),
            timeout: ATTEMPT,
            ..CallOptions::default()
        };
        match client.call(leaf, &request, options).await {
            Ok(_) => return Ok(began.elapsed()),
            Err(CallError::NoLeaf(_) | CallError::TimedOut { .. }) if began.elapsed() < LIMIT => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Connects at the hub as a person who was added.
async fn as_ann(site: &FleetSite) -> anyhow::Result<Client> {
    let ann = ConnectSettings {
        credentials: Credentials::File(site.work().join("ann.creds")),
        inbox_prefix: subject::inbox_prefix_of_token("ann"),
        tls: Tls {
            ca: Some(site.keys().join("tls/ca.pem")),
            ..Tls::default()
        },
        ..ConnectSettings::new(&site.clients()?)
    };
    Ok(Client::connect(&ann, LIMIT).await?)
}

/// The link's credentials end while the hub is down; later the leaf is revoked while it is off itself. Its own people command it all the time.
pub(super) async fn while_cut_off() -> anyhow::Result<()> {
    let mut site = FleetSite::start().await?;
    site.start_agent()?;
    let (leaf, _) = site.leaf().await?;
    site.done(&["add-operator", "ann"]).await?;
    let file = site.at(&format!("{leaf}.creds"));
    let given = std::fs::read_to_string(&file)?;
    renew(&site, &leaf, &file)?;
    let mut running = site.setup(&leaf, &file)?.start().await?;
    let client = as_ann(&site).await?;
    until("the leaf answers at the hub", async || {
        renew(&site, &leaf, &file)?;
        Ok(label(&client, &leaf, 0).await.ok())
    })
    .await?;
    let here = |number: &str| LabelLeaf {
        set: [("here".to_owned(), number.to_owned())].into(),
        remove: [].into(),
    };

    renew(&site, &leaf, &file)?;
    site.stop_server().await?;
    tokio::time::sleep(LIFE + Duration::from_secs(1)).await;
    running.call(&here("1")).await?;
    site.start_server().await?;
    let is_refused = |site: &FleetSite| site.log().contains("authentication error").then_some(());
    until("the ended credentials are refused", async || {
        Ok(is_refused(&site))
    })
    .await?;
    running.call(&here("2")).await?;
    renew(&site, &leaf, &file)?;
    // As often as the file is renewed by whoever does it.
    until("the leaf answers with renewed credentials", async || {
        renew(&site, &leaf, &file)?;
        Ok(label(&client, &leaf, 1).await.ok())
    })
    .await?;

    // The credentials that it was given, which are revoked while it is off.
    let cuts = |site: &FleetSite| site.log().matches("Authentication Expired").count();
    let before = cuts(&site);
    std::fs::write(&file, given)?;
    until(
        "the leaf answers with the credentials that it was given",
        async || Ok((cuts(&site) > before && label(&client, &leaf, 2).await.is_ok()).then_some(())),
    )
    .await?;
    running.kill().await?;
    site.done(&["revoke", leaf.as_str()]).await?;
    site.stop_server().await?;
    site.start_server().await?;
    running.start_again().await?;
    until("the revoked leaf is refused", async || Ok(is_refused(&site))).await?;
    running.forget_client();
    let labels = running.call(&here("3")).await?.labels;
    ensure!(labels.get("here").is_some_and(|value| value == "3"), "{labels:?}");
    Ok(())
}

pub(super) async fn over_several_ends() -> anyhow::Result<()> {
    let mut site = FleetSite::start().await?;
    site.start_agent()?;
    let (leaf, _) = site.leaf().await?;
    site.done(&["add-operator", "ann"]).await?;
    let file = site.at(&format!("{leaf}.creds"));
    renew(&site, &leaf, &file)?;
    let mut running = site.setup(&leaf, &file)?.start().await?;
    let client = as_ann(&site).await?;
    until("the leaf answers at the hub", async || {
        renew(&site, &leaf, &file)?;
        Ok(label(&client, &leaf, 0).await.ok())
    })
    .await?;

    let (began, mut renewed) = (Instant::now(), Instant::now());
    let (mut number, mut longest, mut quick) = (0, Duration::ZERO, Vec::new());
    while began.elapsed() < DURING {
        if renewed.elapsed() > LIFE * 2 / 3 {
            renewed = Instant::now();
            renew(&site, &leaf, &file)?;
        }
        number += 1;
        let took = label(&client, &leaf, number).await?;
        longest = longest.max(took);
        quick.push(took);
    }
    quick.sort_unstable();
    let cuts = site.log().matches("Authentication Expired").count();
    eprintln!(
        "{number} commands over {cuts} ends of the link's credentials: the longest took {} ms, the median {} ms",
        longest.as_millis(),
        quick[quick.len() / 2].as_millis()
    );
    ensure!(cuts >= 3, "the link was cut {cuts} times only: {}", site.log());
    ensure!(longest < Duration::from_secs(10), "{longest:?}");

    running.forget_client();
    running.published().await?;
    let mut told: BTreeMap<String, u32> = BTreeMap::new();
    for event in running.events().await? {
        if event.kind() == Some("cim.leaf.leaf.labelled.v1") {
            let body: serde_json::Value = serde_json::from_slice(&event.body)?;
            let number = body["labels"]["number"].as_str().context("a number")?;
            *told.entry(number.to_owned()).or_default() += 1;
        }
    }
    for number in 0..=number {
        let times = told.get(&number.to_string()).copied().unwrap_or_default();
        ensure!(times == 1, "command {number} was carried out {times} times");
    }
    Ok(())
}

//! The commands beside `run`. Those on the hub's streams work whether the agent runs or not.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use comfy_table::presets;
use jiff::Timestamp;
use leaf_bus::hub::Hub;
use leaf_bus::identity::{HubUsers, make_user_key, public_user_key};
use leaf_core::fleet::fact::{FleetEvent, FleetFact};
use leaf_core::fleet::{CopyState, CopyStatus};
use leaf_core::id::LeafName;
use leaf_core::printable::printable_line;

use crate::settings::Settings;

/// How long the hub's server has to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a user's key.
pub(crate) fn key(file: &Path) -> anyhow::Result<()> {
    println!("{}", make_user_key(file)?);
    Ok(())
}

/// Prints the hub's accounts.
pub(crate) fn accounts(settings: &Settings, nsc: bool) -> anyhow::Result<()> {
    let of_agent = |file: &Path| match public_user_key(file) {
        // `nsc` makes the agent's users itself, with credentials files.
        Err(_) if nsc => Ok(String::new()),
        key => key,
    };
    let users = HubUsers {
        agent: of_agent(&settings.nats.fleet_credentials)?,
        agent_in_links: of_agent(&settings.nats.links_credentials)?,
        leaves: settings.leaves.clone().into_iter().collect(),
        people: settings.people.clone().into_iter().collect(),
    };
    print!("{}", if nsc { users.nsc() } else { users.accounts() });
    Ok(())
}

async fn connect(settings: &Settings) -> anyhow::Result<Hub> {
    let hub = Hub::connect(&settings.fleet()?, &settings.links()?)
        .await
        .context("can't connect to NATS with these settings")?;
    if tokio::time::timeout(TIMEOUT, hub.connected()).await.is_err() {
        let (fleet, links) = (hub.fleet_status(), hub.links_status());
        let (fleet, links) = (fleet.borrow().clone(), links.borrow().clone());
        bail!(
            "not connected to the hub's NATS server within 10 s; account FLEET: {fleet}; account LINKS: {links}"
        );
    }
    Ok(hub)
}

/// Shows the state of the copy of each leaf.
pub(crate) async fn status(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let hub = connect(settings).await?;
    let statuses = hub
        .registry_as_it_is()
        .statuses()
        .await
        .context("can't read the state of the copies (has the agent ever run?)")?;
    let statuses: Vec<CopyStatus> = statuses.into_values().collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&statuses)?);
        return Ok(());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["LEAF", "COPY", "SINCE", "COPIED", "LEAF HAS", "REASON"]);
    for status in statuses {
        table.add_row([
            status.leaf.to_string(),
            status.state.to_string(),
            status.since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            status.copied.to_string(),
            status.leaf_last.to_string(),
            printable_line(status.reason.as_deref().unwrap_or_default()).into_owned(),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    println!("{}", table.trim_fmt());
    Ok(())
}

/// Deletes the copy of a leaf's events and tells the agent.
pub(crate) async fn reset(settings: &Settings, leaf: &LeafName) -> anyhow::Result<()> {
    let hub = connect(settings).await?;
    let copy = hub.copy(leaf, settings.copies.max_bytes);
    let Some(extent) = copy.open().await.context("can't open the copy")? else {
        bail!("there is no copy of the events of a leaf {leaf}: `leaf-hub status` lists the leaves");
    };
    copy.delete().await.context("can't delete the copy")?;
    let registry = hub.registry().await?;
    let status = registry.statuses().await?.remove(leaf);
    let time = Timestamp::now();
    let event = FleetEvent {
        before: Some(time),
        time,
        fact: FleetFact::Reset,
        status: CopyStatus {
            leaf: leaf.clone(),
            state: status.map_or(CopyState::Unknown, |status| status.state),
            since: time,
            copied: 0,
            leaf_last: 0,
            reason: Some("its copy was deleted, to begin anew".to_owned()),
        },
    };
    registry
        .put_event(&event)
        .await
        .context("the copy is deleted, but the event that says so can't be stored")?;
    if extent.is_empty() {
        println!("the empty copy of the events of {leaf} is deleted");
    } else {
        println!(
            "the copy of the events {} to {} of {leaf} is deleted",
            extent.first, extent.last
        );
    }
    println!("the agent begins a new one where the leaf's own stream begins, as soon as both are running");
    Ok(())
}

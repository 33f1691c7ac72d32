//! The commands beside `run`. Those on the hub's streams work whether the agent runs or not.

use std::io::{BufRead as _, ErrorKind, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use comfy_table::presets;
use jiff::Timestamp;
use leaf_bus::hub::Hub;
use leaf_bus::identity::{HubUsers, public_user_key, user_key};
use leaf_core::fleet::copy::Extent;
use leaf_core::fleet::fact::{FleetEvent, FleetFact};
use leaf_core::fleet::{AWAY_SECONDS, ActiveAgent, CopyState, CopyStatus};
use leaf_core::id::LeafName;
use leaf_core::printable::printable_line;

use crate::settings::Settings;

/// How long the hub's server has to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the agent may take to hear of what was done.
const AGENT_HEARS: Duration = Duration::from_millis(500);

/// Prints a line, or lines, to standard output. A reader that has closed it wants no more.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("can't write to standard output"),
    }
}

/// Prints the public key of a user, whose key is made if its file is not there.
pub(crate) fn key(file: &Path) -> anyhow::Result<()> {
    print(&user_key(file)?)
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
    let accounts = if nsc { users.nsc() } else { users.accounts() };
    print(accounts.trim_end())
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

/// Shows the active agent, and the state of the copy of each leaf.
pub(crate) async fn status(settings: &Settings, json: bool) -> anyhow::Result<()> {
    let hub = connect(settings).await?;
    let registry = hub.registry_as_it_is();
    let statuses = registry
        .statuses()
        .await
        .context("can't read the state of the copies (has the agent ever run?)")?;
    let statuses: Vec<CopyStatus> = statuses.into_values().collect();
    let agent = registry
        .active()
        .await
        .context("can't read which agent is active")?;
    let agent = agent.and_then(|(agent, _)| agent);
    if json {
        let shown = serde_json::json!({ "agent": agent, "copies": statuses });
        return print(&serde_json::to_string_pretty(&shown)?);
    }
    print(&format!("{}\n", about_agent(agent.as_ref(), Timestamp::now())))?;
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
    print(&table.trim_fmt())
}

/// Returns a line about the agent that writes the hub's streams.
fn about_agent(agent: Option<&ActiveAgent>, now: Timestamp) -> String {
    let Some(agent) = agent else {
        return "no agent was ever active here: start `leaf-hub run`".to_owned();
    };
    agent.absence(now).unwrap_or_else(|| {
        let ActiveAgent { since, .. } = agent;
        format!("active agent: {}, since {since}", agent.who())
    })
}

/// Asks a person to confirm by the leaf's name what can't be undone.
fn confirm(leaf: &LeafName, what: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    let mut input = std::io::stdin().lock();
    if !input.is_terminal() {
        bail!(
            "{what} This can't be undone, and there is no terminal to confirm it on: repeat the command with --yes"
        );
    }
    eprint!("{what} This can't be undone. Type the leaf's name to go on: ");
    let mut typed = String::new();
    input.read_line(&mut typed)?;
    if typed.trim() != leaf.as_str() {
        bail!("that is not {leaf}: nothing was changed");
    }
    Ok(())
}

/// Deletes the copy of a leaf's events and tells the agent.
pub(crate) async fn reset(settings: &Settings, leaf: &LeafName, yes: bool) -> anyhow::Result<()> {
    let hub = connect(settings).await?;
    let copy = hub.copy(leaf, settings.copies.max_bytes);
    let Some(extent) = copy.extent().await.context("can't open the copy")? else {
        bail!("there is no copy of the events of a leaf {leaf}: `leaf-hub status` lists the leaves");
    };
    let events = events_text(leaf, extent);
    let what = format!(
        "This deletes {events}. A new one begins where the leaf's own stream begins: what only this copy has is lost."
    );
    confirm(leaf, &what, yes)?;
    copy.delete().await.context("can't delete the copy")?;
    let registry = hub.registry().await?;
    let status = registry.statuses().await?.remove(leaf);
    let event = done(
        leaf,
        status,
        FleetFact::Reset,
        "its copy was deleted, to begin anew",
    );
    registry
        .put_event(&event)
        .await
        .context("the copy is deleted, but the event that says so can't be stored")?;
    print(&format!("{events} is deleted"))?;
    print("the agent begins a new one where the leaf's own stream begins, as soon as both are running")?;
    Ok(())
}

/// Removes a leaf from the registry, with its state.
pub(crate) async fn forget(
    settings: &Settings,
    leaf: &LeafName,
    events: bool,
    yes: bool,
) -> anyhow::Result<()> {
    let hub = connect(settings).await?;
    let registry = hub.registry().await?;
    let (status, copy) = (
        registry.statuses().await?.remove(leaf),
        hub.copy(leaf, settings.copies.max_bytes),
    );
    let extent = copy.extent().await.context("can't open the copy of its events")?;
    let known = registry
        .leaves()
        .await?
        .into_iter()
        .find(|known| known.beat.leaf == *leaf);
    if status.is_none() && known.is_none() && extent.is_none() {
        bail!("no leaf {leaf} was ever here: `leaf-hub status` lists the leaves");
    }
    if let Some(known) = known.filter(|known| known.age < Duration::from_secs(AWAY_SECONDS)) {
        bail!(
            "the leaf {leaf} claimed its name {} s ago, and would join again: stop its leafd, or take its line out of [leaves] and \
             restart the hub's server, and repeat this {AWAY_SECONDS} s later",
            known.age.as_secs()
        );
    }
    let of_events = match (extent, events) {
        (None, _) => "There is no copy of its events.".to_owned(),
        (Some(extent), true) => format!("It deletes {}, too.", events_text(leaf, extent)),
        (Some(extent), false) => format!(
            "It keeps {}, for `leafctl events --leaf {leaf}`: --events deletes that as well.",
            events_text(leaf, extent)
        ),
    };
    let what = format!("This removes the leaf {leaf} from the lists, with its state. {of_events}");
    confirm(leaf, &what, yes)?;
    // The agent ends its task of the leaf first, and would else write again what is removed.
    let event = done(
        leaf,
        status,
        FleetFact::Forgotten,
        "it was removed from the registry",
    );
    registry.put_event(&event).await?;
    tokio::time::sleep(AGENT_HEARS).await;
    let entries = hub.state_copy_as_it_is().forget(leaf).await;
    let entries = entries.context("can't remove its state: repeat the command")?;
    registry
        .forget(leaf)
        .await
        .context("its state is removed, but not its place in the lists: repeat the command")?;
    if events && extent.is_some() {
        copy.delete()
            .await
            .context("it is removed, but the copy of its events can't be deleted: repeat the command")?;
    }
    print(&format!(
        "the leaf {leaf} is removed from the lists, with {entries} entries of its state"
    ))?;
    print(&of_events)?;
    print(
        "take its line out of [leaves] too, unless it is to come back: `leaf-hub accounts` then leaves it out",
    )
}

fn events_text(leaf: &LeafName, extent: Extent) -> String {
    if extent.is_empty() {
        format!("the empty copy of the events of {leaf}")
    } else {
        format!(
            "the copy of the events {} to {} of {leaf}",
            extent.first, extent.last
        )
    }
}

/// Returns the event about what a command did.
fn done(leaf: &LeafName, status: Option<CopyStatus>, fact: FleetFact, reason: &str) -> FleetEvent {
    let time = Timestamp::now();
    FleetEvent {
        before: Some(time),
        time,
        fact,
        status: CopyStatus {
            leaf: leaf.clone(),
            state: status.map_or(CopyState::Unknown, |status| status.state),
            since: time,
            copied: 0,
            leaf_last: 0,
            reason: Some(reason.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leaf_core::id::InstanceId;

    #[test]
    fn the_line_about_the_agent_says_whether_one_is_active() {
        let agent = |released| ActiveAgent {
            instance: InstanceId(uuid::Uuid::from_u128(1)),
            hostname: "hub".to_owned(),
            version: "1".to_owned(),
            since: Timestamp::UNIX_EPOCH,
            renewed: Timestamp::UNIX_EPOCH,
            process: None,
            released,
        };
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let line = |released, seconds| about_agent(Some(&agent(released)), at(seconds));
        assert!(line(false, 5).starts_with("active agent: instance"));
        assert!(line(false, 60).contains("no agent is active: the last one said so 60 s ago"));
        assert!(line(true, 1).contains("was stopped at"));
        assert!(about_agent(None, at(0)).contains("start `leaf-hub run`"));
    }
}

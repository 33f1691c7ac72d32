//! What the tests of the daemon share: a leaf of their own ([`TestLeaf`]), what this machine can do ([`Host`]).

#[path = "support/agent.rs"]
mod agent;
#[path = "support/fleet_site.rs"]
mod fleet_site;
#[path = "support/helper.rs"]
mod helper;
#[path = "support/host.rs"]
mod host;
#[path = "support/hub.rs"]
mod hub;
#[path = "support/hub_site.rs"]
mod hub_site;
#[path = "support/leaf.rs"]
mod leaf;
#[path = "support/programs.rs"]
mod programs;
#[path = "support/remains.rs"]
pub(crate) mod remains;
#[path = "support/short_lives.rs"]
pub(crate) mod short_lives;

use std::time::{Duration, Instant};

pub(crate) use agent::{Manner, TestAgent};
pub(crate) use fleet_site::{FleetSite, free_port, key_file};
pub(crate) use helper::ServedHelper;
pub(crate) use host::{FURTHER_NIX, Host, Need, OLD_LEAFD, OPENPGP_LEAFD, SECURESYSTEMSLIB};
pub(crate) use hub::Hub;
pub(crate) use hub_site::{HubSite, Weather, Wire};
pub(crate) use leaf::{Setup, TestLeaf};
pub(crate) use programs::{nats_server, ssh_key};

/// The longest that any wait for a state may take, if the test does not say otherwise.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The clipboard (OSC 52), the title, a C1 control, a colour, a bell, CR, backspace, a forged line, bidi overrides.
pub(crate) const HOSTILE: &str =
    "\u{1b}]52;c;cm0=\u{7}\u{1b}]0;owned\u{1b}\\\u{9b}2J\u{1b}[31mred\u{7}\rCR\u{8}\u{202e}\u{2066}\nFORGED";

/// Waits until `look` gives something, and says what it waited for if it never does.
pub(crate) async fn until<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + LIMIT;
    let mut last = String::new();
    while Instant::now() < deadline {
        match tokio::time::timeout_at(deadline.into(), look()).await {
            Ok(Ok(Some(found))) => return Ok(found),
            Ok(Ok(None)) => last.clear(),
            Ok(Err(error)) => last = format!("; the last look said: {error:#}"),
            Err(_) => last = "; the last look did not end".to_owned(),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("not within {LIMIT:?}: {what}{last}")
}

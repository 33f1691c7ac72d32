use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;

use crate::error::Error;
use crate::fleet_keys::init::{NewFleet, init};
use crate::output::Output;

/// Make the keys of a new fleet: NATS operator, accounts, roles, CA, and the files of the hub.
///
/// Nothing on the network is asked or changed. The directory holds every secret of the fleet: keep it on a machine that is neither
/// a leaf nor the hub, and back it up.
#[derive(Debug, Args)]
pub(super) struct Init {
    /// A new directory.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The URL that leaves connect to.
    #[arg(long, value_name = "URL")]
    hub: String,
    /// The URL that people connect to. Without this flag: port 4222 of the hub.
    #[arg(long, value_name = "URL")]
    clients: Option<String>,
    /// The name of the fleet, and of its NATS operator.
    #[arg(long, default_value = "fleet", value_parser = parse_name)]
    name: String,
    /// The life of the hub agent's credentials, in days.
    #[arg(long, default_value_t = 400)]
    days: u32,
    /// Where the files below hub/ are on the hub's host.
    #[arg(long, value_name = "DIR", default_value = "/etc/cim-hub", value_parser = parse_path)]
    hub_directory: String,
    /// Where the hub's state is on its host.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cim-hub", value_parser = parse_path)]
    hub_state: String,
}

fn parse_name(text: &str) -> Result<String, String> {
    // A caller is a token, and so a file's name on every file system.
    leaf_core::id::Caller::new(text)
        .map(|name| name.as_str().to_owned())
        .map_err(|error| error.to_string())
}

fn parse_path(text: &str) -> Result<String, String> {
    let is_plain = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    if text.starts_with('/') && is_plain {
        return Ok(text.trim_end_matches('/').to_owned());
    }
    Err("it is an absolute path of letters, digits and the characters / . _ -".to_owned())
}

impl Init {
    pub(super) fn run(self, output: Output) -> Result<(), Error> {
        let new = NewFleet {
            name: &self.name,
            hub: &self.hub,
            clients: self.clients.as_deref(),
            hub_directory: &self.hub_directory,
            hub_state: &self.hub_state,
            days: self.days,
        };
        let directory = init(&self.directory, &new, Timestamp::now())?;
        let movable: Vec<_> = directory
            .places()
            .into_iter()
            .filter(|place| place.needed_by.is_none())
            .map(|place| place.file)
            .collect();
        let document = serde_json::json!({
            "directory": directory.root(),
            "fleet": directory.manifest(),
            "may_be_moved_away": movable,
        });
        output.document(&document, |_| {
            let mut text = format!(
                "the fleet {} is in {}\n\nfor the hub, as {}:\n  {}\n\nno command needs these keys; move them to a place without a network:\n",
                self.name,
                directory.root().display(),
                self.hub_directory,
                directory.root().join("hub").display(),
            );
            for file in &movable {
                text += &format!("  {}\n", file.display());
            }
            text
        })
    }
}

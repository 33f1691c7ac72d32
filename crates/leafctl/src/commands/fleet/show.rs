use std::path::Path;

use clap::Args;
use jiff::Timestamp;
use leaf_bus::identity::fleet::Role;
use serde_json::{Value, json};

use super::shared::{day, time};
use crate::error::Error;
use crate::fleet_keys::Directory;
use crate::fleet_keys::users::{Life, Stands, User, kind_of};
use crate::output::Output;

/// Show who may do what in the fleet, until when, and since when a key is revoked.
///
/// It reads the directory, and needs no key and no hub.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// Show where the keys of the operator, the accounts and the roles are, and what needs them.
    #[arg(long)]
    keys: bool,
}

impl Show {
    pub(super) fn run(self, dir: &Path, output: Output) -> Result<(), Error> {
        let directory = Directory::open(dir)?;
        if self.keys {
            return places(&directory, output);
        }
        let users = directory.users()?;
        let now = Timestamp::now().as_second();
        let document = json!({
            "fleet": directory.manifest().name,
            "hub": directory.manifest().hub,
            "clients": directory.manifest().clients,
            "users": users.iter().map(|user| document_of(user, now)).collect::<Vec<_>>(),
        });
        output.document(&document, |_| {
            let mut table = output.table(&["NAME", "KIND", "MAY", "ENDS", "STATE", "KEY"]);
            for user in &users {
                for (life, former) in user
                    .former
                    .iter()
                    .map(|life| (life, true))
                    .chain([(&user.current, false)])
                {
                    table.add_row([
                        user.name.clone(),
                        format!(
                            "{}{}",
                            kind_of(user.role),
                            if former { " (former key)" } else { "" }
                        ),
                        may(user),
                        life.expires_at.map_or_else(|| "never".to_owned(), day),
                        state(life, now),
                        life.key.clone(),
                    ]);
                }
            }
            table
        })
    }
}

/// Returns what a user may, in a few words; the JSON has each subject.
fn may(user: &User) -> String {
    match user.role {
        Role::Leaf => format!("connect as the leaf {}", user.name),
        Role::Person => format!("command each leaf as {}, read", user.name),
        Role::AgentInFleet => "keep the copies".to_owned(),
        Role::AgentInLinks => "answer leaves".to_owned(),
        Role::Push => "push accounts".to_owned(),
    }
}

fn state(life: &Life, now: i64) -> String {
    match (life.stands(now), life.revoked.and_then(time)) {
        (Stands::Revoked, Some(since)) => format!("revoked since {since}"),
        (Stands::Revoked, None) => "revoked".to_owned(),
        (Stands::Ended, _) => "ended".to_owned(),
        (Stands::Valid, _) => "valid".to_owned(),
    }
}

fn document_of(user: &User, now: i64) -> Value {
    let permissions = user.role.permissions(&user.name);
    let mut document = life_of(&user.current, now);
    document["name"] = json!(user.name);
    document["kind"] = json!(kind_of(user.role));
    document["account"] = json!(user.role.account().name());
    document["publish"] = json!(permissions.publish);
    document["subscribe"] = json!(permissions.subscribe);
    document["former"] = user.former.iter().map(|life| life_of(life, now)).collect();
    document
}

fn life_of(life: &Life, now: i64) -> Value {
    let state = match life.stands(now) {
        Stands::Valid => "valid",
        Stands::Ended => "ended",
        Stands::Revoked => "revoked",
    };
    json!({
        "key": life.key,
        "issued_at": time(life.issued_at),
        "expires_at": life.expires_at.and_then(time),
        "revoked_since": life.revoked.and_then(time),
        "state": state,
    })
}

fn places(directory: &Directory, output: Output) -> Result<(), Error> {
    let places = directory.places();
    output.document(&json!({ "keys": places }), |_| {
        let mut table = output.table(&["KEY OF", "NEEDED BY", "HERE", "FILE"]);
        for place in &places {
            table.add_row([
                place.whose.as_str(),
                place.needed_by.unwrap_or("nothing: move it away"),
                if place.here { "yes" } else { "no" },
                &place.file.display().to_string(),
            ]);
        }
        table
    })
}

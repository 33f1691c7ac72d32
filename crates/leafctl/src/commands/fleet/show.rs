use std::path::Path;

use clap::Args;
use jiff::Timestamp;
use leaf_bus::identity::fleet::Role;
use serde_json::{Value, json};

use super::shared::{day, time};
use crate::error::Error;
use crate::fleet_keys::Directory;
use crate::fleet_keys::hub::Certificate;
use crate::fleet_keys::users::{Life, Stands, User, kind_of, stands};
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
        let certificates = directory.certificates()?;
        let now = Timestamp::now().as_second();
        let document = json!({
            "fleet": directory.manifest().name,
            "hub": directory.manifest().hub,
            "clients": directory.manifest().clients,
            "users": users.iter().map(|user| document_of(user, now)).collect::<Vec<_>>(),
            "certificates": certificates.iter().map(|certificate| certificate_of(certificate, now)).collect::<Vec<_>>(),
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
            for certificate in &certificates {
                let stands = stands(certificate.begins, Some(certificate.ends), now);
                table.add_row([
                    certificate.whose.to_owned(),
                    "certificate".to_owned(),
                    String::new(),
                    day(certificate.ends),
                    in_words(stands, Some(certificate.ends), now),
                    match stands {
                        Stands::Ended | Stands::EndsSoon => {
                            format!("another one: {}", certificate.renewed_by)
                        }
                        Stands::Valid | Stands::Revoked => String::new(),
                    },
                ]);
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
        (stands, _) => in_words(stands, life.expires_at, now),
    }
}

fn in_words(stands: Stands, ends: Option<i64>, now: i64) -> String {
    match (stands, ends) {
        (Stands::EndsSoon, Some(ends)) => format!("ends in {} days", (ends - now) / 86_400),
        _ => word(stands).to_owned(),
    }
}

fn word(stands: Stands) -> &'static str {
    match stands {
        Stands::Valid => "valid",
        Stands::EndsSoon => "ends soon",
        Stands::Ended => "ended",
        Stands::Revoked => "revoked",
    }
}

fn certificate_of(certificate: &Certificate, now: i64) -> Value {
    json!({
        "whose": certificate.whose,
        "expires_at": time(certificate.ends),
        "renewed_by": certificate.renewed_by,
        "state": word(stands(certificate.begins, Some(certificate.ends), now)),
    })
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
    json!({
        "key": life.key,
        "issued_at": time(life.issued_at),
        "expires_at": life.expires_at.and_then(time),
        "revoked_since": life.revoked.and_then(time),
        "state": word(life.stands(now)),
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

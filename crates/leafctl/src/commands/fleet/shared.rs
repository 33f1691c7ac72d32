//! What the commands about the keys of a fleet share.

use std::path::Path;

use jiff::Timestamp;
use leaf_core::id::InvalidId;
use leaf_trust::host_key::HostKey;

use crate::error::Error;
use crate::fleet_keys::accounts::Pushed;
use crate::fleet_keys::hub::ACCOUNTS;
use crate::fleet_keys::users::Given;
use crate::fleet_keys::{Directory, KeysError};
use crate::global::Global;
use crate::output::Output;

/// Reads a leaf's host key: a file, or the line itself.
pub(super) fn host_key(text: &str) -> Result<HostKey, Error> {
    let line = match std::fs::read_to_string(text) {
        Ok(line) => line,
        // A key has a blank, and is no file.
        Err(_) if text.contains(' ') => text.to_owned(),
        Err(source) => {
            return Err(KeysError::Read {
                path: text.into(),
                source,
            }
            .into());
        }
    };
    line.parse().map_err(|source| {
        KeysError::HostKey {
            text: text.to_owned(),
            source,
        }
        .into()
    })
}

pub(super) fn invalid(error: InvalidId) -> Error {
    Error::Usage(error.to_string())
}

/// Prints what a user was given.
pub(super) fn print_given(given: &[Given], output: Output) -> Result<(), Error> {
    let document: Vec<_> = given
        .iter()
        .map(|given| {
            serde_json::json!({
                "name": given.name,
                "key": given.key,
                "expires_at": time(given.expires_at),
                "files": given.files,
            })
        })
        .collect();
    output.document(&serde_json::json!({ "users": document }), |_| {
        let mut text = String::new();
        for given in given {
            text += &format!(
                "{} has the key {}, which ends {}\n",
                given.name,
                given.key,
                day(given.expires_at)
            );
            for file in &given.files {
                text += &format!("  {}\n", file.display());
            }
        }
        text
    })
}

/// Pushes what was just changed in the directory.
pub(super) async fn push_change(
    directory: &mut Directory,
    global: &Global,
    output: Output,
) -> Result<(), Error> {
    let pushed = directory
        .push(global.server.as_deref(), global.timeout, Timestamp::now())
        .await;
    output.note(&format!(
        "bring {} to the hub, or on NixOS accounts.json beside it into its configuration: its server starts from it if it loses what was pushed",
        directory.root().join(ACCOUNTS).display()
    ));
    match pushed {
        Ok(pushed) => {
            note_foreign(&pushed, output);
            Ok(())
        }
        Err(source) => Err(KeysError::NotPushed {
            path: directory.root().to_owned(),
            source: Box::new(source),
        }
        .into()),
    }
}

/// Returns a second of the Unix epoch as a time.
pub(super) fn time(second: i64) -> Option<Timestamp> {
    Timestamp::from_second(second).ok()
}

/// Returns the day of a second, or its distance if it is near: `on 2027-01-03 (in 400 days)`.
pub(super) fn day(second: i64) -> String {
    let Some(time) = time(second) else {
        return "never".to_owned();
    };
    let date = time.to_zoned(jiff::tz::TimeZone::UTC).date();
    let days = (second - Timestamp::now().as_second()).div_euclid(86_400);
    match days {
        ..0 => format!("on {date} ({} days ago)", -days),
        0 => format!("on {date} (within a day)"),
        _ => format!("on {date} (in {days} days)"),
    }
}

pub(super) fn open_to_write(dir: &Path) -> Result<Directory, Error> {
    Ok(Directory::open_to_write(dir)?)
}

/// Notes what a server had that was not of this fleet, and was replaced.
pub(super) fn note_foreign(pushed: &[Pushed], output: Output) {
    for account in pushed {
        if let Some(foreign) = &account.foreign {
            output.note(&format!(
                "{foreign}; it was replaced, and whoever put it there has a user of SYS"
            ));
        }
    }
}

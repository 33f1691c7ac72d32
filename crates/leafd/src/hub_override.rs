//! Another hub than that of the settings, as a change that can cut the leaf off has written it: `hub.json` in the state directory of
//! changes. `docs/decisions/0026` is the contract.
//!
//! It holds as long as the section `[nats.embedded.hub]` is the one over which it was made: a new system that changes the section ends it
//! for good, also where a later system has the section of before. leafd notes that in its state directory, since the file is root's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use leaf_core::change::HubOverride;
use leaf_core::id::ChangeId;
use leaf_core::json::to_json;
use leaf_host::contract::HUB_OVERRIDE;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::settings::{Hub, Settings};

/// The name of the file in leafd's state directory with the changes whose hubs have ended.
const ENDED: &str = "ended-hubs.json";
/// The number of changes that are kept there: as many as the host keeps records of.
const ENDED_KEPT: usize = 16;

/// Why the file can't be used. The section of the settings holds then.
#[derive(Debug, thiserror::Error)]
pub enum OverrideError {
    /// It can't be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// It is not in the form of this version.
    #[error("{} can't be used: it is damaged, or of a newer version", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It names a file that is not beside it.
    #[error("{} names a file that is not beside it: {name:?}", path.display())]
    Elsewhere {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Neither it nor the section has credentials.
    #[error("{} has no credentials, and neither have the settings (nats.embedded.hub.credentials)", path.display())]
    NoCredentials {
        /// The file.
        path: PathBuf,
    },
}

/// What holds of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holds {
    /// The section of the settings: nothing is written in its place.
    Section,
    /// What a change wrote.
    Override(HubOverride),
    /// The section of the settings, since it is another one than that in whose place the change wrote this, or once was.
    Ended(HubOverride),
}

/// Returns the hash of the section `[nats.embedded.hub]`: the SHA-256, in hexadecimal, of its settings as JSON; of `null` without one.
#[must_use]
pub fn section_hash(hub: Option<&Hub>) -> String {
    let json = serde_json::to_vec(&hub).expect("settings have string keys only");
    HEXLOWER.encode(&Sha256::digest(json))
}

/// Puts the hub of an override that holds into the settings, and returns what holds.
///
/// # Errors
/// [`OverrideError`]; the settings are unchanged then, so that what can't be read changes nothing.
pub fn apply(settings: &mut Settings, directory: &Path) -> Result<Holds, OverrideError> {
    let path = directory.join(HUB_OVERRIDE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Holds::Section),
        Err(source) => return Err(OverrideError::Read { path, source }),
    };
    let read: HubOverride = serde_json::from_slice(&text).map_err(|source| OverrideError::Malformed {
        path: path.clone(),
        source,
    })?;
    let Some(embedded) = &mut settings.nats.embedded else {
        return Ok(Holds::Ended(read));
    };
    let is_another = section_hash(embedded.hub.as_ref()) != read.section;
    if is_another || ended(&settings.state_dir).contains(&read.change) {
        return Ok(Holds::Ended(read));
    }
    let beside = |name: &String| match Path::new(name).file_name() {
        Some(file) if file == name.as_str() => Ok(directory.join(name)),
        _ => Err(OverrideError::Elsewhere {
            path: path.clone(),
            name: name.clone(),
        }),
    };
    let credentials = match (&read.credentials, &embedded.hub) {
        (Some(name), _) => beside(name)?,
        (None, Some(hub)) => hub.credentials.clone(),
        (None, None) => return Err(OverrideError::NoCredentials { path }),
    };
    let ca = read.ca.as_ref().map(beside).transpose()?;
    embedded.hub = Some(Hub {
        url: read.url.clone(),
        credentials,
        ca,
    });
    Ok(Holds::Override(read))
}

/// The content of [`ENDED`].
#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    /// The changes, the latest last.
    changes: Vec<ChangeId>,
}

/// Returns the changes whose hubs have ended. A file that can't be read names none: rather that than a leaf that leaves the hub which was
/// confirmed.
fn ended(state_dir: &Path) -> Vec<ChangeId> {
    let text = fs::read(state_dir.join(ENDED)).unwrap_or_default();
    let content: Content = serde_json::from_slice(&text).unwrap_or_default();
    content.changes
}

/// Notes that the hub of a change has ended, so that it is not used again where a later system has the section of before.
///
/// # Errors
/// The error of writing the file.
pub fn note_ended(state_dir: &Path, change: ChangeId) -> io::Result<()> {
    let mut changes = ended(state_dir);
    if changes.contains(&change) {
        return Ok(());
    }
    changes.push(change);
    changes.drain(..changes.len().saturating_sub(ENDED_KEPT));
    let path = state_dir.join(ENDED);
    let draft = path.with_extension("new");
    fs::write(&draft, to_json(&Content { changes }))?;
    fs::File::open(&draft)?.sync_all()?;
    fs::rename(&draft, &path)?;
    fs::File::open(state_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(section: &str) -> Settings {
        let text = format!("[nats.embedded]\n{section}");
        Settings::parse(&text).expect("settings")
    }

    const SECTION: &str = "[nats.embedded.hub]\nurl = \"tls://a:7422\"\ncredentials = \"/etc/a.creds\"\n";

    fn write(directory: &Path, section: &str, more: &str) {
        let text = format!(
            r#"{{"version":1,"change":"0193f6b0-4c1e-7000-8000-000000000000","url":"tls://b:7422","section":"{section}"{more}}}"#
        );
        fs::write(directory.join(HUB_OVERRIDE), text).expect("written");
    }

    fn hub(settings: &Settings) -> Option<&Hub> {
        settings
            .nats
            .embedded
            .as_ref()
            .and_then(|embedded| embedded.hub.as_ref())
    }

    #[test]
    fn an_override_holds_until_the_section_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut plain = settings(SECTION);
        let hash = section_hash(hub(&plain));
        assert_eq!(
            apply(&mut plain, dir.path()).expect("nothing there"),
            Holds::Section
        );
        assert_eq!(plain, settings(SECTION));

        write(dir.path(), &hash, r#","ca":"x.pem","credentials":"x.creds""#);
        let mut moved = settings(SECTION);
        assert!(matches!(apply(&mut moved, dir.path()), Ok(Holds::Override(_))));
        let new = hub(&moved).expect("a hub");
        assert_eq!(new.url, "tls://b:7422");
        assert_eq!(new.credentials, dir.path().join("x.creds"));
        assert_eq!(new.ca, Some(dir.path().join("x.pem")));

        // The credentials of the settings stay; their CA is not used for another hub.
        write(dir.path(), &hash, "");
        let mut moved = settings(&format!("{SECTION}ca = \"/etc/a.pem\"\n"));
        let with_ca = section_hash(hub(&moved));
        assert!(matches!(apply(&mut moved, dir.path()), Ok(Holds::Ended(_))));
        assert_eq!(hub(&moved).expect("a hub").url, "tls://a:7422");
        write(dir.path(), &with_ca, "");
        assert!(matches!(apply(&mut moved, dir.path()), Ok(Holds::Override(_))));
        let new = hub(&moved).expect("a hub");
        assert_eq!(
            (new.credentials.as_path(), &new.ca),
            (Path::new("/etc/a.creds"), &None)
        );
    }

    #[test]
    fn an_override_that_has_ended_is_not_used_again_with_the_section_of_before() {
        let (dir, state) = (
            tempfile::tempdir().expect("a directory"),
            tempfile::tempdir().expect("a directory"),
        );
        let of_before = || {
            let mut settings = settings(SECTION);
            settings.state_dir = state.path().to_owned();
            settings
        };
        let hash = section_hash(hub(&of_before()));
        write(dir.path(), &hash, "");
        let Ok(Holds::Override(written)) = apply(&mut of_before(), dir.path()) else {
            panic!("it holds")
        };
        for _ in 0..2 {
            note_ended(state.path(), written.change).expect("written");
        }
        let mut again = of_before();
        assert_eq!(
            apply(&mut again, dir.path()).expect("read"),
            Holds::Ended(written)
        );
        assert_eq!(hub(&again).expect("a hub").url, "tls://a:7422");
        // Another change counts, and the last ones are kept.
        for number in 1..ENDED_KEPT {
            note_ended(state.path(), ChangeId(uuid::Uuid::from_u128(number as u128))).expect("written");
        }
        assert!(matches!(apply(&mut of_before(), dir.path()), Ok(Holds::Ended(_))));
        note_ended(state.path(), ChangeId(uuid::Uuid::from_u128(99))).expect("written");
        assert!(matches!(
            apply(&mut of_before(), dir.path()),
            Ok(Holds::Override(_))
        ));
        assert_eq!(ended(state.path()).len(), ENDED_KEPT);
        fs::write(state.path().join(ENDED), "{").expect("written");
        assert!(matches!(
            apply(&mut of_before(), dir.path()),
            Ok(Holds::Override(_))
        ));
    }

    #[test]
    fn a_leaf_without_a_hub_can_be_moved_to_its_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut first = settings("");
        write(dir.path(), &section_hash(None), r#","credentials":"x.creds""#);
        assert!(matches!(apply(&mut first, dir.path()), Ok(Holds::Override(_))));
        assert_eq!(hub(&first).expect("a hub").url, "tls://b:7422");
        let mut without = settings("");
        write(dir.path(), &section_hash(None), "");
        assert!(matches!(
            apply(&mut without, dir.path()),
            Err(OverrideError::NoCredentials { .. })
        ));
    }

    #[test]
    fn what_can_not_be_used_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let hash = section_hash(hub(&settings(SECTION)));
        for more in [
            r#","ca":"/etc/passwd""#,
            r#","ca":"../x""#,
            r#","ca":"..""#,
            r#","credentials":"a/b""#,
        ] {
            write(dir.path(), &hash, more);
            let mut unchanged = settings(SECTION);
            let error = apply(&mut unchanged, dir.path());
            assert!(
                matches!(error, Err(OverrideError::Elsewhere { .. })),
                "{more}: {error:?}"
            );
            assert_eq!(unchanged, settings(SECTION));
        }
        fs::write(dir.path().join(HUB_OVERRIDE), "{").expect("written");
        let mut unchanged = settings(SECTION);
        assert!(matches!(
            apply(&mut unchanged, dir.path()),
            Err(OverrideError::Malformed { .. })
        ));
        assert_eq!(unchanged, settings(SECTION));
    }
}

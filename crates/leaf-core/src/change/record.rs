//! The records of changes: `armed.json`, `going-back.json`, `asking.json` and `decided/ID.json`. A reader takes what it knows of a
//! newer one, and keeps the rest.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::{ArmedSystem, WitnessNonce};
use crate::id::{Caller, ChangeId, LeafName, StorePath};

/// The version of the records that this program writes.
pub const VERSION: u32 = 1;

/// The kind of a change of the hub's settings.
pub const KIND_HUB: &str = "hub";

/// The kind of a change of the whole system.
pub const KIND_SYSTEM: &str = "system";

/// A change that is not decided: `armed.json`, and `going-back.json` while the way back is carried out.
///
/// A field of a newer record that this version can't read gets its default value, so that a leaf whose programs went back to older
/// ones can still take the way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// The version of the record; 0 if it has none.
    #[serde(default, deserialize_with = "lenient")]
    pub version: u32,
    /// The change.
    pub id: ChangeId,
    /// The leaf that is changed.
    pub leaf: LeafName,
    /// The kind of change: `hub` or `system`.
    #[serde(default, deserialize_with = "lenient")]
    pub kind: String,
    /// Who asked for it.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub caller: Option<Caller>,
    /// What a witness has to sign.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub nonce: Option<WitnessNonce>,
    /// The id of the boot of the kernel in which it was armed (`/proc/sys/kernel/random/boot_id`). In any other one it goes back.
    #[serde(default, deserialize_with = "lenient")]
    pub boot_id: String,
    /// When it goes back, in milliseconds of the boot clock (`CLOCK_BOOTTIME`, clock_gettime(2)).
    #[serde(default, deserialize_with = "lenient")]
    pub deadline_boot_ms: u64,
    /// When it was armed by the wall clock: for people only.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub armed_at: Option<Timestamp>,
    /// The public keys of the witnesses that may confirm it, as lines of `.pub` files: those of the helper's settings when it was
    /// armed.
    #[serde(default, deserialize_with = "lenient_list")]
    pub witnesses: Vec<String>,
    /// Whether only a person can confirm it.
    #[serde(default, deserialize_with = "lenient")]
    pub unwitnessed: bool,
    /// The way back.
    #[serde(default, deserialize_with = "lenient")]
    pub way_back: WayBack,
    /// The units to restart once all of the change is written.
    #[serde(default, deserialize_with = "lenient_list")]
    pub apply: Vec<String>,
    /// The system, of a change of the kind `system`.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub system: Option<ArmedSystem>,
    /// The fields that this program does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// The way back from a change. It can be taken more than once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayBack {
    /// The files to put back.
    #[serde(default, deserialize_with = "lenient_list")]
    pub files: Vec<SavedFile>,
    /// The units to restart afterwards.
    #[serde(default, deserialize_with = "lenient_list")]
    pub restart: Vec<String>,
    /// The toplevel of the system to activate, if another one was.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub activate: Option<StorePath>,
    /// The fields that this program does not know.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A file to put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFile {
    /// The path of the file.
    pub path: String,
    /// The name of its copy beside `armed.json`; null if it did not exist, and is to be removed. An entry without this field is of a
    /// newer program, and is not read.
    #[serde(deserialize_with = "present")]
    pub saved: Option<String>,
}

/// A question to the witness before a change is armed: `asking.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asking {
    /// The change that is to be armed.
    pub id: ChangeId,
    /// The leaf.
    pub leaf: LeafName,
    /// What the witness has to sign. It is another one than that of the armed change.
    pub nonce: WitnessNonce,
}

/// A change that is decided: `decided/ID.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The change.
    #[serde(flatten)]
    pub armed: Armed,
    /// How it was decided. Without one it was confirmed: the rename of `armed.json` decides, and this is written afterwards.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub outcome: Option<Outcome>,
}

/// How a change was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The decision.
    pub decision: Decision,
    /// Who confirmed it: a caller's name, or the fingerprint of a witness's key (`SHA256:…`).
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub by: Option<String>,
    /// Why it went back.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub why: Option<String>,
    /// When, by the wall clock.
    #[serde(
        default,
        deserialize_with = "lenient",
        skip_serializing_if = "Option::is_none"
    )]
    pub at: Option<Timestamp>,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It was confirmed, and stays.
    Confirmed,
    /// It went back.
    Back,
}

impl Decided {
    /// Returns what became of the change.
    #[must_use]
    pub fn decision(&self) -> Decision {
        self.outcome
            .as_ref()
            .map_or(Decision::Confirmed, |outcome| outcome.decision)
    }
}

/// Reads an option that must be there, be it null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(deserializer)
}

/// Reads a value, or takes the default for one that this program does not understand.
fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(deserializer: D) -> Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// Reads the entries of a list that this program understands.
fn lenient_list<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let Value::Array(entries) = value else {
        return Ok(Vec::new());
    };
    Ok(entries
        .into_iter()
        .filter_map(|entry| serde_json::from_value(entry).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn armed() -> Armed {
        Armed {
            version: VERSION,
            id: "0193f6b0-4c1e-7000-8000-000000000000".parse().expect("an id"),
            leaf: LeafName::new("edge-1").expect("a name"),
            kind: KIND_HUB.to_owned(),
            caller: Some(Caller::new("ann").expect("a caller")),
            nonce: Some(WitnessNonce::from([7; 32])),
            boot_id: "b".to_owned(),
            deadline_boot_ms: 120_000,
            armed_at: Some(Timestamp::UNIX_EPOCH),
            witnesses: vec!["ssh-ed25519 AAAA".to_owned()],
            unwitnessed: false,
            way_back: WayBack {
                files: vec![SavedFile {
                    path: "/var/lib/cim-leaf-change/hub.json".to_owned(),
                    saved: None,
                }],
                restart: vec!["leafd.service".to_owned()],
                activate: None,
                more: Map::new(),
            },
            apply: vec!["leafd.service".to_owned()],
            system: None,
            more: Map::new(),
        }
    }

    #[test]
    fn an_armed_change_survives_the_round_trip() {
        let text = serde_json::to_string(&armed()).expect("JSON");
        assert_eq!(serde_json::from_str::<Armed>(&text).expect("a record"), armed());
    }

    #[test]
    fn the_way_back_of_a_newer_record_is_read_and_what_is_unknown_is_kept() {
        let newer = json!({
            "version": 9,
            "id": armed().id,
            "leaf": "edge-1",
            "kind": "firewall",
            "caller": {"name": "ann"},
            "nonce": 5,
            "boot_id": ["b"],
            "deadline_boot_ms": "soon",
            "witnesses": [{"key": "x"}, "ssh-ed25519 AAAA"],
            "unwitnessed": "no",
            "way_back": {
                "files": [{"path": "/etc/a", "saved": "0", "mode": 420}, {"directory": "/etc/b"}, {"path": "/etc/c", "blob": "1"}],
                "restart": ["leafd.service", {"unit": "x"}],
                "commands": [["nft"]],
            },
            "apply": "leafd.service",
            "quorum": 2,
        });
        let read: Armed = serde_json::from_value(newer).expect("it is read");
        assert_eq!((read.version, read.kind.as_str()), (9, "firewall"));
        // What it does not understand makes it go back.
        assert_eq!(
            (read.boot_id.as_str(), read.deadline_boot_ms, read.nonce),
            ("", 0, None)
        );
        let file = SavedFile {
            path: "/etc/a".to_owned(),
            saved: Some("0".to_owned()),
        };
        assert_eq!(read.way_back.files, [file]);
        assert_eq!(read.way_back.restart, ["leafd.service"]);
        assert_eq!(read.witnesses, ["ssh-ed25519 AAAA"]);
        let written = serde_json::to_value(&read).expect("JSON");
        assert_eq!(written["quorum"], 2);
        assert_eq!(written["way_back"]["commands"], json!([["nft"]]));
    }

    #[test]
    fn a_record_without_an_outcome_was_confirmed() {
        let confirmed: Decided =
            serde_json::from_value(serde_json::to_value(armed()).expect("JSON")).expect("a record");
        assert_eq!(confirmed.decision(), Decision::Confirmed);
        let back = Decided {
            armed: armed(),
            outcome: Some(Outcome {
                decision: Decision::Back,
                by: None,
                why: Some("nobody confirmed it in time".to_owned()),
                at: Some(Timestamp::UNIX_EPOCH),
            }),
        };
        let written = serde_json::to_value(&back).expect("JSON");
        assert_eq!(written["outcome"]["decision"], "back");
        assert_eq!(
            serde_json::from_value::<Decided>(written).expect("a record"),
            back
        );
    }
}

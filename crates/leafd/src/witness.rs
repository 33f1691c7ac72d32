//! `leafd witness`: asks the hub, over a connection made for it, to sign that the leaf still reaches it, and gives the signature to the
//! helper. It is a process of its own (`leaf-change-witness.service`), since the change may have stopped leafd.
//!
//! It asks for what the helper has written down: the question before a change is armed, or the armed change. It ends when neither is
//! there: the change is decided.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use leaf_bus::embedded::Hub;
use leaf_bus::leaf_node::{FreshDial, FreshDialError};
use leaf_core::change::{Armed, Asking, ConfirmedBy, KIND_SYSTEM, WitnessNonce};
use leaf_core::error::chain;
use leaf_core::fleet::witness::{WitnessReply, WitnessRequest};
use leaf_core::host_op::{HostOp, HostOpError};
use leaf_core::id::{ChangeId, LeafName};
use leaf_core::json::to_json;
use leaf_core::subject;
use leaf_helper::Client;
use leaf_host::contract::{ARMED, ASKING};
use serde::de::DeserializeOwned;
use tokio::time::MissedTickBehavior;

use crate::cli::Witness;
use crate::complaints::Complaints;
use crate::hub_override::{self, Holds, OverrideError};
use crate::settings::{HELPER_SOCKET, Overrides, Settings};

/// The period in which the hub is asked.
const EVERY: Duration = Duration::from_secs(2);
/// How long one try may take, whatever hangs: as long as one server of the hub may. The next try begins with the next server.
const TRY: Duration = Duration::from_secs(15);
/// The longest text of a hub that is logged, in characters.
const MAX_WHY: usize = 300;

/// The directory of leafd's credentials, as its settings name it on NixOS. This process has its own copies.
const CREDENTIALS_OF_LEAFD: &str = "/run/credentials/leafd.service";

/// Why a try did not confirm the change.
#[derive(Debug, thiserror::Error)]
enum TryError {
    /// A record of the change can't be read.
    #[error("can't read {}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The settings can't be used.
    #[error("the settings can't be used")]
    Settings(#[source] leaf_host::settings_file::SettingsError),
    /// The hub of the change can't be used.
    #[error("the hub that the change has written can't be used")]
    Override(#[source] OverrideError),
    /// What this program would dial is not what the change wrote.
    #[error(
        "the hub of the open change is not in use: the settings (nats.embedded.hub) are others than when it was armed; it goes back"
    )]
    NotInUse,
    /// There is no hub.
    #[error("the settings name no hub (nats.embedded.hub)")]
    NoHub,
    /// The record is another leaf's.
    #[error("the open change is one of the leaf {0}, and not of this one")]
    OtherLeaf(LeafName),
    /// The hub gave no answer.
    #[error(transparent)]
    Dial(FreshDialError),
    /// It took too long.
    #[error("the hub did not answer within {} s", TRY.as_secs())]
    TooLong,
    /// The hub does not sign.
    #[error("the hub does not confirm it: {0}")]
    Refused(String),
    /// The reply can't be read.
    #[error("the hub's reply can't be read: update leafd if the hub is newer")]
    Reply,
    /// The helper does not take the signature.
    #[error("leaf-helper does not take the hub's signature")]
    Helper(#[source] HostOpError),
}

/// What is to be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    id: ChangeId,
    leaf: LeafName,
    nonce: WitnessNonce,
    /// Whether a move to another hub is armed, so that only that hub proves anything. Otherwise the hub that holds is asked.
    has_own_hub: bool,
}

/// Asks until nothing is open.
///
/// # Errors
/// When the settings can't be read at the start.
pub fn run(flags: &Witness) -> anyhow::Result<()> {
    // A settings file that can't be read shows in the log of each try; the filter is that of the start.
    let log = Settings::load(Some(&flags.config), &Overrides::default())
        .map_or_else(|_| "info".to_owned(), |settings| settings.log);
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_new(log).unwrap_or_else(|_| "info".into()))
        .with_writer(leaf_host::log::stderr)
        .with_ansi(false)
        .init();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't create the runtime")?
        .block_on(ask(flags));
    Ok(())
}

async fn ask(flags: &Witness) {
    let mut complaints = Complaints::default();
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0.. {
        every.tick().await;
        let tried = match question(&flags.directory) {
            Ok(None) => {
                tracing::info!("no change waits for a witness");
                return;
            }
            Ok(Some(question)) => confirm(flags, &question, number).await.map(|()| question),
            Err(error) => Err(error),
        };
        match tried {
            Ok(question) => {
                tracing::info!(change = %question.id, "the hub has confirmed it over a new connection");
                complaints = Complaints::default();
                // What was asked before a change is armed is followed by the change.
                every.reset_immediately();
            }
            Err(error) => {
                let why = chain(&error);
                if complaints.is_new(&why) {
                    tracing::warn!(
                        error = why,
                        "not confirmed: this is tried again every {} s",
                        EVERY.as_secs()
                    );
                }
            }
        }
    }
}

/// Returns what is to be signed, if anything is.
fn question(directory: &Path) -> Result<Option<Question>, TryError> {
    if let Some(Asking { id, leaf, nonce }) = read(&directory.join(ASKING))? {
        return Ok(Some(Question {
            id,
            leaf,
            nonce,
            has_own_hub: false,
        }));
    }
    let armed: Option<Armed> = read(&directory.join(ARMED))?;
    Ok(armed.and_then(|armed| {
        let nonce = armed.nonce.filter(|_| !armed.unwitnessed)?;
        Some(Question {
            id: armed.id,
            leaf: armed.leaf,
            nonce,
            has_own_hub: armed.kind != KIND_SYSTEM,
        })
    }))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, TryError> {
    let failed = |source| TryError::Record {
        path: path.to_owned(),
        source,
    };
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| failed(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Has the hub sign, and the helper take the signature. `number` is that of the try.
async fn confirm(flags: &Witness, question: &Question, number: usize) -> Result<(), TryError> {
    let mut settings =
        Settings::load(Some(&flags.config), &Overrides::default()).map_err(TryError::Settings)?;
    let leaf = settings.leaf_name().map_err(TryError::Settings)?;
    if question.leaf != leaf {
        return Err(TryError::OtherLeaf(question.leaf.clone()));
    }
    let holds = hub_override::apply(&mut settings, &flags.directory).map_err(TryError::Override)?;
    if question.has_own_hub && !is_of(&holds, question.id) {
        return Err(TryError::NotInUse);
    }
    let hub = settings.nats.embedded.and_then(|embedded| embedded.hub);
    let hub = hub.ok_or(TryError::NoHub)?;
    let mut urls = hub.urls();
    let first = number % urls.len().max(1);
    urls.rotate_left(first);
    let hub = Hub {
        urls,
        credentials: own_copy(hub.credentials, std::env::var_os("CREDENTIALS_DIRECTORY")),
        ca: hub.ca,
    };
    let request = to_json(&WitnessRequest {
        change: question.id,
        nonce: question.nonce,
    });
    let dial = FreshDial::new(&hub, &leaf).map_err(TryError::Dial)?;
    let answer = tokio::time::timeout(TRY, dial.ask(&subject::hub_witness(&leaf), &request)).await;
    let reply = answer.map_err(|_| TryError::TooLong)?.map_err(TryError::Dial)?;
    let signature = match serde_json::from_slice(&reply) {
        Ok(WitnessReply::Signed { signature }) => signature,
        Ok(WitnessReply::Refused { why }) => {
            return Err(TryError::Refused(why.chars().take(MAX_WHY).collect()));
        }
        Ok(WitnessReply::Unknown) | Err(_) => return Err(TryError::Reply),
    };
    let socket = settings.containers.helper_socket;
    let client = Client::new(socket.unwrap_or_else(|| HELPER_SOCKET.into()));
    let op = HostOp::ConfirmChange {
        id: question.id,
        by: ConfirmedBy::Signature(signature),
    };
    client.insist(&op).await.map(drop).map_err(TryError::Helper)
}

/// Returns whether the hub that holds is what a change has written.
fn is_of(holds: &Holds, change: ChangeId) -> bool {
    matches!(holds, Holds::Override(hub) if hub.change == change)
}

/// Returns where this process has the credentials that systemd gives to leafd.
fn own_copy(credentials: PathBuf, directory: Option<std::ffi::OsString>) -> PathBuf {
    match (credentials.strip_prefix(CREDENTIALS_OF_LEAFD), directory) {
        (Ok(name), Some(directory)) => Path::new(&directory).join(name),
        _ => credentials,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_before_a_change_is_armed_comes_first() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(question(dir.path()).expect("nothing there"), None);
        let (first, second) = ("a".repeat(64), "b".repeat(64));
        let id = "0193f6b0-4c1e-7000-8000-000000000000";
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).expect("written");
        write(
            ARMED,
            format!(r#"{{"version":1,"id":"{id}","leaf":"edge","nonce":"{second}"}}"#),
        );
        let armed = question(dir.path()).expect("read").expect("a question");
        assert_eq!(armed.nonce.to_string(), second);
        write(
            ASKING,
            format!(r#"{{"id":"{id}","leaf":"edge","nonce":"{first}"}}"#),
        );
        let asking = question(dir.path()).expect("read").expect("a question");
        assert_eq!(asking.nonce.to_string(), first);
        write(ASKING, "{".to_owned());
        assert!(matches!(question(dir.path()), Err(TryError::Record { .. })));
        std::fs::remove_file(dir.path().join(ASKING)).expect("removed");
        // Only a person can confirm this one.
        write(
            ARMED,
            format!(r#"{{"version":1,"id":"{id}","leaf":"edge","nonce":"{second}","unwitnessed":true}}"#),
        );
        assert_eq!(question(dir.path()).expect("read"), None);
    }

    #[test]
    fn the_credentials_of_leafds_unit_are_this_units_own_copies() {
        let of_leafd = PathBuf::from("/run/credentials/leafd.service/hub.creds");
        let here = Some("/run/credentials/leaf-change-witness.service".into());
        assert_eq!(
            own_copy(of_leafd.clone(), here.clone()),
            Path::new("/run/credentials/leaf-change-witness.service/hub.creds")
        );
        assert_eq!(own_copy(of_leafd.clone(), None), of_leafd);
        assert_eq!(
            own_copy("/etc/hub.creds".into(), here),
            Path::new("/etc/hub.creds")
        );
    }
}

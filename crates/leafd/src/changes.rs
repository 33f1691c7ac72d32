//! Changes that can cut the leaf off: has the helper arm and confirm them, and observes what is on the host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_bus::connect::is_websocket;
use leaf_core::change::{Armed, ConfirmedBy, Decided, HubChange, KIND_SYSTEM, SystemChange};
use leaf_core::command::HubInPlace;
use leaf_core::decide::{ChangeStep, Move, ObservedChanges};
use leaf_core::engine::Input;
use leaf_core::error::chain;
use leaf_core::host_op::{HostOp, HostOpErrorKind, Secret};
use leaf_core::id::ChangeId;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_host::contract::{ARMED, BLESSED, DECIDED, GOING_BACK, PROGRESS};
use rustix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::complaints::Complaints;
use crate::helper::HostHelper;
use crate::hub_override::{self, Holds};
use crate::settings::{Hub, Settings};
use crate::systems::{SystemChanges, SystemLinks};
use crate::wake::Wake;

/// The period in which the directory's times are looked at: two calls of stat(2).
const EVERY: Duration = Duration::from_secs(2);
/// The period in which all is read, whatever those say.
const ALL_EVERY: Duration = Duration::from_secs(60);

/// The hub of this run, and the settings that it comes from.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The state directory of changes.
    directory: PathBuf,
    /// Whether leafd runs the server that connects to the hub.
    has_own_server: bool,
    /// The hash of the section `[nats.embedded.hub]`.
    section: String,
    /// The hub that is used.
    used: Option<Hub>,
    /// What of it a change has written.
    holds: Holds,
}

impl HubSettings {
    /// Puts the hub that a change has written into the settings, if it holds.
    #[must_use]
    pub fn apply(settings: &mut Settings, directory: &Path) -> Self {
        let hub = |settings: &Settings| settings.nats.embedded.as_ref().and_then(|e| e.hub.clone());
        let section = hub_override::section_hash(hub(settings).as_ref());
        let holds = match hub_override::apply(settings, directory) {
            Ok(holds) => holds,
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "the hub that a change has written can't be used: that of the settings is"
                );
                Holds::Section
            }
        };
        match &holds {
            Holds::Section => {}
            Holds::Override(hub) => tracing::info!(
                change = %hub.change,
                url = hub.url,
                "a change has put this hub into the place of that of the settings"
            ),
            Holds::Ended(hub) => tracing::warn!(
                change = %hub.change,
                url = hub.url,
                "the hub that a change had put into the place of that of the settings is not used any more: the settings \
                 (nats.embedded.hub) are others than they were then, or were meanwhile"
            ),
        }
        Self {
            directory: directory.to_owned(),
            has_own_server: settings.nats.embedded.is_some(),
            section,
            used: hub(settings),
            holds,
        }
    }

    /// Returns whether the host may go back to a system with other settings: while a change of the system is open, and in a boot of
    /// another system than the one that runs.
    fn may_have_its_settings_again(&self) -> bool {
        let is_open = [ARMED, GOING_BACK, BLESSED].iter().any(|name| {
            let armed: Option<Armed> = read(&self.directory.join(name)).unwrap_or_default();
            armed.is_some_and(|armed| armed.kind == KIND_SYSTEM)
        });
        is_open || !SystemLinks::default().runs_as_booted()
    }

    /// Notes in leafd's state directory if the hub that a change has written is not used any more: it stays so.
    pub fn note_ended(&self, state_dir: &Path) {
        let Holds::Ended(hub) = &self.holds else { return };
        if self.may_have_its_settings_again() {
            tracing::info!(change = %hub.change, "the system may still go back, and this hub be used again");
            return;
        }
        if let Err(error) = hub_override::note_ended(state_dir, hub.change) {
            tracing::warn!(
                error = chain(&error),
                state_dir = %state_dir.display(),
                "can't note that the hub of a change is not used any more: it would be with the settings of before"
            );
        }
    }
}

/// Has the helper carry out a step.
///
/// # Errors
/// The problem for the sender.
pub async fn carry_out(
    helper: Result<HostHelper, String>,
    hub: HubSettings,
    step: ChangeStep,
) -> Result<(), Problem> {
    let unsupported = |why: String| Problem::new(ProblemCode::Unsupported, why);
    let op = match step {
        ChangeStep::Confirm { id, caller } => HostOp::ConfirmChange {
            id,
            by: ConfirmedBy::Caller(caller),
        },
        ChangeStep::Switch(order) => HostOp::ArmSystem {
            id: order.id,
            caller: order.caller,
            seconds: order.seconds,
            unwitnessed: order.unwitnessed,
            system: Box::new(SystemChange {
                journal_format: leaf_journal::FORMAT,
                ..order.system
            }),
        },
        ChangeStep::Move(_) if !hub.has_own_server => {
            let why = "this leaf connects to a given NATS server (nats.url), and not leafd but that server connects to a hub: change the \
                       `remotes` there, or nats.url in the leaf's settings";
            return Err(unsupported(why.to_owned()));
        }
        ChangeStep::Move(order) => {
            let (id, caller) = (order.id, order.caller.clone());
            let (seconds, unwitnessed) = (order.seconds, order.unwitnessed);
            HostOp::ArmChange {
                id,
                caller,
                seconds,
                unwitnessed,
                hub: Box::new(filled_in(&hub, *order)?),
            }
        }
    };
    let helper = helper.map_err(unsupported)?;
    helper.insist(&op).await.map(drop).map_err(|error| {
        let code = match error.kind {
            // It stands in the way, or is over: not the form of the command.
            HostOpErrorKind::Refused => ProblemCode::Conflict,
            HostOpErrorKind::Unsupported => ProblemCode::Unsupported,
            HostOpErrorKind::NotReady | HostOpErrorKind::Failed | HostOpErrorKind::Interrupted => {
                ProblemCode::Failed
            }
        };
        Problem::new(code, chain(&error))
    })
}

/// Returns the hub's settings of a move, with what the leaf has now for what it leaves out.
fn filled_in(now: &HubSettings, order: Move) -> Result<HubChange, Problem> {
    let invalid = |why: String| Problem::new(ProblemCode::Invalid, why);
    let new = Hub {
        url: order.url.clone(),
        credentials: PathBuf::new(),
        ca: None,
    };
    if let Some(why) = new.problem() {
        return Err(invalid(format!("`url` {why}")));
    }
    if !order.unwitnessed
        && let Some(url) = new.urls().iter().find(|url| is_websocket(url))
    {
        return Err(invalid(format!(
            "`url` has a websocket ({url}), over which a witness can't be asked: with no_witness (leafctl: --no-witness) only a person can \
             confirm the change"
        )));
    }
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| {
            let detail = format!("can't read {}, which the leaf uses now: {error}", path.display());
            Problem::new(ProblemCode::Failed, detail)
        })
    };
    let ca = match (order.ca, &now.used) {
        (Some(ca), _) => Some(ca),
        (None, Some(Hub { ca: Some(path), .. })) => Some(read(path)?),
        (None, _) => None,
    };
    let credentials = match (order.credentials, &now.used, &now.holds) {
        (Some(credentials), _, _) => Some(credentials),
        // Those of the settings stay where they are, so that new ones there are taken up.
        (None, Some(hub), Holds::Override(written)) if written.credentials.is_some() => {
            Some(Secret::new(read(&hub.credentials)?))
        }
        (None, Some(_), _) => None,
        (None, None, _) => {
            let why = "the leaf has no hub yet, so `credentials` are needed (leafctl: --credentials)";
            return Err(invalid(why.to_owned()));
        }
    };
    Ok(HubChange {
        url: order.url,
        ca,
        credentials,
        section: now.section.clone(),
    })
}

/// Observes the host's changes, now and whenever the helper has written something.
///
/// # Errors
/// Never.
pub async fn watch(hub: HubSettings, inputs: mpsc::Sender<Wake>) -> anyhow::Result<()> {
    let mut complaints = Complaints::default();
    let mut every = tokio::time::interval(EVERY);
    let (mut times, mut read_at) = (None, tokio::time::Instant::now());
    loop {
        let tick = every.tick().await;
        let now = [hub.directory.clone(), hub.directory.join(DECIDED)].map(|path| changed_at(&path));
        if times.as_ref() == Some(&now) && tick.duration_since(read_at) < ALL_EVERY {
            continue;
        }
        (times, read_at) = (Some(now), tick);
        match observe(&hub) {
            Ok(seen) => {
                if inputs
                    .send(Input::ChangesObserved(Box::new(seen)).into())
                    .await
                    .is_err()
                {
                    break;
                }
            }
            Err((path, error)) => {
                let error = format!("can't read {}: {error}", path.display());
                if complaints.is_new(&error) {
                    tracing::warn!(error, "changes that can cut the leaf off are not observed");
                }
            }
        }
    }
    std::future::pending().await
}

fn changed_at(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata().and_then(|meta| meta.modified()).ok()
}

/// A file that can't be read.
pub type Unreadable = (PathBuf, std::io::Error);

/// The part of `progress.json` that is looked at.
#[derive(serde::Deserialize)]
struct Progress {
    id: ChangeId,
    step: String,
}

/// Returns what the host has.
fn observe(hub: &HubSettings) -> Result<ObservedChanges, Unreadable> {
    let at = |name: &str| hub.directory.join(name);
    let mut open: Option<Armed> = read(&at(ARMED))?;
    let mut left = open.as_ref().map_or(Duration::ZERO, left_of);
    for other in [BLESSED, GOING_BACK] {
        if let Some(record) = read(&at(other))? {
            (open, left) = (Some(record), Duration::ZERO);
        }
    }
    let decided = decided(at(DECIDED))?;
    let (in_place, is_hub_used) = match &hub.holds {
        Holds::Section => (None, false),
        Holds::Override(hub) => (Some(hub), true),
        Holds::Ended(hub) => (Some(hub), false),
    };
    Ok(ObservedChanges {
        open,
        left,
        decided,
        hub: in_place.map(|hub| HubInPlace {
            change: hub.change,
            url: hub.url.clone(),
        }),
        is_hub_used,
    })
}

/// Returns the changes of the system that the host has records of.
///
/// # Errors
/// The file that can't be read.
pub fn of_the_system(hub: &HubSettings) -> Result<SystemChanges, Unreadable> {
    let seen = observe(hub)?;
    let progress: Option<Progress> = read(&hub.directory.join(PROGRESS))?;
    let id = seen.open.as_ref().map(|open| open.id);
    Ok(SystemChanges {
        is_in_use: !seen.left.is_zero()
            && progress.is_some_and(|progress| Some(progress.id) == id && progress.step == "applied"),
        open: seen.open.map(|armed| (armed, seen.left.as_secs())),
        decided: seen.decided,
    })
}

/// Returns the records of the changes that were decided.
fn decided(directory: PathBuf) -> Result<Vec<Decided>, Unreadable> {
    let mut decided: Vec<Decided> = Vec::new();
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries.filter_map(Result::ok).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err((directory, error)),
    };
    for entry in entries {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            decided.extend(read(&path)?);
        }
    }
    Ok(decided)
}

/// Reads a record. One that is damaged, or that went away meanwhile, is like none.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Unreadable> {
    match std::fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)
            .inspect_err(|error| {
                tracing::warn!(file = %path.display(), error = chain(error), "a record of a change can't be read");
            })
            .ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err((path.to_owned(), error)),
    }
}

/// Returns the time until an armed change goes back: none in another boot than its own.
fn left_of(armed: &Armed) -> Duration {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let now = clock_gettime(ClockId::Boottime);
    let now_ms =
        u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000;
    if boot_id.trim() == armed.boot_id {
        Duration::from_millis(armed.deadline_boot_ms.saturating_sub(now_ms))
    } else {
        Duration::ZERO
    }
}

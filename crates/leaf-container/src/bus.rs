//! The connection to the system bus, and what is asked of systemd over it.
//!
//! A connection that broke is made anew, and asked again for a while: the bus and systemd come back after a restart.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leaf_core::id::ContainerName;
use leaf_host::systemd::bus_path_part;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::time::Instant;
use zbus::connection::Builder;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, fdo};

use crate::LookError;
use crate::unit::{Stage, Unit};
use crate::units::Known;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
pub(crate) const MACHINED: &str = "org.freedesktop.machine1";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// How long one answer may take: systemd is busy while it reloads.
const ANSWER: Duration = Duration::from_secs(20);
/// How long the bus may be away.
const AWAY: Duration = Duration::from_secs(10);
/// How long the first wait for it is; each is twice the one before.
const FIRST_WAIT: Duration = Duration::from_millis(20);

/// What the looks at a leaf's containers share.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bus {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    connection: Option<Connection>,
    /// What is known of runs that are ready: it does not change as long as they are the same.
    known: BTreeMap<ContainerName, Known>,
}

/// A unit as systemd lists it.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) stage: Stage,
}

/// Name, description, load state, active state, sub state, followed unit, path, job's id, job's type, job's path.
type ListedUnit = (
    String,
    String,
    String,
    String,
    String,
    String,
    OwnedObjectPath,
    u32,
    String,
    OwnedObjectPath,
);

/// Returns a connection to the system bus.
pub(crate) async fn connect() -> zbus::Result<Connection> {
    Builder::system().method_timeout(ANSWER).build().await
}

/// Runs what asks to its end, on this thread.
pub(crate) fn block_on<T>(asks: impl Future<Output = T>) -> T {
    Handle::current().block_on(asks)
}

impl Bus {
    /// Asks by a connection, and again by another one as long as the bus or who is asked is away.
    pub(crate) async fn ask<T>(
        &self,
        what: &str,
        ask: impl AsyncFn(&Connection) -> zbus::Result<T>,
    ) -> Result<T, LookError> {
        let deadline = Instant::now() + AWAY;
        let mut wait = FIRST_WAIT;
        loop {
            let answer = match self.connection().await {
                Ok(connection) => ask(&connection).await,
                Err(error) => Err(error),
            };
            let source = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let what = what.to_owned();
            if !is_away(&source) {
                return Err(LookError::Bus { what, source });
            }
            self.shared.lock().await.connection = None;
            if Instant::now() + wait > deadline {
                return Err(LookError::Bus { what, source });
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }

    async fn connection(&self) -> zbus::Result<Connection> {
        let mut shared = self.shared.lock().await;
        if let Some(connection) = shared.connection.as_ref().filter(|c| !c.is_closed()) {
            return Ok(connection.clone());
        }
        let connection = connect().await?;
        shared.connection = Some(connection.clone());
        Ok(connection)
    }

    /// What is known of the run of a container.
    pub(crate) async fn known(&self, name: &ContainerName) -> Option<Known> {
        self.shared.lock().await.known.get(name).cloned()
    }

    /// Remembers what is known of the runs of these containers, or that nothing is.
    pub(crate) async fn remember(&self, runs: Vec<(ContainerName, Option<Known>)>) {
        let known = &mut self.shared.lock().await.known;
        for (name, run) in runs {
            match run {
                Some(run) => drop(known.insert(name, run)),
                None => drop(known.remove(&name)),
            }
        }
    }

    /// Forgets the runs of all other containers.
    pub(crate) async fn keep(&self, names: &[ContainerName]) {
        self.shared
            .lock()
            .await
            .known
            .retain(|name, _| names.contains(name));
    }
}

/// Whether it may work with another connection, or a little later.
fn is_away(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::InputOutput(_) | zbus::Error::Connection(..) | zbus::Error::Handshake(_) => true,
        zbus::Error::FDO(error) => matches!(
            **error,
            fdo::Error::ServiceUnknown(_)
                | fdo::Error::NameHasNoOwner(_)
                | fdo::Error::NoReply(_)
                | fdo::Error::Disconnected(_)
                | fdo::Error::NoServer(_)
                | fdo::Error::IOError(_)
        ),
        // What the bus says while systemd has not come back to it.
        zbus::Error::MethodError(name, ..) => name.as_str().starts_with("org.freedesktop.DBus.Error.Spawn"),
        _ => false,
    }
}

/// Returns the units of these names that systemd has loaded; a name may be a pattern.
pub(crate) async fn list_units(connection: &Connection, names: &[String]) -> zbus::Result<Vec<Listed>> {
    let states: [&str; 0] = [];
    let reply = connection
        .call_method(
            Some(SYSTEMD),
            SYSTEMD_PATH,
            Some(MANAGER),
            "ListUnitsByPatterns",
            &(&states[..], names),
        )
        .await?;
    let units: Vec<ListedUnit> = reply.body().deserialize()?;
    Ok(units
        .into_iter()
        .map(|(name, _, _, active, sub, ..)| Listed {
            stage: Stage::of(&active, &sub),
            name,
        })
        .collect())
}

/// Returns a unit, by all its properties at one moment. One that there is not is down.
pub(crate) async fn unit(connection: &Connection, name: &str) -> zbus::Result<Unit> {
    let path = format!("{SYSTEMD_PATH}/unit/{}", bus_path_part(name));
    // Those of all its interfaces.
    let reply = connection
        .call_method(Some(SYSTEMD), path, Some(PROPERTIES), "GetAll", &"")
        .await?;
    Ok(Unit::of(&reply.body().deserialize()?))
}

/// Returns the first process of a machine, by systemd-machined; nothing where that does not know it, or is not there.
pub(crate) async fn leader(connection: &Connection, name: &ContainerName) -> Option<u32> {
    let path = format!(
        "/org/freedesktop/machine1/machine/{}",
        bus_path_part(name.as_str())
    );
    let reply = connection
        .call_method(
            Some(MACHINED),
            path,
            Some(PROPERTIES),
            "Get",
            &("org.freedesktop.machine1.Machine", "Leader"),
        )
        .await
        .ok()?;
    let leader: OwnedVariant = reply.body().deserialize().ok()?;
    u32::try_from(&*leader).ok().filter(|pid| *pid > 0)
}

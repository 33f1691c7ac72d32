//! Units: their state, and the manager's calls about them.

use jiff::Timestamp;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant};

use super::error::has_no_process;
use super::properties::{Properties, get_all};
use super::{MANAGER, SYSTEMD, SYSTEMD_PATH, Systemd, SystemdError, is_not_found, path_part};

const UNIT: &str = "org.freedesktop.systemd1.Unit";

/// A unit in systemd's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedUnit {
    /// Its name.
    pub name: String,
    /// Its `ActiveState`: `active`, `inactive`, `failed`, `activating`, `deactivating`, `reloading`.
    pub active: String,
    /// Its `SubState`: `running`, `auto-restart`, ….
    pub sub: String,
}

/// Name, description, load state, active state, sub state, followed unit, path, job's id, job's type, job's path.
type ListEntry = (
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

/// The state of a unit of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitState {
    /// Its `LoadState`: `loaded`, `not-found`, `masked`, `bad-setting`, ….
    pub load: String,
    /// Its `ActiveState`.
    pub active: String,
    /// Its `SubState`.
    pub sub: String,
    /// The file that it was read from.
    pub file: String,
    /// Whether its file has changed since it was read.
    pub needs_reload: bool,
    /// The id of its job; 0 if none.
    pub job: u32,
    /// When it last became active, if it did since the host booted.
    pub active_since: Option<Timestamp>,
}

impl UnitState {
    fn of(properties: &Properties) -> Self {
        Self {
            load: properties.text("LoadState").to_owned(),
            active: properties.text("ActiveState").to_owned(),
            sub: properties.text("SubState").to_owned(),
            file: properties.text("FragmentPath").to_owned(),
            needs_reload: properties.is_set("NeedDaemonReload"),
            job: properties.first_number("Job"),
            active_since: properties.time("ActiveEnterTimestamp"),
        }
    }

    /// Returns whether it runs, or is about to run without another request.
    #[must_use]
    pub fn is_up(&self) -> bool {
        !matches!(self.active.as_str(), "inactive" | "failed")
    }
}

/// The last end of a service's main process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEnd {
    /// `success`, `exit-code`, `signal`, `timeout`, `protocol`, `oom-kill`, ….
    pub result: String,
    /// Its exit code, or the number of the signal.
    pub status: i32,
    /// The invocation id of that run: 32 hexadecimal digits.
    pub invocation: String,
}

/// The processes of a unit to signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillWhom {
    /// Its main process.
    Main,
    /// All of them.
    All,
}

/// Returns a property of a transient unit; org.freedesktop.systemd1(5) has their names and types.
///
/// # Panics
/// If the value contains a file descriptor that can't be duplicated.
#[must_use]
pub fn transient_property(name: &str, value: impl Into<Variant<'static>>) -> (String, OwnedVariant) {
    let value = OwnedVariant::try_from(value.into()).expect("only duplicating a file descriptor can fail");
    (name.to_owned(), value)
}

impl Systemd {
    /// Returns systemd's version: 257.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn version(&self) -> Result<u32, SystemdError> {
        self.call("query systemd's version", |connection| async move {
            let manager = get_all(&connection, SYSTEMD, SYSTEMD_PATH, MANAGER).await?;
            let text = manager.text("Version");
            version_in(text).ok_or_else(|| zbus::Error::Failure(format!("its version is {text:?}")))
        })
        .await
    }

    /// Makes systemd reload all units and run its generators.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn reload(&self) -> Result<(), SystemdError> {
        self.call("reload systemd's units", |connection| async move {
            manage(&connection, "Reload", &()).await.map(drop)
        })
        .await
    }

    /// Resets the failed state and the restart counter of a unit. It is not an error if it did not fail or does not
    /// exist.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn reset_failed(&self, unit: &str) -> Result<(), SystemdError> {
        self.call(&format!("reset the failure of {unit}"), |connection| async move {
            match manage(&connection, "ResetFailedUnit", &unit).await {
                Err(e) if is_not_found(&e) => Ok(()),
                other => other.map(drop),
            }
        })
        .await
    }

    /// Sends a signal to processes of a unit, and returns whether there were any.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn kill(&self, unit: &str, whom: KillWhom, signal: i32) -> Result<bool, SystemdError> {
        let whom = match whom {
            KillWhom::Main => "main",
            KillWhom::All => "all",
        };
        self.call(&format!("signal {unit}"), |connection| async move {
            match manage(&connection, "KillUnit", &(unit, whom, signal)).await {
                Err(e) if is_not_found(&e) || has_no_process(&e) => Ok(false),
                other => other.map(|_| true),
            }
        })
        .await
    }

    /// Returns the units of these names that systemd has loaded; a name may be a pattern.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn list_units(&self, names: &[String]) -> Result<Vec<ListedUnit>, SystemdError> {
        let states: [&str; 0] = [];
        self.call("list units", |connection| async move {
            let reply = manage(&connection, "ListUnitsByPatterns", &(&states[..], names)).await?;
            let units: Vec<ListEntry> = reply.body().deserialize()?;
            let listed = |(name, _, _, active, sub, ..): ListEntry| ListedUnit { name, active, sub };
            Ok(units.into_iter().map(listed).collect())
        })
        .await
    }

    /// Removes all jobs that are queued or wait (`systemctl cancel`).
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn cancel_jobs(&self) -> Result<(), SystemdError> {
        self.call("cancel the jobs of systemd", |connection| async move {
            manage(&connection, "ClearJobs", &()).await.map(drop)
        })
        .await
    }

    /// Returns the names of the loaded units that have failed, sorted: also of those that systemd is about to start again after they did.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn failed_units(&self) -> Result<Vec<String>, SystemdError> {
        let (states, names): ([&str; 2], [&str; 0]) = (["failed", "auto-restart"], []);
        let (states, names) = (&states[..], &names[..]);
        let listed = self
            .call("list the units that have failed", |connection| async move {
                let reply = manage(&connection, "ListUnitsByPatterns", &(states, names)).await?;
                let units: Vec<ListEntry> = reply.body().deserialize()?;
                Ok(units
                    .into_iter()
                    .map(|(name, _, _, _, sub, ..)| (name, sub))
                    .collect::<Vec<_>>())
            })
            .await?;
        let mut failed = Vec::new();
        for (name, sub) in listed {
            if sub != "auto-restart" || self.service_end(&name).await?.result != "success" {
                failed.push(name);
            }
        }
        failed.sort_unstable();
        Ok(failed)
    }

    /// Returns the state of a loaded unit; `None` if it is not loaded. Its file is not read.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn loaded_unit(&self, unit: &str) -> Result<Option<UnitState>, SystemdError> {
        self.call(&format!("look up {unit}"), |connection| async move {
            let path = match manage(&connection, "GetUnit", &unit).await {
                Err(e) if is_not_found(&e) => return Ok(None),
                reply => reply?.body().deserialize::<OwnedObjectPath>()?,
            };
            match get_all(&connection, SYSTEMD, path.as_str(), UNIT).await {
                // It was unloaded between the two calls.
                Err(e) if is_not_found(&e) => Ok(None),
                properties => Ok(Some(UnitState::of(&properties?))),
            }
        })
        .await
    }

    /// Returns the state of a unit, which systemd loads from its file if necessary.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn unit(&self, unit: &str) -> Result<UnitState, SystemdError> {
        let path = unit_path(unit);
        let path = path.as_str();
        self.call(&format!("look up {unit}"), |connection| async move {
            // A query of the path loads it once; a call that returns the path would load, unload and load it again.
            let properties = get_all(&connection, SYSTEMD, path, UNIT).await?;
            Ok(UnitState::of(&properties))
        })
        .await
    }

    /// Returns the properties of all interfaces of a unit, which systemd loads from its file if necessary.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn unit_properties(&self, unit: &str) -> Result<Properties, SystemdError> {
        let path = unit_path(unit);
        let path = path.as_str();
        self.call(&format!("look up {unit}"), |connection| async move {
            get_all(&connection, SYSTEMD, path, "").await
        })
        .await
    }

    /// Returns the last end of a service's main process.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn service_end(&self, unit: &str) -> Result<ServiceEnd, SystemdError> {
        let properties = self.unit_properties(unit).await?;
        Ok(ServiceEnd {
            result: properties.text("Result").to_owned(),
            status: properties.signed("ExecMainStatus"),
            invocation: properties.hex("InvocationID"),
        })
    }
}

/// Calls a method of systemd's manager.
pub(super) async fn manage(
    connection: &Connection,
    method: &str,
    arguments: &(impl serde::Serialize + zbus::DynamicType),
) -> zbus::Result<zbus::Message> {
    connection
        .call_method(Some(SYSTEMD), SYSTEMD_PATH, Some(MANAGER), method, arguments)
        .await
}

fn unit_path(unit: &str) -> String {
    format!("{SYSTEMD_PATH}/unit/{}", path_part(unit))
}

/// Parses `257.6-1~deb13u1`, `v258`.
fn version_in(text: &str) -> Option<u32> {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_first_number() {
        assert_eq!(version_in("257.6-1~deb13u1"), Some(257));
        assert_eq!(version_in("v258"), Some(258));
        assert_eq!(version_in("systemd"), None);
    }
}

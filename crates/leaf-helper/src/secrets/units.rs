//! Secrets of units of the host, which systemd asks for at each start of a unit (`LoadCredential=NAME:/run/cim-leaf/secrets.sock`), and
//! which are restarted or reloaded when a secret changes.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixStream;

use leaf_core::error::chain;
use leaf_core::id::{SecretName, UnitName};
use leaf_core::runtime::Runtime;
use leaf_core::secret::{OnUnitChange, SecretUser, allowed_unit};
use leaf_host::contract::SECRETS_SOCKET;
use leaf_host::systemd::{Properties, SystemdError, UnitJob};
use leaf_trust::secret::SecretDocument;

use super::SecretStore;
use crate::Helper;
use crate::error::{Error, Result};
use crate::files::Directory;

/// The end of the names of the marks of secrets whose units have not heard of their change yet.
const MARK: &str = ".changed";
/// One byte more than a credential may have (`CREDENTIAL_SIZE_MAX` of systemd). The answer by which a unit fails to start: the protocol
/// has no other, and an empty credential would pass for a secret.
const TOO_LARGE: usize = 1024 * 1024 + 1;

/// What systemd asks for.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    unit: UnitName,
    secret: SecretName,
}

impl Asked {
    /// Reads the name of the other end of the connection: `HEX/unit/UNIT/ID`, in the abstract namespace (systemd.exec(5),
    /// `LoadCredential=`).
    fn of(name: &[u8]) -> Option<Self> {
        let parts: Vec<&str> = std::str::from_utf8(name).ok()?.split('/').collect();
        match parts[..] {
            [_, "unit", unit, id] => Some(Self {
                unit: UnitName::new(unit).ok()?,
                secret: SecretName::new(id).ok()?,
            }),
            _ => None,
        }
    }
}

/// Answers systemd, which asks for a credential of a unit over a connection: for the program `leaf-helper give-secret`. Whatever fails,
/// the answer is none that a unit could start with.
///
/// # Errors
/// If the unit gets no secret: that of the settings, or why it may not have it.
pub fn give_credential(connection: &UnixStream, store: anyhow::Result<SecretStore>) -> anyhow::Result<()> {
    let given = store
        .and_then(|store| Ok(store.asked(connection)?))
        .and_then(|document| {
            let mut writer = connection;
            Ok(writer.write_all(&document.content)?)
        });
    if given.is_err() {
        refuse_credential(connection);
    }
    given
}

/// Answers systemd so that the unit does not start.
pub fn refuse_credential(connection: &UnixStream) {
    let mut writer = connection;
    // systemd ends the connection at once.
    let _ = writer.write_all(&vec![0; TOO_LARGE]);
}

impl SecretStore {
    fn asked(&self, connection: &UnixStream) -> Result<SecretDocument> {
        let failed = || Error::io::<std::io::Error>("learn who asks");
        let peer = rustix::net::sockopt::socket_peercred(connection.as_fd())
            .map_err(std::io::Error::from)
            .map_err(failed())?;
        if !peer.uid.is_root() {
            return Err(Error::Refused(
                "only systemd may ask for a unit's secret".to_owned(),
            ));
        }
        let address = connection.peer_addr().map_err(failed())?;
        let asked = address.as_abstract_name().and_then(Asked::of).ok_or_else(|| {
            Error::Refused(
                "who asks is not a service that systemd starts, or the ID in its LoadCredential= is not the name of a secret"
                    .to_owned(),
            )
        })?;
        let document = self.decrypted(&asked.secret)?;
        match allowed_unit(&document.users, asked.unit.as_str()) {
            Some(_) => Ok(document),
            None => Err(Error::Refused(format!(
                "the secret {} is not for {}: set it again with `--unit {}`",
                asked.secret, asked.unit, asked.unit
            ))),
        }
    }
}

impl Helper {
    /// Refuses a secret for units on a host that has none.
    pub(super) fn check_units(&self, users: &[SecretUser]) -> Result<()> {
        let names_unit = users.iter().any(|user| matches!(user, SecretUser::Unit { .. }));
        if names_unit && self.settings.runtime != Runtime::Systemd {
            return Err(Error::Unsupported(
                "secrets of units need systemd as PID 1, which this host does not have".to_owned(),
            ));
        }
        Ok(())
    }

    /// Notes which units have to hear of a change of a secret, so that they do after a crash as well.
    pub(super) fn mark_change(directory: &Directory, name: &SecretName, users: &[SecretUser]) -> Result<()> {
        let units = users
            .iter()
            .filter(|user| matches!(user, SecretUser::Unit { .. }));
        let lines: String = units.map(|unit| format!("{unit}\n")).collect();
        if lines.is_empty() {
            return Self::forget_change(directory, name);
        }
        directory.write(&mark(name), lines.as_bytes(), 0o600)
    }

    /// Removes the note of [`mark_change`](Self::mark_change).
    pub(super) fn forget_change(directory: &Directory, name: &SecretName) -> Result<()> {
        directory.remove_file(&mark(name))
    }

    /// Has the units of a secret take up its change, and notes those that could not be told.
    pub(super) async fn take_up_change(
        &self,
        directory: &Directory,
        name: &SecretName,
        users: &[SecretUser],
    ) -> Result<()> {
        let mut left = Vec::new();
        for user in users {
            let SecretUser::Unit {
                name: unit,
                on_change,
            } = user
            else {
                continue;
            };
            // One that can't be told keeps no other from hearing of it.
            if let Err(error) = self.tell_unit(unit, name, *on_change).await {
                tracing::warn!(%unit, secret = %name, error = chain(&error), "a unit did not hear of the change of its secret");
                // What systemd refuses now it refuses later as well.
                if !matches!(error, SystemdError::Refused { .. }) {
                    left.push(user.clone());
                }
            }
        }
        Self::mark_change(directory, name, &left)
    }

    async fn tell_unit(
        &self,
        unit: &UnitName,
        name: &SecretName,
        on_change: OnUnitChange,
    ) -> std::result::Result<(), SystemdError> {
        if on_change == OnUnitChange::Nothing || self.systemd.loaded_unit(unit.as_str()).await?.is_none() {
            return Ok(());
        }
        let properties = self.systemd.unit_properties(unit.as_str()).await?;
        if !uses(&properties, name) {
            tracing::info!(%unit, secret = %name, "left alone: it has no LoadCredential= of this secret");
            return Ok(());
        }
        let job = match (properties.text("ActiveState"), on_change) {
            // It may have read the former content.
            ("activating", _) => UnitJob::Restart,
            (_, OnUnitChange::Reload) => UnitJob::TryReload,
            _ => UnitJob::TryRestart,
        };
        tracing::info!(%unit, secret = %name, ?job, "its secret has changed");
        self.systemd.begin_job(job, unit.as_str()).await
    }

    /// Has units take up the changes that an earlier helper left between the age file and them.
    pub(super) async fn take_up_left_changes(&self) -> Result<()> {
        let Some(directory) = Directory::open_root(&self.paths.secrets)? else {
            return Ok(());
        };
        for name in super::names_with(&directory, MARK)? {
            let lines = directory.read(&mark(&name))?.unwrap_or_default();
            let users: Vec<SecretUser> = lines.lines().filter_map(|line| line.parse().ok()).collect();
            self.take_up_change(&directory, &name, &users).await?;
        }
        Ok(())
    }
}

/// Returns whether root's own configuration gives a unit this secret. Whoever may set secrets can't restart any other unit.
fn uses(properties: &Properties, name: &SecretName) -> bool {
    let is_it = |(id, path): &(String, String)| *id == name.as_str() && path == SECRETS_SOCKET;
    properties.pairs("LoadCredential").iter().any(is_it)
}

fn mark(name: &SecretName) -> String {
    format!("{name}{MARK}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_read_from_the_name_that_systemd_gives_its_end() {
        let asked = Asked::of(b"9f0a1b2c3d4e5f60/unit/postgresql@main.service/db-password").expect("a unit");
        assert_eq!(asked.unit.as_str(), "postgresql@main.service");
        assert_eq!(asked.secret.as_str(), "db-password");
        for bad in [
            &b""[..],
            b"a/unit/b.service",
            b"a/unit/b.service/c/d",
            b"a/unit/b.service/../c",
            b"a/unit/b.service/c d",
            b"a/unit/b.socket/c",
            b"a/user/b.service/c",
            b"a/unit//c",
            b"a/unit/b.service/\xff",
        ] {
            assert_eq!(Asked::of(bad), None, "{}", bad.escape_ascii());
        }
    }
}

//! The settings file of the agent. Unknown keys are refused, so that a misspelt one is noticed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use leaf_bus::connect::{ConnectSettings, Credentials, Tls, is_websocket};
use leaf_bus::files;
use leaf_bus::identity::is_public_user_key;
use leaf_core::error::chain;
use leaf_core::id::{Caller, LeafName};
use leaf_core::subject;
use leaf_host::settings_file::{self, SettingsError};
use serde::Deserialize;

use crate::witness::read_key;

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The log filter, in the syntax of `tracing`: `info`, `leaf_hub=debug`.
    #[serde(default = "default_log")]
    pub(crate) log: String,
    /// The file with the private key (`ssh-ed25519` of OpenSSH, without a passphrase) with which the agent confirms, as a witness, changes
    /// of leaves that can cut them off. Without one it confirms none.
    #[serde(default)]
    pub(crate) witness_key: Option<PathBuf>,
    /// The connections to the hub's NATS server.
    pub(crate) nats: Nats,
    /// The copies.
    #[serde(default)]
    pub(crate) copies: Copies,
    /// The leaves' users, for `leaf-hub accounts`: the public key of each one's NKEY.
    #[serde(default)]
    pub(crate) leaves: BTreeMap<LeafName, String>,
    /// People, likewise.
    #[serde(default)]
    pub(crate) people: BTreeMap<Caller, String>,
}

/// The connections to the hub's NATS server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nats {
    /// The URL of the server: `nats://127.0.0.1:4222`. Several are separated by commas.
    pub(crate) url: String,
    /// The file with the credentials of the agent's user in the account `FLEET`: a creds file, or the seed of an NKEY.
    pub(crate) fleet_credentials: PathBuf,
    /// The file with the credentials of the agent's user in the account `LINKS`.
    pub(crate) links_credentials: PathBuf,
    /// The trusted CA certificates, in PEM.
    #[serde(default)]
    pub(crate) ca: Option<PathBuf>,
    /// The agent's client certificate, in PEM.
    #[serde(default)]
    pub(crate) cert: Option<PathBuf>,
    /// The key of that certificate, in PEM.
    #[serde(default)]
    pub(crate) key: Option<PathBuf>,
}

/// The copies.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Copies {
    /// The limit of each stream `EVENTS_<leaf>`, in bytes; new events replace the oldest ones.
    pub(crate) max_bytes: u64,
}

impl Default for Copies {
    fn default() -> Self {
        Self { max_bytes: 1 << 30 }
    }
}

fn default_log() -> String {
    "info".to_owned()
}

impl Settings {
    /// Reads and validates a settings file.
    ///
    /// # Errors
    /// [`SettingsError`], which names the place and the valid values.
    pub(crate) fn load(path: &Path) -> Result<Self, SettingsError> {
        let settings: Self = settings_file::read(path)?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), SettingsError> {
        let value = |place, why: &str| Err(SettingsError::value(place, why));
        let nats = &self.nats;
        if nats.url.trim().is_empty() {
            return value("nats.url", "is empty; the form is nats://127.0.0.1:4222");
        }
        if nats.url.split(',').any(is_websocket) {
            return value(
                "nats.url",
                "has a websocket, which leaf-hub can't connect to: write tls://host:4222, the server's port for clients",
            );
        }
        if nats.cert.is_some() != nats.key.is_some() {
            return value("nats", "cert and key go together: set both");
        }
        if nats.fleet_credentials == nats.links_credentials {
            return value(
                "nats.links_credentials",
                "is the file of nats.fleet_credentials: the agent has a user in each of the accounts FLEET and LINKS",
            );
        }
        let leaves = self
            .leaves
            .iter()
            .map(|(name, key)| ("leaves", name.as_str(), key));
        let people = self
            .people
            .iter()
            .map(|(name, key)| ("people", name.as_str(), key));
        let mut seen = BTreeMap::new();
        for (place, name, key) in leaves.chain(people) {
            if !is_public_user_key(key) {
                return value(
                    place,
                    &format!(
                        "the key of {name} is not the public key of a user, which begins with U: `leaf-hub key FILE` prints it"
                    ),
                );
            }
            if let Some(other) = seen.insert(key, name) {
                return value(
                    place,
                    &format!("{other} and {name} have the same key: each needs one of its own"),
                );
            }
        }
        if self.copies.max_bytes < 1 << 20 {
            return value("copies.max_bytes", "must be at least 1048576 (1 MiB)");
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log) {
            return value(
                "log",
                &format!("is not a filter such as info or leaf_hub=debug: {error}"),
            );
        }
        Ok(())
    }

    /// Looks at the files that the settings name, and returns the setting and the error of each that can't be used.
    pub(crate) fn problems_of_files(&self) -> Vec<String> {
        let nats = &self.nats;
        let mut problems = files::problems([
            (
                "nats.fleet_credentials",
                Some(&*nats.fleet_credentials),
                files::check_credentials as files::Check,
            ),
            (
                "nats.links_credentials",
                Some(&nats.links_credentials),
                files::check_credentials,
            ),
            ("nats.ca", nats.ca.as_deref(), files::check_authorities),
            ("nats.cert", nats.cert.as_deref(), files::check_certificate),
            ("nats.key", nats.key.as_deref(), files::check_key),
        ]);
        if let Some(Err(error)) = self.witness_key.as_deref().map(read_key) {
            problems.push(format!("witness_key: {}", chain(&error)));
        }
        problems
    }

    /// Returns the settings of the connection in the account `FLEET`.
    ///
    /// # Errors
    /// [`SettingsError::Read`] if the credentials can't be read.
    pub(crate) fn fleet(&self) -> Result<ConnectSettings, SettingsError> {
        self.connection(&self.nats.fleet_credentials, "leaf-hub (fleet)")
    }

    /// Returns the settings of the connection in the account `LINKS`.
    ///
    /// # Errors
    /// [`SettingsError::Read`] if the credentials can't be read.
    pub(crate) fn links(&self) -> Result<ConnectSettings, SettingsError> {
        self.connection(&self.nats.links_credentials, "leaf-hub (links)")
    }

    fn connection(&self, file: &Path, name: &str) -> Result<ConnectSettings, SettingsError> {
        let text = std::fs::read_to_string(file).map_err(|source| SettingsError::Read {
            path: file.to_owned(),
            source,
        })?;
        // The seed of a user's NKEY is one line that begins with SU (nkeys).
        let credentials = if text.trim_start().starts_with("SU") {
            Credentials::NkeyFile(file.to_owned())
        } else {
            Credentials::File(file.to_owned())
        };
        Ok(ConnectSettings {
            credentials,
            inbox_prefix: subject::inbox_prefix_of_token("hub"),
            tls: Tls {
                ca: self.nats.ca.clone(),
                cert: self.nats.cert.clone(),
                key: self.nats.key.clone(),
                required: false,
            },
            name: name.to_owned(),
            ..ConnectSettings::new(&self.nats.url)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings, String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("a file");
        Settings::load(file.path()).map_err(|error| chain(&error))
    }

    const NATS: &str = "[nats]\nurl = \"nats://127.0.0.1:4222\"\nfleet_credentials = \"/run/a\"\nlinks_credentials = \"/run/b\"\n";

    #[test]
    fn the_server_and_two_users_are_enough() {
        let settings = load(NATS).expect("valid");
        assert_eq!(settings.copies.max_bytes, 1 << 30);
        assert_eq!(settings.log, "info");
    }

    #[test]
    fn each_file_that_can_not_be_used_is_named_with_its_setting() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let text = format!(
            "[nats]\nurl = 'nats://127.0.0.1:4222'\nfleet_credentials = {:?}\nlinks_credentials = {:?}\nca = {:?}\ncert = {:?}\n\
             key = {:?}\n",
            at("fleet"),
            at("links"),
            at("ca"),
            at("cert"),
            at("key")
        );
        std::fs::write(at("fleet"), "-----BEGIN CERTIFICATE-----\n").expect("a file");
        std::fs::write(at("ca"), "no certificate").expect("a file");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("a file");
        let problems = Settings::load(file.path()).expect("valid").problems_of_files();
        let expected = [
            (
                "nats.fleet_credentials: ",
                "is not the credentials of a NATS user",
            ),
            ("nats.links_credentials: ", "can't be read by this user"),
            ("nats.ca: ", "is not a file of certificates"),
            ("nats.cert: ", "can't be read by this user"),
            ("nats.key: ", "can't be read by this user"),
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, (setting, why)) in problems.iter().zip(expected) {
            assert!(problem.starts_with(setting) && problem.contains(why), "{problem}");
        }
    }

    #[test]
    fn each_invalid_setting_is_refused_by_its_name() {
        for (text, problem) in [
            (String::new(), "missing field `nats`"),
            (format!("{NATS}curl = 1\n"), "unknown field `curl`"),
            (
                format!("{NATS}[copies]\nmax_bytes = 7\n"),
                "copies.max_bytes: must be",
            ),
            (format!("{NATS}cert = \"/c\"\n"), "cert and key go together"),
            (format!("log = \"a=b=c\"\n{NATS}"), "log: is not a filter"),
            (NATS.replace("/run/b", "/run/a"), "FLEET and LINKS"),
            (NATS.replace("nats://127.0.0.1:4222", " "), "nats.url: is empty"),
            (
                NATS.replace("nats://127.0.0.1:4222", "tls://a:4222, wss://b:443"),
                "nats.url: has a websocket",
            ),
        ] {
            let error = load(&text).expect_err(problem);
            assert!(error.contains(problem), "{error}");
        }
        let secret = format!("{NATS}[copies]\nmax_bytes = \"x\"\n").replace("nats://", "nats://a:secret@");
        let error = load(&secret).expect_err("a text");
        assert!(error.contains("line 6") && !error.contains("secret"), "{error}");
    }
}

//! Contexts of the `nats` command line: named files with a server's address and a user's credentials
//! (github.com/nats-io/jsm.go, `natscontext`).

use std::path::{Path, PathBuf};

use leaf_core::host_op::Secret;
use leaf_core::subject;
use serde::Deserialize;

use crate::settings::{ConnectSettings, Credentials, split_servers};

/// The server's address if no context sets one.
const DEFAULT_SERVER: &str = "nats://127.0.0.1:4222";

/// The contexts of the leaf on this host: where systemd runs leafd, what it writes for root and the group `leafd`; then what
/// it keeps in its usual state directory, for root.
pub const LOCAL_LEAF: [&str; 2] = [
    "/run/cim-leaf/access/context.json",
    "/var/lib/cim-leaf/context.json",
];

/// Why a context can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// There is no context of this name.
    #[error("context {name:?} does not exist ({}): create it with `nats context add`, or pass a file", path.display())]
    Missing {
        /// The context's name.
        name: String,
        /// The file that it would be in.
        path: PathBuf,
    },
    /// The name has characters that are not allowed in one.
    #[error(
        "{name:?} is not a context's name, which has no '/' and no '..'; give a file with its directory, as in ./context.json"
    )]
    BadName {
        /// The given name.
        name: String,
    },
    /// The file can't be read.
    #[error("can't read the context {}", path.display())]
    Unreadable {
        /// The context's file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is not a context.
    #[error("the context {} is not a context of the nats command line", path.display())]
    Malformed {
        /// The context's file.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// The context sets fields that are not supported.
    #[error("the context {} sets {fields}, which cim-leaf does not support: use credentials (creds), an nkey, user and password, or a token", path.display())]
    Unsupported {
        /// The context's file.
        path: PathBuf,
        /// The fields' names.
        fields: String,
    },
}

/// The fields that are used. [`UNSUPPORTED`] lists fields that must not be set; others are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    url: String,
    creds: String,
    nkey: String,
    cert: String,
    key: String,
    ca: String,
    user: String,
    password: String,
    token: String,
    jetstream_domain: String,
    inbox_prefix: String,
    #[serde(flatten)]
    more: serde_json::Map<String, serde_json::Value>,
}

/// Fields that change the connection and are not supported. Fields for the output of the `nats` command line (colours,
/// prefixes of events) are ignored.
const UNSUPPORTED: [&str; 9] = [
    "nsc",
    "socks_proxy",
    "jetstream_api_prefix",
    "user_jwt",
    "user_seed",
    "windows_cert_store",
    "windows_cert_match",
    "windows_cert_match_by",
    "tls_first",
];

/// Reads a context by its name or file (with a `/`, or ending in `.json`). Without either, reads the selected context;
/// if none is selected, returns a local server without credentials.
///
/// # Errors
/// [`ContextError`].
pub fn load(name_or_file: Option<&str>) -> Result<ConnectSettings, ContextError> {
    let found = load_from(&config_dir(), name_or_file)?;
    Ok(found.unwrap_or_else(|| ConnectSettings::new(DEFAULT_SERVER)))
}

/// Reads the context that is selected with `nats context select`; returns `None` if none is.
///
/// # Errors
/// [`ContextError`].
pub fn selected() -> Result<Option<ConnectSettings>, ContextError> {
    load_from(&config_dir(), None)
}

/// Reads the context of the leaf on this host ([`LOCAL_LEAF`]); returns `None` if there is none.
///
/// # Errors
/// [`ContextError::Unreadable`] if this user may not read it; [`ContextError`].
pub fn local_leaf() -> Result<Option<ConnectSettings>, ContextError> {
    first_of(&LOCAL_LEAF.map(Path::new))
}

/// Reads the first file that can be read; returns the error of the first that can't be where none can.
fn first_of(files: &[&Path]) -> Result<Option<ConnectSettings>, ContextError> {
    let mut unreadable = None;
    for path in files {
        match std::fs::read_to_string(path) {
            Ok(text) => return read(path, &text).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => {
                unreadable.get_or_insert(ContextError::Unreadable {
                    path: (*path).to_owned(),
                    source,
                });
            }
        }
    }
    unreadable.map_or(Ok(None), Err)
}

/// Reads a context with `dir` instead of `$XDG_CONFIG_HOME/nats`; returns `None` if none is named or selected.
fn load_from(dir: &Path, name_or_file: Option<&str>) -> Result<Option<ConnectSettings>, ContextError> {
    let named = |name: &str| {
        if name.is_empty() || name.contains(['/', '\\']) || name.contains("..") {
            return Err(ContextError::BadName {
                name: name.to_owned(),
            });
        }
        let path = dir.join("context").join(format!("{name}.json"));
        if path.exists() {
            Ok(path)
        } else {
            Err(ContextError::Missing {
                name: name.to_owned(),
                path,
            })
        }
    };
    let path = match name_or_file {
        // Names may have dots, so a name that ends in .json is a file only if that exists.
        Some(file) if file.contains('/') || (file.ends_with(".json") && Path::new(file).exists()) => {
            PathBuf::from(file)
        }
        Some(name) => named(name)?,
        None => {
            let selected = dir.join("context.txt");
            match std::fs::read_to_string(&selected) {
                Ok(name) if !name.trim().is_empty() => named(name.trim())?,
                Ok(_) => return Ok(None),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(source) => {
                    return Err(ContextError::Unreadable {
                        path: selected,
                        source,
                    });
                }
            }
        }
    };
    let text = std::fs::read_to_string(&path).map_err(|source| ContextError::Unreadable {
        path: path.clone(),
        source,
    })?;
    read(&path, &text).map(Some)
}

fn config_dir() -> PathBuf {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .unwrap_or_default()
        .join("nats")
}

fn read(path: &Path, text: &str) -> Result<ConnectSettings, ContextError> {
    let malformed = |source| ContextError::Malformed {
        path: path.to_owned(),
        source,
    };
    let file: File = serde_json::from_str(text).map_err(malformed)?;
    let set: Vec<&str> = UNSUPPORTED
        .into_iter()
        .filter(|field| file.more.get(*field).is_some_and(is_set))
        .collect();
    if !set.is_empty() {
        return Err(ContextError::Unsupported {
            path: path.to_owned(),
            fields: set.join(", "),
        });
    }
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    let file_path = |value: &str| text(value).map(|value| expand(&value));
    let mut settings = ConnectSettings::new(text(&file.url).as_deref().unwrap_or(DEFAULT_SERVER));
    settings.credentials = if let Some(creds) = file_path(&file.creds) {
        Credentials::File(creds)
    } else if let Some(nkey) = file_path(&file.nkey) {
        Credentials::NkeyFile(nkey)
    } else if let Some(token) = text(&file.token) {
        Credentials::Token(Secret::new(token))
    } else if let Some(user) = text(&file.user) {
        Credentials::Password {
            user,
            password: Secret::new(file.password.as_str()),
        }
    } else {
        Credentials::None
    };
    settings.tls.ca = file_path(&file.ca);
    settings.tls.cert = file_path(&file.cert);
    settings.tls.key = file_path(&file.key);
    settings.jetstream_domain = text(&file.jetstream_domain);
    if let Some(prefix) = text(&file.inbox_prefix) {
        prefix
            .trim_end_matches('.')
            .clone_into(&mut settings.inbox_prefix);
    }
    Ok(settings)
}

impl ConnectSettings {
    /// Replaces the context's servers (separated by commas) and credentials file. The inbox prefix follows from the
    /// user's name in the credentials.
    #[must_use]
    pub fn overridden(mut self, servers: Option<&str>, credentials: Option<&Path>) -> Self {
        if let Some(servers) = servers {
            self.servers = split_servers(servers);
        }
        if let Some(path) = credentials {
            self.credentials = Credentials::File(path.to_owned());
            if let Some(caller) = crate::credentials::caller(&self.credentials) {
                self.inbox_prefix = subject::inbox_prefix(&caller);
            }
        }
        self
    }
}

/// Whether a field is set: not `false`, `""`, `null` or an empty list.
fn is_set(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null | serde_json::Value::Bool(false) => false,
        serde_json::Value::String(text) => !text.is_empty(),
        serde_json::Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}

/// Replaces `~/` by the home directory, as the `nats` command line does.
fn expand(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConnectSettings, ContextError> {
        read(Path::new("x.json"), text)
    }

    #[test]
    fn every_supported_field_is_taken() {
        let settings = parse(
            r#"{"description":"d","url":"nats://a:1,tls://b:2","token":"","user":"","password":"","creds":"/c.creds",
                "nkey":"","cert":"/c","key":"/k","ca":"/ca","nsc":"","jetstream_domain":"hub","jetstream_api_prefix":"",
                "jetstream_event_prefix":"","inbox_prefix":"_INBOX.admin","user_jwt":"","color_scheme":"blue","tls_first":false}"#,
        )
        .expect("a context");
        assert_eq!(settings.servers, ["nats://a:1", "tls://b:2"]);
        assert_eq!(settings.credentials, Credentials::File("/c.creds".into()));
        assert_eq!(settings.caller().map(String::from).as_deref(), Some("admin"));
        assert_eq!(settings.jetstream_domain.as_deref(), Some("hub"));
        assert_eq!(settings.tls.ca, Some("/ca".into()));
        assert_eq!(
            (settings.tls.cert, settings.tls.key),
            (Some("/c".into()), Some("/k".into()))
        );
    }

    #[test]
    fn other_credentials_and_none_are_taken() {
        let credentials = |text| parse(text).expect("a context").credentials;
        assert_eq!(credentials("{}"), Credentials::None);
        assert_eq!(
            credentials(r#"{"nkey":"/n"}"#),
            Credentials::NkeyFile("/n".into())
        );
        assert_eq!(
            credentials(r#"{"token":"t"}"#),
            Credentials::Token(Secret::new("t"))
        );
        let password = Secret::new("p");
        let user = "u".to_owned();
        assert_eq!(
            credentials(r#"{"user":"u","password":"p"}"#),
            Credentials::Password { user, password }
        );
        assert_eq!(parse("{}").expect("a context").servers, [DEFAULT_SERVER]);
    }

    #[test]
    fn unsupported_fields_and_invalid_files_are_reported() {
        let error = parse(r#"{"nsc":"nsc://o/a/u","socks_proxy":"x"}"#).expect_err("not supported");
        assert!(error.to_string().contains("nsc, socks_proxy"), "{error}");
        assert!(matches!(parse("[]"), Err(ContextError::Malformed { .. })));
        assert!(matches!(
            parse(r#"{"url":7}"#),
            Err(ContextError::Malformed { .. })
        ));
    }

    #[test]
    fn a_context_is_found_by_its_name_as_the_selected_one_and_as_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(load_from(dir.path(), None).expect("none is selected").is_none());
        let at = |name: Option<&str>| load_from(dir.path(), name).map(|found| found.expect("a context"));
        assert!(matches!(at(Some("prod")), Err(ContextError::Missing { .. })));
        for bad in ["..", "a\\b", ""] {
            assert!(
                matches!(at(Some(bad)), Err(ContextError::BadName { .. })),
                "{bad}"
            );
        }
        std::fs::create_dir(dir.path().join("context")).expect("a directory");
        let file = dir.path().join("context/prod.json");
        std::fs::write(&file, r#"{"url":"nats://prod"}"#).expect("written");
        assert_eq!(at(Some("prod")).expect("by name").servers, ["nats://prod"]);
        assert_eq!(at(file.to_str()).expect("by file").servers, ["nats://prod"]);
        std::fs::write(dir.path().join("context.txt"), "prod\n").expect("written");
        let selected = at(None).expect("the selected one");
        assert_eq!(selected.servers, ["nats://prod"]);
        let other = selected.overridden(Some("a,b"), Some(Path::new("/x.creds")));
        assert_eq!(other.servers, ["a", "b"]);
        assert_eq!(other.credentials, Credentials::File("/x.creds".into()));
        std::fs::write(dir.path().join("context.txt"), "gone").expect("written");
        assert!(matches!(at(None), Err(ContextError::Missing { .. })));
    }

    #[test]
    fn the_local_leaf_is_the_first_file_that_can_be_read_and_a_refusal_is_reported() {
        let dir = tempfile::tempdir().expect("a directory");
        let [access, state, directory] =
            ["access.json", "state.json", "directory"].map(|name| dir.path().join(name));
        let found = |files: &[&Path]| first_of(files).map(|found| found.map(|settings| settings.servers));
        assert_eq!(found(&[&access, &state]).expect("there is no leaf"), None);
        std::fs::write(&state, r#"{"url":"nats://state"}"#).expect("written");
        assert_eq!(
            found(&[&access, &state]).expect("the second"),
            Some(vec!["nats://state".to_owned()])
        );
        std::fs::write(&access, r#"{"url":"nats://access"}"#).expect("written");
        assert_eq!(
            found(&[&access, &state]).expect("the first"),
            Some(vec!["nats://access".to_owned()])
        );
        // What can't be read, for root as well.
        std::fs::create_dir(&directory).expect("a directory");
        let error = found(&[&directory, &dir.path().join("none")]).expect_err("unreadable");
        assert!(matches!(error, ContextError::Unreadable { path, .. } if path == directory));
        assert!(found(&[&directory, &state]).expect("the second").is_some());
    }
}

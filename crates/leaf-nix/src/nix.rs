//! The `nix` program: where it is, its version, and the settings that it is run with.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use leaf_core::job::BuildTask;
use leaf_core::job::process::Program;

use crate::NixError;
use crate::build;
use crate::installable::Target;

/// The variables of leafd's environment that Nix reads. No secret is among them: tokens belong in `nix.conf`.
pub const ENVIRONMENT: &[&str] = &[
    "NIX_CONF_DIR",
    "NIX_USER_CONF_FILES",
    "NIX_DATA_DIR",
    "NIX_LOG_DIR",
    "NIX_REMOTE",
    "NIX_STATE_DIR",
    "NIX_STORE_DIR",
    "NIX_SSL_CERT_FILE",
    "GIT_SSL_CAINFO",
];

/// How Nix is run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The `nix` program: a path, or a name that is looked up on `PATH`.
    pub nix: PathBuf,
    /// The directory of the templates, each with a `default.nix` in a directory of its name.
    pub templates_dir: PathBuf,
    /// The static `leaf-init`, given to templates as the argument `leafInit`.
    pub leaf_init: PathBuf,
    /// Nix settings, as `nix.conf` has them, such as `substituters`.
    pub options: BTreeMap<String, String>,
}

impl Settings {
    /// Returns settings with `nix` from the `PATH`, and templates and `leaf-init` in leafd's state directory.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            nix: "nix".into(),
            templates_dir: state_dir.join("templates"),
            leaf_init: state_dir.join("leaf-init"),
            options: BTreeMap::new(),
        }
    }
}

/// Returns the Nix settings without which root can't build on this host: where no daemon runs and the group of build
/// users is missing (as with Debian's `nix-bin`), root builds itself. Empty elsewhere.
#[must_use]
pub fn host_options() -> BTreeMap<String, String> {
    let daemon =
        Path::new("/nix/var/nix/daemon-socket/socket").exists() || std::env::var_os("NIX_REMOTE").is_some();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    if !rustix::process::geteuid().is_root()
        || daemon
        || groups.lines().any(|group| group.starts_with("nixbld:"))
    {
        return BTreeMap::new();
    }
    BTreeMap::from([("build-users-group".to_owned(), String::new())])
}

/// The version of the `nix` program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NixVersion {
    /// The major number: 2.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
    /// The first line that it prints: `nix (Nix) 2.8.0`.
    pub text: String,
}

impl NixVersion {
    pub(crate) fn parse(said: &str) -> Option<Self> {
        let text = said.lines().next()?.trim().to_owned();
        if !text.starts_with("nix ") {
            return None;
        }
        let number = text
            .split_whitespace()
            .rev()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let mut numbers = number
            .split(|c: char| !c.is_ascii_digit())
            .map_while(|part| part.parse().ok());
        Some(Self {
            major: numbers.next()?,
            minor: numbers.next()?,
            text,
        })
    }
}

/// Nix on this host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Nix(Arc<Settings>);

impl Nix {
    /// Returns the Nix of these settings; [`check`](Self::check) tells whether it works.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(settings))
    }

    /// Returns the version of the `nix` program.
    ///
    /// # Errors
    /// [`NixError::NoNix`], [`NixError::NotNix`] or [`NixError::TooOld`].
    pub fn check(&self) -> Result<NixVersion, NixError> {
        let program = &self.0.nix;
        let output = std::process::Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| NixError::NoNix {
                program: program.clone(),
                source,
            })?;
        let said = String::from_utf8_lossy(&output.stdout);
        let version = NixVersion::parse(&said)
            .filter(|_| output.status.success())
            .ok_or_else(|| NixError::NotNix {
                program: program.clone(),
                said: format!("{said}{}", String::from_utf8_lossy(&output.stderr))
                    .chars()
                    .take(300)
                    .collect(),
            })?;
        if (version.major, version.minor) < (2, 8) {
            return Err(NixError::TooOld { found: version.text });
        }
        Ok(version)
    }

    /// Returns the order of a build.
    ///
    /// # Errors
    /// [`NixError::Installable`] or [`NixError::Template`], both the caller's fault.
    pub fn build(&self, task: &BuildTask) -> Result<build::Order, NixError> {
        Ok(build::Order {
            nix: self.0.nix.clone(),
            target: Target::new(&task.installable, &self.0.templates_dir, &self.0.leaf_init)?,
            options: self.0.options.clone(),
        })
    }
}

/// Returns a run of `nix VERB` that prints JSON on its standard output, and its log as JSON on its standard error.
pub(crate) fn program<A: Into<OsString>>(
    nix: &Path,
    options: &BTreeMap<String, String>,
    verb: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Program {
    let common = [
        verb,
        "--json",
        "--extra-experimental-features",
        "nix-command flakes",
        "--log-format",
        "internal-json",
    ];
    let options = options
        .iter()
        .flat_map(|(name, value)| ["--option", name.as_str(), value.as_str()]);
    Program {
        program: nix.to_owned(),
        arguments: common
            .into_iter()
            .chain(options)
            .map(OsString::from)
            .chain(arguments.into_iter().map(Into::into))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_implementations_of_nix_are_read() {
        for (said, major, minor) in [
            ("nix (Nix) 2.8.0\n", 2, 8),
            ("nix (Nix) 2.19pre20231009_f5a5c1e", 2, 19),
            ("nix (Lix, like Nix) 2.91.1\nmore", 2, 91),
            ("nix (Determinate Nix 3.5.2) 2.28.3", 2, 28),
        ] {
            let version = NixVersion::parse(said).expect(said);
            assert_eq!((version.major, version.minor), (major, minor), "{said}");
        }
        assert_eq!(NixVersion::parse("no"), None);
    }
}

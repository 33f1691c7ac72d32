//! The helper's settings file, `helper.toml`, which only root may write. It bounds what a caller may request, whatever
//! the caller says.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::address_pool::AddressPool;
use leaf_core::change::KeptGenerations;
use leaf_core::id::LeafName;
use leaf_host::contract::{CHANGE_DIRECTORY, HostPaths, JOBS_DIRECTORY, SECRETS_DIRECTORY};
use leaf_host::settings_file::{self, ShapeError};
use leaf_trust::ssh_signature::SignerKeyError;
use serde::Deserialize;

use crate::accounts::{self, AccountError};
use crate::job::Jobs;
use crate::secrets::SecretStore;
use crate::service::Serving;
use crate::settings::{HOST_KEY, MissingProgram, Settings};
use crate::{Changes, Helper, Systems};

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The leaf's name; by default the host name.
    leaf: Option<LeafName>,
    /// The user that leafd runs as: only processes of this user and of root may call.
    #[serde(default = "default_client")]
    client: String,
    /// The group that may observe the containers; by default the client's own.
    observers: Option<String>,
    /// The static program `leaf-init`; by default the one beside this program.
    leaf_init: Option<PathBuf>,
    /// The address pool of the leaf and its containers.
    #[serde(default)]
    address_pool: AddressPool,
    /// The program `systemd-nspawn`; by default the one on `PATH`.
    nspawn: Option<PathBuf>,
    /// The program `nft`; by default the one on `PATH`.
    nft: Option<PathBuf>,
    /// The directories that containers' binds may be in or below; by default none.
    #[serde(default)]
    bind_folders: Vec<PathBuf>,
    /// The directories that the files of containers' secrets may be in or below; by default none.
    #[serde(default)]
    secret_folders: Vec<PathBuf>,
    /// Whether containers may have the host's users: then who may create one on this leaf may become root on the host.
    #[serde(default)]
    host_users: bool,
    /// The file of the SSH host key (ssh-ed25519, private) that secrets are encrypted to.
    #[serde(default = "default_host_key")]
    host_key: PathBuf,
    /// The time without a caller after which the service exits, in seconds; a new call starts it again. 0: never.
    #[serde(default = "default_idle_seconds")]
    idle_seconds: u64,
    /// The public keys of the witnesses that may confirm a change that can cut the leaf off (ssh-ed25519); by default none.
    #[serde(default)]
    witnesses: Vec<String>,
    /// The settings of switches of the system.
    #[serde(default)]
    system: SystemOf,
    /// The directories of the contract; by default the usual ones.
    #[serde(default)]
    paths: Paths,
    /// The settings of jobs.
    #[serde(default)]
    jobs: JobsOf,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SystemOf {
    /// Whether leafd may have the host's system switched: then who may command that on this leaf is root on the host.
    switch: bool,
    /// The units that must be active in a new system, beside leafd.
    healthy_units: Vec<String>,
    /// Whether the host is rebooted where the system before can't be activated: it boots that.
    reboot_as_last_resort: bool,
    /// The number of the profile's newest generations that a switch keeps, at least 2; by default all.
    keep_generations: Option<u32>,
    /// The number of days for which a switch keeps a generation, at least 1; by default for ever.
    keep_days: Option<u32>,
}

impl Default for SystemOf {
    fn default() -> Self {
        Self {
            switch: false,
            healthy_units: Vec::new(),
            reboot_as_last_resort: true,
            keep_generations: None,
            keep_days: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct JobsOf {
    /// The user that runs them; if it does not exist, this host runs no jobs.
    user: String,
    /// The directory of the jobs' directories.
    #[serde(rename = "folder")]
    directory: PathBuf,
    /// The program `leafd`; by default the one beside this program.
    program: Option<PathBuf>,
    /// Their `PATH`.
    path: String,
    /// Directories that are hidden from them: above all leafd's own.
    hidden: Vec<PathBuf>,
}

impl Default for JobsOf {
    fn default() -> Self {
        Self {
            user: "leaf-job".to_owned(),
            directory: JOBS_DIRECTORY.into(),
            program: None,
            path: "/run/current-system/sw/bin:/usr/local/bin:/usr/bin:/bin".to_owned(),
            hidden: [
                "/etc/cim-leaf",
                "/run/cim-leaf",
                "/run/credentials",
                "/var/cache/cim-leaf",
                "/var/lib/cim-leaf",
                "/var/lib/cim-leaf-containers",
                SECRETS_DIRECTORY,
                CHANGE_DIRECTORY,
                "/var/lib/nixos-containers",
            ]
            .map(PathBuf::from)
            .to_vec(),
        }
    }
}

fn default_client() -> String {
    "leafd".to_owned()
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Paths {
    roots: Option<PathBuf>,
    confs: Option<PathBuf>,
    gc_roots: Option<PathBuf>,
    state: Option<PathBuf>,
    secrets: Option<PathBuf>,
    run: Option<PathBuf>,
    changes: Option<PathBuf>,
}

fn default_host_key() -> PathBuf {
    HOST_KEY.into()
}

fn default_idle_seconds() -> u64 {
    60
}

/// An error in the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file or directory that the helper relies on is writable for others than root.
    #[error("{} {why}: the helper relies on it, so only root may be able to write to it", path.display())]
    NotRoots {
        /// The file or directory.
        path: PathBuf,
        /// The reason why it is invalid.
        why: String,
    },
    /// The file is not valid TOML, or has an unknown key or a value of the wrong type.
    #[error("invalid settings file {}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The place and the error.
        source: ShapeError,
    },
    /// A user or a group does not exist.
    #[error("{} names an unknown user or group", path.display())]
    Account {
        /// The file.
        path: PathBuf,
        /// The user or group.
        source: AccountError,
    },
    /// A witness's key can't be used.
    #[error("witnesses in {} has a key that can't be used", path.display())]
    Witness {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SignerKeyError,
    },
    /// A name is none of a unit.
    #[error("healthy_units in {} names {name:?}, which is not the name of a unit (systemd.unit(5))", path.display())]
    NotAUnit {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// No generation of the system to go back to would be kept.
    #[error("keep_generations in {} must be at least 2, and keep_days at least 1", path.display())]
    TooFewGenerations {
        /// The file.
        path: PathBuf,
    },
    /// A program is missing.
    #[error(transparent)]
    Program(#[from] MissingProgram),
    /// The host name is not a valid leaf name.
    #[error("the host name {name:?} is not a valid leaf name: set leaf in {}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// The host name.
        name: String,
    },
    /// The helper can't find its own program file.
    #[error("can't find the path of this program")]
    Itself(#[source] std::io::Error),
}

/// Reads the settings file, and returns the helper and the settings of its service. A missing file means the defaults.
///
/// # Errors
/// [`ConfigError`].
pub fn load(path: &Path) -> Result<(Helper, Serving), ConfigError> {
    let file = read(path)?;
    let leaf = file.leaf(path)?;
    load_file(path, file, leaf)
}

/// Reads what the settings file says of secrets, and nothing that other operations need: units start early, and on a host that may lack
/// the programs of containers.
///
/// # Errors
/// [`ConfigError`].
pub fn load_secrets(path: &Path) -> Result<SecretStore, ConfigError> {
    let file = read(path)?;
    let leaf = file.leaf(path)?;
    let directory = file
        .paths
        .secrets
        .unwrap_or_else(|| HostPaths::new(&leaf).secrets);
    check_roots(&directory)?;
    Ok(SecretStore {
        leaf,
        directory,
        host_key: file.host_key,
    })
}

fn read(path: &Path) -> Result<File, ConfigError> {
    check_roots(path)?;
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other.map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?,
    };
    settings_file::parse(&text).map_err(|source| ConfigError::Shape {
        path: path.to_owned(),
        source,
    })
}

impl File {
    /// Returns the leaf's name, by default the host's.
    fn leaf(&self, path: &Path) -> Result<LeafName, ConfigError> {
        if let Some(leaf) = &self.leaf {
            return Ok(leaf.clone());
        }
        let name = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .to_lowercase();
        LeafName::new(&name).map_err(|_| ConfigError::Name {
            path: path.to_owned(),
            name,
        })
    }
}

fn load_file(path: &Path, file: File, leaf: LeafName) -> Result<(Helper, Serving), ConfigError> {
    let usual = HostPaths::new(&leaf);
    let account = |source| ConfigError::Account {
        path: path.to_owned(),
        source,
    };
    let client = accounts::user(&file.client).map_err(account)?;
    let observers = match &file.observers {
        Some(group) => accounts::group(group).map_err(account)?,
        None => client.group,
    };
    let changes = file.paths.changes.unwrap_or_else(|| CHANGE_DIRECTORY.into());
    let paths = HostPaths {
        roots: file.paths.roots.unwrap_or(usual.roots),
        confs: file.paths.confs.unwrap_or(usual.confs),
        gc_roots: file.paths.gc_roots.unwrap_or(usual.gc_roots),
        state: file.paths.state.unwrap_or(usual.state),
        secrets: file.paths.secrets.unwrap_or(usual.secrets),
        run: file.paths.run.unwrap_or(usual.run),
    };
    for directory in [
        &paths.roots,
        &paths.confs,
        &paths.gc_roots,
        &paths.state,
        &paths.secrets,
        &paths.run,
        &changes,
    ] {
        check_roots(directory)?;
    }
    let itself = std::env::current_exe().map_err(ConfigError::Itself)?;
    let beside = |name: &str| itself.with_file_name(name);
    let leaf_init = file.leaf_init.unwrap_or_else(|| beside("leaf-init"));
    if let Some(name) = file
        .system
        .healthy_units
        .iter()
        .find(|name| !leaf_core::change::is_unit_name(name))
    {
        return Err(ConfigError::NotAUnit {
            path: path.to_owned(),
            name: name.clone(),
        });
    }
    let (newest, days) = (file.system.keep_generations, file.system.keep_days);
    if newest.is_some_and(|newest| newest < 2) || days == Some(0) {
        return Err(ConfigError::TooFewGenerations {
            path: path.to_owned(),
        });
    }
    let systems = if file.system.switch {
        Systems::allowed(
            file.system.healthy_units,
            file.system.reboot_as_last_resort,
            file.jobs.path.clone(),
            (newest.is_some() || days.is_some()).then_some(KeptGenerations { newest, days }),
        )
    } else {
        Systems::default()
    };
    let jobs = Jobs {
        owner: client.user,
        program: file.jobs.program.unwrap_or_else(|| beside("leafd")),
        directory: file.jobs.directory,
        user: file.jobs.user,
        path: file.jobs.path,
        pool: file.address_pool,
        hidden: file.jobs.hidden,
    };
    check_roots(&leaf_init)?;
    check_roots(&jobs.program)?;
    if let Some(above) = jobs.directory.parent() {
        check_roots(above)?;
    }
    let jobs = accounts::user(&jobs.user).is_ok().then_some(jobs);
    let mut settings = Settings::find(itself, leaf_init, file.address_pool)?;
    if let Some(nspawn) = file.nspawn {
        settings.nspawn = nspawn;
    }
    if let Some(nft) = file.nft {
        settings.nft = nft;
    }
    settings.observers = Some(observers);
    settings.bind_folders = file.bind_folders;
    settings.secret_folders = file.secret_folders;
    settings.host_users = file.host_users;
    settings.host_key = file.host_key;
    let changes = Changes::new(changes, Some(observers), &file.witnesses)
        .map_err(|source| ConfigError::Witness {
            path: path.to_owned(),
            source,
        })?
        .with_client(client.user)
        .with_systems(systems);
    let serving = Serving {
        client: client.user,
        jobs,
        idle: Some(Duration::from_secs(file.idle_seconds)).filter(|idle| !idle.is_zero()),
    };
    Ok((Helper::new(leaf, paths, settings).with_changes(changes), serving))
}

/// Checks that only root can replace this file or directory: it, if it exists, and every directory above it must belong
/// to root and be writable only for root (or have the sticky bit, like `/tmp`).
fn check_roots(path: &Path) -> Result<(), ConfigError> {
    let not_roots = |path: &Path, why: &str| ConfigError::NotRoots {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    if !path.is_absolute()
        || path
            .components()
            .any(|part| part == std::path::Component::ParentDir)
    {
        return Err(not_roots(path, "is not an absolute path without '..'"));
    }
    // Each link on the way is checked at its own place and at its target.
    let real = path
        .ancestors()
        .find_map(|above| std::fs::canonicalize(above).ok());
    for path in path
        .ancestors()
        .chain(real.iter().flat_map(|real| real.ancestors()))
    {
        let stat = match std::fs::symlink_metadata(path) {
            Ok(stat) => stat,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let sticky = stat.mode() & 0o1000 != 0 && stat.is_dir();
        if stat.uid() != 0 {
            return Err(not_roots(
                path,
                &format!("belongs to user {}, not to root", stat.uid()),
            ));
        }
        if !stat.is_symlink() && stat.mode() & 0o022 != 0 && !sticky {
            return Err(not_roots(path, "is writable for others than root"));
        }
    }
    Ok(())
}

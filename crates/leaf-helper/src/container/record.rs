//! The record of the helper's settings (`helper.json`), kept beside the containers for the programs that systemd starts
//! without the helper: `leaf-helper run`, and the generator at boot. Only root may write it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use leaf_core::address_pool::AddressPool;
use leaf_core::id::LeafName;
use leaf_core::runtime::Runtime;
use leaf_host::contract::HostPaths;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::settings::HOST_KEY;
use crate::{Helper, Settings};

/// The file's name, which is not a valid container name.
pub(crate) const FILE: &str = "helper.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    leaf: LeafName,
    roots: PathBuf,
    confs: PathBuf,
    gc_roots: PathBuf,
    state: PathBuf,
    run: PathBuf,
    runtime: Runtime,
    program: PathBuf,
    leaf_init: PathBuf,
    nspawn: PathBuf,
    nft: PathBuf,
    pool: AddressPool,
    observers: Option<u32>,
    bind_folders: Vec<PathBuf>,
    secret_folders: Vec<PathBuf>,
    /// Records from before this have none.
    #[serde(default)]
    host_users: bool,
    /// Records of earlier versions lack it.
    #[serde(default)]
    secrets: Option<PathBuf>,
    #[serde(default)]
    host_key: Option<PathBuf>,
}

impl Helper {
    /// Returns the path of this helper's record.
    pub(crate) fn record(&self) -> PathBuf {
        self.paths.state.join(FILE)
    }

    /// Writes the record if it is missing or has changed.
    pub(crate) fn keep_record(&self) -> Result<()> {
        let Self {
            leaf,
            paths,
            settings,
            ..
        } = self.clone();
        let record = Record {
            leaf,
            roots: paths.roots,
            confs: paths.confs,
            gc_roots: paths.gc_roots,
            state: paths.state,
            run: paths.run,
            runtime: settings.runtime,
            program: settings.supervisor,
            leaf_init: settings.leaf_init,
            nspawn: settings.nspawn,
            nft: settings.nft,
            pool: settings.pool,
            observers: settings.observers,
            bind_folders: settings.bind_folders,
            secret_folders: settings.secret_folders,
            host_users: settings.host_users,
            secrets: Some(paths.secrets),
            host_key: Some(settings.host_key),
        };
        let bytes = serde_json::to_vec_pretty(&record)
            .map_err(|e| Error::Refused(format!("a path of the settings is not UTF-8: {e}")))?;
        let directory = self.state_directories()?;
        if directory.read(FILE)?.is_some_and(|text| text.as_bytes() == bytes) {
            return Ok(());
        }
        directory.write(FILE, &bytes, 0o600)
    }

    /// Returns the helpers with the settings of the records in the leaves' state directories, which are in this one.
    /// Unusable ones are left out and logged.
    pub(crate) fn all_recorded(leaves: &Path) -> Result<Vec<Self>> {
        let entries = match std::fs::read_dir(leaves) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(Error::io(format!("read {}", leaves.display())))?,
        };
        let mut helpers = Vec::new();
        for entry in entries.flatten() {
            let file = entry.path().join(FILE);
            if !file.exists() {
                continue;
            }
            match Self::recorded(&file) {
                Ok(helper) => helpers.push(helper),
                Err(e) => {
                    let error = leaf_core::error::chain(&e);
                    tracing::error!(file = %file.display(), error, "can't read a leaf's record: its containers are left out");
                }
            }
        }
        Ok(helpers)
    }

    /// Returns the helper with the settings of a record.
    pub(crate) fn recorded(file: &Path) -> Result<Self> {
        let failed = || Error::io(format!("read {}", file.display()));
        let stat = std::fs::symlink_metadata(file).map_err(failed())?;
        if !stat.is_file() || stat.uid() != 0 || stat.mode() & 0o022 != 0 {
            return Err(Error::Refused(format!(
                "{} must be a file that belongs to root and that only root may write to",
                file.display()
            )));
        }
        let text = std::fs::read_to_string(file).map_err(failed())?;
        let record: Record = serde_json::from_str(&text)
            .map_err(|e| Error::Failed(format!("{} is not a helper's record: {e}", file.display())))?;
        let secrets = record.secrets;
        let secrets = secrets.unwrap_or_else(|| HostPaths::new(&record.leaf).secrets);
        Ok(Self::new(
            record.leaf,
            HostPaths {
                secrets,
                roots: record.roots,
                confs: record.confs,
                gc_roots: record.gc_roots,
                state: record.state,
                run: record.run,
            },
            Settings {
                supervisor: record.program,
                leaf_init: record.leaf_init,
                nspawn: record.nspawn,
                nft: record.nft,
                pool: record.pool,
                observers: record.observers,
                runtime: record.runtime,
                bind_folders: record.bind_folders,
                secret_folders: record.secret_folders,
                host_users: record.host_users,
                host_key: record.host_key.unwrap_or_else(|| HOST_KEY.into()),
            },
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_unchanged_and_only_from_a_file_of_root() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let leaf = LeafName::new("edge").expect("a leaf");
        let paths = HostPaths {
            state: directory.path().join("state"),
            ..HostPaths::new(&leaf)
        };
        let settings = Settings {
            observers: Some(7),
            bind_folders: vec!["/srv".into()],
            secret_folders: vec!["/run/secrets".into()],
            host_users: true,
            ..Settings::sample()
        };
        let helper = Helper::new(leaf, paths.clone(), settings.clone());
        helper.keep_record().expect("kept");
        let back = Helper::recorded(&helper.record()).expect("read");
        assert_eq!((back.paths, back.settings), (paths, settings));
        std::os::unix::fs::chown(helper.record(), Some(12), None).expect("an owner");
        assert!(matches!(
            Helper::recorded(&helper.record()),
            Err(Error::Refused(_))
        ));
    }
}

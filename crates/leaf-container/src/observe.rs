//! One look at the containers of a leaf.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use leaf_core::container::{Exit, ForeignContainer, ObservedContainer, ObservedRun};
use leaf_core::host_op::{CONF_DIGEST, RunStatus, conf_marker};
use leaf_core::id::{ContainerName, StorePath};

use crate::{Containers, LookError};

impl Containers {
    /// Returns the containers that this leaf made. Those of others are not among them.
    ///
    /// # Errors
    /// [`LookError`] when a file that is there can't be read.
    pub fn observe(&self) -> Result<BTreeMap<ContainerName, ObservedContainer>, LookError> {
        let mut found = BTreeMap::new();
        let entries = match std::fs::read_dir(&self.paths.confs) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(found),
            other => other.map_err(LookError::read(&self.paths.confs))?,
        };
        for entry in entries {
            let file = entry.map_err(LookError::read(&self.paths.confs))?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".conf"));
            let Some(Ok(name)) = name.map(ContainerName::new) else {
                continue;
            };
            if let Some(container) = self.observe_one(&name)? {
                found.insert(name, container);
            }
        }
        Ok(found)
    }

    /// Returns one container, if there is one of this name that this leaf made.
    ///
    /// # Errors
    /// [`LookError`] when a file that is there can't be read.
    pub fn observe_one(&self, name: &ContainerName) -> Result<Option<ObservedContainer>, LookError> {
        let conf = self.paths.conf(name);
        let text = match std::fs::read(&conf) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(LookError::read(&conf)(e)),
        };
        let marker = conf_marker(&self.leaf);
        if !text.lines().any(|line| line == marker) {
            return Ok(None);
        }
        let toplevel = text
            .lines()
            .find_map(|line| line.strip_prefix("SYSTEM_PATH="))
            .and_then(|path| StorePath::new(path).ok());
        let digest = text
            .lines()
            .find_map(|line| line.strip_prefix(CONF_DIGEST))
            .map(str::to_owned);
        let (run, oom_kills) = self.observe_run(name)?;
        Ok(Some(ObservedContainer {
            name: name.clone(),
            toplevel,
            digest,
            run,
            oom_kills,
        }))
    }

    /// Returns the containers on this host that this leaf did not make, sorted by name.
    ///
    /// # Errors
    /// [`LookError`] when a file that is there can't be read.
    pub fn foreign(&self) -> Result<Vec<ForeignContainer>, LookError> {
        let entries = match std::fs::read_dir(&self.paths.confs) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(LookError::read(&self.paths.confs))?,
        };
        let marker = conf_marker(&self.leaf);
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(LookError::read(&self.paths.confs))?;
            let file = entry.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".conf"));
            let Some(Ok(name)) = name.map(ContainerName::new) else {
                continue;
            };
            let path = entry.path();
            let text = match std::fs::read(&path) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(LookError::read(&path)(e)),
            };
            if text.lines().any(|line| line == marker) {
                continue;
            }
            let value = |key: &str| {
                text.lines()
                    .filter_map(|line| line.split_once('='))
                    .find(|(k, _)| *k == key)
                    .map(|(_, value)| value.trim_matches(['"', '\'']).to_owned())
            };
            let profile = std::path::Path::new("/nix/var/nix/profiles/per-container")
                .join(name.as_str())
                .join("system");
            let toplevel = value("SYSTEM_PATH")
                .or_else(|| std::fs::canonicalize(profile).ok()?.to_str().map(str::to_owned))
                .and_then(|path| StorePath::new(path).ok());
            found.push(ForeignContainer {
                // NixOS links what it declares into the store (nixos-containers.nix).
                declarative: entry.path().is_symlink(),
                running: std::path::Path::new("/run/systemd/machines")
                    .join(name.as_str())
                    .exists(),
                toplevel,
                address: value("LOCAL_ADDRESS").and_then(|a| a.split('/').next()?.parse().ok()),
                host_users: value("PRIVATE_USERS").is_none_or(|users| users == "no"),
                name,
            });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn observe_run(&self, name: &ContainerName) -> Result<(ObservedRun, u64), LookError> {
        // The lock first: a supervisor writes how it ended before it lets go, so what stands below a free lock is
        // its last word.
        let alive = self.is_supervised(name)?;
        let status = self.status(name)?;
        let oom_kills = status.as_ref().map_or(0, |status| status.oom_kills);
        let run = match (alive, status) {
            (
                true,
                Some(RunStatus {
                    started_at,
                    leader_pid: Some(leader_pid),
                    ready_at: Some(ready_at),
                    exit: None,
                    start_digest,
                    ..
                }),
            ) => ObservedRun::Running {
                leader_pid,
                started_at,
                start_digest: Some(start_digest).filter(|digest| !digest.is_empty()),
                ready_after_ms: u64::try_from(ready_at.duration_since(started_at).as_millis()).unwrap_or(0),
            },
            (_, Some(RunStatus { exit: Some(exit), .. })) => ObservedRun::Exited(exit),
            (true, _) => ObservedRun::Starting,
            (false, Some(_)) => ObservedRun::Exited(Exit::Lost),
            (false, None) => ObservedRun::Stopped,
        };
        Ok((run, oom_kills))
    }

    fn is_supervised(&self, name: &ContainerName) -> Result<bool, LookError> {
        let path = self.paths.lock(name);
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(LookError::read(&path)(e)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(LookError::read(&path)(e.into())),
        }
    }

    fn status(&self, name: &ContainerName) -> Result<Option<RunStatus>, LookError> {
        let path = self.paths.status(name);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| LookError::Status { path, source }),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(LookError::read(&path)(e)),
        }
    }
}

//! One look at the containers of a leaf.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use leaf_core::container::{Exit, ObservedContainer, ObservedRun};
use leaf_core::host_op::{SupervisorStatus, conf_marker};
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
        Ok(Some(ObservedContainer {
            name: name.clone(),
            toplevel,
            run: self.observe_run(name)?,
        }))
    }

    fn observe_run(&self, name: &ContainerName) -> Result<ObservedRun, LookError> {
        // The lock first: a supervisor writes how it ended before it lets go, so what stands below a free lock is
        // its last word.
        let alive = self.is_supervised(name)?;
        let status = self.status(name)?;
        Ok(match (alive, status) {
            (
                true,
                Some(SupervisorStatus {
                    started_at,
                    leader_pid: Some(leader_pid),
                    ready_at: Some(ready_at),
                    exit: None,
                    ..
                }),
            ) => ObservedRun::Running {
                leader_pid,
                ready_after_ms: u64::try_from(ready_at.duration_since(started_at).as_millis()).unwrap_or(0),
            },
            (_, Some(SupervisorStatus { exit: Some(exit), .. })) => ObservedRun::Exited(exit),
            (true, _) => ObservedRun::Starting,
            (false, Some(_)) => ObservedRun::Exited(Exit::Lost),
            (false, None) => ObservedRun::Stopped,
        })
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

    fn status(&self, name: &ContainerName) -> Result<Option<SupervisorStatus>, LookError> {
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

//! Observes a container that runs under `leaf-helper supervise`, by its lock and its status.

use std::io::ErrorKind;

use leaf_core::container::{Exit, ObservedRun};
use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use leaf_host::contract::RunStatus;
use leaf_host::{files, lock};

use crate::conf::read_if_any;
use crate::{Containers, ObserveError};

impl Containers {
    /// Returns its run state and the number of its processes killed for lack of memory, as recorded by its supervisor.
    pub(crate) fn supervised_run(&self, name: &ContainerName) -> Result<(ObservedRun, u64), ObserveError> {
        // The lock is read first: a supervisor records the end before it releases the lock, so the status with a free
        // lock is final.
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
                    last_update,
                    ..
                }),
            ) => ObservedRun::Running {
                leader_pid,
                started_at,
                start_digest: Some(start_digest).filter(|digest| !digest.is_empty()),
                ready_after_ms: u64::try_from(ready_at.duration_since(started_at).as_millis()).unwrap_or(0),
                last_update: last_update.map(Box::new),
            },
            (_, Some(RunStatus { exit: Some(exit), .. })) => ObservedRun::Exited(exit),
            (true, _) => ObservedRun::Starting,
            (false, Some(_)) => ObservedRun::Exited(Exit::Lost),
            (false, None) => ObservedRun::Stopped,
        };
        Ok((run, oom_kills))
    }

    /// Checks that what the helper records of a container's runs can be read.
    ///
    /// # Errors
    /// [`ObserveError`] about the file that can't.
    pub(crate) fn recorded(&self, name: &ContainerName) -> Result<(), ObserveError> {
        match self.runtime {
            Runtime::Systemd => self.status(name).map(drop),
            Runtime::Nspawn => self.supervised_run(name).map(drop),
        }
    }

    fn is_supervised(&self, name: &ContainerName) -> Result<bool, ObserveError> {
        let path = self.paths.lock(name);
        let file = match files::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(ObserveError::read(&path)(e)),
        };
        lock::is_held(&file).map_err(ObserveError::read(&path))
    }

    /// Returns the status of a container's last run, if it was started since the host booted.
    pub(crate) fn status(&self, name: &ContainerName) -> Result<Option<RunStatus>, ObserveError> {
        let path = self.paths.status(name);
        read_if_any(&path)?
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose()
            .map_err(|source| ObserveError::Status { path, source })
    }
}

//! How a container does that `leaf-helper supervise` runs: by its lock and its status.

use std::io::ErrorKind;

use leaf_core::container::{Exit, ObservedRun};
use leaf_core::id::ContainerName;
use leaf_host::contract::RunStatus;
use leaf_host::lock;

use crate::conf::read_if_any;
use crate::{Containers, ObserveError};

impl Containers {
    /// Whether it runs, and how many of its processes were killed for want of memory, by its supervisor's account.
    pub(crate) fn supervised_run(&self, name: &ContainerName) -> Result<(ObservedRun, u64), ObserveError> {
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

    fn is_supervised(&self, name: &ContainerName) -> Result<bool, ObserveError> {
        let path = self.paths.lock(name);
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(ObserveError::read(&path)(e)),
        };
        lock::is_held(&file).map_err(ObserveError::read(&path))
    }

    /// What the helper wrote of the last run of a container since the host was started, if it was run.
    pub(crate) fn status(&self, name: &ContainerName) -> Result<Option<RunStatus>, ObserveError> {
        let path = self.paths.status(name);
        read_if_any(&path)?
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose()
            .map_err(|source| ObserveError::Status { path, source })
    }
}

//! `status.json`: the status of a container's last run.

use jiff::Timestamp;
use leaf_host::contract::RunStatus;

use crate::Helper;
use crate::container::directories::SHOWN;
use crate::error::{Error, Result};
use crate::files::Directory;

impl Helper {
    /// Returns the status of a container's last run, if it was started since the host booted.
    pub(crate) fn status(&self, run: &Directory) -> Result<Option<RunStatus>> {
        run.read("status.json")?
            .map(|text| {
                serde_json::from_str(&text).map_err(|e| {
                    Error::Failed(format!(
                        "{}/status.json is not a status: {e}",
                        run.path().display()
                    ))
                })
            })
            .transpose()
    }
}

/// Returns the status of a run that begins now, in this process.
pub(crate) fn fresh_status() -> RunStatus {
    RunStatus {
        supervisor_pid: std::process::id(),
        started_at: Timestamp::now(),
        start_digest: String::new(),
        oom_kills: 0,
        leader_pid: None,
        ready_at: None,
        exit: None,
        error: None,
    }
}

/// Writes the status of a run into the container's run directory.
pub(crate) fn write_status(run: &Directory, status: &RunStatus) -> Result<()> {
    let text = serde_json::to_vec(status).expect("a status has text keys and no failing parts");
    run.write("status.json", &text, SHOWN)
}

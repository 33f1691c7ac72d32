//! `status.json`: the status of a container's last run.

use jiff::Timestamp;
use leaf_core::container::LastUpdate;
use leaf_core::host_op::RunSpec;
use leaf_host::contract::RunStatus;
use serde::{Deserialize, Serialize};

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

/// The file that says why a container is restarted, until its next run takes it into its status.
const RESTART: &str = "restart.json";
/// The maximum size of that reason, in bytes.
const REASON_BYTES: usize = 4096;

#[derive(Serialize, Deserialize)]
struct Restart {
    /// The [digest](RunSpec::start_digest) of the spec of the next run.
    start_digest: String,
    last_update: LastUpdate,
}

/// Records why a container is restarted with this spec.
pub(crate) fn note_restart(run: &Directory, spec: &RunSpec, reason: String) -> Result<()> {
    let mut restart = Restart {
        start_digest: spec.start_digest(),
        last_update: LastUpdate::restart(Timestamp::now(), reason),
    };
    restart.last_update.shorten(REASON_BYTES);
    let text = serde_json::to_vec(&restart).expect("it has text keys and no failing parts");
    run.write(RESTART, &text, 0o600)
}

/// Removes the record of why a container is restarted, and returns it if it is about a run with this spec.
pub(crate) fn take_restart(run: &Directory, spec: &RunSpec) -> Result<Option<LastUpdate>> {
    let Some(text) = run.read(RESTART)? else {
        return Ok(None);
    };
    run.remove_file(RESTART)?;
    let restart = serde_json::from_str::<Restart>(&text).ok();
    let restart = restart.filter(|restart| restart.start_digest == spec.start_digest());
    Ok(restart.map(|restart| restart.last_update))
}

/// Returns the status of a run that begins now, in this process.
pub(crate) fn fresh_status() -> RunStatus {
    RunStatus {
        supervisor_pid: std::process::id(),
        started_at: Timestamp::now(),
        start_digest: String::new(),
        last_update: None,
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

//! Runs jobs as the user `leaf-job`, each in a transient unit of its own, `leaf-job-ID.service`.
//!
//! leafd writes a job's order into the job's directory; the program, the user and the sandbox are fixed here. A job may
//! reach the Nix daemon and the network, but neither leafd's files, nor the helper's socket, nor other jobs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::address_pool::AddressPool;
use leaf_core::host_op::HostOp;
use leaf_core::id::JobId;
use leaf_core::runtime::Runtime;
use leaf_host::contract::job_unit;
use leaf_host::systemd::{KillWhom, OwnedVariant, Systemd, SystemdError, UnitJobOutcome, transient_property};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::files::Directory;

/// The time limit for a job's runner to start.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);
/// The time limit for killed processes to disappear.
const GONE_WITHIN: Duration = Duration::from_secs(20);
/// The maximum number of a job's processes and threads; its memory is not limited.
const MAX_TASKS: u64 = 4096;
/// The maximum number of processes and threads of a program that a caller runs, with its runner.
const MAX_PROGRAM_TASKS: u64 = 1024;

/// The user of a job's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunAs {
    /// The user of all jobs.
    Jobs,
    /// One of its own: it runs what a caller names.
    Own,
}

/// The settings of jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jobs {
    /// The directory of the jobs' directories, which are named by job id.
    pub directory: PathBuf,
    /// The id of the user that creates the directories: leafd's.
    pub owner: u32,
    /// The user that runs the jobs.
    pub user: String,
    /// The program `leafd`, which contains the runner of jobs.
    pub program: PathBuf,
    /// The `PATH` of jobs, for `nix` and `git`.
    pub path: String,
    /// The addresses of the leaf and its containers, which jobs may not reach.
    pub pool: AddressPool,
    /// Directories that jobs must not see.
    pub hidden: Vec<PathBuf>,
}

impl Jobs {
    /// Carries out an operation on a job. Idempotent.
    pub(crate) async fn carry_out(&self, systemd: &Systemd, op: &HostOp) -> Result<()> {
        match op {
            HostOp::StartJob { id } => self.start(systemd, *id, RunAs::Jobs).await,
            HostOp::StartProgram { id } => self.start(systemd, *id, RunAs::Own).await,
            HostOp::StopJob { id, grace_seconds } => {
                let grace = (*grace_seconds).min(crate::MAX_WAIT_SECONDS);
                stop(systemd, *id, Duration::from_secs(grace.into())).await
            }
            HostOp::RemoveJob { id } => self.remove(systemd, *id).await,
            _ => Err(Error::Failed("not an operation on a job".to_owned())),
        }
    }

    /// Opens a job's directory, if it exists. It must have been created by leafd.
    fn open(&self, id: JobId) -> Result<Option<Directory>> {
        let Some(all) = Directory::open_root(&self.directory)? else {
            return Ok(None);
        };
        let Some(own) = all.open(&id.to_string())? else {
            return Ok(None);
        };
        let path = own.path().display().to_string();
        let stat =
            rustix::fs::fstat(own.as_fd()).map_err(Error::io(format!("read the metadata of {path}")))?;
        if stat.st_uid != self.owner {
            return Err(Error::Refused(format!(
                "{path} belongs to user {}, not to leafd's user {}",
                stat.st_uid, self.owner
            )));
        }
        Ok(Some(own))
    }

    async fn start(&self, systemd: &Systemd, id: JobId, user: RunAs) -> Result<()> {
        let directory = self
            .open(id)?
            .ok_or_else(|| Error::Refused(format!("{}/{id} does not exist", self.directory.display())))?;
        if directory.read("order.json")?.is_none() {
            return Err(Error::Refused(format!(
                "{} has no order.json",
                directory.path().display()
            )));
        }
        let unit = job_unit(id);
        check_systemd()?;
        if is_up(systemd, &unit).await? {
            return Ok(());
        }
        // A failed unit prevents the start of another one with its name.
        systemd.reset_failed(&unit).await?;
        let started = systemd
            .start_transient(&unit, &self.properties(id, user), BEGINS_WITHIN)
            .await;
        let outcome = match started {
            // D-Bus went away before the answer, and the call was repeated: the first call started the unit.
            Err(SystemdError::Refused { .. }) if is_up(systemd, &unit).await? => return Ok(()),
            started => started?,
        };
        match outcome {
            UnitJobOutcome::Done => Ok(()),
            UnitJobOutcome::Failed(result) => Err(Error::Failed(format!(
                "its runner did not start ({result}); see: journalctl --unit {unit}"
            ))),
            UnitJobOutcome::TimedOut => Err(Error::Failed(format!(
                "its runner did not start within {} s",
                BEGINS_WITHIN.as_secs()
            ))),
        }
    }

    async fn remove(&self, systemd: &Systemd, id: JobId) -> Result<()> {
        if self.open(id)?.is_none() {
            return Ok(());
        }
        check_systemd()?;
        if is_up(systemd, &job_unit(id)).await? {
            return Err(Error::Failed("it is running; stop it first".to_owned()));
        }
        match Directory::open_root(&self.directory)? {
            Some(all) => all.remove_tree(&id.to_string()),
            None => Ok(()),
        }
    }

    /// Returns the properties of a job's unit (systemd.service(5), systemd.exec(5); types in
    /// org.freedesktop.systemd1(5)).
    fn properties(&self, id: JobId, user: RunAs) -> Vec<(String, OwnedVariant)> {
        let directory = self.directory.join(id.to_string());
        let directory = text(&directory);
        let program = text(&self.program);
        let command = vec![program.clone(), "nix-job".to_owned(), directory.clone()];
        let yes = |name: &str| transient_property(name, true);
        let mut properties = vec![
            transient_property("Description", format!("Nix job {id} of a leaf")),
            transient_property("Type", "notify".to_owned()),
            transient_property("NotifyAccess", "main".to_owned()),
            transient_property("ExecStart", vec![(program, command, false)]),
            transient_property("WorkingDirectory", directory.clone()),
            transient_property(
                "Environment",
                vec![
                    format!("PATH={}", self.path),
                    format!("HOME={directory}/home"),
                    "NIX_REMOTE=daemon".to_owned(),
                    "LANG=C.UTF-8".to_owned(),
                ],
            ),
            transient_property("CollectMode", "inactive-or-failed".to_owned()),
            // SIGTERM goes to the runner only, which ends its children; remaining processes are killed with the unit.
            transient_property("KillMode", "mixed".to_owned()),
            transient_property("TimeoutStopUSec", 30_000_000_u64),
            transient_property("UMask", 0o022_u32),
            transient_property("CapabilityBoundingSet", 0_u64),
            transient_property("AmbientCapabilities", 0_u64),
            transient_property("DevicePolicy", "closed".to_owned()),
            transient_property("ProtectSystem", "strict".to_owned()),
            // With PrivateTmp below: `leaf_host::contract::HIDDEN_FROM_JOBS`.
            transient_property("ProtectHome", "yes".to_owned()),
            transient_property("ProtectProc", "invisible".to_owned()),
            transient_property("ReadWritePaths", vec![directory.clone()]),
            // Only this job's directory is visible.
            transient_property(
                "TemporaryFileSystem",
                vec![(text(&self.directory), "ro,mode=0755".to_owned())],
            ),
            transient_property("BindPaths", vec![(directory.clone(), directory, false, 0_u64)]),
            transient_property(
                "InaccessiblePaths",
                self.hidden
                    .iter()
                    .map(|path| format!("-{}", text(path)))
                    .collect::<Vec<_>>(),
            ),
            transient_property("RestrictNamespaces", 0_u64),
            transient_property(
                "RestrictAddressFamilies",
                (
                    true,
                    ["AF_UNIX", "AF_INET", "AF_INET6"].map(str::to_owned).to_vec(),
                ),
            ),
            transient_property("SystemCallArchitectures", vec!["native".to_owned()]),
            transient_property("SystemCallFilter", (true, vec!["@system-service".to_owned()])),
            // ptrace is in @debug, which is not in @system-service: a job can't trace another job of the same user.
            transient_property("IPAddressDeny", vec![self.pool_addresses()]),
        ];
        properties.extend(match user {
            RunAs::Jobs => vec![
                transient_property("User", self.user.clone()),
                transient_property("Group", self.user.clone()),
                transient_property("TasksMax", MAX_TASKS),
            ],
            // A user that exists only while the unit runs, and that no other unit has meanwhile (systemd.exec(5)). The group lets it
            // into its own directory; the other jobs' are not there.
            RunAs::Own => vec![
                yes("DynamicUser"),
                transient_property("SupplementaryGroups", vec![self.user.clone()]),
                transient_property("TasksMax", MAX_PROGRAM_TASKS),
                transient_property("OOMPolicy", "continue".to_owned()),
            ],
        });
        for name in [
            "NoNewPrivileges",
            "LockPersonality",
            "PrivateDevices",
            "PrivateTmp",
            "PrivateIPC",
            "ProtectClock",
            "ProtectControlGroups",
            "ProtectHostname",
            "ProtectKernelLogs",
            "ProtectKernelModules",
            "ProtectKernelTunables",
            "RemoveIPC",
            "RestrictRealtime",
            "RestrictSUIDSGID",
        ] {
            properties.push(yes(name));
        }
        properties
    }

    /// Returns the address pool in systemd's form: family, address, prefix length.
    fn pool_addresses(&self) -> (i32, Vec<u8>, u32) {
        const AF_INET: i32 = 2;
        let network = self.pool.network();
        let address = network.network().octets().to_vec();
        (AF_INET, address, network.prefix_len().into())
    }
}

/// Stops a job: SIGTERM to its runner and, after the grace time, SIGKILL to the remaining processes.
async fn stop(systemd: &Systemd, id: JobId, grace: Duration) -> Result<()> {
    check_systemd()?;
    let unit = job_unit(id);
    for (whom, signal, patience) in [
        (KillWhom::Main, Signal::TERM, grace),
        (KillWhom::All, Signal::KILL, GONE_WITHIN),
    ] {
        systemd.kill(&unit, whom, signal.as_raw()).await?;
        let deadline = Instant::now() + patience;
        // Checked at least once: a unit that does not exist is stopped.
        loop {
            if !is_up(systemd, &unit).await? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Err(Error::Failed(format!("can't stop {unit}")))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn check_systemd() -> Result<()> {
    match leaf_host::runtime::detect() {
        Runtime::Systemd => Ok(()),
        Runtime::Nspawn => Err(Error::Unsupported(
            "jobs under another user need systemd as PID 1".to_owned(),
        )),
    }
}

/// Returns whether a unit runs or is about to.
async fn is_up(systemd: &Systemd, unit: &str) -> Result<bool> {
    let state = systemd.loaded_unit(unit).await?;
    Ok(state.is_some_and(|state| state.is_up()))
}

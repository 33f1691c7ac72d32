//! Nix jobs as another user: each in a transient unit of its own, `leaf-job-ID.service`.
//!
//! leafd writes a job's order into the job's folder; what is run, by whom and in which sandbox is fixed here. A job may
//! reach the daemon of Nix and the network, but neither leafd's files, nor the helper's socket, nor other jobs.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use leaf_core::decide::AddressPool;
use leaf_core::host_op::{HostOp, HostOpError};
use leaf_core::id::JobId;
use leaf_host::contract::job_unit;
use tokio::time::Instant;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedVariant, Variant};
use zbus_systemd::systemd1::{ManagerProxy, UnitProxy};

use crate::error::{Error, Result};
use crate::files::Folder;

/// How long a job's program may take until it works.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);
/// How long what was killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(20);
/// Memory that all of a job may use is not limited, its processes are.
const MAX_TASKS: u64 = 4096;
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// What jobs are run with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jobs {
    /// Where each job has its folder, by its id.
    pub folder: PathBuf,
    /// The user that makes the folders: leafd's.
    pub owner: u32,
    /// The user that runs the jobs.
    pub user: String,
    /// The program: `leafd`, which has the runner of a job in it.
    pub program: PathBuf,
    /// Where programs are looked up: `nix`, `git`.
    pub path: String,
    /// The addresses of the leaf and its containers, which jobs have no business with.
    pub pool: AddressPool,
    /// Folders that jobs must not see.
    pub hidden: Vec<PathBuf>,
}

impl Jobs {
    /// Carries out one operation on a job. Again is the same as once.
    ///
    /// # Errors
    /// [`HostOpError`], as [`Helper::carry_out`](crate::Helper::carry_out) has it.
    pub(crate) async fn carry_out(&self, op: &HostOp) -> std::result::Result<(), HostOpError> {
        let outcome = match op {
            HostOp::StartJob { id } => self.start(*id).await,
            HostOp::StopJob { id, grace_seconds } => {
                let grace = (*grace_seconds).min(crate::MAX_WAIT_SECONDS);
                stop(*id, Duration::from_secs(grace.into())).await
            }
            HostOp::RemoveJob { id } => self.remove(*id).await,
            _ => Err(Error::Failed("this is no operation on a job".to_owned())),
        };
        outcome.map_err(|e| e.about(op))
    }

    /// Opens a job's folder, if it is there, and is what leafd made.
    fn open(&self, id: JobId) -> Result<Option<Folder>> {
        let Some(all) = Folder::open_root(&self.folder)? else {
            return Ok(None);
        };
        let Some(own) = all.open(&id.to_string())? else {
            return Ok(None);
        };
        let path = own.path().display().to_string();
        let stat = rustix::fs::fstat(own.as_fd()).map_err(Error::io(format!("look at {path}")))?;
        if stat.st_uid != self.owner {
            return Err(Error::Refused(format!(
                "{path} belongs to user {}, and not to leafd's, user {}",
                stat.st_uid, self.owner
            )));
        }
        Ok(Some(own))
    }

    async fn start(&self, id: JobId) -> Result<()> {
        let folder = self
            .open(id)?
            .ok_or_else(|| Error::Refused(format!("{}/{id} is not there", self.folder.display())))?;
        if folder.read("order.json")?.is_none() {
            return Err(Error::Refused(format!(
                "{} has no order.json",
                folder.path().display()
            )));
        }
        let unit = job_unit(id);
        let manager = manager().await?;
        if is_up(&manager, &unit).await? {
            return Ok(());
        }
        // One that failed is in the way of the next of its name.
        match manager.reset_failed_unit(unit.clone()).await {
            Err(e) if is_named(&e, NO_SUCH_UNIT) => {}
            other => other.map_err(said("forget an earlier run"))?,
        }
        // systemd tells of the end of a job whoever asked for it.
        let mut ends = manager
            .receive_job_removed()
            .await
            .map_err(said("wait for its start"))?;
        let begun = manager
            .start_transient_unit(unit.clone(), "fail".to_owned(), self.properties(id), Vec::new())
            .await
            .map_err(said("start the unit"))?;
        let ended = async {
            while let Some(signal) = ends.next().await {
                match signal.args() {
                    Ok(ended) if ended.job == begun => return Some(ended.result),
                    _ => {}
                }
            }
            None
        };
        match tokio::time::timeout(BEGINS_WITHIN, ended).await {
            Ok(Some(result)) if result == "done" => Ok(()),
            Ok(Some(result)) => Err(Error::Failed(format!(
                "its runner did not begin ({result}); see: journalctl --unit {unit}"
            ))),
            // The signal was lost with D-Bus; the unit is the truth.
            Ok(None) if is_up(&crate::job::manager().await?, &unit).await? => Ok(()),
            Ok(None) => Err(Error::Failed("D-Bus went away while it was started".to_owned())),
            Err(_) => Err(Error::Failed(format!(
                "its runner did not begin within {} s",
                BEGINS_WITHIN.as_secs()
            ))),
        }
    }

    async fn remove(&self, id: JobId) -> Result<()> {
        if self.open(id)?.is_none() {
            return Ok(());
        }
        let manager = manager().await?;
        if is_up(&manager, &job_unit(id)).await? {
            return Err(Error::Failed("it runs; stop it first".to_owned()));
        }
        match Folder::open_root(&self.folder)? {
            Some(all) => all.remove_tree(&id.to_string()),
            None => Ok(()),
        }
    }

    /// The unit of a job (systemd.service(5), systemd.exec(5); org.freedesktop.systemd1(5) has their types).
    fn properties(&self, id: JobId) -> Vec<(String, OwnedVariant)> {
        let folder = self.folder.join(id.to_string());
        let folder = text(&folder);
        let program = text(&self.program);
        let command = vec![program.clone(), "nix-job".to_owned(), folder.clone()];
        let yes = |name: &str| property(name, true);
        let mut properties = vec![
            property("Description", format!("Nix job {id} of a leaf")),
            property("Type", "notify".to_owned()),
            property("NotifyAccess", "main".to_owned()),
            property("ExecStart", vec![(program, command, false)]),
            property("User", self.user.clone()),
            property("Group", self.user.clone()),
            property("WorkingDirectory", folder.clone()),
            property(
                "Environment",
                vec![
                    format!("PATH={}", self.path),
                    format!("HOME={folder}/home"),
                    "NIX_REMOTE=daemon".to_owned(),
                    "LANG=C.UTF-8".to_owned(),
                ],
            ),
            property("CollectMode", "inactive-or-failed".to_owned()),
            // The runner is asked to end, and ends what is below it; what is left is killed with the unit.
            property("KillMode", "mixed".to_owned()),
            property("TimeoutStopUSec", 30_000_000_u64),
            property("TasksMax", MAX_TASKS),
            property("UMask", 0o022_u32),
            property("CapabilityBoundingSet", 0_u64),
            property("AmbientCapabilities", 0_u64),
            property("DevicePolicy", "closed".to_owned()),
            property("ProtectSystem", "strict".to_owned()),
            property("ProtectHome", "yes".to_owned()),
            property("ProtectProc", "invisible".to_owned()),
            property("ReadWritePaths", vec![folder.clone()]),
            // Of all jobs only this one's folder is there.
            property(
                "TemporaryFileSystem",
                vec![(text(&self.folder), "ro,mode=0755".to_owned())],
            ),
            property("BindPaths", vec![(folder.clone(), folder, false, 0_u64)]),
            property(
                "InaccessiblePaths",
                self.hidden
                    .iter()
                    .map(|path| format!("-{}", text(path)))
                    .collect::<Vec<_>>(),
            ),
            property("RestrictNamespaces", 0_u64),
            property(
                "RestrictAddressFamilies",
                (
                    true,
                    ["AF_UNIX", "AF_INET", "AF_INET6"].map(str::to_owned).to_vec(),
                ),
            ),
            property("SystemCallArchitectures", vec!["native".to_owned()]),
            property("SystemCallFilter", (true, vec!["@system-service".to_owned()])),
            // ptrace is in @debug, which is not in @system-service: no job looks into another of the same user.
            property("IPAddressDeny", vec![self.pool_addresses()]),
        ];
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

    /// The pool as systemd has it: family, address, prefix.
    fn pool_addresses(&self) -> (i32, Vec<u8>, u32) {
        const AF_INET: i32 = 2;
        let [first, second, ..] = self.pool.leaf_address().octets();
        (AF_INET, Ipv4Addr::new(first, second, 0, 0).octets().to_vec(), 16)
    }
}

/// Ends a job: a word to its runner, a grace time, then the end of all that is left.
async fn stop(id: JobId, grace: Duration) -> Result<()> {
    const SIGTERM: i32 = 15;
    const SIGKILL: i32 = 9;
    let unit = job_unit(id);
    let manager = manager().await?;
    for (whom, signal, patience) in [("main", SIGTERM, grace), ("all", SIGKILL, GONE_WITHIN)] {
        match manager.kill_unit(unit.clone(), whom.to_owned(), signal).await {
            Err(e) if is_named(&e, NO_SUCH_UNIT) => return Ok(()),
            // It has no such process (any more).
            Err(zbus::Error::MethodError(..)) => {}
            other => other.map_err(said("signal the unit"))?,
        }
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if !is_up(&manager, &unit).await? {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Err(Error::Failed(format!("{unit} can't be ended")))
}

fn property(name: &str, value: impl Into<Variant<'static>>) -> (String, OwnedVariant) {
    let value =
        OwnedVariant::try_from(value.into()).expect("only file descriptors may fail, and there are none");
    (name.to_owned(), value)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

async fn manager() -> Result<ManagerProxy<'static>> {
    // As sd_booted(3) does it.
    if !Path::new("/run/systemd/system").is_dir() {
        return Err(Error::Unsupported(
            "jobs of another user need systemd as PID 1".to_owned(),
        ));
    }
    let connection = Connection::system().await.map_err(said("reach D-Bus"))?;
    ManagerProxy::builder(&connection)
        .cache_properties(CacheProperties::No)
        .build()
        .await
        .map_err(said("reach systemd"))
}

/// Returns whether anything of a unit runs, or is about to.
async fn is_up(manager: &ManagerProxy<'static>, unit: &str) -> Result<bool> {
    let path = match manager.get_unit(unit.to_owned()).await {
        Err(e) if is_named(&e, NO_SUCH_UNIT) => return Ok(false),
        other => other.map_err(said("look for the unit"))?,
    };
    let look = async {
        UnitProxy::builder(manager.inner().connection())
            .path(path)
            .cache_properties(CacheProperties::No)
            .build()
            .await?
            .active_state()
            .await
    };
    match look.await {
        Ok(state) => Ok(!matches!(state.as_str(), "inactive" | "failed")),
        // It went away between the two.
        Err(zbus::Error::MethodError(..)) => Ok(false),
        Err(e) => Err(said("look at the unit")(e)),
    }
}

fn is_named(error: &zbus::Error, wanted: &str) -> bool {
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == wanted)
}

fn said(what: &'static str) -> impl FnOnce(zbus::Error) -> Error {
    move |error| match error {
        zbus::Error::MethodError(name, Some(detail), _) => {
            Error::Failed(format!("can't {what}: {detail} ({name})"))
        }
        other => Error::Failed(format!("can't {what}: {other}")),
    }
}

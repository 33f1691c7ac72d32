//! Starts and stops a container's supervisor, from outside.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::process::Stdio;
use std::time::Duration;

use leaf_core::host_op::RunSpec;
use leaf_core::id::ContainerName;
use rustix::fs::{Mode, OFlags};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::container::create::check_toplevel;
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::nspawn::cgroup::SupervisedCgroup;
use crate::{Helper, nspawn};

/// The time limit for a supervisor to clean up after the container's processes have ended.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// The pause before a container is asked to halt again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The pause before the leader of a container is looked up again.
const NO_INIT_YET: Duration = Duration::from_millis(20);

impl Helper {
    /// Starts a container's supervisor and returns when the container is ready.
    pub(crate) async fn start_supervised(&self, spec: &RunSpec, limit: Duration) -> Result<()> {
        let name = &spec.name;
        check_toplevel(&spec.toplevel)?;
        self.check_inputs_of_start(name, &spec.options)?;
        self.keep_record()?;
        let run = self.run_directory(name)?;
        let mut child = None;
        if !self.is_supervised(name)? {
            // Discards the status of the last run.
            run.remove_file("status.json")?;
            child = Some(self.spawn_supervisor(name)?);
        }
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.status(&run)? {
                if status.exit.is_some() || status.error.is_some() {
                    self.wait_unsupervised(name, CLEAN_UP).await?;
                    let why = status
                        .error
                        .unwrap_or_else(|| "it ended before it was ready".into());
                    return Err(Error::NotReady(why));
                }
                if status.ready_at.is_some() {
                    return Ok(());
                }
            }
            let gone = match &mut child {
                Some(child) => child
                    .try_wait()
                    .map_err(Error::io("wait for the supervisor"))?
                    .is_some(),
                None => !self.is_supervised(name)?,
            };
            // It may have written the reason between the two reads.
            if gone
                && self
                    .status(&run)?
                    .is_none_or(|s| s.exit.is_none() && s.error.is_none())
            {
                self.sweep(name).await?;
                return Err(Error::NotReady(format!(
                    "its supervisor ended by itself: {}",
                    self.supervisor_said(name)
                )));
            }
            if !gone && Instant::now() >= deadline {
                return Err(self.end_unready(name, &run, limit).await);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops a container that was not ready in time, and returns the error.
    async fn end_unready(&self, name: &ContainerName, run: &Directory, limit: Duration) -> Error {
        let ended = async {
            self.end_by_force(name).await?;
            self.sweep(name).await?;
            self.status(run)
        };
        let said = match ended.await {
            Ok(status) => status.and_then(|s| s.error).unwrap_or_default(),
            Err(e) => format!("and it could not be stopped: {}", leaf_core::error::chain(&e)),
        };
        Error::NotReady(format!(
            "it was not ready within {} s and was stopped; {said}",
            limit.as_secs()
        ))
    }

    /// Stops a container: a signal to its init and, after the grace time, SIGKILL to its cgroup.
    pub(crate) async fn stop_supervised(&self, name: &ContainerName, grace: Duration) -> Result<()> {
        if !self.halt(name, grace).await? {
            tracing::warn!(container = %name, "the container did not halt in its grace time, killing it");
            self.end_by_force(name).await?;
        }
        // A supervisor that was killed leaves much to clean up.
        self.sweep(name).await
    }

    /// Asks a container to halt until it does; returns whether it did within the grace time. One request may not be
    /// enough: a container that was just started has no init yet, or its init does not handle signals yet.
    async fn halt(&self, name: &ContainerName, grace: Duration) -> Result<bool> {
        let deadline = Instant::now() + grace;
        while self.is_supervised(name)? {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(false);
            }
            let patience = match self.ask_to_halt(name) {
                Ok(()) => ASK_AGAIN_AFTER,
                Err(e) => {
                    let error = leaf_core::error::chain(&e);
                    tracing::debug!(container = %name, error, "can't ask the init to halt");
                    NO_INIT_YET
                }
            };
            self.wait_unsupervised(name, patience.min(rest)).await?;
        }
        Ok(true)
    }

    fn ask_to_halt(&self, name: &ContainerName) -> Result<()> {
        let status = self.status(&self.run_directory(name)?)?;
        let init = status.and_then(|status| status.leader_pid);
        let init = init.ok_or_else(|| Error::Failed("it has no init yet".into()))?;
        let group = SupervisedCgroup::of(&self.leaf, name)?;
        nspawn::ask_init_to_halt(init, |pid| group.contains(pid))
    }

    /// Kills a container's processes, and its supervisor if it does not end by itself then.
    async fn end_by_force(&self, name: &ContainerName) -> Result<()> {
        let cgroup = SupervisedCgroup::of(&self.leaf, name)?;
        cgroup.kill_payload().await?;
        if !self.wait_unsupervised(name, CLEAN_UP).await? {
            cgroup.kill_all().await?;
            if !self.wait_unsupervised(name, CLEAN_UP).await? {
                return Err(Error::Failed("can't end its supervisor".into()));
            }
        }
        Ok(())
    }

    fn spawn_supervisor(&self, name: &ContainerName) -> Result<Child> {
        let log = self.supervisor_log(name, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
        let stderr = log.try_clone().map_err(Error::io("open the supervisor's log"))?;
        let settings = &self.settings;
        let mut command = Command::new(&settings.supervisor);
        command
            .arg("supervise")
            .arg(name.as_str())
            .arg("--record")
            .arg(self.record());
        // It inherits no secret or setting in its environment. It creates a session of its own, so that it outlives
        // this process.
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::from(log))
            .stderr(Stdio::from(stderr))
            .spawn()
            .map_err(Error::io(format!("start {}", settings.supervisor.display())))
    }

    fn supervisor_log(&self, name: &ContainerName, flags: OFlags) -> Result<File> {
        let directory = self.state_directory(name)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(
            directory.as_fd(),
            "supervisor.log",
            flags,
            Mode::from_raw_mode(0o600),
        )
        .map(File::from)
        .map_err(Error::io(format!(
            "open {}/supervisor.log",
            directory.path().display()
        )))
    }

    /// Returns the end of a supervisor's own log.
    fn supervisor_said(&self, name: &ContainerName) -> String {
        let read = || -> std::io::Result<String> {
            let mut log = self
                .supervisor_log(name, OFlags::RDONLY)
                .map_err(std::io::Error::other)?;
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(2000)))?;
            let mut bytes = Vec::new();
            log.take(2000).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        match read() {
            Ok(text) if text.is_empty() => "its log is empty".into(),
            Ok(text) => text,
            Err(e) => format!("can't read its log: {e}"),
        }
    }
}

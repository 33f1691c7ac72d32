//! The supervisor of a container: runs systemd-nspawn in a cgroup of its own, receives its notifications, records
//! console output, status and end, and cleans up.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixDatagram;
use tokio::net::unix::pipe;
use tokio::signal::unix::SignalKind;

use leaf_core::container::Exit;
use leaf_core::host_op::RunSpec;
use leaf_core::id::ContainerName;
use leaf_host::contract::RunStatus;
use leaf_host::signals;

use crate::container::create::check_toplevel;
use crate::container::status::{fresh_status, take_restart, write_status};
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::nspawn::cgroup::SupervisedCgroup;
use crate::nspawn::console::Console;
use crate::nspawn::lock::RunLock;
use crate::nspawn::{RESTARTS, Wiring};
use crate::{Helper, network};

/// Supervises a container until it ends. One that reboots is started again, as by systemd (`RestartForceExitStatus=`).
pub(crate) async fn supervise(helper: &Helper, name: &ContainerName) -> Result<Exit> {
    helper.check_host()?;
    // Fails if this process is already a session leader.
    let _ = rustix::process::setsid();
    let run = helper.run_directory(name)?;
    let Some(lock) = helper.acquire(name).await? else {
        return Err(Error::Failed("another supervisor holds it".into()));
    };
    let mut supervisor = Supervisor {
        helper,
        run,
        _lock: lock,
        status: fresh_status(),
    };
    let outcome = loop {
        supervisor.write_status()?;
        let outcome = supervisor.run_to_the_end(name).await;
        // Without this, a container that reboots before it is ready would be started forever.
        if !matches!(outcome, Ok(Exit::Code { code: RESTARTS })) || supervisor.status.ready_at.is_none() {
            break outcome;
        }
        supervisor.status = fresh_status();
    };
    match &outcome {
        Ok(exit) => supervisor.status.exit = Some(*exit),
        Err(e) => {
            supervisor.status.exit = Some(Exit::Lost);
            supervisor.status.error = Some(leaf_core::error::chain(&e));
        }
    }
    supervisor.write_status()?;
    outcome
}

struct Supervisor<'a> {
    helper: &'a Helper,
    run: Directory,
    /// Held until this process ends.
    _lock: RunLock,
    status: RunStatus,
}

impl Supervisor<'_> {
    async fn run_to_the_end(&mut self, name: &ContainerName) -> Result<Exit> {
        let helper = self.helper;
        let spec = helper
            .spec(name)?
            .ok_or_else(|| Error::Refused(format!("there is no container {name}")))?;
        check_toplevel(&spec.toplevel)?;
        self.status.start_digest = spec.start_digest();
        self.status.last_update = take_restart(&self.run, &spec)?;
        self.write_status()?;
        helper.sweep(name).await?;
        let cgroup = SupervisedCgroup::of(&helper.leaf, name)?;
        cgroup.enter()?;
        let outcome = self.run_payload(&spec, &cgroup).await;
        // Cleans up after every outcome.
        let _ = cgroup.kill_payload().await;
        cgroup.leave()?;
        let swept = helper.sweep(name).await;
        let exit = outcome?;
        swept?;
        Ok(exit)
    }

    /// Runs the container. This process is in the container's cgroup when it starts systemd-nspawn, which is therefore
    /// in it from its first instruction; then this process moves out.
    async fn run_payload(&mut self, spec: &RunSpec, cgroup: &SupervisedCgroup) -> Result<Exit> {
        let helper = self.helper;
        helper.attach(spec).await?;
        let mut console = Console::open(helper.state_directory(&spec.name)?, helper.settings.observers)?;
        let mut terminate =
            signals::receive(SignalKind::terminate()).map_err(Error::io("receive SIGTERM"))?;
        let notify = self.bind_notify()?;
        let (reader, writer) = std::io::pipe().map_err(Error::io("create a pipe"))?;
        let mut output =
            pipe::Receiver::from_owned_fd(OwnedFd::from(reader)).map_err(Error::io("read a pipe"))?;
        let inputs = helper.prepare_inputs(&spec.name, &spec.options).await?;
        let wiring = Wiring {
            named_link: false,
            notify_socket: Some(self.run.path().join("notify").into()),
            console: Some(writer),
        };
        let mut nspawn = helper.start_nspawn(spec, inputs, wiring)?;
        cgroup.step_aside()?;

        let mut message = vec![0; 4096];
        let mut bytes = vec![0; 64 << 10];
        let mut ready = false;
        let mut open = true;
        let exit = loop {
            tokio::select! {
                received = notify.recv(&mut message) => {
                    let length = received.map_err(Error::io("receive a notification"))?;
                    let text = String::from_utf8_lossy(&message[..length]).into_owned();
                    for line in text.lines() {
                        match line.split_once('=') {
                            Some(("X_NSPAWN_LEADER_PID", pid)) if self.status.leader_pid.is_none() => {
                                self.status.leader_pid = pid.parse().ok();
                                if let Some(leader) = self.status.leader_pid {
                                    network::hand_over(&spec.name, leader).await?;
                                }
                                self.write_status()?;
                            }
                            Some(("READY", "1")) => ready = true,
                            _ => {}
                        }
                    }
                    // Written when the link is up, so that a ready container is reachable.
                    if ready && self.status.leader_pid.is_some() && self.status.ready_at.is_none() {
                        self.status.ready_at = Some(Timestamp::now());
                        self.write_status()?;
                    }
                }
                read = output.read(&mut bytes), if open => {
                    match read.map_err(Error::io("read the console"))? {
                        0 => open = false,
                        length => console.write(&bytes[..length])?,
                    }
                }
                exit = nspawn.ended() => break exit?,
                _ = terminate.recv() => nspawn.ask_to_halt(&cgroup.payload()).await,
            }
        };
        // The pipe is closed now, unless a process survived the container's end; so the read is limited.
        let drain = async {
            while let Ok(length @ 1..) = output.read(&mut bytes).await {
                console.write(&bytes[..length])?;
            }
            Ok::<(), Error>(())
        };
        cgroup.kill_payload().await?;
        if open {
            match tokio::time::timeout(Duration::from_secs(2), drain).await {
                Ok(drained) => drained?,
                Err(_) => tracing::warn!("the console stayed open after the container's end"),
            }
        }
        if self.status.ready_at.is_none() {
            self.status.error = Some(match console.tail() {
                tail if tail.is_empty() => {
                    format!("it ended before it was ready, with {exit}; its console is empty")
                }
                tail => format!("it ended before it was ready, with {exit}; the end of its console:\n{tail}"),
            });
        }
        Ok(exit)
    }

    fn bind_notify(&self) -> Result<UnixDatagram> {
        self.run.remove_file("notify")?;
        let path = self.run.path().join("notify");
        UnixDatagram::bind(&path).map_err(|e| match e.kind() {
            ErrorKind::InvalidInput => {
                Error::Refused(format!("the path {} is too long for a socket", path.display()))
            }
            _ => Error::io(format!("listen on {}", path.display()))(e),
        })
    }

    fn write_status(&self) -> Result<()> {
        write_status(&self.run, &self.status)
    }
}

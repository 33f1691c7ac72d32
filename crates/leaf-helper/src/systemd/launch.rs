//! The programs of a container's unit: [`Helper::launch`] runs systemd-nspawn and records its end, and
//! [`Helper::switch_inside`] switches a running container to another system.

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{self, FusedFuture as _};
use jiff::Timestamp;
use leaf_core::container::{Exit, LastUpdate};
use leaf_core::error::chain;
use leaf_core::host_op::RunSpec;
use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use leaf_core::spec::{RestartWhen, Users};
use leaf_host::cgroup::Cgroup;
use leaf_host::contract::RunStatus;
use leaf_host::process::{self, Bounds};
use leaf_host::{program, signals};
use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Received, SignalKind};
use tokio::time::Instant;

use crate::Helper;
use crate::container::create::{check_switch, check_toplevel};
use crate::container::status::{fresh_status, note_restart, take_restart, write_status};
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::nspawn::{self, Nspawn, Wiring};
use crate::systemd::payload::UnitCgroup;
use crate::systemd::switch::{Switch, listed_units};
use crate::systemd::unit;

/// The file with the spec that a running container was started with or switched to.
const STARTED: &str = "started.json";
/// The first version of systemd whose systemd-nspawn can rename a link, and moves it back at the end.
const PAIRS_SINCE: u32 = 254;
/// The file that marks that the last run lasted.
const LASTED: &str = "lasted";
/// The pause before a container is asked to halt again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The time after which a container that was asked to halt is killed: before systemd does it, which would kill this
/// process too.
const KILLED_AFTER: Duration = Duration::from_secs(unit::STOP_SECONDS as u64 - 10);
/// The time limit of a switch in place.
const SWITCH: Duration = Duration::from_secs(540);
/// The time limit of a list of units.
const LIST: Duration = Duration::from_secs(60);
/// How long the rest of a switch's output is waited for after its end.
const REST: Duration = Duration::from_secs(1);
/// How much is kept of each of a switch's two outputs, in bytes.
const KEPT_BYTES: usize = 1 << 20;

impl Helper {
    /// Runs a container in systemd-nspawn until it ends, records its end, and cleans up. Called by the container's
    /// unit, whose main process this remains: `ExecStopPost=` would start one more program at each end.
    pub(crate) async fn launch(&self, name: &ContainerName) -> Result<Exit> {
        // First, so that an early stop is noticed as well.
        let terminate = signals::receive(SignalKind::terminate()).map_err(Error::io("receive SIGTERM"))?;
        self.check_host()?;
        let run = self.run_directory(name)?;
        let mut status = fresh_status();
        // Discards the status of the last run.
        write_status(&run, &status)?;
        let outcome = self.run_to_the_end(name, &run, &mut status, terminate).await;
        // Otherwise the unit would stay active until this process has ended, and a start would have no effect.
        tell_systemd(b"STOPPING=1");
        let noted = self.note_end(name, &run, status, &outcome).await;
        match (outcome, noted) {
            (Ok(exit), noted) => {
                if let Err(e) = noted {
                    tracing::warn!(
                        error = chain(&e),
                        "can't clean up completely after a container ended"
                    );
                }
                Ok(exit)
            }
            (Err(e), _) => Err(e),
        }
    }

    async fn run_to_the_end(
        &self,
        name: &ContainerName,
        run: &Directory,
        status: &mut RunStatus,
        mut terminate: Received,
    ) -> Result<Exit> {
        let mut nspawn = tokio::select! {
            biased;
            // No process of it has run.
            _ = terminate.recv() => return Ok(Exit::Signal { signal: Signal::TERM.as_raw() }),
            started = self.start_prepared_nspawn(name, run, status) => started?,
        };
        // This process may not need the bus again for a long time, and the bus limits its connections.
        self.systemd.disconnect().await;
        let mut kill_at = None;
        loop {
            tokio::select! {
                exit = nspawn.ended() => return exit,
                // Only once, since a second SIGTERM ends systemd-nspawn at once.
                _ = terminate.recv(), if kill_at.is_none() => {
                    nspawn.ask_to_halt(&UnitCgroup::own()?.payload()).await;
                    kill_at = Some(Instant::now() + KILLED_AFTER);
                }
                // systemd and systemd-nspawn ask only once, and an init that does not handle signals yet misses that.
                () = tokio::time::sleep(ASK_AGAIN_AFTER), if kill_at.is_some() => {
                    if kill_at.is_some_and(|at| Instant::now() >= at) {
                        tracing::warn!(container = %name, "the container does not halt, killing it");
                        UnitCgroup::own()?.kill_payload().await?;
                    } else if let Err(e) = ask_init_to_halt() {
                        tracing::debug!(error = chain(&e), "can't ask the init to halt again");
                    }
                }
            }
        }
    }

    /// Starts systemd-nspawn, once everything that the container needs is prepared.
    async fn start_prepared_nspawn(
        &self,
        name: &ContainerName,
        run: &Directory,
        status: &mut RunStatus,
    ) -> Result<Nspawn> {
        let spec = self.owned_spec(name)?;
        check_toplevel(&spec.toplevel)?;
        status.start_digest = spec.start_digest();
        status.last_update = take_restart(run, &spec)?;
        write_status(run, status)?;
        run.write(STARTED, &json(&spec), 0o600)?;
        self.begin_count_anew(run, name).await?;
        let version = self.prepared_start(&spec).await?;
        let inputs = self.prepare_inputs(name, &spec.options).await?;
        let root = self.paths.roots.join(name.as_str());
        UnitCgroup::own()?.make_payload(&spec.options.limits, &root)?;
        let wiring = Wiring {
            // If systemd can't be queried now, a recent version is assumed.
            named_link: version.is_none_or(|version| version >= PAIRS_SINCE),
            // systemd-nspawn itself notifies systemd of readiness.
            notify_socket: std::env::var_os("NOTIFY_SOCKET"),
            console: None,
        };
        self.start_nspawn(&spec, inputs, wiring)
    }

    /// Records how a container ended, and cleans up.
    async fn note_end(
        &self,
        name: &ContainerName,
        run: &Directory,
        status: RunStatus,
        outcome: &Result<Exit>,
    ) -> Result<()> {
        // It may have switched to another system in the meantime.
        let mut status = self.status(run).ok().flatten().unwrap_or(status);
        match outcome {
            Ok(exit) => status.exit = Some(*exit),
            Err(e) => {
                status.exit = Some(Exit::Code { code: 1 });
                status.error = Some(chain(&e));
            }
        }
        let group = UnitCgroup::own()?;
        // A killed systemd-nspawn may have left processes, and a switch in place may still be writing.
        let killed = group.kill_payload().await;
        status.oom_kills = group.oom_kills();
        write_status(run, &status)?;
        killed?;
        run.remove_file(STARTED)?;
        self.release_inputs(name)?;
        if !self.is_attended(name)? {
            self.sweep_common(name).await?;
        }
        match self.spec(name)? {
            Some(spec) => self.mark_whether_it_lasted(run, &spec, status.started_at).await,
            None => Ok(()),
        }
    }

    /// Marks a run that was ready and lasted, so that systemd's restart counter is reset before the next one: its delay
    /// should not be as long as after many short runs.
    async fn mark_whether_it_lasted(
        &self,
        run: &Directory,
        spec: &RunSpec,
        started_at: Timestamp,
    ) -> Result<()> {
        run.remove_file(LASTED)?;
        let restart = &spec.options.restart;
        if restart.when == RestartWhen::Never {
            return Ok(());
        }
        let ready_at = self.systemd.unit(&Runtime::unit(&spec.name)).await?.active_since;
        let enough = 2 * i64::from(restart.max_delay_seconds);
        if let Some(ready_at) = ready_at
            && ready_at >= started_at
            && Timestamp::now().duration_since(ready_at).as_secs() > enough
        {
            run.touch(LASTED, 0o600)?;
        }
        Ok(())
    }

    /// Resets systemd's restart counter if the last run lasted.
    async fn begin_count_anew(&self, run: &Directory, name: &ContainerName) -> Result<()> {
        if !run.has(LASTED)? {
            return Ok(());
        }
        if let Err(e) = self.systemd.reset_failed(&Runtime::unit(name)).await {
            tracing::warn!(error = chain(&e), "can't reset the restart counter");
        }
        run.remove_file(LASTED)
    }

    /// Switches a running container in place to the system of its present spec, and records what that did, or why it
    /// failed. Called by its unit.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if more than its system differs, or the system can't switch: it must be restarted.
    pub(crate) async fn switch_inside(&self, name: &ContainerName) -> Result<()> {
        self.check_host()?;
        let run = self.run_directory(name)?;
        let spec = self
            .spec(name)?
            .ok_or_else(|| Error::Refused(format!("there is no container {name}")))?;
        let update = match self.switch_to(&run, &spec).await {
            Ok(update) => update,
            Err(e) => {
                note_restart(&run, &spec, format!("the switch in place failed: {}", chain(&e)))?;
                return Err(e);
            }
        };
        // No restart follows.
        take_restart(&run, &spec)?;
        run.write(STARTED, &json(&spec), 0o600)?;
        let mut status = self
            .status(&run)?
            .ok_or_else(|| Error::Failed("the container's status is missing".into()))?;
        status.start_digest = spec.start_digest();
        status.last_update = Some(update);
        write_status(&run, &status)
    }

    /// Switches a running container to the system of this spec, and returns what that did.
    async fn switch_to(&self, run: &Directory, spec: &RunSpec) -> Result<LastUpdate> {
        let name = &spec.name;
        let unit = Runtime::unit(name);
        self.can_switch(run, spec)?;
        let machine = self
            .systemd
            .machine(name.as_str())
            .await?
            .filter(|machine| machine.unit == unit)
            .ok_or_else(|| Error::Failed(format!("the machine {name} does not run in {unit}")))?;
        // The switch runs in the container's cgroup: within its limits, and killed with it.
        if !UnitCgroup::of(name)?.contains(machine.leader) {
            return Err(Error::Failed(format!(
                "process {} does not belong to this container",
                machine.leader
            )));
        }
        let group = Cgroup::of_process(machine.leader)?
            .ok_or_else(|| Error::Failed("the container's init has ended".into()))?;
        group.attach_this_process()?;
        let failed_before = failed_units(spec, machine.leader).await?;
        let mut switch = program_inside(spec, machine.leader, "bin/switch-to-configuration")?;
        switch.arg("test").stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = switch
            .spawn()
            .map_err(Error::io("start nsenter (Debian: util-linux)"))?;
        let (ended, output) = tokio::time::timeout(SWITCH, follow(child))
            .await
            .map_err(|_| {
                Error::Failed(format!(
                    "the switch to the new system did not finish within {} s",
                    SWITCH.as_secs()
                ))
            })?
            .map_err(Error::io("wait for nsenter"))?;
        let current = std::fs::read_link(format!("/proc/{}/root/run/current-system", machine.leader));
        let switch = Switch {
            code: ended.code(),
            output: &output,
            failed_before: &failed_before,
            users: spec.options.users,
            is_activated: current.is_ok_and(|current| current.as_os_str() == spec.toplevel.as_str()),
        };
        switch
            .judge(LastUpdate::at(Timestamp::now()))
            .map_err(Error::Failed)
    }

    /// Checks that a running container can be brought to a spec by a switch in place.
    pub(crate) fn can_switch(&self, run: &Directory, spec: &RunSpec) -> Result<()> {
        let started: RunSpec = run
            .read(STARTED)?
            .and_then(|text| serde_json::from_str(&text).ok())
            .ok_or_else(|| Error::Unsupported("it is unknown which spec it was started with".into()))?;
        let with_new_system = RunSpec {
            toplevel: spec.toplevel.clone(),
            ..started
        };
        if with_new_system.start_digest() != spec.start_digest() {
            return Err(Error::Unsupported(
                "more than its system has changed, which needs a restart".into(),
            ));
        }
        check_toplevel(&spec.toplevel)?;
        check_switch(&spec.toplevel)
    }
}

/// Returns a program of a spec's system that runs in a container with this leader.
fn program_inside(spec: &RunSpec, leader: u32, file: &str) -> Result<Command> {
    // By its path: the container's unit, which this process belongs to, sets no PATH, and the default on NixOS has
    // only systemd's own programs.
    let nsenter = program::find_for_root("nsenter")
        .ok_or_else(|| Error::Failed("this host has no nsenter (Debian: util-linux)".into()))?;
    let mut command = Command::new(nsenter);
    command
        .arg(format!("--target={leader}"))
        .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
        .args((spec.options.users == Users::Private).then_some("--user"))
        .arg("--")
        .arg(format!("{}/{file}", spec.toplevel))
        .env_clear()
        .env(
            "PATH",
            format!("{}/sw/bin:{}", spec.toplevel, nspawn::ENVIRONMENT[0].1),
        )
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    Ok(command)
}

/// Returns the units of a container that are failed, or restarted after a failure; none if its system does not have
/// systemd.
async fn failed_units(spec: &RunSpec, leader: u32) -> Result<BTreeSet<String>> {
    let mut systemctl = program_inside(spec, leader, "sw/bin/systemctl")?;
    systemctl.args(["list-units", "--state=failed,auto-restart", "--all"]);
    systemctl.args(["--plain", "--no-legend", "--no-pager", "--full"]);
    let listed = process::run(systemctl, b"", Bounds::of_time(LIST)).await?;
    Ok(listed_units(&String::from_utf8_lossy(&listed.stdout)))
}

/// Waits for the end of a program, and returns its exit status and what it wrote to its pipes, which is passed on.
async fn follow(mut child: Child) -> std::io::Result<(ExitStatus, String)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut said, mut warned) = (Vec::new(), Vec::new());
    let ended = {
        let relays = future::join(
            pass_on(stdout, &mut said, std::io::stdout()),
            pass_on(stderr, &mut warned, std::io::stderr()),
        );
        let mut relays = pin!(relays.fuse());
        let ended = loop {
            tokio::select! {
                ended = child.wait() => break ended?,
                _ = &mut relays, if !relays.is_terminated() => {}
            }
        };
        if !relays.is_terminated() {
            // Processes that it has left may hold the pipes.
            let _ = tokio::time::timeout(REST, relays).await;
        }
        ended
    };
    said.push(b'\n');
    said.append(&mut warned);
    Ok((ended, String::from_utf8_lossy(&said).into_owned()))
}

/// Passes on what a program writes, and keeps the first [`KEPT_BYTES`] of it.
async fn pass_on(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>, mut to: impl std::io::Write) {
    let Some(mut pipe) = pipe else { return };
    let mut bytes = vec![0; 16 << 10];
    while let Ok(length @ 1..) = pipe.read(&mut bytes).await {
        let read = &bytes[..length];
        // The program's outcome does not depend on its log.
        let _ = to.write_all(read);
        kept.extend_from_slice(&read[..length.min(KEPT_BYTES - kept.len())]);
    }
}

/// Notifies systemd about this process's unit (sd_notify(3)), if it listens.
fn tell_systemd(what: &[u8]) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let told = UnixDatagram::unbound().and_then(|from| from.send_to(what, &socket));
    if let Err(error) = told {
        tracing::warn!(%error, "can't notify systemd that the container is ending");
    }
}

/// Asks the init of the container in this process's unit to halt. The init is found without D-Bus, which may be gone
/// during a shutdown.
fn ask_init_to_halt() -> Result<()> {
    let group = UnitCgroup::own()?;
    let first = group.first_process();
    let first = first.ok_or_else(|| Error::Failed("it has no init".into()))?;
    nspawn::ask_init_to_halt(first, |pid| group.contains(pid))
}

fn json(spec: &RunSpec) -> Vec<u8> {
    serde_json::to_vec(spec).expect("a spec always serializes")
}

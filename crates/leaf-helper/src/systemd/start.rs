//! Starts, updates and stops a container's unit, from outside.

use std::time::Duration;

use jiff::Timestamp;
use leaf_core::container::Exit;
use leaf_core::error::chain;
use leaf_core::host_op::RunSpec;
use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use leaf_host::contract::{RunStatus, conf_marker};
use leaf_host::process::{self, Bounds};
use leaf_host::systemd::{KillWhom, UnitJob, UnitJobOutcome, UnitState};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::time::Instant;

use crate::Helper;
use crate::container::create::check_toplevel;
use crate::container::status::note_restart;
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::nspawn::RESTARTS;
use crate::systemd::payload::UnitCgroup;
use crate::systemd::unit;

/// The directory of units created since boot (systemd.unit(5)).
pub(crate) const UNITS: &str = "/run/systemd/system";
/// The directory of the generator's units.
pub(crate) const GENERATED: &str = "/run/systemd/generator";
/// The file that marks a container that should run: the generator makes it start at boot.
pub(crate) const WANTED: &str = "wanted";
/// The result of a start job that was replaced by a stop job (org.freedesktop.systemd1(5), JobRemoved).
const CANCELED: &str = "canceled";
/// The time limit for a unit to end after its processes were killed.
const CLEAN_UP: Duration = Duration::from_secs(20);
/// The message of systemd-nspawn when it could not register a container with machined, and therefore did not start it
/// (nspawn.c): D-Bus or machined was being restarted.
const UNREGISTERED: &str = "Failed to register machine";
/// The time limit for reading systemd's journal.
const JOURNAL: Duration = Duration::from_secs(10);
/// The maximum number of tries of such a start.
const TRIES: u32 = 3;

impl Helper {
    /// Writes a container's unit if it differs, and makes systemd reload it if needed.
    pub(crate) async fn keep_unit(&self, spec: &RunSpec) -> Result<()> {
        if self.write_unit(spec)? && self.is_unit_loaded(&spec.name).await? {
            self.systemd.reload().await?;
        }
        Ok(())
    }

    /// Returns whether systemd has loaded a container's unit. It does not reload a loaded unit by itself.
    pub(crate) async fn is_unit_loaded(&self, name: &ContainerName) -> Result<bool> {
        let look = self.systemd.loaded_unit(&Runtime::unit(name)).await?;
        Ok(look.is_some_and(|look| look.load != "not-found"))
    }

    /// Writes a container's unit if it differs. Returns whether it differed.
    pub(crate) fn write_unit(&self, spec: &RunSpec) -> Result<bool> {
        let unit = Runtime::unit(&spec.name);
        let text = self.unit_text(spec)?;
        let directory = Directory::make_root(UNITS.as_ref(), 0o755)?;
        let there = directory.read(&unit)?;
        let generated = match Directory::open_root(GENERATED.as_ref())? {
            Some(generated) => generated.read(&unit)?,
            None => None,
        };
        match (&there, &generated) {
            (Some(there), _) if *there == text => return Ok(false),
            (None, Some(generated)) if *generated == text => return Ok(false),
            (Some(there), _) if !self.made(there) => {
                return Err(Error::Refused(format!(
                    "{UNITS}/{unit} was not made by leaf {}; choose another name",
                    self.leaf
                )));
            }
            _ => directory.write(&unit, text.as_bytes(), 0o644)?,
        }
        Ok(true)
    }

    /// Returns the text of a container's unit.
    pub(crate) fn unit_text(&self, spec: &RunSpec) -> Result<String> {
        let root = self.paths.roots.join(spec.name.as_str());
        unit::text(spec, &self.settings.supervisor, &self.record(), &root)
    }

    /// Returns whether this leaf made a unit of this text.
    pub(crate) fn made(&self, text: &str) -> bool {
        text.lines().next() == Some(conf_marker(&self.leaf).as_str())
    }

    /// Removes a container's unit; returns false if it is running.
    pub(crate) async fn remove_unit(&self, name: &ContainerName) -> Result<bool> {
        let unit = Runtime::unit(name);
        match self.systemd.loaded_unit(&unit).await? {
            Some(look) if look.is_up() => return Ok(false),
            Some(look) if look.active == "failed" => self.systemd.reset_failed(&unit).await?,
            _ => {}
        }
        for path in [UNITS, GENERATED] {
            let Some(directory) = Directory::open_root(path.as_ref())? else {
                continue;
            };
            if directory.read(&unit)?.is_some_and(|text| self.made(&text)) {
                directory.remove_file(&unit)?;
                if let Some(wants) = directory.open("machines.target.wants")? {
                    wants.remove_file(&unit)?;
                }
            }
        }
        Ok(true)
    }

    /// Returns whether a container's unit runs, or will be restarted by systemd.
    pub(crate) async fn unit_is_up(&self, name: &ContainerName) -> Result<bool> {
        let look = self.systemd.loaded_unit(&Runtime::unit(name)).await?;
        Ok(look.is_some_and(|look| look.is_up()))
    }

    /// Starts a container and returns when it is ready.
    pub(crate) async fn start_unit(&self, spec: &RunSpec, limit: Duration) -> Result<()> {
        check_toplevel(&spec.toplevel)?;
        self.check_inputs_of_start(&spec.name, &spec.options)?;
        let name = &spec.name;
        let unit = Runtime::unit(name);
        self.keep_record()?;
        self.keep_unit(spec).await?;
        let limit = limit.min(Duration::from_secs(unit::START_SECONDS.into()));
        let deadline = Instant::now() + limit;
        let began = Timestamp::now();
        for attempt in 1.. {
            let rest = deadline.saturating_duration_since(Instant::now());
            match self.start_prepared(spec, &unit, rest).await? {
                UnitJobOutcome::Done => break,
                UnitJobOutcome::Failed(why) => {
                    self.forget_prepared_start(name).await?;
                    let why = self.why_not_ready(name, &why, began).await;
                    if attempt == TRIES
                        || !why.to_string().contains(UNREGISTERED)
                        || self.unit_is_up(name).await?
                    {
                        return Err(why);
                    }
                    tracing::warn!(container = %name, "machined did not answer, starting the container again");
                }
                UnitJobOutcome::TimedOut => {
                    let said = self.said(name).await;
                    self.end_unit(name, Duration::ZERO).await?;
                    return Err(Error::NotReady(format!(
                        "it was not ready within {} s and was stopped; the end of its log: {said}",
                        limit.as_secs()
                    )));
                }
            }
        }
        Ok(())
    }

    /// Makes systemd start a container's unit, and prepares the start in the meantime.
    async fn start_prepared(&self, spec: &RunSpec, unit: &str, limit: Duration) -> Result<UnitJobOutcome> {
        let preparing = self.begin_to_prepare_start(&spec.name).await?;
        let look = self.check_unit(unit).await?;
        // Also resets the restart counter of a unit that is about to be restarted.
        if look.active == "failed" || look.sub.contains("auto-restart") {
            self.systemd.reset_failed(unit).await?;
        }
        let prepare = async {
            if look.is_up() {
                return drop(preparing);
            }
            if let Err(e) = self.prepare_start(spec, preparing).await {
                // The unit tries it itself, and reports the error.
                tracing::warn!(container = %spec.name, error = chain(&e), "can't prepare the start");
            }
        };
        let (end, ()) = tokio::join!(self.systemd.run_job(UnitJob::Start, unit, limit), prepare);
        Ok(end?)
    }

    /// Checks that systemd would start this leaf's unit, and not one that takes precedence over it. Returns its state.
    async fn check_unit(&self, unit: &str) -> Result<UnitState> {
        let ours = |state: &UnitState| {
            [UNITS, GENERATED]
                .iter()
                .any(|directory| state.file == format!("{directory}/{unit}"))
        };
        let mut state = self.systemd.unit(unit).await?;
        if state.needs_reload || !ours(&state) {
            self.systemd.reload().await?;
            state = self.systemd.unit(unit).await?;
        }
        if !ours(&state) {
            return Err(Error::Refused(format!(
                "systemd has another unit of the name {unit} ({}, {}), which is not this leaf's; remove it",
                if state.file.is_empty() {
                    "no file"
                } else {
                    &state.file
                },
                state.load
            )));
        }
        if state.load != "loaded" {
            return Err(Error::Failed(format!(
                "systemd can't load {}: it is {}",
                state.file, state.load
            )));
        }
        Ok(state)
    }

    /// Returns the error of a container's failed start, which began at `began`.
    async fn why_not_ready(&self, name: &ContainerName, result: &str, began: Timestamp) -> Error {
        let unit = Runtime::unit(name);
        match result {
            CANCELED => return Error::NotReady("it was stopped while it was starting".into()),
            "dependency" => {
                return Error::NotReady(format!("a dependency of {unit} could not be started"));
            }
            _ => {}
        }
        let status = self.run_directory(name).and_then(|run| self.status(&run));
        // If systemd could not even start the program, there is no status of this run.
        let status = status.ok().flatten().filter(|status| status.started_at >= began);
        let mut why = match status {
            Some(RunStatus {
                error: Some(error), ..
            }) => error,
            Some(RunStatus { exit: Some(exit), .. }) => format!("it ended before it was ready, with {exit}"),
            _ => match self.systemd.service_end(&unit).await {
                Ok(end) => format!("it ended before it was ready ({}, {})", end.result, end.status),
                Err(_) => format!("systemd could not start it ({result})"),
            },
        };
        why.push_str(&format!("; the end of its log: {}", self.said(name).await));
        if self.unit_is_up(name).await.unwrap_or(false) {
            why.push_str("\nsystemd will start it again, as its restart policy says");
        }
        Error::NotReady(why)
    }

    /// Returns the end of the log of a container's last run.
    async fn said(&self, name: &ContainerName) -> String {
        let read = async {
            let invocation = self
                .systemd
                .service_end(&Runtime::unit(name))
                .await
                .ok()?
                .invocation;
            let mut journalctl = Command::new("journalctl");
            journalctl
                .args(["--no-pager", "--quiet", "--output=cat", "--lines=20"])
                .arg(format!("_SYSTEMD_INVOCATION_ID={invocation}"));
            let bounds = Bounds::of_time(JOURNAL);
            let finished = process::run(journalctl, b"", bounds).await.ok()?;
            Some(String::from_utf8_lossy(&finished.stdout).trim().to_owned())
        };
        match read.await {
            Some(text) if text.is_empty() => "it is empty".into(),
            Some(text) => format!("\n{text}"),
            None => "it is unreadable".into(),
        }
    }

    /// Brings a running container to its spec: by a switch in place if that is enough, otherwise by a restart.
    pub(crate) async fn update_unit(&self, spec: &RunSpec, limit: Duration, grace: Duration) -> Result<()> {
        let name = &spec.name;
        let unit = Runtime::unit(name);
        let run = self.run_directory(name)?;
        let running = self
            .systemd
            .loaded_unit(&unit)
            .await?
            .is_some_and(|look| look.active == "active");
        let status = self.status(&run)?;
        // A container whose end is recorded is not running, even if systemd does not know it yet.
        let as_wanted =
            |status: RunStatus| status.exit.is_none() && status.start_digest == spec.start_digest();
        if running && status.is_some_and(as_wanted) {
            return Ok(());
        }
        if running {
            let can_switch = self.can_switch(&run, spec);
            let reason = match &can_switch {
                // The switch replaces it.
                Ok(()) => "the switch in place did not end in time".to_owned(),
                Err(e) => chain(e),
            };
            note_restart(&run, spec, reason)?;
            match can_switch {
                Ok(()) => match self.systemd.run_job(UnitJob::Reload, &unit, limit).await? {
                    UnitJobOutcome::Done => {
                        let status = self.status(&run)?;
                        if status.is_some_and(|status| status.start_digest == spec.start_digest()) {
                            return Ok(());
                        }
                        tracing::warn!(container = %name, "the switch in place left no result, restarting the container");
                    }
                    end => {
                        tracing::warn!(container = %name, ?end, "the switch in place failed, restarting the container");
                    }
                },
                Err(e) => {
                    tracing::info!(container = %name, why = chain(&e), "restarting the container");
                }
            }
        }
        // What can't be started again is not stopped.
        self.check_inputs_of_start(&spec.name, &spec.options)?;
        self.end_unit(name, grace).await?;
        self.start_unit(spec, limit).await
    }

    /// Stops a container's unit: a signal to its init and, after the grace time, SIGKILL to its cgroup.
    pub(crate) async fn end_unit(&self, name: &ContainerName, grace: Duration) -> Result<()> {
        let unit = Runtime::unit(name);
        let grace = grace.min(Duration::from_secs(unit::STOP_SECONDS.into()));
        let _attended = self.attend(name).await?;
        if !self.halt_unit(name, &unit, grace).await? {
            tracing::warn!(container = %name, "the container did not halt in its grace time, killing it");
            UnitCgroup::of(name)?.kill_payload().await?;
            if self.systemd.run_job(UnitJob::Stop, &unit, CLEAN_UP).await? == UnitJobOutcome::TimedOut {
                self.systemd
                    .kill(&unit, KillWhom::All, Signal::KILL.as_raw())
                    .await?;
                if self.systemd.run_job(UnitJob::Stop, &unit, CLEAN_UP).await? == UnitJobOutcome::TimedOut {
                    return Err(Error::Failed(format!("can't stop {unit}")));
                }
            }
        }
        // A killed unit counts as failed in systemd; it is reset, since its stop was requested.
        match self.ended_well(name)? {
            true => Ok(()),
            false => Ok(self.systemd.reset_failed(&unit).await?),
        }
    }

    /// Returns whether a container's last run is known to have ended without a failure in systemd's sense.
    fn ended_well(&self, name: &ContainerName) -> Result<bool> {
        // One that can't be read says nothing of it, and keeps no container from being stopped.
        let status = self.status(&self.run_directory(name)?).ok().flatten();
        Ok(status.is_some_and(|RunStatus { exit, error, .. }| {
            error.is_none() && matches!(exit, Some(Exit::Code { code: 0 | RESTARTS }))
        }))
    }

    /// Makes systemd stop a unit; returns whether it stopped within the grace time.
    async fn halt_unit(&self, name: &ContainerName, unit: &str, grace: Duration) -> Result<bool> {
        match self.systemd.run_job(UnitJob::Stop, unit, grace).await? {
            UnitJobOutcome::TimedOut => Ok(false),
            UnitJobOutcome::Done => Ok(true),
            UnitJobOutcome::Failed(result) if self.unit_is_up(name).await? => {
                Err(Error::Failed(format!("systemd did not stop {unit}: {result}")))
            }
            UnitJobOutcome::Failed(_) => Ok(true),
        }
    }
}

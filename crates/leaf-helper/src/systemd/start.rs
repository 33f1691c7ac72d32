//! Starting, updating and stopping a container's unit, from outside.

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
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::nspawn::RESTARTS;
use crate::systemd::payload::UnitCgroup;
use crate::systemd::unit;

/// Where units are that were made since the boot (systemd.unit(5)).
const UNITS: &str = "/run/systemd/system";
/// Where those of the generator are.
const GENERATED: &str = "/run/systemd/generator";
/// What says that a container is to run: the generator has it started with the host.
pub(crate) const WANTED: &str = "wanted";
/// The end of a start job in whose place somebody put a stop (org.freedesktop.systemd1(5), JobRemoved).
const CANCELED: &str = "canceled";
/// How long a unit has to end after its processes were killed.
const CLEAN_UP: Duration = Duration::from_secs(20);
/// What systemd-nspawn says when it could not tell machined of a container, and so ran nothing of it (nspawn.c): the bus or
/// machined were being restarted.
const UNREGISTERED: &str = "Failed to register machine";
/// How long a look into the journal may take.
const JOURNAL: Duration = Duration::from_secs(10);
/// How often such a start is tried.
const TRIES: u32 = 3;

impl Helper {
    /// Writes a container's unit where it is another than it should be, and has systemd read it again where it must.
    pub(crate) async fn keep_unit(&self, spec: &RunSpec) -> Result<()> {
        let unit = Runtime::unit(&spec.name);
        let text = self.unit_text(spec)?;
        let directory = Directory::make_root(UNITS.as_ref(), 0o755)?;
        let there = directory.read(&unit)?;
        let generated = match Directory::open_root(GENERATED.as_ref())? {
            Some(generated) => generated.read(&unit)?,
            None => None,
        };
        match (&there, &generated) {
            (Some(there), _) if *there == text => return Ok(()),
            (None, Some(generated)) if *generated == text => return Ok(()),
            (Some(there), _) if !self.made(there) => {
                return Err(Error::Refused(format!(
                    "{UNITS}/{unit} was not made by leaf {}; choose another name",
                    self.leaf
                )));
            }
            _ => directory.write(&unit, text.as_bytes(), 0o644)?,
        }
        // One that systemd has in mind it does not read again by itself.
        if self
            .systemd
            .loaded_unit(&unit)
            .await?
            .is_some_and(|look| look.load != "not-found")
        {
            self.systemd.reload().await?;
        }
        Ok(())
    }

    /// Returns the text of a container's unit.
    pub(crate) fn unit_text(&self, spec: &RunSpec) -> Result<String> {
        let root = self.paths.roots.join(spec.name.as_str());
        unit::text(spec, &self.settings.supervisor, &self.record(), &root)
    }

    fn made(&self, text: &str) -> bool {
        text.lines().next() == Some(conf_marker(&self.leaf).as_str())
    }

    /// Removes a container's unit, and returns whether it could: not where it runs.
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

    /// Returns whether a container's unit runs, or will by itself.
    pub(crate) async fn unit_is_up(&self, name: &ContainerName) -> Result<bool> {
        let look = self.systemd.loaded_unit(&Runtime::unit(name)).await?;
        Ok(look.is_some_and(|look| look.is_up()))
    }

    /// Starts a container and returns when it is ready.
    pub(crate) async fn start_unit(&self, spec: &RunSpec, limit: Duration) -> Result<()> {
        check_toplevel(&spec.toplevel)?;
        self.check_inputs(&spec.options)?;
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
                    tracing::warn!(container = %name, "machined did not answer, so it is started once more");
                }
                UnitJobOutcome::TimedOut => {
                    let said = self.said(name).await;
                    self.end_unit(name, Duration::ZERO).await?;
                    return Err(Error::NotReady(format!(
                        "it was not ready within {} s and was ended; the end of its log: {said}",
                        limit.as_secs()
                    )));
                }
            }
        }
        Ok(())
    }

    /// Has systemd start a container's unit, and prepares the start in the meantime.
    async fn start_prepared(&self, spec: &RunSpec, unit: &str, limit: Duration) -> Result<UnitJobOutcome> {
        let preparing = self.begin_to_prepare_start(&spec.name).await?;
        let look = self.check_unit(unit).await?;
        // Also one that is about to be started again: its restarts are counted anew.
        if look.active == "failed" || look.sub.contains("auto-restart") {
            self.systemd.reset_failed(unit).await?;
        }
        let prepare = async {
            if look.is_up() {
                return drop(preparing);
            }
            if let Err(e) = self.prepare_start(spec, preparing).await {
                // The unit tries it itself, and says what is wrong.
                tracing::warn!(container = %spec.name, error = chain(&e), "the start could not be prepared");
            }
        };
        let (end, ()) = tokio::join!(self.systemd.run_job(UnitJob::Start, unit, limit), prepare);
        Ok(end?)
    }

    /// Checks that systemd would start the unit of this leaf, and not one that takes precedence over it. Returns its state.
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
                "systemd can't use {}: it is {}",
                state.file, state.load
            )));
        }
        Ok(state)
    }

    /// Returns why a container's start, that began then, came to nothing.
    async fn why_not_ready(&self, name: &ContainerName, result: &str, began: Timestamp) -> Error {
        let unit = Runtime::unit(name);
        match result {
            CANCELED => return Error::NotReady("it was stopped while it was started".into()),
            "dependency" => {
                return Error::NotReady(format!("something that {unit} needs could not be started"));
            }
            _ => {}
        }
        let status = self.run_directory(name).and_then(|run| self.status(&run));
        // One that systemd could not even start a program for has none of its own.
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
            why.push_str("\nsystemd starts it again, as its restart policy says");
        }
        Error::NotReady(why)
    }

    /// The end of what the last run of a container said.
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
            None => "it can't be read".into(),
        }
    }

    /// Brings a running container to its spec: by a switch inside where that is enough, else by a restart.
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
        // One whose end is written does not run any more, whatever systemd has heard of it.
        let as_wanted =
            |status: RunStatus| status.exit.is_none() && status.start_digest == spec.start_digest();
        if running && status.is_some_and(as_wanted) {
            return Ok(());
        }
        if running {
            match self.can_switch(&run, spec) {
                Ok(()) => match self.systemd.run_job(UnitJob::Reload, &unit, limit).await? {
                    UnitJobOutcome::Done => {
                        let status = self.status(&run)?;
                        if status.is_some_and(|status| status.start_digest == spec.start_digest()) {
                            return Ok(());
                        }
                        tracing::warn!(container = %name, "the switch inside left no word, so it is started anew");
                    }
                    end => {
                        tracing::warn!(container = %name, ?end, "could not switch inside, so it is started anew");
                    }
                },
                Err(e) => {
                    tracing::info!(container = %name, why = chain(&e), "is started anew");
                }
            }
        }
        self.end_unit(name, grace).await?;
        self.start_unit(spec, limit).await
    }

    /// Stops a container's unit: a word to its init, a grace time, then the end of its cgroup.
    pub(crate) async fn end_unit(&self, name: &ContainerName, grace: Duration) -> Result<()> {
        let unit = Runtime::unit(name);
        let grace = grace.min(Duration::from_secs(unit::STOP_SECONDS.into()));
        let _attended = self.attend(name).await?;
        if !self.halt_unit(name, &unit, grace).await? {
            tracing::warn!(container = %name, "did not halt in its grace time and is ended by force");
            UnitCgroup::of(name)?.kill_payload().await?;
            if self.systemd.run_job(UnitJob::Stop, &unit, CLEAN_UP).await? == UnitJobOutcome::TimedOut {
                self.systemd
                    .kill(&unit, KillWhom::All, Signal::KILL.as_raw())
                    .await?;
                if self.systemd.run_job(UnitJob::Stop, &unit, CLEAN_UP).await? == UnitJobOutcome::TimedOut {
                    return Err(Error::Failed(format!("{unit} can't be ended")));
                }
            }
        }
        // One that was ended by force counts as failed, which it is not: it was asked to end.
        match self.ended_well(name)? {
            true => Ok(()),
            false => Ok(self.systemd.reset_failed(&unit).await?),
        }
    }

    /// Whether a container's last run is known to have ended in a way that systemd calls no failure.
    fn ended_well(&self, name: &ContainerName) -> Result<bool> {
        let status = self.status(&self.run_directory(name)?)?;
        Ok(status.is_some_and(|RunStatus { exit, error, .. }| {
            error.is_none() && matches!(exit, Some(Exit::Code { code: 0 | RESTARTS }))
        }))
    }

    /// Has systemd stop a unit, and returns whether it stopped in its grace time.
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

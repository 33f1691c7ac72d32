//! `leaf-helper change switch`: activates the armed system, watches over it until it is decided, and then installs it or activates the
//! one before. It does what the files say, and keeps nothing: whatever ends it, the next one goes on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::change::{Armed, ArmedSystem, Decided, Decision, KIND_SYSTEM, Outcome, SystemMode};
use leaf_core::container::LastUpdate;
use leaf_core::error::chain;
use leaf_core::id::{ChangeId, StorePath};
use leaf_core::spec::Users;
use leaf_host::contract::{ARMED, GOING_BACK, WITNESS_UNIT};
use leaf_host::systemd::Systemd;

use super::health::{Health, LEAFD, is_of_the_system, observe};
use super::programs::{self, Ended, Verb, switch_to};
use super::{Root, generations};
use crate::change::guard::{Open, is_for_the_switch, put_back, readable, reason};
use crate::change::store::{Step, Store, decided, wall_clock};
use crate::change::{Moment, Units};
use crate::error::{Error, Result};
use crate::systemd::PATIENCE;
use crate::systemd::switch::Switch;

/// The period in which the files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// After how many looks the health of the host is observed.
const LOOKS_BETWEEN: u32 = 4;
/// The pause between two observations while a unit is not active yet.
const NOT_YET: Duration = Duration::from_millis(500);
/// How many observations in a row must be good before a change can be confirmed: five seconds.
const SETTLED_AFTER: u32 = 10;
/// How often the system before is activated until that works.
const TRIES_BACK: u32 = 3;
/// The time limit of each, and the pause between two.
const BACK_WITHIN: Duration = Duration::from_secs(300);
const BACK_AGAIN: Duration = Duration::from_secs(10);
/// How long systemd has for a reboot.
const REBOOT_WITHIN: Duration = Duration::from_secs(60);
/// How many observations leafd of the system before has to become active: a minute.
const LEAFD_LOOKS: u32 = 120;
/// Where `switch-to-configuration` notes what it has to start. It removes the file at its end.
const START_LIST: &str = "/run/nixos/start-list";
/// Why a change goes back whose leafd does not stay up.
const RESTARTED: &str = "leafd.service ended, and was started again by systemd";
/// How often a confirmed system is installed until that works.
const TRIES_TO_INSTALL: u32 = 5;
/// The pause between two tries to install it.
const INSTALL_AGAIN: Duration = Duration::from_secs(10);
/// The time limit of a start of the witness's unit.
const WITNESS_WITHIN: Duration = Duration::from_secs(30);
/// The longest reason, in bytes.
const MAX_WHY: usize = 2000;

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing: no change of the system is open.
    End,
    /// To look again after this time.
    Again(Duration),
    /// To end, so that what a switch that hangs has started is killed, and to begin anew.
    Leave,
}

/// What became of the system before.
enum Back {
    /// It is active.
    Active,
    /// It is tried again.
    Again(Turn),
    /// It is not, for this reason.
    Not(String),
}

/// What the files say.
#[derive(Debug)]
enum Found {
    Nothing,
    /// The system is to be activated.
    Begin(Armed, ArmedSystem),
    /// It waits for a confirmation, or for the end of its arming.
    Wait(Armed, Option<ArmedSystem>),
    /// The system before is to be activated, if another one was.
    Back(Open),
    /// It is confirmed, and to be installed.
    Install(Decided),
}

/// One run of the process.
#[derive(Debug)]
pub(super) struct Switcher<'a, U> {
    directory: PathBuf,
    root: Root,
    units: &'a U,
    pause: Duration,
    /// How often systemd had started leafd again when the health was first observed in this run.
    restarts: Option<u64>,
    looks: u32,
}

/// Switches the system as the state directory says, until no change of the system is open.
pub(crate) async fn switch(directory: &Path, root: Root) -> Result<()> {
    let systemd = Systemd::new(PATIENCE);
    let mut switcher = Switcher::new(directory, root, &systemd);
    let mut complaint = String::new();
    loop {
        let pause = match switcher.turn(Moment::now).await {
            Ok(Turn::End) => return Ok(()),
            Ok(Turn::Again(pause)) => pause,
            Ok(Turn::Leave) => {
                let why = "a switch did not end: it is killed with this process, and the next one goes on";
                return Err(Error::Failed(why.to_owned()));
            }
            Err(error) => {
                let why = chain(&error);
                if why != complaint {
                    tracing::error!(error = why, "this is tried again until it works");
                    complaint = why;
                }
                Duration::from_secs(1)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

impl<'a, U: Units> Switcher<'a, U> {
    pub(super) fn new(directory: &Path, root: Root, units: &'a U) -> Self {
        Self {
            directory: directory.to_owned(),
            root,
            units,
            pause: NOT_YET,
            restarts: None,
            looks: 0,
        }
    }

    /// Returns the switcher with another pause where it waits for units.
    #[cfg(test)]
    pub(super) fn with_pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// Does the next thing that the files say.
    pub(super) async fn turn(&mut self, now: impl Fn() -> Result<Moment>) -> Result<Turn> {
        let Some(store) = Store::open(&self.directory)? else {
            return Ok(Turn::End);
        };
        let found = {
            let _lock = store.lock().await?;
            self.find(&store, &now()?)?
        };
        match found {
            Found::Nothing => Ok(Turn::End),
            Found::Begin(armed, system) => self.begin(&store, &armed, &system, &now).await,
            Found::Wait(armed, system) => self.watch(&store, &armed, system.as_ref()).await,
            Found::Back(open) => self.go_back(&store, open, &now()?).await,
            Found::Install(blessed) => self.install(&store, blessed, &now()?).await,
        }
    }

    /// Returns what the files say, and decides that an armed change goes back where that is due. The lock is held.
    fn find(&self, store: &Store, now: &Moment) -> Result<Found> {
        if let Some(open) = readable(store, store.going_back(), GOING_BACK)? {
            let is_ours = open.armed.kind == KIND_SYSTEM;
            return Ok(if is_ours {
                Found::Back(open)
            } else {
                Found::Nothing
            });
        }
        if let Some(blessed) = store.blessed()? {
            return Ok(Found::Install(blessed));
        }
        let Some(open) = readable(store, store.armed(), ARMED)? else {
            return Ok(Found::Nothing);
        };
        let armed = &open.armed;
        if armed.kind != KIND_SYSTEM {
            return Ok(Found::Nothing);
        }
        let step = store.step(armed.id)?;
        let is_over = armed.boot_id != now.boot_id || now.boot_ms >= armed.deadline_boot_ms;
        // What a process before this one began is not known to have ended.
        let is_broken = step == Some(Step::Switching);
        if is_broken {
            store.note_why(armed.id, "the switch was killed in its middle");
        }
        if is_over || is_broken || open.is_second {
            store.decide_back()?;
            return Ok(Found::Back(open));
        }
        Ok(match (step, armed.system.clone()) {
            (Some(Step::Written), Some(system)) => Found::Begin(open.armed, system),
            // Of a newer program: it goes back when its time is over.
            (_, system) => Found::Wait(open.armed, system),
        })
    }

    /// Activates the armed system, and lets it be confirmed if all is well.
    async fn begin(
        &mut self,
        store: &Store,
        armed: &Armed,
        system: &ArmedSystem,
        now: &impl Fn() -> Result<Moment>,
    ) -> Result<Turn> {
        let id = armed.id;
        if let Err(error) = programs::are_valid(system).await {
            return self.fail(store, id, &chain(&error)).await;
        }
        let runs = self.root.current()?;
        if runs != system.previous {
            return self.fail(store, id, &overtaken(&runs)).await;
        }
        if !self.note(store, id, Step::Switching).await? {
            return Ok(Turn::Again(Duration::ZERO));
        }
        let at = now()?;
        let left = Duration::from_millis(armed.deadline_boot_ms.saturating_sub(at.boot_ms));
        let ended = switch_to(
            &self.root,
            &self.directory,
            &system.path,
            &system.toplevel,
            Verb::Test,
            left,
        )
        .await;
        let is_late = ended.as_ref().is_ok_and(|ended| ended.is_late);
        let judged = match ended {
            Ok(ended) => self.judge(&ended, system, &system.toplevel).await,
            Err(error) => Err(chain(&error)),
        };
        if let Err(why) = judged {
            self.fail(store, id, &why).await?;
            return Ok(if is_late {
                Turn::Leave
            } else {
                Turn::Again(Duration::ZERO)
            });
        }
        // A service that ends soon after its start is not taken for a healthy one.
        let mut settled = 0;
        while settled < SETTLED_AFTER {
            match observe(&self.root, system, self.units).await? {
                Health::Well { restarts } if restarts <= *self.restarts.get_or_insert(restarts) => {
                    settled += 1;
                }
                Health::Well { .. } => return self.fail(store, id, RESTARTED).await,
                Health::Failed(why) => return self.fail(store, id, &why).await,
                Health::NotYet(why) if now()?.boot_ms >= armed.deadline_boot_ms => {
                    return self.fail(store, id, &why).await;
                }
                Health::NotYet(_) => (self.restarts, settled) = (None, 0),
            }
            tokio::time::sleep(self.pause).await;
        }
        // The witness of the system before, which may still ask, must not confirm the new one.
        if !armed.unwitnessed {
            let begun = self.units.restart_and_wait(WITNESS_UNIT, WITNESS_WITHIN).await;
            if let Err(error) = begun {
                let error = chain(&error);
                tracing::warn!(change = %id, error, "the witness can't be asked: only a person can confirm the change");
            }
        }
        self.note(store, id, Step::Applied).await?;
        tracing::info!(change = %id, system = %system.toplevel, "the system is active and healthy: it waits to be confirmed");
        Ok(Turn::Again(Duration::ZERO))
    }

    /// Waits for the confirmation, and goes back where the host does not stay well.
    async fn watch(&mut self, store: &Store, armed: &Armed, system: Option<&ArmedSystem>) -> Result<Turn> {
        let again = Ok(Turn::Again(LOOK_EVERY));
        let Some(system) = system.filter(|_| matches!(store.step(armed.id), Ok(Some(Step::Applied)))) else {
            return again;
        };
        self.looks += 1;
        if self.looks % LOOKS_BETWEEN != 1 {
            return again;
        }
        let runs = self.root.current()?;
        if runs != system.toplevel {
            return self.fail(store, armed.id, &overtaken(&runs)).await;
        }
        let why = match observe(&self.root, system, self.units).await? {
            Health::Well { restarts } if restarts <= *self.restarts.get_or_insert(restarts) => return again,
            Health::Well { .. } => RESTARTED.to_owned(),
            Health::Failed(why) | Health::NotYet(why) => why,
        };
        self.fail(store, armed.id, &why).await
    }

    /// Decides that the armed change goes back for this reason, unless it was decided meanwhile.
    async fn fail(&self, store: &Store, id: ChangeId, why: &str) -> Result<Turn> {
        let _lock = store.lock().await?;
        if store.armed()?.is_some_and(|armed| armed.id == id) {
            tracing::error!(change = %id, why, "the change goes back");
            store.note_why(id, &shortened(why));
            store.decide_back()?;
        }
        Ok(Turn::Again(Duration::ZERO))
    }

    /// Notes a step of the armed change. Returns whether it is still armed.
    async fn note(&self, store: &Store, id: ChangeId, step: Step) -> Result<bool> {
        let _lock = store.lock().await?;
        let is_armed = store.armed()?.is_some_and(|armed| armed.id == id);
        if is_armed {
            store.note(id, step)?;
        }
        Ok(is_armed)
    }

    /// Returns why a switch did not end well, if it did not.
    async fn judge(
        &self,
        ended: &Ended,
        system: &ArmedSystem,
        to: &StorePath,
    ) -> std::result::Result<(), String> {
        let mut expected: BTreeSet<String> = system
            .failed_before
            .iter()
            .chain(&system.allow_failed)
            .cloned()
            .collect();
        // What is none of the system's is none of the switch's.
        let failed = self.units.failed_units().await.map_err(|error| chain(&error))?;
        let is_foreign = |unit: &String| !is_of_the_system(&self.root, system, unit);
        expected.extend(failed.into_iter().filter(is_foreign));
        if ended.is_late {
            return Err(format!(
                "switch-to-configuration did not end in time ({})",
                programs::failure(None, &ended.output)
            ));
        }
        let is_activated = self.root.current().is_ok_and(|current| current == *to);
        let switch = Switch {
            code: ended.code,
            output: &ended.output,
            failed_before: &expected,
            users: Users::Host,
            is_activated,
        };
        switch
            .judge(LastUpdate::at(jiff::Timestamp::now()))
            .map_err(|why| format!("{why} ({})", programs::failure(ended.code, &ended.output)))?;
        if !is_activated {
            return Err(format!(
                "/run/current-system does not lead to {to} after the switch"
            ));
        }
        if self.root.at(START_LIST).exists() {
            return Err("switch-to-configuration did not start all that it had stopped".to_owned());
        }
        Ok(())
    }

    /// Puts the files of accounts back and activates the system before, and closes the change.
    async fn go_back(&self, store: &Store, open: Open, now: &Moment) -> Result<Turn> {
        let Open { armed, is_second } = open;
        let id = armed.id;
        let is_this_boot = armed.boot_id == now.boot_id;
        let mut why = reason(store, &armed, is_second, is_this_boot);
        let runs = self.root.current().ok();
        let known = [
            armed.system.as_ref().map(|system| &system.toplevel),
            armed.way_back.activate.as_ref(),
        ];
        let is_overtaken = is_this_boot && runs.is_some() && !known.contains(&runs.as_ref());
        if is_for_the_switch(store, &armed)? && !is_overtaken {
            for file in put_back(store, &armed.way_back) {
                why = format!(
                    "{why}; {} could not be put back ({})",
                    file.path,
                    chain(&file.error)
                );
            }
            if is_this_boot && let Some(before) = &armed.way_back.activate {
                match self.activate_before(store, &armed, before, &why).await? {
                    Back::Active => {}
                    Back::Again(turn) => return Ok(turn),
                    Back::Not(failed) => {
                        why = format!(
                            "{why}; the system of before could not be activated completely: {failed}"
                        );
                    }
                }
            }
        }
        let _lock = store.lock().await?;
        // The record itself may be damaged.
        if !store.directory.has(GOING_BACK)? {
            return Ok(Turn::Again(Duration::ZERO));
        }
        let outcome = Outcome {
            decision: Decision::Back,
            by: None,
            why: Some(shortened(&why)),
            at: wall_clock(),
        };
        store.close_back(&decided(armed, outcome))?;
        tracing::info!(change = %id, "went back");
        tidy(store, id);
        Ok(Turn::Again(Duration::ZERO))
    }

    /// Activates the system before. Where that does not work three times, the host is rebooted, which boots it.
    async fn activate_before(
        &self,
        store: &Store,
        armed: &Armed,
        before: &StorePath,
        why: &str,
    ) -> Result<Back> {
        let id = armed.id;
        let unknown = ArmedSystem {
            toplevel: before.clone(),
            previous: before.clone(),
            mode: SystemMode::Test,
            profile: None,
            allow_failed: Vec::new(),
            failed_before: Vec::new(),
            healthy_units: Vec::new(),
            reboot: false,
            path: self.root.of(before, "sw/bin").display().to_string(),
            keep: None,
        };
        let system = armed.system.as_ref().unwrap_or(&unknown);
        // On a full disk the count is lost, and the tries go on.
        let tries = store.note_try(id).unwrap_or(1);
        if tries > TRIES_BACK {
            // It was asked of systemd before, which has not done it.
            tracing::error!(change = %id, "reboots without systemd");
            self.units.reboot(true).await?;
            return Ok(Back::Again(Turn::Again(REBOOT_WITHIN)));
        }
        tracing::warn!(change = %id, why, system = %before, tries, "activates the system of before");
        // What waits for a unit that never ends would hold this up as well.
        if let Err(error) = self.units.cancel_jobs().await {
            tracing::warn!(change = %id, error = chain(&error), "can't cancel the jobs of systemd");
        }
        let ended = switch_to(
            &self.root,
            &self.directory,
            &system.path,
            before,
            Verb::Back,
            BACK_WITHIN,
        )
        .await;
        let is_late = ended.as_ref().is_ok_and(|ended| ended.is_late);
        let judged = match ended {
            Ok(ended) => self.judge(&ended, system, before).await,
            Err(error) => Err(chain(&error)),
        };
        let failed = match judged {
            Err(failed) => failed,
            Ok(()) => match self.leafd_is_up().await? {
                None => return Ok(Back::Active),
                Some(failed) => failed,
            },
        };
        tracing::error!(change = %id, why = failed, tries, "the system of before is not active");
        if tries < TRIES_BACK {
            return Ok(Back::Again(if is_late {
                Turn::Leave
            } else {
                Turn::Again(BACK_AGAIN)
            }));
        }
        if !system.reboot {
            return Ok(Back::Not(failed));
        }
        tracing::error!(change = %id, "reboots the host, which boots the system of before");
        store.note_why(
            id,
            &shortened(&format!(
                "{why}; the system of before could not be activated, so the host was rebooted: {failed}"
            )),
        );
        self.units.reboot(false).await?;
        Ok(Back::Again(Turn::Again(REBOOT_WITHIN)))
    }

    /// Waits until leafd is active, and returns what it is if that takes too long.
    async fn leafd_is_up(&self) -> Result<Option<String>> {
        for _ in 0..LEAFD_LOOKS {
            if self.units.health(LEAFD).await?.active == "active" {
                return Ok(None);
            }
            tokio::time::sleep(self.pause).await;
        }
        let active = self.units.health(LEAFD).await?.active;
        Ok((active != "active").then(|| format!("{LEAFD} is {active}")))
    }

    /// Makes the confirmed system that of the profile and of the boot loader, and closes the change.
    async fn install(&self, store: &Store, blessed: Decided, now: &Moment) -> Result<Turn> {
        let id = blessed.armed.id;
        let failed = match &blessed.armed.system {
            None => Some("the record of it can't be read".to_owned()),
            Some(system) => match self.try_to_install(&blessed.armed, system, now).await {
                Ok(()) => self.not_in_use(&blessed.armed, system, now),
                Err(error @ Error::Refused(_)) => Some(format!("it was not installed: {}", chain(&error))),
                Err(error) => {
                    let why = chain(&error);
                    let tries = store.note_try(id).unwrap_or(1);
                    tracing::error!(change = %id, why, tries, "a confirmed system is not installed");
                    if tries < TRIES_TO_INSTALL {
                        return Ok(Turn::Again(INSTALL_AGAIN));
                    }
                    Some(format!(
                        "it could not be installed, so the next boot may be of the system before: {why}"
                    ))
                }
            },
        };
        let _lock = store.lock().await?;
        let before = blessed.outcome.clone();
        let outcome = Outcome {
            decision: Decision::Confirmed,
            by: before.as_ref().and_then(|outcome| outcome.by.clone()),
            why: failed.map(|why| shortened(&why)),
            at: before.and_then(|outcome| outcome.at).or_else(wall_clock),
        };
        store.close_blessed(&decided(blessed.armed, outcome))?;
        tracing::info!(change = %id, "the change is closed");
        tidy(store, id);
        Ok(Turn::Again(Duration::ZERO))
    }

    async fn try_to_install(&self, armed: &Armed, system: &ArmedSystem, now: &Moment) -> Result<()> {
        let runs = self.root.current()?;
        if system.mode == SystemMode::Switch && armed.boot_id == now.boot_id && runs != system.toplevel {
            return Err(Error::Refused(overtaken(&runs)));
        }
        let profile = self.root.profile();
        if let Some(other) =
            profile.filter(|now| *now != system.toplevel && Some(now) != system.profile.as_ref())
        {
            return Err(Error::Refused(format!(
                "the profile of the system was set to {other} meanwhile"
            )));
        }
        programs::set_profile(&self.root, system).await?;
        // The system is confirmed: that some are left is no reason to leave it uninstalled.
        if let Err(error) = generations::prune(&self.root, system).await {
            tracing::warn!(error = chain(&error), "old generations of the system stay");
        }
        programs::set_boot_loader(&self.root, &self.directory, system).await
    }

    /// Returns that an installed system does not run, where it was confirmed while it ran.
    fn not_in_use(&self, armed: &Armed, system: &ArmedSystem, now: &Moment) -> Option<String> {
        let runs = self
            .root
            .current()
            .is_ok_and(|current| current == system.toplevel);
        (armed.boot_id != now.boot_id && !runs).then(|| {
            "the host was rebooted before it was installed: it runs from the next boot or switch on"
                .to_owned()
        })
    }
}

/// Removes what a decided change left. What fails here is done by the next change.
fn tidy(store: &Store, id: ChangeId) {
    if let Err(error) = store.tidy().and_then(|()| store.prune(id)) {
        tracing::warn!(change = %id, error = chain(&error), "can't remove all that a change left");
    }
}

/// Returns the reason where somebody else switched the system meanwhile, as `nixos-rebuild` does.
fn overtaken(by: &StorePath) -> String {
    format!("somebody else switched the system to {by} meanwhile")
}

fn shortened(why: &str) -> String {
    let mut end = MAX_WHY.min(why.len());
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why[..end].to_owned()
}

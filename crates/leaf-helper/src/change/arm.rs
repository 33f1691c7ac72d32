//! Arms a change: asks the witness, prepares the way back, and writes the change.

use leaf_core::change::{
    Armed, ArmedSystem, Asking, Decision, HubChange, HubOverride, KIND_HUB, KIND_SYSTEM, MAX_SECONDS,
    MIN_SECONDS, Outcome, SavedFile, SystemChange, VERSION, WayBack, WitnessNonce,
};
use leaf_core::error::chain;
use leaf_core::id::{Caller, ChangeId, LeafName};
use leaf_core::json::to_json;
use leaf_host::contract::{ARMED, ASKING, BLESSED, GOING_BACK, HUB_OVERRIDE, WITNESS_UNIT};
use serde_json::Map;

use super::store::{PRIVATE, SHOWN, Store, decided, wall_clock};
use super::{Changes, Moment, Units, guard, system};
use crate::error::{Error, Result};
use crate::files::Directory;

/// The unit that uses the hub's settings.
const LEAFD_UNIT: &str = "leafd.service";

/// A change to arm.
#[derive(Debug)]
pub(crate) struct Order<'a> {
    pub(crate) id: ChangeId,
    pub(crate) caller: &'a Caller,
    pub(crate) seconds: u32,
    pub(crate) unwitnessed: bool,
    pub(crate) what: What<'a>,
}

/// What is to be changed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What<'a> {
    /// The hub's settings.
    Hub(&'a HubChange),
    /// The whole system.
    System(&'a SystemChange),
}

/// What is to be changed, after it was checked.
#[derive(Debug, Clone)]
enum Checked<'a> {
    Hub(&'a HubChange),
    System(ArmedSystem),
}

impl Changes {
    /// Arms a change and writes it. Another hub is taken up by leafd, which the guard restarts; another system is activated by the
    /// process that the guard starts. Idempotent.
    pub(crate) async fn arm(&self, leaf: &LeafName, units: &impl Units, order: &Order<'_>) -> Result<()> {
        let Order { id, seconds, .. } = *order;
        if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
            return Err(Error::Refused(format!(
                "a change must be confirmed within {MIN_SECONDS} to {MAX_SECONDS} s, not {seconds}"
            )));
        }
        // What is open stands in the way, whatever is wrong with this one.
        let is_open = [ARMED, BLESSED, GOING_BACK]
            .iter()
            .any(|name| self.directory.join(name).exists());
        if is_open && let Some(store) = Store::open(&self.directory)? {
            self.resume(units).await?;
            let _lock = store.lock().await?;
            if self.is_armed(&store, id)? {
                return Ok(());
            }
        }
        let checked = match order.what {
            What::Hub(hub) => {
                hub.check().map_err(|e| Error::Refused(chain(&e)))?;
                Checked::Hub(hub)
            }
            What::System(system) => Checked::System(self.checked(leaf, system, units).await?),
        };
        let is_tried = match &checked {
            Checked::Hub(_) => true,
            Checked::System(system) => system::is_tried(system.mode),
        };
        let store = Store::make(self)?;
        {
            let _lock = store.lock().await?;
            if self.is_armed(&store, id)? {
                return Ok(());
            }
            store.tidy()?;
        }
        if !order.unwitnessed && is_tried {
            self.ask(&store, leaf, id, units).await?;
        }
        let _lock = store.lock().await?;
        if self.is_armed(&store, id)? {
            return Ok(());
        }
        store.tidy()?;
        if let Err(error) = self
            .prepare_and_carry_out(&store, leaf, units, order, &checked)
            .await
        {
            // Nothing uses the new settings yet.
            if let Err(undone) = undo(&store) {
                let error = chain(&undone);
                tracing::error!(change = %id, error, "a change that failed is taken back by the guard");
            }
            return Err(error);
        }
        // That of another system is asked once the system is in use, by its own program.
        if !order.unwitnessed
            && matches!(order.what, What::Hub(_))
            && let Err(error) = units.restart(WITNESS_UNIT, true).await
        {
            let error = chain(&error);
            tracing::warn!(change = %id, error, "the witness can't be asked: only a person can confirm the change");
        }
        tracing::info!(change = %id, seconds, "armed; it goes back unless it is confirmed in time");
        Ok(())
    }

    /// Starts the guard of an open change, if it does not run: an earlier helper may have ended before it started it.
    pub(crate) async fn resume(&self, units: &impl Units) -> Result<()> {
        match Store::open(&self.directory)? {
            Some(store) if store.is_open()? => Ok(units.begin_guard().await?),
            _ => Ok(()),
        }
    }

    /// Removes the question to the witness. None may be waited for.
    pub(crate) fn forget_question(&self) -> Result<()> {
        match Directory::open_root(&self.directory)? {
            Some(directory) => directory.remove_file(ASKING),
            None => Ok(()),
        }
    }

    /// Returns whether this change is armed and its files are written. If its arming was interrupted, it is taken back first.
    fn is_armed(&self, store: &Store, id: ChangeId) -> Result<bool> {
        if let Some(armed) = store.armed()? {
            if armed.id != id {
                return Err(Error::Refused(format!(
                    "change {} is open; it is confirmed or goes back first",
                    armed.id
                )));
            }
            // Of a system that may be activated, nothing is undone but by its way back.
            let is_begun = armed.kind == KIND_SYSTEM && store.has_step()?;
            if is_begun || store.step(id)?.is_some() {
                return Ok(true);
            }
            undo(store)?;
        }
        if let Some(blessed) = store.blessed()? {
            if blessed.armed.id == id {
                return Ok(true);
            }
            return Err(Error::Refused(format!(
                "change {} is confirmed, and its system is being installed; try again when that is done",
                blessed.armed.id
            )));
        }
        if let Some(going_back) = store.going_back()? {
            return Err(Error::Refused(format!(
                "change {} is going back at the moment; try again when that is done",
                going_back.id
            )));
        }
        match store.decided(id)? {
            Some(_) => Err(Error::Refused(format!("change {id} was decided before"))),
            None => Ok(false),
        }
    }

    /// Has the witness asked once with the settings that hold now.
    async fn ask(&self, store: &Store, leaf: &LeafName, id: ChangeId, units: &impl Units) -> Result<()> {
        const GO_ON: &str = "with --no-witness only a person can confirm the change";
        if self.witnesses.is_empty() {
            return Err(Error::Refused(format!(
                "no witness is set on this leaf (services.cim-leaf.witnesses, witnesses in the helper's settings); {GO_ON}"
            )));
        }
        self.answered.send_replace(None);
        let mut answered = self.answered.subscribe();
        let asking = Asking {
            id,
            leaf: leaf.clone(),
            nonce: nonce()?,
        };
        store.write(ASKING, &asking)?;
        let answer = async {
            units.restart(WITNESS_UNIT, true).await?;
            let answers = answered.wait_for(|answered| *answered == Some(id));
            match tokio::time::timeout(self.patience, answers).await {
                Ok(_) => Ok(()),
                Err(_) => Err(Error::Refused(format!(
                    "the witness did not answer within {} s; see: journalctl --unit {WITNESS_UNIT}; {GO_ON}",
                    self.patience.as_secs()
                ))),
            }
        };
        let answer = answer.await;
        store.directory.remove_file(ASKING)?;
        answer
    }

    /// Writes the files of another hub, and returns what the way back does about them. Nothing of it is in use yet.
    fn prepare_hub(&self, store: &Store, id: ChangeId, hub: &HubChange) -> Result<Vec<SavedFile>> {
        let path_of = |name: &str| {
            let path = self.directory.join(name);
            path.into_os_string()
                .into_string()
                .map_err(|path| Error::Refused(format!("{} is not UTF-8", path.display())))
        };
        let mut files = vec![SavedFile {
            path: path_of(HUB_OVERRIDE)?,
            saved: store.save(0, HUB_OVERRIDE)?,
        }];
        let mut beside = |end: &str, content: Option<&str>, mode, owner| {
            let Some(content) = content else {
                return Ok(None);
            };
            let name = Store::file_of_hub(id, end);
            store.directory.write_as(&name, content.as_bytes(), mode, owner)?;
            files.push(SavedFile {
                path: path_of(&name)?,
                saved: None,
            });
            Ok::<_, Error>(Some(name))
        };
        let credentials = hub.credentials.as_ref().map(|credentials| credentials.expose());
        let changed = HubOverride {
            version: VERSION,
            change: id,
            url: hub.url.clone(),
            ca: beside("pem", hub.ca.as_deref(), SHOWN, None)?,
            credentials: beside("creds", credentials, PRIVATE, self.client)?,
            section: hub.section.clone(),
            more: Map::new(),
        };
        store.directory.stage(HUB_OVERRIDE, &to_json(&changed), SHOWN)?;
        Ok(files)
    }

    /// Writes all that needs space, and returns the change to arm. Nothing of it is in use yet.
    fn prepare(
        &self,
        store: &Store,
        leaf: &LeafName,
        order: &Order<'_>,
        checked: &Checked<'_>,
    ) -> Result<Armed> {
        let id = order.id;
        let (kind, way_back, apply, system) = match checked {
            Checked::Hub(hub) => {
                let leafd = vec![LEAFD_UNIT.to_owned()];
                let way_back = WayBack {
                    files: self.prepare_hub(store, id, hub)?,
                    restart: leafd.clone(),
                    ..WayBack::default()
                };
                (KIND_HUB, way_back, leafd, None)
            }
            Checked::System(system) => {
                let way_back = WayBack {
                    files: self.hold(store, system)?,
                    activate: Some(system.previous.clone()).filter(|_| system::is_tried(system.mode)),
                    ..WayBack::default()
                };
                (KIND_SYSTEM, way_back, Vec::new(), Some(system.clone()))
            }
        };
        store.prepare_progress(id)?;
        let now = Moment::now()?;
        let armed = Armed {
            version: VERSION,
            id,
            leaf: leaf.clone(),
            kind: kind.to_owned(),
            caller: Some(order.caller.clone()),
            nonce: Some(nonce()?),
            boot_id: now.boot_id,
            deadline_boot_ms: now.boot_ms + u64::from(order.seconds) * 1000,
            armed_at: wall_clock(),
            witnesses: if order.unwitnessed {
                Vec::new()
            } else {
                self.witnesses.clone()
            },
            unwitnessed: order.unwitnessed,
            way_back,
            apply,
            system,
            more: Map::new(),
        };
        let back = Outcome {
            decision: Decision::Back,
            by: None,
            why: None,
            at: None,
        };
        store.prepare_back(&decided(armed.clone(), back))?;
        store.make_reserve()?;
        Ok(armed)
    }

    /// Arms the change, and puts it into its place once the guard watches over it.
    async fn prepare_and_carry_out(
        &self,
        store: &Store,
        leaf: &LeafName,
        units: &impl Units,
        order: &Order<'_>,
        checked: &Checked<'_>,
    ) -> Result<()> {
        let armed = self.prepare(store, leaf, order, checked)?;
        if matches!(checked, Checked::System(system) if !system::is_tried(system.mode)) {
            // Nothing of it is in use before the next boot, so there is nothing to confirm.
            let outcome = Outcome {
                decision: Decision::Confirmed,
                by: Some(order.caller.to_string()),
                why: None,
                at: wall_clock(),
            };
            store.record_blessed(&decided(armed, outcome))?;
            return units.start_guard().await;
        }
        store.write(ARMED, &armed)?;
        units.start_guard().await?;
        if matches!(checked, Checked::Hub(_)) {
            store.directory.put_staged(HUB_OVERRIDE)?;
        }
        store.has_written()
    }
}

/// Takes back a change that is not used by anything yet, as if it had never been armed.
fn undo(store: &Store) -> Result<()> {
    if let Some(armed) = store.armed()? {
        // Of another system no file is written before it is activated.
        if armed.kind != KIND_SYSTEM
            && let Some(failed) = guard::put_back(store, &armed.way_back).pop()
        {
            return Err(failed.error);
        }
        store.disarm()?;
    }
    // Of a system for the next boot, which nothing has begun to install.
    store.directory.remove_file(BLESSED)?;
    store.tidy()
}

fn nonce() -> Result<WitnessNonce> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| Error::Failed(format!("can't get random bytes: {e}")))?;
    Ok(bytes.into())
}

//! The guard: waits until an armed change is decided, and takes the way back when its time is over.

use std::path::Path;
use std::time::Duration;

use leaf_core::change::{Armed, Decision, KIND_SYSTEM, Outcome, WayBack};
use leaf_core::error::chain;
use leaf_core::id::ChangeId;
use leaf_host::contract::{ARMED, BLESSED, GOING_BACK};
use leaf_host::notify;
use leaf_host::systemd::{Systemd, SystemdError};
use rustix::io::Errno;

use super::store::{Step, Store, decided, wall_clock};
use super::{Moment, Units};
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::systemd::PATIENCE;

/// The period in which the guard looks at the boot clock and at the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many looks after all was written leafd is restarted: in the meantime it answers whoever asked for the change.
const LOOKS_BEFORE_APPLYING: u32 = 2;
/// The time that is left where it is not the guard who waits for its end.
const MAX_LEFT_MS: u64 = u64::MAX;

/// What is to be done about the open change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: no change is open.
    End,
    /// To look again.
    Look {
        /// The change.
        id: ChangeId,
        /// In how many milliseconds of the boot clock its time is over.
        left_ms: u64,
        /// Whether all of it is written, and the units that use it are to be restarted, or the system is to be activated.
        apply: bool,
        /// Whether the rest is done by the process that switches the system, which has to run.
        switch: bool,
    },
}

/// What this process has done of a way back: what an error makes it repeat does not restart the units again.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The change whose units were restarted, and whether all files were back then.
    restarted: Option<(ChangeId, bool)>,
}

/// The record of an open change.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) armed: Armed,
    /// Whether it is the one that was prepared for the way back, since the other one can't be read.
    pub(super) is_second: bool,
}

/// A file that could not be put back.
#[derive(Debug)]
pub(super) struct NotBack {
    pub(super) path: String,
    pub(super) error: Error,
}

impl NotBack {
    /// Returns whether it may work later: the disk is full, or the kernel lacks something for the moment.
    fn is_transient(&self) -> bool {
        const TRANSIENT: [Errno; 8] = [
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::NOMEM,
            Errno::NFILE,
            Errno::MFILE,
            Errno::AGAIN,
            Errno::BUSY,
            Errno::INTR,
        ];
        match &self.error {
            Error::Io { source, .. } => source
                .raw_os_error()
                .is_some_and(|code| TRANSIENT.iter().any(|errno| errno.raw_os_error() == code)),
            _ => false,
        }
    }
}

/// Watches over the open change of a state directory until it is decided, and takes the way back when its time is over, or
/// in another boot. Without an open change it returns at once. What fails is tried again.
pub(crate) async fn guard(directory: &Path) -> Result<()> {
    let units = Systemd::new(PATIENCE);
    let mut looks = 0;
    let mut is_ready = false;
    let mut restarted = None;
    let mut taken = Taken::default();
    let mut complaint = String::new();
    loop {
        let next = look(directory, &units, Moment::now, &mut taken).await;
        if !is_ready {
            notify::ready("watches over the open change");
            is_ready = true;
        }
        let (id, left_ms, apply, switch) = match next {
            Ok(Next::End) => return Ok(()),
            Ok(Next::Look {
                id,
                left_ms,
                apply,
                switch,
            }) => (id, left_ms, apply, switch),
            Err(error) => {
                let why = chain(&error);
                if why != complaint {
                    tracing::error!(error = why, "this is tried again until it works");
                    complaint = why;
                }
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
        };
        let left = Duration::from_millis(left_ms);
        looks = if apply { looks + 1 } else { 0 };
        let is_due = looks > LOOKS_BEFORE_APPLYING;
        if switch && (is_due || !apply) {
            if let Err(error) = units.begin_switch(directory).await {
                // It is tried again at the next look.
                tracing::error!(change = %id, error = chain(&error), "the switch of the system does not begin");
            }
        } else if is_due {
            let noted = async {
                if restarted != Some(id) {
                    restart_for(directory, &units, left).await?;
                    restarted = Some(id);
                }
                note_applied(directory, id).await
            };
            if let Err(error) = noted.await {
                // It is tried again. Until it works nobody can confirm the change, and it goes back.
                tracing::error!(change = %id, error = chain(&error), "the change is not in use");
                looks = 0;
            }
            continue;
        }
        // Time in which the host is suspended does not count here, but at the next look.
        tokio::time::sleep(LOOK_EVERY.min(left)).await;
    }
}

/// Looks at the open change, and takes the way back if that is due.
pub(super) async fn look(
    path: &Path,
    units: &impl Units,
    now: impl Fn() -> Result<Moment>,
    taken: &mut Taken,
) -> Result<Next> {
    let Some(store) = Store::open(path)? else {
        return Ok(Next::End);
    };
    if !store.is_open()? {
        return Ok(Next::End);
    }
    // Without the lock, which the helper holds while it arms a change and starts this program.
    if let Ok(None) = store.going_back()
        && let Ok(Some(armed)) = store.armed()
        && let Some(next) = not_due(&store, &armed, &now()?)?
    {
        return Ok(next);
    }
    let _lock = store.lock().await?;
    let now = now()?;
    if store.directory.has(BLESSED)? {
        return blessed(&store);
    }
    let going_back = match readable(&store, store.going_back(), GOING_BACK)? {
        Some(open) => open,
        None => {
            // It may have been confirmed while the lock was awaited.
            let Some(open) = readable(&store, store.armed(), ARMED)? else {
                return Ok(Next::End);
            };
            if !open.is_second
                && let Some(next) = not_due(&store, &open.armed, &now)?
            {
                return Ok(next);
            }
            store.decide_back()?;
            open
        }
    };
    if is_for_the_switch(&store, &going_back.armed)? {
        return Ok(Next::Look {
            id: going_back.armed.id,
            left_ms: MAX_LEFT_MS,
            apply: false,
            switch: true,
        });
    }
    go_back(&store, units, going_back, &now, taken).await?;
    Ok(Next::End)
}

/// Returns that the system of a confirmed change is to be installed. A record that can't be read is moved out of the way.
fn blessed(store: &Store) -> Result<Next> {
    match store.blessed() {
        Ok(Some(decided)) => Ok(Next::Look {
            id: decided.armed.id,
            left_ms: MAX_LEFT_MS,
            apply: false,
            switch: true,
        }),
        Ok(None) => Ok(Next::End),
        Err(Error::Refused(why)) => {
            tracing::error!(why, "a confirmed system is not installed");
            store.set_aside(BLESSED)?;
            Ok(Next::End)
        }
        Err(error) => Err(error),
    }
}

/// Returns whether the way back of a change is that from another system, which another process takes: once that system may have been
/// activated, be it in this boot or an earlier one.
pub(super) fn is_for_the_switch(store: &Store, armed: &Armed) -> Result<bool> {
    Ok(armed.way_back.activate.is_some()
        && matches!(store.step(armed.id)?, Some(Step::Switching | Step::Applied)))
}

/// Returns that an armed change is to be looked at again, if its time is not over.
fn not_due(store: &Store, armed: &Armed, now: &Moment) -> Result<Option<Next>> {
    if armed.boot_id != now.boot_id || now.boot_ms >= armed.deadline_boot_ms {
        return Ok(None);
    }
    let step = store.step(armed.id)?;
    Ok(Some(Next::Look {
        id: armed.id,
        left_ms: armed.deadline_boot_ms - now.boot_ms,
        apply: step == Some(Step::Written),
        switch: step.is_some() && armed.kind == KIND_SYSTEM,
    }))
}

/// Returns a record, or in the place of one that can't be read the one that was prepared for the way back. Without either it
/// is moved out of the way, since it would keep every other change from being armed.
pub(super) fn readable(store: &Store, read: Result<Option<Armed>>, name: &str) -> Result<Option<Open>> {
    let why = match read {
        Err(Error::Refused(why)) => why,
        read => {
            return Ok(read?.map(|armed| Open {
                armed,
                is_second: false,
            }));
        }
    };
    if let Ok(Some(back)) = store.prepared_back() {
        tracing::error!(
            why,
            "the record of the change can't be read, and its second one is used"
        );
        return Ok(Some(Open {
            armed: back.armed,
            is_second: true,
        }));
    }
    tracing::error!(
        why,
        "nothing can be put back, since the record of the change can't be read"
    );
    store.set_aside(name)?;
    Ok(None)
}

/// Takes the way back of a change that is decided to go back. It can be taken again.
async fn go_back(
    store: &Store,
    units: &impl Units,
    Open { armed, is_second }: Open,
    now: &Moment,
    taken: &mut Taken,
) -> Result<()> {
    let id = armed.id;
    let is_this_boot = armed.boot_id == now.boot_id;
    let mut why = reason(store, &armed, is_second, is_this_boot);
    tracing::warn!(change = %id, why, "goes back");
    let not_back = if armed.kind == KIND_SYSTEM {
        // Nothing of it was activated.
        Vec::new()
    } else {
        put_back(store, &armed.way_back)
    };
    // Whatever could not be put back: the units then use what could.
    let restarted = (id, not_back.is_empty());
    if taken.restarted != Some(restarted) {
        for unit in &armed.way_back.restart {
            // After a reboot a unit that is not started yet finds the files that were put back.
            match units.restart(unit, is_this_boot).await {
                Err(error @ SystemdError::Refused { .. }) => {
                    tracing::error!(change = %id, unit, error = chain(&error), "can't restart a unit");
                }
                begun => begun?,
            }
        }
        taken.restarted = Some(restarted);
    }
    let mut lost = Vec::new();
    for file in not_back {
        if file.is_transient() {
            return Err(file.error);
        }
        lost.push(format!("{} ({})", file.path, chain(&file.error)));
    }
    if !lost.is_empty() {
        why = format!("{why}; these files could not be put back: {}", lost.join(", "));
    }
    let outcome = Outcome {
        decision: Decision::Back,
        by: None,
        why: Some(why),
        at: wall_clock(),
    };
    store.close_back(&decided(armed, outcome))?;
    tracing::info!(change = %id, "went back");
    if let Err(error) = store.tidy().and_then(|()| store.prune(id)) {
        tracing::warn!(change = %id, error = chain(&error), "can't remove all that a change left");
    }
    Ok(())
}

/// Returns why a change goes back.
pub(super) fn reason(store: &Store, armed: &Armed, is_second: bool, is_this_boot: bool) -> String {
    store.why(armed.id).unwrap_or_else(|| {
        match (is_second, is_this_boot) {
            (true, _) => "its record was damaged",
            (false, true) => "it was not confirmed in time",
            (false, false) => "the host was rebooted before it was confirmed",
        }
        .to_owned()
    })
}

/// Puts the files of a way back into their places, each whatever became of the others, and returns those that failed.
pub(super) fn put_back(store: &Store, way_back: &WayBack) -> Vec<NotBack> {
    let mut failed = Vec::new();
    for file in &way_back.files {
        if let Err(error) = put_file_back(store, Path::new(&file.path), file.saved.as_deref()) {
            tracing::error!(path = file.path, error = chain(&error), "can't put a file back");
            failed.push(NotBack {
                path: file.path.clone(),
                error,
            });
        }
    }
    failed
}

fn put_file_back(store: &Store, path: &Path, saved: Option<&str>) -> Result<()> {
    let refused = || Error::Refused(format!("{} is not a path of a file", path.display()));
    let parent = path.parent().filter(|_| path.is_absolute()).ok_or_else(refused)?;
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(refused)?;
    let Some(directory) = Directory::open_root(parent)? else {
        return match saved {
            None => Ok(()),
            Some(_) => Err(Error::Failed(format!("{} does not exist", parent.display()))),
        };
    };
    match saved {
        Some(saved) => directory.link_from(&store.directory, saved, name)?,
        None => directory.remove_file(name)?,
    }
    directory.sync()
}

/// Restarts the units that use the armed change, and waits until they are ready. The lock is free in the meantime.
pub(super) async fn restart_for(path: &Path, units: &impl Units, left: Duration) -> Result<()> {
    let armed = match Store::open(path)? {
        Some(store) => store.armed()?,
        None => None,
    };
    for unit in armed.iter().flat_map(|armed| &armed.apply) {
        units.restart_and_wait(unit, left).await?;
    }
    Ok(())
}

/// Notes that the units that use the armed change are restarted: from now on it can be confirmed.
pub(super) async fn note_applied(path: &Path, id: ChangeId) -> Result<()> {
    let Some(store) = Store::open(path)? else {
        return Ok(());
    };
    let _lock = store.lock().await?;
    match store.armed()? {
        Some(armed) if armed.id == id => store.has_applied(id),
        _ => Ok(()),
    }
}

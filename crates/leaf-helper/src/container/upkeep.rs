//! Cleans up after earlier versions of the helper, or one that was killed: units with another text, units and notes of
//! containers that are gone, files of runs that ended, and forwarding that was enabled without a note. Each is brought up
//! to date or removed once in the life of a helper, with a line in the log.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;

use leaf_core::error::chain;
use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;

use crate::Helper;
use crate::container::inputs::{BINDS, SECRETS};
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::network::firewall::{ADMITTED, CUT_OFF};
use crate::systemd::prepare::PREPARED;
use crate::systemd::start::{GENERATED, UNITS};

impl Helper {
    /// Brings what earlier helpers left up to date, at the first call. A failure is logged: containers run all the same.
    pub(crate) async fn bring_up_to_date(&self) {
        if self.is_up_to_date.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Err(e) = self.adopt_forwarding().await {
            tracing::warn!(
                error = chain(&e),
                "can't tell whether an earlier helper enabled packet forwarding"
            );
        }
        let mut is_stale = false;
        for name in self.names_left() {
            match self.bring_one_up_to_date(&name).await {
                Ok(stale) => is_stale |= stale,
                Err(e) => {
                    tracing::warn!(container = %name, error = chain(&e), "can't bring what an earlier helper left up to date");
                }
            }
        }
        // Once for all: it takes seconds on a small host.
        if is_stale && let Err(e) = self.systemd.reload().await {
            tracing::warn!(error = chain(&e), "systemd can't reload the containers' units");
        }
    }

    /// Returns the names of all containers of which this leaf has something: a spec, notes of a run, or a unit.
    fn names_left(&self) -> BTreeSet<ContainerName> {
        let mut names = BTreeSet::new();
        for directory in [&self.paths.state, &self.paths.run] {
            names.extend(names_in(directory, "", ""));
        }
        if self.settings.runtime == Runtime::Systemd {
            for directory in [UNITS, GENERATED] {
                let of_units = names_in(Path::new(directory), "container@", ".service");
                names.extend(of_units.filter(|name| self.has_unit(name)));
            }
        }
        names
    }

    /// Returns whether there is a unit of a container that this leaf made.
    fn has_unit(&self, name: &ContainerName) -> bool {
        let text = |directory: &str| {
            let directory = Directory::open_root(directory.as_ref()).ok()??;
            directory.read(&Runtime::unit(name)).ok()?
        };
        [UNITS, GENERATED]
            .into_iter()
            .any(|directory| text(directory).is_some_and(|text| self.made(&text)))
    }

    /// Returns whether a container has a run directory, or a unit.
    fn is_known_to_run(&self, name: &ContainerName) -> Result<bool> {
        let noted = match Directory::open_root(&self.paths.run)? {
            Some(run) => run.has(name.as_str())?,
            None => false,
        };
        Ok(noted || (self.settings.runtime == Runtime::Systemd && self.has_unit(name)))
    }

    /// Returns whether a container has notes and inputs of a run in its run directory, which the end of a run removes.
    fn has_notes(&self, name: &ContainerName) -> Result<bool> {
        let Some(run) = Directory::open_root(&self.paths.run.join(name.as_str()))? else {
            return Ok(false);
        };
        for note in [ADMITTED, CUT_OFF, PREPARED, BINDS, SECRETS] {
            if run.has(note)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns whether systemd has loaded an earlier text of the container's unit.
    async fn bring_one_up_to_date(&self, name: &ContainerName) -> Result<bool> {
        // A create or a destroy at the same time would leave half of its own work, and half of this.
        let _contract = self.lock_contract().await?;
        let mut is_stale = false;
        let confs = Directory::make_root(&self.paths.confs, 0o755)?;
        let spec = match self.owns(&confs, name) {
            Ok(true) => self.spec(name)?,
            Ok(false) => None,
            // Another owner's: nothing of it is this leaf's.
            Err(Error::Refused(_)) => return Ok(false),
            Err(e) => return Err(e),
        };
        match spec {
            Some(spec) => {
                if self.settings.runtime == Runtime::Systemd && self.write_unit(&spec)? {
                    is_stale = self.is_unit_loaded(name).await?;
                    tracing::info!(container = %name, "its unit had the text of another version, and was replaced");
                }
                if self.has_notes(name)? && self.clean_up_if_down(name).await? {
                    tracing::info!(container = %name, "removed what a run that ended had left");
                }
            }
            // A create or a destroy that was cut short has a spec, and is completed by leafd.
            None if self.spec(name)?.is_some() => {}
            None if !self.is_known_to_run(name)? => {}
            None => {
                let is_gone = match self.settings.runtime {
                    Runtime::Systemd => self.remove_unit(name).await?,
                    Runtime::Nspawn => true,
                };
                if is_gone && self.clean_up_if_down(name).await? {
                    if let Some(run) = Directory::open_root(&self.paths.run)? {
                        run.remove_tree(name.as_str())?;
                    }
                    tracing::info!(container = %name, "removed the unit and the notes of a container that is gone");
                }
            }
        }
        Ok(is_stale)
    }

    /// Removes what a container that is down has on the host apart from its files. Returns whether it is down.
    async fn clean_up_if_down(&self, name: &ContainerName) -> Result<bool> {
        match self.settings.runtime {
            Runtime::Systemd => {
                if self.unit_is_up(name).await? {
                    return Ok(false);
                }
                // It may be started in the meantime, and waits for this lock then.
                let _preparing = self.begin_to_prepare_start(name).await?;
                if self.unit_is_up(name).await? {
                    return Ok(false);
                }
                self.release_inputs(name)?;
                self.sweep_common(name).await?;
            }
            Runtime::Nspawn => {
                // Told at once, while the lock is tried for half a second.
                if self.is_supervised(name)? {
                    return Ok(false);
                }
                let Some(_lock) = self.acquire(name).await? else {
                    return Ok(false);
                };
                self.sweep(name).await?;
            }
        }
        Ok(true)
    }
}

/// Returns the names of containers among the names in a directory, between a prefix and a suffix.
fn names_in(directory: &Path, prefix: &str, suffix: &str) -> impl Iterator<Item = ContainerName> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let file = entry.file_name();
        let name = file.to_str()?.strip_prefix(prefix)?.strip_suffix(suffix)?;
        ContainerName::new(name).ok()
    })
}

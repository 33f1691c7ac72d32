//! The host's NixOS systems, as its links and the records of changes show them. Nothing here is changed.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use leaf_core::change::{Armed, Decided, KIND_SYSTEM};
use leaf_core::command::{DecidedSwitch, Generation, MAX_GENERATIONS, OpenChange, SystemReport};
use leaf_core::id::StorePath;

/// Where a host has its systems.
#[derive(Debug, Clone)]
pub struct SystemLinks {
    /// The link to the system that runs.
    pub running: PathBuf,
    /// The link to the system whose kernel runs.
    pub booted: PathBuf,
    /// The profile of the system.
    pub profile: PathBuf,
}

impl Default for SystemLinks {
    /// Returns the paths of NixOS.
    fn default() -> Self {
        Self {
            running: "/run/current-system".into(),
            booted: "/run/booted-system".into(),
            profile: "/nix/var/nix/profiles/system".into(),
        }
    }
}

/// The changes of the system in the records on the host.
#[derive(Debug, Default)]
pub struct SystemChanges {
    /// The open change, with the seconds that are left.
    pub open: Option<(Armed, u64)>,
    /// Whether it is in use.
    pub is_in_use: bool,
    /// Those that were decided, in any order.
    pub decided: Vec<Decided>,
}

impl SystemLinks {
    /// Returns the report on the host's systems.
    #[must_use]
    pub fn report(&self, changes: SystemChanges) -> SystemReport {
        let mut decided: Vec<_> = changes
            .decided
            .into_iter()
            .filter(|decided| decided.armed.kind == KIND_SYSTEM)
            .collect();
        decided.sort_by_key(|decided| std::cmp::Reverse((decided.armed.armed_at, decided.armed.id)));
        let is_system = |(armed, _): &(Armed, u64)| armed.kind == KIND_SYSTEM;
        let open = changes.open.filter(is_system);
        SystemReport {
            running: store_path(&self.running),
            booted: store_path(&self.booted),
            profile: self.present(),
            generations: self.generations(),
            can_be_confirmed: open.is_some() && changes.is_in_use,
            change: open.map(|(armed, seconds_left)| OpenChange {
                id: armed.id,
                kind: armed.kind,
                caller: armed.caller,
                url: None,
                toplevel: armed.system.map(|system| system.toplevel),
                seconds_left,
                unwitnessed: armed.unwitnessed,
            }),
            decided: decided.into_iter().map(switch_of).collect(),
        }
    }

    /// Returns whether the system that runs is the booted one; also where the host is no NixOS.
    #[must_use]
    pub fn runs_as_booted(&self) -> bool {
        store_path(&self.running) == store_path(&self.booted)
    }

    fn present(&self) -> Option<u64> {
        let link = std::fs::read_link(&self.profile).ok()?;
        self.number(Path::new(&link))
    }

    /// Returns the number of a generation's link: `system-7-link`.
    fn number(&self, link: &Path) -> Option<u64> {
        let profile = self.profile.file_name()?.to_str()?;
        let name = link.file_name()?.to_str()?;
        let number = name
            .strip_prefix(profile)?
            .strip_prefix('-')?
            .strip_suffix("-link")?;
        number.parse().ok()
    }

    fn generations(&self) -> Vec<Generation> {
        let directory = self.profile.parent().map(std::fs::read_dir);
        let entries = directory.into_iter().flatten().flatten().filter_map(Result::ok);
        let mut generations: Vec<_> = entries
            .filter_map(|entry| {
                let path = entry.path();
                let made_at = path
                    .symlink_metadata()
                    .and_then(|meta| meta.modified())
                    .ok()
                    .and_then(|time| Timestamp::try_from(time).ok());
                Some(Generation {
                    number: self.number(&path)?,
                    toplevel: store_path(&path)?,
                    made_at,
                })
            })
            .collect();
        generations.sort_by_key(|generation| std::cmp::Reverse(generation.number));
        generations.truncate(MAX_GENERATIONS);
        generations
    }
}

fn store_path(link: &Path) -> Option<StorePath> {
    let target = std::fs::read_link(link).ok()?;
    StorePath::new(target.to_str()?).ok()
}

fn switch_of(decided: Decided) -> DecidedSwitch {
    let decision = decided.decision();
    let Decided { armed, outcome } = decided;
    let outcome = outcome.as_ref();
    DecidedSwitch {
        id: armed.id,
        decision,
        mode: armed.system.as_ref().map(|system| system.mode),
        toplevel: armed.system.map(|system| system.toplevel),
        caller: armed.caller,
        by: outcome.and_then(|outcome| outcome.by.clone()),
        why: outcome.and_then(|outcome| outcome.why.clone()),
        at: outcome.and_then(|outcome| outcome.at),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;

    fn system(number: u8) -> String {
        format!("/nix/store/{number:032}-nixos-system")
    }

    #[test]
    fn the_generations_are_those_of_the_profile_newest_first_and_other_links_are_none() {
        let place = tempfile::tempdir().expect("a directory");
        let at = |name: &str| place.path().join(name);
        for (name, target) in [
            ("system-2-link", system(2)),
            ("system-10-link", system(3)),
            ("system", "system-10-link".to_owned()),
            ("system-x-link", system(4)),
            ("system-11-link", "/etc".to_owned()),
            ("default-12-link", system(5)),
            ("current", system(3)),
        ] {
            symlink(target, at(name)).expect("a link");
        }
        let links = SystemLinks {
            running: at("current"),
            booted: at("none"),
            profile: at("system"),
        };
        let record = |id: u8, kind: &str, at: &str, decision: &str| -> Decided {
            serde_json::from_value(json!({
                "id": format!("01890000-0000-7000-8000-{id:012}"), "leaf": "edge-1", "kind": kind, "armed_at": at,
                "system": {"toplevel": system(id), "previous": system(1), "mode": "switch"},
                "outcome": {"decision": decision, "why": "it was not confirmed in time"},
            }))
            .expect("a record")
        };
        let report = links.report(SystemChanges {
            open: None,
            is_in_use: true,
            decided: vec![
                record(1, "system", "2026-01-01T00:00:00Z", "confirmed"),
                record(2, "hub", "2026-01-03T00:00:00Z", "confirmed"),
                record(3, "system", "2026-01-02T00:00:00Z", "back"),
            ],
        });
        let numbers: Vec<_> = report.generations.iter().map(|g| g.number).collect();
        assert_eq!((numbers, report.profile), (vec![10, 2], Some(10)));
        assert_eq!(report.running.map(String::from), Some(system(3)));
        assert_eq!((report.booted, report.can_be_confirmed), (None, false));
        let ids: Vec<_> = report
            .decided
            .iter()
            .map(|d| d.toplevel.clone().map(String::from))
            .collect();
        assert_eq!(ids, [Some(system(3)), Some(system(1))]);
    }

    #[test]
    fn the_nixos_module_says_the_format_that_this_leafd_reads() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../nixos-modules/leaf/system.nix");
        let text = std::fs::read_to_string(file).expect("the file");
        let line = format!("  journal_format = {};", leaf_journal::FORMAT);
        assert!(text.lines().any(|have| have == line), "{line} is not in {text}");
    }

    #[test]
    fn a_host_that_is_no_nixos_has_no_systems() {
        let place = tempfile::tempdir().expect("a directory");
        let links = SystemLinks {
            running: place.path().join("a"),
            booted: place.path().join("b"),
            profile: place.path().join("none/system"),
        };
        assert_eq!(links.report(SystemChanges::default()), SystemReport::default());
    }
}

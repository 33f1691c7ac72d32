//! What the host must show after a switch before the change can be confirmed, and as long as it is open.

use leaf_core::change::ArmedSystem;

use super::Root;
use crate::change::{UnitHealth, Units};
use crate::error::Result;

/// The unit without which nobody commands the leaf.
pub(super) const LEAFD: &str = "leafd.service";
/// How many units a reason names.
const NAMED: usize = 8;
/// The beginnings of the names of units that come and go by themselves: of containers, jobs, sessions, and of the change itself.
const NOT_OF_THE_SYSTEM: [&str; 5] = ["container@", "leaf-change", "leaf-job-", "leaf-switch", "user@"];

/// What the host shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Health {
    /// All is well; with the number of leafd's restarts by systemd.
    Well {
        /// How often systemd started leafd again since it was started.
        restarts: u64,
    },
    /// A unit is not active yet.
    NotYet(String),
    /// Something failed: the change goes back.
    Failed(String),
}

/// Observes the host.
pub(super) async fn observe(root: &Root, system: &ArmedSystem, units: &impl Units) -> Result<Health> {
    let failed: Vec<_> = units
        .failed_units()
        .await?
        .into_iter()
        .filter(|unit| is_of_the_system(root, system, unit))
        .filter(|unit| !system.failed_before.contains(unit) && !system.allow_failed.contains(unit))
        .collect();
    if !failed.is_empty() {
        return Ok(Health::Failed(format!(
            "units failed that had not failed before: {}",
            named(&failed)
        )));
    }
    let UnitHealth { active, restarts } = units.health(LEAFD).await?;
    if active != "active" {
        return Ok(Health::NotYet(format!("{LEAFD} is {active}")));
    }
    for unit in &system.healthy_units {
        let UnitHealth { active, .. } = units.health(unit).await?;
        if active != "active" {
            return Ok(Health::NotYet(format!("{unit} is {active}")));
        }
    }
    Ok(Health::Well { restarts })
}

/// Returns whether a unit is one of the new or of the earlier system: what has no file there is none of a switch's.
pub(super) fn is_of_the_system(root: &Root, system: &ArmedSystem, unit: &str) -> bool {
    if NOT_OF_THE_SYSTEM.iter().any(|start| unit.starts_with(start)) {
        return false;
    }
    let file = match (unit.split_once('@'), unit.rsplit_once('.')) {
        (Some((template, _)), Some((_, kind))) => format!("{template}@.{kind}"),
        _ => unit.to_owned(),
    };
    let has = |of, file: &str| {
        let path = root.of(of, "etc/systemd/system").join(file);
        path.symlink_metadata().is_ok()
    };
    let systems = [&system.toplevel, &system.previous];
    // Those of fstab have no file.
    unit.ends_with(".mount") || systems.iter().any(|of| has(of, unit) || has(of, &file))
}

/// Returns the first of some units.
fn named(units: &[String]) -> String {
    let more = units.len().saturating_sub(NAMED);
    let first = units[..units.len() - more].join(", ");
    if more == 0 {
        first
    } else {
        format!("{first}, and {more} more")
    }
}

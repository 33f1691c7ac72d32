//! The generations of the system's profile, and which of them a confirmed switch removes.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use leaf_core::change::{ArmedSystem, KeptGenerations};
use leaf_core::id::StorePath;

use super::{BOOTED, PROFILE, Root, programs};
use crate::error::Result;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A generation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Generation {
    number: u64,
    system: StorePath,
    /// How long ago it was made, if the clock says so.
    age: Option<Duration>,
}

/// Removes the generations that the settings give up. Called once a system is the profile's, and before its boot loader is set, which
/// lists generations.
///
/// # Errors
/// If Nix can't remove them.
pub(super) async fn prune(root: &Root, system: &ArmedSystem) -> Result<()> {
    let Some(kept) = &system.keep else {
        return Ok(());
    };
    let Some(present) = present(root) else {
        return Ok(());
    };
    // What runs, what was booted, and what the way back led to.
    let booted = root.link(BOOTED).ok();
    let held: BTreeSet<StorePath> = booted
        .into_iter()
        .chain(root.current().ok())
        .chain([system.previous.clone(), system.toplevel.clone()])
        .collect();
    let numbers = superfluous(all(root, SystemTime::now()), present, kept, &held);
    if numbers.is_empty() {
        return Ok(());
    }
    tracing::info!(?numbers, "removing old generations of the system");
    programs::delete_generations(root, system, &numbers).await
}

/// Returns the numbers of the generations that go, oldest first: those that are not among the newest, and those that are too old; but
/// never the present one, nor one with a system that is held.
fn superfluous(
    mut generations: Vec<Generation>,
    present: u64,
    kept: &KeptGenerations,
    held: &BTreeSet<StorePath>,
) -> Vec<u64> {
    generations.sort_by_key(|generation| std::cmp::Reverse(generation.number));
    let newest = kept
        .newest
        .map_or(usize::MAX, |newest| usize::try_from(newest).unwrap_or(usize::MAX));
    let longest = kept.days.map(|days| DAY * days);
    let mut numbers: Vec<u64> = generations
        .into_iter()
        .enumerate()
        .filter(|(nth, generation)| {
            let is_old = longest
                .zip(generation.age)
                .is_some_and(|(longest, age)| age > longest);
            let goes = *nth >= newest || is_old;
            goes && generation.number != present && !held.contains(&generation.system)
        })
        .map(|(_, generation)| generation.number)
        .collect();
    numbers.reverse();
    numbers
}

/// Returns the number of the generation that the profile names.
fn present(root: &Root) -> Option<u64> {
    number(std::fs::read_link(root.at(PROFILE)).ok()?.file_name()?.to_str()?)
}

fn all(root: &Root, now: SystemTime) -> Vec<Generation> {
    let profile = root.at(PROFILE);
    let entries = profile.parent().map(std::fs::read_dir);
    let entries = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(std::result::Result::ok);
    entries
        .filter_map(|entry| {
            let path = entry.path();
            let target = std::fs::read_link(&path).ok()?;
            let made = path.symlink_metadata().and_then(|meta| meta.modified());
            Some(Generation {
                number: number(entry.file_name().to_str()?)?,
                system: StorePath::new(target.to_str()?).ok()?,
                age: made.ok().and_then(|made| now.duration_since(made).ok()),
            })
        })
        .collect()
}

/// Returns the number in a generation's name: `system-7-link`.
fn number(name: &str) -> Option<u64> {
    name.strip_prefix("system-")?.strip_suffix("-link")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(number: u64) -> StorePath {
        StorePath::new(format!("/nix/store/{number:032}-nixos")).expect("a path")
    }

    fn generation(number: u64, days: Option<u32>) -> Generation {
        Generation {
            number,
            system: system(number),
            age: days.map(|days| DAY * days),
        }
    }

    #[test]
    fn generations_go_by_number_and_by_age_and_never_one_in_use() {
        // The newest last; the clock was wrong when the third was made.
        let all = || {
            vec![
                generation(1, Some(90)),
                generation(2, Some(60)),
                generation(3, None),
                generation(4, Some(20)),
                generation(5, Some(0)),
            ]
        };
        let go = |newest, days, held: &[u64]| {
            let held = held.iter().map(|number| system(*number)).collect();
            superfluous(all(), 5, &KeptGenerations { newest, days }, &held)
        };
        assert_eq!(go(Some(2), None, &[]), [1, 2, 3]);
        assert_eq!(go(None, Some(30), &[]), [1, 2]);
        assert_eq!(go(Some(4), Some(30), &[]), [1, 2]);
        assert_eq!(go(Some(2), Some(10), &[]), [1, 2, 3, 4]);
        assert_eq!(go(Some(1), Some(0), &[1, 4]), [2, 3]);
        assert!(go(None, None, &[]).is_empty());
        // The present one is not the newest, as after a rollback by other means.
        let kept = KeptGenerations {
            newest: Some(1),
            days: None,
        };
        assert_eq!(superfluous(all(), 2, &kept, &BTreeSet::new()), [1, 3, 4]);
    }
}

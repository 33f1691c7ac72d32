//! The flake references of a build that are locked first.

use leaf_core::id::StorePath;
use leaf_core::job::policy::is_locked;

use crate::installable::{Run, Wanted, split_fragment};

/// Returns the flake references of runs that are not locked, without their attributes, each once.
pub(super) fn unlocked(runs: &[Run]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for wanted in flakes(runs) {
        let (reference, _) = split_fragment(&wanted.text);
        if !is_locked(reference) && !found.iter().any(|known| known == reference) {
            found.push(reference.to_owned());
        }
    }
    found
}

/// Replaces a flake reference by its locked form, which may have a query; attributes stay.
pub(super) fn replace(runs: &mut [Run], reference: &str, locked: &str) {
    for run in runs.iter_mut().filter(|run| !of_file(run)) {
        for wanted in run.installables.iter_mut().filter(|wanted| is_flake(wanted)) {
            let (own, fragment) = split_fragment(&wanted.text);
            if own == reference {
                wanted.text = match fragment {
                    Some(fragment) => format!("{locked}#{fragment}"),
                    None => locked.to_owned(),
                };
            }
        }
    }
}

fn flakes(runs: &[Run]) -> impl Iterator<Item = &Wanted> {
    let of_flakes = runs.iter().filter(|run| !of_file(run));
    of_flakes
        .flat_map(|run| &run.installables)
        .filter(|wanted| is_flake(wanted))
}

/// Returns whether a run is about a file, of which installables are attributes.
fn of_file(run: &Run) -> bool {
    run.flags.iter().any(|flag| flag == "--file")
}

fn is_flake(wanted: &Wanted) -> bool {
    !wanted.is_derivation && StorePath::new(wanted.text.clone()).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(flags: &[&str], texts: &[&str]) -> Run {
        let wanted = |text: &&str| Wanted {
            text: (*text).to_owned(),
            outputs: None,
            is_derivation: text.ends_with(".drv"),
        };
        Run {
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            installables: texts.iter().map(wanted).collect(),
        }
    }

    #[test]
    fn a_flake_is_locked_once_whatever_is_wanted_of_it_and_nothing_else_is() {
        let path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a";
        let drv = format!("{path}.drv");
        let fixed = format!("{path}#a");
        let mut runs = [
            run(&["--file", "/a.nix"], &["github:o/r"]),
            run(
                &["--no-update-lock-file"],
                &[
                    "github:o/r#a",
                    path,
                    "github:o/r#b",
                    "/srv/f",
                    &drv,
                    &fixed,
                    "github:o/r?ref=x#a",
                ],
            ),
        ];
        assert_eq!(unlocked(&runs), ["github:o/r", "/srv/f", "github:o/r?ref=x"]);
        replace(&mut runs, "github:o/r", "github:o/r/1");
        replace(&mut runs, "/srv/f", "path:/srv/f?narHash=x");
        let texts: Vec<&str> = runs
            .iter()
            .flat_map(|run| &run.installables)
            .map(|wanted| &*wanted.text)
            .collect();
        assert_eq!(
            texts,
            [
                "github:o/r",
                "github:o/r/1#a",
                path,
                "github:o/r/1#b",
                "path:/srv/f?narHash=x",
                &drv,
                &fixed,
                "github:o/r?ref=x#a",
            ]
        );
    }
}

//! Placement: which leaf of a fleet carries out a job. docs/protocol/placement.md is the contract.
//!
//! | module | contents |
//! |---|---|
//! | [`demand`] | what a job takes of its leaf: features with counts; its priority |
//! | [`pressure`] | the pressure of a host, and its limits |
//! | [`room`] | what a leaf has, what is left of it, and which queued jobs start |
//! | [`offer`] | what a leaf says that would come of a build |
//! | [`choice`] | the client's side: the order in which leaves are asked, and which offer is taken |

pub mod choice;
pub mod demand;
pub mod offer;
pub mod pressure;
pub mod room;
pub mod work;

use std::collections::BTreeSet;
use std::fmt;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use crate::job::{Installable, Task};

/// What a build is about: the SHA-256 of its installables without their chosen outputs, as 64 hexadecimal digits. Two requests for the
/// same thing have the same key, though nothing was evaluated. Different keys may mean one derivation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobKey(String);

impl JobKey {
    /// Returns the key of a build of these installables, in whatever order they are.
    #[must_use]
    pub fn of_build<'a>(installables: impl IntoIterator<Item = &'a Installable>) -> Self {
        // Sorted and without duplicates; serde_json writes the keys of an object in order.
        let texts: BTreeSet<String> = installables
            .into_iter()
            .map(|installable| serde_json::json!(installable.without_outputs()).to_string())
            .collect();
        let mut hash = Sha256::new();
        for text in texts {
            hash.update(text.as_bytes());
            hash.update(b"\n");
        }
        Self(HEXLOWER.encode(&hash.finalize()))
    }

    /// Returns the key of a task; `None` of one that is no build, and of the build of a container's system.
    #[must_use]
    pub fn of(task: &Task) -> Option<Self> {
        let Task::Build(task) = task else { return None };
        task.container.is_none().then(|| Self::of_build(task.all()))
    }
}

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::StorePath;

    fn flake(reference: &str) -> Installable {
        Installable::Flake {
            reference: reference.to_owned(),
        }
    }

    #[test]
    fn a_key_does_not_depend_on_the_order_of_installables_or_on_chosen_outputs() {
        let of =
            |references: &[&str]| JobKey::of_build(&references.iter().map(|r| flake(r)).collect::<Vec<_>>());
        assert_eq!(of(&["a#b", "a#c^dev"]), of(&["a#c", "a#b^out,dev", "a#b"]));
        assert_ne!(of(&["a#b"]), of(&["a#c"]));
        assert_ne!(of(&["a#b", "a#c"]), of(&["a#b"]));
        let path = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello.drv").expect("a path");
        let chosen = Installable::Derivation {
            path: path.clone(),
            outputs: "dev".to_owned(),
        };
        let whole = Installable::StorePath { path };
        assert_eq!(JobKey::of_build([&chosen]), JobKey::of_build([&whole]));
    }

    #[test]
    fn clients_of_all_versions_make_the_same_key() {
        // A change of this value would have two versions of leafctl place the same job on two leaves.
        assert_eq!(
            JobKey::of_build([&flake("github:owner/repo#hello")]).to_string(),
            "2d357f818d17b0c623f5de3b227ec815ccee3b3ad55a3b255cee27a3c274a57e"
        );
    }
}

//! What a leaf says of paths of its store, and how their NARs are read.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{MOST_PATHS, SentPath};
use crate::id::StorePath;

/// The maximum number of paths of a closure that a leaf lists.
pub const MOST_OF_CLOSURE: usize = 8192;

/// What a leaf says of paths of its store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stored {
    /// The paths: those of the request in its order; or of a closure all, each behind what it refers to.
    pub paths: Vec<SentPath>,
    /// The download of their NARs, one after the other; absent of a closure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<Uuid>,
    /// The most bytes of one read.
    pub chunk_bytes: usize,
}

/// Checks which paths a caller asks for.
///
/// # Errors
/// The reason, for the caller.
pub fn check_wanted(paths: &[StorePath]) -> Result<(), String> {
    if !(1..=MOST_PATHS).contains(&paths.len()) {
        return Err(format!("give 1 to {MOST_PATHS} paths, not {}", paths.len()));
    }
    let mut seen = BTreeSet::new();
    match paths.iter().find(|path| !seen.insert(*path)) {
        Some(path) => Err(format!("{path} is given twice")),
        None => Ok(()),
    }
}

/// Returns paths in an order in which each stands behind what it refers to, where that is among them. Equals keep their order. Of a
/// circle, which no store has, the order is any.
#[must_use]
pub fn in_order(paths: Vec<SentPath>) -> Vec<SentPath> {
    let mut waits_for: BTreeMap<StorePath, usize> = BTreeMap::new();
    let mut needed_by: BTreeMap<StorePath, Vec<StorePath>> = BTreeMap::new();
    let all: BTreeSet<StorePath> = paths.iter().map(|sent| sent.path.clone()).collect();
    for sent in &paths {
        let needs: BTreeSet<&StorePath> = sent
            .references
            .iter()
            .filter(|reference| **reference != sent.path && all.contains(*reference))
            .collect();
        waits_for.insert(sent.path.clone(), needs.len());
        for need in needs {
            needed_by.entry(need.clone()).or_default().push(sent.path.clone());
        }
    }
    let mut ready: Vec<StorePath> = paths
        .iter()
        .rev()
        .filter(|sent| waits_for.get(&sent.path) == Some(&0))
        .map(|sent| sent.path.clone())
        .collect();
    let mut by_path: BTreeMap<StorePath, SentPath> =
        paths.into_iter().map(|sent| (sent.path.clone(), sent)).collect();
    let mut ordered = Vec::with_capacity(by_path.len());
    while let Some(path) = ready.pop() {
        ordered.extend(by_path.remove(&path));
        for next in needed_by.remove(&path).into_iter().flatten() {
            if let Some(count) = waits_for.get_mut(&next) {
                *count -= 1;
                if *count == 0 {
                    ready.push(next);
                }
            }
        }
    }
    ordered.extend(by_path.into_values());
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: u32) -> StorePath {
        StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}")).expect("a path")
    }

    fn sent(name: u32, references: &[u32]) -> SentPath {
        SentPath {
            path: path(name),
            nar_hash: String::new(),
            nar_size: 1,
            references: references.iter().copied().map(path).collect(),
            content_address: None,
            signatures: Vec::new(),
            deriver: None,
        }
    }

    #[test]
    fn each_path_stands_behind_what_it_refers_to() {
        let paths = vec![
            sent(4, &[3, 4, 99]),
            sent(3, &[1, 2]),
            sent(2, &[1]),
            sent(1, &[]),
            sent(5, &[]),
        ];
        let ordered = in_order(paths.clone());
        assert_eq!(ordered.len(), paths.len());
        for (place, sent) in ordered.iter().enumerate() {
            for reference in &sent.references {
                let behind = ordered[place + 1..].iter().any(|other| other.path == *reference);
                assert!(!behind, "{} stands behind {}", reference, sent.path);
            }
        }
        assert_eq!(
            in_order(vec![sent(1, &[2]), sent(2, &[1])]).len(),
            2,
            "a circle ends"
        );
    }

    #[test]
    fn what_no_leaf_can_list_is_refused_with_the_reason() {
        let one = path(1);
        assert_eq!(check_wanted(std::slice::from_ref(&one)), Ok(()));
        check_wanted(&[]).expect_err("none");
        let error = check_wanted(&[one.clone(), one]).expect_err("twice");
        assert!(error.contains("twice"), "{error}");
        let many: Vec<StorePath> = (0..513).map(path).collect();
        check_wanted(&many).expect_err("too many");
    }
}

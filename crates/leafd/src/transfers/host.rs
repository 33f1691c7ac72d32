//! Where uploads go, and their bounds.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use leaf_core::id::{Caller, StorePath};
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::transfer::SentPath;
use leaf_nix::gc::free_bytes;
use leaf_nix::{Nix, NixError};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

/// How long paths are held after the last command that named them.
const HELD: Duration = Duration::from_secs(24 * 3600);
/// How many commands' paths are held for one caller, beside what open jobs need.
const MOST_HELD: usize = 32;

/// Where uploads go, and their bounds.
#[derive(Debug)]
pub struct Host {
    /// Nix, which adds what is uploaded.
    pub nix: Nix,
    /// The directory of the uploads.
    pub directory: PathBuf,
    /// The directory of the links that hold what was added.
    pub kept: PathBuf,
    /// A directory on the disk of the store.
    pub store: PathBuf,
    /// The most bytes of one upload (`nix.max_upload_bytes`).
    pub max_upload_bytes: u64,
    /// What open jobs are about.
    pub named: watch::Sender<BTreeSet<String>>,
    /// What is kept free on both disks (`nix.min_free_bytes`).
    pub min_free_bytes: u64,
}

impl Host {
    /// Checks that the disks have room for so many bytes of uploads, and for so many of the store.
    pub(super) fn has_room(&self, of_uploads: u64, of_store: u64) -> Result<(), Problem> {
        let kept = self.min_free_bytes;
        for (directory, needed) in [(&self.directory, of_uploads), (&self.store, of_store)] {
            let Ok(free) = free_bytes(directory) else { continue };
            if free < kept.saturating_add(needed) {
                let detail = format!(
                    "the disk of {} has {free} bytes left, uploads need {needed} of them, and nix.min_free_bytes keeps {kept}",
                    directory.display()
                );
                return Err(Problem::new(ProblemCode::DiskFull, detail));
            }
        }
        Ok(())
    }
}

/// Links that hold what callers sent.
#[derive(Debug)]
struct Kept {
    directory: PathBuf,
    /// When they were last made.
    used: SystemTime,
    /// Whether an open job names one of the paths.
    is_needed: bool,
}

fn kept(directory: &Path, named: &BTreeSet<String>) -> Vec<Kept> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let kept = entries.filter_map(|entry| {
        let directory = entry.path();
        let links = fs::read_dir(&directory).into_iter().flatten().flatten();
        let is_needed = links
            .filter_map(|link| fs::read_link(link.path()).ok())
            .any(|path| named.iter().any(|text| text.contains(&*path.to_string_lossy())));
        Some(Kept {
            used: entry.metadata().ok()?.modified().ok()?,
            directory,
            is_needed,
        })
    });
    kept.collect()
}

/// Gives up what is held in a directory for longer than a day, and more than so many; but not what an open job needs.
pub(super) fn release(directory: &Path, named: &BTreeSet<String>, most: usize) {
    for directory in released(kept(directory, named), SystemTime::now(), most) {
        if let Err(error) = fs::remove_dir_all(&directory) {
            tracing::warn!(%error, directory = %directory.display(), "can't give up paths that callers sent");
        }
    }
}

/// Returns the directories of what is held no longer.
fn released(mut kept: Vec<Kept>, now: SystemTime, most: usize) -> Vec<PathBuf> {
    kept.retain(|kept| !kept.is_needed);
    kept.sort_by_key(|kept| std::cmp::Reverse(kept.used));
    let is_old = |kept: &Kept| now.duration_since(kept.used).is_ok_and(|age| age > HELD);
    let released = kept.into_iter().enumerate();
    let released = released.filter(|(place, kept)| *place >= most || is_old(kept));
    released.map(|(_, kept)| kept.directory).collect()
}

impl Host {
    /// Holds these paths for what a caller asks: the directory is that of the caller and of all that was asked. Of more than
    /// [`MOST_HELD`] such, the oldest that no open job needs are given up.
    pub(super) async fn hold(
        &self,
        caller: &Caller,
        asked: &[SentPath],
        paths: &[StorePath],
    ) -> Result<(), NixError> {
        let of_caller = self.kept.join(caller.as_str());
        let directory = kept_directory(&of_caller, asked);
        if !directory.exists() {
            let named = self.named.borrow().clone();
            let released = tokio::task::spawn_blocking(move || release(&of_caller, &named, MOST_HELD - 1));
            if let Err(error) = released.await {
                tracing::warn!(%error, "the scan of what is held ended early");
            }
        }
        self.nix.hold(&directory, paths).await
    }
}

/// Returns the directory of the links that hold these paths.
fn kept_directory(kept: &Path, paths: &[SentPath]) -> PathBuf {
    let mut hash = Sha256::new();
    for sent in paths {
        hash.update(sent.path.as_str());
        hash.update("\n");
    }
    kept.join(&HEXLOWER.encode(&hash.finalize())[..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_held_for_a_day_and_as_long_as_an_open_job_names_them() {
        let now = SystemTime::now();
        let kept = |name: &str, hours: u64, is_needed| Kept {
            directory: name.into(),
            used: now - Duration::from_secs(hours * 3600),
            is_needed,
        };
        let all = vec![
            kept("new", 1, false),
            kept("old", 25, false),
            kept("needed", 25, true),
            kept("of tomorrow", 0, false),
        ];
        assert_eq!(released(all, now, usize::MAX), [PathBuf::from("old")]);
        let many = (0..300).map(|number| kept(&number.to_string(), number / 100, false));
        let released = released(many.collect(), now, 256);
        assert_eq!(released.len(), 300 - 256);
        assert!(
            released.iter().all(|path| path.as_os_str().len() == 3),
            "{released:?}"
        );
    }

    #[test]
    fn a_link_is_needed_if_a_job_names_its_path() {
        let place = tempfile::tempdir().expect("a directory");
        let path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-source";
        fs::create_dir(place.path().join("x")).expect("a directory");
        std::os::unix::fs::symlink(path, place.path().join("x/path")).expect("a link");
        let named = [format!("path:{path}?narHash=x#hello")].into();
        assert!(kept(place.path(), &named)[0].is_needed);
        assert!(!kept(place.path(), &BTreeSet::new())[0].is_needed);
    }

    #[test]
    fn of_one_caller_the_oldest_are_given_up_and_of_others_none() {
        let place = tempfile::tempdir().expect("a directory");
        let path = |number: u32| format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{number}");
        for caller in ["ann", "ben"] {
            for number in 0..40 {
                let directory = place.path().join(caller).join(number.to_string());
                fs::create_dir_all(&directory).expect("a directory");
                std::os::unix::fs::symlink(path(number), directory.join("path")).expect("a link");
                let used = SystemTime::now() - Duration::from_secs(u64::from(40 - number));
                let opened = fs::File::open(&directory).expect("a directory");
                opened.set_modified(used).expect("it is this user's");
            }
        }
        let named = [format!("path:{}#hello", path(0))].into();
        release(&place.path().join("ann"), &named, MOST_HELD - 1);
        let mut left: Vec<u32> = fs::read_dir(place.path().join("ann"))
            .expect("a directory")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .parse()
                    .expect("a number")
            })
            .collect();
        left.sort_unstable();
        // One more is about to be made, and an open job names the oldest.
        let expected: Vec<u32> = std::iter::once(0).chain(9..40).collect();
        assert_eq!(left, expected);
        assert_eq!(
            fs::read_dir(place.path().join("ben"))
                .expect("a directory")
                .count(),
            40
        );
    }
}

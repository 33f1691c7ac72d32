//! What hooks of this machine know of leaves, and how many builds they have under way: a directory that they share.
//!
//! Nix waits for the answer to each derivation, and starts a process for each. So the beats of the leaves are kept in a file for some
//! seconds, which hooks that follow builds renew; and each build has a file locked, which the kernel unlocks whatever ends the hook.

use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use leaf_core::beat::{Builds, Presence, presence};
use leaf_core::id::LeafName;
use leaf_core::json::to_json;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::protocol::Try;
use crate::global::Global;
use crate::selection::Selected;

/// How old what is kept may be.
const FRESH: SignedDuration = SignedDuration::from_secs(10);
/// When a hook that follows a build renews it.
const RENEWED_AFTER: SignedDuration = SignedDuration::from_secs(5);

/// A leaf that builds, by its beat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownLeaf {
    pub(super) leaf: LeafName,
    pub(super) heard_at: Timestamp,
    pub(super) builds: Builds,
}

impl KnownLeaf {
    /// Returns whether it is online, and has what a derivation requires.
    pub(super) fn suits(&self, ask: &Try, now: Timestamp) -> bool {
        let Builds {
            system,
            more_systems,
            features,
            ..
        } = &self.builds;
        presence(self.heard_at, now) == Presence::Online
            && (*system == ask.system || more_systems.contains(&ask.system))
            && ask.features.iter().all(|feature| features.contains_key(feature))
    }
}

/// Returns the leaves that build, of those that are selected.
pub(super) fn builders(selected: Vec<Selected>) -> Vec<KnownLeaf> {
    let heard = selected.into_iter().filter_map(|selected| selected.heard);
    heard
        .filter_map(|heard| {
            Some(KnownLeaf {
                leaf: heard.beat.leaf,
                heard_at: heard.at,
                builds: *heard.beat.nix?,
            })
        })
        .collect()
}

/// What was read of the leaves.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Read {
    at: Timestamp,
    /// Why they could not be read.
    pub(super) failed: Option<String>,
    pub(super) leaves: Vec<KnownLeaf>,
}

/// The shared directory; without one each hook reads for itself.
#[derive(Debug)]
pub(super) struct Known(Option<PathBuf>);

/// A build that is under way, as long as it is held.
#[derive(Debug)]
pub(super) struct Slot {
    _locked: Option<File>,
}

impl Known {
    /// Returns the directory of the hooks that use the same server and leaves, and are of this user.
    pub(super) fn open(global: &Global) -> Self {
        let user = rustix::process::geteuid();
        let base = match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(directory) if !directory.is_empty() => PathBuf::from(directory).join("leafctl"),
            _ if user.is_root() => PathBuf::from("/run/leafctl"),
            _ => std::env::temp_dir().join(format!("leafctl-{}", user.as_raw())),
        };
        let mut hasher = DefaultHasher::new();
        (&global.context, &global.server, &global.creds, global.all_leaves).hash(&mut hasher);
        format!("{:?}{:?}", global.leaf, global.selector).hash(&mut hasher);
        let directory = base.join(format!("hook-{:016x}", hasher.finish()));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        // Somebody else's may say what it likes.
        let is_own = [&base, &directory].iter().all(|directory| {
            fs::symlink_metadata(directory).is_ok_and(|found| {
                found.is_dir() && found.uid() == user.as_raw() && found.mode() & 0o022 == 0
            })
        });
        Self((made.is_ok() && is_own).then_some(directory))
    }

    /// Returns what was read of the leaves not long ago.
    pub(super) fn read(&self, now: Timestamp) -> Option<Read> {
        self.read_within(now, FRESH)
    }

    /// Returns whether a hook that follows a build is to read it again.
    pub(super) fn is_old(&self, now: Timestamp) -> bool {
        self.read_within(now, RENEWED_AFTER).is_none()
    }

    fn read_within(&self, now: Timestamp, age: SignedDuration) -> Option<Read> {
        let text = fs::read(self.0.as_ref()?.join("leaves.json")).ok()?;
        let read: Read = serde_json::from_slice(&text).ok()?;
        let old = now.duration_since(read.at);
        (!old.is_negative() && old <= age).then_some(read)
    }

    /// Keeps what was read of the leaves. That it can't be kept costs time only.
    pub(super) fn write(&self, now: Timestamp, read: Result<Vec<KnownLeaf>, String>) -> Read {
        let (leaves, failed) = match read {
            Ok(leaves) => (leaves, None),
            Err(why) => (Vec::new(), Some(why)),
        };
        let read = Read {
            at: now,
            failed,
            leaves,
        };
        if let Some(directory) = &self.0 {
            let new = directory.join(format!("leaves-{}", Uuid::now_v7().simple()));
            let written = File::create(&new)
                .and_then(|mut file| file.write_all(&to_json(&read)))
                .and_then(|()| fs::rename(&new, directory.join("leaves.json")));
            if written.is_err() {
                let _ = fs::remove_file(&new);
            }
        }
        read
    }

    /// Takes a place of a build by these leaves, of so many; and returns it with its number.
    pub(super) fn take(&self, leaves: &[&KnownLeaf], places: u64) -> Option<(u64, Slot)> {
        let Some(directory) = &self.0 else {
            return Some((0, Slot { _locked: None }));
        };
        let mut hasher = DefaultHasher::new();
        let names: Vec<&str> = leaves.iter().map(|known| known.leaf.as_str()).collect();
        names.hash(&mut hasher);
        let directory = directory.join(format!("builds-{:016x}", hasher.finish()));
        fs::create_dir_all(&directory).ok()?;
        (0..places).find_map(|number| {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(directory.join(number.to_string()));
            let file = file.ok()?;
            flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
            let locked = Some(file);
            Some((number, Slot { _locked: locked }))
        })
    }
}

/// What Nix is answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// The hook builds it.
    Accept(Slot),
    /// The hook doesn't.
    Decline,
    /// Nix is to ask again later.
    Postpone,
}

/// Decides whether the hook builds a derivation: on as many leaves as there are places, and as many again where Nix can't build it now, so
/// that leaves have the next one while Nix waits for its own clock.
pub(super) fn answer(known: &Known, leaves: &[KnownLeaf], ask: &Try, here: bool, now: Timestamp) -> Answer {
    let suiting: Vec<&KnownLeaf> = leaves.iter().filter(|leaf| leaf.suits(ask, now)).collect();
    if suiting.is_empty() {
        return Answer::Decline;
    }
    let places: u64 = suiting.iter().map(|leaf| leaf.builds.max_jobs.min(1000)).sum();
    let most = if here { places } else { 2 * places };
    match known.take(&suiting, most) {
        Some((_, slot)) => Answer::Accept(slot),
        None if here => Answer::Decline,
        None => Answer::Postpone,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use leaf_core::placement::demand::Features;

    use super::*;

    fn leaf(name: &str, system: &str, features: &[&str], heard_at: Timestamp) -> KnownLeaf {
        KnownLeaf {
            leaf: LeafName::new(name).expect("a name"),
            heard_at,
            builds: Builds {
                system: system.to_owned(),
                more_systems: BTreeSet::from(["i686-linux".to_owned()]),
                features: features
                    .iter()
                    .map(|feature| ((*feature).to_owned(), 1))
                    .collect::<Features>(),
                max_jobs: 2,
            },
        }
    }

    fn ask(system: &str, features: &[&str]) -> Try {
        Try {
            has_place: true,
            system: system.to_owned(),
            derivation: "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a.drv".to_owned(),
            features: features.iter().map(|feature| (*feature).to_owned()).collect(),
        }
    }

    #[test]
    fn what_no_leaf_has_is_declined_and_what_all_are_busy_with_is_postponed_unless_nix_could_build_it() {
        let place = tempfile::tempdir().expect("a directory");
        let known = Known(Some(place.path().to_owned()));
        let now = Timestamp::from_second(1_700_000_000).expect("a time");
        let gone = now - SignedDuration::from_secs(60);
        let leaves = [
            leaf("one", "x86_64-linux", &["kvm"], now),
            leaf("gone", "aarch64-linux", &[], gone),
        ];
        let answer = |ask: &Try, here: bool| answer(&known, &leaves, ask, here, now);
        for other in [ask("aarch64-linux", &[]), ask("x86_64-linux", &["fast"])] {
            assert!(matches!(answer(&other, false), Answer::Decline), "{other:?}");
        }
        let usual = ask("i686-linux", &["kvm"]);
        let mut slots = Vec::new();
        let mut accept = |here: bool| match answer(&usual, here) {
            Answer::Accept(slot) => {
                slots.push(slot);
                "accept"
            }
            Answer::Decline => "decline",
            Answer::Postpone => "postpone",
        };
        assert_eq!(
            [accept(true), accept(true), accept(true)],
            ["accept", "accept", "decline"]
        );
        assert_eq!(
            [accept(false), accept(false), accept(false)],
            ["accept", "accept", "postpone"]
        );
        // A hook that has ended, however, leaves its place.
        slots.pop();
        assert!(matches!(answer(&usual, false), Answer::Accept(_)));
    }

    #[test]
    fn what_was_read_counts_for_some_seconds() {
        let place = tempfile::tempdir().expect("a directory");
        let known = Known(Some(place.path().to_owned()));
        let now = Timestamp::from_second(1_700_000_000).expect("a time");
        assert!(known.read(now).is_none());
        known.write(now, Ok(vec![leaf("one", "x86_64-linux", &[], now)]));
        let after = |seconds: i64| known.read(now + SignedDuration::from_secs(seconds)).is_some();
        assert!(after(0) && after(10) && !after(11) && !after(-1));
        assert!(!known.is_old(now) && known.is_old(now + SignedDuration::from_secs(6)));
        known.write(now, Err("no server".to_owned()));
        assert_eq!(
            known.read(now).and_then(|read| read.failed),
            Some("no server".to_owned())
        );
        fs::write(place.path().join("leaves.json"), "{").expect("written");
        assert!(known.read(now).is_none(), "what is damaged counts for nothing");
    }
}

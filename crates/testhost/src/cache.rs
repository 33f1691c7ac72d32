//! The cache of images: each has a directory, named by a hash of everything that it was made from.
//!
//! All checkouts of a user share them. A directory is built under another name and renamed when it is complete, so an
//! interrupted build leaves nothing that could be taken for an image; other processes that need the same image wait for
//! a lock on it. A process that starts a machine from a directory marks it as used and holds a shared lock on it; one
//! that was used recently, or is locked, is not removed.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

use crate::command::target;
use crate::say;

/// The variable with the directory of images, instead of `cim-leaf/host` in the user's cache directory.
pub const VARIABLE: &str = "CIM_LEAF_HOST_CACHE";

/// The time without use after which an image is removed, unless a machine runs from it.
const FORGOTTEN: Duration = Duration::from_secs(60 * 60);

/// The number of directories with our programs that are always kept: those of two versions.
const KEPT: usize = 8;

/// The beginnings of the names of all directories in the cache.
const KINDS: [&str; 5] = ["disk-", "machine-", "leaf-", "programs-", PART];

/// The beginning of the names of incomplete directories.
pub(crate) const PART: &str = "part-";

/// Returns the directory of all images: the one named by [`VARIABLE`], or `cim-leaf/host` in the user's cache directory
/// (XDG Base Directory Specification), or `target/host` if the user has none.
pub fn directory() -> PathBuf {
    directory_by(|name| std::env::var_os(name)).unwrap_or_else(|| target().join("host"))
}

fn directory_by(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(told) = set(VARIABLE) {
        return Some(std::path::absolute(&told).unwrap_or(told));
    }
    // A relative path is invalid in this variable, and must be ignored.
    let of_user = set("XDG_CACHE_HOME").filter(|cache| cache.is_absolute());
    let cache = of_user.or_else(|| Some(set("HOME")?.join(".cache")))?;
    cache.is_absolute().then(|| cache.join("cim-leaf/host"))
}

/// Builds a directory of the cache, unless it exists. If another process is building the same, it waits for that.
pub(crate) fn build_whole(directory: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = directory
        .file_name()
        .expect("an image has a name")
        .to_string_lossy();
    let part = directory.with_file_name(format!("{PART}{name}"));
    while !directory.is_dir() {
        let Some(_lock) = lock(&part)? else { continue };
        if directory.is_dir() {
            return fs::remove_dir(&part).with_context(|| format!("can't remove {}", part.display()));
        }
        empty(&part)?;
        build(&part).with_context(|| format!("the incomplete result is in {}", part.display()))?;
        return fs::rename(&part, directory).with_context(|| format!("can't rename {}", part.display()));
    }
    Ok(())
}

/// Creates and locks a directory to build in. Returns `None` if another process has renamed or removed it in the
/// meantime.
fn lock(part: &Path) -> Result<Option<fs::File>> {
    fs::create_dir_all(part).with_context(|| format!("can't make {}", part.display()))?;
    let file = match fs::File::open(part) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("can't open {}", part.display()))?,
    };
    if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
        say(format_args!(
            "waiting for another process that builds {}",
            part.display()
        ));
        file.lock()
            .with_context(|| format!("can't lock {}", part.display()))?;
    }
    let locked = file
        .metadata()
        .with_context(|| format!("can't read the metadata of {}", part.display()))?;
    let is_there =
        fs::metadata(part).is_ok_and(|there| (there.dev(), there.ino()) == (locked.dev(), locked.ino()));
    Ok(is_there.then_some(file))
}

/// Removes what an interrupted build left.
fn empty(part: &Path) -> Result<()> {
    for entry in fs::read_dir(part).with_context(|| format!("can't read {}", part.display()))? {
        let path = entry.context("a directory can't be read")?.path();
        let removed = if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("can't remove {}", path.display()))?;
    }
    Ok(())
}

/// Marks a directory as used now. It is not removed as long as the result exists.
///
/// # Errors
/// If it does not exist.
pub(crate) fn mark_used(directory: &Path) -> Result<fs::File> {
    let file = fs::File::open(directory).with_context(|| format!("can't open {}", directory.display()))?;
    file.lock_shared()
        .and_then(|()| file.set_modified(SystemTime::now()))
        .with_context(|| format!("can't mark {} as used", directory.display()))?;
    Ok(file)
}

/// Removes unused images of programs: each build makes new ones.
pub(crate) fn forget_old(cache: &Path) -> Result<()> {
    let mut of_programs = images(cache)?;
    of_programs.retain(|(directory, _)| kind(directory) == Some("leaf-"));
    of_programs.sort_by_key(|(_, unused)| *unused);
    for (directory, unused) in of_programs.into_iter().skip(KEPT) {
        if unused > FORGOTTEN {
            remove(&directory)?;
        }
    }
    Ok(())
}

/// Removes an image; returns false if another process is building it, has a machine that runs from it, or has removed it.
fn remove(directory: &Path) -> Result<bool> {
    let file = match fs::File::open(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        file => file.with_context(|| format!("can't open {}", directory.display()))?,
    };
    if file.try_lock().is_err() {
        return Ok(false);
    }
    // Renamed first, so that no process finds an incomplete image; whatever has the new name was left by a process that
    // was killed.
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let gone = directory.with_file_name(format!("{PART}removed-{name}"));
    let removed = match fs::remove_dir_all(&gone) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => fs::rename(directory, &gone),
    };
    match removed.and_then(|()| fs::remove_dir_all(&gone)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        other => other
            .map(|()| true)
            .with_context(|| format!("can't remove {}", directory.display())),
    }
}

/// Returns the kind of image, by a directory's name. Other files of the user, such as a nixpkgs tree, are not images.
fn kind(directory: &Path) -> Option<&'static str> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    KINDS.into_iter().find(|kind| name.starts_with(kind))
}

/// Removes the images that are not among these and were not used within the hour, or all images, and returns their
/// directories.
pub(crate) fn remove_unused(used: &[PathBuf], all: bool) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for (image, unused) in images(&directory())? {
        if (all || (!used.contains(&image) && unused > FORGOTTEN)) && remove(&image)? {
            removed.push(image);
        }
    }
    Ok(removed)
}

/// Returns all images, complete or not, with the times since their last use.
fn images(cache: &Path) -> Result<Vec<(PathBuf, Duration)>> {
    let entries = match fs::read_dir(cache) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("can't read {}", cache.display()))?,
    };
    let mut images = Vec::new();
    for entry in entries {
        let directory = entry.context("a directory can't be read")?.path();
        if directory.is_dir() && kind(&directory).is_some() {
            let used = directory
                .metadata()
                .and_then(|directory| directory.modified())
                .ok();
            let unused = used.and_then(|used| used.elapsed().ok()).unwrap_or_default();
            images.push((directory, unused));
        }
    }
    images.sort_unstable();
    Ok(images)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use anyhow::bail;

    use super::*;

    #[test]
    fn images_are_in_the_users_cache_directory_or_where_a_variable_says() {
        let directory = |variables: &[(&str, &str)]| {
            let found = directory_by(|name| {
                let variable = variables.iter().find(|(set, _)| *set == name);
                variable.map(|(_, value)| OsString::from(value))
            });
            found.map(|directory| directory.display().to_string())
        };
        let home = ("HOME", "/home/a");
        assert_eq!(
            directory(&[home]).as_deref(),
            Some("/home/a/.cache/cim-leaf/host")
        );
        let xdg = ("XDG_CACHE_HOME", "/caches");
        assert_eq!(directory(&[home, xdg]).as_deref(), Some("/caches/cim-leaf/host"));
        assert_eq!(
            directory(&[home, ("XDG_CACHE_HOME", "caches")]).as_deref(),
            Some("/home/a/.cache/cim-leaf/host")
        );
        assert_eq!(
            directory(&[home, xdg, (VARIABLE, "/images")]).as_deref(),
            Some("/images")
        );
        assert_eq!(directory(&[]), None);
        assert_eq!(directory(&[("HOME", "")]), None);
    }

    #[test]
    fn recently_used_images_and_the_newest_ones_are_kept() {
        let cache = tempfile::tempdir().expect("a temporary directory");
        let old = SystemTime::now() - 2 * FORGOTTEN;
        for number in 0..KEPT + 3 {
            for kind in ["leaf-", "disk-"] {
                let directory = cache.path().join(format!("{kind}{number}"));
                fs::create_dir(&directory).expect("a directory");
                let used = old - Duration::from_secs(u64::try_from(number).expect("a small number"));
                let directory = fs::File::open(directory).expect("a directory");
                directory.set_modified(used).expect("its time");
            }
        }
        fs::create_dir(cache.path().join("nixpkgs")).expect("a directory");
        // The oldest image is used again.
        drop(mark_used(&cache.path().join(format!("leaf-{}", KEPT + 2))).expect("it is there"));
        forget_old(cache.path()).expect("removed");
        let left = |kind: &str| {
            let entries = fs::read_dir(cache.path()).expect("the cache");
            let names = entries.map(|entry| entry.expect("an entry").file_name());
            let names = names.filter_map(|name| name.to_string_lossy().strip_prefix(kind).map(str::to_owned));
            names.collect::<BTreeSet<_>>()
        };
        let newest = (0..KEPT - 1).chain([KEPT + 2]).map(|number| number.to_string());
        assert_eq!(left("leaf-"), newest.collect());
        assert_eq!(left("disk-").len(), KEPT + 3);
        assert_eq!(left("nixpkgs").len(), 1);
    }

    #[test]
    fn a_failed_build_leaves_no_image_and_the_next_starts_from_scratch() {
        let cache = tempfile::tempdir().expect("a temporary directory");
        let directory = cache.path().join("disk-1");
        build_whole(&directory, |part| {
            fs::create_dir(part.join("tree"))?;
            fs::write(part.join("half"), "")?;
            bail!("interrupted")
        })
        .expect_err("it was interrupted");
        assert!(!directory.exists());
        build_whole(&directory, |part| {
            assert!(!part.join("half").exists() && !part.join("tree").exists());
            fs::write(part.join("whole"), "").context("a file")
        })
        .expect("it was built");
        assert!(directory.join("whole").exists());
        build_whole(&directory, |_| bail!("it is there already")).expect("nothing is built twice");
    }

    #[test]
    fn an_image_that_two_need_is_built_once_and_not_removed_in_the_meantime() {
        let cache = tempfile::tempdir().expect("a temporary directory");
        let directory = cache.path().join("leaf-1");
        let built = AtomicUsize::new(0);
        let (begun, wait) = (Barrier::new(2), Barrier::new(2));
        let build = |part: &Path| {
            built.fetch_add(1, Ordering::SeqCst);
            begun.wait();
            fs::write(part.join("whole"), "").context("a file")?;
            wait.wait();
            Ok(())
        };
        thread::scope(|scope| {
            let first = scope.spawn(|| build_whole(&directory, build));
            begun.wait();
            let second = scope.spawn(|| build_whole(&directory, |_| bail!("it is built already")));
            assert!(!remove(&cache.path().join("part-leaf-1")).expect("it is there"));
            wait.wait();
            for thread in [first, second] {
                thread.join().expect("no panic").expect("it is built");
            }
        });
        assert_eq!(built.into_inner(), 1);
        assert!(directory.join("whole").exists());
        let used = mark_used(&directory).expect("it is there");
        assert!(!remove(&directory).expect("it is used"));
        drop(used);
        assert!(remove(&directory).expect("nobody builds it"));
        assert_eq!(fs::read_dir(cache.path()).expect("the cache").count(), 0);
    }
}

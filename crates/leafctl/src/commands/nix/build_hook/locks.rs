//! Adds outputs to a store while Nix, which has started the hook, holds their locks.
//!
//! Nix up to 2.28 is told so by a variable. A newer one would wait for itself: there `nix copy` runs where other files are mounted over the
//! lock files, in a mount namespace of its own. What Nix locks is then another file, and whoever else wants the path waits for the first one.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use leaf_core::id::StorePath;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

use crate::error::Error;
use crate::local_nix::Work;

/// The variable with the paths whose locks are held.
pub(super) const HELD: &str = "NIX_HELD_LOCKS";
/// The minor version of Nix 2 from which that variable means nothing.
pub(super) const OWN_LOCKS_SINCE: u32 = 29;

/// Returns the lock file of a path.
pub(super) fn lock_file(store: &Path, path: &StorePath) -> PathBuf {
    let name = path.as_str().trim_start_matches("/nix/store/");
    store.join(format!("{name}.lock"))
}

/// Returns the directory of the store that Nix's setting `store` means, if it is one of this machine.
pub(super) fn real_store(setting: &str) -> PathBuf {
    let (name, parameters) = setting.split_once('?').unwrap_or((setting, ""));
    let of = |wanted: &str| {
        let mut pairs = parameters.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| PathBuf::from(value))
    };
    let root = name.strip_prefix("local://").unwrap_or(name);
    let root = if root.starts_with('/') {
        Some(PathBuf::from(root))
    } else {
        of("root")
    };
    match (of("real"), root) {
        (Some(real), _) => real,
        (None, Some(root)) => root.join("nix/store"),
        (None, None) => PathBuf::from("/nix/store"),
    }
}

/// Becomes a program for which other files are the lock files.
///
/// # Errors
/// Why not.
pub(super) fn become_program(lock_files: &[PathBuf], program: &[OsString]) -> Error {
    let [name, arguments @ ..] = program else {
        return Error::Usage("there is no program".to_owned());
    };
    if let Err(error) = mount_others(lock_files) {
        return Error::Refused(format!(
            "can't mount other lock files, which adding outputs takes with Nix 2.29 and later: {error}; run Nix as root, or allow user \
             namespaces (unprivileged_userns_clone)"
        ));
    }
    let error = Command::new(name).args(arguments).exec();
    Error::Refused(format!("can't run {}: {error}", name.display()))
}

fn mount_others(lock_files: &[PathBuf]) -> std::io::Result<()> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let others = Work::make().map_err(|error| std::io::Error::other(error.to_string()))?;
    for (number, _) in lock_files.iter().enumerate() {
        fs::write(others.0.join(number.to_string()), "")?;
    }
    if user.is_root() {
        unshare(CloneFlags::CLONE_NEWNS)?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{0} {0} 1", user.as_raw()))?;
        fs::write("/proc/self/gid_map", format!("{0} {0} 1", group.as_raw()))?;
    }
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    for (number, lock_file) in lock_files.iter().enumerate() {
        mount_bind(others.0.join(number.to_string()), lock_file)?;
    }
    // They stay as long as they are mounted.
    drop(others);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_where_its_setting_says() {
        for (setting, expected) in [
            ("auto", "/nix/store"),
            ("", "/nix/store"),
            ("daemon", "/nix/store"),
            ("/srv/a", "/srv/a/nix/store"),
            ("local?root=/srv/a&state=/x", "/srv/a/nix/store"),
            ("local:///srv/a", "/srv/a/nix/store"),
            ("local?real=/mnt/store&state=/x", "/mnt/store"),
        ] {
            assert_eq!(real_store(setting), Path::new(expected), "{setting}");
        }
        let path = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a").expect("a path");
        assert_eq!(
            lock_file(Path::new("/nix/store"), &path),
            Path::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a.lock")
        );
    }
}

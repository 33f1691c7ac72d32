//! Looks up programs in the directories of `PATH`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The directories of root's programs, for hosts whose `PATH` lacks them: for other users, or (NixOS) in a systemd unit
/// that sets none.
const ROOTS_DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/run/current-system/sw/bin"];

/// Returns the first program of this name on `PATH`.
#[must_use]
pub fn find(name: impl AsRef<Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_all_in(&path, name).next()
}

/// Returns the first program of this name on `PATH` or in the directories of root's programs (`/usr/sbin`, `/sbin`, and
/// `/run/current-system/sw/bin` on NixOS).
#[must_use]
pub fn find_for_root(name: impl AsRef<Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let roots = std::env::join_paths(ROOTS_DIRECTORIES).unwrap_or_default();
    find_all_in(&path, name.as_ref())
        .chain(find_all_in(&roots, name.as_ref()))
        .next()
}

/// Returns all programs of this name in the directories of a search path, in order. Relative directories are skipped,
/// since they depend on the current directory.
pub fn find_all_in(search_path: &OsStr, name: impl AsRef<Path>) -> impl Iterator<Item = PathBuf> {
    std::env::split_paths(search_path)
        .filter(|directory| directory.is_absolute())
        .map(move |directory| directory.join(name.as_ref()))
        .filter(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_directory_with_the_program_wins_and_relative_ones_are_skipped() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = |name: &str| place.path().join(name);
        for name in ["first", "second", "third"] {
            std::fs::create_dir(directory(name)).expect("a directory");
        }
        std::fs::create_dir(directory("first").join("tool")).expect("a directory of the program's name");
        for name in ["second", "third"] {
            std::fs::write(directory(name).join("tool"), "").expect("a file");
        }
        let path = std::env::join_paths([
            "relative".into(),
            directory("first"),
            directory("second"),
            directory("third"),
        ])
        .expect("a search path");
        let found: Vec<_> = find_all_in(&path, "tool").collect();
        assert_eq!(
            found,
            [directory("second").join("tool"), directory("third").join("tool")]
        );
        assert_eq!(find_all_in(OsStr::new(""), "tool").next(), None);
    }

    #[test]
    fn a_program_that_every_host_has_is_found() {
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        assert!(find_for_root("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
    }
}

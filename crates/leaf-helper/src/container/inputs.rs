//! What a container sees of its host: the directories of its binds, and the files of its secrets. Both must be in or below a
//! directory that the settings allow, and no symbolic link is followed on the way there.
//!
//! What was checked is what is used: a bind is a mount of the very directory that was opened, and a secret is a copy, both in
//! the container's run directory. So it does not help anybody to exchange a path meanwhile.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use leaf_core::id::ContainerName;
use leaf_core::spec::{Bind, ContainerOptions, Users};

use crate::Helper;
use crate::error::{Error, Result};
use crate::files::Directory;

/// The most bytes of one secret; systemd takes no more of all credentials together (systemd.exec(5)).
const MAX_SECRET_BYTES: u64 = 1 << 20;
/// Their directories in a container's run directory.
const BINDS: &str = "binds";
const SECRETS: &str = "secrets";

/// What was made ready for a container's start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inputs {
    /// Its binds, each with where it is mounted on the host.
    pub(crate) binds: Vec<(PathBuf, Bind)>,
    /// Its credentials, each with the file that holds it.
    pub(crate) credentials: Vec<(String, PathBuf)>,
}

impl Helper {
    /// Checks that all that a container wants to see of the host is there, and may be seen.
    pub(crate) fn check_inputs(&self, options: &ContainerOptions) -> Result<()> {
        for bind in &options.binds {
            self.open_bind(bind, options.users)?;
        }
        for (name, file) in &options.secrets {
            self.read_secret(name, file)?;
        }
        Ok(())
    }

    /// Makes a container's binds and secrets ready for its start. What was ready before is gone.
    pub(crate) fn prepare_inputs(&self, name: &ContainerName, options: &ContainerOptions) -> Result<Inputs> {
        self.release_inputs(name)?;
        let run = self.run_directory(name)?;
        let mut inputs = Inputs::default();
        if !options.binds.is_empty() {
            let binds = run.make(BINDS, 0o700)?;
            for (number, bind) in options.binds.iter().enumerate() {
                let (source, kind) = self.open_bind(bind, options.users)?;
                let number = number.to_string();
                let target = binds.path().join(&number);
                match kind {
                    FileType::Directory => drop(binds.make(&number, 0o700)?),
                    _ => binds.touch(&number, 0o600)?,
                }
                pin(&source, &binds, &number).map_err(Error::io(format!(
                    "mount {} on {}",
                    bind.source,
                    target.display()
                )))?;
                inputs.binds.push((target, bind.clone()));
            }
        }
        let own = self.paths.state.join(name.as_str()).join("credentials");
        for credential in credentials(&own)? {
            let file = own.join(&credential);
            inputs.credentials.push((credential, file));
        }
        if !options.secrets.is_empty() {
            let secrets = run.make(SECRETS, 0o700)?;
            for (credential, file) in &options.secrets {
                if inputs.credentials.iter().any(|(name, _)| name == credential) {
                    return Err(Error::Refused(format!(
                        "secrets.{credential}: the leaf itself gives the container a credential of this name"
                    )));
                }
                secrets.write(credential, &self.read_secret(credential, file)?, 0o600)?;
                inputs
                    .credentials
                    .push((credential.clone(), secrets.path().join(credential)));
            }
        }
        Ok(inputs)
    }

    /// Takes away what was made ready. It is no error if nothing was.
    pub(crate) fn release_inputs(&self, name: &ContainerName) -> Result<()> {
        let Some(run) = Directory::open_root(&self.paths.run.join(name.as_str()))? else {
            return Ok(());
        };
        if let Some(binds) = run.open(BINDS)? {
            let unreadable = || Error::io(format!("read {}", binds.path().display()));
            for entry in std::fs::read_dir(binds.path()).map_err(unreadable())? {
                let path = entry.map_err(unreadable())?.path();
                // Never into a bind: what can't be unmounted stays, and its directory with it.
                while rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
            }
            for entry in std::fs::read_dir(binds.path()).map_err(unreadable())? {
                let file = entry.map_err(unreadable())?.file_name();
                let number = file.to_string_lossy();
                let stat = rustix::fs::statat(binds.as_fd(), &*number, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(Error::io(format!(
                        "read the metadata of {}/{number}",
                        binds.path().display()
                    )))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    binds.remove_if_empty(&number)?;
                } else {
                    binds.remove_file(&number)?;
                }
            }
            run.remove_if_empty(BINDS)?;
        }
        run.remove_tree(SECRETS)
    }

    fn open_bind(&self, bind: &Bind, users: Users) -> Result<(OwnedFd, FileType)> {
        let (fd, kind) = open_allowed(&self.settings.bind_folders, &bind.source, "binds", "bind_folders")?;
        if !matches!(kind, FileType::Directory | FileType::RegularFile) {
            return Err(Error::Refused(format!(
                "binds: {} is neither a directory nor a regular file",
                bind.source
            )));
        }
        if bind.writable && users != Users::Host {
            check_owner(&fd, &bind.source)?;
        }
        if bind.writable && users != Users::Host && !maps_users(&fd)? {
            return Err(Error::Unsupported(format!(
                "binds: {} can't be writable for a container with users of its own: its file system has no mapped \
                 mounts; choose another directory, make it read-only, or set users to host",
                bind.source
            )));
        }
        Ok((fd, kind))
    }

    fn read_secret(&self, name: &str, file: &str) -> Result<Vec<u8>> {
        let what = format!("secrets.{name}");
        let (fd, kind) = open_allowed(&self.settings.secret_folders, file, &what, "secret_folders")?;
        if kind != FileType::RegularFile {
            return Err(Error::Refused(format!("{what}: {file} is not a regular file")));
        }
        // The very file that was looked at, now to be read.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let mut bytes = Vec::new();
        std::fs::File::open(path)
            .and_then(|opened| opened.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes))
            .map_err(Error::io(format!("{what}: read {file}")))?;
        if bytes.len() as u64 > MAX_SECRET_BYTES {
            return Err(Error::Refused(format!(
                "{what}: {file} has more than {MAX_SECRET_BYTES} bytes"
            )));
        }
        Ok(bytes)
    }
}

/// Opens a path (only to be named, not read) in or below one of the allowed directories.
fn open_allowed(allowed: &[PathBuf], path: &str, what: &str, setting: &str) -> Result<(OwnedFd, FileType)> {
    leaf_core::spec::check_path(what, path).map_err(Error::Refused)?;
    let inside = allowed
        .iter()
        .filter_map(|directory| Some((directory, Path::new(path).strip_prefix(directory).ok()?)))
        // The nearest one, where one allowed directory is below another.
        .max_by_key(|(directory, _)| directory.components().count());
    let Some((directory, rest)) = inside else {
        let list: Vec<_> = allowed
            .iter()
            .map(|directory| directory.display().to_string())
            .collect();
        return Err(Error::Refused(format!(
            "{what}: {path} is not in a directory that this leaf allows ({}); see its setting {setting}",
            if list.is_empty() {
                "none".to_owned()
            } else {
                list.join(", ")
            }
        )));
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::openat(
        rustix::fs::CWD,
        directory,
        flags | OFlags::DIRECTORY,
        Mode::empty(),
    )
    .map_err(Error::io(format!(
        "{what}: open the allowed directory {}",
        directory.display()
    )))?;
    // One name at a time, none of them `..` and none through a link: so it can't lead out. (openat2(2) could do it at
    // once, and is closed to a service that may make no setuid programs.)
    let mut fd = root;
    for part in rest {
        let stat = look(&fd, what, path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(Error::Refused(format!("{what}: {path} is not there")));
        }
        fd = match rustix::fs::openat(&fd, part, flags | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(Error::Refused(format!("{what}: {path} is not there")));
            }
            Err(e) => return Err(Error::io(format!("{what}: open {path}"))(e)),
        };
        if FileType::from_raw_mode(look(&fd, what, path)?.st_mode) == FileType::Symlink {
            return Err(Error::Refused(format!(
                "{what}: {path} has a symbolic link on its way, which is not followed; name where it leads"
            )));
        }
    }
    let stat = look(&fd, what, path)?;
    Ok((fd, FileType::from_raw_mode(stat.st_mode)))
}

fn look(fd: &OwnedFd, what: &str, path: &str) -> Result<rustix::fs::Stat> {
    rustix::fs::fstat(fd).map_err(Error::io(format!("{what}: read the metadata of {path}")))
}

/// Mounts what was opened in a directory, without the mounts below it.
fn pin(source: &OwnedFd, directory: &Directory, name: &str) -> rustix::io::Result<()> {
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(source, "", clone)?;
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", directory.as_fd(), name, empty)
}

/// Checks that a container's root can be given a directory or file of the host for its own: systemd-nspawn maps one number,
/// for the user as for the group (`rootidmap`), and in what belongs to an unmapped group nobody can write.
fn check_owner(fd: &OwnedFd, source: &str) -> Result<()> {
    let stat = look(fd, "binds", source)?;
    if stat.st_uid != stat.st_gid {
        return Err(Error::Refused(format!(
            "binds: {source} can't be writable for a container with users of its own: it belongs to user {} and group {}, \
             and the two must have the same number; try: chown {}:{} {source}",
            stat.st_uid, stat.st_gid, stat.st_uid, stat.st_uid
        )));
    }
    Ok(())
}

/// Whether a file system can show its files as other users' (mount_setattr(2), "ID-mapped mounts").
pub(crate) fn maps_users(fd: impl std::os::fd::AsFd) -> Result<bool> {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const F2FS: u64 = 0xf2f5_2010;
    let stat = rustix::fs::fstatfs(fd).map_err(Error::io("read the metadata of a file system"))?;
    let kind = u64::try_from(stat.f_type).unwrap_or(0) & 0xffff_ffff;
    Ok([EXT, XFS, BTRFS, F2FS].contains(&kind))
}

/// The names of the credentials in a directory, sorted.
fn credentials(directory: &Path) -> Result<Vec<String>> {
    let failed = || Error::io(format!("read {}", directory.display()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed())? {
        let file = entry.map_err(failed())?.file_name();
        // A half-written one of a crash begins with a dot.
        if let Some(file) = file.to_str().filter(|file| !file.starts_with('.')) {
            names.push(file.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_an_allowed_directory_is_opened_and_no_link_is_followed() {
        let place = tempfile::tempdir().expect("a directory");
        let at = |name: &str| place.path().join(name);
        for directory in ["allowed/inner", "allowed2", "other"] {
            std::fs::create_dir_all(at(directory)).expect("a directory");
        }
        std::fs::write(at("allowed/inner/file"), "x").expect("a file");
        std::fs::write(at("other/secret"), "x").expect("a file");
        std::os::unix::fs::symlink(at("other"), at("allowed/out")).expect("a link");
        std::os::unix::fs::symlink("inner", at("allowed/in")).expect("a link");
        let allowed = [at("allowed")];
        let open = |path: &str| {
            open_allowed(
                &allowed,
                at(path).to_str().expect("text"),
                "binds",
                "bind_folders",
            )
            .map(|(_, kind)| kind)
        };
        assert_eq!(open("allowed").expect("itself"), FileType::Directory);
        assert_eq!(open("allowed/inner/file").expect("a file"), FileType::RegularFile);
        for (bad, says) in [
            ("other/secret", "not in a directory that this leaf allows"),
            ("allowed2", "not in a directory that this leaf allows"),
            ("allowed/out/secret", "symbolic link"),
            ("allowed/out", "symbolic link"),
            ("allowed/in/file", "symbolic link"),
            ("allowed/../other/secret", "not a plain absolute path"),
            ("allowed/none", "is not there"),
        ] {
            let error = open(bad).expect_err(bad).to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
        let error = open_allowed(&[], "/etc/shadow", "secrets.a", "secret_folders").expect_err("none");
        assert!(error.to_string().contains("(none)"), "{error}");
    }
}

//! The inputs of a container from its host: the directories of its binds and the files of its secrets. Both must be in
//! or below a directory that the settings allow, and no symbolic link on the way is followed.
//!
//! What was checked is what is used: a bind is a mount of the directory that was opened, and a secret is a copy of its file,
//! both in the container's run directory. So replacing a path in the meantime has no effect. A secret of the leaf is
//! decrypted into memory ([`crate::secrets`]). The credentials of the leaf's own are in [`super::credentials`].

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use leaf_core::id::ContainerName;
use leaf_core::spec::{Bind, ContainerOptions, SecretSource, Users};

use crate::Helper;
use crate::container::credentials::Shown;
use crate::container::id_maps::maps_users;
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::secrets::MemoryFile;

/// The maximum size of a secret, in bytes; systemd accepts no more for all credentials together (systemd.exec(5)).
const MAX_SECRET_BYTES: u64 = 1 << 20;
/// The directories of binds and secrets in a container's run directory.
pub(crate) const BINDS: &str = "binds";
pub(crate) const SECRETS: &str = "secrets";

/// The prepared inputs of a container's start.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// The binds, each with its mount point on the host.
    pub(crate) binds: Vec<(PathBuf, Bind)>,
    /// The directory with the credentials of the leaf, which it sees while it runs.
    pub(crate) shown: Shown,
    /// The credentials of its spec by name, each with the file that holds it.
    pub(crate) credentials: Vec<(String, PathBuf)>,
    /// The secrets of the leaf among them, which exist as long as this does.
    pub(crate) given: Vec<MemoryFile>,
}

impl Helper {
    /// Checks that a container's binds and the files of its secrets exist and are allowed. Secrets of the leaf may be set later.
    pub(crate) fn check_inputs(&self, options: &ContainerOptions) -> Result<()> {
        for bind in &options.binds {
            self.open_bind(bind, options.users)?;
        }
        for (credential, source) in &options.secrets {
            if let SecretSource::File(file) = source {
                self.read_secret(credential, file)?;
            }
        }
        Ok(())
    }

    /// Checks that a container that is to be started has all that it needs, its secrets of the leaf included.
    pub(crate) fn check_inputs_of_start(
        &self,
        name: &ContainerName,
        options: &ContainerOptions,
    ) -> Result<()> {
        self.check_inputs(options)?;
        for source in options.secrets.values() {
            if let SecretSource::Secret(named) = source {
                self.check_secret(&named.secret, name)?;
            }
        }
        Ok(())
    }

    /// Prepares a container's binds and secrets for its start, and removes earlier ones.
    pub(crate) async fn prepare_inputs(
        &self,
        name: &ContainerName,
        options: &ContainerOptions,
    ) -> Result<Inputs> {
        self.release_inputs(name)?;
        let run = self.run_directory(name)?;
        let secrets: Vec<_> = options.secrets.keys().cloned().collect();
        let mut inputs = Inputs {
            binds: Vec::new(),
            shown: self.prepare_credentials(name, options.users, &secrets).await?,
            credentials: Vec::new(),
            given: Vec::new(),
        };
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
        if !options.secrets.is_empty() {
            let secrets = run.make(SECRETS, 0o700)?;
            for (credential, source) in &options.secrets {
                if inputs.shown.names.contains(credential) {
                    return Err(Error::Refused(format!(
                        "secrets.{credential}: the credential name is reserved for the leaf"
                    )));
                }
                let path = match source {
                    SecretSource::File(file) => {
                        secrets.write(credential, &self.read_secret(credential, file)?, 0o600)?;
                        secrets.path().join(credential)
                    }
                    SecretSource::Secret(named) => {
                        let given = self.give_secret(&named.secret, name)?;
                        let path = given.path();
                        inputs.given.push(given);
                        path
                    }
                };
                inputs.credentials.push((credential.clone(), path));
            }
        }
        Ok(inputs)
    }

    /// Removes the prepared inputs. It is not an error if there are none.
    pub(crate) fn release_inputs(&self, name: &ContainerName) -> Result<()> {
        let Some(run) = Directory::open_root(&self.paths.run.join(name.as_str()))? else {
            return Ok(());
        };
        if let Some(binds) = run.open(BINDS)? {
            let unreadable = || Error::io(format!("read {}", binds.path().display()));
            for entry in std::fs::read_dir(binds.path()).map_err(unreadable())? {
                let path = entry.map_err(unreadable())?.path();
                // Never descends into a bind: one that can't be unmounted is kept, with its directory.
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
        Self::release_credentials(&run)?;
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
                "binds: {} can't be writable for a container with a user namespace: its file system doesn't support \
                ID-mapped mounts; choose another directory, make it read-only, or set users to host",
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
        // Reopens the file that was checked, for reading.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let mut bytes = Vec::new();
        std::fs::File::open(path)
            .and_then(|opened| opened.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes))
            .map_err(Error::io(format!("read {file} for {what}")))?;
        if bytes.len() as u64 > MAX_SECRET_BYTES {
            return Err(Error::Refused(format!(
                "{what}: {file} has more than {MAX_SECRET_BYTES} bytes"
            )));
        }
        Ok(bytes)
    }
}

/// Opens a path (as `O_PATH`) in or below one of the allowed directories.
fn open_allowed(allowed: &[PathBuf], path: &str, what: &str, setting: &str) -> Result<(OwnedFd, FileType)> {
    leaf_core::spec::check_path(what, path).map_err(Error::Refused)?;
    let inside = allowed
        .iter()
        .filter_map(|directory| Some((directory, Path::new(path).strip_prefix(directory).ok()?)))
        // The innermost one, if allowed directories are nested.
        .max_by_key(|(directory, _)| directory.components().count());
    let Some((directory, rest)) = inside else {
        let list: Vec<_> = allowed
            .iter()
            .map(|directory| directory.display().to_string())
            .collect();
        return Err(Error::Refused(format!(
            "{what}: {path} is not in a directory allowed by this leaf's setting {setting} ({})",
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
        "open the allowed directory {} for {what}",
        directory.display()
    )))?;
    // Opens one name at a time, never `..` and never through a link, so that the path can't leave the directory.
    // (openat2(2) could do it in one call, but is denied to a service with `RestrictSUIDSGID=`.)
    let mut fd = root;
    for part in rest {
        let stat = metadata(&fd, what, path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(Error::Refused(format!("{what}: {path} does not exist")));
        }
        fd = match rustix::fs::openat(&fd, part, flags | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(Error::Refused(format!("{what}: {path} does not exist")));
            }
            Err(e) => return Err(Error::io(format!("open {path} for {what}"))(e)),
        };
        if FileType::from_raw_mode(metadata(&fd, what, path)?.st_mode) == FileType::Symlink {
            return Err(Error::Refused(format!(
                "{what}: {path} contains a symbolic link, which is not followed; give the path that it leads to"
            )));
        }
    }
    let stat = metadata(&fd, what, path)?;
    Ok((fd, FileType::from_raw_mode(stat.st_mode)))
}

fn metadata(fd: &OwnedFd, what: &str, path: &str) -> Result<rustix::fs::Stat> {
    rustix::fs::fstat(fd).map_err(Error::io(format!("read the metadata of {path} for {what}")))
}

/// Mounts an opened file or directory in a directory, without the mounts below it.
fn pin(source: &OwnedFd, directory: &Directory, name: &str) -> rustix::io::Result<()> {
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(source, "", clone)?;
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", directory.as_fd(), name, empty)
}

/// Checks that a directory or file of the host can be mapped to a container's root: systemd-nspawn maps the same id for
/// user and group (`rootidmap`), and files of an unmapped group are not writable.
fn check_owner(fd: &OwnedFd, source: &str) -> Result<()> {
    let stat = metadata(fd, "binds", source)?;
    if stat.st_uid != stat.st_gid {
        return Err(Error::Refused(format!(
            "binds: {source} can't be writable for a container with a user namespace: it belongs to user {} and group {}, \
            whose ids must be equal; try: chown {}:{} {source}",
            stat.st_uid, stat.st_gid, stat.st_uid, stat.st_uid
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_an_allowed_directory_are_opened_and_no_link_is_followed() {
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
            ("other/secret", "not in a directory allowed by this leaf"),
            ("allowed2", "not in a directory allowed by this leaf"),
            ("allowed/out/secret", "symbolic link"),
            ("allowed/out", "symbolic link"),
            ("allowed/in/file", "symbolic link"),
            ("allowed/../other/secret", "not a plain absolute path"),
            ("allowed/none", "does not exist"),
        ] {
            let error = open(bad).expect_err(bad).to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
        let error = open_allowed(&[], "/etc/shadow", "secrets.a", "secret_folders").expect_err("none");
        assert!(error.to_string().contains("(none)"), "{error}");
    }
}

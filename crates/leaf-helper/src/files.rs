//! Access to files and directories below the helper's roots that no symbolic link can redirect.
//!
//! A [`Directory`] is an open directory. Names in it are opened one at a time, never through a symbolic link: a
//! container can't redirect the helper by links in its root file system.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RawMode, Uid};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// The maximum size of a file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// An open directory.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens one of the helper's roots, and creates it with this mode if it is missing.
    pub(crate) fn make_root(path: &Path, mode: RawMode) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        if !path.exists() {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(Error::io(format!("create {}", parent.display())))?;
            }
            match std::fs::DirBuilder::new().mode(mode).create(path) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(Error::io(format!("create {}", path.display()))(e));
                }
                _ => {}
            }
        }
        Self::open_root(path)?.ok_or_else(|| {
            Error::Failed(format!(
                "{} was removed while it was being opened",
                path.display()
            ))
        })
    }

    /// Opens one of the helper's roots, if it exists.
    pub(crate) fn open_root(path: &Path) -> Result<Option<Self>> {
        match rustix::fs::openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Some(Self {
                fd,
                path: path.to_owned(),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::io(format!("open the directory {}", path.display()))(e)),
        }
    }

    /// Returns the path that it was opened by, for messages and for programs that take a path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open directory's file descriptor.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn at(&self, name: &str) -> Result<PathBuf> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(Error::Refused(format!("{name:?} is not a file name")));
        }
        Ok(self.path.join(name))
    }

    /// Opens a subdirectory, if it exists. A symbolic link or a file is refused.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Self>> {
        let path = self.at(name)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(Error::Refused(format!(
                "{} is not a directory (symbolic links are not followed)",
                path.display()
            ))),
            Err(e) => Err(Error::io(format!("open the directory {}", path.display()))(e)),
        }
    }

    /// Opens a subdirectory, creates it if it is missing, and sets its mode.
    pub(crate) fn make(&self, name: &str, mode: RawMode) -> Result<Self> {
        let directory = self.make_if_missing(name, mode)?;
        let failed = || Error::io(format!("set the mode of {}", directory.path.display()));
        // A change would wake watchers, so it is made only if needed.
        if rustix::fs::fstat(&directory.fd).map_err(failed())?.st_mode & 0o7777 != mode {
            rustix::fs::fchmod(&directory.fd, Mode::from_raw_mode(mode)).map_err(failed())?;
        }
        Ok(directory)
    }

    /// Opens a subdirectory, and creates it with this mode if it is missing; the mode of an existing one is kept.
    pub(crate) fn make_if_missing(&self, name: &str, mode: RawMode) -> Result<Self> {
        let path = self.at(name)?;
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Error::io(format!("create {}", path.display()))(e)),
        }
        self.open(name)?.ok_or_else(|| {
            Error::Failed(format!(
                "{} was removed while it was being created",
                path.display()
            ))
        })
    }

    /// Returns the directory's mode.
    pub(crate) fn mode(&self) -> Result<RawMode> {
        let stat = rustix::fs::fstat(&self.fd)
            .map_err(Error::io(format!("read the metadata of {}", self.path.display())))?;
        Ok(stat.st_mode & 0o7777)
    }

    /// Returns the directory's group.
    pub(crate) fn group(&self) -> Result<u32> {
        let stat = rustix::fs::fstat(&self.fd)
            .map_err(Error::io(format!("read the metadata of {}", self.path.display())))?;
        Ok(stat.st_gid)
    }

    /// Makes the directory readable for a group.
    pub(crate) fn give_to_group(&self, group: u32) -> Result<()> {
        let failed = || Error::io(format!("set the group of {}", self.path.display()));
        // As above.
        if rustix::fs::fstat(&self.fd).map_err(failed())?.st_gid == group {
            return Ok(());
        }
        rustix::fs::fchown(&self.fd, None, Some(Gid::from_raw(group))).map_err(failed())
    }

    /// Syncs the directory, so that created and removed names survive a power cut.
    pub(crate) fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.fd).map_err(Error::io(format!("sync {}", self.path.display())))
    }

    /// Returns whether the name exists, also as a broken symbolic link.
    pub(crate) fn has(&self, name: &str) -> Result<bool> {
        let path = self.at(name)?;
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(Error::io(format!("read the metadata of {}", path.display()))(e)),
        }
    }

    /// Returns the text of a regular file, if it exists. Never waits, as a FIFO would make it.
    ///
    /// # Errors
    /// [`Error::Refused`] for anything but a regular file of at most 1 MiB of UTF-8.
    pub(crate) fn read(&self, name: &str) -> Result<Option<String>> {
        let path = self.at(name)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => {
                return Err(Error::Refused(format!("{} is a symbolic link", path.display())));
            }
            // A socket (open(2)).
            Err(Errno::NXIO) => {
                return Err(Error::Refused(format!(
                    "{} is not a regular file",
                    path.display()
                )));
            }
            Err(e) => return Err(Error::io(format!("open {}", path.display()))(e)),
        };
        let read = || Error::io::<std::io::Error>(format!("read {}", path.display()));
        let stat = rustix::fs::fstat(&fd).map_err(|e| read()(e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::Refused(format!(
                "{} is not a regular file",
                path.display()
            )));
        }
        let mut bytes = Vec::new();
        std::fs::File::from(fd)
            .take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(read())?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::Refused(format!(
                "{} has more than {MAX_BYTES} bytes",
                path.display()
            )));
        }
        String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| Error::Refused(format!("{} is not text in UTF-8", path.display())))
    }

    /// Replaces a file atomically: after a power cut it has the old text or the new.
    pub(crate) fn write(&self, name: &str, bytes: &[u8], mode: RawMode) -> Result<()> {
        self.stage(name, bytes, mode)?;
        self.put_staged(name)
    }

    /// Writes the new content of a file beside it, from where [`Self::put_staged`] puts it into its place without needing space.
    pub(crate) fn stage(&self, name: &str, bytes: &[u8], mode: RawMode) -> Result<()> {
        self.stage_as(name, bytes, mode, None)
    }

    /// Replaces a file atomically by one that belongs to a user.
    pub(crate) fn write_as(&self, name: &str, bytes: &[u8], mode: RawMode, owner: Option<u32>) -> Result<()> {
        self.stage_as(name, bytes, mode, owner)?;
        self.put_staged(name)
    }

    fn stage_as(&self, name: &str, bytes: &[u8], mode: RawMode, owner: Option<u32>) -> Result<()> {
        crash::point()?;
        crash::space()?;
        let path = self.at(name)?;
        let failed = || Error::io::<std::io::Error>(format!("write {}", path.display()));
        let new = staged(name);
        self.remove_file(&new)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, &new, flags, Mode::from_raw_mode(mode))
            .map_err(|e| failed()(e.into()))?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode)).map_err(|e| failed()(e.into()))?;
        if mode & 0o040 != 0 {
            self.show(&fd).map_err(|e| failed()(e.into()))?;
        }
        if let Some(owner) = owner {
            rustix::fs::fchown(&fd, Some(Uid::from_raw(owner)), None).map_err(|e| failed()(e.into()))?;
        }
        let mut file = std::fs::File::from(fd);
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        if written.is_err() {
            // Frees what a full disk could hold.
            self.remove_file(&new)?;
        }
        written.map_err(failed())
    }

    /// Replaces a file by what was [staged](Self::stage) for it.
    pub(crate) fn put_staged(&self, name: &str) -> Result<()> {
        crash::point()?;
        let path = self.at(name)?;
        rustix::fs::renameat(&self.fd, staged(name), &self.fd, name)
            .and_then(|()| rustix::fs::fsync(&self.fd))
            .map_err(Error::io(format!("write {}", path.display())))
    }

    /// Replaces a file by a copy of a regular file in another directory, with its owner and mode.
    pub(crate) fn copy_from(&self, other: &Self, from: &str, name: &str) -> Result<()> {
        crash::point()?;
        crash::space()?;
        let (source, path) = (other.at(from)?, self.at(name)?);
        let failed =
            || Error::io::<std::io::Error>(format!("copy {} to {}", source.display(), path.display()));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let read =
            rustix::fs::openat(&other.fd, from, flags, Mode::empty()).map_err(|e| failed()(e.into()))?;
        let stat = rustix::fs::fstat(&read).map_err(|e| failed()(e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::Refused(format!(
                "{} is not a regular file",
                source.display()
            )));
        }
        let new = staged(name);
        self.remove_file(&new)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let write = rustix::fs::openat(&self.fd, &new, flags, mode).map_err(|e| failed()(e.into()))?;
        let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(&write, Some(owner), Some(group))
            .and_then(|()| rustix::fs::fchmod(&write, Mode::from_raw_mode(stat.st_mode & 0o7777)))
            .map_err(|e| failed()(e.into()))?;
        let mut write = std::fs::File::from(write);
        std::io::copy(&mut std::fs::File::from(read), &mut write)
            .and_then(|_| write.sync_all())
            .map_err(failed())?;
        self.put_staged(name)
    }

    /// Replaces a file by one in another directory, which stays there: by a link, which needs no space, where both are on one
    /// file system, otherwise by a copy.
    pub(crate) fn link_from(&self, other: &Self, from: &str, name: &str) -> Result<()> {
        crash::point()?;
        let (source, path) = (other.at(from)?, self.at(name)?);
        let failed = || Error::io(format!("put {} back to {}", source.display(), path.display()));
        let new = staged(name);
        self.remove_file(&new)?;
        match rustix::fs::linkat(&other.fd, from, &self.fd, &new, AtFlags::empty()) {
            Err(Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP) => return self.copy_from(other, from, name),
            other => other.map_err(failed())?,
        }
        self.put_staged(name)?;
        // A rename between two links of one file does nothing (rename(2)).
        self.remove_file(&new)
    }

    /// Moves a file into another directory, replacing an existing one, and syncs both.
    pub(crate) fn move_to(&self, from: &str, other: &Self, to: &str) -> Result<()> {
        crash::point()?;
        let (old, new) = (self.at(from)?, other.at(to)?);
        let failed = || Error::io(format!("rename {} to {}", old.display(), new.display()));
        rustix::fs::renameat(&self.fd, from, &other.fd, to).map_err(failed())?;
        other.sync()?;
        self.sync()
    }

    /// Returns the names in the directory, sorted; those that are not text are left out.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let failed = || Error::io(format!("read the directory {}", self.path.display()));
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            match entry.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Gives a file to the directory's group, whose members may then read it.
    pub(crate) fn show(&self, file: impl AsFd) -> rustix::io::Result<()> {
        let group = rustix::fs::fstat(&self.fd)?.st_gid;
        // A change would wake watchers, so it is made only if needed.
        if rustix::fs::fstat(&file)?.st_gid == group {
            return Ok(());
        }
        rustix::fs::fchown(file, None, Some(Gid::from_raw(group)))
    }

    /// Creates an empty file if it is missing; an existing file is kept.
    pub(crate) fn touch(&self, name: &str, mode: RawMode) -> Result<()> {
        let path = self.at(name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode)) {
            Ok(file) if mode & 0o040 != 0 => self
                .show(&file)
                .map_err(Error::io(format!("set the group of {}", path.display()))),
            Ok(_) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(Error::io(format!("create {}", path.display()))(e)),
        }
    }

    /// Creates or replaces a symbolic link.
    pub(crate) fn link(&self, name: &str, target: &str) -> Result<()> {
        let path = self.at(name)?;
        let failed = || Error::io(format!("create the link {}", path.display()));
        let new = format!(".{name}.new");
        self.remove_file(&new)?;
        rustix::fs::symlinkat(target, &self.fd, &new).map_err(failed())?;
        rustix::fs::renameat(&self.fd, &new, &self.fd, name).map_err(failed())
    }

    /// Renames a file in this directory, replacing an existing one.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<()> {
        crash::point()?;
        let (old, new) = (self.at(from)?, self.at(to)?);
        rustix::fs::renameat(&self.fd, from, &self.fd, to).map_err(Error::io(format!(
            "rename {} to {}",
            old.display(),
            new.display()
        )))
    }

    /// Removes a file or a symbolic link, if it exists.
    pub(crate) fn remove_file(&self, name: &str) -> Result<()> {
        self.unlink(name, AtFlags::empty(), &[Errno::NOENT])
    }

    /// Removes a subdirectory with its content, if it exists; symbolic links are removed, not followed.
    pub(crate) fn remove_tree(&self, name: &str) -> Result<()> {
        let path = self.at(name)?;
        // Through the open directory, so that the path above it can't be replaced in the meantime. The standard library
        // descends by `openat` without following links.
        let pinned = format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd());
        match std::fs::remove_dir_all(pinned) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => self.remove_file(name),
            Err(e) => Err(Error::io(format!("remove {}", path.display()))(e)),
        }
    }

    /// Removes a subdirectory, if it exists and is empty.
    pub(crate) fn remove_if_empty(&self, name: &str) -> Result<()> {
        self.unlink(name, AtFlags::REMOVEDIR, &[Errno::NOENT, Errno::NOTEMPTY])
    }

    /// Removes a name; that it fails in one of these ways counts as success.
    fn unlink(&self, name: &str, flags: AtFlags, or: &[Errno]) -> Result<()> {
        crash::point()?;
        let path = self.at(name)?;
        match rustix::fs::unlinkat(&self.fd, name, flags) {
            Err(e) if !or.contains(&e) => Err(Error::io(format!("remove {}", path.display()))(e)),
            Err(_) => Ok(()),
            Ok(()) => {
                crash::freed(name);
                Ok(())
            }
        }
    }
}

/// Returns the name of the new content of a file before it is put into its place.
pub(crate) fn staged(name: &str) -> String {
    format!(".{name}.new")
}

/// Points at which a test lets the process end, as a kill or a power cut does: nothing after it reaches the disk.
mod crash {
    use super::Result;

    #[cfg(not(test))]
    #[expect(clippy::unnecessary_wraps, reason = "a test lets it fail")]
    pub(super) fn point() -> Result<()> {
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn point() -> Result<()> {
        super::crashes::pass()
    }

    /// A point at which a test lets the disk be full.
    #[cfg(not(test))]
    #[expect(clippy::unnecessary_wraps, reason = "a test lets it fail")]
    pub(super) fn space() -> Result<()> {
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn space() -> Result<()> {
        super::crashes::take_room()
    }

    /// A point at which a test's disk has room again.
    #[cfg(not(test))]
    pub(super) fn freed(_: &str) {}

    #[cfg(test)]
    pub(super) fn freed(name: &str) {
        super::crashes::make_room(name);
    }
}

/// The other side of [`crash`], for tests.
#[cfg(test)]
pub(crate) mod crashes {
    use std::cell::Cell;

    use crate::error::{Error, Result};

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    thread_local! {
        static ROOM: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// The file whose removal makes room, and for how many files.
    const RESERVE: (&str, u32) = ("reserve", 4);

    /// Lets the disk be full once this number of files was written by this thread; `None`: never.
    pub(crate) fn room(files: Option<u32>) {
        ROOM.set(files);
    }

    pub(super) fn take_room() -> Result<()> {
        match ROOM.get() {
            Some(0) => Err(Error::io("write a file")(rustix::io::Errno::NOSPC)),
            room => {
                ROOM.set(room.map(|room| room - 1));
                Ok(())
            }
        }
    }

    pub(super) fn make_room(name: &str) {
        if name == RESERVE.0 {
            ROOM.set(ROOM.get().map(|room| room + RESERVE.1));
        }
    }

    /// Lets this thread's changes of files fail after this number of them; `None`: never.
    pub(crate) fn after(changes: Option<u32>) {
        LEFT.set(changes);
    }

    /// Returns whether changes fail now.
    pub(crate) fn happened() -> bool {
        LEFT.get() == Some(0)
    }

    pub(super) fn pass() -> Result<()> {
        match LEFT.get() {
            Some(0) => Err(Error::Failed("the process has ended".to_owned())),
            left => {
                LEFT.set(left.map(|left| left - 1));
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbolic_link_in_a_directory_is_never_followed() {
        let outside = tempfile::tempdir().expect("a directory");
        let inside = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(outside.path(), inside.path().join("etc")).expect("a link");
        std::fs::write(outside.path().join("kept"), "kept").expect("a file");
        std::os::unix::fs::symlink(outside.path().join("kept"), inside.path().join("file")).expect("a link");
        let directory = Directory::make_root(inside.path(), 0o755).expect("a directory");
        assert!(matches!(directory.make("etc", 0o755), Err(Error::Refused(_))));
        assert!(matches!(directory.open("etc"), Err(Error::Refused(_))));
        assert!(matches!(directory.read("file"), Err(Error::Refused(_))));
        directory
            .write("file", b"new", 0o600)
            .expect("the link is replaced");
        directory.remove_tree("etc").expect("the link is removed");
        assert_eq!(
            std::fs::read_to_string(outside.path().join("kept")).expect("there"),
            "kept"
        );
        assert_eq!(directory.read("file").expect("a file").as_deref(), Some("new"));
    }

    #[test]
    fn only_a_file_name_is_accepted() {
        let inside = tempfile::tempdir().expect("a directory");
        let directory = Directory::make_root(inside.path(), 0o755).expect("a directory");
        for bad in ["", ".", "..", "a/b", "/etc", "a\0"] {
            assert!(
                matches!(directory.write(bad, b"", 0o600), Err(Error::Refused(_))),
                "{bad:?}"
            );
            assert!(
                matches!(directory.remove_tree(bad), Err(Error::Refused(_))),
                "{bad:?}"
            );
        }
    }
}

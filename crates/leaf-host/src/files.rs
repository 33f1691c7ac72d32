//! Reads files whose directory other programs write to, where a name may belong to something other than a file.
//!
//! A FIFO would block its reader for ever, a device may act when it is opened, and a huge file fills the memory: each is
//! an error here.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a regular file for reading, without waiting. Symbolic links are followed.
///
/// # Errors
/// The kernel's error, or one that says what the path is if it is not a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Before it is opened, since opening a device may have an effect; and after, since it may have been replaced.
    check(&std::fs::metadata(path)?)?;
    let flags = OFlags::NONBLOCK.union(OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// Returns the contents of a regular file of at most `max_bytes` bytes, without waiting. Symbolic links are followed.
///
/// # Errors
/// As [`open`], and [`ErrorKind::FileTooLarge`].
pub fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?
        .take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        let text = format!("it has more than {max_bytes} bytes");
        return Err(io::Error::new(ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

fn check(metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    let (error, what) = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => (ErrorKind::IsADirectory, "a directory"),
        () if kind.is_fifo() => (ErrorKind::InvalidInput, "a FIFO"),
        () if kind.is_socket() => (ErrorKind::InvalidInput, "a socket"),
        () => (ErrorKind::InvalidInput, "a device"),
    };
    Err(io::Error::new(error, format!("it is {what}, not a regular file")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_of_limited_size_is_read() {
        let place = tempfile::tempdir().expect("a directory");
        let at = |name: &str| place.path().join(name);
        std::fs::write(at("file"), "12345").expect("a file");
        std::os::unix::fs::symlink("file", at("link")).expect("a link");
        std::fs::create_dir(at("directory")).expect("a directory");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .expect("a FIFO");
        let socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
        assert_eq!(read(&at("file"), 5).expect("a file"), b"12345");
        assert_eq!(read(&at("link"), 5).expect("a file"), b"12345");
        for (name, says) in [
            ("directory", "it is a directory, not a regular file"),
            ("fifo", "it is a FIFO, not a regular file"),
            ("socket", "it is a socket, not a regular file"),
        ] {
            assert_eq!(read(&at(name), 5).expect_err(name).to_string(), says);
        }
        let null = read(Path::new("/dev/null"), 5).expect_err("a device").to_string();
        assert_eq!(null, "it is a device, not a regular file");
        let long = read(&at("file"), 4).expect_err("too long");
        assert_eq!(long.kind(), ErrorKind::FileTooLarge);
        let none = read(&at("none"), 5).expect_err("it is missing");
        assert_eq!(none.kind(), ErrorKind::NotFound);
        drop(socket);
    }
}

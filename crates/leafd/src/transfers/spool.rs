//! The bytes of an upload on disk: a directory that has the form of a binary cache once it is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use leaf_core::id::Caller;
use leaf_core::json::to_json;
use leaf_core::transfer::SentPath;
use leaf_core::transfer::cache::nar_name;
use leaf_nix::store::write_cache;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const DESCRIPTION: &str = "upload.json";

/// What an upload is for, as it stands on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Description {
    /// Its caller.
    pub(super) caller: Caller,
    /// The paths that the caller meant to send.
    pub(super) asked: Vec<SentPath>,
    /// Those that the leaf lacked: their NARs are the upload.
    pub(super) lacks: Vec<SentPath>,
    /// The boot of the host in which it began: its bytes are not synced.
    boot: String,
}

impl Description {
    pub(super) fn new(caller: Caller, asked: Vec<SentPath>, lacks: Vec<SentPath>) -> io::Result<Self> {
        Ok(Self {
            caller,
            asked,
            lacks,
            boot: boot_id()?,
        })
    }

    /// Returns the bytes of the upload.
    pub(super) fn total(&self) -> u64 {
        self.lacks.iter().map(|sent| sent.nar_size).sum()
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// An error of a write.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpoolError {
    /// The bytes are not those that were announced.
    #[error(
        "the bytes of {path} have the hash sha256:{found}, and nar_hash is another one: nothing of the upload was added"
    )]
    Hash {
        /// The store path.
        path: String,
        /// The hash in hexadecimal.
        found: String,
    },
    /// The disk.
    #[error("can't write into {directory}")]
    Disk {
        /// The directory of the upload.
        directory: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The bytes of an upload.
#[derive(Debug)]
pub(super) struct Spool {
    directory: PathBuf,
    lacks: Vec<SentPath>,
    received: u64,
    /// The NAR that is being received, by number; behind the last one if all are there.
    number: usize,
    /// The bytes of it that have arrived, and their hash.
    of_this: u64,
    hash: Sha256,
    file: Option<File>,
}

impl Spool {
    /// Makes the directory of an upload.
    pub(super) fn create(directory: &Path, description: &Description) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        fs::write(directory.join(DESCRIPTION), to_json(description))?;
        Ok(Self::empty(directory, description.lacks.clone()))
    }

    /// Finds an upload that an earlier run of leafd has left, and reads what has arrived of it; `None` if it is of another boot.
    pub(super) fn find(directory: &Path) -> io::Result<Option<(Description, Self)>> {
        let description: Description = serde_json::from_slice(&fs::read(directory.join(DESCRIPTION))?)?;
        if description.boot != boot_id()? {
            return Ok(None);
        }
        let mut spool = Self::empty(directory, description.lacks.clone());
        spool.read_again()?;
        Ok(Some((description, spool)))
    }

    fn empty(directory: &Path, lacks: Vec<SentPath>) -> Self {
        Self {
            directory: directory.to_owned(),
            lacks,
            received: 0,
            number: 0,
            of_this: 0,
            hash: Sha256::new(),
            file: None,
        }
    }

    /// Counts what is there. The hash of what is not whole is made again; whole NARs are compared by Nix.
    fn read_again(&mut self) -> io::Result<()> {
        while let Some(sent) = self.lacks.get(self.number) {
            let file = match File::open(self.directory.join(nar_name(self.number))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                file => file?,
            };
            let there = file.metadata()?.len().min(sent.nar_size);
            self.received += there;
            if there < sent.nar_size {
                self.of_this = there;
                let mut buffer = vec![0; 256 * 1024];
                let mut file = file.take(there);
                loop {
                    match file.read(&mut buffer)? {
                        0 => return Ok(()),
                        bytes => self.hash.update(&buffer[..bytes]),
                    }
                }
            }
            self.number += 1;
        }
        Ok(())
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Returns whether all bytes have arrived.
    pub(super) fn is_whole(&self) -> bool {
        self.number >= self.lacks.len()
    }

    /// Takes bytes at an offset of the upload: those from what was received on. Bytes that begin beyond that are dropped, as those
    /// behind the end are.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SpoolError> {
        let Some(known) = self.received.checked_sub(offset) else {
            return Ok(());
        };
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let mut rest = bytes.get(known..).unwrap_or_default();
        while !self.is_whole() && !rest.is_empty() {
            let left = self.lacks[self.number].nar_size - self.of_this;
            let room = usize::try_from(left).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(room.min(rest.len()));
            if let Err(source) = self.append(now) {
                let directory = self.directory.clone();
                return Err(SpoolError::Disk { directory, source });
            }
            self.hash.update(now);
            self.of_this += now.len() as u64;
            self.received += now.len() as u64;
            rest = later;
            if now.len() as u64 == left {
                self.end_nar()?;
            }
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let path = self.directory.join(nar_name(self.number));
                let mut options = OpenOptions::new();
                let file = options.append(true).create(true).mode(0o600).open(path)?;
                // What a failed write has left.
                file.set_len(self.of_this)?;
                self.file.insert(file)
            }
        };
        file.write_all(bytes)
    }

    fn end_nar(&mut self) -> Result<(), SpoolError> {
        let found = HEXLOWER.encode(&std::mem::take(&mut self.hash).finalize());
        let sent = &self.lacks[self.number];
        if sent.nar_sha256().as_ref() != Some(&found) {
            let path = sent.path.to_string();
            return Err(SpoolError::Hash { path, found });
        }
        (self.number, self.of_this, self.file) = (self.number + 1, 0, None);
        Ok(())
    }

    /// Makes the directory a binary cache.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.file = None;
        write_cache(&self.directory, &self.lacks)
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;
    use leaf_core::id::StorePath;

    use super::*;

    fn sent(name: &str, nar: &[u8]) -> SentPath {
        SentPath {
            path: StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}"))
                .expect("a path"),
            nar_hash: format!("sha256-{}", BASE64.encode(&Sha256::digest(nar))),
            nar_size: nar.len() as u64,
            references: Vec::new(),
            content_address: None,
            signatures: Vec::new(),
            deriver: None,
        }
    }

    fn description(nars: &[&[u8]]) -> Description {
        let names = ["a", "b", "c"];
        let lacks: Vec<SentPath> = names
            .iter()
            .zip(nars)
            .map(|(name, nar)| sent(name, nar))
            .collect();
        let caller = Caller::new("admin").expect("a caller");
        Description::new(caller, lacks.clone(), lacks).expect("the host has booted")
    }

    #[test]
    fn bytes_arrive_once_whatever_the_offsets_say_and_wherever_the_writes_and_the_runs_of_leafd_end() {
        let all = b"the first onesecondthird";
        let parts: [&[u8]; 3] = [b"the first one", b"second", b"third"];
        for step in 1..all.len() + 2 {
            let place = tempfile::tempdir().expect("a directory");
            let directory = place.path().join("upload");
            let description = description(&parts);
            assert_eq!(description.total(), all.len() as u64);
            let mut spool = Spool::create(&directory, &description).expect("created");
            while !spool.is_whole() {
                let at = usize::try_from(spool.received()).expect("small");
                // Beyond what is there, before it, and from it on.
                spool.write(spool.received() + 1, b"beyond").expect("dropped");
                spool.write(u64::MAX, b"beyond").expect("dropped");
                spool.write(0, &all[..at]).expect("dropped");
                assert_eq!(spool.received(), at as u64);
                let begin = at.saturating_sub(2);
                let end = all.len().min(at + step);
                spool.write(begin as u64, &all[begin..end]).expect("taken");
                assert_eq!(spool.received(), end as u64);
                let found = Spool::find(&directory).expect("readable").expect("of this boot");
                assert_eq!(found.0, description);
                spool = found.1;
                assert_eq!(spool.received(), end as u64);
            }
            spool.write(spool.received(), b"behind the end").expect("dropped");
            assert_eq!(spool.received(), all.len() as u64);
            for (number, part) in parts.iter().enumerate() {
                let nar = fs::read(directory.join(nar_name(number))).expect("there");
                assert_eq!(&nar, part, "{step}");
            }
            spool.finish().expect("written");
        }
    }

    #[test]
    fn other_bytes_than_announced_are_found_at_the_end_of_their_nar() {
        let place = tempfile::tempdir().expect("a directory");
        let description = description(&[b"first", b"second"]);
        let mut spool = Spool::create(place.path(), &description).expect("created");
        spool.write(0, b"firstsec").expect("right so far");
        let error = spool.write(8, b"urd").expect_err("wrong");
        assert!(
            matches!(&error, SpoolError::Hash { path, .. } if path.ends_with("-b")),
            "{error}"
        );
    }

    #[test]
    fn an_upload_of_another_boot_is_none() {
        let place = tempfile::tempdir().expect("a directory");
        let mut description = description(&[b"first"]);
        description.boot = "another".to_owned();
        Spool::create(place.path(), &description).expect("created");
        assert!(Spool::find(place.path()).expect("readable").is_none());
    }
}

//! Signs statements about what this leaf built, with a key in its state directory: docs/provenance.md.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use leaf_core::command::LogChunk;
use leaf_core::error::chain;
use leaf_core::job::{Job, JobOutcome, JobResult};
use leaf_core::provenance::envelope::Envelope;
use leaf_core::provenance::statement::{Builder, Ending, statement};
use leaf_host::files;
use leaf_job::JobError;
use leaf_trust::provenance::{ProvenanceKey, ProvenanceKeyError, SEED_BYTES};
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// The file of the private key, in the state directory. The public key is beside it, with `.pub` behind the name.
const KEY_FILE: &str = "provenance_ed25519";
/// The maximum size of the key's file, in bytes.
const MAX_KEY_BYTES: u64 = 16 << 10;

/// Signs statements about builds. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Attester {
    key: Arc<ProvenanceKey>,
    builder: Arc<Builder>,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// A file can't be read or written.
    #[error("can't {what} {path}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file holds no key.
    #[error("{path} can't be used: move it away, and the next start makes a new key")]
    Key {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: ProvenanceKeyError,
    },
}

impl Attester {
    /// Reads the key of a state directory, or makes it.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn open(state_dir: &Path, builder: Builder) -> Result<Self, KeyFileError> {
        let path = state_dir.join(KEY_FILE);
        let of_key = |source| KeyFileError::Key {
            path: path.clone(),
            source,
        };
        let key = match files::read(&path, MAX_KEY_BYTES) {
            Ok(text) => ProvenanceKey::from_openssh(&Zeroizing::new(text)).map_err(of_key)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = make(&path)?;
                let text = key.to_openssh().map_err(of_key)?;
                write(&path, text.as_bytes(), 0o600)?;
                key
            }
            Err(source) => {
                return Err(KeyFileError::Io {
                    what: "read",
                    path,
                    source,
                });
            }
        };
        let line = format!("{} leaf {}\n", key.public(), builder.leaf);
        let public = path.with_extension("pub");
        if fs::read_to_string(&public).is_ok_and(|text| text == line) {
            return Ok(Self::new(key, builder));
        }
        write(&public, line.as_bytes(), 0o644)?;
        Ok(Self::new(key, builder))
    }

    fn new(key: ProvenanceKey, builder: Builder) -> Self {
        Self {
            key: Arc::new(key),
            builder: Arc::new(builder),
        }
    }

    /// Returns the public key, as a line of a `.pub` file without a comment.
    #[must_use]
    pub fn public_key(&self) -> String {
        self.key.public().to_string()
    }

    /// Returns the signed statement about what a job built; `None` if it built nothing. `log` reads a page of its log.
    #[must_use]
    pub fn attest(
        &self,
        job: &Job,
        outcome: &JobOutcome,
        log: impl FnMut(u64) -> Result<LogChunk, JobError>,
    ) -> Option<Envelope> {
        let JobOutcome::Succeeded(JobResult::Build(result)) = outcome else {
            return None;
        };
        if result.built == 0 {
            return None;
        }
        let ending = Ending {
            at: Timestamp::now(),
            log_sha256: log_sha256(log)
                .inspect_err(|error| tracing::warn!(id = %job.id, error = chain(error), "a statement has no digest of the log"))
                .ok(),
        };
        let statement = statement(job, result, &self.builder, &ending)?;
        let signed = self.key.sign(statement.to_string().as_bytes());
        signed
            .inspect_err(
                |error| tracing::error!(id = %job.id, error = chain(error), "a build is not attested"),
            )
            .ok()
    }
}

/// Returns the SHA-256 of a log, in hexadecimal.
fn log_sha256(mut log: impl FnMut(u64) -> Result<LogChunk, JobError>) -> Result<String, JobError> {
    let mut hash = Sha256::new();
    let mut offset = 0;
    loop {
        let chunk = log(offset)?;
        hash.update(&chunk.text);
        // A page that does not lead on would never end.
        if chunk.complete || chunk.next_offset == offset {
            return Ok(HEXLOWER.encode(&hash.finalize()));
        }
        offset = chunk.next_offset;
    }
}

/// Makes a key for this path.
fn make(path: &Path) -> Result<ProvenanceKey, KeyFileError> {
    let mut seed = Zeroizing::new([0; SEED_BYTES]);
    let failed = |source| KeyFileError::Io {
        what: "make a random key for",
        path: path.to_owned(),
        source,
    };
    let filled =
        getrandom(seed.as_mut_slice(), GetRandomFlags::empty()).map_err(|error| failed(error.into()))?;
    if filled != SEED_BYTES {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(ProvenanceKey::from_seed(&seed))
}

/// Writes a file under another name, and puts it into its place once it is on the disk.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), KeyFileError> {
    let draft = path.with_extension("new");
    let written = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    written().map_err(|source| KeyFileError::Io {
        what: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use leaf_core::id::LeafName;

    use super::*;

    fn builder() -> Builder {
        Builder {
            leaf: LeafName::new("edge-1").expect("a name"),
            leafd: "0.1.0".to_owned(),
            nix: "2.8.0".to_owned(),
        }
    }

    #[test]
    fn the_key_is_made_once_and_only_its_owner_can_read_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Attester::open(directory.path(), builder()).expect("a key");
        let path = directory.path().join(KEY_FILE);
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let line = fs::read_to_string(path.with_extension("pub")).expect("a file");
        assert!(line.starts_with(&first.public_key()), "{line}");
        let again = Attester::open(directory.path(), builder()).expect("the key");
        assert_eq!(again.public_key(), first.public_key());
        // A lost public half is written again, and is not a new key.
        fs::remove_file(path.with_extension("pub")).expect("removed");
        let again = Attester::open(directory.path(), builder()).expect("the key");
        assert_eq!(again.public_key(), first.public_key());
        assert!(path.with_extension("pub").exists());
    }

    #[test]
    fn a_file_that_is_no_key_is_left_and_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(KEY_FILE);
        fs::write(&path, "garbage").expect("written");
        let error = Attester::open(directory.path(), builder()).expect_err("no key");
        assert!(chain(&error).contains("provenance_ed25519"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "garbage");
    }
}

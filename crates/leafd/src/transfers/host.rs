//! Where uploads go, and their bounds.

use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::transfer::SentPath;
use leaf_nix::Nix;
use leaf_nix::gc::free_bytes;
use sha2::{Digest as _, Sha256};

/// Where uploads go, and their bounds.
#[derive(Debug)]
pub struct Host {
    /// Nix, which adds what is uploaded.
    pub nix: Nix,
    /// The directory of the uploads.
    pub directory: PathBuf,
    /// The directory of the links that hold what was added.
    pub kept: PathBuf,
    /// A directory on the disk of the store.
    pub store: PathBuf,
    /// The most bytes of one upload (`nix.max_upload_bytes`).
    pub max_upload_bytes: u64,
    /// What is kept free on both disks (`nix.min_free_bytes`).
    pub min_free_bytes: u64,
}

impl Host {
    /// Checks that the disks have room for so many bytes of uploads, and for so many of the store.
    pub(super) fn has_room(&self, of_uploads: u64, of_store: u64) -> Result<(), Problem> {
        let kept = self.min_free_bytes;
        for (directory, needed) in [(&self.directory, of_uploads), (&self.store, of_store)] {
            let Ok(free) = free_bytes(directory) else { continue };
            if free < kept.saturating_add(needed) {
                let detail = format!(
                    "the disk of {} has {free} bytes left, uploads need {needed} of them, and nix.min_free_bytes keeps {kept}",
                    directory.display()
                );
                return Err(Problem::new(ProblemCode::DiskFull, detail));
            }
        }
        Ok(())
    }
}

/// Returns the directory of the links that hold these paths.
pub(super) fn kept_directory(kept: &Path, paths: &[SentPath]) -> PathBuf {
    let mut hash = Sha256::new();
    for sent in paths {
        hash.update(sent.path.as_str());
        hash.update("\n");
    }
    kept.join(&HEXLOWER.encode(&hash.finalize())[..32])
}

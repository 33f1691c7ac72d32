//! Walks directory trees, and computes names from their hashes.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

/// Calls a function with each file below a directory, in the order of names.
pub(crate) fn each_file(directory: &Path, with: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("can't read {}", directory.display()))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    paths.sort_unstable();
    for path in paths {
        if path.is_dir() {
            each_file(&path, with)?;
        } else {
            with(&path)?;
        }
    }
    Ok(())
}

/// Returns a name for what is made from these parts.
pub(crate) fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex(hash)
}

/// Returns the first bytes of a digest as hexadecimal text.
pub(crate) fn hex(hash: Sha256) -> String {
    HEXLOWER.encode(&hash.finalize()[..8])
}

/// Adds the names and contents of all files below a directory to a digest.
pub(crate) fn digest(tree: &Path, directory: &Path, hash: &mut Sha256) -> Result<()> {
    each_file(directory, &mut |file| {
        let path = file.strip_prefix(tree).expect("it is below the directory");
        let mut reader = fs::File::open(file).with_context(|| format!("can't read {}", file.display()))?;
        let size = reader.metadata().map(|file| file.len()).unwrap_or_default();
        hash.update(format!("{}\0{size}\0", path.display()));
        let mut bytes = vec![0; 1 << 20];
        loop {
            match reader
                .read(&mut bytes)
                .with_context(|| format!("can't read {}", file.display()))?
            {
                0 => return Ok(()),
                count => hash.update(&bytes[..count]),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_changes_with_each_part_and_with_where_one_ends() {
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["a", "b"]), key(&["ab", ""]));
        assert_ne!(key(&["a", "b"]), key(&["a", "c"]));
    }
}

//! Transfers of store paths to a leaf and back, as `docs/protocol/transfers.md` says: the messages, for both sides.

pub mod cache;
pub mod path_info;
pub mod stored;

use std::collections::BTreeSet;

use data_encoding::{BASE64, HEXLOWER};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::StorePath;

/// The noun of the requests of a transfer.
pub const NOUN: &str = "transfer";
/// The header with the id of an upload or a download.
pub const UPLOAD_HEADER: &str = "Leaf-Transfer";
/// The most bytes of one write or read.
pub const CHUNK_BYTES: usize = 128 * 1024;
/// The maximum number of paths of a `nix.put`.
pub const MOST_PATHS: usize = 512;
/// The maximum number of signatures of a path.
const MOST_SIGNATURES: usize = 16;
/// The maximum length of a content address or of a signature, in bytes.
const MAX_TEXT_BYTES: usize = 256;

/// A store path that a caller means to send, or gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SentPath {
    /// The store path.
    pub path: StorePath,
    /// The SHA-256 of its NAR: `sha256-` and base64.
    pub nar_hash: String,
    /// The size of its NAR, in bytes.
    pub nar_size: u64,
    /// The store paths that it refers to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<StorePath>,
    /// Its content address, as Nix's `ca`: `fixed:r:sha256:…` or `text:sha256:…`. An output of a build has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_address: Option<String>,
    /// Its signatures, as Nix's `sigs`: at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<String>,
    /// The derivation that it is an output of, where that is known. A leaf of an older version refuses it in a `nix.put`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deriver: Option<StorePath>,
}

impl SentPath {
    /// Returns the SHA-256 of its NAR in hexadecimal; `None` if that is no such hash.
    #[must_use]
    pub fn nar_sha256(&self) -> Option<String> {
        let bytes = BASE64
            .decode(self.nar_hash.strip_prefix("sha256-")?.as_bytes())
            .ok()?;
        (bytes.len() == 32).then(|| HEXLOWER.encode(&bytes))
    }

    fn check(&self) -> Result<(), String> {
        let path = &self.path;
        if self.nar_sha256().is_none() {
            return Err(format!("{path}: nar_hash is not sha256- and 32 bytes in base64"));
        }
        if self.nar_size == 0 {
            return Err(format!("{path}: nar_size is 0"));
        }
        if self.signatures.len() > MOST_SIGNATURES {
            return Err(format!("{path}: give at most {MOST_SIGNATURES} signatures"));
        }
        // They become lines of a file.
        let is_word = |text: &String| {
            (1..=MAX_TEXT_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !self.content_address.iter().chain(&self.signatures).all(is_word) {
            return Err(format!(
                "{path}: a content address or a signature has 1 to {MAX_TEXT_BYTES} printable characters and no blank"
            ));
        }
        Ok(())
    }
}

/// Checks what a caller means to send, and returns the bytes of all together.
///
/// # Errors
/// The reason, for the caller.
pub fn check(paths: &[SentPath]) -> Result<u64, String> {
    if !(1..=MOST_PATHS).contains(&paths.len()) {
        return Err(format!("give 1 to {MOST_PATHS} paths, not {}", paths.len()));
    }
    let mut seen = BTreeSet::new();
    let mut total: u64 = 0;
    for sent in paths {
        sent.check()?;
        if !seen.insert(&sent.path) {
            return Err(format!("{} is given twice", sent.path));
        }
        total = total
            .checked_add(sent.nar_size)
            .ok_or_else(|| format!("{}: the bytes of all paths together are too many", sent.path))?;
    }
    Ok(total)
}

/// Returns the paths that no other one of these refers to: what holds them, holds all that they refer to.
#[must_use]
pub fn tops(paths: &[SentPath]) -> Vec<StorePath> {
    let referred: BTreeSet<&StorePath> = paths
        .iter()
        .flat_map(|sent| {
            sent.references
                .iter()
                .filter(|reference| **reference != sent.path)
        })
        .collect();
    let tops = paths.iter().map(|sent| &sent.path);
    tops.filter(|path| !referred.contains(path)).cloned().collect()
}

/// What a leaf lacks of the store paths that a caller means to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lacking {
    /// The paths that it lacks, in the order of the request.
    pub lacks: Vec<StorePath>,
    /// The upload that takes them, if it lacks any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Uuid>,
    /// How many bytes of the upload have arrived.
    pub received: u64,
    /// The most bytes of one write.
    pub chunk_bytes: usize,
}

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Received {
    /// How many bytes the leaf has.
    pub received: u64,
    /// What it does with them.
    pub state: UploadState,
}

/// What a leaf does with an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UploadState {
    /// It takes bytes.
    Receiving,
    /// It has all, and adds the paths to its store.
    Adding,
    /// The paths are in its store.
    Added,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(name: char, references: &[char]) -> SentPath {
        let path = |name: char| {
            StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}")).expect("a path")
        };
        SentPath {
            path: path(name),
            nar_hash: format!("sha256-{}", BASE64.encode(&[7; 32])),
            nar_size: 3,
            references: references.iter().copied().map(path).collect(),
            content_address: None,
            signatures: Vec::new(),
            deriver: None,
        }
    }

    #[test]
    fn what_no_leaf_can_take_is_refused_with_the_reason() {
        let good = sent('a', &[]);
        assert_eq!(check(&[good.clone(), sent('b', &['a'])]), Ok(6));
        let with = |change: fn(&mut SentPath)| {
            let mut changed = good.clone();
            change(&mut changed);
            vec![changed]
        };
        for (paths, why) in [
            (Vec::new(), "give 1 to 512 paths"),
            (vec![good.clone(); 2], "is given twice"),
            (vec![good.clone(); MOST_PATHS + 1], "not 513"),
            (with(|sent| sent.nar_hash = "sha256-AAAA".to_owned()), "32 bytes"),
            (with(|sent| sent.nar_hash = "md5-AAAA".to_owned()), "nar_hash"),
            (with(|sent| sent.nar_size = 0), "nar_size is 0"),
            (
                with(|sent| sent.signatures = vec!["a:b".to_owned(); 17]),
                "at most 16",
            ),
            (
                with(|sent| sent.signatures = vec!["a:b\nCA: x".to_owned()]),
                "no blank",
            ),
            (
                with(|sent| sent.content_address = Some(String::new())),
                "1 to 256",
            ),
        ] {
            let error = check(&paths).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
        let mut huge = [sent('a', &[]), sent('b', &[])];
        huge.iter_mut().for_each(|sent| sent.nar_size = u64::MAX);
        assert!(check(&huge).expect_err("too many").contains("too many"));
    }

    #[test]
    fn the_tops_are_what_nothing_else_refers_to() {
        let paths = [sent('a', &[]), sent('b', &['a', 'b']), sent('c', &['a'])];
        let tops: Vec<String> = tops(&paths).iter().map(ToString::to_string).collect();
        assert_eq!(tops.len(), 2);
        assert!(tops[0].ends_with("-b") && tops[1].ends_with("-c"), "{tops:?}");
    }
}

//! The task of verifying the running system: where the store paths of its closure come from, and what in `/etc` differs from it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::StorePath;

/// The number of statements about store paths that a task has at most.
pub const MOST_STATED: usize = 1024;
/// The number of store paths that a result lists at most.
pub const MOST_LISTED: usize = 256;
/// The number of files of `/etc` that a result lists at most.
pub const MOST_DIFFERENCES: usize = 256;
/// The length of a SHA-256 in hexadecimal.
const SHA256_LENGTH: usize = 64;

/// The task of verifying the running system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyTask {
    /// The NAR hashes of store paths by signed statements, at most 1024. The caller has checked the signatures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stated: Vec<Stated>,
    /// Whether the contents of each store path are hashed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub contents: bool,
    /// The time limit, in seconds.
    pub timeout_seconds: u32,
}

/// The NAR hash of a store path by a signed statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stated {
    /// The store path.
    pub path: StorePath,
    /// The SHA-256 of its NAR, in hexadecimal.
    pub nar_sha256: String,
}

/// The report on the running system: the origins of its store paths, and the files of `/etc` that differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerifyResult {
    /// The system that runs.
    pub toplevel: StorePath,
    /// The number of store paths of its closure.
    pub paths: u64,
    /// Those with a signature that the leaf's Nix trusts, or whose name is made from their contents.
    pub signed: u64,
    /// The others whose hash a given statement names.
    pub attested: u64,
    /// The others that the leaf itself has built, by Nix's database.
    pub built_here: u64,
    /// The others: nothing says where they come from.
    pub unknown: u64,
    /// Those whose hash in Nix's database is another one than a given statement names; whatever else is said of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub contradicted: u64,
    /// Those that are in Nix's database, and not in the store.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing: u64,
    /// Those whose contents do not have the hash of Nix's database; absent if the contents were not hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<u64>,
    /// The store paths that are missing, modified, contradicted, unknown and built here, in this order; at most 256. One that is several
    /// of these is listed once for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listed: Vec<ListedPath>,
    /// The number of further ones.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
    /// How `/etc` compares.
    pub etc: EtcReport,
}

/// A store path about which there is something to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListedPath {
    /// The store path.
    pub path: StorePath,
    /// The finding.
    pub what: PathFinding,
}

/// A finding about a store path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PathFinding {
    /// It is in Nix's database, and not in the store.
    Missing,
    /// Its contents do not have the hash of Nix's database.
    Modified,
    /// A statement names another hash than Nix's database.
    Contradicted,
    /// It has neither a trusted signature nor a statement, and was not built here.
    Unknown,
    /// It was built here, and no given statement is about it.
    BuiltHere,
}

/// How `/etc` compares with the running system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EtcReport {
    /// Why `/etc` was not compared, or not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_compared: Option<String>,
    /// The number of files and links that the system has in `/etc`.
    #[serde(default)]
    pub of_system: u64,
    /// The number of differences that nothing explains, also of those that are not listed.
    #[serde(default)]
    pub unexplained: u64,
    /// The files that differ, those without an explanation first, then by name; at most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<EtcDifference>,
    /// The number of further ones.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

/// A file in `/etc` that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EtcDifference {
    /// Its name below `/etc`, at most 400 bytes. A directory ends with `/`, and what is in it is not listed.
    pub name: String,
    /// How it differs.
    pub what: EtcDifferenceKind,
    /// What makes such a file on every NixOS host; absent if nothing explains it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explained: Option<String>,
}

/// How a file in `/etc` differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EtcDifferenceKind {
    /// Its contents, the target of a link, or its type.
    Changed,
    /// Its mode or owner.
    Mode,
    /// No system made it.
    Added,
    /// The system has it, and it is not there.
    Missing,
    /// The job may not read it: its contents were not compared, and its mode and owner are right.
    Unreadable,
}

impl VerifyTask {
    /// Checks the form.
    ///
    /// # Errors
    /// The reason why it is refused.
    pub fn check(&self) -> Result<(), String> {
        if self.stated.len() > MOST_STATED {
            return Err(format!(
                "{} statements are given, at most {MOST_STATED} can be",
                self.stated.len()
            ));
        }
        let is_hash = |text: &str| {
            text.len() == SHA256_LENGTH
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        };
        match self.stated.iter().find(|stated| !is_hash(&stated.nar_sha256)) {
            Some(stated) => Err(format!(
                "the hash of {} is no SHA-256 in lowercase hexadecimal",
                stated.path
            )),
            None => Ok(()),
        }
    }
}

impl VerifyResult {
    /// Leaves out store paths and files above about this many bytes of each.
    pub(crate) fn shorten(&mut self, max_bytes: usize) {
        self.left_out += shorten(&mut self.listed, max_bytes, |listed| {
            listed.path.as_str().len() + 40
        });
        self.etc.left_out += shorten(&mut self.etc.differences, max_bytes, |file| {
            file.name.len() + file.explained.as_ref().map_or(0, String::len) + 60
        });
    }
}

/// Leaves out what is above this many bytes; returns its number.
fn shorten<T>(list: &mut Vec<T>, max_bytes: usize, size: impl Fn(&T) -> usize) -> u64 {
    let mut bytes = 0;
    let fits = list.iter().take_while(|item| {
        bytes += size(item);
        bytes <= max_bytes
    });
    let kept = fits.count();
    let left_out = (list.len() - kept) as u64;
    list.truncate(kept);
    left_out
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}")).expect("a path")
    }

    #[test]
    fn a_statement_has_a_sha_256_and_there_are_not_too_many() {
        let task = |stated| VerifyTask {
            stated,
            contents: true,
            timeout_seconds: 60,
        };
        let stated = |hash: String| Stated {
            path: path("a"),
            nar_sha256: hash,
        };
        assert_eq!(task(vec![stated("0f".repeat(32))]).check(), Ok(()));
        for bad in ["", "0F", &"0F".repeat(32), &"zz".repeat(32), &"00".repeat(33)] {
            let why = task(vec![stated(bad.to_owned())]).check().expect_err(bad);
            assert!(why.contains("44la-a is no SHA-256"), "{why}");
        }
        let many = vec![stated("00".repeat(32)); MOST_STATED + 1];
        let why = task(many).check().expect_err("too many");
        assert!(why.contains("1025"), "{why}");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let listed = |name: &str| ListedPath {
            path: path(name),
            what: PathFinding::Unknown,
        };
        let file = |name: &str| EtcDifference {
            name: name.to_owned(),
            what: EtcDifferenceKind::Added,
            explained: Some("a reason".to_owned()),
        };
        let mut result = VerifyResult {
            toplevel: path("nixos"),
            paths: 2,
            signed: 0,
            attested: 0,
            built_here: 0,
            unknown: 2,
            contradicted: 0,
            missing: 0,
            modified: None,
            listed: vec![listed("a"), listed("b")],
            left_out: 1,
            etc: EtcReport {
                differences: vec![file("a"), file("b")],
                ..EtcReport::default()
            },
        };
        result.shorten(100);
        assert_eq!((result.listed.len(), result.left_out), (1, 2));
        assert_eq!((result.etc.differences.len(), result.etc.left_out), (1, 1));
        result.shorten(0);
        assert_eq!((result.left_out, result.etc.left_out), (3, 2));
    }
}

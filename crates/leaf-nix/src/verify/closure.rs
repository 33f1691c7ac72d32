//! The store paths of a closure, as Nix's database has them, and what is known of where each comes from.

use std::collections::{BTreeMap, BTreeSet};

use leaf_core::id::StorePath;
use leaf_core::job::verify::{ListedPath, MOST_LISTED, PathFinding, Stated};
use serde_json::{Map, Value};

use crate::path_info::{sha256, store_path};

/// A closure.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Closure(BTreeMap<StorePath, Registered>);

/// What Nix's database has of a store path.
#[derive(Debug, Default, PartialEq, Eq)]
struct Registered {
    /// The SHA-256 of its NAR, in hexadecimal.
    nar_sha256: Option<String>,
    /// Whether this Nix has built it.
    built_here: bool,
}

/// What is known of the store paths of a closure.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) signed: u64,
    pub(super) attested: u64,
    pub(super) built_here: u64,
    pub(super) unknown: u64,
    pub(super) contradicted: u64,
    pub(super) listed: Vec<ListedPath>,
    pub(super) left_out: u64,
}

impl Closure {
    /// Reads the output of `nix path-info --recursive --json`, in the shapes of all versions since 2.8.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let value: Value =
            serde_json::from_slice(json).map_err(|e| format!("nix path-info printed invalid JSON: {e}"))?;
        let mut closure = Self::default();
        if let Some(list) = value.as_array() {
            for info in list {
                let path = info.get("path").and_then(Value::as_str);
                closure.add(path.ok_or("nix path-info printed an entry without a path")?, info)?;
            }
            return Ok(closure);
        }
        let infos = value.get("info").unwrap_or(&value);
        let infos: &Map<String, Value> = infos.as_object().ok_or("nix path-info printed no list")?;
        for (path, info) in infos {
            closure.add(path, info)?;
        }
        Ok(closure)
    }

    fn add(&mut self, path: &str, info: &Value) -> Result<(), String> {
        let registered = Registered {
            nar_sha256: info.get("narHash").and_then(sha256),
            built_here: info.get("ultimate").and_then(Value::as_bool).unwrap_or_default(),
        };
        self.0.insert(store_path(path)?, registered);
        Ok(())
    }

    /// Returns its store paths.
    pub(super) fn paths(&self) -> impl Iterator<Item = &StorePath> {
        self.0.keys()
    }

    /// Returns the number of its store paths.
    pub(super) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Returns what is known of each store path: of those that Nix does not trust by their signatures, those that were modified, and
    /// those that are not there.
    pub(super) fn judge(
        &self,
        stated: &[Stated],
        untrusted: &BTreeSet<StorePath>,
        modified: &BTreeSet<StorePath>,
        missing: &BTreeSet<StorePath>,
    ) -> Judged {
        let mut by_path = BTreeMap::<&StorePath, Vec<&str>>::new();
        for stated in stated {
            by_path.entry(&stated.path).or_default().push(&stated.nar_sha256);
        }
        let mut judged = Judged::default();
        let mut listed: Vec<ListedPath> = Vec::new();
        let mut list = |path: &StorePath, what| {
            let path = path.clone();
            listed.push(ListedPath { path, what });
        };
        for (path, registered) in &self.0 {
            // A path that was built again, after its garbage was collected, may have had another hash.
            let hashes = by_path.get(path).map(Vec::as_slice).unwrap_or_default();
            let holds = registered
                .nar_sha256
                .as_deref()
                .is_some_and(|own| hashes.contains(&own));
            if missing.contains(path) {
                list(path, PathFinding::Missing);
            }
            if modified.contains(path) {
                list(path, PathFinding::Modified);
            }
            if !holds && !hashes.is_empty() {
                judged.contradicted += 1;
                list(path, PathFinding::Contradicted);
            }
            if !untrusted.contains(path) {
                judged.signed += 1;
            } else if holds {
                judged.attested += 1;
            } else if registered.built_here {
                judged.built_here += 1;
                list(path, PathFinding::BuiltHere);
            } else {
                judged.unknown += 1;
                list(path, PathFinding::Unknown);
            }
        }
        listed.sort_by_key(|listed| listed.what);
        judged.left_out = listed.len().saturating_sub(MOST_LISTED) as u64;
        listed.truncate(MOST_LISTED);
        judged.listed = listed;
        judged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 32 bytes of 0, in base64.
    const HASH: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    fn path(name: &str) -> StorePath {
        StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}")).expect("a path")
    }

    fn stated(name: &str, digit: &str) -> Stated {
        Stated {
            path: path(name),
            nar_sha256: digit.repeat(64),
        }
    }

    fn closure() -> Closure {
        let entry = |name: &str, ultimate: bool| {
            let path = path(name);
            format!(r#"{{"path":"{path}","narHash":"sha256-{HASH}","ultimate":{ultimate},"signatures":[]}}"#)
        };
        let entries = [
            entry("signed", false),
            entry("attested", true),
            entry("built", true),
            entry("copied", false),
        ];
        Closure::parse(format!("[{}]", entries.join(",")).as_bytes()).expect("readable")
    }

    #[test]
    fn a_closure_is_read_in_every_shape() {
        let a = path("a");
        let base = a.as_str().trim_start_matches("/nix/store/");
        let shapes = [
            format!(r#"[{{"path":"{a}","narHash":"sha256-{HASH}","ultimate":true}}]"#),
            format!(r#"{{"{a}":{{"narHash":"sha256-{HASH}","ultimate":true}}}}"#),
            format!(
                r#"{{"version":2,"info":{{"{base}":{{"narHash":{{"algorithm":"sha256","format":"base64","hash":"{HASH}"}},"ultimate":true}}}}}}"#
            ),
        ];
        for json in shapes {
            let closure = Closure::parse(json.as_bytes()).expect(&json);
            let registered = Registered {
                nar_sha256: Some("0".repeat(64)),
                built_here: true,
            };
            assert_eq!(closure, Closure(BTreeMap::from([(a.clone(), registered)])));
        }
        for bad in ["x", "5", r#"[{"narHash":"x"}]"#, r#"{"/etc":{}}"#] {
            Closure::parse(bad.as_bytes()).expect_err(bad);
        }
    }

    #[test]
    fn each_path_has_one_origin_and_what_is_wrong_comes_first() {
        let untrusted = BTreeSet::from(["attested", "built", "copied"].map(path));
        let none = BTreeSet::new();
        let judged = closure().judge(&[stated("attested", "0")], &untrusted, &none, &none);
        let finding = |name: &str, what| ListedPath {
            path: path(name),
            what,
        };
        let expected = Judged {
            signed: 1,
            attested: 1,
            built_here: 1,
            unknown: 1,
            listed: vec![
                finding("copied", PathFinding::Unknown),
                finding("built", PathFinding::BuiltHere),
            ],
            ..Judged::default()
        };
        assert_eq!(judged, expected);

        // A statement with another hash is said also of a path that is signed, and attests nothing; one of several may hold.
        let statements = [
            stated("signed", "1"),
            stated("attested", "1"),
            stated("built", "1"),
            stated("built", "0"),
        ];
        let wrong = BTreeSet::from([path("copied")]);
        let judged = closure().judge(&statements, &untrusted, &wrong, &BTreeSet::from([path("signed")]));
        assert_eq!(
            (judged.contradicted, judged.attested, judged.built_here),
            (2, 1, 1)
        );
        let listed: Vec<_> = judged.listed.iter().map(|listed| listed.what).collect();
        assert_eq!(
            listed,
            [
                PathFinding::Missing,
                PathFinding::Modified,
                PathFinding::Contradicted,
                PathFinding::Contradicted,
                PathFinding::Unknown,
                PathFinding::BuiltHere,
            ]
        );
    }

    #[test]
    fn no_more_paths_are_listed_than_a_result_has() {
        let entries = (0..MOST_LISTED + 3)
            .map(|nth| format!(r#"{{"path":"{}","ultimate":false}}"#, path(&nth.to_string())));
        let json = format!("[{}]", entries.collect::<Vec<_>>().join(","));
        let closure = Closure::parse(json.as_bytes()).expect("readable");
        let all: BTreeSet<StorePath> = closure.paths().cloned().collect();
        let judged = closure.judge(&[], &all, &BTreeSet::new(), &BTreeSet::new());
        assert_eq!((judged.listed.len(), judged.left_out), (MOST_LISTED, 3));
        assert_eq!(judged.unknown, closure.len());
    }
}

//! The output of `nix path-info --json`, in the shapes of all versions since 2.8.

use leaf_core::id::StorePath;
pub(crate) use leaf_core::transfer::path_info::{sha256, store_path};
use serde_json::{Map, Value};

/// The minor version of Nix 2 that is known to choose the format of `nix path-info --json` by a flag.
pub(crate) const JSON_FORMAT: u32 = 34;

/// The information of Nix about a valid store path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PathInfo {
    pub(crate) closure_size_bytes: u64,
    pub(crate) nar_size_bytes: Option<u64>,
    pub(crate) references: Vec<StorePath>,
    /// The SHA-256 of its NAR, in hexadecimal.
    pub(crate) nar_sha256: Option<String>,
}

/// The output of `nix path-info --json --closure-size`: a list up to 2.18, then an object keyed by path, in the newest inside
/// `info` and keyed by base name.
#[derive(Debug)]
pub(crate) struct PathInfos(Value);

impl PathInfos {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(json)
            .map(Self)
            .map_err(|e| format!("nix path-info printed invalid JSON: {e}"))
    }

    /// Returns the information about one path.
    pub(crate) fn of(&self, path: &StorePath) -> Result<PathInfo, String> {
        read_path_info(&self.0, path)
    }
}

fn read_path_info(value: &Value, path: &StorePath) -> Result<PathInfo, String> {
    let info = find_info(value, path).ok_or_else(|| format!("nix path-info has no entry for {path}"))?;
    let size = info
        .get("closureSize")
        .and_then(Value::as_u64)
        .ok_or("nix path-info printed no closureSize")?;
    let mut references = Vec::new();
    for reference in info
        .get("references")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let reference = store_path(reference.as_str().ok_or("a reference is not a text")?)?;
        if reference != *path {
            references.push(reference);
        }
    }
    references.sort();
    Ok(PathInfo {
        closure_size_bytes: size,
        nar_size_bytes: info.get("narSize").and_then(Value::as_u64),
        references,
        nar_sha256: info.get("narHash").and_then(sha256),
    })
}

fn find_info<'a>(value: &'a Value, path: &StorePath) -> Option<&'a Map<String, Value>> {
    if let Some(list) = value.as_array() {
        return list
            .iter()
            .find(|info| info.get("path").and_then(Value::as_str) == Some(path.as_str()))?
            .as_object();
    }
    let infos = value.get("info").unwrap_or(value);
    let base = path.as_str().trim_start_matches("/nix/store/");
    infos.get(path.as_str()).or_else(|| infos.get(base))?.as_object()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const A: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a";
    pub(crate) const B: &str = "/nix/store/11bgd045z0d4icpbc2yyz4gx48ak44la-b";

    /// 32 bytes of 0, in base64.
    const HASH: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    pub(crate) fn path(text: &str) -> StorePath {
        StorePath::new(text).expect("a store path")
    }

    #[test]
    fn path_info_is_read_in_every_shape_and_a_path_does_not_refer_to_itself() {
        let base = |p: &str| p.trim_start_matches("/nix/store/").to_owned();
        let (a, b) = (base(A), base(B));
        for json in [
            format!(
                r#"[{{"path":"{A}","narSize":5,"narHash":"sha256-{HASH}","closureSize":7,"references":["{B}","{A}"]}}]"#
            ),
            format!(
                r#"{{"{A}":{{"narSize":5,"narHash":"sha256-{HASH}","closureSize":7,"references":["{A}","{B}"]}}}}"#
            ),
            format!(
                r#"{{"version":2,"info":{{"{a}":{{"narSize":5,"narHash":{{"algorithm":"sha256","format":"base64","hash":"{HASH}"}},"closureSize":7,"references":["{b}","{a}"]}}}}}}"#
            ),
        ] {
            let info = PathInfos::parse(json.as_bytes()).and_then(|infos| infos.of(&path(A)));
            let info = info.expect("readable");
            assert_eq!(
                info,
                PathInfo {
                    closure_size_bytes: 7,
                    nar_size_bytes: Some(5),
                    references: vec![path(B)],
                    nar_sha256: Some("00".repeat(32))
                }
            );
        }
        for bad in [
            "x",
            "[]",
            "{}",
            &format!(r#"{{"{A}":null}}"#),
            &format!(r#"{{"{A}":{{}}}}"#),
        ] {
            let infos = PathInfos::parse(bad.as_bytes());
            infos.and_then(|infos| infos.of(&path(A))).expect_err(bad);
        }
    }
}

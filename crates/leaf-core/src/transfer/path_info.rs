//! The output of `nix path-info --json`, in the shapes of all versions since 2.8, as what a transfer says of store paths.

use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Map, Value};

use super::SentPath;
use crate::id::StorePath;

/// Reads what `nix path-info --json` printed: all paths in its order. A list up to 2.18, then an object keyed by path, in the newest inside
/// `info` and keyed by base name.
///
/// # Errors
/// What can't be read.
pub fn sent_paths(json: &[u8]) -> Result<Vec<SentPath>, String> {
    let value: Value =
        serde_json::from_slice(json).map_err(|e| format!("nix path-info printed invalid JSON: {e}"))?;
    if let Some(list) = value.as_array() {
        return list
            .iter()
            .map(|info| {
                let path = info.get("path").and_then(Value::as_str);
                sent_path(path.ok_or("an entry without a path")?, info)
            })
            .collect();
    }
    let infos = value.get("info").unwrap_or(&value).as_object();
    let infos = infos.ok_or("nix path-info printed neither a list nor an object")?;
    infos.iter().map(|(path, info)| sent_path(path, info)).collect()
}

fn sent_path(path: &str, info: &Value) -> Result<SentPath, String> {
    let path = store_path(path)?;
    let info = info
        .as_object()
        .filter(|info| info.get("valid") != Some(&Value::Bool(false)))
        .ok_or_else(|| format!("{path} is not in the store"))?;
    let sha256 = info.get("narHash").and_then(sha256);
    let sha256 = sha256.and_then(|hash| HEXLOWER.decode(hash.as_bytes()).ok());
    let sha256 = sha256.ok_or_else(|| format!("{path}: there is no SHA-256 of its NAR"))?;
    let size = info.get("narSize").and_then(Value::as_u64);
    let texts = |name: &str| -> Vec<&str> {
        let all = info.get(name).and_then(Value::as_array).into_iter().flatten();
        all.filter_map(Value::as_str).collect()
    };
    let deriver = text(info, "deriver")
        .filter(|deriver| *deriver != "unknown-deriver")
        .map(store_path);
    Ok(SentPath {
        nar_hash: format!("sha256-{}", BASE64.encode(&sha256)),
        nar_size: size.ok_or_else(|| format!("{path}: there is no size of its NAR"))?,
        references: texts("references")
            .into_iter()
            .map(store_path)
            .collect::<Result<_, _>>()?,
        content_address: text(info, "ca").map(str::to_owned),
        signatures: texts("signatures").into_iter().map(str::to_owned).collect(),
        deriver: deriver.transpose()?,
        path,
    })
}

fn text<'a>(info: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    info.get(name)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
}

/// Returns a SHA-256 in hexadecimal: of `sha256-…` in base64, or of the object of the newest versions.
#[must_use]
pub fn sha256(hash: &Value) -> Option<String> {
    let base64 = match hash {
        Value::String(text) => text.strip_prefix("sha256-")?,
        hash => {
            let of = |field: &str| hash.get(field).and_then(Value::as_str);
            if of("algorithm") != Some("sha256") {
                return None;
            }
            match of("format") {
                Some("base64") => of("hash")?,
                Some("base16") => return of("hash").map(str::to_owned),
                _ => return None,
            }
        }
    };
    let bytes = BASE64.decode(base64.as_bytes()).ok()?;
    (bytes.len() == 32).then(|| HEXLOWER.encode(&bytes))
}

/// Parses a store path or its base name.
///
/// # Errors
/// It is none.
pub fn store_path(text: &str) -> Result<StorePath, String> {
    let text = if text.starts_with('/') {
        text.to_owned()
    } else {
        format!("/nix/store/{text}")
    };
    StorePath::new(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a";
    const B: &str = "/nix/store/11bgd045z0d4icpbc2yyz4gx48ak44la-b";
    const HASH: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    #[test]
    fn what_nix_says_of_a_path_is_read_in_every_shape() {
        let base = |path: &str| path.trim_start_matches("/nix/store/").to_owned();
        let (a, b) = (base(A), base(B));
        for json in [
            format!(
                r#"[{{"path":"{A}","narSize":5,"narHash":"sha256-{HASH}","references":["{B}"],"ca":"text:x","signatures":["k:s"],"deriver":"{B}.drv"}}]"#
            ),
            format!(
                r#"{{"{A}":{{"narSize":5,"narHash":"sha256-{HASH}","references":["{B}"],"ca":"text:x","signatures":["k:s"],"deriver":"{B}.drv"}}}}"#
            ),
            format!(
                r#"{{"version":2,"info":{{"{a}":{{"narSize":5,"narHash":{{"algorithm":"sha256","format":"base64","hash":"{HASH}"}},"references":["{b}"],"ca":"text:x","signatures":["k:s"],"deriver":"{b}.drv"}}}}}}"#
            ),
        ] {
            let paths = sent_paths(json.as_bytes()).expect("readable");
            let path = |text: &str| StorePath::new(text).expect("a path");
            let expected = SentPath {
                path: path(A),
                nar_hash: format!("sha256-{HASH}"),
                nar_size: 5,
                references: vec![path(B)],
                content_address: Some("text:x".to_owned()),
                signatures: vec!["k:s".to_owned()],
                deriver: Some(path(&format!("{B}.drv"))),
            };
            assert_eq!(paths, [expected], "{json}");
        }
        for bad in [
            "x".to_owned(),
            "3".to_owned(),
            format!(r#"{{"{A}":null}}"#),
            format!(r#"{{"{A}":{{"narSize":5}}}}"#),
            format!(r#"[{{"path":"{A}","valid":false}}]"#),
            format!(r#"[{{"path":"/etc/passwd","narSize":5,"narHash":"sha256-{HASH}"}}]"#),
        ] {
            sent_paths(bad.as_bytes()).expect_err(&bad);
        }
    }
}

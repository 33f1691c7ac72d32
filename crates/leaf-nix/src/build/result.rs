//! The output of `nix build --json`, in the shapes of all versions since 2.8.

use std::collections::BTreeMap;

use leaf_core::id::StorePath;
use serde_json::Value;

use crate::path_info::store_path;

/// The build's outputs as listed by Nix.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Built {
    pub(crate) outputs: BTreeMap<String, StorePath>,
    pub(crate) derivation: Option<StorePath>,
}

impl Built {
    /// Returns the main output: `out`, or else the first by name.
    pub(crate) fn first(&self) -> Option<&StorePath> {
        self.outputs.get("out").or_else(|| self.outputs.values().next())
    }
}

/// Parses the output of `nix build --json`: one element per installable, `{"drvPath","outputs":{name:path}}`, or for a
/// plain store path `{"path"}` (2.8) or the path itself.
pub(crate) fn read_build(json: &[u8]) -> Result<Built, String> {
    let value: Value =
        serde_json::from_slice(json).map_err(|e| format!("nix build printed invalid JSON: {e}"))?;
    let elements = value.as_array().ok_or("nix build printed no list")?;
    let mut built = Built {
        outputs: BTreeMap::new(),
        derivation: None,
    };
    for element in elements {
        if let Some(path) = element.as_str().or_else(|| element.get("path")?.as_str()) {
            built.outputs.insert("out".to_owned(), store_path(path)?);
            continue;
        }
        if let Some(path) = element.get("drvPath").and_then(Value::as_str) {
            built.derivation.get_or_insert(store_path(path)?);
        }
        for (name, output) in element
            .get("outputs")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let path = output
                .as_str()
                .or_else(|| output.get("path").or_else(|| output.get("outPath"))?.as_str());
            built.outputs.insert(
                name.clone(),
                store_path(path.ok_or_else(|| format!("output {name} has no path"))?)?,
            );
        }
    }
    if built.outputs.is_empty() {
        return Err("nix build named no output".to_owned());
    }
    Ok(built)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path_info::tests::{A, B, path};

    #[test]
    fn a_build_is_read_in_every_shape() {
        let built = read_build(
            format!(r#"[{{"drvPath":"{A}.drv","outputs":{{"dev":"{B}","out":"{A}"}},"startTime":1}}]"#)
                .as_bytes(),
        )
        .expect("readable");
        assert_eq!(built.first(), Some(&path(A)));
        assert_eq!(
            (built.outputs.len(), built.derivation),
            (2, Some(path(&format!("{A}.drv"))))
        );
        for json in [format!(r#"[{{"path":"{A}"}}]"#), format!(r#"["{A}"]"#)] {
            let built = read_build(json.as_bytes()).expect("readable");
            assert_eq!((built.first(), &built.derivation), (Some(&path(A)), &None));
        }
        for bad in [
            "",
            "{}",
            "[]",
            r#"[{"drvPath":"x"}]"#,
            r#"[{"outputs":{"out":null}}]"#,
            r#"["/etc/passwd"]"#,
        ] {
            read_build(bad.as_bytes()).expect_err(bad);
        }
    }
}

//! The output of `nix build --json`, in the shapes of all versions since 2.8.

use std::collections::BTreeMap;

use leaf_core::id::StorePath;
use leaf_core::job::BuiltDerivation;
use serde_json::Value;

use crate::path_info::store_path;

/// Parses the output of `nix build --json`: one element per derivation, `{"drvPath","outputs":{name:path}}`, or for a
/// plain store path `{"path"}` (2.8) or the path itself. Each derivation is returned once, with its own outputs, of which
/// it has at least one.
pub(crate) fn read_build(json: &[u8]) -> Result<Vec<BuiltDerivation>, String> {
    let value: Value =
        serde_json::from_slice(json).map_err(|e| format!("nix build printed invalid JSON: {e}"))?;
    let elements = value.as_array().ok_or("nix build printed no list")?;
    let mut all: Vec<BuiltDerivation> = Vec::new();
    for element in elements {
        let read = read_element(element)?;
        let known = all
            .iter_mut()
            .find(|known| read.derivation.is_some() && known.derivation == read.derivation);
        match known {
            // Listed once for each of its outputs.
            Some(known) => known.outputs.extend(read.outputs),
            None => all.push(read),
        }
    }
    all.retain(|built| !built.outputs.is_empty());
    if all.is_empty() {
        return Err("nix build named no output".to_owned());
    }
    Ok(all)
}

fn read_element(element: &Value) -> Result<BuiltDerivation, String> {
    if let Some(path) = element.as_str().or_else(|| element.get("path")?.as_str()) {
        return Ok(BuiltDerivation {
            derivation: None,
            outputs: [("out".to_owned(), store_path(path)?)].into(),
            ..BuiltDerivation::default()
        });
    }
    let derivation: Option<StorePath> = element
        .get("drvPath")
        .and_then(Value::as_str)
        .map(store_path)
        .transpose()?;
    let outputs = element.get("outputs").and_then(Value::as_object);
    let mut by_name = BTreeMap::new();
    for (name, output) in outputs.into_iter().flatten() {
        let path = output
            .as_str()
            .or_else(|| output.get("path").or_else(|| output.get("outPath"))?.as_str());
        let path = path.ok_or_else(|| format!("output {name} has no path"))?;
        by_name.insert(name.clone(), store_path(path)?);
    }
    Ok(BuiltDerivation {
        derivation,
        outputs: by_name,
        ..BuiltDerivation::default()
    })
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
        assert_eq!(built[0].main_output(), Some(&path(A)));
        assert_eq!(
            (built.len(), built[0].outputs.len(), &built[0].derivation),
            (1, 2, &Some(path(&format!("{A}.drv"))))
        );
        for json in [format!(r#"[{{"path":"{A}"}}]"#), format!(r#"["{A}"]"#)] {
            let built = read_build(json.as_bytes()).expect("readable");
            assert_eq!(
                (built[0].main_output(), &built[0].derivation),
                (Some(&path(A)), &None)
            );
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

    #[test]
    fn outputs_belong_to_the_derivation_that_nix_lists_them_with() {
        let built = read_build(
            format!(
                r#"[{{"drvPath":"{A}.drv","outputs":{{"out":"{A}"}}}},
                    {{"drvPath":"{B}.drv","outputs":{{"out":"{B}"}}}},
                    {{"drvPath":"{A}.drv","outputs":{{"dev":"{A}-dev"}}}},
                    "{A}"]"#
            )
            .as_bytes(),
        )
        .expect("readable");
        let lines: Vec<String> = built
            .iter()
            .map(|built| {
                let outputs: Vec<String> = built.outputs.iter().map(|(k, v)| format!("{k}={v}")).collect();
                let derivation = built.derivation.as_ref().map(ToString::to_string);
                format!("{} {}", derivation.unwrap_or_default(), outputs.join(" "))
            })
            .collect();
        assert_eq!(
            lines,
            [
                format!("{A}.drv dev={A}-dev out={A}"),
                format!("{B}.drv out={B}"),
                format!(" out={A}"),
            ]
        );
    }
}

//! The installables that a command line names.

use std::path::Path;

use leaf_core::id::StorePath;
use leaf_core::job::{Installable, outputs};

use crate::error::Error;

/// Returns the installables that a command line names.
pub(super) fn installables(
    file: Option<&str>,
    template: Option<String>,
    texts: Vec<String>,
) -> Result<Vec<Installable>, Error> {
    if let Some(name) = template {
        return Ok(vec![Installable::Template { name }]);
    }
    let Some(file) = file else {
        return texts.iter().map(|text| installable(text)).collect();
    };
    let path = absolute(file)?;
    let of = |attribute| Installable::File {
        path: path.clone(),
        attribute,
    };
    Ok(if texts.is_empty() {
        vec![of(None)]
    } else {
        texts.into_iter().map(|attribute| of(Some(attribute))).collect()
    })
}

/// Returns a store path, chosen outputs of a derivation, or a flake reference.
fn installable(text: &str) -> Result<Installable, Error> {
    if let Ok(path) = StorePath::new(text) {
        return Ok(Installable::StorePath { path });
    }
    if let (bare, Some(outputs)) = outputs::split(text)
        && let Ok(path) = StorePath::new(bare)
    {
        let outputs = outputs.to_owned();
        return Ok(Installable::Derivation { path, outputs });
    }
    let reference = flake_reference(text)?;
    Ok(Installable::Flake { reference })
}

/// Returns a flake reference whose path on this machine is absolute: `.#a` becomes `/here#a`.
pub(crate) fn flake_reference(text: &str) -> Result<String, Error> {
    let (path, fragment) = text
        .split_once('#')
        .map_or((text, None), |(path, fragment)| (path, Some(fragment)));
    if !(path.is_empty() || path.starts_with('.') || path.starts_with('/')) {
        return Ok(text.to_owned());
    }
    let path = absolute(if path.is_empty() { "." } else { path })?;
    Ok(fragment.map_or(path.clone(), |fragment| format!("{path}#{fragment}")))
}

fn absolute(path: &str) -> Result<String, Error> {
    let full = std::path::absolute(Path::new(path))
        .map_err(|e| Error::Usage(format!("{path:?} is not a path: {e}")))?;
    // `.` and `..` are resolved if the path exists on this machine; otherwise the leaf checks it.
    Ok(std::fs::canonicalize(&full)
        .unwrap_or(full)
        .to_string_lossy()
        .into_owned())
}

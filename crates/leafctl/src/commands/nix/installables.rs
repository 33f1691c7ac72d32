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

/// Returns an installable for a table: a flake reference without its query, which says where it was locked.
pub(super) fn brief(installable: &Installable) -> String {
    let text = installable.to_string();
    let Installable::Flake { .. } = installable else {
        return text;
    };
    let (reference, fragment) = text.split_at(text.find('#').unwrap_or(text.len()));
    match reference.split_once('?') {
        Some((path, _)) => format!("{path}?…{fragment}"),
        None => text,
    }
}

/// Returns the first two of several installables for a table, and the number of the others.
pub(super) fn several<'a>(all: impl Iterator<Item = &'a Installable>) -> String {
    let all: Vec<&Installable> = all.collect();
    let first: Vec<String> = all.iter().take(2).map(|one| brief(one)).collect();
    match all.len().saturating_sub(first.len()) {
        0 => first.join(", "),
        more => format!("{}, and {more} more", first.join(", ")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_flake_references_without_their_query_and_the_first_two_of_several() {
        let of = |text: &str| installable(text).expect("an installable");
        let sent =
            "path:/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-source?narHash=sha256-x%3D&rev=abc#hello^dev";
        assert_eq!(
            brief(&of(sent)),
            "path:/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-source?…#hello^dev"
        );
        let plain = [
            "github:owner/repo#a?b",
            "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a",
            "git+https://x.org/y",
        ];
        let all = plain.map(of);
        assert!(all.iter().zip(plain).all(|(one, text)| brief(one) == text));
        assert_eq!(several(all[..2].iter()), format!("{}, {}", plain[0], plain[1]));
        assert_eq!(
            several(all.iter()),
            format!("{}, {}, and 1 more", plain[0], plain[1])
        );
    }
}

//! Links to a result, on the machine of the caller, as `nix build --out-link` makes them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use leaf_core::id::StorePath;
use leaf_core::job::BuildResult;
use tokio::process::Command;

use crate::error::Error;

/// Checks before the build what can be checked.
pub(super) fn check(link: &Path) -> Result<(), Error> {
    match std::fs::symlink_metadata(link) {
        Ok(there) if !there.is_symlink() => Err(Error::Usage(format!(
            "--out-link {} exists and is no link",
            link.display()
        ))),
        _ => Ok(()),
    }
}

/// Makes a link to each output that the result lists, and registers it as a GC root.
pub(super) async fn create(link: &Path, result: &BuildResult) -> Result<(), Error> {
    let links = links(link, result);
    if let Some((_, path)) = links.iter().find(|(_, path)| !Path::new(path.as_str()).exists()) {
        return Err(Error::Refused(format!(
            "the build succeeded, but no link was made: {path} is not on this machine: --get brings it here (`leafctl nix get {path}`)"
        )));
    }
    for (link, path) in links {
        register(&link, path).await?;
    }
    Ok(())
}

/// Returns the links in Nix's names: `PATH` for the first derivation's `out`, `PATH-dev` for its `dev`, `PATH-1` for the next
/// derivation's `out`.
fn links<'a>(link: &Path, result: &'a BuildResult) -> Vec<(PathBuf, &'a StorePath)> {
    let all = std::iter::once(&result.outputs).chain(result.others.iter().map(|other| &other.outputs));
    all.enumerate()
        .flat_map(|(nth, outputs)| outputs.iter().map(move |(name, path)| (nth, name, path)))
        .map(|(nth, name, path)| {
            let mut link = link.as_os_str().to_owned();
            if nth > 0 {
                link.push(format!("-{nth}"));
            }
            if name != "out" {
                link.push(format!("-{name}"));
            }
            (PathBuf::from(link), path)
        })
        .collect()
}

async fn register(link: &Path, path: &StorePath) -> Result<(), Error> {
    let refused = |why: String| {
        Error::Refused(format!(
            "the build succeeded, but {} was not made: {why}",
            link.display()
        ))
    };
    let made = Command::new("nix-store")
        .args(["--realise", path.as_str(), "--add-root"])
        .arg(std::path::absolute(link).map_err(|error| refused(error.to_string()))?)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| refused(format!("can't run nix-store: {error}")))?;
    if made.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&made.stderr);
    Err(refused(said.trim().chars().take(500).collect()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use leaf_core::job::BuiltDerivation;

    use super::*;

    #[test]
    fn links_have_the_names_that_nix_gives_them() {
        let path = |name: &str| {
            StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}")).expect("a path")
        };
        let outputs = |names: &[&str]| -> BTreeMap<String, StorePath> {
            names
                .iter()
                .map(|name| ((*name).to_owned(), path(name)))
                .collect()
        };
        let result = BuildResult {
            store_path: path("out"),
            outputs: outputs(&["out", "dev"]),
            derivation: None,
            origin: None,
            build_time_ms: 0,
            closure_size_bytes: 0,
            nar_size_bytes: None,
            nar_sha256: BTreeMap::default(),
            references: Vec::new(),
            references_left_out: 0,
            built: 0,
            others: vec![BuiltDerivation {
                outputs: outputs(&["out", "doc"]),
                ..BuiltDerivation::default()
            }],
            others_left_out: 0,
            sources: Vec::new(),
        };
        let mut names: Vec<PathBuf> = links(Path::new("a/r"), &result)
            .into_iter()
            .map(|(link, _)| link)
            .collect();
        names.sort();
        assert_eq!(names, ["a/r", "a/r-1", "a/r-1-doc", "a/r-dev"].map(PathBuf::from));
    }
}

//! The common part of the command lines of `nix`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use leaf_core::job::process::Program;

/// Returns a run of `nix VERB`, such as `nix flake metadata`, that prints JSON on its standard output, and its log as JSON on its standard error.
pub(crate) fn program<A: Into<OsString>>(
    nix: &Path,
    options: &BTreeMap<String, String>,
    verb: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Program {
    let common = [
        "--json",
        "--extra-experimental-features",
        "nix-command flakes",
        "--log-format",
        "internal-json",
    ];
    let options = options
        .iter()
        .flat_map(|(name, value)| ["--option", name.as_str(), value.as_str()]);
    let words = verb.split(' ').chain(common).chain(options);
    Program::new(
        nix.to_owned(),
        words
            .map(OsString::from)
            .chain(arguments.into_iter().map(Into::into)),
    )
}

/// Returns where a path of the store is on this host, also for a store that the options put into a directory of its own.
pub(crate) fn real(options: &BTreeMap<String, String>, path: &str) -> PathBuf {
    match options.get("store") {
        Some(root) if root.starts_with('/') => Path::new(root).join(path.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}

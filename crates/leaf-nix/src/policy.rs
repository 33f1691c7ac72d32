//! The policy of the leaf, as far as Nix enforces it: as settings of Nix, and in what a failure says.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use leaf_core::job::explanation::FailureKind;
use leaf_core::job::policy::{NixPolicy, Setting, host_path};
use leaf_core::job::{Failure, Installable};

use crate::NixError;

/// Returns the settings of Nix for every job: those of the leaf, and what the policy needs of Nix.
///
/// `restrict-eval` lets evaluations read what the search path has and fetch what `allowed-uris` has, whether they are pure or
/// not; and it hides environment variables.
pub(crate) fn options(
    options: &BTreeMap<String, String>,
    policy: &NixPolicy,
    templates_dir: &Path,
) -> BTreeMap<String, String> {
    let mut options = options.clone();
    if !policy.import_from_derivation {
        options.insert("allow-import-from-derivation".to_owned(), "false".to_owned());
    }
    if policy.allowed_uris.is_none() && !policy.restricts_host_paths() {
        return options;
    }
    options.insert("restrict-eval".to_owned(), "true".to_owned());
    if let Some(uris) = &policy.allowed_uris {
        options.insert("allowed-uris".to_owned(), uris.join(" "));
    } else {
        // Without a list of its own, Nix would let nothing be fetched.
        let all = "http:// https:// ssh:// git:// file:// github: gitlab: sourcehut: git+ssh:// git+https:// git+file://";
        options
            .entry("allowed-uris".to_owned())
            .or_insert_with(|| all.to_owned());
    }
    let mut search_path: Vec<String> = options.get("nix-path").into_iter().cloned().collect();
    let mut paths: Vec<PathBuf> = vec![templates_dir.to_owned()];
    paths.extend(policy.host_paths.iter().map(PathBuf::from));
    // Nix compares what links lead to.
    let followed = paths.iter().filter_map(|path| fs::canonicalize(path).ok());
    let mut followed: Vec<PathBuf> = followed.collect();
    followed.sort();
    followed.dedup();
    for (number, path) in followed.iter().enumerate() {
        // A name that no expression looks up by chance.
        search_path.push(format!("cim-leaf-host-path-{number}={}", path.display()));
    }
    options.insert("nix-path".to_owned(), search_path.join(" "));
    options
}

/// Returns the error for an installable that a link leads to where the policy does not let it be.
pub(crate) fn leads_out(installable: &Installable, policy: &NixPolicy) -> Option<NixError> {
    let path = match installable {
        Installable::Flake { reference } => host_path(reference)?,
        Installable::File { path, .. } => path,
        Installable::Template { .. } | Installable::StorePath { .. } | Installable::Derivation { .. } => {
            return None;
        }
    };
    let followed = fs::canonicalize(path).ok()?;
    let directories = policy.host_paths.iter();
    let is_inside = followed.starts_with("/nix/store")
        || directories
            .filter_map(|directory| fs::canonicalize(directory).ok())
            .any(|directory| followed.starts_with(directory));
    (!is_inside).then(|| NixError::Policy {
        installable: path.to_owned(),
        why: format!(
            "it is {}, which is in no directory that it lists",
            followed.display()
        ),
        setting: Setting::HostPaths.place().to_owned(),
    })
}

/// Adds the name of the leaf's setting to a failure whose reason is a setting of Nix that it decides.
pub(crate) fn named(mut failure: Failure) -> Failure {
    let is_policy = failure
        .explanation
        .as_ref()
        .is_some_and(|why| why.kind == FailureKind::Policy);
    let Some(setting) = setting_of(&failure.error).filter(|_| is_policy) else {
        return failure;
    };
    let note = format!("\n(decided by {} in the settings of the leaf)", setting.place());
    failure.error.push_str(&note);
    if let Some(why) = &mut failure.explanation {
        why.message.push_str(&note);
    }
    failure
}

/// Returns the leaf's setting that decides what Nix refuses with this message.
fn setting_of(error: &str) -> Option<Setting> {
    let has = |parts: &[&str]| parts.iter().all(|part| error.contains(part));
    if has(&["allow-import-from-derivation"]) {
        Some(Setting::ImportFromDerivation)
    } else if has(&["access to URI", "in restricted mode"]) {
        Some(Setting::AllowedUris)
    } else if has(&["in restricted mode"]) {
        Some(Setting::HostPaths)
    } else if has(&["in pure eval"]) {
        Some(Setting::Impure)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_needs_no_setting_of_nix_and_a_strict_one_restricts_evaluations() {
        let own = BTreeMap::from([("nix-path".to_owned(), "nixpkgs=/nixpkgs".to_owned())]);
        let templates = Path::new("/nowhere/templates");
        assert_eq!(options(&own, &NixPolicy::default(), templates), own);
        let strict = NixPolicy {
            import_from_derivation: false,
            allowed_uris: Some(vec!["https://a".to_owned(), "github:b/".to_owned()]),
            host_paths: vec!["/usr".to_owned(), "/nowhere".to_owned()],
            ..NixPolicy::default()
        };
        let made = options(&own, &strict, templates);
        let value = |name: &str| made.get(name).map(String::as_str);
        assert_eq!(value("restrict-eval"), Some("true"));
        assert_eq!(value("allowed-uris"), Some("https://a github:b/"));
        assert_eq!(value("allow-import-from-derivation"), Some("false"));
        assert_eq!(
            value("nix-path"),
            Some("nixpkgs=/nixpkgs cim-leaf-host-path-0=/usr")
        );
    }
}

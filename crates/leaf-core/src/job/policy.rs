//! The policy of a leaf for what callers build and evaluate: the settings `[nix.policy]`.
//!
//! What the text of an installable shows is checked here, before a command is accepted. The rest is Nix's to enforce:
//! leaf-nix passes it on as settings of Nix.

use serde::{Deserialize, Serialize};

use super::Installable;

/// What callers may build and evaluate. By default everything is locked and pure that Nix can lock and keep pure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NixPolicy {
    /// Whether a flake reference may be given that means another source tomorrow. By default it may: it is locked at the
    /// beginning of the job. Lock files that would have to change are refused in any case.
    pub unlocked_references: bool,
    /// Whether a caller may ask for an impure evaluation of a flake; by default not.
    pub impure: bool,
    /// Whether the evaluation of what is built may build and import its result; by default it may. An evaluation alone
    /// builds nothing.
    pub import_from_derivation: bool,
    /// The beginnings of the URIs that evaluations may fetch. By default all, as far as Nix's pure mode lets them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_uris: Option<Vec<String>>,
    /// The directories of the host in which Nix files and flakes may be, and whose files an evaluation that is not pure may
    /// read. By default all that the user of jobs sees.
    pub host_paths: Vec<String>,
}

impl Default for NixPolicy {
    fn default() -> Self {
        Self {
            unlocked_references: true,
            impure: false,
            import_from_derivation: true,
            allowed_uris: None,
            host_paths: vec!["/".to_owned()],
        }
    }
}

/// A setting of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// [`NixPolicy::unlocked_references`].
    UnlockedReferences,
    /// [`NixPolicy::impure`].
    Impure,
    /// [`NixPolicy::import_from_derivation`].
    ImportFromDerivation,
    /// [`NixPolicy::allowed_uris`].
    AllowedUris,
    /// [`NixPolicy::host_paths`].
    HostPaths,
}

impl Setting {
    /// Returns its place in the settings, such as `nix.policy.impure`.
    #[must_use]
    pub fn place(self) -> &'static str {
        match self {
            Self::UnlockedReferences => "nix.policy.unlocked_references",
            Self::Impure => "nix.policy.impure",
            Self::ImportFromDerivation => "nix.policy.import_from_derivation",
            Self::AllowedUris => "nix.policy.allowed_uris",
            Self::HostPaths => "nix.policy.host_paths",
        }
    }
}

impl NixPolicy {
    /// Returns whether files of the host are restricted.
    #[must_use]
    pub fn restricts_host_paths(&self) -> bool {
        !self.host_paths.iter().any(|path| path == "/")
    }

    /// Checks an installable, and whether it is to be evaluated impurely.
    ///
    /// # Errors
    /// The reason, for the caller, with the setting's name.
    pub fn check(&self, installable: &Installable, impure: bool) -> Result<(), String> {
        let refused =
            |setting: Setting, why: &str| Err(format!("{why}: {} refuses it here", setting.place()));
        if impure && !self.impure {
            return refused(Setting::Impure, "an impure evaluation is asked for");
        }
        let (path, reference) = match installable {
            Installable::File { path, .. } => (Some(path.as_str()), None),
            Installable::Flake { reference } => (host_path(reference), Some(reference)),
            Installable::StorePath { .. } | Installable::Derivation { .. } | Installable::Template { .. } => {
                return Ok(());
            }
        };
        if let Some(path) = path
            && !self.has_host_path(path)
        {
            return refused(
                Setting::HostPaths,
                &format!("{path:?} is in no directory that it lists"),
            );
        }
        let Some(reference) = reference else {
            return Ok(());
        };
        if !self.unlocked_references && !is_locked(reference) {
            return refused(
                Setting::UnlockedReferences,
                &format!(
                    "{reference:?} has neither a revision nor a hash, and may mean another source tomorrow"
                ),
            );
        }
        if let Some(allowed) = &self.allowed_uris
            && path.is_none()
            && !allowed.iter().any(|begin| begins(reference, begin))
        {
            return refused(
                Setting::AllowedUris,
                &format!("{reference:?} begins as none of them does"),
            );
        }
        Ok(())
    }

    /// Returns whether a path of the host may be read. Paths of the store always may.
    #[must_use]
    pub fn has_host_path(&self, path: &str) -> bool {
        let inside = |directory: &str| {
            let rest = path.strip_prefix(directory.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        inside("/nix/store") || self.host_paths.iter().any(|directory| inside(directory))
    }

    /// Checks the settings themselves.
    ///
    /// # Errors
    /// The setting, and the reason.
    pub fn check_settings(&self) -> Result<(), (Setting, String)> {
        for path in &self.host_paths {
            let ok = path.starts_with('/')
                && !path.contains(char::is_whitespace)
                && !path.contains(['=', ':'])
                && !path.split('/').any(|part| part == "..");
            if !ok {
                return Err((
                    Setting::HostPaths,
                    format!("{path:?} is not an absolute path without blanks, `=`, `:` and `..`"),
                ));
            }
        }
        let Some(uris) = &self.allowed_uris else {
            return Ok(());
        };
        if let Some(uri) = uris
            .iter()
            .find(|uri| uri.is_empty() || uri.contains(char::is_whitespace))
        {
            return Err((
                Setting::AllowedUris,
                format!("{uri:?} is not the beginning of a URI"),
            ));
        }
        if !self.restricts_host_paths() {
            return Err((
                Setting::AllowedUris,
                format!(
                    "Nix restricts URIs only together with files: {} must list directories other than /",
                    Setting::HostPaths.place()
                ),
            ));
        }
        Ok(())
    }
}

/// Returns the path on the host that a flake reference names, if it names one.
#[must_use]
pub fn host_path(reference: &str) -> Option<&str> {
    let bare = reference.split(['#', '?']).next()?;
    let path = match bare.split_once(':') {
        // Such as `git+file:` and `tarball+file:`, with or without an empty host.
        Some((scheme, rest)) if matches!(scheme, "path" | "file") || scheme.ends_with("+file") => {
            rest.strip_prefix("//").unwrap_or(rest)
        }
        _ => bare,
    };
    path.starts_with('/').then_some(path)
}

/// Returns whether a flake reference has a revision or a hash, or is a store path.
#[must_use]
pub fn is_locked(reference: &str) -> bool {
    let reference = reference.split('#').next().unwrap_or_default();
    let (bare, query) = reference.split_once('?').unwrap_or((reference, ""));
    let is_revision = |text: &str| text.len() >= 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let of_query = query.split('&').any(|pair| match pair.split_once('=') {
        Some(("narHash", hash)) => !hash.is_empty(),
        Some(("rev", revision)) => is_revision(revision),
        _ => false,
    });
    let in_store = host_path(reference).is_some_and(|path| path.starts_with("/nix/store/"));
    // Of `github:owner/repo/REVISION` and of the registry's `nixpkgs/BRANCH/REVISION`.
    let scheme = bare.split_once(':').map(|(scheme, _)| scheme);
    let is_hub = matches!(scheme, None | Some("flake" | "github" | "gitlab" | "sourcehut"));
    of_query || in_store || is_hub && !bare.starts_with('/') && bare.split('/').skip(1).any(is_revision)
}

/// Returns whether a reference, or the address in it that Nix compares, begins with an allowed URI: whole, or up to a `/`.
fn begins(reference: &str, allowed: &str) -> bool {
    let reference = reference.split(['#', '?']).next().unwrap_or_default();
    let address = match reference.split_once('+') {
        Some((scheme, address)) if !scheme.contains([':', '/']) => address,
        _ => reference,
    };
    [reference, address].into_iter().any(|uri| {
        let rest = uri.strip_prefix(allowed);
        rest.is_some_and(|rest| {
            rest.is_empty() || rest.starts_with('/') || allowed.ends_with('/') || allowed.ends_with(':')
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flake(reference: &str) -> Installable {
        Installable::Flake {
            reference: reference.to_owned(),
        }
    }

    fn file(path: &str) -> Installable {
        Installable::File {
            path: path.to_owned(),
            attribute: None,
        }
    }

    #[test]
    fn by_default_only_an_impure_evaluation_is_refused() {
        let policy = NixPolicy::default();
        assert_eq!(policy.check_settings(), Ok(()));
        for installable in [flake("github:o/r#a"), flake("/srv/f"), file("/etc/x.nix")] {
            assert_eq!(policy.check(&installable, false), Ok(()));
            let why = policy.check(&installable, true).expect_err("it is impure");
            assert!(why.contains("nix.policy.impure"), "{why}");
        }
        let policy = NixPolicy {
            impure: true,
            ..policy
        };
        assert_eq!(policy.check(&flake("github:o/r"), true), Ok(()));
    }

    #[test]
    fn an_unlocked_reference_is_told_from_a_locked_one_by_its_text() {
        let policy = NixPolicy {
            unlocked_references: false,
            ..NixPolicy::default()
        };
        const REV: &str = "0123456789abcdef0123456789abcdef01234567";
        for unlocked in [
            "github:o/r#a",
            "nixpkgs#hello",
            "/srv/flake",
            "git+https://h/r?ref=main",
            "github:o/r/main",
            "git+https://h/r?rev=abc",
            &format!("/srv/{REV}#a"),
            &format!("git+https://h/{REV}"),
            &format!("github:o/r#{REV}"),
            "path:/srv?narHash=",
        ] {
            let why = policy.check(&flake(unlocked), false).expect_err(unlocked);
            assert!(why.contains("nix.policy.unlocked_references"), "{why}");
        }
        for locked in [
            format!("github:o/r/{REV}#a"),
            format!("nixpkgs/nixos/{REV}"),
            format!("git+https://h/r?ref=main&rev={REV}#a"),
            "path:/srv/f?narHash=sha256-x#a".to_owned(),
            "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-source#a".to_owned(),
        ] {
            assert_eq!(policy.check(&flake(&locked), false), Ok(()), "{locked}");
        }
        assert_eq!(policy.check(&file("/srv/x.nix"), false), Ok(()));
    }

    #[test]
    fn uris_and_host_paths_are_compared_by_whole_parts() {
        let policy = NixPolicy {
            allowed_uris: Some(vec!["https://git.example".to_owned(), "github:o/".to_owned()]),
            host_paths: vec!["/srv/pkgs".to_owned()],
            ..NixPolicy::default()
        };
        assert_eq!(policy.check_settings(), Ok(()));
        for fine in [
            flake("git+https://git.example/x#a"),
            flake("https://git.example/x.tar.gz"),
            flake("github:o/r"),
            flake("git+file:///srv/pkgs?rev=1"),
            file("/srv/pkgs/a.nix"),
            file("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-source/a.nix"),
            Installable::Template {
                name: "minimal".to_owned(),
            },
        ] {
            assert_eq!(policy.check(&fine, false), Ok(()), "{fine}");
        }
        for (refused, setting) in [
            (flake("git+https://git.example.evil/x"), "allowed_uris"),
            (flake("github:other/r"), "allowed_uris"),
            (flake("nixpkgs#hello"), "allowed_uris"),
            (flake("path:/srv/pkgs-2"), "host_paths"),
            (flake("/etc"), "host_paths"),
            (file("/srv/x.nix"), "host_paths"),
        ] {
            let why = policy.check(&refused, false).expect_err(setting);
            assert!(why.contains(&format!("nix.policy.{setting}")), "{why}");
        }
    }

    #[test]
    fn settings_that_can_not_be_enforced_are_refused() {
        for (policy, setting) in [
            (
                NixPolicy {
                    allowed_uris: Some(Vec::new()),
                    ..NixPolicy::default()
                },
                Setting::AllowedUris,
            ),
            (
                NixPolicy {
                    host_paths: vec!["srv".to_owned()],
                    ..NixPolicy::default()
                },
                Setting::HostPaths,
            ),
            (
                NixPolicy {
                    host_paths: vec!["/srv/a b".to_owned()],
                    ..NixPolicy::default()
                },
                Setting::HostPaths,
            ),
        ] {
            assert_eq!(policy.check_settings().expect_err("refused").0, setting);
        }
    }
}

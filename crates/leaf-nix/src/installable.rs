//! Installables in the form of Nix's command line, validated by leafd before a job is started.

use std::fs;
use std::path::{Component, Path};

use leaf_core::job::Installable;
use serde::{Deserialize, Serialize};

use crate::NixError;

/// The part of the command line that names the installable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// A derivation, of which all outputs are built.
    Derivation(String),
    /// Flags, and an installable that follows `--`.
    Other {
        flags: Vec<String>,
        installable: Option<String>,
    },
}

impl Target {
    /// Validates an installable: no part of it may be taken for a flag by Nix, or be relative to leafd's directory.
    pub(crate) fn new(
        installable: &Installable,
        templates_dir: &Path,
        leaf_init: &Path,
    ) -> Result<Self, NixError> {
        match installable {
            Installable::Flake { reference } => {
                check_text(reference)?;
                let bare = reference.strip_prefix("path:").unwrap_or(reference);
                if bare.starts_with(['.', '#', '?']) {
                    return Err(bad(reference, "it is relative; give an absolute path"));
                }
                Ok(Self::Other {
                    // An input that is not in the lock file fails the build instead of being looked up.
                    flags: vec!["--no-update-lock-file".to_owned()],
                    installable: Some(reference.clone()),
                })
            }
            Installable::StorePath { path } if path.as_str().ends_with(".drv") => {
                Ok(Self::Derivation(path.to_string()))
            }
            Installable::StorePath { path } => Ok(Self::Other {
                flags: Vec::new(),
                installable: Some(path.to_string()),
            }),
            Installable::File { path, attribute } => {
                check_text(path)?;
                if !path.starts_with('/')
                    || Path::new(path)
                        .components()
                        .any(|part| part == Component::ParentDir)
                {
                    return Err(bad(path, "give an absolute path, without '..'"));
                }
                attribute.as_deref().map(check_text).transpose()?;
                Ok(Self::Other {
                    flags: vec!["--file".to_owned(), path.clone()],
                    installable: attribute.clone(),
                })
            }
            Installable::Template { name } => template(name, templates_dir, leaf_init),
        }
    }
}

fn template(name: &str, templates_dir: &Path, leaf_init: &Path) -> Result<Target, NixError> {
    let mut known: Vec<String> = fs::read_dir(templates_dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("default.nix").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    if !known.iter().any(|have| have == name) {
        known.sort();
        let known = if known.is_empty() {
            format!(
                "no templates in {}; set containers.templates to a directory with some",
                templates_dir.display()
            )
        } else {
            known.join(", ")
        };
        return Err(NixError::Template {
            name: name.chars().take(80).collect(),
            known,
        });
    }
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or_else(|| bad(name, "its path is not UTF-8"))
    };
    Ok(Target::Other {
        flags: vec![
            "--file".to_owned(),
            text(&templates_dir.join(name).join("default.nix"))?,
            "--argstr".to_owned(),
            "leafInit".to_owned(),
            text(leaf_init)?,
        ],
        installable: None,
    })
}

fn check_text(text: &str) -> Result<(), NixError> {
    if text.is_empty() {
        return Err(bad(text, "it is empty"));
    }
    if text.starts_with('-') {
        return Err(bad(text, "it begins with '-', which would be taken for a flag"));
    }
    if text.len() > 2048 {
        return Err(bad(text, "it is longer than 2048 bytes"));
    }
    if text.chars().any(|c| c.is_control() || c == ' ') {
        return Err(bad(text, "it has a blank or a control character"));
    }
    Ok(())
}

fn bad(installable: &str, why: &str) -> NixError {
    NixError::Installable {
        installable: installable.chars().take(200).collect(),
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(installable: &Installable) -> Result<Target, NixError> {
        Target::new(installable, Path::new("/nonexistent"), Path::new("/init"))
    }

    #[test]
    fn flags_and_relative_paths_are_refused() {
        for bad in [
            "",
            "-x",
            "--option",
            ".",
            "./x",
            "path:.",
            "path:../x",
            "#a",
            "a b",
            "a\0",
            "a\nb",
            &"x".repeat(3000),
        ] {
            target(&Installable::Flake {
                reference: bad.to_owned(),
            })
            .expect_err(bad);
        }
        for bad in ["", "-x", "--option", "a b", "a\0"] {
            let (path, attribute) = ("/a.nix".to_owned(), Some(bad.to_owned()));
            target(&Installable::File { path, attribute }).expect_err(bad);
        }
        for bad in [
            "",
            "a.nix",
            "-f",
            "<nixpkgs>",
            "https://example.org/x",
            "/a/../b",
            "/a b",
        ] {
            target(&Installable::File {
                path: bad.to_owned(),
                attribute: None,
            })
            .expect_err(bad);
        }
    }

    #[test]
    fn the_installable_follows_the_flags() {
        let taken = target(&Installable::Flake {
            reference: "github:o/r#p".to_owned(),
        })
        .expect("fine");
        assert_eq!(
            taken,
            Target::Other {
                flags: vec!["--no-update-lock-file".to_owned()],
                installable: Some("github:o/r#p".to_owned())
            }
        );
    }

    #[test]
    fn an_unknown_template_is_refused_with_the_names_of_the_known_ones() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["nats", "minimal"] {
            fs::create_dir(directory.path().join(name)).expect("a directory");
            fs::write(directory.path().join(name).join("default.nix"), "{ }").expect("a file");
        }
        fs::create_dir(directory.path().join("empty")).expect("a directory");
        let make = |name: &str| {
            let name = name.to_owned();
            Target::new(
                &Installable::Template { name },
                directory.path(),
                Path::new("/init"),
            )
        };
        for bad in ["other", "empty", "..", "../nats", "nats/../nats", ""] {
            let error = make(bad).expect_err(bad).to_string();
            assert!(error.contains("this leaf has minimal, nats"), "{error}");
        }
        make("minimal").expect("a template");
    }
}

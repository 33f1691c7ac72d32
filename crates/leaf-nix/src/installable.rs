//! Installables in the form of Nix's command line, validated by leafd before a job is started.

use std::fs;
use std::path::{Path, PathBuf};

use leaf_core::job::policy::host_path;
use leaf_core::job::{Installable, outputs};
use serde::{Deserialize, Serialize};

use crate::{NixError, NixVersion};

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
        // Checked before the command was accepted, by a leafd that may have been older.
        let check = |text: &str| installable.check().map_err(|why| bad(text, &why));
        match installable {
            Installable::Flake { reference } => {
                check(reference)?;
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
            Installable::Derivation { path, .. } => {
                check(path.as_str())?;
                Ok(Self::Derivation(path.to_string()))
            }
            Installable::File { path, attribute } => {
                check(path)?;
                Ok(Self::Other {
                    flags: vec!["--file".to_owned(), path.clone()],
                    installable: attribute.clone(),
                })
            }
            Installable::Template { name } => template(name, templates_dir, leaf_init),
        }
    }
}

/// One run of `nix build`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// The flags before the installables.
    pub(crate) flags: Vec<String>,
    /// The installables, which follow `--`; none means the whole file that a flag names.
    pub(crate) installables: Vec<Wanted>,
}

/// An installable of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// The installable, without outputs: a derivation, a store path, a flake reference or an attribute.
    pub(crate) text: String,
    /// The outputs, as behind `^`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) outputs: Option<String>,
    /// Whether it is a derivation's store path.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_derivation: bool,
}

impl From<Target> for Run {
    fn from(target: Target) -> Self {
        match target {
            Target::Derivation(path) => Self {
                flags: Vec::new(),
                installables: vec![Wanted {
                    text: path,
                    outputs: Some("*".to_owned()),
                    is_derivation: true,
                }],
            },
            Target::Other { flags, installable } => Self {
                flags,
                installables: installable.into_iter().map(Wanted::from_text).collect(),
            },
        }
    }
}

impl Run {
    /// Returns the runs that build these installables: one for all flake references and store paths, and one for each file.
    pub(crate) fn all(
        installables: &[&Installable],
        templates_dir: &Path,
        leaf_init: &Path,
    ) -> Result<Vec<Self>, NixError> {
        let mut runs: Vec<Self> = Vec::new();
        for installable in installables {
            let mut run = Self::from(Target::new(installable, templates_dir, leaf_init)?);
            if let (Installable::Derivation { outputs, .. }, Some(wanted)) =
                (installable, run.installables.first_mut())
            {
                wanted.outputs = Some(outputs.clone());
            }
            match runs.iter_mut().find(|known| known.takes(&run)) {
                Some(known) => {
                    known.installables.append(&mut run.installables);
                    if known.flags.is_empty() {
                        known.flags = run.flags;
                    }
                }
                None => runs.push(run),
            }
        }
        Ok(runs)
    }

    /// Returns whether the installables of another run can be built with those of this one.
    fn takes(&self, other: &Self) -> bool {
        let of_file = |run: &Self| run.flags.iter().any(|flag| flag == "--file");
        let have_all = !self.installables.is_empty() && !other.installables.is_empty();
        have_all && (self.flags == other.flags || !of_file(self) && !of_file(other))
    }
}

impl Wanted {
    fn from_text(text: String) -> Self {
        let (bare, outputs) = outputs::split(&text);
        Self {
            outputs: outputs.map(str::to_owned),
            text: bare.to_owned(),
            is_derivation: false,
        }
    }

    /// Returns all outputs of a derivation.
    pub(crate) fn all_of(derivation: String) -> Self {
        Self {
            text: derivation,
            outputs: Some("*".to_owned()),
            is_derivation: true,
        }
    }

    /// Returns the words of the command line in the syntax of this version of Nix, or else of the newest.
    ///
    /// # Errors
    /// This version has no syntax for it.
    pub(crate) fn words(&self, version: Option<&NixVersion>) -> Result<Vec<String>, String> {
        let since = |minor| version.is_none_or(|version| version.is_since(minor));
        let Some(outputs) = &self.outputs else {
            return Ok(vec![self.text.clone()]);
        };
        Ok(match (self.is_derivation, outputs.as_str()) {
            (true, _) if since(OUTPUTS_OF_DERIVATIONS) => vec![format!("{}^{outputs}", self.text)],
            // The path alone means all outputs up to 2.14.
            (true, _) => vec![self.text.clone()],
            (false, _) if since(OUTPUTS_OF_ATTRIBUTES) => vec![format!("{}^{outputs}", self.text)],
            (false, "*") => {
                return Err(format!(
                    "{} has no way to name all outputs of {}: name them, as in ^out,dev, or build the derivation's .drv",
                    version.map_or("this Nix", |version| version.text.as_str()),
                    self.text
                ));
            }
            // Each output is an attribute of its derivation.
            (false, names) => names
                .split(',')
                .map(
                    |name| match self.text.contains(['#', ':', '/']) && !self.text.contains('#') {
                        true => format!("{}#default.\"{name}\"", self.text),
                        false => format!("{}.\"{name}\"", self.text),
                    },
                )
                .collect(),
        })
    }

    /// Returns the names of the outputs that are meant, where this version of Nix builds all of the derivation's.
    pub(crate) fn chosen(&self, version: Option<&NixVersion>) -> Option<Vec<&str>> {
        let whole = version.is_some_and(|version| !version.is_since(OUTPUTS_OF_DERIVATIONS));
        let outputs = self.outputs.as_deref().filter(|outputs| *outputs != "*")?;
        (self.is_derivation && whole).then(|| outputs.split(',').collect())
    }
}

/// The minor version of Nix 2 since which `^` chooses outputs of a derivation's store path.
const OUTPUTS_OF_DERIVATIONS: u32 = 13;
/// The minor version of Nix 2 since which `^` chooses outputs of a flake's or a file's attribute.
const OUTPUTS_OF_ATTRIBUTES: u32 = 9;

/// Returns the error for an installable on the host whose files a job can't see, since they are below one of these
/// directories.
pub(crate) fn hidden(
    installable: &Installable,
    templates_dir: &Path,
    directories: &[PathBuf],
) -> Option<NixError> {
    let path = match installable {
        Installable::Flake { reference } => Path::new(host_path(reference)?),
        Installable::File { path, .. } => Path::new(path),
        Installable::Template { .. } => templates_dir,
        Installable::StorePath { .. } | Installable::Derivation { .. } => return None,
    };
    // A link leads a job to where it can't see anything as well.
    let followed = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = directories
        .iter()
        .find(|directory| path.starts_with(directory) || followed.starts_with(directory))?;
    Some(NixError::Hidden {
        path: path.to_owned(),
        directory: directory.clone(),
    })
}

/// Splits the attribute from a flake reference.
pub(crate) fn split_fragment(reference: &str) -> (&str, Option<&str>) {
    match reference.split_once('#') {
        Some((reference, fragment)) => (reference, Some(fragment)),
        None => (reference, None),
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

    #[test]
    fn files_that_a_job_cannot_see_are_named_with_their_directory() {
        let directories = ["/tmp", "/home"].map(PathBuf::from);
        let found = |installable: &Installable, templates: &str| {
            hidden(installable, Path::new(templates), &directories).map(|error| error.to_string())
        };
        let flake = |reference: &str| Installable::Flake {
            reference: reference.to_owned(),
        };
        for reference in [
            "/tmp/x#a",
            "path:/home/alice/flake?dir=b#a",
            "git+file:///tmp/x",
            "tarball+file:///tmp/x.tar.gz",
            "hg+file:/home/x",
            "file:///tmp/x.tar.gz",
            "/tmp",
        ] {
            let why = found(&flake(reference), "/srv").expect(reference);
            assert!(why.contains("jobs can't see") && why.contains("/srv"), "{why}");
        }
        let file = Installable::File {
            path: "/home/alice/a.nix".to_owned(),
            attribute: None,
        };
        let why = found(&file, "/srv").expect("it is hidden");
        assert!(
            why.starts_with("\"/home/alice/a.nix\" is below \"/home\""),
            "{why}"
        );
        let template = Installable::Template {
            name: "minimal".to_owned(),
        };
        assert!(found(&template, "/home/alice/containers").is_some());
        for reference in [
            "/srv/tmp/x",
            "/tmpx",
            "github:o/r",
            "nixpkgs#hello",
            "path:/srv/x#tmp",
        ] {
            assert_eq!(found(&flake(reference), "/srv"), None, "{reference}");
        }
        assert_eq!(found(&template, "/usr/share"), None);
    }

    #[test]
    fn a_link_to_where_a_job_cannot_see_is_named_with_that_directory() {
        let place = tempfile::tempdir().expect("a directory");
        let place = place.path().canonicalize().expect("a path");
        let (hidden_directory, link) = (place.join("hidden"), place.join("link"));
        fs::create_dir(&hidden_directory).expect("a directory");
        std::os::unix::fs::symlink(&hidden_directory, &link).expect("a link");
        let flake = Installable::Flake {
            reference: format!("path:{}#a", link.display()),
        };
        let why = hidden(&flake, Path::new("/srv"), std::slice::from_ref(&hidden_directory))
            .expect("it is hidden")
            .to_string();
        assert!(why.contains(&hidden_directory.display().to_string()), "{why}");
    }
}

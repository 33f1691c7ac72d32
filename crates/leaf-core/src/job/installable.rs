//! Installables: what Nix can build, evaluate or run.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::outputs;
use crate::id::{StorePath, is_token};

/// The maximum length of a reference, a path or an attribute, in bytes.
const MAX_BYTES: usize = 2048;

/// An installable. `^out,dev` behind an attribute chooses outputs, `^*` all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum Installable {
    /// A flake reference with an optional fragment, such as `github:owner/repo#package` or `github:owner/repo#package^dev`.
    Flake {
        /// The reference.
        reference: String,
    },
    /// A store path or derivation to realise.
    StorePath {
        /// The path; a derivation ends in `.drv`, and means all of its outputs.
        path: StorePath,
    },
    /// Chosen outputs of a derivation.
    Derivation {
        /// The derivation's store path, which ends in `.drv`.
        path: StorePath,
        /// The outputs as Nix writes them behind `^`: `out,dev`, or `*` for all.
        outputs: String,
    },
    /// A Nix file on the leaf, as `nix build -f FILE ATTRIBUTE` takes it.
    File {
        /// An absolute path on the leaf.
        path: String,
        /// The attribute, such as `hello` or `hello^dev`; by default the whole file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attribute: Option<String>,
    },
    /// A container template of this leaf, such as `minimal`.
    Template {
        /// The template's directory name.
        name: String,
    },
}

impl Installable {
    /// Checks an installable that must mean derivations with all of their outputs; `thing` is what it else has none of.
    ///
    /// # Errors
    /// The reason, for the caller.
    pub(super) fn check_derivation(&self, thing: &str) -> Result<(), String> {
        self.check()?;
        let text = match self {
            Self::Flake { reference } => reference,
            Self::File { attribute, .. } => attribute.as_deref().unwrap_or_default(),
            Self::StorePath { path } if path.as_str().ends_with(".drv") => return Ok(()),
            Self::StorePath { .. } | Self::Derivation { .. } | Self::Template { .. } => {
                return Err(format!(
                    "{self} has no {thing}: give a flake reference, a file and an attribute, or a derivation"
                ));
            }
        };
        match outputs::split(text) {
            (_, Some(outputs)) => Err(format!("a {thing} has no outputs: leave ^{outputs} out")),
            (_, None) => Ok(()),
        }
    }

    /// Returns what it is without chosen outputs.
    #[must_use]
    pub fn without_outputs(&self) -> Self {
        let bare = |text: &str| outputs::split(text).0.to_owned();
        match self {
            Self::Flake { reference } => Self::Flake {
                reference: bare(reference),
            },
            Self::Derivation { path, .. } => Self::StorePath { path: path.clone() },
            Self::File { path, attribute } => Self::File {
                path: path.clone(),
                attribute: attribute.as_deref().map(bare),
            },
            Self::StorePath { .. } | Self::Template { .. } => self.clone(),
        }
    }

    /// Returns the length of its text, in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Self::Flake { reference } => reference.len(),
            Self::StorePath { path } => path.as_str().len(),
            Self::Derivation { path, outputs } => path.as_str().len() + outputs.len(),
            Self::File { path, attribute } => path.len() + attribute.as_ref().map_or(0, String::len),
            Self::Template { name } => name.len(),
        }
    }

    /// Checks what can be checked without the host: that no part may be taken for a flag by Nix, and that no path depends
    /// on a directory of leafd.
    ///
    /// # Errors
    /// The reason, for the caller.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Flake { reference } => {
                check_text("a flake reference", reference)?;
                let bare = reference.strip_prefix("path:").unwrap_or(reference);
                if bare.starts_with(['.', '#', '?']) {
                    return Err(format!(
                        "the flake reference {:?} is relative: give an absolute path on the leaf",
                        beginning(reference)
                    ));
                }
                // The part before the attribute and the parameters, which are no path.
                let bare = reference.split(['#', '?']).next().unwrap_or_default();
                check_no_parents("flake reference", bare)
            }
            Self::StorePath { .. } => Ok(()),
            Self::Derivation { path, .. } if !path.as_str().ends_with(".drv") => Err(format!(
                "{path} is no derivation, so it has no outputs to choose from"
            )),
            Self::Derivation { outputs, .. } if outputs::are_valid(outputs) => Ok(()),
            Self::Derivation { outputs, .. } => Err(format!(
                "{:?} names no outputs: write them as out,dev, or * for all",
                beginning(outputs)
            )),
            Self::File { path, attribute } => {
                if !path.starts_with('/') {
                    return Err(format!(
                        "the file {:?} is not an absolute path on the leaf",
                        beginning(path)
                    ));
                }
                check_text("a file", path)?;
                check_no_parents("file", path)?;
                attribute
                    .as_deref()
                    .map_or(Ok(()), |attribute| check_text("an attribute", attribute))
            }
            Self::Template { name } if is_token(name) => Ok(()),
            Self::Template { name } => Err(format!(
                "{:?} is not a valid template name: only a-z, 0-9, '_' and '-' are allowed",
                beginning(name)
            )),
        }
    }
}

impl fmt::Display for Installable {
    /// Writes it as a person types it, without `--file`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flake { reference } => f.write_str(reference),
            Self::StorePath { path } => path.fmt(f),
            Self::Derivation { path, outputs } => write!(f, "{path}^{outputs}"),
            Self::File { path, attribute } => match attribute {
                Some(attribute) => write!(f, "{path} {attribute}"),
                None => f.write_str(path),
            },
            Self::Template { name } => write!(f, "template {name}"),
        }
    }
}

fn check_no_parents(what: &str, path: &str) -> Result<(), String> {
    if path.split('/').any(|part| part == "..") {
        return Err(format!(
            "the {what} {:?} has '..' in its path: give the path without it",
            beginning(path)
        ));
    }
    Ok(())
}

fn check_text(what: &str, text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("{what} is required, but it is empty"));
    }
    let why = if text.starts_with('-') {
        "it begins with '-', which Nix would take for a flag"
    } else if text.len() > MAX_BYTES {
        "it is longer than 2048 bytes"
    } else if text.chars().any(char::is_control) {
        "it has a control character"
    } else if text.contains(' ') {
        "it has a blank; use a path without blanks"
    } else {
        return Ok(());
    };
    Err(format!("{:?} can't be {what}: {why}", beginning(text)))
}

fn beginning(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installable_that_nix_would_refuse_or_misread_is_refused_with_the_reason() {
        let flake = |reference: &str| Installable::Flake {
            reference: reference.to_owned(),
        };
        let file = |path: &str, attribute: Option<&str>| Installable::File {
            path: path.to_owned(),
            attribute: attribute.map(str::to_owned),
        };
        let derivation = |name: &str, outputs: &str| Installable::Derivation {
            path: StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}"))
                .expect("a path"),
            outputs: outputs.to_owned(),
        };
        let template = |name: &str| Installable::Template {
            name: name.to_owned(),
        };
        for (installable, says) in [
            (flake(""), "empty"),
            (flake("--impure"), "flag"),
            (flake("path:/srv/my flake#x"), "blank"),
            (flake("a\nb"), "control character"),
            (flake(&"x".repeat(3000)), "2048"),
            (flake("path:../x"), "relative"),
            (flake("path:/srv/../home/a/flake#x"), "'..'"),
            (flake("#a"), "relative"),
            (file("a.nix", None), "absolute"),
            (file("<nixpkgs>", None), "absolute"),
            (file("/srv/my file.nix", None), "blank"),
            (file("/a/../b", None), "'..'"),
            (file("/a.nix", Some("--x")), "flag"),
            (file("/a.nix", Some("a b")), "blank"),
            (file("/a.nix", Some("")), "empty"),
            (derivation("x", "out"), "no derivation"),
            (derivation("x.drv", "out,"), "no outputs"),
            (derivation("x.drv", "*,out"), "no outputs"),
            (derivation("x.drv", "-o"), "no outputs"),
            (template("../minimal"), "template name"),
            (template(""), "template name"),
        ] {
            let why = installable.check().expect_err(says);
            assert!(why.contains(says), "{installable:?}: {why}");
        }
        for installable in [
            flake("github:o/r#p"),
            flake("path:/srv/a..b?dir=x#y"),
            flake("/srv/x"),
            file("/srv/a..b.nix", Some("a.b")),
            derivation("x.drv", "*"),
            derivation("x.drv", "out,dev-1"),
            template("minimal"),
        ] {
            assert_eq!(installable.check(), Ok(()), "{installable:?}");
        }
    }
}

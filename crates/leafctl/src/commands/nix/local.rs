//! Sends flakes of the caller's machine to a leaf: `--local`.
//!
//! The caller's Nix copies a flake to the caller's store, by its own rules, and locks it. What is sent is that copy.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;

use clap::Args;
use leaf_core::id::StorePath;
use leaf_core::job::Installable;
use leaf_core::transfer::SentPath;
use serde_json::Value;
use tokio::process::Command;

use super::installables::{flake_reference, installables};
use crate::error::Error;
use crate::leaf::Leaf;
use crate::local_nix::{LocalNix, Work};
use crate::output::tell;
use crate::upload;

/// Whether flakes of this machine are sent.
#[derive(Debug, Args)]
pub(super) struct Local {
    /// Send flakes of this machine, such as `.#hello`, to the leaf: with all tracked files, as Nix copies them to its store here.
    #[arg(long)]
    local: bool,
}

impl Local {
    pub(super) fn is_wanted(&self) -> bool {
        self.local
    }

    /// Returns the installables that a command line names, after the leaf has got the flakes of this machine that they are of.
    pub(super) async fn installables(
        &self,
        leaf: &Leaf,
        file: Option<&str>,
        texts: Vec<String>,
    ) -> Result<Vec<Installable>, Error> {
        if !self.local {
            return installables(file, None, texts);
        }
        if file.is_some() {
            return Err(Error::Usage(
                "--local sends flakes, and a --file is none: put the file into a flake".to_owned(),
            ));
        }
        let mut sent = BTreeMap::new();
        let mut all = Vec::new();
        for text in texts {
            let (reference, fragment) = split(&text);
            if !is_local(reference) || is_of_store(&text) {
                all.extend(installables(None, None, vec![text])?);
                continue;
            }
            let locked = match sent.get(reference) {
                Some(locked) => locked,
                None => {
                    let locked = send(leaf, reference).await?;
                    sent.entry(reference.to_owned()).or_insert(locked)
                }
            };
            all.push(Installable::Flake {
                reference: format!("{locked}{fragment}"),
            });
        }
        Ok(all)
    }

    /// Returns a flake reference that the leaf can read, after it has got the flake if that is one of this machine.
    pub(super) async fn reference(&self, leaf: &Leaf, reference: String) -> Result<String, Error> {
        if self.local && is_local(&reference) {
            return send(leaf, &reference).await;
        }
        flake_reference(&reference)
    }
}

/// Returns a reference, and what is behind it from `#` or `^` on.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(['#', '^']).unwrap_or(text.len()))
}

/// Returns whether it is a store path or a derivation, with or without outputs: what the leaf looks for in its own store.
fn is_of_store(text: &str) -> bool {
    StorePath::new(split(text).0).is_ok() && !text.contains('#')
}

/// Returns whether a flake reference is one of this machine.
fn is_local(reference: &str) -> bool {
    let begins = |begin: &str| reference.starts_with(begin);
    reference.is_empty() || begins(".") || begins("/") || begins("path:") || begins("git+file:")
}

/// Sends a flake of this machine, and returns the locked reference that the leaf can read.
async fn send(leaf: &Leaf, reference: &str) -> Result<String, Error> {
    let reference = if reference.is_empty() { "." } else { reference };
    let source = Source::find(reference, true).await?;
    let work = Work::make()?;
    let mut paths = vec![source.held_by(&work.0.join("source")).await?];
    let reference = match source.wrapper()? {
        None => source.reference(),
        Some(text) => {
            let directory = work.0.join("wrapper");
            let written = std::fs::create_dir(&directory)
                .and_then(|()| std::fs::write(directory.join("flake.nix"), text));
            written.map_err(|error| {
                Error::Refused(format!("can't write into {}: {error}", directory.display()))
            })?;
            let of_wrapper = format!("path:{}", directory.display());
            nix("nix", &["flake", "lock", "--", &of_wrapper]).await?;
            let wrapper = Source::find(&of_wrapper, false).await?;
            paths.push(wrapper.held_by(&work.0.join("locked-wrapper")).await?);
            wrapper.reference()
        }
    };
    upload::send(leaf, &LocalNix::default(), &paths).await?;
    drop(work);
    Ok(reference)
}

/// A flake's copy in this machine's store.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    path: StorePath,
    nar_hash: String,
    /// Further attributes of the reference, by name.
    attributes: Vec<(&'static str, String)>,
}

impl Source {
    /// Has Nix copy a flake to this machine's store, and lock it. What Nix says besides is shown if that is wanted.
    async fn find(reference: &str, is_shown: bool) -> Result<Self, Error> {
        let arguments = [
            "flake",
            "metadata",
            "--json",
            "--no-update-lock-file",
            "--",
            reference,
        ];
        let Said { stdout, stderr } = nix("nix", &arguments).await?;
        if is_shown && !stderr.is_empty() {
            tell(stderr.as_str());
        }
        let metadata: Value = serde_json::from_str(&stdout)
            .map_err(|error| Error::Refused(format!("nix flake metadata printed no JSON: {error}")))?;
        Self::of(&metadata).ok_or_else(|| {
            Error::Refused(format!(
                "nix flake metadata does not say the store path and the hash of {reference}"
            ))
        })
    }

    /// Holds the copy by a link, and returns it as what is sent.
    async fn held_by(&self, link: &Path) -> Result<SentPath, Error> {
        let (path, link) = (self.path.as_str(), link.display().to_string());
        nix("nix-store", &["--realise", path, "--add-root", &link]).await?;
        let size = nix("nix-store", &["--query", "--size", path]).await?.stdout;
        let hash = nix("nix-store", &["--query", "--hash", path]).await?.stdout;
        Ok(SentPath {
            path: self.path.clone(),
            nar_hash: self.nar_hash.clone(),
            nar_size: size
                .trim()
                .parse()
                .map_err(|_| Error::Refused(format!("nix-store says the size {size:?} of {path}")))?,
            references: Vec::new(),
            content_address: Some(format!("fixed:r:{}", hash.trim())),
            signatures: Vec::new(),
            deriver: None,
        })
    }

    /// Returns a flake with the outputs of this one, if that is in a directory of its tree: before 2.26, Nix takes no `dir` in a
    /// reference of a path, but in an input.
    ///
    /// # Errors
    /// The directory's name has characters that can't be written in Nix.
    fn wrapper(&self) -> Result<Option<String>, Error> {
        let Some((_, dir)) = self.attributes.iter().find(|(name, _)| *name == "dir") else {
            return Ok(None);
        };
        if dir.chars().any(char::is_control) {
            return Err(Error::Usage(format!("{dir:?} has control characters")));
        }
        let mut input = format!(
            "type = \"path\"; path = \"{}\"; narHash = \"{}\"; ",
            self.path, self.nar_hash
        );
        for (name, value) in &self.attributes {
            let value = match *name {
                "dir" | "rev" => quoted(value),
                _ => value.clone(),
            };
            write!(input, "{name} = {value}; ").expect("writing to a String can't fail");
        }
        Ok(Some(format!(
            "{{ inputs.tree = {{ {input}}}; outputs = {{ tree, ... }}: tree.outputs; }}\n"
        )))
    }

    /// Reads the output of `nix flake metadata --json`.
    fn of(metadata: &Value) -> Option<Self> {
        let locked = metadata.get("locked")?;
        let text = |name: &str| match locked.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let names = ["dir", "lastModified", "rev", "revCount"];
        Some(Self {
            path: StorePath::new(metadata.get("path")?.as_str()?).ok()?,
            nar_hash: text("narHash")?,
            attributes: names
                .into_iter()
                .filter_map(|name| Some((name, text(name)?)))
                .collect(),
        })
    }

    /// Returns the locked reference.
    fn reference(&self) -> String {
        let mut reference = format!("path:{}?narHash={}", self.path, encoded(&self.nar_hash));
        for (name, value) in &self.attributes {
            write!(reference, "&{name}={}", encoded(value)).expect("writing to a String can't fail");
        }
        reference
    }
}

/// Returns a text with all but letters, digits, `-`, `.`, `_` and `/` as percent and two hexadecimal digits.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'/' => {
                encoded.push(char::from(byte));
            }
            other => write!(encoded, "%{other:02X}").expect("writing to a String can't fail"),
        }
    }
    encoded
}

/// Returns a string of the Nix language.
fn quoted(text: &str) -> String {
    let escaped = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace("${", "\\${");
    format!("\"{escaped}\"")
}

/// What a program has printed.
struct Said {
    stdout: String,
    stderr: String,
}

/// Runs a program of Nix on this machine.
async fn nix(program: &str, arguments: &[&str]) -> Result<Said, Error> {
    let mut command = Command::new(program);
    if program == "nix" {
        command.args(["--extra-experimental-features", "nix-command flakes"]);
    }
    let output = command
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| {
            Error::Refused(format!(
                "--local has this machine's Nix copy the flake, and {program} can't be run: {error}"
            ))
        })?;
    let stderr: String = String::from_utf8_lossy(&output.stderr)
        .trim()
        .chars()
        .take(4000)
        .collect();
    if !output.status.success() {
        return Err(Error::Refused(format!("{program} on this machine: {stderr}")));
    }
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(Said { stdout, stderr })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_of_the_copy_says_the_same_as_that_of_the_tree() {
        let metadata = serde_json::json!({
            "path": "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-source",
            "locked": {
                "dir": "a b", "lastModified": 12, "narHash": "sha256-x+/=", "rev": "abc", "revCount": 3, "type": "git",
                "url": "file:///home/me/x",
            },
        });
        let source = Source::of(&metadata).expect("readable");
        assert_eq!(
            source.reference(),
            "path:/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-source?narHash=sha256-x%2B/%3D&dir=a%20b&lastModified=12&rev=abc&revCount=3"
        );
        assert_eq!(
            Source::of(&serde_json::json!({ "path": "/tmp/x", "locked": {} })),
            None
        );
    }

    #[test]
    fn references_of_this_machine_are_told_from_others() {
        for reference in [
            "",
            ".",
            "./a",
            "..",
            "/srv/x",
            "path:./x",
            "git+file:///srv/x?submodules=1",
            ".?dir=x",
        ] {
            assert!(is_local(reference), "{reference}");
        }
        for reference in ["nixpkgs", "github:owner/repo", "git+https://example.org/x"] {
            assert!(!is_local(reference), "{reference}");
        }
        assert_eq!(split(".?dir=a#b^out"), (".?dir=a", "#b^out"));
        assert_eq!(split("."), (".", ""));
        assert_eq!(split(".^dev"), (".", "^dev"));
        let path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a";
        assert!(is_of_store(path) && is_of_store(&format!("{path}.drv^*")));
        assert!(!is_of_store(&format!("{path}#a")) && !is_of_store("/srv/x"));
    }
}

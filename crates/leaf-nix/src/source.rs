//! The source of a value: a flake reference that is locked first, a file, or a derivation.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use leaf_core::job::Installable;
use leaf_core::job::process::{Finished, Program};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command_line::program;
use crate::installable::{Wanted, split_fragment};
use crate::path_info::sha256;
use crate::version::NixVersion;

/// The maximum size of the output of `nix flake metadata`, in bytes: it has all of the lock file.
const MAX_METADATA_BYTES: usize = 8 << 20;

/// The source of a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// A flake reference, and the attribute behind `#`.
    Flake {
        reference: String,
        fragment: Option<String>,
    },
    /// A file, and an attribute.
    File { path: String, attribute: Option<String> },
    /// A store path.
    StorePath { path: String },
}

impl Source {
    /// Returns the source that an installable names, which has been checked.
    pub(crate) fn of(installable: &Installable) -> Option<Self> {
        match installable {
            Installable::Flake { reference } => {
                let (reference, fragment) = split_fragment(reference);
                Some(Self::Flake {
                    reference: reference.to_owned(),
                    fragment: fragment.map(str::to_owned),
                })
            }
            Installable::File { path, attribute } => Some(Self::File {
                path: path.clone(),
                attribute: attribute.clone(),
            }),
            Installable::StorePath { path } => Some(Self::StorePath {
                path: path.to_string(),
            }),
            Installable::Derivation { .. } | Installable::Template { .. } => None,
        }
    }
}

/// The first programs of a task about one source: `nix --version`, and `nix flake metadata` for a flake reference. It
/// returns each in turn, and then the words of the command line that name the source, locked.
#[derive(Debug)]
pub(crate) struct Locking {
    nix: PathBuf,
    options: BTreeMap<String, String>,
    source: Source,
    /// The bound of the address space of `nix flake metadata`, in MiB.
    memory_mib: u64,
    impure: bool,
    stage: Stage,
    /// The version of Nix, once it is known.
    pub(crate) version: String,
    /// The locked reference, once it is known.
    pub(crate) locked: Option<Locked>,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Version,
    Metadata,
}

/// A locked flake reference, without the fragment.
#[derive(Debug)]
pub(crate) struct Locked {
    pub(crate) reference: String,
    /// Whether it means the same source for good.
    pub(crate) is_fixed: bool,
    /// The revision, if it has one.
    pub(crate) revision: Option<String>,
    /// The SHA-256 of the source's NAR, in hexadecimal, if Nix printed it.
    pub(crate) nar_sha256: Option<String>,
}

/// Returns the program that locks a flake reference.
pub(crate) fn metadata(nix: &Path, options: &BTreeMap<String, String>, reference: &str) -> Program {
    let arguments = ["--no-update-lock-file", "--", reference].map(OsString::from);
    let mut program = program(nix, options, "flake metadata", arguments);
    program.limits.max_stdout_bytes = Some(MAX_METADATA_BYTES);
    program
}

impl Locking {
    pub(crate) fn new(
        nix: PathBuf,
        options: BTreeMap<String, String>,
        source: Source,
        memory_mib: u64,
        impure: bool,
    ) -> Self {
        Self {
            nix,
            options,
            source,
            memory_mib,
            impure,
            stage: Stage::Version,
            version: String::new(),
            locked: None,
        }
    }

    /// Returns the next program; `None` once the source is locked.
    ///
    /// # Errors
    /// The reason why it can't be locked.
    pub(crate) fn next(&mut self, finished: Option<Finished>) -> Result<Option<Program>, String> {
        let Some(finished) = finished else {
            return Ok(Some(Program::new(self.nix.clone(), ["--version".into()])));
        };
        match self.stage {
            Stage::Version => {
                let version = NixVersion::parse(&String::from_utf8_lossy(&finished.stdout));
                self.version = version.ok_or("nix --version printed no version")?.text;
                let Source::Flake { reference, .. } = &self.source else {
                    return Ok(None);
                };
                self.stage = Stage::Metadata;
                let mut program = metadata(&self.nix, &self.options, reference);
                program.limits.memory_bytes = Some(self.memory_mib << 20);
                Ok(Some(program))
            }
            Stage::Metadata => {
                self.locked = Some(read_metadata(&finished.stdout)?);
                Ok(None)
            }
        }
    }

    /// Returns the end of a command line of `nix`: the flags that the source needs, and the installable behind `--`.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let installable = match &self.source {
            Source::Flake { reference, fragment } => {
                words.push("--no-update-lock-file".into());
                if self.impure {
                    words.push("--impure".into());
                }
                let locked = self.locked.as_ref();
                let reference = locked.map_or(reference, |locked| &locked.reference);
                Some(match fragment {
                    Some(fragment) => format!("{reference}#{fragment}"),
                    None => reference.clone(),
                })
            }
            Source::File { path, attribute } => {
                words.extend(["--file".into(), path.into()]);
                attribute.clone()
            }
            Source::StorePath { path } if path.ends_with(".drv") => {
                let wanted = Wanted::all_of(path.clone());
                let version = NixVersion::parse(&self.version);
                // Outputs of derivations can be named in all versions.
                wanted
                    .words(version.as_ref())
                    .ok()
                    .and_then(|mut words| words.pop())
            }
            Source::StorePath { path } => Some(path.clone()),
        };
        if let Some(installable) = installable {
            words.extend(["--".into(), installable.into()]);
        }
        words
    }

    /// Returns the locked reference, for a result.
    pub(crate) fn locked_reference(&self) -> Option<String> {
        self.locked.as_ref().map(|locked| locked.reference.clone())
    }
}

/// Parses the output of `nix flake metadata --json`.
pub(crate) fn read_metadata(json: &[u8]) -> Result<Locked, String> {
    let value: Value =
        serde_json::from_slice(json).map_err(|e| format!("nix flake metadata printed invalid JSON: {e}"))?;
    let reference = value
        .get("url")
        .and_then(Value::as_str)
        .ok_or("nix flake metadata printed no url")?;
    let locked = |name: &str| value.get("locked").and_then(|locked| locked.get(name));
    let kind = locked("type").and_then(Value::as_str).unwrap_or_default();
    // A working tree with changes has no revision, and its hash is not a part of the reference.
    let of_tree = matches!(kind, "git" | "hg");
    Ok(Locked {
        reference: reference.to_owned(),
        revision: locked("rev").and_then(Value::as_str).map(str::to_owned),
        nar_sha256: locked("narHash").and_then(sha256),
        is_fixed: locked("rev").is_some() || !of_tree && locked("narHash").is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_fixed_by_a_revision_or_by_a_hash_that_is_a_part_of_it() {
        for (locked, is_fixed) in [
            (r#"{"type":"path","narHash":"sha256-x"}"#, true),
            (r#"{"type":"github","rev":"1","narHash":"sha256-x"}"#, true),
            (r#"{"type":"git","narHash":"sha256-x","lastModified":1}"#, false),
            (r#"{"type":"git","dirtyRev":"1-dirty"}"#, false),
            (r#"{"type":"git","rev":"1"}"#, true),
        ] {
            let metadata = format!(r#"{{"url":"x","locked":{locked}}}"#);
            let read = read_metadata(metadata.as_bytes()).expect("readable");
            assert_eq!((read.is_fixed, &*read.reference), (is_fixed, "x"), "{locked}");
        }
        read_metadata(b"{}").expect_err("no url");
    }
}

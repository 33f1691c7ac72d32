use std::path::{Path, PathBuf};

use clap::Args;
use leaf_core::command::{Attestation, Attestations, ListAttestations};
use leaf_core::id::{JobId, LeafName, StorePath};
use leaf_core::job::Installable;
use leaf_core::printable::printable_line;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::provenance::statement::Statement;
use leaf_trust::provenance::ProvenancePublicKey;
use serde::Serialize;
use serde_json::Value;
use tokio::process::Command;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;
use crate::text::fields;

/// Check a leaf's signed statement about what built a store path, and the path itself if it is on this machine.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The store path.
    path: StorePath,
    /// The leaf's public key: a file with a line as in provenance_ed25519.pub of the leaf. Without it, the key that the leaf says is its own.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Print the signed statement as it is, a DSSE envelope, once it has been checked.
    #[arg(long)]
    print: bool,
}

/// What a statement says, and how far that was checked.
#[derive(Serialize)]
struct Verified {
    path: StorePath,
    leaf: LeafName,
    job: JobId,
    nar_sha256: String,
    /// The fingerprint of the key.
    key: String,
    /// Whether the key was given, and not the leaf's word for it.
    key_given: bool,
    /// Whether the path is on this machine, and has this hash.
    path_checked: bool,
    /// The statement's predicate.
    predicate: Value,
}

impl Verify {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let given = self.key.as_deref().map(read_key).transpose()?;
        let leaf = session.leaf().await?;
        let path = self.path.clone();
        let Attestations { key, attestations } = leaf.call(&ListAttestations { path }).await?;
        let Some(Attestation { job, envelope }) = attestations.first() else {
            return Err(failed(format!(
                "leaf {} has no statement about {}: it didn't build it, or doesn't remember the job",
                leaf.name, self.path
            )));
        };
        let key_given = given.is_some();
        let key = match (given, key) {
            (Some(key), _) => key,
            (None, Some(line)) => line.parse().map_err(|error| {
                failed(format!(
                    "leaf {} says that this is its key, and {error}",
                    leaf.name
                ))
            })?,
            (None, None) => {
                return Err(Error::Usage(format!(
                    "leaf {} signs nothing now, so it names no key: give the one of the statement with --key",
                    leaf.name
                )));
            }
        };
        let statement = key.verify(envelope).map_err(|error| {
            failed(format!(
                "the statement of job {job} about {} can't be trusted: {error}",
                self.path
            ))
        })?;
        let nar_sha256 = statement
            .nar_sha256(&self.path)
            .ok_or_else(|| failed(format!("the statement of job {job} is not about {}", self.path)))?
            .to_owned();
        let path_checked = check_path(&self.path, &nar_sha256).await?;
        if self.print {
            return output.document(envelope, |envelope| {
                serde_json::to_string(envelope).expect("an envelope has string keys only")
            });
        }
        let verified = Verified {
            path: self.path,
            leaf: leaf.name.clone(),
            job: *job,
            nar_sha256,
            key: key.fingerprint(),
            key_given,
            path_checked,
            predicate: statement.predicate.clone(),
        };
        output.document(&verified, |verified| fields(&lines(verified, &statement)))
    }
}

fn failed(detail: String) -> Error {
    Error::Problem(Problem::new(ProblemCode::Failed, detail))
}

/// Reads a public key of statements.
pub(crate) fn read_key(path: &Path) -> Result<ProvenancePublicKey, Error> {
    let usage = |why: String| Error::Usage(format!("can't use the key {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| usage(error.to_string()))?;
    text.parse()
        .map_err(|error: leaf_trust::provenance::ProvenanceKeyError| usage(error.to_string()))
}

/// Returns whether the path is on this machine; then it has been hashed, and has this hash.
async fn check_path(path: &StorePath, nar_sha256: &str) -> Result<bool, Error> {
    if !Path::new(path.as_str()).exists() {
        return Ok(false);
    }
    let ran = Command::new("nix-hash")
        .args(["--type", "sha256"])
        .arg(path.as_str())
        .output()
        .await;
    let output = match ran {
        Ok(output) if output.status.success() => output,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let why = printable_line(&said);
            return Err(failed(format!(
                "can't hash {path}, which is on this machine: {why}"
            )));
        }
        // Without Nix, the directory is not a store that this machine uses.
        Err(_) => return Ok(false),
    };
    let found = String::from_utf8_lossy(&output.stdout);
    if found.trim() == nar_sha256 {
        return Ok(true);
    }
    Err(failed(format!(
        "{path} on this machine is not what was built: its SHA-256 is {}, and the statement has {nar_sha256}",
        printable_line(found.trim())
    )))
}

fn lines(verified: &Verified, statement: &Statement) -> Vec<(&'static str, String)> {
    let text = |pointer: &str| {
        let value = statement.predicate.pointer(pointer)?;
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let mut lines = vec![
        ("path", verified.path.to_string()),
        ("sha256", verified.nar_sha256.clone()),
        ("job", verified.job.to_string()),
    ];
    let named = [
        ("built by", "/runDetails/builder/id"),
        ("for", "/buildDefinition/externalParameters/caller"),
        ("finished", "/runDetails/metadata/finishedOn"),
    ];
    lines.extend(
        named
            .into_iter()
            .filter_map(|(label, pointer)| Some((label, text(pointer)?))),
    );
    let list = |pointer: &str| statement.predicate.pointer(pointer).and_then(Value::as_array);
    let installables = list("/buildDefinition/externalParameters/installables")
        .into_iter()
        .flatten();
    lines.extend(installables.map(|installable| {
        // One of a newer leafd is printed as it is.
        let known = serde_json::from_value::<Installable>(installable.clone());
        (
            "asked for",
            known.map_or_else(|_| installable.to_string(), |known| known.to_string()),
        )
    }));
    let dependencies = list("/buildDefinition/resolvedDependencies")
        .into_iter()
        .flatten();
    let uris = dependencies.filter_map(|dependency| dependency.get("uri")?.as_str());
    lines.extend(uris.map(|uri| ("derivation", uri.strip_prefix("nix:").unwrap_or(uri).to_owned())));
    lines.push((
        "signature",
        match verified.key_given {
            true => format!("right, by the given key {}", verified.key),
            false => format!(
                "right, by the key {}, of which the leaf says that it is its own: --key checks it with a key that you know",
                verified.key
            ),
        },
    ));
    lines.push((
        "contents",
        match verified.path_checked {
            true => "the path on this machine has this hash".to_owned(),
            false => "not compared: the path is not on this machine".to_owned(),
        },
    ));
    lines
}

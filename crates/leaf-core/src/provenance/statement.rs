//! The statement about what a job built: in-toto Statement v1 with SLSA provenance v1.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::id::{LeafName, StorePath};
use crate::job::{BuildResult, Job, LockedSource, Origin, Task};

/// The type of a statement: in-toto Statement v1.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// The type of its predicate: SLSA provenance v1.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// The type of the builds that a leaf attests.
pub const BUILD_TYPE: &str = "urn:cim-leaf:nix-build:v1";

/// The programs that carried out a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Builder {
    /// The leaf.
    pub leaf: LeafName,
    /// The version of leafd.
    pub leafd: String,
    /// The version of Nix.
    pub nix: String,
}

/// How a job ended, as far as its record doesn't say so yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// When.
    pub at: Timestamp,
    /// The SHA-256 of its log, as `job.log` returns it from beginning to end, in hexadecimal; `None` if it can't be read.
    pub log_sha256: Option<String>,
}

/// Returns the statement about what a job built, as JSON; `None` if it built nothing whose hash is known.
#[must_use]
pub fn statement(job: &Job, result: &BuildResult, builder: &Builder, ending: &Ending) -> Option<Value> {
    let Task::Build(task) = &job.task else { return None };
    let first = (
        result.origin,
        result.derivation.as_ref(),
        &result.outputs,
        &result.nar_sha256,
    );
    let others = result.others.iter().map(|built| {
        (
            built.origin,
            built.derivation.as_ref(),
            &built.outputs,
            &built.nar_sha256,
        )
    });
    let mut subjects: BTreeMap<&StorePath, &String> = BTreeMap::new();
    let mut derivations = Vec::new();
    for (origin, derivation, outputs, hashes) in std::iter::once(first).chain(others) {
        if origin != Some(Origin::Built) {
            continue;
        }
        let hashed = outputs
            .iter()
            .filter_map(|(name, path)| Some((path, hashes.get(name)?)));
        let before = subjects.len();
        subjects.extend(hashed);
        if subjects.len() > before {
            derivations.extend(derivation.map(|path| json!({ "uri": format!("nix:{path}") })));
        }
    }
    if subjects.is_empty() {
        return None;
    }
    let mut dependencies = sources(result);
    dependencies.append(&mut derivations);
    let subject: Vec<Value> = subjects
        .into_iter()
        .map(|(path, hash)| json!({ "name": path, "digest": { "sha256": hash } }))
        .collect();
    let byproducts: Vec<Value> = ending
        .log_sha256
        .iter()
        .map(|sha256| json!({ "name": "log", "digest": { "sha256": sha256 } }))
        .collect();
    Some(json!({
        "_type": STATEMENT_TYPE,
        "subject": subject,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "installables": task.all().collect::<Vec<_>>(),
                    "keepGoing": task.keep_going,
                    "impure": task.impure,
                    "caller": job.owner,
                },
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {
                    "id": format!("urn:cim-leaf:leaf:{}", builder.leaf),
                    "version": { "leafd": builder.leafd, "nix": builder.nix },
                },
                "metadata": {
                    "invocationId": job.id,
                    "startedOn": job.started_at,
                    "finishedOn": ending.at,
                },
                "byproducts": byproducts,
            },
        },
    }))
}

/// Returns the sources of a build's flakes, as resource descriptors.
fn sources(result: &BuildResult) -> Vec<Value> {
    let of = |source: &LockedSource| {
        let mut digest = Map::new();
        if let Some(revision) = &source.revision {
            digest.insert("gitCommit".to_owned(), json!(revision));
        }
        if let Some(sha256) = &source.nar_sha256 {
            digest.insert("sha256".to_owned(), json!(sha256));
        }
        let mut descriptor = json!({ "name": source.reference, "uri": source.locked });
        if !digest.is_empty() {
            descriptor["digest"] = Value::Object(digest);
        }
        descriptor
    };
    result.sources.iter().map(of).collect()
}

/// A statement, as far as a verifier needs it. Others than a leaf's may have more.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    /// Its type.
    #[serde(rename = "_type")]
    pub kind: String,
    /// What it is about.
    pub subject: Vec<Subject>,
    /// The type of the predicate.
    pub predicate_type: String,
    /// The predicate.
    pub predicate: Value,
}

/// What a statement is about.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Subject {
    /// Its name: a store path.
    pub name: String,
    /// Its digests by algorithm, in hexadecimal.
    pub digest: BTreeMap<String, String>,
}

impl Statement {
    /// Reads a verified payload.
    ///
    /// # Errors
    /// The reason why it is no statement of provenance that this version knows.
    pub fn parse(payload: &[u8]) -> Result<Self, String> {
        let statement: Self = serde_json::from_slice(payload)
            .map_err(|error| format!("it is no in-toto statement: {error}"))?;
        if statement.kind != STATEMENT_TYPE {
            return Err(format!("it is no {STATEMENT_TYPE}"));
        }
        if statement.predicate_type != PREDICATE_TYPE {
            return Err(format!("its predicate is no {PREDICATE_TYPE}"));
        }
        Ok(statement)
    }

    /// Returns the SHA-256 of the NAR of a store path that it is about, in hexadecimal.
    #[must_use]
    pub fn nar_sha256(&self, path: &StorePath) -> Option<&str> {
        let subject = self
            .subject
            .iter()
            .find(|subject| subject.name == path.as_str())?;
        subject.digest.get("sha256").map(String::as_str)
    }
}

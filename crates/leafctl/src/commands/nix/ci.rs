use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use leaf_core::command::{self, ShowJob, ShowLeaf};
use leaf_core::id::{JobId, StorePath};
use leaf_core::job::explanation::FailureKind;
use leaf_core::job::{BuiltDerivation, Explanation, Installable, Job, JobResult};
use serde::{Deserialize, Serialize};

use super::build::{follow, seconds};
use super::local::Local;
use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::{Output, name_of, tell};
use crate::session::Session;
use crate::text::Table;

/// Build all packages and checks of a flake on a leaf, as one set with one outcome.
///
/// They are those of the leaf's system. What fails does not keep the rest from being built. The exit code is 0 if all are built, or
/// else 7.
#[derive(Debug, Args)]
pub(crate) struct Ci {
    /// The flake reference, without an attribute: `.`, or `github:owner/repo`.
    reference: String,
    #[command(flatten)]
    local: Local,
    /// The time limit of each job, such as 30m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_limit: Option<Duration>,
    /// Look at the reference again after so many seconds, and build whenever it means another source, until interrupted.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(5..=86400))]
    poll: Option<u64>,
}

/// The outcome of a set.
#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    /// The flake reference as it was given.
    reference: String,
    /// The locked reference that was built.
    locked: String,
    /// Whether all attributes are built.
    succeeded: bool,
    attributes: Vec<Attribute>,
    /// The jobs that built them.
    jobs: Vec<JobId>,
}

/// An attribute of the flake, and what came of it.
#[derive(Debug, Serialize, Deserialize)]
struct Attribute {
    /// Such as `checks.x86_64-linux.unit`.
    name: String,
    /// The derivation; none if the attribute does not evaluate.
    derivation: Option<StorePath>,
    outputs: BTreeMap<String, StorePath>,
    /// Whether it is built.
    built: bool,
    /// Why it is not, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<FailureKind>,
}

/// The attributes of a set by name, with their derivations.
type Attributes = BTreeMap<String, Option<StorePath>>;

/// Returns the derivation of each attribute, and null for one that does not evaluate.
const DERIVATIONS: &str = "set: builtins.mapAttrs (_: d: let t = builtins.tryEval d.drvPath; in if t.success then t.value else null) set";

/// The number of installables of a job, and the length of all of them: a leaf takes 32, of 16 KiB.
const MOST_OF_A_JOB: usize = 32;
const MOST_BYTES_OF_A_JOB: usize = 15 << 10;

impl Ci {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        if self.reference.contains(['#', '^']) {
            return Err(Error::Usage(
                "give the flake reference without an attribute: all packages and checks are built".to_owned(),
            ));
        }
        let leaf = session.leaf().await?;
        let system = leaf.call(&ShowLeaf {}).await?.host.system;
        let mut last = None;
        loop {
            let reference = self.local.reference(&leaf, self.reference.clone()).await?;
            let (locked, attributes) = self.evaluate(&leaf, &reference, &system, output).await?;
            if last.as_ref() != Some(&locked) {
                let outcome = self.build(&leaf, &reference, &locked, attributes, output).await?;
                if self.poll.is_some() {
                    output.item(&outcome, line)?;
                } else {
                    output.document(&outcome, |outcome| table(outcome, output))?;
                    if outcome.succeeded {
                        return Ok(());
                    }
                    if !output.is_json() {
                        tell(not_built(&outcome).as_str());
                    }
                    return Err(Error::Exited(7));
                }
                last = Some(locked);
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(self.poll.unwrap_or_default())) => {}
                _ = tokio::signal::ctrl_c() => return Err(Error::Interrupted { note: None }),
            }
        }
    }

    /// Returns the locked reference, and its attributes.
    async fn evaluate(
        &self,
        leaf: &Leaf,
        reference: &str,
        system: &str,
        output: Output,
    ) -> Result<(String, Attributes), Error> {
        let (mut locked, mut all) = (None, Attributes::new());
        for set in ["packages", "checks"] {
            let attribute = format!("{set}.{system}");
            // The second one is of the same source.
            let of = locked.as_deref().unwrap_or(reference);
            let installable = Installable::Flake {
                reference: format!("{of}#{attribute}"),
            };
            let accepted = leaf
                .call(&command::Eval {
                    installable,
                    apply: Some(DERIVATIONS.to_owned()),
                    impure: false,
                    timeout_seconds: seconds(self.time_limit)?.or(Some(600)),
                })
                .await?;
            let job = match follow(leaf, accepted.job, output).await {
                Ok(job) => job,
                Err(error @ Error::Job { .. }) => {
                    let job = leaf.call(&ShowJob { id: accepted.job }).await?.job;
                    let kind = job.explanation.map(|why| why.kind);
                    if kind == Some(FailureKind::MissingAttribute) {
                        continue;
                    }
                    return Err(error);
                }
                Err(error) => return Err(error),
            };
            let Some(JobResult::Eval(result)) = job.result else {
                continue;
            };
            let values: BTreeMap<String, Option<StorePath>> =
                serde_json::from_value(result.value).map_err(|_| {
                    Error::Usage(format!("{attribute} of {reference} is not a set of derivations"))
                })?;
            all.extend(
                values
                    .into_iter()
                    .map(|(name, derivation)| (format!("{attribute}.{}", quoted(&name)), derivation)),
            );
            locked = result.locked;
        }
        match locked {
            Some(locked) => Ok((locked, all)),
            None => Err(Error::NotFound(format!(
                "{reference} has neither packages nor checks for {system}"
            ))),
        }
    }

    async fn build(
        &self,
        leaf: &Leaf,
        reference: &str,
        locked: &str,
        attributes: Attributes,
        output: Output,
    ) -> Result<Outcome, Error> {
        let mut open: Vec<Installable> = attributes
            .iter()
            .filter(|(_, derivation)| derivation.is_some())
            .map(|(name, _)| Installable::Flake {
                reference: format!("{locked}#{name}"),
            })
            .collect();
        let mut jobs = Vec::new();
        while !open.is_empty() {
            let mut bytes = 0;
            let fits = open.iter().take(MOST_OF_A_JOB).take_while(|installable| {
                bytes += installable.length();
                bytes <= MOST_BYTES_OF_A_JOB
            });
            let count = fits.count().max(1);
            let now: Vec<Installable> = open.drain(..count).collect();
            let accepted = leaf
                .call(&command::Build {
                    keep_going: true,
                    timeout_seconds: seconds(self.time_limit)?,
                    ..command::Build::of(now)
                })
                .await?;
            jobs.push(match follow(leaf, accepted.job, output).await {
                Ok(job) => job,
                Err(Error::Job { .. }) => leaf.call(&ShowJob { id: accepted.job }).await?.job,
                Err(error) => return Err(error),
            });
        }
        let attributes: Vec<Attribute> = attributes
            .into_iter()
            .map(|(name, derivation)| attribute(name, derivation, &jobs))
            .collect();
        Ok(Outcome {
            reference: reference.to_owned(),
            locked: locked.to_owned(),
            succeeded: attributes.iter().all(|attribute| attribute.built),
            attributes,
            jobs: jobs.iter().map(|job| job.id).collect(),
        })
    }
}

/// Returns what came of an attribute.
fn attribute(name: String, derivation: Option<StorePath>, jobs: &[Job]) -> Attribute {
    let built = jobs.iter().flat_map(built).find_map(|(of, outputs)| {
        let is_it = derivation.is_some() && of == derivation.as_ref();
        is_it.then(|| outputs.clone())
    });
    let explained = jobs.iter().filter_map(|job| job.explanation.as_ref());
    let failure = match (&derivation, &built) {
        (_, Some(_)) => None,
        (None, None) => Some(FailureKind::EvaluationError),
        (Some(derivation), None) => explained.filter_map(|why| failure_of(derivation, why)).next(),
    };
    Attribute {
        name,
        derivation,
        built: built.is_some(),
        outputs: built.unwrap_or_default(),
        failure,
    }
}

/// Returns what an explanation says of a derivation.
fn failure_of(derivation: &StorePath, why: &Explanation) -> Option<FailureKind> {
    if why.derivation.as_ref() == Some(derivation) {
        Some(why.kind)
    } else if why.needed_by.contains(derivation) {
        Some(FailureKind::DependencyFailed)
    } else {
        // Of the further ones it has no kind.
        why.also_failed
            .contains(derivation)
            .then_some(FailureKind::Unknown)
    }
}

/// Returns the derivations that a job built, or that were there, with their outputs.
fn built(job: &Job) -> Vec<(Option<&StorePath>, &BTreeMap<String, StorePath>)> {
    let of = |built: &'_ BuiltDerivation| -> bool { built.derivation.is_some() };
    let mut all: Vec<_> = job
        .partial
        .iter()
        .filter(|built| of(built))
        .map(|built| (built.derivation.as_ref(), &built.outputs))
        .collect();
    if let Some(JobResult::Build(result)) = &job.result {
        all.push((result.derivation.as_ref(), &result.outputs));
        all.extend(
            result
                .others
                .iter()
                .map(|built| (built.derivation.as_ref(), &built.outputs)),
        );
    }
    all
}

/// Returns a name as a part of an attribute's path.
fn quoted(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '\'');
    if name.chars().all(is_plain) && !name.is_empty() {
        name.to_owned()
    } else {
        format!("\"{name}\"")
    }
}

fn said(attribute: &Attribute) -> String {
    match (attribute.built, attribute.failure) {
        (true, _) => "built".to_owned(),
        (false, Some(kind)) => name_of(&kind),
        (false, None) => "not built".to_owned(),
    }
}

fn table(outcome: &Outcome, output: Output) -> Table {
    let mut table = output.table(&["ATTRIBUTE", "OUTCOME", "STORE PATH OR DERIVATION"]);
    for attribute in &outcome.attributes {
        let path = attribute.outputs.get("out").or(attribute.outputs.values().next());
        let path = path.or(attribute.derivation.as_ref());
        table.add_row([
            attribute.name.clone(),
            said(attribute),
            path.map(ToString::to_string).unwrap_or_default(),
        ]);
    }
    table
}

/// Returns how many attributes are not built, and what explains it.
fn not_built(outcome: &Outcome) -> String {
    let all = outcome.attributes.len();
    let count = outcome
        .attributes
        .iter()
        .filter(|attribute| !attribute.built)
        .count();
    let why: Vec<String> = outcome
        .jobs
        .iter()
        .map(|job| format!("`leafctl nix why {job}`"))
        .collect();
    match why.is_empty() {
        true => format!("{count} of {all} attributes are not built"),
        false => format!("{count} of {all} attributes are not built: {}", why.join(", ")),
    }
}

fn line(outcome: &Outcome) -> String {
    let failed: Vec<String> = outcome
        .attributes
        .iter()
        .filter(|attribute| !attribute.built)
        .map(|attribute| format!("{} ({})", attribute.name, said(attribute)))
        .collect();
    if failed.is_empty() {
        format!("{}: {} built", outcome.locked, outcome.attributes.len())
    } else {
        format!("{}: failed: {}", outcome.locked, failed.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_has_the_kind_of_its_own_failure_and_another_one_only_what_is_known() {
        let path = |name: &str| {
            StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}.drv")).expect("a path")
        };
        let why = Explanation {
            derivation: Some(path("first")),
            needed_by: vec![path("needs-it")],
            also_failed: vec![path("second")],
            ..Explanation::new(FailureKind::HashMismatch, String::new())
        };
        for (name, kind) in [
            ("first", Some(FailureKind::HashMismatch)),
            ("needs-it", Some(FailureKind::DependencyFailed)),
            ("second", Some(FailureKind::Unknown)),
            ("not-begun", None),
        ] {
            assert_eq!(failure_of(&path(name), &why), kind, "{name}");
        }
    }
}

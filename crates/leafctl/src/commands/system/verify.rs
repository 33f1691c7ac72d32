use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use leaf_core::command::{ListJobs, ShowJob, ShowLeaf, VerifySystem};
use leaf_core::id::{LeafName, StorePath};
use leaf_core::job::verify::{EtcDifferenceKind, MOST_STATED, PathFinding, Stated};
use leaf_core::job::{Job, JobResult, VerifyResult};
use leaf_core::problem::{Problem, ProblemCode};
use leaf_trust::provenance::{EnvelopeError, ProvenancePublicKey};
use serde::Serialize;

use crate::commands::nix::build::{follow, seconds};
use crate::commands::nix::verify::read_key;
use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::Output;
use crate::session::Session;
use crate::text::fields;
use crate::view::View;

/// Verify the system that runs: where each store path of it comes from, and what in /etc differs from it.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Hash the contents of each store path, which reads all of the system from the disk.
    #[arg(long)]
    contents: bool,
    /// Fail also where a store path has neither a trusted signature nor a statement that holds.
    #[arg(long)]
    strict: bool,
    /// A public key of statements: a file with a line as in provenance_ed25519.pub of a leaf. Without any, the keys that the leaves say
    /// are their own.
    #[arg(long = "key", value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// Count the statements of this leaf too, which has built what the others run.
    #[arg(long = "built-by", value_name = "LEAF")]
    built_by: Vec<LeafName>,
    /// The job's time limit, such as 30m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_limit: Option<Duration>,
}

/// What was verified, and by which keys.
#[derive(Debug, Serialize)]
struct Verified {
    #[serde(flatten)]
    result: VerifyResult,
    statements: Statements,
    /// What is wrong, in words; empty if nothing is.
    wrong: Vec<String>,
}

/// The statements of the leaves that were asked.
#[derive(Debug, Default, Serialize)]
struct Statements {
    /// How many are signed by one of the keys.
    right: usize,
    /// How many are signed by another key, and counted for nothing.
    of_other_keys: usize,
    /// The jobs whose statement is not what its key has signed.
    forged: Vec<String>,
    /// The fingerprints of the keys.
    keys: Vec<String>,
    /// Whether the keys were given, and not the leaves' word for them.
    keys_given: bool,
    #[serde(skip)]
    stated: Vec<Stated>,
}

impl Verify {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let keys: Vec<ProvenancePublicKey> = self
            .keys
            .iter()
            .map(|path| read_key(path))
            .collect::<Result<_, _>>()?;
        let timeout_seconds = seconds(self.time_limit)?;
        let builders: Vec<Leaf> = self
            .built_by
            .iter()
            .map(|name| session.alone(name.clone()))
            .collect();
        let all_wrong = RefCell::new(Vec::new());
        let verify = async |leaf: &Leaf| {
            let mut statements = Statements {
                keys_given: !keys.is_empty(),
                ..Statements::default()
            };
            let others = builders.iter().filter(|other| other.name != leaf.name);
            for of in std::iter::once(leaf).chain(others) {
                statements.add(of, &keys).await?;
            }
            statements.stated.truncate(MOST_STATED);
            let request = VerifySystem {
                stated: statements.stated.clone(),
                contents: self.contents,
                timeout_seconds,
            };
            let accepted = leaf.call(&request).await?;
            let job = follow(leaf, accepted.job, output).await?;
            let Some(JobResult::Verify(result)) = job.result else {
                return Err(Error::NotFound(format!("job {} has verified nothing", job.id)));
            };
            let wrong = wrong(&result, &statements, self.strict);
            if !wrong.is_empty() {
                all_wrong.borrow_mut().push(leaf.name.clone());
            }
            Ok(Verified {
                result,
                statements,
                wrong,
            })
        };
        session
            .each(output, verify, |verified| view(verified, output))
            .await?;
        let all_wrong = all_wrong.into_inner();
        if all_wrong.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = all_wrong.iter().map(ToString::to_string).collect();
        Err(Error::Problem(Problem::new(
            ProblemCode::Failed,
            format!("the system is not as it must be: {}", names.join(", ")),
        )))
    }
}

impl Statements {
    /// Adds what a leaf's statements say, newest first.
    async fn add(&mut self, leaf: &Leaf, given: &[ProvenancePublicKey]) -> Result<(), Error> {
        let own;
        let keys = match given {
            [] => {
                let line = leaf.call(&ShowLeaf {}).await?.provenance_key;
                // One that signs nothing has no statements by a key that anybody could know.
                own = line.and_then(|line| line.parse().ok());
                own.as_slice()
            }
            given => given,
        };
        for key in keys {
            let fingerprint = key.fingerprint();
            if !self.keys.contains(&fingerprint) {
                self.keys.push(fingerprint);
            }
        }
        let built = |job: &Job| matches!(&job.result, Some(JobResult::Build(result)) if result.built > 0);
        let list = leaf.call(&ListJobs {}).await?;
        for job in list.jobs.into_iter().filter(built) {
            let Some(envelope) = leaf.call(&ShowJob { id: job.id }).await?.job.attestation else {
                continue;
            };
            let checked: Vec<_> = keys.iter().map(|key| key.verify(&envelope)).collect();
            let by_another = |error: &EnvelopeError| matches!(error, EnvelopeError::OtherKey { .. });
            if let Some(Ok(statement)) = checked.iter().find(|checked| checked.is_ok()) {
                self.right += 1;
                self.stated.extend(statement.subject.iter().filter_map(|subject| {
                    Some(Stated {
                        path: StorePath::new(&subject.name).ok()?,
                        nar_sha256: subject.digest.get("sha256")?.clone(),
                    })
                }));
            } else if checked
                .iter()
                .all(|checked| checked.as_ref().is_err_and(by_another))
            {
                self.of_other_keys += 1;
            } else {
                self.forged.push(format!("{} of leaf {}", job.id, leaf.name));
            }
        }
        Ok(())
    }
}

/// Returns what is wrong, in words.
fn wrong(result: &VerifyResult, statements: &Statements, strict: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut count = |number: u64, what: &str| {
        if number > 0 {
            wrong.push(format!("{number} {what}"));
        }
    };
    count(result.missing, "store paths are not in the store");
    count(
        result.modified.unwrap_or_default(),
        "store paths do not have the contents that Nix's database says",
    );
    count(result.contradicted, "store paths are others than statements say");
    count(
        statements.forged.len() as u64,
        "statements have a wrong signature",
    );
    count(result.etc.unexplained, "files in /etc differ from the system");
    if strict {
        count(
            result.unknown + result.built_here,
            "store paths have neither a trusted signature nor a statement",
        );
        wrong.extend(
            result
                .etc
                .not_compared
                .iter()
                .map(|why| format!("/etc was not compared: {why}")),
        );
    }
    wrong
}

fn view(verified: &Verified, output: Output) -> View {
    let Verified {
        result,
        statements,
        wrong,
    } = verified;
    let by = match (statements.keys.as_slice(), statements.keys_given) {
        ([], _) => "no key is known".to_owned(),
        (keys, true) => format!("by the given keys {}", keys.join(", ")),
        (keys, false) => format!(
            "by the keys {}, of which the leaves say that they are their own: --key checks with keys that you know",
            keys.join(", ")
        ),
    };
    let mut lines = vec![
        ("system", result.toplevel.to_string()),
        ("store paths", result.paths.to_string()),
        ("trusted signature", result.signed.to_string()),
        ("statement", result.attested.to_string()),
        ("built here, no statement", result.built_here.to_string()),
        ("neither", result.unknown.to_string()),
        (
            "contents",
            match result.modified {
                None => "not hashed (--contents does)".to_owned(),
                Some(0) => "as Nix's database has them".to_owned(),
                Some(modified) => format!("{modified} store paths are modified"),
            },
        ),
        ("statements", format!("{} right, {by}", statements.right)),
    ];
    if statements.of_other_keys > 0 {
        let count = statements.of_other_keys;
        lines.push((
            "of other keys",
            format!("{count} statements, which count for nothing"),
        ));
    }
    lines.push(("files of the system in /etc", result.etc.of_system.to_string()));
    if let Some(why) = &result.etc.not_compared {
        lines.push(("/etc", format!("not compared: {why}")));
    }
    if result.left_out > 0 {
        lines.push(("further store paths", format!("{}, not listed", result.left_out)));
    }
    if result.etc.left_out > 0 {
        lines.push(("further files", format!("{}, not listed", result.etc.left_out)));
    }
    match wrong.as_slice() {
        [] => lines.push(("wrong", "nothing".to_owned())),
        wrong => lines.extend(wrong.iter().map(|what| ("wrong", what.clone()))),
    }
    lines.extend(
        statements
            .forged
            .iter()
            .map(|job| ("wrong signature", job.clone())),
    );
    let mut view = View::from(fields(&lines));
    if !result.listed.is_empty() {
        let mut paths = output.table(&["STORE PATH", ""]);
        for listed in &result.listed {
            paths.add_row([listed.path.to_string(), finding(listed.what).to_owned()]);
        }
        view = view.and(paths);
    }
    if !result.etc.differences.is_empty() {
        let mut files = output.table(&["IN /ETC", "", "EXPLAINED BY"]);
        for file in &result.etc.differences {
            files.add_row([
                file.name.clone(),
                kind(file.what).to_owned(),
                file.explained.clone().unwrap_or_default(),
            ]);
        }
        view = view.and(files);
    }
    view
}

fn finding(what: PathFinding) -> &'static str {
    match what {
        PathFinding::Missing => "not in the store",
        PathFinding::Modified => "modified",
        PathFinding::Contradicted => "another one than a statement says",
        PathFinding::Unknown => "neither a trusted signature nor a statement",
        PathFinding::BuiltHere => "built here, no statement",
    }
}

fn kind(what: EtcDifferenceKind) -> &'static str {
    match what {
        EtcDifferenceKind::Changed => "changed",
        EtcDifferenceKind::Mode => "another mode or owner",
        EtcDifferenceKind::Added => "added",
        EtcDifferenceKind::Missing => "missing",
        EtcDifferenceKind::Unreadable => "not readable for a job, its contents were not compared",
    }
}

#[cfg(test)]
mod tests {
    use leaf_core::job::verify::EtcReport;

    use super::*;

    fn result() -> VerifyResult {
        VerifyResult {
            toplevel: StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-nixos").expect("a path"),
            paths: 3,
            signed: 1,
            attested: 0,
            built_here: 1,
            unknown: 1,
            contradicted: 0,
            missing: 0,
            modified: None,
            listed: Vec::new(),
            left_out: 0,
            etc: EtcReport::default(),
        }
    }

    #[test]
    fn what_nobody_attests_is_wrong_only_if_asked_for() {
        let none = Statements::default();
        assert_eq!(wrong(&result(), &none, false), [""; 0]);
        assert_eq!(
            wrong(&result(), &none, true),
            ["2 store paths have neither a trusted signature nor a statement"]
        );
        let overlay = VerifyResult {
            built_here: 0,
            unknown: 0,
            etc: EtcReport {
                not_compared: Some("it is an overlay".to_owned()),
                ..EtcReport::default()
            },
            ..result()
        };
        assert_eq!(wrong(&overlay, &none, false), [""; 0]);
        assert_eq!(
            wrong(&overlay, &none, true),
            ["/etc was not compared: it is an overlay"]
        );
    }

    #[test]
    fn each_fault_is_said() {
        let faulty = VerifyResult {
            contradicted: 1,
            missing: 2,
            modified: Some(3),
            etc: EtcReport {
                unexplained: 4,
                ..EtcReport::default()
            },
            ..result()
        };
        let forged = Statements {
            forged: vec!["a job".to_owned()],
            ..Statements::default()
        };
        let wrong = wrong(&faulty, &forged, false);
        let counts: Vec<_> = wrong
            .iter()
            .map(|what| what.split(' ').next().unwrap_or_default())
            .collect();
        assert_eq!(counts, ["2", "3", "1", "1", "4"]);
    }
}

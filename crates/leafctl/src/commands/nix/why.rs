use clap::Args;
use leaf_core::command::ShowJob;
use leaf_core::id::JobId;
use leaf_core::job::explanation::FailureKind;
use leaf_core::job::{Explanation, JobPhase};

use crate::error::Error;
use crate::output::{Output, name_of};
use crate::session::Session;
use crate::text::fields;

/// Explain why a job failed: the kind of failure, what failed, its last lines, and what needed it.
#[derive(Debug, Args)]
pub(crate) struct Why {
    /// The job's id, as `nix jobs` lists it.
    job: JobId,
}

impl Why {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaf = session.leaf().await?;
        let job = leaf.call(&ShowJob { id: self.job }).await?.job;
        let why = job.explained().ok_or_else(|| {
            let phase = match job.phase {
                JobPhase::Succeeded => "has succeeded".to_owned(),
                phase => format!("is {}", name_of(&phase)),
            };
            Error::NotFound(format!("job {} {phase}: there is no failure to explain", job.id))
        })?;
        output.document(&why, |why| fields(&lines(why, job.id)))
    }
}

fn lines(why: &Explanation, job: JobId) -> Vec<(&'static str, String)> {
    let mut lines = vec![("kind", name_of(&why.kind))];
    let path = |path: &leaf_core::id::StorePath| path.to_string();
    lines.extend(
        why.derivation
            .iter()
            .map(|derivation| ("derivation", path(derivation))),
    );
    lines.extend(why.exit_code.map(|code| ("exit code", code.to_string())));
    lines.extend(why.signal.map(|signal| ("signal", signal.to_string())));
    if let Some(hash) = &why.hash {
        lines.extend([("specified", hash.specified.clone()), ("got", hash.got.clone())]);
    }
    if let Some(place) = &why.place {
        lines.push(("place", format!("{}:{}:{}", place.file, place.line, place.column)));
    }
    lines.extend(why.message.lines().map(|line| ("message", line.to_owned())));
    lines.extend(why.log_tail.iter().map(|line| ("log", line.clone())));
    lines.extend(
        why.needed_by
            .iter()
            .map(|derivation| ("needed by", path(derivation))),
    );
    if why.needed_by_left_out > 0 {
        lines.push(("needed by", format!("{} more", why.needed_by_left_out)));
    }
    lines.extend(
        why.also_failed
            .iter()
            .map(|derivation| ("also failed", path(derivation))),
    );
    lines.extend(why.differences.iter().map(|difference| {
        let at = difference.first_byte.map(|byte| format!(" from byte {byte} on"));
        let what = name_of(&difference.what).replace('_', " ");
        (
            "differs",
            format!("{}: {what}{}", difference.file, at.unwrap_or_default()),
        )
    }));
    if why.differences_left_out > 0 {
        lines.push(("differs", format!("{} more", why.differences_left_out)));
    }
    lines.extend(advice(why.kind).map(|advice| ("next", advice.replace("JOB", &job.to_string()))));
    lines
}

/// Returns what a person can do, where that does not depend on the message. JOB stands for the job's id.
fn advice(kind: FailureKind) -> Option<&'static str> {
    Some(match kind {
        FailureKind::BuilderFailed => "change the derivation; `leafctl nix log JOB` prints its whole log",
        FailureKind::HashMismatch => {
            "if what was fetched is what is meant, put the hash after got in the place of specified"
        }
        FailureKind::NotReproducible => {
            "compare the files with those of the second build, at the store path with .check behind it"
        }
        FailureKind::EvaluationError => "change the expression",
        FailureKind::MissingAttribute => "correct the name",
        FailureKind::MissingFile => {
            "correct the name. Paths are those of the leaf's machine: --local sends a flake of this one"
        }
        FailureKind::RefusedPackage => "allow the package in the configuration of nixpkgs, or choose another",
        FailureKind::LocksDiffer => "run `nix flake lock` in the flake, and commit flake.lock",
        FailureKind::FetchFailed => "try again; if it fails again, check the address and the network",
        FailureKind::TimedOut => "raise --time-limit, or look for what hangs",
        FailureKind::DiskFull => "free space on the leaf with `leafctl nix gc`",
        FailureKind::DependencyFailed => "build the dependency alone",
        FailureKind::Cancelled | FailureKind::Interrupted => "start it again, if it is still needed",
        FailureKind::OutOfMemory
        | FailureKind::OutputTooLarge
        | FailureKind::Policy
        | FailureKind::Unknown => return None,
    })
}

//! Follows a job to its end.

use leaf_core::command::{ReadJobLog, ShowJob};
use leaf_core::id::JobId;
use leaf_core::job::explanation::FailureKind;
use leaf_core::job::{BuiltDerivation, Job, JobPhase, Origin, Task};

use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::{Output, name_of, size};
use crate::progress::JobBar;

/// Follows a job to its end, with a progress bar on a terminal.
pub(crate) async fn follow(leaf: &Leaf, id: JobId, output: Output) -> Result<Job, Error> {
    // Subscribes before the first query, so that the job's end can't be missed in between.
    let mut hints = leaf.client.job_hints(&leaf.name, id).await?;
    let mut bar = JobBar::new(leaf.is_alone() && !output.is_json());
    let until_its_end = async {
        let mut offset = 0;
        loop {
            let report = leaf.call(&ShowJob { id }).await?;
            // After the state: the log of a job that has ended is complete.
            if bar.shows_log() {
                print_log(leaf, id, &mut offset, &mut bar).await?;
            }
            if report.job.phase.is_final() {
                return Ok(report.job);
            }
            if let Some(progress) = &report.progress {
                bar.progress(progress);
            }
            hints.next(leaf.look_again_after()).await;
        }
    };
    let job: Result<Job, Error> = tokio::select! {
        // First, so that the signal is handled from the beginning.
        biased;
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted {
            note: Some(format!(
                "job {id} continues; `leafctl nix log --follow {id}` shows it, `leafctl nix cancel {id}` ends it"
            )),
        }),
        job = until_its_end => job,
    };
    bar.finish();
    outcome(job?)
}

/// Returns a job that has succeeded, or why another one has not.
///
/// # Errors
/// [`Error::Job`].
pub(super) fn outcome(job: Job) -> Result<Job, Error> {
    let id = job.id;
    match job.phase {
        JobPhase::Succeeded => Ok(job),
        phase => Err(Error::Job {
            job: id,
            phase: name_of(&phase),
            reason: format!(
                "{}{}{}\n`leafctl nix why {id}` explains it, `leafctl nix log {id}` prints the whole log",
                job.error.as_deref().unwrap_or("the reason is unknown"),
                partial(&job),
                where_to_look(&job)
            ),
        }),
    }
}

/// Returns a line that tells where paths are looked for, if one was not found, with a line feed before it.
fn where_to_look(job: &Job) -> &'static str {
    let is_of_store = matches!(job.task, Task::Gc(_) | Task::Roots(_) | Task::Diff(_));
    match &job.explanation {
        Some(why)
            if why.kind == FailureKind::MissingFile
                && !is_of_store
                && !why.message.contains("/nix/store/") =>
        {
            "\npaths are those of the leaf's machine: --local sends a flake of this one"
        }
        _ => "",
    }
}

/// Returns a line for each derivation that was built all the same, each with a line feed before it.
fn partial(job: &Job) -> String {
    let lines = job.partial.iter().flat_map(|derivation| built(derivation, ""));
    lines
        .map(|(_, line)| format!("\nbuilt all the same: {line}"))
        .collect()
}

/// Prints what a job's log has from this offset on.
async fn print_log(leaf: &Leaf, id: JobId, offset: &mut u64, bar: &mut JobBar) -> Result<(), Error> {
    loop {
        let request = ReadJobLog { id, offset: *offset };
        let chunk = leaf.call(&request).await?;
        if !chunk.text.is_empty() {
            bar.log(&chunk.text);
        }
        let moved = chunk.next_offset > *offset;
        *offset = chunk.next_offset;
        if chunk.complete || !moved {
            return Ok(());
        }
    }
}

/// Returns a line for each output of a derivation.
pub(super) fn built<'a>(derivation: &BuiltDerivation, label: &'a str) -> Vec<(&'a str, String)> {
    let origin = derivation.origin.map_or("", origin_of);
    let closure = derivation.closure_size_bytes.map(size).unwrap_or_default();
    derivation
        .outputs
        .values()
        .map(|path| {
            (
                label,
                format!("{path}  {origin}  {closure}").trim_end().to_owned(),
            )
        })
        .collect()
}

pub(super) fn origin_of(origin: Origin) -> &'static str {
    match origin {
        Origin::Built => "built",
        Origin::Substituted => "substituted",
        Origin::Present => "it was in the store",
    }
}

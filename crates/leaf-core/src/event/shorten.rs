//! Shortens facts for a NATS server that accepts only small messages.

use super::{ContainerFact, Fact, JobFact, LeafFact};
use crate::job::{BuiltDerivation, JobResult};
use crate::text::shorten_text;

/// Shortens the texts and the lists of a fact to about this many bytes each: reasons, errors, the references of a result.
/// Identifiers, desired state and devices stay whole.
pub(crate) fn shorten(fact: &mut Fact, max_bytes: usize) {
    match fact {
        Fact::Leaf(LeafFact::Stopped(fact)) => shorten_text(&mut fact.reason, max_bytes),
        Fact::Container(ContainerFact::Failed(fact)) => shorten_text(&mut fact.reason, max_bytes),
        Fact::Container(ContainerFact::Reverted(fact)) => shorten_text(&mut fact.reason, max_bytes),
        Fact::Container(ContainerFact::Updated(fact)) => {
            if let Some(update) = &mut fact.last_update {
                update.shorten(max_bytes);
            }
        }
        Fact::Job(JobFact::Failed(fact)) => {
            shorten_text(&mut fact.error, max_bytes);
            shorten_derivations(&mut fact.partial, max_bytes);
            if let Some(explanation) = &mut fact.explanation {
                explanation.shorten(max_bytes);
            }
        }
        Fact::Job(JobFact::Interrupted(fact)) => shorten_text(&mut fact.reason, max_bytes),
        Fact::Job(JobFact::Succeeded(fact)) => shorten_result(&mut fact.result, max_bytes),
        _ => {}
    }
}

/// Shortens each list of a result to about this many bytes.
pub(crate) fn shorten_result(result: &mut JobResult, max_bytes: usize) {
    let build = match result {
        JobResult::Build(build) => build,
        JobResult::Eval(eval) => return eval.shorten(max_bytes),
        JobResult::PrintEnv(result) => return result.shorten(max_bytes),
        JobResult::Gc(result) => return result.shorten(max_bytes),
        JobResult::Roots(result) => return result.shorten(max_bytes),
        JobResult::Diff(result) => return result.shorten(max_bytes),
        JobResult::Check(result) => {
            shorten_derivations(&mut result.derivations, max_bytes);
            return;
        }
        JobResult::Run(run) => return run.shorten(max_bytes),
        JobResult::Verify(result) => return result.shorten(max_bytes),
    };
    let mut bytes = 0;
    let fits = build.references.iter().take_while(|path| {
        // Quotes and a comma.
        bytes += path.as_str().len() + 3;
        bytes <= max_bytes
    });
    let kept = fits.count();
    build.references_left_out += (build.references.len() - kept) as u64;
    build.references.truncate(kept);
    build.others_left_out += shorten_derivations(&mut build.others, max_bytes);
}

/// Shortens a list of derivations to about this many bytes, and returns the number of those that were left out.
fn shorten_derivations(derivations: &mut Vec<BuiltDerivation>, max_bytes: usize) -> u64 {
    let before = derivations.len();
    let mut bytes = 0;
    let fits = derivations.iter().take_while(|built| {
        let outputs = built
            .outputs
            .iter()
            .map(|(name, path)| name.len() + path.as_str().len());
        let derivation = built.derivation.as_ref().map_or(0, |path| path.as_str().len());
        // The names of the fields, numbers, quotes and commas.
        bytes += derivation + outputs.map(|output| output + 6).sum::<usize>() + 140;
        bytes <= max_bytes
    });
    let kept = fits.count();
    derivations.truncate(kept);
    (before - kept) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::JobFailed;
    use crate::id::JobId;
    use crate::job::JobFailureCause;

    #[test]
    fn the_beginning_and_the_end_of_a_long_text_are_kept() {
        let error = format!("the cause\n{}\nthe end", "é".repeat(10_000));
        let mut fact = Fact::from(JobFailed {
            id: JobId(uuid::Uuid::nil()),
            cause: JobFailureCause::Failed,
            error: error.clone(),
            partial: Vec::new(),
            explanation: None,
        });
        let before = fact.clone();
        shorten(&mut fact, error.len());
        assert_eq!(fact, before);
        shorten(&mut fact, 101);
        let Fact::Job(JobFact::Failed(JobFailed { error, .. })) = &fact else {
            panic!("it is the same fact");
        };
        assert!(
            error.starts_with("the cause\n") && error.ends_with("\nthe end"),
            "{error}"
        );
        assert!(error.len() < 160 && error.contains("bytes left out"), "{error}");
    }
}

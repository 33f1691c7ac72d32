//! Why Nix failed, from its error messages in order, in bounded space.

use leaf_core::id::StorePath;
use leaf_core::job::Explanation;
use leaf_core::job::explanation::{FailureKind, MOST_DERIVATIONS, Place};

use super::cause;
use super::errors::cut;

/// The maximum length of a message, in bytes.
const MESSAGE_BYTES: usize = 1024;

/// What the messages so far say.
#[derive(Debug, Default)]
pub(super) struct Causes {
    /// The first cause that is not the failure of a dependency; one of an unknown kind makes room for one that is known.
    first: Option<Explanation>,
    /// The derivations that failed since a dependency did, in order, and the number of those that are not kept.
    needed_by: Vec<StorePath>,
    left_out: u64,
    also_failed: Vec<StorePath>,
}

impl Causes {
    /// Adds an error message; `evaluates` is true before Nix builds, and `tail_of` returns the end of a derivation's log.
    pub(super) fn push(
        &mut self,
        message: &str,
        place: Option<Place>,
        evaluates: bool,
        tail_of: impl Fn(&StorePath) -> Option<Vec<String>>,
    ) {
        let cause = cause::read(message);
        let kind = cause.kind.unwrap_or(if place.is_some() || evaluates {
            FailureKind::EvaluationError
        } else {
            FailureKind::Unknown
        });
        if kind == FailureKind::DependencyFailed && cause.derivation.is_some() {
            return self.push_needed_by(cause.derivation);
        }
        let replaces = match &self.first {
            None => true,
            Some(first) => is_vague(first.kind) && !is_vague(kind),
        };
        if !replaces {
            return self.push_also_failed(cause.derivation);
        }
        let mut message = message.to_owned();
        cut(&mut message, MESSAGE_BYTES);
        self.first = Some(Explanation {
            kind,
            message,
            log_tail: cause.derivation.as_ref().and_then(tail_of).unwrap_or_default(),
            derivation: cause.derivation,
            exit_code: cause.exit_code,
            signal: cause.signal,
            place,
            hash: cause.hash,
            ..Explanation::default()
        });
    }

    fn push_needed_by(&mut self, derivation: Option<StorePath>) {
        let Some(derivation) = derivation.filter(|path| !self.needed_by.contains(path)) else {
            return;
        };
        if self.needed_by.len() < MOST_DERIVATIONS {
            self.needed_by.push(derivation);
        } else {
            self.left_out += 1;
        }
    }

    fn push_also_failed(&mut self, derivation: Option<StorePath>) {
        let first = self.first.as_ref().and_then(|first| first.derivation.as_ref());
        if let Some(derivation) = derivation
            && first != Some(&derivation)
            && !self.also_failed.contains(&derivation)
            && self.also_failed.len() < MOST_DERIVATIONS
        {
            self.also_failed.push(derivation);
        }
    }

    /// Returns the explanation of a failure with this error.
    pub(super) fn explanation(&self, error: &str) -> Explanation {
        let mut needed_by = self.needed_by.clone();
        let first = self.first.clone().unwrap_or_else(|| {
            let mut message = error.to_owned();
            cut(&mut message, MESSAGE_BYTES);
            let derivation = (!needed_by.is_empty()).then(|| needed_by.remove(0));
            let kind = match (cause::read(error).kind, &derivation) {
                (_, Some(_)) => FailureKind::DependencyFailed,
                (Some(kind), None) => kind,
                (None, None) => FailureKind::Unknown,
            };
            Explanation {
                derivation,
                ..Explanation::new(kind, message)
            }
        });
        Explanation {
            needed_by,
            needed_by_left_out: self.left_out,
            also_failed: self.also_failed.clone(),
            ..first
        }
    }
}

/// Returns whether a later message may say more.
fn is_vague(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Unknown | FailureKind::DependencyFailed)
}

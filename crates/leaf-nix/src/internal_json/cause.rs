//! What one error message of Nix says: the kind of failure, and what it is about. All rules are here.

use leaf_core::id::StorePath;
use leaf_core::job::explanation::{FailureKind, HashMismatch};

/// The meaning of a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Cause {
    /// The kind; `None` if no rule fits.
    pub(super) kind: Option<FailureKind>,
    pub(super) derivation: Option<StorePath>,
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) hash: Option<HashMismatch>,
}

/// Parts of messages and the kinds that they mean, from the particular to the general. The messages are those of Nix 2.8 to
/// 2.34 (`src/libexpr`, `src/libstore`, `src/libfetchers`), of nixpkgs (`check-meta.nix`), and of the kernel.
const KINDS: &[(&str, FailureKind)] = &[
    ("hash mismatch in", FailureKind::HashMismatch),
    ("may not be deterministic", FailureKind::NotReproducible),
    ("No space left on device", FailureKind::DiskFull),
    ("Disk quota exceeded", FailureKind::DiskFull),
    ("out of memory", FailureKind::OutOfMemory),
    ("Cannot allocate memory", FailureKind::OutOfMemory),
    ("std::bad_alloc", FailureKind::OutOfMemory),
    ("refusing to evaluate", FailureKind::RefusedPackage),
    (
        "is not available on the requested hostPlatform",
        FailureKind::RefusedPackage,
    ),
    ("requires lock file changes", FailureKind::LocksDiffer),
    ("cannot update unlocked flake input", FailureKind::LocksDiffer),
    ("cannot write modified lock file", FailureKind::LocksDiffer),
    ("allow-import-from-derivation", FailureKind::Policy),
    ("in pure eval mode", FailureKind::Policy),
    ("in pure evaluation mode", FailureKind::Policy),
    ("in restricted mode", FailureKind::Policy),
    ("is required to build", FailureKind::Policy),
    ("dependencies of derivation", FailureKind::DependencyFailed),
    ("dependencies couldn't be built", FailureKind::DependencyFailed),
    ("dependency failed", FailureKind::DependencyFailed),
    ("dependencies failed", FailureKind::DependencyFailed),
    ("builder failed", FailureKind::BuilderFailed),
    ("timed out after", FailureKind::TimedOut),
    ("does not provide attribute", FailureKind::MissingAttribute),
    ("in selection path", FailureKind::MissingAttribute),
    ("unable to download", FailureKind::FetchFailed),
    ("don't know how to build these paths", FailureKind::FetchFailed),
    (
        "is required, but there is no substituter that can build it",
        FailureKind::FetchFailed,
    ),
    ("cannot find flake", FailureKind::FetchFailed),
    ("No such file or directory", FailureKind::MissingFile),
    ("does not exist", FailureKind::MissingFile),
    ("was not found in the Nix search path", FailureKind::MissingFile),
    ("infinite recursion", FailureKind::EvaluationError),
    ("syntax error", FailureKind::EvaluationError),
    ("undefined variable", FailureKind::EvaluationError),
];

/// Reads a message without terminal sequences.
pub(super) fn read(message: &str) -> Cause {
    let mut cause = Cause {
        derivation: derivation(message),
        ..Cause::default()
    };
    // What a message quotes of a builder's log says nothing about the kind.
    let said = message.split("last ").next().unwrap_or(message);
    if message.starts_with("builder for '") || message.contains("builder failed") {
        cause.kind = Some(FailureKind::BuilderFailed);
        cause.exit_code = number_after(message, "exit code ");
        cause.signal = number_after(message, "signal ");
    } else if message.starts_with("attribute '") && said.contains("' missing") {
        cause.kind = Some(FailureKind::MissingAttribute);
    } else {
        let known = KINDS.iter().find(|(part, _)| said.contains(part));
        cause.kind = known.map(|(_, kind)| *kind);
    }
    if cause.kind == Some(FailureKind::HashMismatch) {
        cause.hash = hashes(message);
    }
    cause
}

/// Returns the first derivation that a message names.
fn derivation(message: &str) -> Option<StorePath> {
    let mut quoted = message.split('\'').skip(1).step_by(2);
    quoted.find_map(|text| {
        // Some name an output, too: `…-hello.drv!out`.
        let path = text.split('!').next().unwrap_or(text);
        StorePath::new(path)
            .ok()
            .filter(|path| path.as_str().ends_with(".drv"))
    })
}

fn number_after(message: &str, word: &str) -> Option<i32> {
    let rest = message.split_once(word)?.1;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

fn hashes(message: &str) -> Option<HashMismatch> {
    let after = |word: &str| {
        let rest = message.split_once(word)?.1;
        rest.split_whitespace().next().map(str::to_owned)
    };
    Some(HashMismatch {
        specified: after("specified:")?,
        got: after("got:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/nix/store/f1f8fmr0xmk37zcnlw5h9568p5r8rqf0-hello-1.0.drv";

    #[test]
    fn messages_of_newer_versions_mean_what_those_of_2_8_mean() {
        let of = |message: &str| read(&message.replace("DRV", DRV));
        let failed = of(
            "Cannot build 'DRV'.\nReason: builder failed with exit code 3.\nLast 1 log lines:\n> out of memory",
        );
        assert_eq!(
            (failed.kind, failed.exit_code),
            (Some(FailureKind::BuilderFailed), Some(3))
        );
        assert_eq!(failed.derivation.expect("a derivation").as_str(), DRV);
        let killed = of(
            "builder for 'DRV' failed due to signal 9 (Killed);\n       last 1 log lines:\n       > exit code 4",
        );
        assert_eq!(
            (killed.kind, killed.signal),
            (Some(FailureKind::BuilderFailed), Some(9))
        );
        for (message, kind) in [
            (
                "Cannot build 'DRV'.\nReason: 1 dependency failed.",
                FailureKind::DependencyFailed,
            ),
            (
                "1 dependencies of derivation 'DRV' failed to build",
                FailureKind::DependencyFailed,
            ),
            (
                "access to absolute path '/etc' is forbidden in pure evaluation mode (use '--impure' to override)",
                FailureKind::Policy,
            ),
            (
                "cannot update unlocked flake input 'x' in pure mode",
                FailureKind::LocksDiffer,
            ),
            ("writing to file: No space left on device", FailureKind::DiskFull),
            (
                "Package 'x' is marked as broken, refusing to evaluate.",
                FailureKind::RefusedPackage,
            ),
        ] {
            assert_eq!(of(message).kind, Some(kind), "{message}");
        }
        assert_eq!(of("something else").kind, None);
    }
}

//! The log of a program that does not write `internal-json`: its last lines, and the failure of a job by them.

use leaf_core::job::Failure;
use leaf_core::job::explanation::{Explanation, FailureKind};
use leaf_core::job::process::End;

use crate::internal_json::cut;

/// The number of lines that are kept.
const LINES: usize = 10;
/// The maximum length of an error, in bytes.
const ERROR_BYTES: usize = 4096;
/// The maximum length of an explanation's message, in bytes.
const MESSAGE_BYTES: usize = 1024;

/// The end of a store path's absence as an error.
const ABSENT: &str = "is not in the store";

/// The last lines of a log.
#[derive(Debug, Default)]
pub(crate) struct PlainLog(Vec<String>);

impl PlainLog {
    /// Keeps a line.
    pub(crate) fn push(&mut self, line: String) {
        self.0.push(line);
        if self.0.len() > LINES {
            self.0.remove(0);
        }
    }

    /// Returns the error of Nix, as far as there is one, in at most 4 KiB.
    pub(crate) fn error(&self) -> Option<String> {
        let of_nix = self.0.iter().position(|line| line.starts_with("error:"));
        let mut error = self.0.get(of_nix?..)?.join("\n");
        cut(&mut error, ERROR_BYTES);
        Some(error.trim_start_matches("error:").trim().to_owned())
    }
}

/// Returns the error about a store path that is not there.
pub(crate) fn absent(path: &str) -> String {
    format!("{path} {ABSENT}")
}

/// Returns the failure of a job with this error.
pub(crate) fn failure(error: String, end: End) -> Failure {
    let kind = match end {
        End::TimedOut => FailureKind::TimedOut,
        End::TooMuchOutput => FailureKind::OutputTooLarge,
        _ if error.ends_with(ABSENT) => FailureKind::MissingFile,
        _ => FailureKind::Unknown,
    };
    let mut message = error.clone();
    cut(&mut message, MESSAGE_BYTES);
    Failure {
        explanation: Some(Box::new(Explanation::new(kind, message))),
        error,
        partial: Vec::new(),
    }
}

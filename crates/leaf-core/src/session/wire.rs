//! The messages between leafd and the runner of a program.

use crate::job::ProgramExit;
use serde::{Deserialize, Serialize};

/// The version of these messages.
pub const VERSION: u32 = 1;

/// A message of leafd to the runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum ToRunner {
    /// Send the next output, once there is some: from these offsets on, of the streams that have one. It replaces the one before.
    Pull {
        /// The offset in standard output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdout: Option<u64>,
        /// The offset in standard error.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stderr: Option<u64>,
        /// The most bytes.
        max: usize,
        /// Its number, which the output has as well.
        number: u64,
    },
    /// All before these offsets has been received.
    Free {
        /// The offset in standard output.
        stdout: u64,
        /// The offset in standard error.
        stderr: u64,
    },
    /// The raw bytes are standard input, from this offset on.
    Input {
        /// The offset of the first byte.
        offset: u64,
    },
    /// Standard input ends here.
    EndInput {
        /// Its length.
        at: u64,
    },
    /// The terminal has this size.
    Resize {
        /// The columns.
        columns: u16,
        /// The rows.
        rows: u16,
    },
    /// Send this signal, such as `INT`.
    Signal {
        /// Its name.
        name: String,
    },
    /// Whether a client is attached: without one a terminal drops its oldest output.
    Attached {
        /// Whether there is one.
        attached: bool,
    },
    /// The client has all, or will not come back: end, once the program has ended.
    Finish,
}

/// A message of the runner to leafd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum FromRunner {
    /// The first one.
    Hello {
        /// The version of the messages.
        version: u32,
        /// What is kept of standard output.
        stdout: Kept,
        /// What is kept of standard error.
        stderr: Kept,
        /// The state of standard input.
        input: Input,
        /// How the program ended, if it has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<ProgramExit>,
    },
    /// The raw bytes are output.
    Output {
        /// The stream.
        stream: Stream,
        /// The offset of the first byte.
        offset: u64,
        /// The number of the pull.
        number: u64,
    },
    /// Standard input was taken, or has more room.
    Taken(Input),
    /// The program has ended, and its outputs are read to their ends.
    Exited {
        /// How it ended.
        exit: ProgramExit,
        /// The length of standard output.
        stdout: u64,
        /// The length of standard error.
        stderr: u64,
    },
}

/// A range of an output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The offset of the first byte.
    pub first: u64,
    /// The offset behind the last one.
    pub end: u64,
}

/// The state of standard input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// The number of bytes that were taken.
    pub end: u64,
    /// The number of bytes that there is room for.
    pub room: u64,
    /// Whether the program takes no more, or the client ended it.
    pub closed: bool,
}

/// An output of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output; the only one of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

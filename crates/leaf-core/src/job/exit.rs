//! The end of a program.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProgramExit {
    /// By itself, with this exit code.
    Code(i32),
    /// By this signal, such as `KILL`.
    Signal(String),
}

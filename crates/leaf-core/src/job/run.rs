//! The task `nix run`: packages, and a program that is run with them.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Installable;
use super::build::check_all;
use super::exit::ProgramExit;
use crate::id::StorePath;
use crate::session::SessionTask;

/// The number of bytes of each output that a result has at most: the last ones.
pub const TAIL_BYTES: usize = 32 * 1024;
/// The number of programs of a leaf that run or wait at the same time.
pub const MOST_PROGRAMS: usize = 16;
/// The number of them that are one caller's.
pub const MOST_OF_A_CALLER: usize = 8;
const MOST_ARGUMENTS: usize = 256;
const MAX_ARGUMENT_BYTES: usize = 32 * 1024;
const MOST_VARIABLES: usize = 64;
const MAX_VARIABLE_BYTES: usize = 32 * 1024;

/// The task of a program that is run with packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunTask {
    /// The packages: they are built first, and their `bin` directories are the beginning of the program's `PATH`.
    pub packages: Vec<Installable>,
    /// The program, a path or a name that is looked up on its `PATH`, and its arguments.
    pub command: Vec<String>,
    /// Variables of its environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Whether its `PATH` has nothing but the packages.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pure: bool,
    /// The time limit, in seconds: of the build, and again of the program.
    /// For a session it holds for the build only.
    pub timeout_seconds: u32,
    /// The session through which its input and output go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionTask>,
}

impl RunTask {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// The reason, for the caller.
    pub fn check(&self) -> Result<(), String> {
        check_all(&self.packages)?;
        check_command(&self.command)?;
        check_environment(&self.environment)?;
        self.session.as_ref().map_or(Ok(()), SessionTask::check)
    }
}

/// Checks a program and its arguments.
pub(super) fn check_command(command: &[String]) -> Result<(), String> {
    if command.first().is_none_or(String::is_empty) {
        return Err("the command names no program".to_owned());
    }
    let arguments: usize = command.iter().map(String::len).sum();
    if command.len() > MOST_ARGUMENTS || arguments > MAX_ARGUMENT_BYTES {
        return Err(format!(
            "the command has {} words of {arguments} bytes: at most {MOST_ARGUMENTS} of {MAX_ARGUMENT_BYTES} bytes together are taken",
            command.len()
        ));
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err("the command has a NUL character".to_owned());
    }
    Ok(())
}

/// Checks the variables of a program's environment.
pub(super) fn check_environment(environment: &BTreeMap<String, String>) -> Result<(), String> {
    let variables: usize = environment
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if environment.len() > MOST_VARIABLES || variables > MAX_VARIABLE_BYTES {
        return Err(format!(
            "the environment has {} variables of {variables} bytes: at most {MOST_VARIABLES} of {MAX_VARIABLE_BYTES} bytes together are taken",
            environment.len()
        ));
    }
    if let Some(name) = environment.keys().find(|name| !is_variable(name)) {
        return Err(format!(
            "{name:?} is no name of a variable: letters, digits and _, and no digit first"
        ));
    }
    if environment.values().any(|value| value.contains('\0')) {
        return Err("the environment has a NUL character".to_owned());
    }
    Ok(())
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The end of a program that was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunResult {
    /// How it ended. A program that is not found ends with code 127, one that can't be run with 126.
    pub exit: ProgramExit,
    /// The wall-clock time of the program, in milliseconds.
    pub run_time_ms: u64,
    /// The end of its standard output.
    #[serde(default, skip_serializing_if = "Tail::is_empty")]
    pub stdout: Tail,
    /// The end of its standard error.
    #[serde(default, skip_serializing_if = "Tail::is_empty")]
    pub stderr: Tail,
    /// The outputs of the packages, on whose `bin` directories it was run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<StorePath>,
}

/// The last bytes of an output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tail {
    /// The bytes, if they are text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// The bytes in base64, if they are not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub base64: String,
    /// The number of bytes before them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out_bytes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Tail {
    /// Returns the last [`TAIL_BYTES`] of an output, `before` of whose bytes were dropped already.
    #[must_use]
    pub fn of(bytes: &[u8], before: u64) -> Self {
        let mut cut = bytes.len().saturating_sub(TAIL_BYTES);
        // Text that is cut begins with a whole character.
        while cut > 0 && cut < bytes.len() && bytes[cut] & 0xC0 == 0x80 {
            cut += 1;
        }
        let kept = &bytes[cut..];
        let left_out_bytes = before + cut as u64;
        let start = if before == 0 {
            kept
        } else {
            // What was dropped may have ended within a character.
            let whole = kept
                .iter()
                .take(3)
                .take_while(|byte| *byte & 0xC0 == 0x80)
                .count();
            &kept[whole..]
        };
        let tail = Self {
            left_out_bytes,
            ..Self::default()
        };
        match std::str::from_utf8(start) {
            Ok(text) if !text.contains('\0') => Self {
                text: text.to_owned(),
                left_out_bytes: left_out_bytes + (kept.len() - start.len()) as u64,
                ..tail
            },
            _ => Self {
                base64: BASE64.encode(kept),
                ..tail
            },
        }
    }

    /// Returns the bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        if self.base64.is_empty() {
            return self.text.clone().into_bytes();
        }
        BASE64.decode(self.base64.as_bytes()).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn shorten(&mut self, max_bytes: usize) {
        let bytes = self.bytes();
        let mut keep = bytes.len();
        while keep > 0 {
            let shorter = Self::of(
                &bytes[bytes.len() - keep..],
                self.left_out_bytes + (bytes.len() - keep) as u64,
            );
            if serde_json::to_string(&shorter).is_ok_and(|json| json.len() <= max_bytes.max(64)) {
                *self = shorter;
                return;
            }
            keep /= 2;
        }
        *self = Self {
            left_out_bytes: self.left_out_bytes + bytes.len() as u64,
            ..Self::default()
        };
    }
}

impl RunResult {
    /// Shortens each output to about this many bytes of JSON, and leaves the packages out if they are longer.
    pub(crate) fn shorten(&mut self, max_bytes: usize) {
        self.stdout.shorten(max_bytes);
        self.stderr.shorten(max_bytes);
        let packages: usize = self.packages.iter().map(|path| path.as_str().len() + 3).sum();
        if packages > max_bytes {
            self.packages.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_can_not_be_run_is_refused_with_the_reason() {
        let good = RunTask {
            packages: vec![Installable::Flake {
                reference: "nixpkgs#hello".to_owned(),
            }],
            command: vec!["hello".to_owned(), "--greeting=$(id); \n".to_owned()],
            environment: [("A_1".to_owned(), "x y".to_owned())].into(),
            pure: false,
            timeout_seconds: 60,
            session: None,
        };
        assert_eq!(good.check(), Ok(()));
        let with = |change: fn(&mut RunTask)| {
            let mut task = good.clone();
            change(&mut task);
            task.check().expect_err("refused")
        };
        for (why, says) in [
            (with(|task| task.packages.clear()), "install"),
            (with(|task| task.command.clear()), "no program"),
            (with(|task| task.command[0].clear()), "no program"),
            (with(|task| task.command.push("x".repeat(40_000))), "bytes"),
            (with(|task| task.command.push("a\0".to_owned())), "NUL"),
            (
                with(|task| {
                    task.environment.insert("1a".to_owned(), String::new());
                }),
                "no name",
            ),
            (
                with(|task| {
                    task.environment.insert("A=B".to_owned(), String::new());
                }),
                "no name",
            ),
            (
                with(|task| {
                    task.environment.insert("A".to_owned(), "x".repeat(40_000));
                }),
                "bytes",
            ),
        ] {
            assert!(why.contains(says), "{why}");
        }
    }

    #[test]
    fn the_end_of_an_output_is_text_or_else_base64_and_never_half_a_character() {
        assert_eq!(Tail::of(b"", 0), Tail::default());
        let text = "é".repeat(TAIL_BYTES);
        let tail = Tail::of(text.as_bytes(), 0);
        assert_eq!(
            (tail.text.len(), tail.left_out_bytes as usize),
            (TAIL_BYTES, text.len() - TAIL_BYTES)
        );
        let odd = format!("x{}", "é".repeat(TAIL_BYTES));
        let tail = Tail::of(odd.as_bytes(), 0);
        assert!(tail.base64.is_empty() && tail.text.starts_with('é'));
        assert_eq!(tail.text.len() + tail.left_out_bytes as usize, odd.len());
        let cut = &"é!".as_bytes()[1..];
        assert_eq!(
            (Tail::of(cut, 1).text.as_str(), Tail::of(cut, 1).left_out_bytes),
            ("!", 2)
        );
        let binary = [0xff, 0, 1, 2];
        assert_eq!(Tail::of(&binary, 0).bytes(), binary);
        assert_eq!(Tail::of(b"a\0b", 0).bytes(), b"a\0b");
    }

    #[test]
    fn outputs_are_shortened_to_their_end() {
        let mut tail = Tail::of("0123456789".repeat(100).as_bytes(), 7);
        tail.shorten(300);
        assert!(tail.text.ends_with("789") && tail.text.len() < 300, "{tail:?}");
        assert_eq!(tail.text.len() as u64 + tail.left_out_bytes, 1007);
    }
}

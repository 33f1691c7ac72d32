//! The task `nix develop`: a shell in the environment of a derivation, or with packages.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Installable;
use super::build::check_all;
use super::run::{check_command, check_environment};
use crate::session::SessionTask;

/// The maximum size of a shell hook, in bytes.
const MAX_HOOK_BYTES: usize = 16 * 1024;

/// The task of a development shell. Its result is that of a program: [`RunResult`](super::RunResult).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DevelopTask {
    /// The flake reference, the file or the derivation whose build environment it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installable: Option<Installable>,
    /// The packages whose `bin` directories are the beginning of its `PATH`, if there is no installable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<Installable>,
    /// The program that the shell becomes, and its arguments. Without it, the shell is interactive on a terminal, and reads its commands
    /// from its standard input else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Bash commands that are run last, before the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell_hook: Option<String>,
    /// Variables of its environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Whether its `PATH` has no directory of the host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pure: bool,
    /// Whether a flake is evaluated impurely.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub impure: bool,
    /// The time limit, in seconds: of the build, and again of the program.
    /// For a session it holds for the build only.
    pub timeout_seconds: u32,
    /// The session through which its input and output go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionTask>,
}

impl DevelopTask {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// The reason, for the caller.
    pub fn check(&self) -> Result<(), String> {
        match &self.installable {
            Some(_) if !self.packages.is_empty() => {
                return Err("give either installable or packages, not both".to_owned());
            }
            Some(installable) => installable.check_derivation("build environment")?,
            None if self.impure => {
                return Err("impure is of an installable, and packages have none".to_owned());
            }
            None => check_all(&self.packages)?,
        }
        match &self.session {
            None if self.command.is_empty() => {
                return Err("a shell without a session has no input: give a command".to_owned());
            }
            None => {}
            Some(session) => session.check()?,
        }
        if !self.command.is_empty() {
            check_command(&self.command)?;
        }
        let hook = self.shell_hook.as_deref().unwrap_or_default();
        if hook.len() > MAX_HOOK_BYTES {
            return Err(format!(
                "the shell hook has {} bytes: at most {MAX_HOOK_BYTES} are taken",
                hook.len()
            ));
        }
        if hook.contains('\0') {
            return Err("the shell hook has a NUL character".to_owned());
        }
        check_environment(&self.environment)
    }
}

/// What the bash of a development shell begins with: made by leaf-nix, for the runner of leaf-job, in whose order it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shell {
    /// How bash reads the script.
    pub start: ShellStart,
    /// The commands that set up the environment.
    pub script: String,
    /// Further files, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// Texts in the script and the files, and what the runner puts in their place: the path of a file of `files`, or of a directory
    /// below the program's home.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub paths: BTreeMap<String, ShellPath>,
    /// The directories in which bash is looked for after the packages' and the host's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bash_directories: Vec<String>,
}

/// How a bash reads its script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShellStart {
    /// As its rc file: it is interactive.
    Interactive,
    /// Before the commands of its standard input.
    Input,
    /// As its only commands, of which the last becomes another program.
    Command,
}

/// A path that only the runner of a program knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShellPath {
    /// A file of the shell.
    File(String),
    /// A path below the program's home.
    Home(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::StorePath;

    fn flake(reference: &str) -> Installable {
        Installable::Flake {
            reference: reference.to_owned(),
        }
    }

    #[test]
    fn a_shell_that_can_not_be_is_refused_with_the_reason() {
        let good = DevelopTask {
            installable: Some(flake("github:o/r#hello")),
            packages: Vec::new(),
            command: vec!["make".to_owned(), "-j4; \n".to_owned()],
            shell_hook: Some("echo \u{1b}[31m; exit".to_owned()),
            environment: [("A_1".to_owned(), "x y".to_owned())].into(),
            pure: false,
            impure: false,
            timeout_seconds: 60,
            session: None,
        };
        assert_eq!(good.check(), Ok(()));
        let with = |change: fn(&mut DevelopTask)| {
            let mut task = good.clone();
            change(&mut task);
            task.check()
        };
        let of_packages = with(|task| {
            task.installable = None;
            task.packages = vec![flake("nixpkgs#go")];
        });
        assert_eq!(of_packages, Ok(()));
        for (why, says) in [
            (with(|task| task.packages.push(flake("nixpkgs#go"))), "not both"),
            (with(|task| task.installable = None), "install"),
            (
                with(|task| {
                    let path = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a");
                    task.installable = path.ok().map(|path| Installable::StorePath { path });
                }),
                "no build environment",
            ),
            (
                with(|task| task.installable = Some(flake("github:o/r#hello^dev"))),
                "^dev",
            ),
            (
                with(|task| {
                    task.installable = None;
                    task.packages = vec![flake("nixpkgs#go")];
                    task.impure = true;
                }),
                "impure",
            ),
            (with(|task| task.command.clear()), "give a command"),
            (with(|task| task.command[0].clear()), "no program"),
            (with(|task| task.shell_hook = Some("x".repeat(20_000))), "bytes"),
            (with(|task| task.shell_hook = Some("a\0".to_owned())), "NUL"),
            (
                with(|task| {
                    task.environment.insert("A B".to_owned(), String::new());
                }),
                "no name",
            ),
        ] {
            let why = why.expect_err(says);
            assert!(why.contains(says), "{why}");
        }
    }
}

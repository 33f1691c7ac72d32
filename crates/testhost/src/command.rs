//! Runs programs, and finds programs and directories.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Returns the directory of the checkout that this was started in; several checkouts may share a build directory.
pub fn workspace() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = here.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    here.ancestors()
        .nth(2)
        .expect("a crate is two directories below the workspace")
        .to_owned()
}

/// Returns the directory that cargo builds in.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => workspace().join(directory),
        None => workspace().join("target"),
    }
}

/// Returns the `cargo` that started this program, to run in the checkout.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// Returns the path of a program on PATH or in the directories of root's programs.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| is_executable(file))
}

/// Returns whether a file exists and is executable.
pub fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Returns the command line as it would be typed.
pub fn line(command: &Command) -> String {
    let quote = |text: &OsStr| {
        let text = text.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
        if !text.is_empty() && text.chars().all(plain) {
            text.into_owned()
        } else {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
    };
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(quote)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Returns the command line as it would be typed with the program on PATH.
pub fn typed(command: &Command) -> String {
    let text = line(command);
    let program = command.get_program().to_string_lossy();
    let name = program.rsplit('/').next().unwrap_or(&program);
    match text.split_once(' ') {
        Some((_, args)) => format!("{name} {args}"),
        None => name.to_owned(),
    }
}

/// Runs a command with this process's output.
///
/// # Errors
/// If it can't be run or does not exit with 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("can't run {line}"))?;
    if !status.success() {
        bail!("{line} ended with {status}");
    }
    Ok(())
}

/// Runs a command, and returns its stdout.
///
/// # Errors
/// If it can't be run or does not exit with 0; the text contains its stderr.
pub fn output(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run {line}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{line} ended with {}: {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("leafctl");
        command.args(["--context", "/tmp/a b", "it's", ""]);
        assert_eq!(line(&command), r"leafctl --context '/tmp/a b' 'it'\''s' ''");
    }

    #[test]
    fn a_command_is_typed_without_its_directory() {
        let mut command = Command::new("/some/where/leafctl");
        command.args(["leaf", "show"]);
        assert_eq!(typed(&command), "leafctl leaf show");
    }

    #[test]
    fn a_command_that_fails_says_how_and_why() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).expect_err("it fails");
        let text = format!("{error:#}");
        assert!(
            text.contains("exit status: 3") && text.contains("broken"),
            "{text}"
        );
    }
}

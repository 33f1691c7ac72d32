//! The files of a development shell, and the command that starts its bash.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use leaf_core::job::Shell;
use leaf_core::job::develop::{ShellPath, ShellStart};

use super::start::found;
use super::{HOST_PATH, ProgramOrder, path};

/// The name of the script.
const SCRIPT: &str = "rc";

/// Writes the script and the files of a shell into an empty directory, for this user, and returns the script's path.
///
/// # Errors
/// One of them can't be written, or has a name that is none of a file.
pub(super) fn write(shell: &Shell, directory: &Path, home: &Path, user: Option<u32>) -> io::Result<PathBuf> {
    let files = shell.files.iter().map(|(name, text)| (name.as_str(), text));
    for (name, text) in files.chain([(SCRIPT, &shell.script)]) {
        if name.contains('/') || matches!(name, "" | "." | "..") {
            return Err(io::Error::other(format!("{name:?} is no name of a file")));
        }
        let path = directory.join(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(placed(shell, text, directory, home).as_bytes())?;
        if user.is_some() {
            std::os::unix::fs::fchown(&file, user, user)?;
        }
    }
    Ok(directory.join(SCRIPT))
}

/// Returns a text with the paths that only the runner knows.
fn placed(shell: &Shell, text: &str, directory: &Path, home: &Path) -> String {
    let mut text = text.to_owned();
    for (from, to) in shell.paths.iter().filter(|(from, _)| !from.is_empty()) {
        let to = match to {
            ShellPath::File(name) => directory.join(name),
            ShellPath::Home(path) => home.join(path),
        };
        text = text.replace(from, &to.to_string_lossy());
    }
    text
}

/// Returns the command that starts the bash of a shell.
pub(super) fn command(shell: &Shell, order: &ProgramOrder, script: &Path) -> Vec<String> {
    let mut directories = vec![path(&order.packages, true), HOST_PATH.to_owned()];
    directories.extend(shell.bash_directories.iter().cloned());
    // Where there is none, the program's process says so.
    let bash = found("bash", &directories.join(":")).unwrap_or_else(|_| "bash".into());
    let text = |path: &Path| path.to_string_lossy().into_owned();
    match shell.start {
        ShellStart::Interactive => vec![text(&bash), "--rcfile".to_owned(), text(script)],
        ShellStart::Input => vec![text(&bash), "-s".to_owned()],
        ShellStart::Command => vec![text(&bash), text(script)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_script_gets_the_paths_that_only_the_runner_knows_and_a_file_leaves_no_directory() {
        let scratch = tempfile::tempdir().expect("a directory");
        let out = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a-env";
        let mut shell = Shell {
            start: ShellStart::Command,
            script: format!("out='{out}'\nattrs='/build/.attrs.sh'\n"),
            files: BTreeMap::from([(".attrs.sh".to_owned(), format!("out={out}"))]),
            paths: BTreeMap::from([
                (out.to_owned(), ShellPath::Home("outputs/out".to_owned())),
                (
                    "/build/.attrs.sh".to_owned(),
                    ShellPath::File(".attrs.sh".to_owned()),
                ),
                (String::new(), ShellPath::Home("x".to_owned())),
            ]),
            bash_directories: Vec::new(),
        };
        let script = write(&shell, scratch.path(), Path::new("/h"), None).expect("written");
        let read = |path: &Path| std::fs::read_to_string(path).expect("a file");
        let attrs = scratch.path().join(".attrs.sh");
        assert_eq!(
            read(&script),
            format!("out='/h/outputs/out'\nattrs='{}'\n", attrs.display())
        );
        assert_eq!(read(&attrs), "out=/h/outputs/out");
        shell.files = BTreeMap::from([("../x".to_owned(), String::new())]);
        write(&shell, scratch.path(), Path::new("/h"), None).expect_err("it leads out");
    }
}

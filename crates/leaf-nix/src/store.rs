//! Adds store paths that callers sent, and reads those that they get, as `docs/protocol/transfers.md` says: what the store has and lacks,
//! adding, and holding.
//!
//! Nix adds them from a directory that has the form of a binary cache. So it compares hashes and content addresses, and asks for the
//! signature of a trusted key where a name does not follow from the contents. Nothing here switches that off.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use leaf_core::error::chain;
use leaf_core::id::StorePath;
use leaf_core::transfer::path_info::sent_paths;
use leaf_core::transfer::{SentPath, cache};
use leaf_host::process::{self, Bounds};
use tokio::process::{Child, Command};

use crate::NixError;
use crate::nix::Nix;
use crate::path_info::JSON_FORMAT;

/// The bounds of looking and of holding.
const SHORT: Bounds = Bounds {
    time: Duration::from_secs(120),
    stdout_bytes: 1 << 20,
    stderr_bytes: 8 << 10,
};
/// The bounds of adding: gigabytes on a slow disk.
const LONG: Bounds = Bounds {
    time: Duration::from_secs(2 * 3600),
    ..SHORT
};

/// Writes the descriptions of a binary cache in a directory in which the NARs are.
///
/// # Errors
/// A file can't be written.
pub fn write_cache(directory: &Path, paths: &[SentPath]) -> io::Result<()> {
    fs::write(directory.join(cache::INFO_NAME), cache::INFO)?;
    for (number, sent) in paths.iter().enumerate() {
        let name = cache::narinfo_name(&sent.path);
        fs::write(directory.join(name), cache::narinfo(number, sent))?;
    }
    Ok(())
}

fn is_derivation(path: &StorePath) -> bool {
    path.as_str().ends_with(".drv")
}

/// The bounds of listing closures.
const LISTS: Bounds = Bounds {
    stdout_bytes: 32 << 20,
    ..SHORT
};

impl Nix {
    /// Returns what Nix says of valid paths of the store, or of all of their closure, in any order.
    ///
    /// # Errors
    /// [`NixError::Store`]: one of them is not in the store.
    pub async fn stored(&self, paths: &[StorePath], closure: bool) -> Result<Vec<SentPath>, NixError> {
        let what = "can't look into the store";
        let version = self.check().await?;
        let (derivations, others): (Vec<&StorePath>, _) = paths.iter().partition(|path| is_derivation(path));
        let mut all: Vec<SentPath> = Vec::new();
        for (paths, flags) in [(others, &[][..]), (derivations, &["--derivation"])] {
            if paths.is_empty() {
                continue;
            }
            let mut command = self.store_command("nix");
            command.args([
                "path-info",
                "--extra-experimental-features",
                "nix-command",
                "--json",
            ]);
            // Without it the newest Nix warns, and later ones fail.
            if version.is_since(JSON_FORMAT) {
                command.args(["--json-format", "1"]);
            }
            command.args(flags).args(closure.then_some("--recursive"));
            command.arg("--").args(paths.iter().map(|path| path.as_str()));
            let stdout = run(what, command, LISTS).await?;
            let listed = sent_paths(stdout.as_bytes()).map_err(|why| NixError::Store { what, why })?;
            all.extend(listed);
        }
        let mut seen = BTreeSet::new();
        all.retain(|sent| seen.insert(sent.path.clone()));
        Ok(all)
    }

    /// Starts the program that prints the NAR of a path of the store.
    ///
    /// # Errors
    /// It can't be started.
    pub fn dump(&self, path: &StorePath) -> io::Result<Child> {
        let mut command = self.store_command("nix");
        command.args([
            "store",
            "dump-path",
            "--extra-experimental-features",
            "nix-command",
        ]);
        command.args(is_derivation(path).then_some("--derivation"));
        command
            .arg("--")
            .arg(path.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }

    /// Returns those of these paths that are not in the store.
    ///
    /// # Errors
    /// [`NixError::Store`].
    pub async fn lacking<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<BTreeSet<StorePath>, NixError> {
        let mut command = self.store_command("nix-store");
        command.args(["--check-validity", "--print-invalid"]);
        command.args(paths.into_iter().map(StorePath::as_str));
        let stdout = run("can't look into the store", command, SHORT).await?;
        let lines = stdout.lines().filter(|line| !line.trim().is_empty());
        let paths = lines.map(|line| StorePath::new(line.trim()));
        paths.collect::<Result<_, _>>().map_err(|error| NixError::Store {
            what: "can't look into the store",
            why: error.to_string(),
        })
    }

    /// Adds paths from a binary cache in a directory, without what they refer to.
    ///
    /// # Errors
    /// [`NixError::Store`]: Nix finds another hash or no signature that it trusts, lacks what a path refers to, or the disk is full.
    pub async fn add_from(&self, directory: &Path, paths: &[SentPath]) -> Result<(), NixError> {
        let (derivations, others): (Vec<&StorePath>, _) = paths
            .iter()
            .map(|sent| &sent.path)
            .partition(|path| is_derivation(path));
        for (paths, flags) in [(others, &[][..]), (derivations, &["--derivation"])] {
            if paths.is_empty() {
                continue;
            }
            let mut command = self.store_command("nix");
            command.args(["copy", "--extra-experimental-features", "nix-command"]);
            // Without the flag, a derivation would mean its outputs, and be built.
            command.args(flags).args(["--no-recursive", "--from"]);
            command.arg(format!("file://{}", directory.display()));
            command.arg("--").args(paths.iter().map(|path| path.as_str()));
            run("can't add the paths to the store", command, LONG).await?;
        }
        Ok(())
    }

    /// Holds paths of the store by links in a directory, which become roots of the garbage collector. Derivations are left out: Nix has
    /// no way to hold one that neither builds it nor evaluates something.
    ///
    /// # Errors
    /// [`NixError::Store`]: a path is not in the store, or a link can't be made.
    pub async fn hold(&self, directory: &Path, paths: &[StorePath]) -> Result<(), NixError> {
        let failed = |error: io::Error| NixError::Store {
            what: "can't hold the paths in the store",
            why: format!("{}: {error}", directory.display()),
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let others: Vec<&StorePath> = paths.iter().filter(|path| !is_derivation(path)).collect();
        if !others.is_empty() {
            let mut command = self.store_command("nix-store");
            command
                .arg("--realise")
                .args(others.iter().map(|path| path.as_str()));
            command.arg("--add-root").arg(directory.join("path"));
            run("can't hold the paths in the store", command, SHORT).await?;
        }
        Ok(())
    }

    fn store_command(&self, program: &str) -> Command {
        let mut command = Command::new(match program {
            "nix" => self.0.nix.clone(),
            other => self.0.nix.with_file_name(other),
        });
        for (name, value) in &self.0.options {
            command.args(["--option", name, value]);
        }
        command
    }
}

/// Runs a program, and returns its output.
async fn run(what: &'static str, command: Command, bounds: Bounds) -> Result<String, NixError> {
    let failed = |why: String| NixError::Store { what, why };
    let output = process::run(command, b"", bounds)
        .await
        .map_err(|error| failed(chain(&error)))?;
    if !output.status.success() {
        let errors: Vec<&str> = output
            .stderr
            .lines()
            .map(str::trim)
            .skip_while(|line| !line.starts_with("error"))
            .take(4)
            .collect();
        return Err(failed(if errors.is_empty() {
            output.failure()
        } else {
            errors.join(" ")
        }));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

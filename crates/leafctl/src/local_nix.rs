//! The Nix of this machine: what its store has, and adding to it what a leaf has.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use leaf_core::id::StorePath;
use leaf_core::transfer::SentPath;
use leaf_core::transfer::path_info::sent_paths;
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::error::Error;

/// The minor version of Nix 2 from which `nix path-info --json` is told its format.
const JSON_FORMAT: u32 = 34;
/// How much of what a program says is in an error.
const MOST_WORDS: usize = 4000;
/// The paths that a command line names at once.
const MOST_ARGUMENTS: usize = 1000;

/// The Nix of this machine.
pub(crate) struct LocalNix {
    nix: PathBuf,
    /// The store, in Nix's words; its own default without.
    store: Option<String>,
    /// Settings, as `--option` takes them.
    options: Vec<(String, String)>,
    /// Variables of the environment.
    variables: Vec<(&'static str, OsString)>,
    version: OnceCell<Option<u32>>,
}

impl Default for LocalNix {
    fn default() -> Self {
        Self::new("nix".into(), None, Vec::new())
    }
}

impl LocalNix {
    /// Returns the program, which is looked up on the `PATH` if it is a name, with a store and settings.
    pub(crate) fn new(nix: PathBuf, store: Option<String>, options: Vec<(String, String)>) -> Self {
        Self {
            nix,
            store,
            options,
            variables: Vec::new(),
            version: OnceCell::new(),
        }
    }

    /// Returns the same Nix with a variable in the environment of its programs.
    pub(crate) fn with_variable(&self, name: &'static str, value: impl Into<OsString>) -> Self {
        let mut variables = self.variables.clone();
        variables.push((name, value.into()));
        Self {
            nix: self.nix.clone(),
            store: self.store.clone(),
            options: self.options.clone(),
            variables,
            version: self.version.clone(),
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(match program {
            "nix" => self.nix.clone(),
            other => self.nix.with_file_name(other),
        });
        command
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Returns the arguments that each program takes.
    fn arguments(&self) -> Vec<&str> {
        let options = self.options.iter();
        let options = options.flat_map(|(name, value)| ["--option", name.as_str(), value.as_str()]);
        let store = self.store.iter().flat_map(|store| ["--store", store.as_str()]);
        options.chain(store).collect()
    }

    /// Returns the minor version of Nix 2; nothing if that is unknown.
    pub(crate) async fn minor_version(&self) -> Option<u32> {
        let find = || async {
            let mut command = self.command("nix");
            command.arg("--version");
            let said = run("nix", command).await.ok()?;
            let version = said.trim().rsplit(' ').next()?;
            let mut parts = version.split('.');
            (parts.next() == Some("2")).then_some(())?;
            parts.next()?.parse().ok()
        };
        *self.version.get_or_init(find).await
    }

    /// Returns those of these paths that the store lacks.
    pub(crate) async fn lacking(&self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>, Error> {
        let mut lacks = BTreeSet::new();
        for paths in paths.chunks(MOST_ARGUMENTS) {
            let mut command = self.command("nix-store");
            command
                .args(["--check-validity", "--print-invalid"])
                .args(self.arguments())
                .args(paths.iter().map(StorePath::as_str));
            let said = run("nix-store", command).await?;
            let lines = said.lines().filter(|line| !line.trim().is_empty());
            for line in lines {
                let path = StorePath::new(line.trim());
                lacks.insert(path.map_err(|_| {
                    Error::Refused(format!("nix-store printed {line:?} in the place of a store path"))
                })?);
            }
        }
        Ok(lacks)
    }

    /// Returns what Nix says of paths, or of all of the closure; `derivations` says which of both kinds they are.
    pub(crate) async fn stored(
        &self,
        paths: &[StorePath],
        derivations: bool,
        closure: bool,
    ) -> Result<Vec<SentPath>, Error> {
        let format = self
            .minor_version()
            .await
            .is_some_and(|minor| minor >= JSON_FORMAT);
        let mut all = Vec::new();
        for paths in paths.chunks(MOST_ARGUMENTS) {
            let mut command = self.command("nix");
            command.args([
                "path-info",
                "--extra-experimental-features",
                "nix-command",
                "--json",
            ]);
            command
                .args(self.arguments())
                .args(format.then_some(["--json-format", "1"]).into_iter().flatten())
                .args(derivations.then_some("--derivation"))
                .args(closure.then_some("--recursive"))
                .arg("--")
                .args(paths.iter().map(StorePath::as_str));
            let said = run("nix", command).await?;
            let listed = sent_paths(said.as_bytes());
            all.extend(
                listed.map_err(|why| Error::Refused(format!("nix path-info on this machine: {why}")))?,
            );
        }
        let mut seen = BTreeSet::new();
        all.retain(|sent| seen.insert(sent.path.clone()));
        Ok(all)
    }

    /// Returns the outputs of a derivation of the store.
    pub(crate) async fn outputs(&self, derivation: &StorePath) -> Result<BTreeSet<StorePath>, Error> {
        let mut command = self.command("nix-store");
        command
            .args(["--query", "--outputs"])
            .args(self.arguments())
            .arg(derivation.as_str());
        let said = run("nix-store", command).await?;
        let paths = said.lines().map(|line| StorePath::new(line.trim()));
        paths
            .collect::<Result<_, _>>()
            .map_err(|error| Error::Refused(format!("nix-store names the outputs of {derivation}: {error}")))
    }

    /// Starts the program that prints the NAR of a path.
    pub(crate) fn dump(&self, path: &StorePath) -> std::io::Result<Child> {
        let mut command = self.command("nix");
        command
            .args([
                "store",
                "dump-path",
                "--extra-experimental-features",
                "nix-command",
            ])
            .args(self.arguments())
            .args(is_derivation(path).then_some("--derivation"))
            .arg("--")
            .arg(path.as_str())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }

    /// Adds paths from a binary cache in a directory, without what they refer to; `checked` says whether Nix asks for a signature that it
    /// trusts. `wrap` is a program that runs Nix, with its first arguments.
    pub(crate) async fn add(
        &self,
        directory: &Path,
        paths: &[StorePath],
        checked: bool,
        wrap: Option<&[OsString]>,
    ) -> Result<(), Error> {
        let (derivations, others): (Vec<&StorePath>, _) = paths.iter().partition(|path| is_derivation(path));
        for (paths, flags) in [(others, &[][..]), (derivations, &["--derivation"])] {
            if paths.is_empty() {
                continue;
            }
            let mut command = self.command("nix");
            if let Some([program, arguments @ ..]) = wrap {
                let nix = command.as_std().get_program().to_owned();
                command = Command::new(program);
                command
                    .args(arguments)
                    .arg(nix)
                    .envs(self.variables.iter().map(|(name, value)| (name, value)))
                    .stdin(Stdio::null())
                    .kill_on_drop(true);
            }
            command
                .args(["copy", "--extra-experimental-features", "nix-command"])
                .args(
                    self.options
                        .iter()
                        .flat_map(|(name, value)| ["--option", name, value]),
                )
                .args(flags)
                .args(["--no-recursive", "--from"])
                .arg(format!("file://{}", directory.display()))
                .args(self.store.iter().flat_map(|store| ["--to", store]))
                .args((!checked).then_some("--no-check-sigs"))
                .arg("--")
                .args(paths.iter().map(|path| path.as_str()));
            run("nix", command).await?;
        }
        Ok(())
    }
}

pub(crate) fn is_derivation(path: &StorePath) -> bool {
    path.as_str().ends_with(".drv")
}

/// Runs a program, and returns what it has printed.
async fn run(name: &str, mut command: Command) -> Result<String, Error> {
    let output = command.output().await.map_err(|error| {
        Error::Refused(format!(
            "this needs Nix on this machine, and {name} can't be run: {error}"
        ))
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.trim().chars().take(MOST_WORDS).collect();
        let said = if said.is_empty() {
            output.status.to_string()
        } else {
            said
        };
        return Err(Error::Refused(format!("{name} on this machine: {said}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A directory of this process, which goes with it.
pub(crate) struct Work(pub(crate) PathBuf);

impl Work {
    /// Makes it in the directory for temporary files.
    pub(crate) fn make() -> Result<Self, Error> {
        Self::make_in(&std::env::temp_dir())
    }

    /// Makes it in a directory.
    pub(crate) fn make_in(base: &Path) -> Result<Self, Error> {
        let directory = base.join(format!("leafctl-{}", Uuid::now_v7().simple()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|error| Error::Refused(format!("can't create {}: {error}", directory.display())))?;
        Ok(Self(directory))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

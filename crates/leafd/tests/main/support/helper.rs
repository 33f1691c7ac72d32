//! The real `leaf-helper` as a service of a test's own, with directories of its own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::ensure;
use leaf_core::id::LeafName;
use tokio::process::{Child, Command};

use super::host::helper;
use super::until;

/// A helper that serves. It ends with the test.
pub(crate) struct ServedHelper {
    directory: PathBuf,
    _child: Child,
}

impl ServedHelper {
    /// Starts it with its files in this directory, where `changes` is the state directory of changes, and returns when it listens.
    pub(crate) async fn start(directory: &Path, leaf: &LeafName, witnesses: &[&str]) -> anyhow::Result<Self> {
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755))?;
        let at = |name: &str| directory.join(name);
        let config = format!(
            "leaf = \"{leaf}\"\nclient = \"nobody\"\nleaf_init = {:?}\nwitnesses = {witnesses:?}\n[paths]\nroots = {:?}\nconfs = {:?}\n\
             gc_roots = {:?}\nstate = {:?}\nsecrets = {:?}\nrun = {:?}\nchanges = {:?}\n",
            helper(),
            at("roots"),
            at("confs"),
            at("gc_roots"),
            at("helper-state"),
            at("secrets"),
            at("run"),
            at("changes"),
        );
        std::fs::write(at("helper.toml"), config)?;
        let log = std::fs::File::create(at("helper.log"))?;
        let child = Command::new(helper())
            .args(["serve", "--config"])
            .arg(at("helper.toml"))
            .arg("--socket")
            .arg(at("helper.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let served = Self {
            directory: directory.to_owned(),
            _child: child,
        };
        until("the helper listens", async || {
            let log = served.log();
            ensure!(!log.contains("Error:"), "{log}");
            Ok(served.socket().exists().then_some(()))
        })
        .await?;
        Ok(served)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("helper.sock")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("helper.log")).unwrap_or_default()
    }
}

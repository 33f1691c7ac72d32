//! A leaf to be measured: release build, embedded server, containers; gone when it is dropped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use super::programs::Programs;
use crate::leaf::{self, Leaf};

const PUBLISHED_WITHIN: Duration = Duration::from_secs(60);

/// A running leaf with its own directory.
pub(super) struct Measured {
    leaf: Leaf,
    directory: TempDir,
}

impl Measured {
    /// The leaf's name, with the number of this process in it: another bench or demo may run on this machine.
    pub(super) fn name() -> String {
        format!("bench-{}", std::process::id())
    }

    /// Starts one, and returns when it is ready.
    pub(super) fn start(programs: &Programs) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("cim-leaf-bench-")
            .tempdir()
            .context("can't make a temporary directory")?;
        let pool = 100 + std::process::id() % 100;
        let settings = directory.path().join("leafd.toml");
        let text = format!(
            "name = \"{name}\"\nstate_dir = \"{state}\"\n\
             [nats.embedded]\nport = 0\n\
             [containers]\nenable = true\naddress_pool = \"10.{pool}.0.0/16\"\n",
            name = Self::name(),
            state = leaf::state(directory.path()).display(),
        );
        std::fs::write(&settings, text).with_context(|| format!("can't write {}", settings.display()))?;
        let args = ["run".as_ref(), "--config".as_ref(), settings.as_os_str()];
        let leaf = Leaf::start(&programs.tree, directory.path(), &args)?;
        Ok(Self { leaf, directory })
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.leaf.pid()
    }

    /// A directory that goes with it.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where its state is.
    pub(super) fn state(&self) -> PathBuf {
        leaf::state(self.directory())
    }

    /// `leafctl` as a person has it set up.
    pub(super) fn leafctl(&self) -> Command {
        self.leaf.leafctl()
    }

    /// How long it took to say that it is ready.
    pub(super) fn ready_after(&self) -> Duration {
        self.leaf.ready_after()
    }

    /// Waits until the stream holds what the leaf saw of its hardware; returns how long after its start that was.
    pub(super) fn wait_published(&self) -> Result<Duration> {
        let started = self.leaf.started();
        while started.elapsed() < PUBLISHED_WITHIN {
            let report = self.leaf.ask(&["leaf", "show"])?;
            let number = |key: &str| report.get(key).and_then(Value::as_u64);
            if number("devices_present") > Some(0) && number("published") >= number("sequence") {
                return Ok(started.elapsed());
            }
        }
        bail!(
            "the inventory was not published within {} s",
            PUBLISHED_WITHIN.as_secs()
        )
    }

    /// Ends it as systemd would.
    pub(super) fn stop(self) -> Result<()> {
        self.leaf.stop()
    }
}

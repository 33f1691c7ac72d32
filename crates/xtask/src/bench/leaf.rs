//! A leaf to measure: release build, embedded server, containers; stopped when dropped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use super::programs::Programs;
use crate::leaf::{self, Leaf};

/// The name of its settings file.
const SETTINGS: &str = "leafd.toml";
const PUBLISHED_WITHIN: Duration = Duration::from_secs(60);

/// A running leaf with its own directory.
pub(super) struct Measured {
    leaf: Leaf,
    directory: TempDir,
}

impl Measured {
    /// Returns the leaf's name, which contains this process's id: another bench or demo may run on this machine.
    pub(super) fn name() -> String {
        format!("bench-{}", std::process::id())
    }

    /// Starts a leaf, and returns when it is ready.
    pub(super) fn start(programs: &Programs) -> Result<Self> {
        Self::start_with(programs, |_| Ok(String::new()))
    }

    /// Starts it with more settings, which may be about files in its directory.
    pub(super) fn start_with(
        programs: &Programs,
        more: impl FnOnce(&Path) -> Result<String>,
    ) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("cim-leaf-bench-")
            .tempdir()
            .context("can't make a temporary directory")?;
        let pool = 100 + std::process::id() % 100;
        let settings = directory.path().join(SETTINGS);
        let text = format!(
            "name = \"{name}\"\nstate_dir = \"{state}\"\n\
             [nats.embedded]\nport = 0\n\
             [containers]\nenable = true\naddress_pool = \"10.{pool}.0.0/16\"\n{more}",
            more = more(directory.path())?,
            name = Self::name(),
            state = leaf::state(directory.path()).display(),
        );
        std::fs::write(&settings, text).with_context(|| format!("can't write {}", settings.display()))?;
        let leaf = start_in(programs, directory.path())?;
        Ok(Self { leaf, directory })
    }

    /// Stops it, and starts it again in the same directory. Its containers run on.
    pub(super) fn restart(self, programs: &Programs) -> Result<Self> {
        let Self { leaf, directory } = self;
        leaf.stop()?;
        let leaf = start_in(programs, directory.path())?;
        Ok(Self { leaf, directory })
    }

    /// Returns its process id.
    pub(super) fn pid(&self) -> u32 {
        self.leaf.pid()
    }

    /// Returns a directory that is removed with it.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns its state directory.
    pub(super) fn state(&self) -> PathBuf {
        leaf::state(self.directory())
    }

    /// Returns `leafctl`, set up for the leaf.
    pub(super) fn leafctl(&self) -> Command {
        self.leaf.leafctl()
    }

    /// Returns how long it took to become ready.
    pub(super) fn ready_after(&self) -> Duration {
        self.leaf.ready_after()
    }

    /// Waits until the stream has the leaf's hardware; returns the time since its start.
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

    /// Stops it as systemd would.
    pub(super) fn stop(self) -> Result<()> {
        self.leaf.stop()
    }
}

fn start_in(programs: &Programs, directory: &Path) -> Result<Leaf> {
    let settings = directory.join(SETTINGS);
    let args = ["run".as_ref(), "--config".as_ref(), settings.as_os_str()];
    Leaf::start(&programs.tree, directory, &args)
}

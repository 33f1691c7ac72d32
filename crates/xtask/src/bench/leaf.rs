//! A leaf to be measured: release build, embedded server, containers; gone when it is dropped.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::programs::Programs;
use crate::command::{output, run};

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

/// A running `leafd` with its own folder.
pub(super) struct Leaf {
    child: Child,
    notify: UnixDatagram,
    leafctl: PathBuf,
    folder: TempDir,
    started: Instant,
    /// How long it took to say that it is ready.
    pub(super) ready_after: Duration,
}

impl Leaf {
    /// The leaf's name, with the number of this process in it: another bench or demo may run on this machine.
    pub(super) fn name() -> String {
        format!("bench-{}", std::process::id())
    }

    /// Starts one, and returns when it is ready.
    pub(super) fn start(programs: &Programs) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("cim-leaf-bench-")
            .tempdir()
            .context("can't make a temporary folder")?;
        let pool = 100 + std::process::id() % 100;
        let settings = folder.path().join("leafd.toml");
        let text = format!(
            "name = \"{name}\"\nstate_dir = \"{state}\"\n\
             [nats.embedded]\nprogram = \"{server}\"\nport = 0\n\
             [containers]\naddress_pool = \"10.{pool}.0.0/16\"\n",
            name = Self::name(),
            state = folder.path().join("state").display(),
            server = programs.nats_server.display(),
        );
        std::fs::write(&settings, text).with_context(|| format!("can't write {}", settings.display()))?;
        let socket = folder.path().join("notify");
        let notify =
            UnixDatagram::bind(&socket).with_context(|| format!("can't bind {}", socket.display()))?;
        notify
            .set_read_timeout(Some(Duration::from_millis(200)))
            .context("can't set a time limit")?;
        let log = folder.path().join("leafd.log");
        let log = File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
        let started = Instant::now();
        let child = Command::new(&programs.leafd)
            .args(["run", "--config"])
            .arg(&settings)
            .env("NOTIFY_SOCKET", &socket)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("can't share the log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("can't run {}", programs.leafd.display()))?;
        let mut leaf = Self {
            child,
            notify,
            leafctl: programs.leafctl.clone(),
            folder,
            started,
            ready_after: Duration::ZERO,
        };
        leaf.wait_ready()?;
        leaf.ready_after = started.elapsed();
        Ok(leaf)
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A folder that goes with it.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where its state is.
    pub(super) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// `leafctl` as a person has it set up.
    pub(super) fn leafctl(&self) -> Command {
        let mut command = Command::new(&self.leafctl);
        command.env("LEAFCTL_CONTEXT", self.state().join("context.json"));
        command
    }

    /// Runs `leafctl` and returns what it says.
    pub(super) fn ask(&self, args: &[&str]) -> Result<Value> {
        let text = output(self.leafctl().arg("--json").args(args))?;
        serde_json::from_str(&text).with_context(|| format!("leafctl {} gives no JSON", args.join(" ")))
    }

    /// Waits until the stream holds what the leaf saw of its hardware; returns how long after its start that was.
    pub(super) fn wait_published(&self) -> Result<Duration> {
        while self.started.elapsed() < READY_WITHIN {
            let report = self.ask(&["leaf", "show"])?;
            let number = |key: &str| report.get(key).and_then(Value::as_u64);
            if number("devices_present") > Some(0) && number("published") >= number("sequence") {
                return Ok(self.started.elapsed());
            }
        }
        bail!(
            "the inventory was not published within {} s",
            READY_WITHIN.as_secs()
        )
    }

    /// Ends it as systemd would.
    pub(super) fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let mut message = [0; 1024];
        while self.started.elapsed() < READY_WITHIN {
            if let Ok(length) = self.notify.recv(&mut message) {
                let text = String::from_utf8_lossy(&message[..length]);
                if text.lines().any(|line| line == "READY=1") {
                    return Ok(());
                }
            }
            if let Some(status) = self.child.try_wait().context("can't look at leafd")? {
                bail!("leafd ended with {status}: {}", self.log());
            }
        }
        bail!(
            "leafd was not ready within {} s: {}",
            READY_WITHIN.as_secs(),
            self.log()
        )
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("leafd.log")).unwrap_or_default()
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait().context("can't look at leafd")?.is_some() {
            return Ok(());
        }
        run(Command::new("sh").args(["-c", "kill -TERM \"$0\"", &self.child.id().to_string()]))?;
        let since = Instant::now();
        let mut message = [0; 1024];
        while since.elapsed() < STOPPED_WITHIN {
            if let Some(status) = self.child.try_wait().context("can't look at leafd")? {
                ensure!(status.success(), "leafd ended with {status}: {}", self.log());
                return Ok(());
            }
            // What it says matters no more; it is the clock of this loop, which ends early when there is news.
            let _ = self.notify.recv(&mut message);
        }
        self.child.kill().context("can't end leafd")?;
        self.child.wait().context("can't wait for leafd")?;
        bail!(
            "leafd did not stop within {} s, and was killed",
            STOPPED_WITHIN.as_secs()
        )
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("error: {error:#}");
        }
    }
}

//! A leaf for the demo and the benchmarks: starts, queries and always stops a `leafd`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::command::{line, output, run};

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

/// A running `leafd`. Dropping it stops it.
pub(crate) struct Leaf {
    child: Child,
    /// The socket for `leafd`'s notifications (sd_notify(3)).
    notify: UnixDatagram,
    bin: PathBuf,
    directory: PathBuf,
    started: Instant,
    ready_after: Duration,
    /// Whether it was stopped or kept.
    over: bool,
}

impl Leaf {
    /// Runs the `leafd` of an [installation](crate::install) with these arguments, and returns when it is ready. They
    /// must set `state/` in the directory as its state directory; its log is in the directory as well.
    pub(crate) fn start(tree: &Path, directory: &Path, args: &[impl AsRef<OsStr>]) -> Result<Self> {
        let socket = directory.join("notify");
        // That of an earlier start.
        let _ = std::fs::remove_file(&socket);
        let notify =
            UnixDatagram::bind(&socket).with_context(|| format!("can't bind {}", socket.display()))?;
        notify
            .set_read_timeout(Some(Duration::from_millis(200)))
            .context("can't set a time limit")?;
        let log = log_file(directory);
        let log = File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
        let bin = tree.join("bin");
        let mut command = Command::new(bin.join("leafd"));
        command
            .args(args)
            .env("PATH", path(&bin))
            .env("NOTIFY_SOCKET", &socket)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("can't share the log")?)
            .stderr(log);
        let started = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("can't run {}", line(&command)))?;
        let mut leaf = Self {
            child,
            notify,
            bin,
            directory: directory.to_owned(),
            started,
            ready_after: Duration::ZERO,
            over: false,
        };
        leaf.wait_ready()?;
        leaf.ready_after = started.elapsed();
        Ok(leaf)
    }

    /// Returns its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns when its process was started.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Returns how long it took to become ready.
    pub(crate) fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Returns the path of the context file for clients.
    pub(crate) fn context(&self) -> PathBuf {
        context_file(&self.directory)
    }

    /// Returns the path of its log.
    pub(crate) fn log(&self) -> PathBuf {
        log_file(&self.directory)
    }

    /// Returns the last lines of its log.
    pub(crate) fn log_end(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Returns `leafctl`, set up for the leaf.
    pub(crate) fn leafctl(&self) -> Command {
        let mut command = Command::new(self.bin.join("leafctl"));
        command
            .env("PATH", path(&self.bin))
            .env("LEAFCTL_CONTEXT", self.context());
        command
    }

    /// Runs `leafctl` quietly, and returns its JSON: a document, or a list of its lines.
    pub(crate) fn ask(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.leafctl();
        let text = output(command.arg("--json").args(args))?;
        let documents: Vec<Value> = serde_json::Deserializer::from_str(&text)
            .into_iter()
            .collect::<Result<_, _>>()
            .with_context(|| format!("{} prints no JSON", line(&command)))?;
        Ok(match <[Value; 1]>::try_from(documents) {
            Ok([only]) => only,
            Err(documents) => Value::Array(documents),
        })
    }

    /// Stops it as systemd would, and fails if that does not work.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.end()
    }

    /// Leaves it running.
    pub(crate) fn keep(mut self) {
        self.over = true;
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
            if let Some(status) = self.child.try_wait().context("can't query leafd")? {
                self.over = true;
                bail!(
                    "leafd ended with {status} before it was ready; its log:\n{}",
                    self.log_end()
                );
            }
        }
        bail!(
            "leafd was not ready within {} s; its log:\n{}",
            READY_WITHIN.as_secs(),
            self.log_end()
        )
    }

    fn end(&mut self) -> Result<()> {
        self.over = true;
        if let Some(status) = self.child.try_wait().context("can't query leafd")? {
            bail!(
                "leafd had ended with {status} before it was stopped; its log:\n{}",
                self.log_end()
            );
        }
        run(Command::new("sh").args(["-c", "kill -TERM \"$0\"", &self.child.id().to_string()]))?;
        let since = Instant::now();
        let mut message = [0; 1024];
        while since.elapsed() < STOPPED_WITHIN {
            if let Some(status) = self.child.try_wait().context("can't query leafd")? {
                ensure!(
                    status.success(),
                    "leafd ended with {status}; its log:\n{}",
                    self.log_end()
                );
                return Ok(());
            }
            // The notification itself is not needed; receiving with a timeout serves as the pause of this loop.
            let _ = self.notify.recv(&mut message);
        }
        self.child.kill().context("can't kill leafd")?;
        self.child.wait().context("can't wait for leafd")?;
        bail!(
            "leafd did not stop within {} s, and was killed",
            STOPPED_WITHIN.as_secs()
        )
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if !self.over
            && let Err(error) = self.end()
        {
            eprintln!("error: {error:#}");
        }
    }
}

/// The state directory of a leaf with this directory.
pub(crate) fn state(directory: &Path) -> PathBuf {
    directory.join("state")
}

fn context_file(directory: &Path) -> PathBuf {
    state(directory).join("context.json")
}

fn log_file(directory: &Path) -> PathBuf {
    directory.join("leafd.log")
}

/// Returns a `PATH` with the installation's programs first.
fn path(bin: &Path) -> OsString {
    let mut path = bin.as_os_str().to_owned();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}

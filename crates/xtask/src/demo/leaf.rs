//! The demo's leaf: started, asked, and always stopped.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command::{line, output, run, typed};

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOPPED_WITHIN: Duration = Duration::from_secs(60);

/// A running `leafd`. Dropping it ends it, and the container that the demo made before.
pub(super) struct Leaf {
    child: Child,
    /// Where `leafd` says that it is ready, as it says it to systemd.
    notify: UnixDatagram,
    path: String,
    context: PathBuf,
    log: PathBuf,
    container: Option<String>,
    /// Whether somebody has taken care of its end.
    done: bool,
}

impl Leaf {
    /// Starts a leaf, and returns when it is ready.
    pub(super) fn start(tree: &Path, state: &Path) -> Result<Self> {
        std::fs::create_dir_all(state).with_context(|| format!("can't make {}", state.display()))?;
        let socket = state.with_file_name("notify");
        let notify =
            UnixDatagram::bind(&socket).with_context(|| format!("can't bind {}", socket.display()))?;
        notify
            .set_read_timeout(Some(Duration::from_millis(200)))
            .context("can't set a time limit")?;
        let log = state.with_file_name("leafd.log");
        let log_file = File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
        let path = format!(
            "{}:{}",
            tree.join("bin").display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let mut command = Command::new(tree.join("bin/leafd"));
        command
            .args([
                "run",
                "--embedded-nats",
                "--nats-port",
                "0",
                "--name",
                "demo",
                "--state-dir",
            ])
            .arg(state)
            .env("PATH", &path)
            .env("NOTIFY_SOCKET", &socket)
            .stdin(Stdio::null())
            .stdout(log_file.try_clone().context("can't share the log")?)
            .stderr(log_file);
        println!("$ export PATH={}:$PATH", tree.join("bin").display());
        println!("$ {} &", typed(&command));
        let child = command
            .spawn()
            .with_context(|| format!("can't run {}", line(&command)))?;
        let context = state.join("context.json");
        println!("$ export LEAFCTL_CONTEXT={}", context.display());
        let mut leaf = Self {
            child,
            notify,
            path,
            context,
            log,
            container: None,
            done: false,
        };
        if let Err(error) = leaf.wait_ready() {
            leaf.print_log_end();
            return Err(error);
        }
        Ok(leaf)
    }

    /// Says that from now on this container must not outlive the demo.
    pub(super) fn owns_container(&mut self, name: &str) {
        self.container = Some(name.to_owned());
    }

    /// Says that the container is gone.
    pub(super) fn owns_no_container(&mut self) {
        self.container = None;
    }

    /// Shows a command and runs it as a person would.
    pub(super) fn step(&self, args: &[&str]) -> Result<()> {
        let mut command = self.leafctl();
        command.args(args);
        println!("\n$ {}", typed(&command));
        run(&mut command)
    }

    /// Runs a command quietly, and returns its JSON: a document, or a list of its lines.
    pub(super) fn ask(&self, args: &[&str]) -> Result<Value> {
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

    /// Ends the leaf as systemd would, and fails if that does not work.
    pub(super) fn stop(mut self) -> Result<()> {
        println!("\n$ kill {}", self.child.id());
        self.done = true;
        self.end()
    }

    /// Leaves the leaf running, and says how to go on.
    pub(super) fn keep(mut self, folder: &Path) -> Result<()> {
        self.done = true;
        let bin = self.path.split(':').next().unwrap_or_default();
        println!("\nEach step worked. The leaf still runs. To go on:\n");
        println!("export PATH={bin}:$PATH");
        println!("export LEAFCTL_CONTEXT={}", self.context.display());
        println!("leafctl events --follow");
        println!("leafctl container create web --template minimal --start");
        println!("tail -f {}", self.log.display());
        println!("\nTo end it:\n");
        println!("kill {}; rm -r {}", self.child.id(), folder.display());
        Ok(())
    }

    /// Prints the last lines that `leafd` wrote.
    pub(super) fn print_log_end(&self) {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("\nthe end of leafd's log:");
        lines[lines.len().saturating_sub(30)..]
            .iter()
            .for_each(|line| eprintln!("  {line}"));
    }

    fn leafctl(&self) -> Command {
        let bin = self.path.split(':').next().unwrap_or_default();
        let mut command = Command::new(Path::new(bin).join("leafctl"));
        command
            .env("PATH", &self.path)
            .env("LEAFCTL_CONTEXT", &self.context);
        command
    }

    fn wait_ready(&mut self) -> Result<()> {
        let since = Instant::now();
        let mut message = [0; 1024];
        while since.elapsed() < READY_WITHIN {
            if let Ok(length) = self.notify.recv(&mut message) {
                let text = String::from_utf8_lossy(&message[..length]);
                if text.lines().any(|line| line == "READY=1") {
                    println!("ready after {} ms", since.elapsed().as_millis());
                    return Ok(());
                }
            }
            if let Some(status) = self.child.try_wait().context("can't look at leafd")? {
                self.done = true;
                bail!("leafd ended with {status} before it was ready");
            }
        }
        bail!("leafd was not ready within {} s", READY_WITHIN.as_secs())
    }

    fn end(&mut self) -> Result<()> {
        run(Command::new("sh").args(["-c", "kill -TERM \"$0\"", &self.child.id().to_string()]))?;
        let since = Instant::now();
        let mut message = [0; 1024];
        while since.elapsed() < STOPPED_WITHIN {
            if let Some(status) = self.child.try_wait().context("can't look at leafd")? {
                if !status.success() {
                    bail!("leafd ended with {status}");
                }
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
        if self.done {
            return;
        }
        if let Some(name) = self.container.take() {
            let destroyed = output(
                self.leafctl()
                    .args(["--timeout", "2m", "container", "destroy", &name]),
            );
            if let Err(error) = destroyed {
                eprintln!("error: the demo's container {name} is left: {error:#}");
            }
        }
        if let Err(error) = self.end() {
            eprintln!("error: {error:#}");
        }
    }
}

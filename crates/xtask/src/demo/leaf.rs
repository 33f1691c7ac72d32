//! The demo's leaf: prints and runs the commands that a user would type.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use crate::command::{output, run, typed};
use crate::leaf::{self, Leaf};

/// A running `leafd`. Dropping it stops the leaf, and the demo's container before it.
pub(super) struct Shown {
    /// `None` once it is stopped or kept.
    leaf: Option<Leaf>,
    container: Option<String>,
}

impl Shown {
    /// Starts a leaf, and returns when it is ready.
    pub(super) fn start(tree: &Path, directory: &Path) -> Result<Self> {
        let state = leaf::state(directory);
        let flags = ["run", "--embedded-nats", "--nats-port", "0", "--name", "demo"];
        let mut args: Vec<OsString> = flags.map(OsString::from).into();
        args.extend(["--state-dir".into(), state.into_os_string()]);
        println!("$ export PATH={}:$PATH", tree.join("bin").display());
        println!("$ {} &", typed(Command::new("leafd").args(&args)));
        let leaf = Leaf::start(tree, directory, &args)?;
        println!("ready after {} ms", leaf.ready_after().as_millis());
        println!("$ export LEAFCTL_CONTEXT={}", leaf.context().display());
        Ok(Self {
            leaf: Some(leaf),
            container: None,
        })
    }

    /// Notes that this container must not outlive the demo.
    pub(super) fn owns_container(&mut self, name: &str) {
        self.container = Some(name.to_owned());
    }

    /// Notes that the container was destroyed.
    pub(super) fn owns_no_container(&mut self) {
        self.container = None;
    }

    /// Prints a command and runs it.
    pub(super) fn step(&self, args: &[&str]) -> Result<()> {
        let mut command = self.leaf().leafctl();
        command.args(args);
        println!("\n$ {}", typed(&command));
        run(&mut command)
    }

    /// Runs a command quietly, and returns its JSON: a document, or a list of its lines.
    pub(super) fn ask(&self, args: &[&str]) -> Result<Value> {
        self.leaf().ask(args)
    }

    /// Stops the leaf as systemd would, and fails if that does not work.
    pub(super) fn stop(mut self) -> Result<()> {
        println!("\n$ kill {}", self.leaf().pid());
        match self.leaf.take() {
            Some(leaf) => leaf.stop(),
            None => Ok(()),
        }
    }

    /// Leaves the leaf running, and prints what to try next.
    pub(super) fn keep(mut self, tree: &Path, directory: &Path) {
        let Some(leaf) = self.leaf.take() else { return };
        println!("\nEvery step worked. The leaf is still running. To try more:\n");
        println!("export PATH={}:$PATH", tree.join("bin").display());
        println!("export LEAFCTL_CONTEXT={}", leaf.context().display());
        println!("leafctl events --follow");
        println!("leafctl container create web --template minimal --start");
        println!("tail -f {}", leaf.log().display());
        println!("\nTo stop it:\n");
        println!("kill {}; rm -r {}", leaf.pid(), directory.display());
        leaf.keep();
    }

    /// Prints the last lines of `leafd`'s log.
    pub(super) fn print_log_end(&self) {
        eprintln!("\nthe end of leafd's log:\n{}", self.leaf().log_end());
    }

    fn leaf(&self) -> &Leaf {
        self.leaf.as_ref().expect("only stop, keep and drop take it")
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let Some(leaf) = self.leaf.take() else { return };
        if let Some(name) = self.container.take() {
            let destroyed = output(
                leaf.leafctl()
                    .args(["--timeout", "2m", "container", "destroy", &name]),
            );
            if let Err(error) = destroyed {
                eprintln!("error: can't remove the demo's container {name}: {error:#}");
            }
        }
    }
}

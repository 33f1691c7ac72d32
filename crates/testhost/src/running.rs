//! Commands on a machine: while they run, and their output.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::Host;

/// The output of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit code; 128 plus the signal's number if a signal terminated it.
    pub status: i32,
    /// Its stdout as text, at most 16 MiB.
    pub stdout: String,
    /// Its stderr as text, at most 16 MiB.
    pub stderr: String,
}

/// A running command on a host.
#[derive(Debug)]
pub struct Running<'a> {
    pub(crate) host: &'a Host,
    pub(crate) command: String,
    pub(crate) pid: i64,
    pub(crate) limit: Duration,
    pub(crate) deadline: Instant,
}

impl Running<'_> {
    /// Returns its output if it has ended. Must not be called again after that.
    pub fn ended(&self) -> Result<Option<Output>> {
        self.host.machine()?.borrow_mut().agent.ended(self.pid)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it exceeds its time limit; it is killed then, and the text contains its output.
    pub fn wait(self) -> Result<Output> {
        let machine = self.host.machine()?;
        let ended = machine.borrow_mut().agent.finish(self.pid, self.deadline);
        match ended.with_context(|| format!("{:?} on {}", self.command, self.host.name()))? {
            Some(output) => Ok(output),
            None => {
                let output = self.kill()?;
                bail!(
                    "{:?} on {} did not end within {:.1} s, and was killed; stderr: {:?}; stdout: {:?}",
                    self.command,
                    self.host.name(),
                    self.limit.as_secs_f64(),
                    output.stderr.trim_end(),
                    output.stdout.trim_end()
                )
            }
        }
    }

    /// Kills it with its process group, and returns its output.
    pub fn kill(&self) -> Result<Output> {
        let mut machine = self.host.machine()?.borrow_mut();
        // `timeout` forwards a SIGTERM to its process group.
        let limit = Duration::from_secs(20);
        let kill = format!(
            "kill -TERM {0}; for i in $(seq 20); do kill -0 -- -{0} || exit 0; sleep 0.1; done 2>/dev/null; kill -KILL -- -{0}",
            self.pid
        );
        let pid = machine.agent.start(&kill, limit)?;
        machine.agent.finish(pid, Instant::now() + limit)?;
        let ended = machine.agent.finish(self.pid, Instant::now() + limit)?;
        ended.with_context(|| format!("can't kill {:?}", self.command))
    }
}

//! Runs commands in the machine through its guest agent.
//!
//! The agent (`qemu-ga`) reads JSON from a virtio port and serves one client; the machine's owner keeps the connection
//! as long as the machine runs. <https://www.qemu.org/docs/master/interop/qemu-ga-ref.html>

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::socket::JsonSocket;
use crate::{Output, pause};

/// The time limit of the agent's own commands.
const ANSWER: Duration = Duration::from_secs(60);
/// How long to wait for a sync before it is sent again: one that is sent during boot may be lost.
const SYNC: Duration = Duration::from_millis(500);
/// The size of a file transfer's pieces, in bytes; the agent's requests are limited.
const CHUNK: usize = 1 << 20;

/// The `PATH` of commands: NixOS's directories, then Debian's.
const ENVIRONMENT: [&str; 4] = [
    "PATH=/run/wrappers/bin:/run/current-system/sw/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LC_ALL=C.UTF-8",
    "TERM=dumb",
];

/// A connection to the agent of one machine.
#[derive(Debug)]
pub(crate) struct Agent {
    socket: JsonSocket,
    syncs: u64,
}

impl Agent {
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        Ok(Self {
            socket: JsonSocket::connect(path)?,
            syncs: 0,
        })
    }

    /// Waits until the agent answers.
    pub(crate) fn wait(&mut self, deadline: Instant) -> Result<()> {
        loop {
            self.syncs += 1;
            // The byte ends an incomplete request that the agent may hold.
            let sync = json!({"execute": "guest-sync-delimited", "arguments": {"id": self.syncs}});
            self.socket.send(b"\xff", &sync)?;
            let until = deadline.min(Instant::now() + SYNC);
            while let Some(answer) = self.socket.receive(until)? {
                if answer["return"] == self.syncs {
                    return Ok(());
                }
            }
            if Instant::now() >= deadline {
                bail!("its guest agent does not answer");
            }
        }
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.socket
            .send(b"", &json!({"execute": command, "arguments": arguments}))?;
        let Some(mut answer) = self.socket.receive(Instant::now() + ANSWER)? else {
            bail!(
                "the guest agent did not answer {command} within {} s",
                ANSWER.as_secs()
            );
        };
        if let Some(error) = answer.get("error") {
            bail!(
                "the guest agent refuses {command}: {}",
                error["desc"].as_str().unwrap_or("no reason")
            );
        }
        Ok(answer["return"].take())
    }

    /// Starts a bash command line, and returns the process id of the `timeout` that it runs under, which can end the
    /// whole process group.
    pub(crate) fn start(&mut self, command: &str, limit: Duration) -> Result<i64> {
        let seconds = format!("{:.3}", limit.as_secs_f64());
        let started = self
            .execute(
                "guest-exec",
                json!({
                    "path": "timeout",
                    "arg": ["--kill-after=5", seconds, "bash", "-c", command],
                    "env": ENVIRONMENT,
                    "capture-output": true,
                }),
            )
            .with_context(|| format!("can't start {command:?}"))?;
        started["pid"]
            .as_i64()
            .context("the guest agent gives no process id")
    }

    /// Returns the output of a started process; `None` while it runs.
    pub(crate) fn ended(&mut self, pid: i64) -> Result<Option<Output>> {
        let status = self.execute("guest-exec-status", json!({"pid": pid}))?;
        if status["exited"] != true {
            return Ok(None);
        }
        let text = |key: &str| -> Result<String> {
            let bytes = STANDARD
                .decode(status[key].as_str().unwrap_or_default())
                .context("the guest agent's output is not base64")?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        // As in a shell: 128 plus the signal.
        let number = |key: &str| status[key].as_i64().and_then(|number| i32::try_from(number).ok());
        Ok(Some(Output {
            status: number("exitcode")
                .or_else(|| Some(128 + number("signal")?))
                .unwrap_or(-1),
            stdout: text("out-data")?,
            stderr: text("err-data")?,
        }))
    }

    /// Waits for a started process; `None` if the deadline comes first.
    pub(crate) fn finish(&mut self, pid: i64, deadline: Instant) -> Result<Option<Output>> {
        // Most commands take milliseconds, a build takes a minute: so it polls often at first.
        let mut step = Duration::from_millis(2);
        loop {
            if let Some(output) = self.ended(pid)? {
                return Ok(Some(output));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            pause(step);
            step = (step * 3 / 2).min(Duration::from_millis(200));
        }
    }

    /// Writes a file in the machine.
    pub(crate) fn put(&mut self, bytes: &[u8], path: &str) -> Result<()> {
        let handle = self.execute("guest-file-open", json!({"path": path, "mode": "w"}))?;
        for chunk in bytes.chunks(CHUNK) {
            let mut left = chunk;
            while !left.is_empty() {
                let written = self.execute(
                    "guest-file-write",
                    json!({"handle": handle, "buf-b64": STANDARD.encode(left)}),
                )?;
                let count = written["count"]
                    .as_u64()
                    .and_then(|count| usize::try_from(count).ok());
                left = match count {
                    Some(count) if count > 0 => left.get(count..).unwrap_or_default(),
                    _ => bail!("{path} can't be written in the machine"),
                };
            }
        }
        self.execute("guest-file-close", json!({"handle": handle}))?;
        Ok(())
    }

    /// Reads a file in the machine.
    pub(crate) fn fetch(&mut self, path: &str) -> Result<Vec<u8>> {
        let handle = self.execute("guest-file-open", json!({"path": path, "mode": "r"}))?;
        let mut bytes = Vec::new();
        loop {
            let read = self.execute("guest-file-read", json!({"handle": handle, "count": CHUNK}))?;
            let text = read["buf-b64"].as_str().unwrap_or_default();
            bytes.extend(
                STANDARD
                    .decode(text)
                    .context("the guest agent's file is not base64")?,
            );
            if read["eof"] == true {
                break;
            }
        }
        self.execute("guest-file-close", json!({"handle": handle}))?;
        Ok(bytes)
    }
}

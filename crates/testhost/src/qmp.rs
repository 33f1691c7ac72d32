//! QEMU's machine protocol: commands to the machine itself, and its events.
//!
//! <https://www.qemu.org/docs/master/interop/qmp-spec.html>

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::socket::JsonSocket;

/// The time limit of a command; QEMU answers at once unless this machine is overloaded.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection to one machine.
#[derive(Debug)]
pub(crate) struct Qmp {
    socket: JsonSocket,
    /// The events that were received while waiting for an answer.
    events: Vec<Value>,
}

impl Qmp {
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let mut socket = JsonSocket::connect(path)?;
        let greeting = socket
            .receive(Instant::now() + ANSWER)?
            .context("QEMU does not greet")?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greets with {greeting}");
        }
        let mut qmp = Self {
            socket,
            events: Vec::new(),
        };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command, and returns its result.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.socket
            .send(b"", &json!({"execute": command, "arguments": arguments}))?;
        let deadline = Instant::now() + ANSWER;
        loop {
            let Some(mut message) = self.socket.receive(deadline)? else {
                bail!("QEMU did not answer {command} within {} s", ANSWER.as_secs());
            };
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                let text = error["desc"].as_str().unwrap_or("no reason");
                bail!("QEMU refuses {command} {arguments}: {text}");
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Returns the data of the first event of this name that `wanted` accepts; earlier events are dropped.
    pub(crate) fn wait(
        &mut self,
        event: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + limit;
        let mut told: std::collections::VecDeque<Value> = self.events.drain(..).collect();
        loop {
            let message = match told.pop_front() {
                Some(message) => Some(message),
                None => self.socket.receive(deadline)?,
            };
            let Some(mut message) = message else {
                bail!("QEMU did not send the event {event} within {} s", limit.as_secs());
            };
            if message["event"] == event && wanted(&message["data"]) {
                self.events.extend(told);
                return Ok(message["data"].take());
            }
        }
    }
}

//! A nats-server of our own with a configuration of our own.

use std::path::Path;
use std::process::Stdio;

use anyhow::Context as _;
use leaf_bus::embedded::NatsServer;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::support::LIMIT;

/// It is killed when it is dropped.
pub(crate) struct PlainServer {
    pub(crate) port: u16,
    /// Where it listens for leaf nodes, if its configuration says so.
    pub(crate) leaf_port: Option<u16>,
    child: Child,
    _log: JoinSet<()>,
}

impl PlainServer {
    /// Starts it with these lines of configuration beside the listening address.
    pub(crate) async fn start(dir: &Path, config: &str) -> anyhow::Result<Self> {
        let program = NatsServer::find(None).await?.path;
        let file = dir.join("nats.conf");
        std::fs::write(&file, format!("listen: \"127.0.0.1:-1\"\n{config}\n"))?;
        let mut child = Command::new(program)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("its stderr")?).lines();
        let ready = async {
            let (mut port, mut leaf_port) = (None, None);
            let port_after = |line: &str, words: &str| {
                let (_, address) = line.split_once(words)?;
                address.trim().rsplit_once(':')?.1.parse::<u16>().ok()
            };
            while let Some(line) = lines.next_line().await? {
                port = port.or_else(|| port_after(&line, "Listening for client connections on "));
                leaf_port = leaf_port.or_else(|| port_after(&line, "Listening for leafnode connections on "));
                if line.contains("Server is ready") {
                    return port.context("no port in its log").map(|port| (port, leaf_port));
                }
            }
            anyhow::bail!("nats-server ended")
        };
        let (port, leaf_port) = tokio::time::timeout(LIMIT, ready)
            .await
            .context("waiting for nats-server")??;
        // Its log goes on; somebody must read it, or it blocks when the pipe is full.
        let mut log = JoinSet::new();
        log.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self {
            port,
            leaf_port,
            child,
            _log: log,
        })
    }

    /// Its process, unless it has ended.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

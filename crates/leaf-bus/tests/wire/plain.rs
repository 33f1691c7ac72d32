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
pub(super) struct PlainServer {
    pub(super) port: u16,
    _child: Child,
    _log: JoinSet<()>,
}

impl PlainServer {
    /// Starts it with these lines of configuration beside the listening address.
    pub(super) async fn start(dir: &Path, config: &str) -> anyhow::Result<Self> {
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
            let mut port = None;
            while let Some(line) = lines.next_line().await? {
                if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                    port = address
                        .trim()
                        .rsplit_once(':')
                        .and_then(|(_, port)| port.parse().ok());
                }
                if line.contains("Server is ready") {
                    return port.context("no port in its log");
                }
            }
            anyhow::bail!("nats-server ended")
        };
        let port = tokio::time::timeout(LIMIT, ready)
            .await
            .context("waiting for nats-server")??;
        // Its log goes on; somebody must read it, or it blocks when the pipe is full.
        let mut log = JoinSet::new();
        log.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self {
            port,
            _child: child,
            _log: log,
        })
    }

    pub(super) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

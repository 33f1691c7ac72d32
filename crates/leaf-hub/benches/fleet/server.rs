//! A nats-server with a configuration of its own.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::WITHIN;

/// It is killed when it is dropped.
pub(crate) struct Server {
    pub(crate) port: u16,
    pub(crate) leaf_port: u16,
    pub(crate) pid: u32,
    _child: Child,
    _log: JoinSet<()>,
}

impl Server {
    /// Starts it with these lines of configuration beside the listening address, and a store in the directory.
    pub(crate) async fn start(program: &Path, dir: &Path, config: &str) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
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
        let pid = child.id().context("its process")?;
        let mut lines = BufReader::new(child.stderr.take().context("its stderr")?).lines();
        let ready = async {
            let (mut port, mut leaf_port) = (0, 0);
            let after = |line: &str, words: &str| {
                let (_, address) = line.split_once(words)?;
                address.trim().rsplit_once(':')?.1.parse::<u16>().ok()
            };
            while let Some(line) = lines.next_line().await? {
                port = after(&line, "Listening for client connections on ").unwrap_or(port);
                leaf_port = after(&line, "Listening for leafnode connections on ").unwrap_or(leaf_port);
                if line.contains("Server is ready") {
                    return Ok((port, leaf_port));
                }
            }
            bail!("nats-server ended")
        };
        let (port, leaf_port) = tokio::time::timeout(WITHIN, ready).await??;
        let mut log = JoinSet::new();
        log.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self {
            port,
            leaf_port,
            pid,
            _child: child,
            _log: log,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

//! Programs that several scenes start.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use leaf_bus::embedded::NatsServer;
use tokio::process::{Child, Command};

/// Makes an SSH key pair: the private key in this file, and the public one beside it. Returns the line of the public key.
pub(crate) async fn ssh_key(file: &Path) -> anyhow::Result<String> {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(file)
        .stdin(Stdio::null())
        .status()
        .await
        .context("ssh-keygen runs (Debian: openssh-client)")?;
    ensure!(made.success(), "ssh-keygen: {made}");
    let public = std::fs::read_to_string(file.with_extension("pub"))?;
    Ok(public.trim().to_owned())
}

/// Starts a nats-server with this configuration, which logs to where that says, or else to this file. It is killed when the handle is
/// dropped.
pub(crate) async fn nats_server(config: &Path, log: Option<&Path>) -> anyhow::Result<Child> {
    let mut server = Command::new(NatsServer::find(None).await?.path);
    server.arg("-c").arg(config);
    if let Some(log) = log {
        server.arg("-l").arg(log);
    }
    let server = server
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    Ok(server.spawn()?)
}

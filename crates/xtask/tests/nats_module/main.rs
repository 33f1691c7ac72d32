//! What the NixOS module of the NATS server renders, held against nats-server itself: it reads each sample, and serves as
//! the options say. The Nix side evaluates without nixpkgs.
//!
//! Without nats-server or nix-instantiate every test counts as ignored.

#![expect(clippy::print_stderr, reason = "a program that prints to its user")]

mod servers;
mod site;
mod systems;

use std::future::Future;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::ensure;
use leaf_bus::embedded::NatsServer;
use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

/// The longest that a wait for a state may take.
const LIMIT: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let missing = runtime().block_on(async {
        NatsServer::find(None).await.map_err(|e| e.to_string())?;
        let nix = Command::new("nix-instantiate").arg("--version").output().await;
        nix.map(|_| ())
            .map_err(|e| format!("can't run nix-instantiate: {e}"))
    });
    let mut trials = servers::trials();
    trials.extend(systems::trials());
    if let Err(why) = missing {
        eprintln!("tests of the NATS server's module are skipped: {why}");
        trials = trials.into_iter().map(|t| t.with_ignored_flag(true)).collect();
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("a runtime")
}

fn trial<F>(name: &'static str, test: fn() -> F) -> Trial
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    Trial::test(name, move || {
        match runtime().block_on(async { timeout(4 * LIMIT, test()).await }) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(format!("{e:?}").into()),
            Err(_) => Err("it did not end".into()),
        }
    })
}

/// Evaluates an expression of `tests/nix/nats`, to JSON.
async fn evaluate(file: &str, arguments: &[String]) -> anyhow::Result<Value> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/nix/nats");
    let output = Command::new("nix-instantiate")
        .args(["--eval", "--strict", "--json"])
        .arg(directory.join(file))
        .args(arguments)
        // Debian's nix names a group of build users that it doesn't make.
        .args(["--option", "build-users-group", ""])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

//! Looks at the hardware at the start, when the kernel hints that something changed, and when somebody asks.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use leaf_core::hardware::Inventory;
use leaf_hardware::{Monitor, Sources, look};
use tokio::sync::mpsc;

use crate::input::Input;
use leaf_core::error::chain;

/// Looks for as long as the daemon runs. `rescans` gives the numbers of the rescans that want a look.
///
/// # Errors
/// When the kernel's hints can't be received at all.
pub async fn run(
    report: Option<PathBuf>,
    debounce: Duration,
    mut rescans: mpsc::Receiver<u64>,
    inputs: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    let sources = Sources {
        report,
        ..Sources::default()
    };
    // Before the first look, so that nothing between the two is missed.
    let mut monitor = Monitor::open().context("hot-plug can't be noticed")?;
    let mut asked = Vec::new();
    loop {
        let sources = sources.clone();
        let seen = tokio::task::spawn_blocking(move || look(&sources))
            .await
            .context("the look at the hardware ended early")?;
        let seen: Result<Inventory, String> = seen.map(|look| look.inventory).map_err(|error| chain(&error));
        if inputs
            .send(Input::HardwareSeen {
                seen,
                rescans: std::mem::take(&mut asked),
            })
            .await
            .is_err()
        {
            return std::future::pending().await;
        }
        tokio::select! {
            () = monitor.changed() => tokio::time::sleep(debounce).await,
            Some(number) = rescans.recv() => asked.push(number),
        }
        while let Ok(number) = rescans.try_recv() {
            asked.push(number);
        }
    }
}

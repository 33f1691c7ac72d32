//! Scans the hardware at the start, after the kernel's hints, and when a caller asks.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use leaf_core::engine::Input;
use leaf_core::error::chain;
use leaf_core::hardware::Inventory;
use leaf_hardware::{Monitor, Sources, scan};
use tokio::sync::mpsc;

use crate::wake::Wake;

/// Scans for as long as the daemon runs; the first scan waits for `report`. `rescans` yields the numbers of the rescans
/// that callers ask for, in order.
///
/// # Errors
/// When the kernel's hints can't be received.
pub async fn run(
    report: impl Future<Output = Option<PathBuf>>,
    debounce: Duration,
    mut rescans: mpsc::Receiver<u64>,
    inputs: mpsc::Sender<Wake>,
) -> anyhow::Result<()> {
    let sources = Sources {
        report: report.await,
        ..Sources::default()
    };
    // Opened before the first scan, so that no change in between is missed.
    let mut monitor = Monitor::open().context("can't receive hot-plug events")?;
    let mut rescan = 0;
    let mut problems = Vec::new();
    loop {
        while let Ok(number) = rescans.try_recv() {
            rescan = number;
        }
        let sources = sources.clone();
        let scanned = tokio::task::spawn_blocking(move || scan(&sources))
            .await
            .context("the hardware scan ended early")?;
        if let Ok(scan) = &scanned
            && scan.report_problems != problems
        {
            for problem in &scan.report_problems {
                tracing::warn!(problem, "can't use a part of the nixos-facter report");
            }
            problems.clone_from(&scan.report_problems);
        }
        let scanned: Result<Inventory, String> =
            scanned.map(|scan| scan.inventory).map_err(|error| chain(&error));
        if let Err(error) = &scanned {
            tracing::error!(error, "can't scan the hardware");
        }
        if inputs
            .send(Input::HardwareScanned { scanned, rescan }.into())
            .await
            .is_err()
        {
            return std::future::pending().await;
        }
        tokio::select! {
            () = monitor.changed() => tokio::time::sleep(debounce).await,
            Some(number) = rescans.recv() => rescan = number,
        }
    }
}

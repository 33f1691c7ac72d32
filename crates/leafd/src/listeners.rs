//! Tasks that listen where something happens, and bring it to the main loop as an [`Input`].

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use leaf_bus::connect::{Bus, Status};
use leaf_bus::serve::Server;
use leaf_container::Containers;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::input::Input;
use crate::publisher::Published;
use crate::steps::ContainerHost;

/// Brings commands, until the daemon drains: then those that are here already.
///
/// # Errors
/// When it can't go on.
pub async fn take_commands(
    mut server: Server,
    inputs: mpsc::Sender<Input>,
    mut drained: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            incoming = server.next() => match incoming {
                Some(incoming) => {
                    if inputs.send(Input::Command(Box::new(incoming))).await.is_err() {
                        break;
                    }
                }
                None => break,
            },
            _ = &mut drained, if !drained.is_terminated() => server.drain().await,
        }
    }
    let _ = inputs.send(Input::Drained).await;
    std::future::pending().await
}

/// Brings what the publisher says.
///
/// # Errors
/// Never.
pub async fn watch_published(
    mut published: watch::Receiver<Published>,
    inputs: mpsc::Sender<Input>,
) -> anyhow::Result<()> {
    while published.changed().await.is_ok() {
        let now = *published.borrow_and_update();
        if inputs.send(Input::Published(now)).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// How much longer than a look the pause after it is: many containers that move all the time are not looked at all the time.
const PAUSE_AFTER_LOOK: u32 = 2;

/// Brings a look at the containers whenever something moved there.
///
/// # Errors
/// When it can't go on.
pub async fn watch_containers(view: Containers, inputs: mpsc::Sender<Input>) -> anyhow::Result<()> {
    let mut hints = view.watch()?;
    loop {
        let look = view.clone();
        let looked_at = Instant::now();
        let seen = tokio::task::spawn_blocking(move || look.observe())
            .await
            .context("the look at the containers ended early")?;
        match seen {
            Ok(seen) => {
                if inputs
                    .send(Input::ContainersSeen { looked_at, seen })
                    .await
                    .is_err()
                {
                    return std::future::pending().await;
                }
            }
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the containers can't be looked at"
            ),
        }
        tokio::time::sleep(looked_at.elapsed() * PAUSE_AFTER_LOOK).await;
        hints.changed().await?;
    }
}

/// Has the rules of the closed network made again from time to time: they are gone if somebody flushed all of nftables, and
/// running containers are open then.
///
/// # Errors
/// Never.
pub async fn keep_network(host: Arc<ContainerHost>, every: Duration) -> anyhow::Result<()> {
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = host.helper.carry_out(&host.network).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the rules of the closed network can't be made sure of"
            );
        }
    }
}

/// Logs how the connection to the streams does, and that to the callers where it is another one.
///
/// # Errors
/// When it can't go on.
pub async fn log_connection(bus: Bus) -> anyhow::Result<()> {
    let streams = log_status(bus.status(), "streams");
    match bus.callers_status() {
        Some(callers) => futures::join!(streams, log_status(callers, "callers")).0,
        None => streams.await,
    }
}

async fn log_status(mut status: watch::Receiver<Status>, to: &'static str) -> anyhow::Result<()> {
    loop {
        let now = status.borrow_and_update().clone();
        if now.is_connected() {
            tracing::info!(to, "{now}");
        } else {
            tracing::warn!(to, "{now}");
        }
        if status.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

//! Asks a leaf and its containers over and over while the credentials of all containers are renewed, and as long without that, and
//! prints how long the answers take, as JSON. `cargo xtask bench renewals` runs it.
//!
//! | command line | what it does |
//! |---|---|
//! | `renewals fill STATE_DIR LEAF COUNT` | creates and starts so many containers |
//! | `renewals ask STATE_DIR LEAF COUNT` | asks while they are renewed, and as long after that |
//! | `renewals empty STATE_DIR LEAF COUNT` | destroys them |
//!
//! A leaf that starts renews them all, one after the other, so it is started again in between.
#![allow(clippy::print_stdout, reason = "a program")]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::TryStreamExt as _;
use leaf_bus::client::{CallOptions, Client};
use leaf_bus::context;
use leaf_core::command::{CreateContainer, DestroyContainer, ListContainers, ShowContainer, ShowLeaf};
use leaf_core::container::ContainerPhase;
use leaf_core::id::{ContainerName, LeafName};
use leaf_core::spec::ContainerSource;
use serde_json::{Value, json};

/// How many containers are started at once.
const AT_ONCE: usize = 4;
/// How often it is looked whether all are renewed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The time limit of a request.
const WITHIN: Duration = Duration::from_secs(5);

// As `#[tokio::main]` makes it: like a minimal program.
#[tokio::main]
async fn main() -> Result<()> {
    let args = common::arguments();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [what, state, leaf, count] = args[..] else {
        bail!("this is a part of `cargo xtask bench`");
    };
    let file = Path::new(state).join("context.json");
    let settings = context::load(Some(file.to_str().context("a path of UTF-8")?))?;
    let scene = Scene {
        client: Client::connect(&settings, WITHIN).await?,
        leaf: LeafName::new(leaf)?,
        names: (1..=count.parse()?)
            .map(|number: usize| ContainerName::new(format!("r{number:04}")))
            .collect::<Result<_, _>>()?,
    };
    let found = match what {
        "fill" => scene.fill().await?,
        "ask" => scene.ask().await?,
        "empty" => scene.empty().await?,
        _ => bail!("this is a part of `cargo xtask bench`"),
    };
    println!("{found}");
    Ok(())
}

struct Scene {
    client: Client,
    leaf: LeafName,
    /// In the order in which a leaf renews them after its start.
    names: Vec<ContainerName>,
}

impl Scene {
    async fn fill(&self) -> Result<Value> {
        let began = Instant::now();
        let (first, others) = self.names.split_first().context("a number of containers")?;
        let template = ContainerSource::Template {
            name: "minimal".to_owned(),
        };
        self.create(first, template).await?;
        // Its system is built first.
        let path = loop {
            let shown = self.show(first).await?;
            match shown.desired.toplevel {
                Some(path) if shown.phase == ContainerPhase::Running => break path,
                _ => ensure!(began.elapsed() < Duration::from_secs(120), "{shown:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let system = ContainerSource::Toplevel { path };
        futures::stream::iter(others.iter().map(Ok))
            .try_for_each_concurrent(AT_ONCE, |name| self.create(name, system.clone()))
            .await?;
        Ok(json!({ "seconds": began.elapsed().as_secs_f64() }))
    }

    async fn create(&self, name: &ContainerName, source: ContainerSource) -> Result<()> {
        let create = CreateContainer {
            name: name.clone(),
            source,
            start: true,
            options: Default::default(),
        };
        self.client.call(&self.leaf, &create, patient()).await?;
        Ok(())
    }

    /// Destroys every container of the leaf.
    async fn empty(&self) -> Result<Value> {
        let listed = self
            .client
            .call(&self.leaf, &ListContainers {}, patient())
            .await?;
        futures::stream::iter(listed.containers.into_iter().map(Ok))
            .try_for_each_concurrent(AT_ONCE, |container| async move {
                let destroy = DestroyContainer {
                    name: container.name,
                    if_generation: None,
                };
                self.client.call(&self.leaf, &destroy, patient()).await?;
                anyhow::Ok(())
            })
            .await?;
        Ok(json!({}))
    }

    async fn show(&self, name: &ContainerName) -> Result<leaf_core::container::Container> {
        let show = ShowContainer { name: name.clone() };
        Ok(self
            .client
            .call(&self.leaf, &show, CallOptions::default())
            .await?)
    }

    async fn health(&self, name: &ContainerName) -> Result<()> {
        self.client
            .request_container_health(&self.leaf, name, WITHIN)
            .await?;
        Ok(())
    }

    /// Asks during the renewals and after them.
    async fn ask(&self) -> Result<Value> {
        let last = self.names.last().context("a number of containers")?;
        ensure!(
            self.show(last).await?.credentials_until.is_none(),
            "all were renewed before anything was measured"
        );
        let (mut during, mut after) = (Times::default(), Times::default());
        let measured = Instant::now();
        let mut looked = Instant::now();
        for name in self.names.iter().cycle() {
            self.ask_once(name, &mut during).await?;
            if looked.elapsed() >= LOOK_EVERY {
                if self.show(last).await?.credentials_until.is_some() {
                    break;
                }
                looked = Instant::now();
            }
        }
        let took = measured.elapsed();
        ensure!(
            during.container.len() >= self.names.len(),
            "too few containers answered: {}",
            during.container.len()
        );
        let measured = Instant::now();
        let mut looked = Instant::now();
        for name in self.names.iter().cycle() {
            self.ask_once(name, &mut after).await?;
            if looked.elapsed() >= LOOK_EVERY {
                self.show(last).await?;
                looked = Instant::now();
            }
            if measured.elapsed() >= took {
                break;
            }
        }
        Ok(json!({
            "seconds": took.as_secs_f64(),
            "during": during.found(),
            "after": after.found(),
        }))
    }

    /// Asks the leaf, and one container.
    async fn ask_once(&self, name: &ContainerName, times: &mut Times) -> Result<()> {
        let began = Instant::now();
        self.client
            .call(&self.leaf, &ShowLeaf {}, CallOptions::default())
            .await?;
        times.leaf.push(began.elapsed());
        let began = Instant::now();
        // The leaf's server was started again as well, and some have not connected yet.
        if self.health(name).await.is_ok() {
            times.container.push(began.elapsed());
        }
        Ok(())
    }
}

fn patient() -> CallOptions {
    CallOptions {
        timeout: Duration::from_secs(600),
        ..CallOptions::default()
    }
}

#[derive(Default)]
struct Times {
    leaf: Vec<Duration>,
    container: Vec<Duration>,
}

impl Times {
    fn found(self) -> Value {
        json!({ "leaf": quantiles(self.leaf), "container": quantiles(self.container) })
    }
}

/// In microseconds.
fn quantiles(mut times: Vec<Duration>) -> Value {
    times.sort_unstable();
    let at = |index: usize| times[index.min(times.len() - 1)].as_secs_f64() * 1e6;
    json!({
        "count": times.len(),
        "p50_us": at(times.len() / 2),
        "p99_us": at(times.len() * 99 / 100),
        "max_us": at(times.len() - 1),
    })
}

//! Asks a running leaf, and a bare responder of the same size beside it, and prints how long the answers take, as JSON.
//! `cargo xtask bench` runs it.
//!
//! | command line | what it asks |
//! |---|---|
//! | `requests round-trip STATE_DIR LEAF ROUNDS REQUESTS` | the leaf how it is |
//! | `requests concurrent STATE_DIR LEAF ROUNDS TASKS COMMANDS TOPLEVEL` | for changes, many at once |
//! | `requests health STATE_DIR LEAF ROUNDS REQUESTS CONTAINER` | a container how it is |
//! | `requests life STATE_DIR LEAF TOPLEVEL` | for one container, from create to destroy |
//! | `requests crowd STATE_DIR LEAF COUNT TOPLEVEL` | for the start of many containers at once |
//!
//! `requests respond …` is the bare responder, which some of them start as a process of its own, since the leaf is one, too.
#![allow(clippy::print_stdout, reason = "a program")]

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use leaf_bus::client::{CallOptions, Client};
use leaf_bus::connect::{ConnectSettings, Credentials};
use leaf_bus::context;
use leaf_bus::identity::Identity;
use leaf_core::command::{
    CreateContainer, DestroyContainer, Request, ShowLeaf, StartContainer, StopContainer,
};
use leaf_core::id::{ContainerName, LeafName, StorePath};
use leaf_core::spec::ContainerSource;
use leaf_core::subject;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

/// Where the bare responder listens: the leaf's user may, and a person may ask there.
const BARE: &str = "leaf.v1.ask.bench.bare";
const WARM_UP: usize = 500;

// As `#[tokio::main]` makes it: like a minimal program.
#[tokio::main]
async fn main() -> Result<()> {
    let args = common::arguments();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["respond", url, state, leaf, bytes] => {
            respond(url, Path::new(state), &LeafName::new(leaf)?, bytes.parse()?).await
        }
        ["round-trip", state, leaf, rounds, requests] => {
            let rounds = (rounds.parse()?, requests.parse()?);
            println!(
                "{}",
                round_trip(Path::new(state), &LeafName::new(leaf)?, rounds).await?
            );
            Ok(())
        }
        ["concurrent", state, leaf, rounds, tasks, commands, toplevel] => {
            let counts = (rounds.parse()?, tasks.parse()?, commands.parse()?);
            let toplevel = StorePath::new(toplevel)?;
            println!(
                "{}",
                concurrent(Path::new(state), &LeafName::new(leaf)?, counts, &toplevel).await?
            );
            Ok(())
        }
        ["health", state, leaf, rounds, requests, container] => {
            let counts = (rounds.parse()?, requests.parse()?);
            let container = ContainerName::new(container)?;
            println!(
                "{}",
                health(Path::new(state), &LeafName::new(leaf)?, counts, &container).await?
            );
            Ok(())
        }
        ["life", state, leaf, toplevel] => {
            let toplevel = StorePath::new(toplevel)?;
            println!(
                "{}",
                life(Path::new(state), &LeafName::new(leaf)?, &toplevel).await?
            );
            Ok(())
        }
        ["crowd", state, leaf, count, toplevel] => {
            let (count, toplevel) = (count.parse()?, StorePath::new(toplevel)?);
            println!(
                "{}",
                crowd(Path::new(state), &LeafName::new(leaf)?, count, &toplevel).await?
            );
            Ok(())
        }
        _ => bail!("this is a part of `cargo xtask bench`"),
    }
}

/// The bare responder: the fewest lines that answer a request.
async fn respond(url: &str, state: &Path, leaf: &LeafName, bytes: usize) -> Result<()> {
    let identity = Identity::open_or_create(&state.join("identity"), leaf)?;
    let credentials = identity.service_credentials();
    let client = async_nats::ConnectOptions::with_credentials(credentials.expose())?
        .connect(url)
        .await?;
    let mut requests = client.subscribe(BARE).await?;
    client.flush().await?;
    println!("ready");
    let body = Bytes::from(vec![b'x'; bytes]);
    while let Some(request) = requests.next().await {
        let reply = request.reply.context("a request has a reply subject")?;
        client.publish(reply, body.clone()).await?;
    }
    Ok(())
}

/// Starts the bare responder as a process of its own, and returns it when it listens.
async fn responder(url: &str, state: &Path, leaf: &LeafName, bytes: usize) -> Result<Child> {
    let mut responder = tokio::process::Command::new(std::env::current_exe()?)
        .args(["respond", url])
        .arg(state)
        .args([leaf.as_str(), &bytes.to_string()])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let said = responder.stdout.take().context("it is piped")?;
    let ready = BufReader::new(said).lines().next_line().await?;
    anyhow::ensure!(
        ready.as_deref() == Some("ready"),
        "the bare responder ended at once"
    );
    Ok(responder)
}

/// One and the same bare client asks both in turn; and once more the leaf, as leafctl does.
async fn round_trip(state: &Path, leaf: &LeafName, (rounds, requests): (usize, usize)) -> Result<Value> {
    let settings = settings(state)?;
    let (bare, url) = bare(&settings).await?;
    let client = Client::connect(&settings, Duration::from_secs(5)).await?;
    let show = format!("leaf.v1.cmd.{leaf}.{}.leaf.show", client.caller());
    let bytes = bare.request(show.clone(), Bytes::new()).await?.payload.len();

    let mut responder = responder(&url, state, leaf, bytes).await?;
    let mut found = Vec::new();
    for round in 0..=rounds {
        let count = if round == 0 { WARM_UP } else { requests };
        let of_leaf = ask(&bare, &show, bytes, count).await?;
        let of_bare = ask(&bare, BARE, bytes, count).await?;
        let of_client = call(&client, leaf, count).await?;
        if round > 0 {
            found.push(json!({ "leaf": of_leaf, "bare": of_bare, "client": of_client }));
        }
    }
    responder.kill().await?;
    Ok(json!({ "bytes": bytes, "requests": requests, "rounds": found }))
}

/// A client of a few lines, and the server that it is connected to.
async fn bare(settings: &ConnectSettings) -> Result<(async_nats::Client, String)> {
    let url = settings.servers.first().context("the context names a server")?;
    let Credentials::File(credentials) = &settings.credentials else {
        bail!("the context names a credentials file");
    };
    let client = async_nats::ConnectOptions::with_credentials_file(credentials)
        .await?
        .custom_inbox_prefix(&settings.inbox_prefix)
        .connect(url)
        .await?;
    Ok((client, url.clone()))
}

/// The same question answered inside a container and by a process beside the leaf.
async fn health(
    state: &Path,
    leaf: &LeafName,
    (rounds, requests): (usize, usize),
    container: &ContainerName,
) -> Result<Value> {
    let (client, url) = bare(&settings(state)?).await?;
    let inside = subject::container_health(leaf, container);
    let bytes = client.request(inside.clone(), Bytes::new()).await?.payload.len();
    let mut responder = responder(&url, state, leaf, bytes).await?;
    let mut found = Vec::new();
    for round in 0..=rounds {
        let of_container = ask(&client, &inside, bytes, requests).await?;
        let of_bare = ask(&client, BARE, bytes, requests).await?;
        if round > 0 {
            found.push(json!({ "container": of_container, "bare": of_bare }));
        }
    }
    responder.kill().await?;
    Ok(json!({ "bytes": bytes, "requests": requests, "rounds": found }))
}

/// One container from create to destroy; how many microseconds each took.
async fn life(state: &Path, leaf: &LeafName, toplevel: &StorePath) -> Result<Value> {
    let client = Client::connect(&settings(state)?, Duration::from_secs(30)).await?;
    let name = ContainerName::new("life")?;
    let mut times = Vec::new();
    let mut last = Instant::now();
    let mut done = |times: &mut Vec<u64>| {
        times.push(u64::try_from(last.elapsed().as_micros()).unwrap_or(u64::MAX));
        last = Instant::now();
    };
    make(&client, leaf, &name, toplevel).await?;
    done(&mut times);
    start(&client, leaf, &name).await?;
    done(&mut times);
    stop(&client, leaf, &name).await?;
    done(&mut times);
    destroy(&client, leaf, &name).await?;
    done(&mut times);
    Ok(json!(times))
}

/// Starts many containers at once, and returns how many seconds it took until all were ready. They are there before and
/// gone after.
async fn crowd(state: &Path, leaf: &LeafName, count: usize, toplevel: &StorePath) -> Result<Value> {
    let client = Client::connect(&settings(state)?, Duration::from_secs(30)).await?;
    let names: Vec<ContainerName> = (1..=count)
        .map(|number| ContainerName::new(format!("n{number}")))
        .collect::<Result<_, _>>()?;
    let client = &client;
    each(&names, 4, |name| async move {
        make(client, leaf, &name, toplevel).await
    })
    .await?;
    let began = Instant::now();
    each(
        &names,
        count,
        |name| async move { start(client, leaf, &name).await },
    )
    .await?;
    let seconds = began.elapsed().as_secs_f64();
    each(
        &names,
        4,
        |name| async move { destroy(client, leaf, &name).await },
    )
    .await?;
    Ok(json!({ "seconds": seconds }))
}

/// Does something for each container, so many at once.
async fn each<F: Future<Output = Result<()>>>(
    names: &[ContainerName],
    at_once: usize,
    does: impl Fn(ContainerName) -> F,
) -> Result<()> {
    futures::stream::iter(names.iter().cloned().map(Ok))
        .try_for_each_concurrent(at_once, does)
        .await
}

async fn ask(client: &async_nats::Client, subject: &str, bytes: usize, count: usize) -> Result<Value> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        let answer = client.request(subject.to_owned(), Bytes::new()).await?;
        times.push(began.elapsed());
        // The leaf's own report grows by a digit now and then.
        anyhow::ensure!(
            answer.payload.len().abs_diff(bytes) < 32,
            "an answer of {} bytes",
            answer.payload.len()
        );
    }
    Ok(quantiles(times))
}

async fn call(client: &Client, leaf: &LeafName, count: usize) -> Result<Value> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        client.call(leaf, &ShowLeaf {}, CallOptions::default()).await?;
        times.push(began.elapsed());
    }
    Ok(quantiles(times))
}

/// So many tasks send changing commands, each the next when it has the answer to the one before.
async fn concurrent(
    state: &Path,
    leaf: &LeafName,
    (rounds, tasks, commands): (usize, usize, usize),
    toplevel: &StorePath,
) -> Result<Value> {
    let client = Client::connect(&settings(state)?, Duration::from_secs(5)).await?;
    let still = ContainerName::new("still")?;
    make(&client, leaf, &still, toplevel).await?;
    let (mut stops, mut lives) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (client, still) = (&client, &still);
        let of_stops = together(
            tasks,
            commands,
            |_| async move { stop(client, leaf, still).await },
        )
        .await?;
        // What a container's life costs before it ever runs: files on the host, four events.
        let of_lives = together(tasks, (commands / 40).max(tasks), |task| async move {
            let name = ContainerName::new(format!("b{task}"))?;
            make(client, leaf, &name, toplevel).await?;
            destroy(client, leaf, &name).await
        })
        .await?;
        if round > 0 {
            stops.push(of_stops);
            lives.push(of_lives);
        }
    }
    destroy(&client, leaf, &still).await?;
    Ok(json!({ "tasks": tasks, "stop": stops, "create_and_destroy": lives }))
}

async fn together<F: Future<Output = Result<()>>>(
    tasks: usize,
    commands: usize,
    command: impl Fn(usize) -> F,
) -> Result<Value> {
    let each = commands.div_ceil(tasks);
    let began = Instant::now();
    let times: Vec<Vec<Duration>> = futures::stream::iter(0..tasks)
        .map(|task| {
            let command = &command;
            async move {
                let mut times = Vec::with_capacity(each);
                for _ in 0..each {
                    let began = Instant::now();
                    command(task).await?;
                    times.push(began.elapsed());
                }
                anyhow::Ok(times)
            }
        })
        .buffer_unordered(tasks)
        .try_collect()
        .await?;
    let seconds = began.elapsed().as_secs_f64();
    let mut found = quantiles(times.into_iter().flatten().collect());
    found["per_second"] = json!((each * tasks) as f64 / seconds);
    Ok(found)
}

async fn make(client: &Client, leaf: &LeafName, name: &ContainerName, toplevel: &StorePath) -> Result<()> {
    let request = CreateContainer {
        name: name.clone(),
        source: ContainerSource::Toplevel {
            path: toplevel.clone(),
        },
        start: false,
        options: Default::default(),
    };
    change(client, leaf, &request).await
}

async fn start(client: &Client, leaf: &LeafName, name: &ContainerName) -> Result<()> {
    let name = name.clone();
    let if_generation = None;
    change(client, leaf, &StartContainer { name, if_generation }).await
}

async fn stop(client: &Client, leaf: &LeafName, name: &ContainerName) -> Result<()> {
    let name = name.clone();
    let if_generation = None;
    change(client, leaf, &StopContainer { name, if_generation }).await
}

async fn destroy(client: &Client, leaf: &LeafName, name: &ContainerName) -> Result<()> {
    let name = name.clone();
    let if_generation = None;
    change(client, leaf, &DestroyContainer { name, if_generation }).await
}

/// Sends a command, and waits until it is done.
async fn change<R: Request>(client: &Client, leaf: &LeafName, request: &R) -> Result<()> {
    client
        .call(leaf, request, patient())
        .await
        .map(drop)
        .context(R::DECLARATION.noun_verb)
}

fn patient() -> CallOptions {
    CallOptions {
        timeout: Duration::from_secs(600),
        ..CallOptions::default()
    }
}

fn settings(state: &Path) -> Result<ConnectSettings> {
    let file = state.join("context.json");
    Ok(context::load(Some(file.to_str().context("a path of UTF-8")?))?)
}

/// In microseconds.
fn quantiles(mut times: Vec<Duration>) -> Value {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1e6;
    json!({ "p50_us": at(50), "p99_us": at(99) })
}

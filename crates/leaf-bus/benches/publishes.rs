//! What JetStream gives a bare program: publishes, pipelined, until the last is acknowledged. Prints JSON.
//! `cargo xtask bench` runs it.
//!
//! `publishes NATS_SERVER SYNC HOW DIRECTORY RECORDS COUNT`: a server of its own with this `sync_interval` (`default`
//! leaves it out), and the subjects, headers and bodies of RECORDS (events as JSON, a line each) over and over. HOW is
//! `api`, as async-nats offers it, a future for each acknowledgement; or `inbox`, the least that can be done: all
//! acknowledgements come to one inbox, and are counted.
#![allow(clippy::print_stdout, reason = "a program")]

mod common;

use std::collections::VecDeque;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{self, stream};
use async_nats::{Client, HeaderMap, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use leaf_core::event::EventRecord;
use serde_json::json;

/// How many publishes wait for their acknowledgement at most: as many as the leaf's own.
const WINDOW: usize = 1024;
const WARM_UP: usize = 5_000;

#[tokio::main]
async fn main() -> Result<()> {
    let args = common::arguments();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [program, sync, how, directory, records, count] = args[..] else {
        bail!("this is a part of `cargo xtask bench`");
    };
    let count = count.parse()?;
    let records = records_of(Path::new(records))?;
    let (mut server, client) = serve(program, sync, Path::new(directory)).await?;
    let context = jetstream::new(client.clone());
    context
        .create_stream(stream::Config {
            name: "BARE".to_owned(),
            subjects: vec!["leaf.v1.evt.>".to_owned()],
            ..stream::Config::default()
        })
        .await?;
    let seconds = if how == "api" {
        by_api(&context, &records, WARM_UP.min(count)).await?;
        let began = Instant::now();
        by_api(&context, &records, count).await?;
        began.elapsed().as_secs_f64()
    } else {
        let inbox = client.new_inbox();
        let mut acks = client.subscribe(inbox.clone()).await?;
        by_inbox(&client, &inbox, &mut acks, &records, WARM_UP.min(count)).await?;
        let began = Instant::now();
        by_inbox(&client, &inbox, &mut acks, &records, count).await?;
        began.elapsed().as_secs_f64()
    };
    let bytes: usize = records.iter().map(|record| record.body.len()).sum();
    println!(
        "{}",
        json!({
            "events": count,
            "seconds": seconds,
            "per_second": count as f64 / seconds,
            "body_bytes": bytes / records.len(),
        })
    );
    server.kill().await?;
    Ok(())
}

/// An event without the headers that only the leaf's own publisher adds.
struct Message {
    subject: String,
    headers: HeaderMap,
    body: Bytes,
}

fn records_of(file: &Path) -> Result<Vec<Message>> {
    let text = std::fs::read_to_string(file)?;
    let messages: Vec<Message> = text
        .lines()
        .map(|line| {
            let record: EventRecord = serde_json::from_str(line)?;
            let mut headers = HeaderMap::new();
            for (name, value) in record.headers.iter() {
                headers.insert(name, value);
            }
            Ok(Message {
                subject: record.subject,
                headers,
                body: record.body.into(),
            })
        })
        .collect::<Result<_>>()?;
    anyhow::ensure!(!messages.is_empty(), "{} has no events", file.display());
    Ok(messages)
}

/// Publishes so many, and returns when the last is acknowledged.
async fn by_api(context: &jetstream::Context, messages: &[Message], count: usize) -> Result<()> {
    let mut waiting = VecDeque::with_capacity(WINDOW);
    for message in messages.iter().cycle().take(count) {
        if waiting.len() == WINDOW {
            // Some room at once: fewer changes between sending and listening.
            for ack in waiting.drain(..WINDOW / 4) {
                let _: PublishAck = ack.await?;
            }
        }
        let ack = context
            .publish_with_headers(
                message.subject.clone(),
                message.headers.clone(),
                message.body.clone(),
            )
            .await?;
        waiting.push_back(ack);
    }
    for ack in waiting {
        ack.await?;
    }
    Ok(())
}

/// The same with one inbox for all.
async fn by_inbox(
    client: &Client,
    inbox: &str,
    acks: &mut Subscriber,
    messages: &[Message],
    count: usize,
) -> Result<()> {
    let inbox = async_nats::Subject::from(inbox);
    let mut waiting = 0;
    for message in messages.iter().cycle().take(count) {
        if waiting == WINDOW {
            // Some room at once: fewer changes between sending and listening.
            while waiting > WINDOW * 3 / 4 {
                take(acks.next().await)?;
                waiting -= 1;
            }
        }
        client
            .publish_with_reply_and_headers(
                message.subject.clone(),
                inbox.clone(),
                message.headers.clone(),
                message.body.clone(),
            )
            .await?;
        waiting += 1;
    }
    for _ in 0..waiting {
        take(acks.next().await)?;
    }
    Ok(())
}

fn take(ack: Option<async_nats::Message>) -> Result<()> {
    let ack = ack.context("the connection was lost")?;
    let said: serde_json::Value = serde_json::from_slice(&ack.payload).context("an acknowledgement")?;
    anyhow::ensure!(said["seq"].is_u64(), "not acknowledged: {said}");
    Ok(())
}

/// Starts a server with everything at its default but the place of its files.
async fn serve(program: &str, sync: &str, directory: &Path) -> Result<(tokio::process::Child, Client)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let sync = match sync {
        "default" => String::new(),
        other => format!("sync_interval: {other}"),
    };
    let config = directory.join("bare.conf");
    std::fs::write(
        &config,
        format!(
            "listen: 127.0.0.1:{port}\njetstream {{\nstore_dir: \"{}\"\n{sync}\n}}\n",
            directory.join("bare").display()
        ),
    )?;
    let mut server = tokio::process::Command::new(program)
        .arg("-c")
        .arg(&config)
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("can't run {program}"))?;
    let url = format!("nats://127.0.0.1:{port}");
    for _ in 0..200 {
        if let Some(status) = server.try_wait()? {
            bail!("nats-server ended with {status}");
        }
        match async_nats::connect(&url).await {
            Ok(client) => return Ok((server, client)),
            Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
        }
    }
    bail!("nats-server took no connections")
}

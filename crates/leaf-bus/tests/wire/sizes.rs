//! Servers that accept messages of 4 KiB, 64 KiB and 1 MiB: what is larger comes in parts, is cut, or says what to do.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use async_nats::HeaderMap;
use bytes::Bytes;
use futures::StreamExt as _;
use leaf_bus::client::{CallError, CallOptions};
use leaf_bus::connect::Bus;
use leaf_bus::kv::StateBucket;
use leaf_bus::parts::{PARTS_HEADER, REPLY_BYTES_HEADER};
use leaf_bus::serve::Server;
use leaf_core::command::LogChunk;
use leaf_core::event::header;
use leaf_core::id::{CommandId, JobId};
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::subject;
use libtest_mimic::Trial;
use serde_json::json;

use super::{admin, commands, daemon};
use crate::support::{LIMIT, Site, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("a_reply_larger_than_a_message_comes_in_parts", replies),
        trial(
            "who_takes_no_parts_is_told_what_to_do_about_a_large_reply",
            without_parts,
        ),
        trial("a_long_problem_is_shortened_to_a_message", problems),
        trial("a_jobs_log_is_cut_into_messages", logs),
        trial(
            "a_large_entry_is_in_the_bucket_without_its_oldest_revisions",
            entries,
        ),
    ]
}

const LIMITS: [u32; 3] = [4 << 10, 64 << 10, 1 << 20];

/// A server that accepts messages of this size, with the daemon connected.
async fn site(max_payload: u32) -> anyhow::Result<(Site, Bus)> {
    let site = Site::start_with(max_payload).await?;
    let bus = daemon(&site).await?;
    ensure!(bus.max_message_bytes() == Some(max_payload as usize));
    Ok((site, bus))
}

/// A JSON text of this size.
fn reply_of(bytes: usize) -> Vec<u8> {
    let text: String = (0..bytes / 64 + 1).map(|n| format!("{n:063} ")).collect();
    format!("\"{}\"", &text[..bytes - 2]).into_bytes()
}

/// Answers each command: `leaf.show` with as many bytes as its id says, and others with a problem of that size.
async fn answer(mut server: Server) {
    while let Some(incoming) = server.next().await {
        let id = incoming.command_id.clone();
        let bytes: usize = incoming
            .correlation
            .as_deref()
            .and_then(|mark| mark.parse().ok())
            .unwrap_or(0);
        let reply = match incoming.verb.as_str() {
            "show" => Ok(reply_of(bytes)),
            _ => Err(Problem::new(ProblemCode::Failed, "é".repeat(bytes / 2))),
        };
        // As the engine does it: a command without an id gets one.
        let id = id.unwrap_or_else(|| CommandId::new("made-by-the-leaf").expect("an id"));
        incoming.responder.reply(Some(&id), reply).await;
    }
}

fn asking_for(bytes: usize) -> CallOptions {
    CallOptions {
        correlation: Some(bytes.to_string()),
        timeout: LIMIT,
        ..CallOptions::default()
    }
}

async fn replies() -> anyhow::Result<()> {
    for limit in LIMITS {
        let (site, bus) = site(limit).await?;
        let server = commands::server(&bus).await?;
        let client = admin(&site).await?;
        let leaf = leaf();
        let limit = limit as usize;
        let test = async {
            for bytes in [
                2,
                limit / 2,
                limit - 513,
                limit - 512,
                limit - 511,
                limit,
                3 * limit,
                2 << 20,
            ] {
                let options = asking_for(bytes);
                let reply = client
                    .call_raw(&leaf, "leaf", "show", b"{}".to_vec(), options)
                    .await
                    .with_context(|| format!("{bytes} bytes at {limit}"))?;
                ensure!(
                    reply == reply_of(bytes),
                    "{bytes} bytes at {limit}: {}",
                    reply.len()
                );
            }
            // Many at once: their parts don't get mixed up.
            let calls = (1..20).map(|n| {
                let (client, leaf) = (&client, &leaf);
                async move {
                    let bytes = limit + n * limit / 7;
                    let options = asking_for(bytes);
                    let reply = client
                        .call_raw(leaf, "leaf", "show", b"{}".to_vec(), options)
                        .await?;
                    ensure!(reply == reply_of(bytes), "{bytes}");
                    anyhow::Ok(())
                }
            });
            futures::future::try_join_all(calls).await.map(drop)
        };
        tokio::select! {
            () = answer(server) => anyhow::bail!("the server ended"),
            tested = test => tested?,
        }
    }
    Ok(())
}

async fn without_parts() -> anyhow::Result<()> {
    for limit in LIMITS {
        let (site, bus) = site(limit).await?;
        let server = commands::server(&bus).await?;
        let user = site.admin().await?;
        let test = async {
            let mut headers = HeaderMap::new();
            headers.insert(header::CORRELATION_ID, limit.to_string());
            let request = async_nats::Request::new()
                .headers(headers)
                .payload("{}".into())
                .timeout(Some(LIMIT));
            let answer = user
                .client
                .send_request("leaf.v1.cmd.edge.admin.leaf.show", request)
                .await?;
            let headers = answer.headers.as_ref().context("headers")?;
            ensure!(
                headers
                    .get(REPLY_BYTES_HEADER)
                    .is_some_and(|bytes| bytes.as_str() == limit.to_string())
            );
            ensure!(headers.get(header::CAUSATION_ID).is_some());
            let problem: Problem = serde_json::from_slice(&answer.payload)?;
            ensure!(problem.code == ProblemCode::Failed, "{problem}");
            for says in ["raise its `max_payload`", PARTS_HEADER] {
                ensure!(problem.detail.contains(says), "{problem}");
            }
            anyhow::Ok(())
        };
        tokio::select! {
            () = answer(server) => anyhow::bail!("the server ended"),
            tested = test => tested?,
        }
    }
    Ok(())
}

async fn problems() -> anyhow::Result<()> {
    for limit in LIMITS {
        let (site, bus) = site(limit).await?;
        let server = commands::server(&bus).await?;
        let client = admin(&site).await?;
        let leaf = leaf();
        let limit = limit as usize;
        let test = async {
            for bytes in [10, limit / 2, limit, 2 << 20] {
                let options = asking_for(bytes);
                let reply = client
                    .call_raw(&leaf, "job", "cancel", b"{}".to_vec(), options)
                    .await;
                let Err(CallError::Problem(problem)) = reply else {
                    anyhow::bail!("{bytes} bytes at {limit}: {reply:?}")
                };
                ensure!(problem.code == ProblemCode::Failed);
                ensure!(problem.detail.starts_with("éé") && problem.detail.ends_with("éé"));
            }
            anyhow::Ok(())
        };
        tokio::select! {
            () = answer(server) => anyhow::bail!("the server ended"),
            tested = test => tested?,
        }
    }
    Ok(())
}

async fn logs() -> anyhow::Result<()> {
    for limit in LIMITS {
        let (site, bus) = site(limit).await?;
        let user = site.admin().await?;
        let job = JobId(uuid::Uuid::from_u128(9));
        let mut heard = user.client.subscribe(subject::job_log(&leaf(), job)).await?;
        user.client.request("$JS.API.INFO", "".into()).await?;
        let text = String::from_utf8(reply_of(64 << 10))?;
        let piece = LogChunk {
            text: text.clone(),
            next_offset: 7 + text.len() as u64,
            complete: false,
        };
        bus.publish_log(&leaf(), job, 7, &piece).await;
        let (mut said, mut offset) = (String::new(), 7);
        while offset < piece.next_offset {
            let message = tokio::time::timeout(LIMIT, heard.next())
                .await
                .with_context(|| format!("after {offset} at {limit}"))?
                .context("a message")?;
            let headers = message.headers.as_ref().context("headers")?;
            let number = |name: &str| -> anyhow::Result<u64> {
                Ok(headers.get(name).context("a header")?.as_str().parse()?)
            };
            ensure!(number(header::OFFSET)? == offset);
            offset = number(header::NEXT_OFFSET)?;
            said.push_str(std::str::from_utf8(&message.payload)?);
            ensure!(said.len() as u64 + 7 == offset);
        }
        ensure!(said == text, "{limit}");
    }
    Ok(())
}

async fn entries() -> anyhow::Result<()> {
    for limit in LIMITS {
        let (site, bus) = site(limit).await?;
        let client = admin(&site).await?;
        let bucket = StateBucket::ensure(&bus, &leaf()).await?;
        let limit = limit as usize;
        let revision = |n: usize| json!({ "generation": n, "text": "x".repeat(limit / 8) });
        let revisions: Vec<_> = (1..=16).map(revision).collect();
        let large = json!({ "name": "web", "revisions": revisions });
        let alone = json!({ "name": "x".repeat(limit) });
        let small = json!({ "name": "small" });
        let state: BTreeMap<String, Bytes> = [
            ("container.web", &large),
            ("device.x", &alone),
            ("device.y", &small),
        ]
        .map(|(key, value)| (key.to_owned(), Bytes::from(value.to_string())))
        .into();
        bucket.replace(&state).await?;
        let changes: Vec<_> = state
            .clone()
            .into_iter()
            .map(|(key, value)| (key, Some(value)))
            .collect();
        bucket.apply(&changes).await?;
        let found = client.state_entries(&leaf()).await?;
        ensure!(
            found.keys().eq(["container.web", "device.y"]),
            "{:?}",
            found.keys()
        );
        ensure!(found["device.y"] == small);
        let kept = found["container.web"]["revisions"]
            .as_array()
            .context("revisions")?;
        ensure!((4..16).contains(&kept.len()), "{}", kept.len());
        ensure!(kept.last() == large["revisions"].as_array().and_then(|all| all.last()));
    }
    Ok(())
}

//! `leafctl` against a leaf of a newer version, which says what it doesn't know.

use anyhow::{Context as _, ensure};
use async_nats::HeaderMap;
use futures::StreamExt as _;
use leaf_core::subject;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::ctl;
use crate::support::TestLeaf;

/// A container in a phase that this version doesn't know.
fn container() -> Value {
    json!({
        "name": "web", "phase": "frozen", "cause": {},
        "desired": {
            "generation": 2, "run": "running",
            "source": { "type": "template", "name": "minimal" },
            "network": { "host_address": "10.233.1.1", "container_address": "10.233.1.2" },
        },
        "created_at": "2026-11-20T16:00:00Z", "changed_at": "2026-11-20T16:00:02.5Z",
        "motto": "a \u{1b}[31mred\u{1b}[0m one",
    })
}

fn device() -> Value {
    json!({ "id": "npu-1", "identity": "serial", "kind": "neural_processor", "status": "present" })
}

/// Answers as a newer leafd would in place of one that was killed; its server lives on.
async fn answer_as_a_newer_leafd(leaf: &TestLeaf) -> anyhow::Result<JoinSet<()>> {
    let nats = leaf.nats_as_service().await?;
    let mut commands = nats.subscribe(subject::commands_of(&leaf.name)).await?;
    nats.flush().await?;
    let mut responder = JoinSet::new();
    responder.spawn(async move {
        while let Some(command) = commands.next().await {
            let Some(reply) = command.reply.clone() else {
                continue;
            };
            let verb: Vec<&str> = command.subject.rsplitn(3, '.').collect();
            let mut headers = HeaderMap::new();
            let body = match (verb[1], verb[0]) {
                ("container", "show" | "start") => container(),
                ("container", "list") => json!({ "containers": [container()] }),
                ("hardware", "list") => json!({ "devices": [device()] }),
                _ => {
                    headers.insert("Nats-Service-Error-Code", "418");
                    headers.insert("Nats-Service-Error", "It is a teapot");
                    json!({
                        "type": "urn:cim-leaf:problem:teapot", "title": "It is a teapot", "status": 418,
                        "detail": "this leaf makes tea only", "code": "teapot",
                    })
                }
            };
            let _ = nats
                .publish_with_headers(reply, headers, body.to_string().into())
                .await;
            let _ = nats.flush().await;
        }
    });
    Ok(responder)
}

pub(super) async fn answers_as_they_came() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    leaf.kill().await?;
    let responder = answer_as_a_newer_leafd(&leaf).await?;
    let name = leaf.name.to_string();
    for (arguments, says) in [
        (&["container", "show", "web"][..], "\"phase\": \"frozen\""),
        (&["container", "start", "web"][..], "\"phase\": \"frozen\""),
        (&["container", "list"][..], "\"phase\": \"frozen\""),
        (&["hardware", "list"][..], "\"kind\": \"neural_processor\""),
    ] {
        let arguments: Vec<&str> = ["--leaf", &name]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        let output = ctl(&leaf, &arguments).await?;
        let (out, err) = (
            String::from_utf8(output.stdout)?,
            String::from_utf8(output.stderr)?,
        );
        ensure!(
            output.status.success(),
            "{arguments:?}: {}\n{out}\n{err}",
            output.status
        );
        ensure!(out.contains(says), "{arguments:?}: {out}");
        ensure!(err.contains("may be of a newer version"), "{arguments:?}: {err}");
        ensure!(!out.contains('\u{1b}'), "control characters are escaped: {out:?}");
        let _: Value = serde_json::from_str(&out).with_context(|| out.clone())?;

        let arguments: Vec<&str> = ["--json"].into_iter().chain(arguments).collect();
        let output = ctl(&leaf, &arguments).await?;
        ensure!(output.status.success(), "{arguments:?}: {}", output.status);
        let _: Value = serde_json::from_slice(&output.stdout)?;
    }
    let output = ctl(&leaf, &["--leaf", &name, "hardware", "rescan"]).await?;
    let err = String::from_utf8(output.stderr)?;
    ensure!(
        !output.status.success(),
        "a problem of an unknown code is a failure"
    );
    ensure!(err.contains("this leaf makes tea only (teapot)"), "{err}");
    drop(responder);
    Ok(())
}

//! Bad input: each is answered with its code, and nothing of it lands in the history.

use std::time::Duration;

use anyhow::ensure;
use async_nats::HeaderMap;
use leaf_bus::identity::Permissions;
use leaf_core::id::Caller;
use leaf_core::problem::ProblemCode;
use libtest_mimic::Trial;
use serde_json::json;

use super::wire::{Wire, header, problem, value};
use crate::support::{Host, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    vec![
        host.trial("a body that is not JSON, of another shape or with unknown fields is malformed, and the error names the place", &[], bodies),
        host.trial("an unsupported version, an unknown command and an invalid token in the subject are distinguished", &[], subjects),
        host.trial("a body over the limit is refused by the leaf, and one over the server's by the server", &[], large),
        host.trial("a container's name with a slash, dots, 200 characters, Unicode, none or a leading dash is refused", &[], names),
        host.trial("values that would be a flag or a control character on a command line are refused", &[], installables),
        host.trial("a command whose reply would go into the event stream or to another caller is not carried out", &[], replies),
        host.trial("a command without a reply subject is not carried out", &[], no_reply),
        host.trial("publishing as another caller is denied by the server", &[], another_caller),
        host.trial("a command id with a blank, of 65 characters or a correlation of two lines is malformed", &[], ids),
        host.trial("a leaf refuses what it doesn't support, with the reason", &[], unsupported),
    ]
}

async fn bodies() -> anyhow::Result<()> {
    let mut wire = Wire::start().await?;
    let before = wire.leaf.published().await?;
    for (verb, body, says) in [
        ("leaf.show", &b"{"[..], "EOF"),
        ("leaf.show", b"[]", "must be an object"),
        ("container.start", br#"["web",null]"#, "must be an object"),
        ("leaf.show", b"null", "invalid type"),
        ("leaf.show", b"\xff\xfe", "can't parse the body"),
        ("leaf.show", br#"{"sudo":true}"#, "unknown field `sudo`"),
        ("leaf.show", b"{} {}", "trailing"),
        ("hardware.show", b"", "missing field `id`"),
        ("hardware.show", br#"{"id":7}"#, "invalid type"),
        ("hardware.show", br#"{"id":"Upper"}"#, "is not a device id"),
        ("container.create", br#"{"name":"a"}"#, "missing field `source`"),
        (
            "container.create",
            br#"{"name":"a","source":{"type":"magic"}}"#,
            "unknown variant `magic`",
        ),
        (
            "container.create",
            br#"{"name":"a","source":{"type":"toplevel","path":"/etc"}}"#,
            "is not a store path",
        ),
        (
            "container.start",
            br#"{"name":"a","if_generation":-1}"#,
            "invalid value",
        ),
        (
            "container.logs",
            br#"{"name":"a","lines":"many"}"#,
            "invalid type",
        ),
        ("nix.build", br#"{"installable":"a"}"#, "nix.build"),
        ("job.log", br#"{"id":"1"}"#, "job.log"),
        (
            "job.cancel",
            br#"{"id":"01890A5D-AC96-774B-BCCE-B302099A8057","force":true}"#,
            "unknown field `force`",
        ),
    ] {
        let answer = wire
            .send(&wire.subject(verb), HeaderMap::new(), body.to_vec())
            .await?;
        let problem = problem(&answer)?;
        let text = String::from_utf8_lossy(body);
        ensure!(
            problem.code == ProblemCode::Malformed,
            "{verb} {text} gave {problem:?}"
        );
        ensure!(
            problem.detail.contains(says),
            "{verb} {text}: {:?} lacks {says:?}",
            problem.detail
        );
    }
    let deep = "[".repeat(100_000);
    let answer = wire
        .send(&wire.subject("leaf.show"), HeaderMap::new(), deep.into_bytes())
        .await?;
    ensure!(problem(&answer)?.code == ProblemCode::Malformed);
    for empty in ["", " \n", "{}"] {
        let answer = wire
            .send(&wire.subject("leaf.show"), HeaderMap::new(), empty.into())
            .await?;
        value(&answer, "reply.leaf.show")?;
    }
    wire.nothing_recorded_since(before).await
}

async fn subjects() -> anyhow::Result<()> {
    let mut wire = Wire::start().await?;
    let before = wire.leaf.published().await?;
    let leaf = wire.leaf.name.clone();
    let long = "x".repeat(200);
    for (subject, code) in [
        (
            format!("leaf.v9.cmd.{leaf}.tester.leaf.show"),
            ProblemCode::UnsupportedVersion,
        ),
        (
            format!("leaf.V1.cmd.{leaf}.tester.leaf.show"),
            ProblemCode::UnsupportedVersion,
        ),
        (
            format!("leaf.v1.cmd.{leaf}.tester.leaf.eat"),
            ProblemCode::UnknownCommand,
        ),
        (
            format!("leaf.v1.cmd.{leaf}.tester.{long}.show"),
            ProblemCode::UnknownCommand,
        ),
        (
            format!("leaf.v1.cmd.{leaf}.tester.leaf.SHOW"),
            ProblemCode::Malformed,
        ),
        (
            format!("leaf.v1.cmd.{leaf}.tester.leaf.sh\u{f6}w"),
            ProblemCode::Malformed,
        ),
        (format!("leaf.v1.cmd.{leaf}.tester.leaf"), ProblemCode::Malformed),
        (
            format!("leaf.v1.cmd.{leaf}.tester.leaf.show.more"),
            ProblemCode::Malformed,
        ),
    ] {
        let problem = problem(&wire.send(&subject, HeaderMap::new(), Vec::new()).await?)?;
        ensure!(problem.code == code, "{subject} gave {problem:?}");
        ensure!(problem.detail.len() < 1000, "{}", problem.detail);
    }
    // Another leaf's name, a caller that can't be one: nobody answers, and nobody would know whom.
    for subject in [
        format!("leaf.v1.cmd.{leaf}.{long}.leaf.show"),
        format!("leaf.v1.cmd.{leaf}.Tester.leaf.show"),
    ] {
        wire.send_with_reply(&subject, Some("_INBOX.tester.x"), "")
            .await?;
    }
    wire.nothing_recorded_since(before).await
}

async fn large() -> anyhow::Result<()> {
    let mut wire = Wire::start().await?;
    let before = wire.leaf.published().await?;
    let limit = leaf_core::command::MAX_COMMAND_BYTES;
    let send = async |bytes: usize| {
        wire.send(&wire.subject("leaf.show"), HeaderMap::new(), vec![b' '; bytes])
            .await
    };
    value(&send(limit).await?, "reply.leaf.show")?;
    for bytes in [limit + 1, 1_000_000] {
        let problem = problem(&send(bytes).await?)?;
        ensure!(problem.code == ProblemCode::TooLarge, "{problem:?}");
        ensure!(problem.detail.contains(&limit.to_string()), "{problem:?}");
    }
    // Over max_payload the server ends the connection, or our own client refuses to send: not the leaf's matter.
    let _ = wire
        .client
        .publish(wire.subject("leaf.show"), vec![b' '; 3 << 20].into())
        .await;
    wire.nothing_recorded_since(before).await
}

async fn names() -> anyhow::Result<()> {
    let mut wire = Wire::start().await?;
    let before = wire.leaf.published().await?;
    let long = "x".repeat(200);
    for name in [
        "",
        "a/b",
        "..",
        "../../etc",
        "a.b",
        "-rf",
        "a b",
        "w\u{eb}b",
        "\u{1f980}",
        "a\u{0}",
        "twelve-chars",
        &long,
    ] {
        for verb in ["create", "start", "stop", "destroy", "show", "logs"] {
            let mut body = json!({ "name": name });
            if verb == "create" {
                body["source"] = json!({ "type": "template", "name": "minimal" });
            }
            let problem = wire
                .refused(&format!("container.{verb}"), &body, ProblemCode::Malformed)
                .await?;
            ensure!(problem.detail.contains("is not a container name"), "{problem:?}");
            ensure!(problem.detail.len() < 400, "{problem:?}");
        }
    }
    wire.nothing_recorded_since(before).await
}

async fn installables() -> anyhow::Result<()> {
    let mut wire = Wire::start().await?;
    let before = wire.leaf.published().await?;
    let long = "x".repeat(5000);
    for installable in [
        json!({ "type": "flake", "reference": "--help" }),
        json!({ "type": "flake", "reference": "a\nb" }),
        json!({ "type": "flake", "reference": "" }),
        json!({ "type": "flake", "reference": long }),
        json!({ "type": "file", "path": "relative.nix" }),
        json!({ "type": "file", "path": "/a.nix", "attribute": "--impure" }),
        json!({ "type": "template", "name": "../../etc" }),
    ] {
        let problem = problem(
            &wire
                .ask("nix.build", &json!({ "installable": installable }))
                .await?,
        )?;
        // Without Nix it is refused as well, for that reason.
        ensure!(
            matches!(problem.code, ProblemCode::Invalid | ProblemCode::Unsupported),
            "{installable} gave {problem:?}"
        );
    }
    wire.nothing_recorded_since(before).await
}

async fn replies() -> anyhow::Result<()> {
    let mut wire = Wire::start().await?;
    let leaf = wire.leaf.name.clone();
    let before = wire.leaf.published().await?;
    let mut victim = wire.client.subscribe("_INBOX.victim.>").await?;
    wire.client.flush().await?;
    let command = wire.subject("container.create");
    let body = json!({ "name": "a", "source": { "type": "template", "name": "minimal" } }).to_string();
    for reply in [
        format!("leaf.v1.evt.{leaf}.leaf.{leaf}.started"),
        format!("leaf.v1.beat.{leaf}"),
        "_INBOX.victim.1".to_owned(),
        "_INBOX.testers.1".to_owned(),
        format!("$JS.API.STREAM.DELETE.EVENTS_{leaf}"),
        format!("$KV.leaf_state.{leaf}.leaf"),
    ] {
        for subject in [
            &command,
            &wire.subject("leaf.show"),
            &format!("leaf.v9.cmd.{leaf}.tester.leaf.show"),
        ] {
            wire.send_with_reply(subject, Some(&reply), &body).await?;
        }
    }
    wire.nothing_recorded_since(before).await?;
    // And the stream holds what the leaf wrote, nothing else.
    ensure!(wire.leaf.complete_events(1).await?.len() as u64 == before);
    wire.client.publish("_INBOX.tester.marker", "".into()).await.ok();
    let none = tokio::time::timeout(
        Duration::from_millis(200),
        super::wire::next(&mut victim, "an answer"),
    )
    .await;
    ensure!(none.is_err(), "another caller got an answer: {none:?}");
    Ok(())
}

async fn no_reply() -> anyhow::Result<()> {
    let mut wire = Wire::start().await?;
    let before = wire.leaf.published().await?;
    let body = json!({ "installable": { "type": "flake", "reference": "/nowhere" } }).to_string();
    wire.send_with_reply(&wire.subject("nix.build"), None, &body)
        .await?;
    wire.nothing_recorded_since(before).await
}

async fn another_caller() -> anyhow::Result<()> {
    let wire = Wire::start().await?;
    let mallory = Caller::new("mallory")?;
    let credentials = wire
        .leaf
        .identity()?
        .user_credentials(&mallory, &Permissions::person(&mallory));
    let (sender, mut complaints) = tokio::sync::mpsc::unbounded_channel();
    let url = leaf_bus::context::load(wire.leaf.context_file().to_str())?
        .servers
        .join(",");
    let client = async_nats::ConnectOptions::new()
        .credentials(credentials.expose())?
        .custom_inbox_prefix("_INBOX.mallory")
        .event_callback(move |event| {
            let _ = sender.send(event.to_string());
            std::future::ready(())
        })
        .connect(url)
        .await?;
    let own = format!("leaf.v1.cmd.{}.mallory.leaf.show", wire.leaf.name);
    let answer = client.request(own, "".into()).await?;
    value(&answer, "reply.leaf.show")?;
    for subject in [
        format!("leaf.v1.cmd.{}.admin.leaf.show", wire.leaf.name),
        format!("leaf.v1.evt.{0}.leaf.{0}.started", wire.leaf.name),
        format!("leaf.v1.beat.{}", wire.leaf.name),
    ] {
        client.publish(subject.clone(), "{}".into()).await?;
        client.flush().await?;
        let said = until("the server complains", async || {
            Ok(complaints
                .recv()
                .await
                .filter(|said| said.to_lowercase().contains("permissions violation")))
        })
        .await?;
        ensure!(
            said.to_lowercase().contains(&subject.to_lowercase()),
            "{subject}: {said}"
        );
    }
    Ok(())
}

async fn ids() -> anyhow::Result<()> {
    let mut wire = Wire::start().await?;
    let before = wire.leaf.published().await?;
    for id in ["", "a b", "-a", "a/b", "\u{fc}", &"x".repeat(65)] {
        let problem = problem(&wire.ask_as(id, "leaf.show", &json!({})).await?)?;
        ensure!(problem.code == ProblemCode::Malformed, "{id:?} gave {problem:?}");
        ensure!(problem.detail.contains("ce-id"), "{problem:?}");
    }
    let answer = wire.ask_as("a.b:c_d-1", "leaf.show", &json!({})).await?;
    ensure!(header(&answer, "ce-causationid").as_deref() == Some("a.b:c_d-1"));
    let mut headers = HeaderMap::new();
    headers.insert("ce-correlationid", "x".repeat(300).as_str());
    let answer = wire.send(&wire.subject("leaf.show"), headers, Vec::new()).await?;
    ensure!(problem(&answer)?.code == ProblemCode::Malformed);
    wire.nothing_recorded_since(before).await
}

async fn unsupported() -> anyhow::Result<()> {
    let leaf = crate::support::Setup::new()
        .set("nix.program", "/nonexistent/nix")
        .start()
        .await?;
    let mut wire = Wire::to(leaf).await?;
    let before = wire.leaf.published().await?;
    let create = json!({ "name": "a", "source": { "type": "template", "name": "minimal" } });
    let problem = wire
        .refused("container.create", &create, ProblemCode::Unsupported)
        .await?;
    ensure!(problem.detail.contains("containers.enable"), "{problem:?}");
    let build = json!({ "installable": { "type": "flake", "reference": "/a" } });
    let problem = wire
        .refused("nix.build", &build, ProblemCode::Unsupported)
        .await?;
    ensure!(problem.detail.contains("/nonexistent/nix"), "{problem:?}");
    wire.nothing_recorded_since(before).await
}

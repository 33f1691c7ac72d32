//! `leafctl` against a leaf each of whose texts would command the terminal.
//!
//! The replies are the golden messages, with such a text in each place that takes any text.

use std::path::Path;

use anyhow::{Context as _, ensure};
use async_nats::HeaderMap;
use futures::StreamExt as _;
use leaf_bus::identity::Permissions;
use leaf_core::event::header;
use leaf_core::id::Caller;
use leaf_core::schema::catalogue;
use leaf_core::subject;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{ctl, program, run, text};
use crate::support::{HOSTILE, TestLeaf};

/// Puts the text into each place of a message that takes any text; beside each key, too.
fn poison(name: &str, message: Value) -> Value {
    let reread = catalogue()
        .into_iter()
        .find(|of| of.name == name)
        .unwrap_or_else(|| panic!("{name} is a type"))
        .shape
        .reread;
    let mut whole = message;
    for pointer in places(&whole, String::new()) {
        let mut tried = whole.clone();
        let place = tried.pointer_mut(&pointer).expect("a place of it");
        match place {
            Value::String(text) => text.push_str(HOSTILE),
            Value::Object(fields) => {
                let Some((key, value)) = fields.iter().next().map(|(k, v)| (k.clone(), v.clone())) else {
                    continue;
                };
                fields.insert(format!("{key}{HOSTILE}"), value);
            }
            _ => continue,
        }
        if reread(tried.clone()).is_ok() {
            whole = tried;
        }
    }
    whole
}

fn places(value: &Value, at: String) -> Vec<String> {
    let mut below: Vec<String> = match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, value)| {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(value, format!("{at}/{key}"))
            })
            .collect(),
        Value::Array(items) => (0..)
            .zip(items)
            .flat_map(|(index, value)| places(value, format!("{at}/{index}")))
            .collect(),
        _ => Vec::new(),
    };
    below.push(at);
    below
}

fn golden(file: &str) -> anyhow::Result<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/v1")
        .join(format!("{file}.json"));
    let mut golden: Value = serde_json::from_slice(&std::fs::read(&path).with_context(|| file.to_owned())?)?;
    Ok(golden["body"].take())
}

/// The golden message of a file, with the text in it.
fn poisoned(file: &str) -> anyhow::Result<Value> {
    let name = file.split("--").next().unwrap_or(file);
    Ok(poison(name, golden(file)?))
}

/// A container that runs, and has an error all the same.
fn container() -> anyhow::Result<Value> {
    let mut container = golden("reply.container.show--options")?;
    container["phase"] = "running".into();
    container["error"] = "it is degraded".into();
    Ok(poison("reply.container.show", container))
}

fn list() -> anyhow::Result<Value> {
    let mut list = poisoned("reply.container.list--foreign")?;
    list["containers"] = json!([container()?]);
    Ok(list)
}

/// Answers each command with its golden reply, in place of a leafd that was killed; its server lives on.
async fn answer(leaf: &TestLeaf) -> anyhow::Result<JoinSet<()>> {
    let nats = leaf.nats_as_service().await?;
    let mut commands = nats.subscribe(subject::commands_of(&leaf.name)).await?;
    nats.flush().await?;
    // In place of a container.
    let all = Permissions {
        publish: vec![">".into()],
        subscribe: vec![">".into()],
        ..Permissions::default()
    };
    let caller = Caller::new("container")?;
    let credentials = leaf.identity()?.user_credentials(&caller, &all);
    let guest = leaf.nats(&credentials, &caller).await?;
    let mut health = guest.subscribe(subject::container_healths()).await?;
    guest.flush().await?;
    let name = leaf.name.clone();
    let mut responders = JoinSet::new();
    responders.spawn(async move {
        let mut shown = 0;
        while let Some(command) = commands.next().await {
            let Some(reply) = command.reply.clone() else {
                continue;
            };
            let verb: Vec<&str> = command.subject.rsplitn(3, '.').collect();
            let mut headers = HeaderMap::new();
            let body = match (verb[1], verb[0]) {
                // A job that says something, then fails.
                ("job", "show") => {
                    shown += 1;
                    if shown % 2 == 1 {
                        poisoned("reply.job.show")
                    } else {
                        poisoned("reply.job.show--failed")
                    }
                }
                ("leaf", "show") => poisoned("reply.leaf.show--raw-entries"),
                ("container", "list") => list(),
                ("container", "diff" | "stats" | "logs" | "destroy") => {
                    poisoned(&format!("reply.container.{}", verb[0]))
                }
                // A value that this version doesn't know, and problems.
                ("container", "history") => Ok(json!({ "revisions": HOSTILE })),
                ("container", "pause") => {
                    headers.insert("Nats-Service-Error-Code", "418");
                    headers.insert("Nats-Service-Error", "It is a teapot");
                    Ok(json!({ "code": HOSTILE, "detail": HOSTILE }))
                }
                ("container", "resume") => {
                    headers.insert("Nats-Service-Error-Code", "500");
                    poisoned("problem--failed")
                }
                ("container", _) => container(),
                (noun, verb) => poisoned(&format!("reply.{noun}.{verb}")),
            };
            let body = body.expect("a golden reply");
            let _ = nats
                .publish_with_headers(reply, headers, body.to_string().into())
                .await;
            let _ = nats.flush().await;
            if (verb[1], verb[0]) == ("job", "show") && shown % 2 == 1 {
                let job = serde_json::from_value(body["job"]["id"].clone()).expect("an id");
                let progress =
                    json!({ "done": 1, "expected": 2, "running": 1, "failed": 0, "activity": HOSTILE });
                let mut offsets = HeaderMap::new();
                offsets.insert(header::OFFSET, "0");
                offsets.insert(header::NEXT_OFFSET, "9");
                let _ = nats
                    .publish(subject::job_progress(&name, job), progress.to_string().into())
                    .await;
                let _ = nats
                    .publish_with_headers(subject::job_log(&name, job), offsets, HOSTILE.into())
                    .await;
                let _ = nats.publish(subject::job_ended(&name, job), "".into()).await;
            }
        }
    });
    responders.spawn(async move {
        while let Some(question) = health.next().await {
            let Some(reply) = question.reply else { continue };
            let body = json!({ "status": HOSTILE, HOSTILE: [HOSTILE] });
            let _ = guest.publish(reply, body.to_string().into()).await;
        }
    });
    Ok(responders)
}

/// Stores a beat of that kind, which is kept for 30 s.
async fn beat(leaf: &TestLeaf) -> anyhow::Result<()> {
    let nats = leaf.nats_as_leafd().await?;
    let mut beat = golden("beat")?;
    beat["leaf"] = leaf.name.as_str().into();
    let beat = poison("beat", beat);
    let stored = nats
        .request(subject::beat(&leaf.name), beat.to_string().into())
        .await?;
    ensure!(!text(&stored.payload).contains("error"), "{stored:?}");
    Ok(())
}

/// Stores events of that kind.
async fn events(leaf: &TestLeaf) -> anyhow::Result<()> {
    let nats = leaf.nats_as_leafd().await?;
    for (kind, fact) in [("device", "appeared"), ("container", "failed")] {
        let kind = format!("cim.leaf.{kind}.{fact}.v1");
        let body = poisoned(&kind)?;
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (header::SUBJECT, HOSTILE),
            (header::TIME, HOSTILE),
            (header::TYPE, &format!("{kind}{HOSTILE}")),
        ] {
            headers.insert(format!("ce-{name}").as_str(), header::encode(value).as_ref());
        }
        let subject = subject::event(&leaf.name, "device", "usb-1", fact);
        let stored = nats
            .request_with_headers(subject, headers, body.to_string().into())
            .await?;
        ensure!(!text(&stored.payload).contains("error"), "{stored:?}");
    }
    Ok(())
}

/// Fails if a text could command a terminal, or has a line that it should not have.
fn harmless(printed: &str) -> anyhow::Result<()> {
    let hidden = |c: char| c.is_control() && c != '\n' && c != '\t' || ('\u{202a}'..='\u{2069}').contains(&c);
    ensure!(!printed.contains(hidden), "{printed:?}");
    Ok(())
}

pub(super) async fn harmless_everywhere() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    leaf.published().await?;
    leaf.kill().await?;
    let responders = answer(&leaf).await?;
    beat(&leaf).await?;
    events(&leaf).await?;
    let job = "01890a5d-ac96-774b-bcce-b302099a8057";
    let out = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a";
    let spec = leaf.scratch().join("web.toml");
    std::fs::write(&spec, "source = { type = 'template', name = 'minimal' }")?;
    let spec = spec.display().to_string();
    let name = leaf.name.to_string();
    // Whether the command prints the text; the others print only names that are checked.
    for (arguments, prints) in [
        (&["leaf", "list"][..], true),
        (&["leaf", "show"], true),
        (&["hardware", "list"], true),
        (&["hardware", "show", "usb-1"], true),
        (&["hardware", "rescan"], false),
        (&["container", "list"], true),
        (&["container", "show", "web"], true),
        (&["container", "history", "web"], true),
        (&["container", "health", "web"], true),
        (&["container", "stats", "web"], false),
        (&["container", "logs", "web"], true),
        (&["container", "create", "web", "--toplevel", out], true),
        (&["container", "apply", "web", "-f", &spec], true),
        (&["container", "diff", "web", "-f", &spec], true),
        (&["container", "start", "web"], true),
        (&["container", "stop", "web"], true),
        (&["container", "restart", "web"], true),
        (&["container", "pause", "web"], true),
        (&["container", "resume", "web"], true),
        (&["container", "update", "web"], true),
        (&["container", "set", "web", "limits.tasks=64"], true),
        (&["container", "rollback", "web"], true),
        (&["container", "adopt", "web"], true),
        (&["container", "destroy", "web"], false),
        (&["nix", "jobs"], true),
        (&["nix", "log", job], true),
        (&["nix", "cancel", job], false),
        (&["nix", "build", out], true),
        (&["events"], true),
    ] {
        let all: Vec<&str> = ["--leaf", &name]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        let output = ctl(&leaf, &all).await?;
        let printed = format!("{}{}", text(&output.stdout), text(&output.stderr));
        harmless(&printed).with_context(|| format!("{arguments:?}"))?;
        ensure!(output.status.code() != Some(2), "{arguments:?}: {printed}");
        ensure!(
            printed.contains(r"\u{1b}]52;") == prints && printed.contains(r"\u{202e}") == prints,
            "{arguments:?}: {printed}"
        );
        // In tables, fields and events a new line is the next item; logs and errors have lines.
        let has_lines = [
            ["container", "logs"],
            ["container", "pause"],
            ["container", "resume"],
            ["nix", "log"],
            ["nix", "build"],
        ]
        .iter()
        .any(|command| arguments.starts_with(command));
        let forged = printed.lines().any(|line| line.starts_with("FORGED"));
        ensure!(!forged || has_lines, "{arguments:?}: {printed}");
        // A program gets what the leaf sent.
        let all: Vec<&str> = all.into_iter().chain(["--json"]).collect();
        let json = ctl(&leaf, &all).await?;
        let printed = format!("{}{}", text(&json.stdout), text(&json.stderr));
        let exact = printed
            .lines()
            .map(serde_json::from_str::<Value>)
            .collect::<Result<Vec<_>, _>>()
            .or_else(|_| serde_json::from_str(&printed).map(|whole: Value| vec![whole]))
            .with_context(|| format!("{arguments:?}: {printed}"))?;
        ensure!(
            !prints || exact.iter().any(|document| has(document, HOSTILE)),
            "{arguments:?}: {printed}"
        );
    }
    let colours = ctl(&leaf, &["--leaf", &name, "container", "logs", "web", "--colours"]).await?;
    let printed = text(&colours.stdout);
    ensure!(
        printed.contains("\u{1b}[31mred") && printed.ends_with("\u{1b}[0m"),
        "{printed:?}"
    );
    harmless(&printed.replace("\u{1b}[31m", "").replace("\u{1b}[0m", ""))?;
    beat(&leaf).await?;
    on_a_terminal(&leaf, &name, out).await?;
    drop(responders);
    Ok(())
}

/// On a terminal the bar of a job and bold headings are the program's own sequences.
async fn on_a_terminal(leaf: &TestLeaf, name: &str, out: &str) -> anyhow::Result<()> {
    for arguments in ["leaf list", &format!("nix build {out}")] {
        let mut command = tokio::process::Command::new("script");
        let line = format!("{} --leaf {name} {arguments}", program().display());
        command
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .env("LEAFCTL_CONTEXT", leaf.context_file())
            .env("TERM", "xterm")
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        let printed = text(&run(command).await?.stdout);
        // A table is wrapped at the width of the terminal, an error is not.
        let escape = if arguments == "leaf list" {
            "\u{1b}[1m"
        } else {
            r"\u{1b}]52;"
        };
        ensure!(printed.contains(escape), "{arguments}: {printed:?}");
        for sequence in [
            "\u{1b}]",
            "\u{7}",
            "\u{9b}",
            "\u{8}",
            "\rCR",
            "\u{1b}[31m",
            "\u{202e}",
            "\u{2066}",
        ] {
            ensure!(
                !printed.contains(sequence),
                "{arguments}: {sequence:?} in {printed:?}"
            );
        }
    }
    Ok(())
}

/// Returns whether a text is in one of a value's strings or keys.
fn has(value: &Value, text: &str) -> bool {
    match value {
        Value::String(string) => string.contains(text),
        Value::Array(items) => items.iter().any(|item| has(item, text)),
        Value::Object(fields) => fields
            .iter()
            .any(|(key, value)| key.contains(text) || has(value, text)),
        _ => false,
    }
}

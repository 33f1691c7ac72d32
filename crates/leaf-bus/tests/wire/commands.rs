//! Commands: there and back, refused, drained, over a server that was killed.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::{HeaderMap, Message};
use futures::StreamExt as _;
use leaf_bus::client::{CallError, CallOptions, Client, EventsFrom};
use leaf_bus::connect::Bus;
use leaf_bus::identity::{admin_caller, daemon_caller};
use leaf_bus::serve::{Server, ServiceInfo};
use leaf_bus::stream::{EventStream, StreamSettings};
use leaf_core::command::{CancelJob, DestroyContainer, Destroyed, LogChunk, MAX_COMMAND_BYTES};
use leaf_core::event::header;
use leaf_core::id::{CommandId, ContainerName, JobId, LeafName};
use leaf_core::job::{PROGRESS_TYPE, Progress};
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::subject;
use libtest_mimic::Trial;
use serde_json::Value;

use super::{admin, instance, kill, record, site_with_daemon, until};
use crate::support::{LIMIT, Site, User, leaf, runs, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("a_command_goes_there_and_its_reply_comes_back", there_and_back),
        trial("a_problem_comes_back_as_one_with_the_headers_of_adr_32", problem),
        trial(
            "a_command_that_is_wrong_on_the_wire_is_refused_by_the_server",
            refused,
        ),
        trial(
            "a_reply_subject_outside_the_callers_inbox_is_not_answered_and_counted",
            outside,
        ),
        trial("a_leaf_that_is_not_there_is_told_at_once", nobody),
        trial("a_command_without_an_answer_times_out", unanswered),
        trial("ping_info_and_stats_have_the_shapes_of_adr_32", discovery),
        trial("a_draining_server_gives_what_came_before_and_then_ends", drain),
        trial("commands_are_answered_again_after_the_server_was_killed", killed),
        trial(
            "what_a_job_says_is_published_and_a_hint_for_clients",
            job_messages,
        ),
        trial("events_are_read_and_followed_over_a_killed_server", follow),
    ]
}

pub(super) async fn server(bus: &Bus) -> anyhow::Result<Server> {
    let info = ServiceInfo {
        leaf: leaf(),
        id: instance(5).0,
        version: "0.1.0".to_owned(),
        description: "a leaf under test".to_owned(),
    };
    let server = Server::start(bus, info).await?;
    bus.flush(LIMIT).await?;
    Ok(server)
}

/// Answers every command: `container.destroy` as asked, all else with a problem.
async fn answer(mut server: Server) {
    while let Some(incoming) = server.next().await {
        let reply = match (incoming.noun.as_str(), incoming.verb.as_str()) {
            ("container", "destroy") => Ok(incoming.body.to_vec()),
            _ => Err(Problem::new(ProblemCode::NotFound, "there is no\nsuch thing")),
        };
        incoming
            .responder
            .reply(incoming.command_id.as_ref(), reply)
            .await;
    }
}

async fn with_answers<T>(server: Server, test: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        () = answer(server) => anyhow::bail!("the server ended"),
        result = test => result,
    }
}

fn destroy(name: &str) -> DestroyContainer {
    DestroyContainer {
        name: ContainerName::new(name).expect("a name"),
        if_generation: None,
    }
}

/// Sends a request as admin with a bare client, and returns the whole answer.
async fn bare(user: &User, subject: &str, headers: HeaderMap, body: Vec<u8>) -> anyhow::Result<Message> {
    let request = async_nats::Request::new()
        .headers(headers)
        .payload(body.into())
        .timeout(Some(LIMIT));
    Ok(user.client.send_request(subject.to_owned(), request).await?)
}

async fn there_and_back() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let mut server = server(&bus).await?;
    let client = admin(&site).await?;
    let id = CommandId::new("my-id-1")?;
    let leaf = leaf();
    let asked = destroy("web");
    let mark = " Müller: 100% \"ok\" %20 ";
    let options = CallOptions {
        id: Some(id.clone()),
        correlation: Some(mark.to_owned()),
        ..Default::default()
    };
    let call = client.call(&leaf, &asked, options);
    let serve = async {
        let incoming = server.next().await.context("a command")?;
        ensure!(incoming.caller == admin_caller());
        ensure!((incoming.noun.as_str(), incoming.verb.as_str()) == ("container", "destroy"));
        ensure!(incoming.command_id.as_ref() == Some(&id));
        ensure!(incoming.correlation.as_deref() == Some(mark));
        let asked: DestroyContainer = serde_json::from_slice(&incoming.body)?;
        let reply = serde_json::to_vec(&Destroyed { name: asked.name })?;
        incoming
            .responder
            .reply(incoming.command_id.as_ref(), Ok(reply))
            .await;
        Ok(())
    };
    let (replied, served) = tokio::join!(call, serve);
    served?;
    ensure!(replied?.name.as_str() == "web");
    let user = site.admin().await?;
    let mut headers = HeaderMap::new();
    headers.insert("ce-id", "x:1");
    let subject = "leaf.v1.cmd.edge.admin.container.destroy";
    let message = with_answers(server, bare(&user, subject, headers, b"{}".to_vec())).await?;
    let headers = message.headers.context("headers")?;
    ensure!(headers.get("ce-causationid").map(|v| v.as_str()) == Some("x:1"));
    ensure!(headers.get("content-type").map(|v| v.as_str()) == Some("application/json"));
    ensure!(&*message.payload == b"{}");
    Ok(())
}

async fn problem() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let client = admin(&site).await?;
    let user = site.admin().await?;
    let leaf = leaf();
    let test = async {
        let called = client
            .call(
                &leaf,
                &CancelJob {
                    id: JobId(uuid::Uuid::from_u128(1)),
                },
                Default::default(),
            )
            .await;
        let Err(CallError::Problem(problem)) = called else {
            anyhow::bail!("{called:?}")
        };
        ensure!(
            problem.code == ProblemCode::NotFound && problem.detail == "there is no\nsuch thing",
            "{problem:?}"
        );
        let answer = bare(
            &user,
            "leaf.v1.cmd.edge.admin.no.such",
            HeaderMap::new(),
            Vec::new(),
        )
        .await?;
        let headers = answer.headers.context("headers")?;
        ensure!(headers.get("Nats-Service-Error-Code").map(|v| v.as_str()) == Some("404"));
        let text = headers.get("Nats-Service-Error").context("the reason")?;
        ensure!(text.as_str().contains("there is no such thing"), "{text:?}");
        ensure!(headers.get("content-type").map(|v| v.as_str()) == Some("application/problem+json"));
        ensure!(headers.get("ce-causationid").is_none());
        Ok(())
    };
    with_answers(server(&bus).await?, test).await
}

async fn refused() -> anyhow::Result<()> {
    use ProblemCode as Code;
    let (site, bus) = site_with_daemon().await?;
    // Whoever may publish anything below leaf.>, so that the server sees it.
    let permissions = leaf_bus::identity::Permissions {
        publish: vec!["leaf.>".to_owned()],
        subscribe: vec!["_INBOX.admin.>".to_owned()],
        ..Default::default()
    };
    let user = site
        .connect(
            &site.identity.user_credentials(&admin_caller(), &permissions),
            &admin_caller(),
        )
        .await?;
    let good = "leaf.v1.cmd.edge.admin.leaf.show";
    let long = "x".repeat(65);
    let mark = "x".repeat(257);
    let cases: Vec<(&str, &str, &str, usize, Code)> = vec![
        (
            "leaf.v2.cmd.edge.admin.leaf.show",
            "",
            "",
            0,
            Code::UnsupportedVersion,
        ),
        ("leaf.v1.cmd.edge.admin.leaf", "", "", 0, Code::Malformed),
        (
            "leaf.v1.cmd.edge.admin.leaf.show.more",
            "",
            "",
            0,
            Code::Malformed,
        ),
        ("leaf.v1.cmd.edge.admin.LEAF.show", "", "", 0, Code::Malformed),
        (good, "", "", MAX_COMMAND_BYTES + 1, Code::TooLarge),
        (good, "ce-id", "a b", 0, Code::Malformed),
        (good, "ce-id", "../x", 0, Code::Malformed),
        (good, "ce-id", &long, 0, Code::Malformed),
        (good, "ce-correlationid", &mark, 0, Code::Malformed),
    ];
    let test = async {
        for (subject, name, value, bytes, code) in cases {
            let mut headers = HeaderMap::new();
            if !name.is_empty() {
                headers.insert(name, value);
            }
            let answer = bare(&user, subject, headers, vec![b' '; bytes]).await?;
            let problem: Problem = serde_json::from_slice(&answer.payload)?;
            ensure!(problem.code == code, "{subject} {name}: {problem:?}");
            let headers = answer.headers.context("headers")?;
            let status = code.status().to_string();
            ensure!(headers.get("Nats-Service-Error-Code").map(|v| v.as_str()) == Some(status.as_str()));
        }
        Ok(())
    };
    // `answer` would say `not_found`.
    with_answers(server(&bus).await?, test).await
}

async fn outside() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    EventStream::ensure(&bus, &leaf(), StreamSettings::default(), 1).await?;
    let mut server = server(&bus).await?;
    let user = site.admin().await?;
    let subject = "leaf.v1.cmd.edge.admin.leaf.show";
    let evil = [
        "leaf.v1.evt.edge.leaf.edge.started",
        "_INBOX.bob.1",
        "_INBOX.adminx.1",
        "$JS.API.STREAM.DELETE.EVENTS_edge",
    ];
    for reply in evil {
        user.client
            .publish_with_reply(subject, reply, "{}".into())
            .await?;
    }
    user.client.publish(subject, "{}".into()).await?;
    // A good one behind them: when it is here, they were looked at.
    user.client
        .publish_with_reply(subject, "_INBOX.admin.x", "{}".into())
        .await?;
    let good = tokio::time::timeout(LIMIT, server.next())
        .await?
        .context("the good one")?;
    good.responder.reply(None, Ok(b"{}".to_vec())).await;
    ensure!(server.refused_silently() == 5, "{}", server.refused_silently());
    let (stream, state) = EventStream::ensure(&bus, &leaf(), StreamSettings::default(), 1).await?;
    ensure!(
        state.last_sequence == 0 && stream.last().await?.is_none(),
        "nothing was written: {state:?}"
    );
    let test = async {
        let stats = bare(&user, "$SRV.STATS.cim-leaf", HeaderMap::new(), Vec::new()).await?;
        let stats: Value = serde_json::from_slice(&stats.payload)?;
        let endpoints = stats["endpoints"].as_array().context("endpoints")?;
        let show = endpoints
            .iter()
            .find(|e| e["name"] == "leaf-show")
            .context("leaf-show")?;
        ensure!(show["num_errors"] == 5 && show["num_requests"] == 6, "{show}");
        ensure!(
            show["last_error"].as_str().context("text")?.contains("inbox"),
            "{show}"
        );
        Ok(())
    };
    with_answers(server, test).await
}

/// Fails unless a call is told that no such leaf is there.
async fn finds_no_leaf(client: &Client, leaf: &LeafName) -> anyhow::Result<()> {
    let called = client.call(leaf, &destroy("web"), Default::default()).await;
    ensure!(matches!(called, Err(CallError::NoLeaf(_))), "{called:?}");
    Ok(())
}

async fn nobody() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let client = admin(&site).await?;
    finds_no_leaf(&client, &LeafName::new("other")?).await
}

async fn unanswered() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let _server = server(&bus).await?;
    let client = admin(&site).await?;
    let options = CallOptions {
        timeout: Duration::from_millis(200),
        ..Default::default()
    };
    let called = client.call(&leaf(), &destroy("web"), options).await;
    ensure!(matches!(called, Err(CallError::TimedOut { .. })), "{called:?}");
    Ok(())
}

async fn discovery() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let client = admin(&site).await?;
    let user = site.admin().await?;
    let ask = async |subject: String| -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(
            &bare(&user, &subject, HeaderMap::new(), Vec::new()).await?.payload,
        )?)
    };
    let id = instance(5).to_string();
    let leaf = leaf();
    let test = async {
        client
            .call(&leaf, &destroy("web"), Default::default())
            .await
            .context("a call")?;
        for below in [String::new(), ".cim-leaf".to_owned(), format!(".cim-leaf.{id}")] {
            for (verb, kind) in [("PING", "ping"), ("INFO", "info"), ("STATS", "stats")] {
                let answer = ask(format!("$SRV.{verb}{below}")).await?;
                ensure!(
                    answer["type"] == format!("io.nats.micro.v1.{kind}_response"),
                    "{answer}"
                );
                ensure!(
                    answer["name"] == "cim-leaf"
                        && answer["id"] == id.as_str()
                        && answer["version"] == "0.1.0"
                );
                ensure!(answer["metadata"]["leaf"] == "edge", "{answer}");
                for endpoint in answer["endpoints"].as_array().into_iter().flatten() {
                    let name = endpoint["name"].as_str().context("a name")?;
                    ensure!(
                        name.bytes()
                            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'),
                        "{name}"
                    );
                    ensure!(
                        endpoint["subject"].is_string() && endpoint["queue_group"].is_string(),
                        "{endpoint}"
                    );
                }
            }
        }
        let info = ask("$SRV.INFO".to_owned()).await?;
        ensure!(info["description"] == "a leaf under test");
        let stats = ask("$SRV.STATS".to_owned()).await?;
        let _: jiff::Timestamp = stats["started"].as_str().context("started")?.parse()?;
        let endpoints = stats["endpoints"].as_array().context("endpoints")?;
        let one = endpoints
            .iter()
            .find(|e| e["name"] == "container-destroy")
            .context("container-destroy")?;
        ensure!(
            one["num_requests"] == 1 && one["num_errors"] == 0 && one["last_error"] == "",
            "{one}"
        );
        ensure!(
            one["processing_time"].as_u64() > Some(0) && one["average_processing_time"].is_u64(),
            "{one}"
        );
        Ok(())
    };
    with_answers(server(&bus).await?, test).await
}

async fn drain() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let mut server = server(&bus).await?;
    let user = site.admin().await?;
    let mut replies = user.client.subscribe("_INBOX.admin.drain").await?;
    for _ in 0..10 {
        user.client
            .publish_with_reply(
                "leaf.v1.cmd.edge.admin.leaf.show",
                "_INBOX.admin.drain",
                "{}".into(),
            )
            .await?;
    }
    // The server takes what a client sends in order: with this answer it has passed on all ten.
    user.client.request("$JS.API.INFO", "".into()).await?;
    let first = tokio::time::timeout(LIMIT, server.next())
        .await?
        .context("the first")?;
    server.drain().await;
    first.responder.reply(None, Ok(b"{}".to_vec())).await;
    let mut answered = 1;
    while let Some(incoming) = tokio::time::timeout(LIMIT, server.next())
        .await
        .context("the end")?
    {
        incoming.responder.reply(None, Ok(b"{}".to_vec())).await;
        answered += 1;
    }
    ensure!(answered == 10, "{answered} of 10");
    for _ in 0..answered {
        tokio::time::timeout(LIMIT, replies.next())
            .await?
            .context("a reply")?;
    }
    finds_no_leaf(&admin(&site).await?, &leaf()).await
}

async fn killed() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let client = admin(&site).await?;
    let leaf = leaf();
    let asked = destroy("web");
    let test = async {
        for _ in 0..3 {
            client
                .call(&leaf, &asked, Default::default())
                .await
                .context("before")?;
            kill(runs(&site.server, None).await?)?;
            until("an answer", || async {
                client.call(&leaf, &asked, Default::default()).await.ok()
            })
            .await?;
        }
        Ok(())
    };
    with_answers(server(&bus).await?, test).await
}

async fn job_messages() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let client = admin(&site).await?;
    let job = JobId(uuid::Uuid::from_u128(9));
    let user = site.admin().await?;
    let mut messages = user.client.subscribe(subject::job_messages(&leaf(), job)).await?;
    // Its answer shows that the subscription is with the server.
    user.client.request("$JS.API.INFO", "".into()).await?;
    let mut hints = client.job_hints(&leaf(), job).await?;
    let progress = Progress {
        done: 1,
        expected: 3,
        ..Progress::default()
    };
    bus.publish_progress(&leaf(), job, &progress).await;
    let piece = LogChunk {
        text: "two\nlines \u{fffd}\n".to_owned(),
        next_offset: 17,
        complete: false,
    };
    bus.publish_log(&leaf(), job, 7, &piece).await;
    bus.publish_ended(&leaf(), job).await;
    let mut next = async || {
        tokio::time::timeout(LIMIT, messages.next())
            .await?
            .context("a message")
    };
    let header = |message: &Message, name: &str| {
        let headers = message.headers.as_ref();
        headers.and_then(|headers| Some(headers.get(name)?.to_string()))
    };
    let said = next().await?;
    ensure!(*said.subject == *subject::job_progress(&leaf(), job));
    ensure!(header(&said, "ce-type").as_deref() == Some(PROGRESS_TYPE));
    ensure!(serde_json::from_slice::<Progress>(&said.payload)? == progress);
    let said = next().await?;
    ensure!(*said.subject == *subject::job_log(&leaf(), job) && said.payload == piece.text);
    ensure!(header(&said, header::OFFSET).as_deref() == Some("7"));
    ensure!(header(&said, header::NEXT_OFFSET).as_deref() == Some("17"));
    let said = next().await?;
    ensure!(*said.subject == *subject::job_ended(&leaf(), job));
    // Together they are one hint, or two if the first came early.
    let began = tokio::time::Instant::now();
    hints.next(LIMIT).await;
    ensure!(began.elapsed() < LIMIT, "no hint");
    Ok(())
}

async fn follow() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let client: Client = admin(&site).await?;
    let (stream, _) = EventStream::ensure(&bus, &leaf(), StreamSettings::default(), 1).await?;
    let mut publisher = stream.publisher(0).await?;
    for n in 1..=5 {
        publisher.publish(record(n)).await?;
    }
    publisher.settle().await?;
    ensure!(client.last_sequence(&leaf()).await? == 5);
    let mut events = client.events(&leaf(), EventsFrom::Sequence(3));
    let mut next = async || {
        tokio::time::timeout(LIMIT, events.next())
            .await?
            .context("an event")?
            .map_err(anyhow::Error::from)
    };
    for n in 3..=5 {
        ensure!(next().await? == record(n), "{n}");
    }
    kill(runs(&site.server, None).await?)?;
    until("the stream", || async { stream.state().await.ok() }).await?;
    let mut publisher = stream.publisher(5).await?;
    for n in 6..=8 {
        publisher.publish(record(n)).await?;
    }
    publisher.settle().await?;
    for n in 6..=8 {
        ensure!(next().await? == record(n), "{n}");
    }
    ensure!(bus.server().context("a server")?.version.starts_with("2."));
    ensure!(daemon_caller().as_str() == "leafd");
    let mut none = client.events(&LeafName::new("other")?, EventsFrom::Beginning);
    ensure!(
        tokio::time::timeout(LIMIT, none.next())
            .await?
            .context("an error")?
            .is_err()
    );
    ensure!(none.next().await.is_none());
    Ok(())
}

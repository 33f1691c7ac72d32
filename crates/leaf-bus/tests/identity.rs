//! What each user may do, as the real server sees it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use futures::StreamExt as _;
use leaf_bus::identity::{Identity, Permissions, admin_caller, daemon_caller};
use leaf_core::id::{Caller, ContainerName};
use leaf_core::subject;
use libtest_mimic::Trial;

use crate::support::{LIMIT, Site, User, leaf, runs, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("the_daemon_writes_its_events_and_the_admin_reads_them", events),
        trial("the_daemon_may_not_write_for_another_leaf", daemon),
        trial(
            "callers_may_not_have_the_server_write_into_a_stream",
            server_writes,
        ),
        trial(
            "a_service_of_the_streams_account_answers_into_the_callers_account_only",
            split,
        ),
        trial(
            "an_identity_of_one_account_gets_the_other_and_keeps_its_keys",
            upgraded,
        ),
        trial(
            "the_admin_may_neither_act_for_others_nor_write_events_nor_change_streams",
            admin,
        ),
        trial("a_second_person_is_held_to_their_own_name", second_person),
        trial("a_container_may_do_nothing_but_its_own", container),
        trial("a_container_answers_requests_for_its_health", health),
        trial(
            "a_container_cannot_write_elsewhere_by_answering_itself",
            reflection,
        ),
        trial(
            "a_user_that_may_ask_itself_could_write_anywhere_by_answering",
            answering_oneself,
        ),
        trial(
            "revoked_credentials_of_a_container_are_refused_and_new_ones_are_not",
            revoked,
        ),
        trial("credentials_of_another_operator_are_refused", stranger),
        trial("the_context_file_connects_as_admin", context),
    ]
}

/// The daemon where the streams are.
async fn keeper_of(site: &Site) -> anyhow::Result<User> {
    site.connect(&site.identity.leaf_credentials(), &daemon_caller())
        .await
}

/// The daemon where its callers are.
async fn service_of(site: &Site) -> anyhow::Result<User> {
    site.connect(&site.identity.service_credentials(), &daemon_caller())
        .await
}

async fn admin_of(site: &Site) -> anyhow::Result<User> {
    site.connect(&site.identity.admin_credentials(), &admin_caller())
        .await
}

async fn events_stream(user: &User) -> anyhow::Result<jetstream::Context> {
    let js = jetstream::new(user.client.clone());
    js.create_stream(jetstream::stream::Config {
        name: subject::event_stream(&leaf()),
        subjects: vec![subject::events_of(&leaf())],
        allow_direct: true,
        ..Default::default()
    })
    .await?;
    Ok(js)
}

async fn events() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let daemon = keeper_of(&site).await?;
    let js = events_stream(&daemon).await?;
    let admin = admin_of(&site).await?;
    let mut heard = admin.client.subscribe(subject::events()).await?;
    admin.client.request("$JS.API.INFO", "".into()).await?;
    let event = subject::event(&leaf(), "leaf", "edge", "started");
    for n in 1..=3u64 {
        let ack = js.publish(event.clone(), n.to_string().into()).await?.await?;
        ensure!(ack.sequence == n, "{ack:?}");
    }
    for n in 1..=3u64 {
        let message = tokio::time::timeout(LIMIT, heard.next())
            .await?
            .context("an event")?;
        ensure!(message.subject.as_str() == event && message.payload == n.to_string());
    }

    // As `nats stream info` and `nats stream get` ask.
    let js = jetstream::new(admin.client.clone());
    let stream = js.get_stream(subject::event_stream(&leaf())).await?;
    ensure!(stream.cached_info().state.messages == 3);
    for n in 1..=3u64 {
        let direct = stream.direct_get(n).await?;
        let raw = stream.get_raw_message(n).await?;
        ensure!(direct.payload == n.to_string() && raw.payload == n.to_string());
    }
    ensure!(js.stream_names().count().await == 1);
    site.server.stop().await;
    Ok(())
}

async fn daemon() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut keeper = keeper_of(&site).await?;
    for own in [
        "leaf.v1.evt.edge.leaf.edge.started",
        "leaf.v1.beat.edge",
        "$KV.leaf_state.edge.hardware",
    ] {
        keeper.may_publish(own).await?;
    }
    for other in [
        "leaf.v1.evt.other.leaf.other.started",
        "leaf.v1.beat.other",
        "leaf.v1.cmd.edge.admin.leaf.show",
        "$KV.leaf_state.other.hardware",
        "_INBOX.admin.1",
    ] {
        keeper.may_not_publish(other).await?;
    }
    keeper.may_subscribe("_INBOX.leafd.x").await?;
    keeper.may_not_subscribe("leaf.*.cmd.edge.>").await?;

    let mut service = service_of(&site).await?;
    for own in [
        "leaf.v1.job.edge.x.log",
        "leaf.v1.ctr.edge.web.health",
        "_INBOX.admin.1",
    ] {
        service.may_publish(own).await?;
    }
    for other in [
        "leaf.v1.evt.edge.leaf.edge.started",
        "leaf.v1.beat.edge",
        "leaf.v1.cmd.edge.admin.leaf.show",
        "$KV.leaf_state.edge.hardware",
        "$JS.API.STREAM.DELETE.EVENTS_edge",
    ] {
        service.may_not_publish(other).await?;
    }
    for own in [
        "leaf.*.cmd.edge.>",
        "leaf.v1.ask.>",
        "$SRV.>",
        "leaf.v1.ctr.edge.>",
        "_INBOX.leafd.x",
    ] {
        service.may_subscribe(own).await?;
    }
    service.may_not_subscribe("leaf.*.cmd.other.>").await?;
    service.may_not_subscribe("_INBOX.admin.>").await?;
    site.server.stop().await;
    Ok(())
}

/// What callers try: everything by which a server publishes by itself.
async fn server_writes() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let keeper = keeper_of(&site).await?;
    let js = events_stream(&keeper).await?;
    js.create_stream(jetstream::stream::Config {
        name: "OTHER".to_owned(),
        subjects: vec!["$KV.leaf_state.>".to_owned()],
        allow_direct: true,
        ..Default::default()
    })
    .await?;
    let event = subject::event(&leaf(), "leaf", "edge", "started");
    js.publish(event.clone(), "1".into()).await?.await?;
    js.publish("$KV.leaf_state.edge.leaf", "x".into()).await?.await?;

    let bob = Caller::new("bob")?;
    let bob_credentials = site.identity.user_credentials(&bob, &Permissions::person(&bob));
    let web = ContainerName::new("web")?;
    let container = site.identity.container_credentials(&web);
    let targets = [
        event.as_str(),
        "$KV.leaf_state.edge.forged",
        "$KV.leaf_state.edge.leaf",
    ];
    for (credentials, caller) in [
        (&site.identity.admin_credentials(), &admin_caller()),
        (&bob_credentials, &bob),
        (&container, &web.caller()),
    ] {
        let mut user = site.connect(credentials, caller).await?;
        // An answer to a question, with the stream's subject as its reply subject.
        for target in targets {
            for (question, body) in [
                ("$JS.API.INFO", ""),
                ("$JS.API.STREAM.INFO.EVENTS_edge", ""),
                ("$JS.API.STREAM.NAMES", ""),
                ("$JS.API.STREAM.LIST", ""),
                ("$JS.API.STREAM.MSG.GET.EVENTS_edge", r#"{"seq":1}"#),
                ("$JS.API.DIRECT.GET.EVENTS_edge", r#"{"seq":1}"#),
                ("$JS.API.DIRECT.GET.EVENTS_edge", r#"{"seq":1,"batch":9}"#),
                ("$JS.API.DIRECT.GET.OTHER", r#"{"seq":1}"#),
                ("$JS.API.DIRECT.GET.OTHER.$KV.leaf_state.edge.leaf", ""),
                ("$SYS.REQ.USER.INFO", ""),
                ("$SRV.PING", ""),
                ("leaf.v1.ask.nix.build", ""),
                ("leaf.v1.cmd.edge.admin.leaf.show", ""),
                ("leaf.v1.ctr.edge.web.says.x", ""),
                ("leaf.v1.ctr.edge.web.health", ""),
                ("$JS.API.STREAM.CREATE.MINE", r#"{"name":"MINE"}"#),
                ("$JS.ACK.OTHER.c.1.1.1.1.0", "+NXT"),
                ("$JS.FC.OTHER.c.x", ""),
            ] {
                user.client
                    .publish_with_reply(question, target.to_owned(), body.into())
                    .await?;
            }
        }
        // A consumer whose deliveries go there, by each of its subjects.
        let push = |target: &str, name: Option<&str>| {
            let mut config = serde_json::json!({
                "deliver_subject": target, "deliver_policy": "all", "ack_policy": "none", "replay_policy": "instant",
            });
            if let Some(name) = name {
                config["name"] = name.into();
            }
            serde_json::json!({ "stream_name": "OTHER", "config": config, "action": "create" }).to_string()
        };
        for target in targets {
            for (subject, body) in [
                ("$JS.API.CONSUMER.CREATE.OTHER", push(target, None)),
                ("$JS.API.CONSUMER.CREATE.OTHER.mine", push(target, Some("mine"))),
                (
                    "$JS.API.CONSUMER.CREATE.OTHER.mine.$KV.leaf_state.>",
                    push(target, Some("mine")),
                ),
                (
                    "$JS.API.CONSUMER.DURABLE.CREATE.OTHER.mine",
                    push(target, Some("mine")),
                ),
                ("$JS.API.CONSUMER.MSG.NEXT.OTHER.mine", "1".to_owned()),
            ] {
                user.client
                    .publish_with_reply(subject, target.to_owned(), body.into())
                    .await?;
                user.may_not_publish(subject).await?;
            }
        }
        user.may_not_publish("$JS.ACK.OTHER.c.1.1.1.1.0").await?;
    }

    // Whatever the server would do, it has done before it answers this, which came later on the same stream.
    for (name, subject, count) in [
        ("EVENTS_edge", event.as_str(), 1),
        ("OTHER", "$KV.leaf_state.edge.leaf", 1),
    ] {
        let ack = js.publish(subject.to_owned(), "after".into()).await?.await?;
        ensure!(ack.sequence == count + 1, "{name} has more: {ack:?}");
        let mut stream = js.get_stream(name).await?;
        let info = stream.info().await?;
        ensure!(info.state.messages == count + 1, "{name}: {:?}", info.state);
        ensure!(info.state.consumer_count == 0, "{name}: {:?}", info.state);
    }
    site.server.stop().await;
    Ok(())
}

/// Why there are two accounts: what the server does for a user of the streams' own account who may only read.
async fn split() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let js = events_stream(&keeper_of(&site).await?).await?;
    js.create_stream(jetstream::stream::Config {
        name: "OTHER".to_owned(),
        subjects: vec!["$KV.leaf_state.>".to_owned()],
        ..Default::default()
    })
    .await?;
    js.publish("$KV.leaf_state.edge.leaf", "x".into()).await?.await?;
    let event = subject::event(&leaf(), "leaf", "edge", "started");
    let caller = Caller::new("reader")?;
    let mut reads = Permissions::person(&caller);
    reads.publish.push("$JS.API.CONSUMER.CREATE.>".to_owned());
    let credentials = site.identity.trusted_credentials(&caller, &reads);
    let mut reader = site.connect(&credentials, &caller).await?;
    reader.may_not_publish(&event).await?;

    // The answer to a question is stored as an event, and so is what a consumer delivers while somebody listens.
    let question = "$JS.API.STREAM.INFO.EVENTS_edge";
    reader
        .client
        .publish_with_reply(question, event.clone(), "".into())
        .await?;
    let _listens = reader.client.subscribe(event.clone()).await?;
    jetstream::new(reader.client.clone())
        .create_consumer_on_stream(
            jetstream::consumer::push::Config {
                deliver_subject: event.clone(),
                ack_policy: jetstream::consumer::AckPolicy::None,
                ..Default::default()
            },
            "OTHER",
        )
        .await?;
    let mut stream = js.get_stream("EVENTS_edge").await?;
    let stored = async {
        while stream.info().await?.state.messages < 2 {}
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, stored)
        .await
        .context("what the server wrote into the stream")??;

    // To a caller the answer comes back, and goes nowhere else.
    let admin = admin_of(&site).await?;
    let mut heard = admin.client.subscribe(subject::events()).await?;
    admin
        .client
        .publish_with_reply(question, event.clone(), "".into())
        .await?;
    let answer = tokio::time::timeout(LIMIT, heard.next())
        .await?
        .context("the answer")?;
    ensure!(
        answer
            .payload
            .starts_with(br#"{"type":"io.nats.jetstream.api.v1.stream_info_response""#)
    );
    let ack = js.publish(event, "3".into()).await?.await?;
    ensure!(ack.sequence == 3, "{ack:?}");
    site.server.stop().await;
    Ok(())
}

/// State directories of before there were two accounts.
async fn upgraded() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let place = dir.path().join("identity");
    let first = Identity::open_or_create(&place, &leaf())?;
    let file = place.join("keys.json");
    let mut keys: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let fields = keys.as_object_mut().context("an object")?;
    fields.remove("callers");
    fields.remove("service");
    fields.insert("format".to_owned(), 1.into());
    std::fs::write(&file, keys.to_string())?;
    let identity = Identity::open_or_create(&place, &leaf())?;
    ensure!(identity.account() == first.account());
    ensure!(identity.leaf_credentials() == first.leaf_credentials());
    ensure!(identity.callers_account() != first.callers_account());
    let again = Identity::open_or_create(&place, &leaf())?;
    ensure!(identity.server_config()? == again.server_config()?);
    let server =
        leaf_bus::embedded::EmbeddedServer::start(crate::support::settings(dir.path()), &identity).await?;
    let file = std::fs::read_to_string(identity.admin_credentials_file())?;
    let admin = User::connect(
        &server.client_url(),
        &leaf_core::host_op::Secret::new(file),
        &admin_caller(),
    )
    .await?;
    jetstream::new(admin.client).query_account().await?;
    server.stop().await;
    Ok(())
}

async fn admin() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let keeper = keeper_of(&site).await?;
    let js = events_stream(&keeper).await?;
    let mut admin = admin_of(&site).await?;
    for own in [
        "leaf.v1.cmd.edge.admin.container.start",
        "leaf.v1.ask.nix.build",
        "$SRV.PING",
        "leaf.v1.ctr.edge.web.health",
    ] {
        admin.may_publish(own).await?;
    }
    for other in [
        "leaf.v1.cmd.edge.bob.container.start",
        "leaf.v1.cmd.edge.leafd.container.start",
        "leaf.v1.evt.edge.leaf.edge.started",
        "leaf.v1.job.edge.x.log",
        "leaf.v1.beat.edge",
        "$KV.leaf_state.edge.hardware",
        "_INBOX.leafd.x",
        "$JS.API.STREAM.DELETE.EVENTS_edge",
        "$JS.API.STREAM.PURGE.EVENTS_edge",
        "$JS.API.STREAM.UPDATE.EVENTS_edge",
        "$JS.API.STREAM.CREATE.MINE",
        "$JS.API.STREAM.MSG.DELETE.EVENTS_edge",
    ] {
        admin.may_not_publish(other).await?;
    }
    admin.may_subscribe("leaf.v1.evt.>").await?;
    admin.may_subscribe("leaf.v1.job.>").await?;
    for other in ["leaf.v1.cmd.>", "_INBOX.>", "_INBOX.leafd.>", ">"] {
        admin.may_not_subscribe(other).await?;
    }
    js.get_stream(subject::event_stream(&leaf()))
        .await
        .context("the stream is still there")?;
    site.server.stop().await;
    Ok(())
}

async fn second_person() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let bob = Caller::new("bob")?;
    let credentials = site.identity.user_credentials(&bob, &Permissions::person(&bob));
    let mut bob = site.connect(&credentials, &bob).await?;
    bob.may_publish("leaf.v1.cmd.edge.bob.leaf.show").await?;
    bob.may_not_publish("leaf.v1.cmd.edge.admin.leaf.show").await?;
    bob.may_not_subscribe("_INBOX.admin.>").await?;
    site.server.stop().await;
    Ok(())
}

async fn container() -> anyhow::Result<()> {
    let site = Site::start().await?;
    // A name that is no token, and one that is.
    for (name, token) in [("Web", "_57eb"), ("db", "db")] {
        let name = ContainerName::new(name)?;
        let mut user = site
            .connect(&site.identity.container_credentials(&name), &name.caller())
            .await?;
        user.may_publish(&format!("leaf.v1.ctr.edge.{token}.says.hello"))
            .await?;
        user.may_subscribe(&subject::container_health(&leaf(), &name))
            .await?;
        user.may_subscribe(&format!("_INBOX.ctr-{token}.>")).await?;
        for other in [
            "leaf.v1.ctr.edge.other.says.hello",
            "leaf.v1.ctr.other.db.says.hello",
            "leaf.v1.evt.edge.leaf.edge.started",
            "leaf.v1.cmd.edge.admin.leaf.show",
            "leaf.v1.cmd.edge.ctr-db.leaf.show",
            "$JS.API.INFO",
            "$SRV.PING",
            "_INBOX.admin.x",
            "_INBOX.leafd.x",
        ] {
            user.may_not_publish(other).await?;
        }
        for other in [
            "leaf.v1.>",
            "leaf.v1.ctr.edge.other.>",
            "_INBOX.>",
            "_INBOX.admin.>",
            "$SRV.>",
            ">",
        ] {
            user.may_not_subscribe(other).await?;
        }
    }
    site.server.stop().await;
    Ok(())
}

async fn health() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let name = ContainerName::new("Web")?;
    let health = subject::container_health(&leaf(), &name);
    let mut web = site
        .connect(&site.identity.container_credentials(&name), &name.caller())
        .await?;
    let mut requests = web.client.subscribe(health.clone()).await?;
    web.may_publish(&format!("{}.up", subject::container_prefix(&leaf(), &name)))
        .await?;
    let daemon = service_of(&site).await?;
    let admin = admin_of(&site).await?;
    for caller in [&daemon, &admin] {
        let ask = caller.client.request(health.clone(), "".into());
        let answer = async {
            let request = requests.next().await.context("a request")?;
            let reply = request.reply.context("a reply subject")?;
            web.client.publish(reply.clone(), "well".into()).await?;
            web.client.flush().await?;
            anyhow::Ok(reply)
        };
        let (answered, reply) = tokio::join!(ask, answer);
        ensure!(answered?.payload == "well");
        // One answer was allowed, and was given.
        web.may_not_publish(&reply?).await?;
    }
    site.server.stop().await;
    Ok(())
}

/// To answer a request a container may publish to its reply subject, whatever that is. Were a container able to
/// send such a request to itself, it could write anywhere.
async fn reflection() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let name = ContainerName::new("web")?;
    let mut web = site
        .connect(&site.identity.container_credentials(&name), &name.caller())
        .await?;
    let prefix = subject::container_prefix(&leaf(), &name);
    let target = "leaf.v1.evt.edge.leaf.edge.started";
    for own in ["health", "x", "health.x"].map(|last| format!("{prefix}.{last}")) {
        let mut echoes = web.client.subscribe(own.clone()).await?;
        web.client
            .publish_with_reply(own.clone(), target, "x".into())
            .await?;
        web.may_not_publish(target).await.with_context(|| own.clone())?;
        ensure!(
            tokio::time::timeout(Duration::ZERO, echoes.next()).await.is_err(),
            "a container heard itself on {own}"
        );
    }
    site.server.stop().await;
    Ok(())
}

/// What nats-server does, and why a container may not publish to what it listens to: with a right to answer and
/// overlapping subjects, a user writes into the event log.
async fn answering_oneself() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut admin = admin_of(&site).await?;
    let mut events = admin.client.subscribe(subject::events()).await?;
    // Its complaints come in order: once this is through, so is the subscription.
    admin.may_publish("$SRV.PING").await?;
    let caller = Caller::new("careless")?;
    let careless = Permissions {
        publish: vec!["own.>".to_owned()],
        subscribe: vec!["own.>".to_owned()],
        responses: Some((1, LIMIT)),
        ..Permissions::default()
    };
    let credentials = site.identity.user_credentials(&caller, &careless);
    let mut user = site.connect(&credentials, &caller).await?;
    let target = "leaf.v1.evt.edge.leaf.edge.started";
    user.may_not_publish(target).await?;
    let mut echoes = user.client.subscribe("own.x").await?;
    user.client
        .publish_with_reply("own.x", target, "x".into())
        .await?;
    tokio::time::timeout(LIMIT, echoes.next())
        .await?
        .context("the echo")?;
    user.may_publish(target).await?;
    let event = tokio::time::timeout(LIMIT, events.next())
        .await?
        .context("an event")?;
    ensure!(event.subject.as_str() == target);
    site.server.stop().await;
    Ok(())
}

async fn revoked() -> anyhow::Result<()> {
    let mut site = Site::start().await?;
    let (web, other) = (ContainerName::new("web")?, ContainerName::new("other")?);
    let old = site.identity.container_credentials(&web);
    let mut inside = site.connect(&old, &web.caller()).await?;
    let mut neighbour = site
        .connect(&site.identity.container_credentials(&other), &other.caller())
        .await?;
    let mut admin = admin_of(&site).await?;
    inside.may_publish("leaf.v1.ctr.edge.web.up").await?;

    let connects = |user: &User| {
        user.client
            .statistics()
            .connects
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    site.identity.revoke_container(&web)?;
    site.server.reloader().reload().await?;
    let told = async {
        while inside.client.connection_state() == async_nats::connection::State::Connected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, told)
        .await
        .context("the container's connection is dropped")?;
    let refused = site.connect(&old, &web.caller()).await;
    let error = format!("{:?}", refused.err().context("it connected")?).to_lowercase();
    ensure!(error.contains("authorization violation"), "{error}");
    // Nobody else is disturbed.
    neighbour.may_publish("leaf.v1.ctr.edge.other.up").await?;
    admin.may_publish("$SRV.PING").await?;
    ensure!(connects(&neighbour) == 1 && connects(&admin) == 1);

    // A later container of the name, at once, has what works, and the old ones stay worthless, over a restart, too.
    let new = site.identity.container_credentials(&web);
    site.connect(&new, &web.caller()).await?;
    let old_server = runs(&site.server, None).await?;
    site.server.restart("a test");
    runs(&site.server, Some(old_server)).await?;
    site.connect(&new, &web.caller()).await?;
    ensure!(site.connect(&old, &web.caller()).await.is_err());
    site.identity.revoke_container(&web)?;
    site.server.stop().await;
    // What was revoked while no server ran holds as well.
    site.server =
        leaf_bus::embedded::EmbeddedServer::start(crate::support::settings(site.dir.path()), &site.identity)
            .await?;
    ensure!(site.connect(&new, &web.caller()).await.is_err());
    let newest = site.identity.container_credentials(&web);
    site.connect(&newest, &web.caller()).await?;
    site.server.stop().await;
    Ok(())
}

async fn stranger() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let other = Identity::open_or_create(&site.dir.path().join("other"), &leaf())?;
    let refused = site.connect(&other.admin_credentials(), &admin_caller()).await;
    let error = format!("{:?}", refused.err().context("it connected")?).to_lowercase();
    ensure!(error.contains("authorization violation"), "{error}");
    site.server.stop().await;
    Ok(())
}

async fn context() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let path = site.dir.path().join("context.json");
    site.identity.write_context(&path, &site.server.client_url())?;
    let context: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let field = |name: &str| context[name].as_str().map(str::to_owned).context("a text");
    let client = async_nats::ConnectOptions::with_credentials_file(field("creds")?)
        .await?
        .custom_inbox_prefix(field("inbox_prefix")?)
        .connect(field("url")?)
        .await?;
    let account = jetstream::new(client).query_account().await?;
    ensure!(
        account.limits.max_storage.is_none_or(|max| max < 0),
        "{account:?}"
    );
    site.server.stop().await;
    Ok(())
}

//! The hub belongs to somebody else, and it is no nats-server: it speaks the protocol of leaf nodes by hand, and keeps to no
//! rule. What remains possible is what `docs/security.md` lists.

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use leaf_core::subject;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::hostile_hub::{FORBIDDEN, states};
use super::raw::RawPeer;
use super::{LinkedLeaf, heard, instance, until_heard};
use crate::support::{LIMIT, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_hub_with_a_protocol_of_its_own_changes_nothing_on_a_leaf",
            changes_nothing,
        ),
        trial(
            "a_hub_with_a_protocol_of_its_own_hears_only_what_a_leaf_sends_up",
            hears_what_goes_up,
        ),
        trial("a_leaf_outlives_a_hub_that_speaks_no_protocol", outlives_garbage),
        trial(
            "a_hub_names_other_addresses_and_the_leafs_server_connects_there_and_keeps_to_its_rights",
            names_other_addresses,
        ),
    ]
}

/// The fields of `INFO` with which a hub introduces itself: none, permissions to do everything, and the role of another server.
fn introductions() -> [Value; 3] {
    [
        json!({}),
        json!({ "import": { "allow": [">"] }, "export": { "allow": [">"] }, "remote_account": "LINKS" }),
        json!({ "server_name": "edge", "domain": "edge", "jetstream": true, "cluster": "edge", "remote_account": "LEAF",
            "is_system_account": true, "gateway": "edge", "import": { "allow": ["$JS.>", "$SYS.>", ">"] } }),
    ]
}

/// Subjects that a server does not check, since servers use them among themselves, and subjects that no message may have.
const UNCHECKED: [&str; 14] = [
    "_R_.guess.guess",
    "$JS.ACK.EVENTS_edge.c.1.1.1.1.1",
    "$JS.ACK.leaf.v1.evt.edge.a.b.c",
    "_GR_.aaaaaa.bbbbbb.leaf.v1.evt.edge.a.b.c",
    "$GR.aaaa.leaf.v1.evt.edge.a.b.c",
    "$LDS.guess",
    ">",
    "leaf.>",
    "leaf.v1.>",
    "leaf.v1.evt.>",
    "leaf.v1.evt.*.a.b.c",
    "_INBOX.>",
    "$JS.API.>",
    "$KV.leaf_state.>",
];

/// The requests that a hub may send to a leaf, which the leaf replies to.
const READS: [&str; 4] = [
    "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.events.info",
    "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.events.get",
    "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.state.info",
    "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.state.get",
];

/// Where a reply, or the trace of a message, would do harm.
const HARMFUL: [&str; 5] = [
    "leaf.v1.evt.edge.a.b.c",
    "$KV.leaf_state.edge.leaf",
    "_INBOX.leafd.x",
    "leaf.v1.beat.edge",
    "$JS.API.STREAM.PURGE.EVENTS_edge",
];

/// A leaf's server, and where it expects its hub.
struct Scene {
    listener: TcpListener,
    port: u16,
    leaf: LinkedLeaf,
    keeper: async_nats::Client,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn begin() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let dir = tempfile::tempdir()?;
        let seed = dir.path().join("leaf.seed");
        std::fs::write(&seed, nkeys::KeyPair::new_user().seed()?)?;
        let leaf_server = Box::pin(LinkedLeaf::start_at(format!("nats://127.0.0.1:{port}"), seed)).await?;
        let keeper = leaf_server.with_streams().await?;
        let js = async_nats::jetstream::new(keeper.clone());
        for subject in [
            subject::event(&leaf(), "leaf", "edge", "started"),
            subject::state_key(&leaf(), "leaf"),
        ] {
            js.publish(subject, "{}".into()).await?.await?;
        }
        Ok(Self {
            listener,
            port,
            leaf: leaf_server,
            keeper,
            _dir: dir,
        })
    }

    /// The leaf's server has connected to this hub.
    async fn hub(&self, says: &Value) -> anyhow::Result<RawPeer> {
        let accepted = tokio::time::timeout(LIMIT, self.listener.accept()).await;
        let (stream, _) = accepted.context("waiting for the leaf's server")??;
        RawPeer::accept(stream, self.port, says).await
    }

    fn js(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.keeper.clone())
    }
}

async fn changes_nothing() -> anyhow::Result<()> {
    let scene = Box::pin(Scene::begin()).await?;
    let before = states(&scene.js()).await?;
    let (of_streams, of_people) = (
        scene.leaf.listener(true).await?,
        scene.leaf.listener(false).await?,
    );
    let mut in_streams = of_streams.subscribe(">").await?;
    let mut of_callers = of_people.subscribe(">").await?;
    until_heard(&of_streams, "are.we.listening", &mut in_streams).await?;
    until_heard(&of_people, "are.we.listening", &mut of_callers).await?;
    for says in introductions() {
        let mut hub = scene.hub(&says).await?;
        for subject in FORBIDDEN.iter().chain(&UNCHECKED) {
            hub.publish(subject, None, "evil").await?;
            for harmful in HARMFUL {
                hub.publish(subject, Some(harmful), "evil").await?;
                hub.publish_with_header(subject, "Nats-Trace-Dest", harmful)
                    .await?;
            }
        }
        // A request that it may make, with a reply subject where the reply would be stored.
        for asked in READS {
            for harmful in HARMFUL {
                hub.publish(asked, Some(harmful), r#"{"seq":1,"batch":1}"#)
                    .await?;
                hub.publish(
                    asked,
                    Some(harmful),
                    r#"{"last_by_subj":"$KV.leaf_state.edge.leaf"}"#,
                )
                .await?;
                hub.publish_with_header(asked, "Nats-Trace-Dest", harmful).await?;
            }
        }
        ensure!(hub.still_there().await, "{says}: {:?}", hub.errors());
        // It is a hub: what it may ask, it gets.
        hub.subscribe("_INBOX.hub.>").await?;
        for (n, asked) in READS.iter().enumerate() {
            let inbox = format!("_INBOX.hub.{n}.x");
            hub.publish(asked, Some(&inbox), r#"{"seq":1}"#).await?;
            hub.hears(&inbox).await?;
        }
        let found = heard(&mut in_streams).await;
        // The requests that it may make, the server's replies to them, and its advisories about them.
        let of_requests = |found: &String| {
            let asked = [
                "$JS.API.STREAM.INFO.EVENTS_edge",
                "$JS.API.STREAM.INFO.KV_leaf_state",
                "$JS.API.DIRECT.GET.EVENTS_edge",
                "$JS.API.DIRECT.GET.KV_leaf_state",
                "$JS.EVENT.ADVISORY.API",
            ];
            asked.contains(&found.as_str()) || found.starts_with("_R_.")
        };
        let found: Vec<_> = found.into_iter().filter(|found| !of_requests(found)).collect();
        ensure!(
            found.is_empty(),
            "{says}: it reaches the account of the streams: {found:?}"
        );
        let found = heard(&mut of_callers).await;
        ensure!(
            found.is_empty(),
            "{says}: it reaches the callers' account: {found:?}"
        );
        let after = states(&scene.js()).await?;
        ensure!(after == before, "{says}: {before:?} is {after:?}");
        let _ = heard(&mut in_streams).await;
    }
    scene.leaf.server.stop().await;
    Ok(())
}

async fn hears_what_goes_up() -> anyhow::Result<()> {
    let scene = Box::pin(Scene::begin()).await?;
    for says in introductions() {
        let mut hub = scene.hub(&says).await?;
        for all in [
            ">",
            "*.>",
            "leaf.>",
            "leaf.*.cmd.edge.>",
            "leaf.v1.cmd.> q 1000000",
            "leaf.v1.cmd.edge.admin.leaf.show",
            "leaf.v1.evt.edge.>",
            "$JS.>",
            "$JS.API.> q 1000000",
            "$JS.API.STREAM.INFO.EVENTS_edge",
            "$KV.>",
            "$SYS.>",
            "$SRV.>",
            "_INBOX.>",
            "_INBOX.admin.>",
            "_R_.>",
            "_GR_.>",
        ] {
            hub.subscribe(all).await?;
        }
        ensure!(hub.still_there().await, "{says}: {:?}", hub.errors());
        own_people_work(&scene).await?;
        hub.hears("leaf.v1.ctr.edge.").await?;
        ensure!(hub.still_there().await, "{says}: {:?}", hub.errors());
        let mut subjects: Vec<_> = hub
            .messages()
            .into_iter()
            .map(|message| message.subject)
            .collect();
        subjects.sort_unstable();
        subjects.dedup();
        let up = [
            "leaf.v1.beat.edge",
            "leaf.v1.ctr.edge.web.hello",
            "leaf.v1.job.edge.x.log",
            "leaf.v1.state.edge.leaf",
            "leaf.v1.up.edge.00000000-0000-0000-0000-000000000007.leaf.edge.started",
        ];
        ensure!(subjects == up, "{says}: the hub hears {subjects:?}");
        // The leaf's server asks for what comes down, and for nothing that tells of its people.
        let interest = hub.interest();
        let others: Vec<_> = interest
            .iter()
            .filter(|subject| !is_of_the_contract(subject))
            .collect();
        ensure!(others.is_empty(), "{says}: it is asked for {others:?}");
    }
    scene.leaf.server.stop().await;
    Ok(())
}

/// Whether a leaf's server may ask its hub for this: what comes down, and what a server asks each of its hubs for.
fn is_of_the_contract(interest: &str) -> bool {
    use leaf_bus::identity::{Way, crossings};
    // It is read under its instance.
    let subject = |subject: String| {
        let of_instance = format!(".link.{}.{}.", leaf(), instance());
        subject.replace(&format!(".link.{}.*.", leaf()), &of_instance)
    };
    let down = crossings(&leaf())
        .into_iter()
        .any(|crossing| crossing.way != Way::Up && subject(crossing.subject) == interest);
    down || interest.starts_with("$LDS.") || interest.starts_with("_R_.") || interest.starts_with("$SYS.REQ.")
}

/// A leaf's own people work on it, and all that goes up does.
async fn own_people_work(scene: &Scene) -> anyhow::Result<()> {
    let service = scene.leaf.service().await?;
    let mut commands = service.subscribe(subject::commands_of(&leaf())).await?;
    service.flush().await?;
    let admin = scene
        .leaf
        .connect(&scene.leaf.identity.admin_credentials(), "_INBOX.admin")
        .await?;
    let ask = admin.request("leaf.v1.cmd.edge.admin.leaf.show", "secret".into());
    let answer = async {
        let request = commands.next().await.context("a command")?;
        service
            .publish(request.reply.context("a reply subject")?, "secret".into())
            .await?;
        anyhow::Ok(())
    };
    let (reply, answered) = tokio::join!(tokio::time::timeout(LIMIT, ask), answer);
    answered?;
    reply??;
    admin
        .request("$JS.API.STREAM.INFO.EVENTS_edge", "".into())
        .await?;
    let js = scene.js();
    for subject in [
        subject::event(&leaf(), "leaf", "edge", "started"),
        subject::state_key(&leaf(), "leaf"),
    ] {
        js.publish(subject, "{}".into()).await?.await?;
    }
    scene
        .keeper
        .publish(subject::beat(&leaf()), "here".into())
        .await?;
    scene.keeper.flush().await?;
    for subject in ["leaf.v1.job.edge.x.log", "leaf.v1.ctr.edge.web.hello"] {
        service.publish(subject, "here".into()).await?;
        service.flush().await?;
    }
    Ok(())
}

async fn outlives_garbage() -> anyhow::Result<()> {
    let scene = Box::pin(Scene::begin()).await?;
    let long = "x".repeat(64 << 10);
    for sent in [
        "RMSG LEAF leaf.v1.evt.edge.a.b.c 4\r\nevil\r\n".to_owned(),
        "PUB leaf.v1.evt.edge.a.b.c 4\r\nevil\r\n".to_owned(),
        "MSG leaf.v1.evt.edge.a.b.c 1 4\r\nevil\r\n".to_owned(),
        "SUB > 1\r\n".to_owned(),
        "LS+ a b\r\n".to_owned(),
        format!("LS+ {long}.>\r\n"),
        "LMSG leaf.v1.ask.x 99999999999999999999\r\n".to_owned(),
        format!("LMSG leaf.v1.ask.x {}\r\n", 16 << 20),
        "HMSG leaf.v1.ask.x 9 4\r\nevil\r\n".to_owned(),
        "INFO [".repeat(1000),
        "INFO {\"leafnode_urls\":[\"\",\"127.0.0.1:99999\",\"not a place\"]}\r\n".to_owned(),
        "CONNECT {\"is_hub\":true}\r\nLMSG leaf.v1.evt.edge.a.b.c 4\r\nevil\r\n".to_owned(),
        "-ERR 'Authorization Violation'\r\n".to_owned(),
        "\0\u{1}\u{2}\r\n\r\n\r\n".to_owned(),
    ] {
        let mut hub = scene.hub(&json!({})).await?;
        hub.send(&sent).await?;
        hub.still_there().await;
    }
    // It has come back each time, and its own people never noticed.
    let mut hub = scene.hub(&json!({})).await?;
    hub.subscribe(">").await?;
    ensure!(hub.still_there().await, "{:?}", hub.errors());
    own_people_work(&scene).await?;
    hub.hears("leaf.v1.ctr.edge.").await?;
    scene.leaf.server.stop().await;
    Ok(())
}

/// As a server of a cluster does. The option against it, `ignore_discovered_servers`, is one of nats-server 2.14.
async fn names_other_addresses() -> anyhow::Result<()> {
    let scene = Scene::begin().await?;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await?;
    let address = elsewhere.local_addr()?;
    let hub = scene
        .hub(&json!({ "leafnode_urls": [address.to_string()] }))
        .await?;
    drop(hub);
    // It tries one address after the other, with a pause of a second.
    let there = async {
        loop {
            tokio::select! {
                there = elsewhere.accept() => return there,
                gone = scene.listener.accept() => drop(gone),
            }
        }
    };
    let (stream, _) = tokio::time::timeout(LIMIT, there)
        .await
        .context("waiting for the leaf's server elsewhere")??;
    let mut hub = RawPeer::accept(stream, address.port(), &json!({})).await?;
    hub.subscribe(">").await?;
    ensure!(hub.still_there().await, "{:?}", hub.errors());
    own_people_work(&scene).await?;
    hub.hears("leaf.v1.ctr.edge.").await?;
    let secret = hub
        .messages()
        .into_iter()
        .find(|message| message.subject.contains(".cmd.") || message.subject.starts_with("_INBOX."));
    ensure!(secret.is_none(), "it hears {secret:?}");
    scene.leaf.server.stop().await;
    Ok(())
}

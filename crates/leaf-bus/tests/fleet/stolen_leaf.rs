//! A leaf is stolen, and with it the key of its user at the hub. The thief runs a server of their own with that key, and has
//! every right on it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::Client;
use futures::StreamExt as _;
use leaf_core::subject;
use libtest_mimic::Trial;

use super::{
    LinkedLeaf, TestHub, ann, heard, instance, nothing_stored, stolen, trial_with_operator, until_heard,
    until_linked,
};
use crate::plain::PlainServer;
use crate::support::{LIMIT, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("a_stolen_leaf_hears_nothing_of_others", hears_nothing),
        trial(
            "a_stolen_leaf_writes_nothing_in_the_name_of_others",
            writes_nothing,
        ),
        trial("a_stolen_leaf_takes_no_commands_of_others", takes_no_commands),
        trial(
            "a_stolen_leaf_forges_no_reply_to_another_request",
            forges_no_reply,
        ),
        trial("the_key_of_a_leaf_connects_no_client", connects_no_client),
        trial_with_operator(
            "with_an_operator_a_stolen_leaf_hears_nothing_of_others",
            hears_nothing,
        ),
        trial_with_operator(
            "with_an_operator_a_stolen_leaf_writes_nothing_in_the_name_of_others",
            writes_nothing,
        ),
        trial_with_operator(
            "with_an_operator_a_stolen_leaf_takes_no_commands_of_others",
            takes_no_commands,
        ),
        trial_with_operator(
            "with_an_operator_a_stolen_leaf_forges_no_reply_to_another_request",
            forges_no_reply,
        ),
        trial_with_operator(
            "with_an_operator_the_credentials_of_a_leaf_connect_no_client",
            connects_no_client,
        ),
    ]
}

/// The hub, a leaf, and a thief.
struct Theft {
    hub: TestHub,
    leaf: LinkedLeaf,
    thief: Client,
    _server: PlainServer,
}

impl Theft {
    async fn begin() -> anyhow::Result<Self> {
        let hub = TestHub::start().await?;
        let leaf = LinkedLeaf::start(&hub).await?;
        let dir = hub.dir.path().join("thief");
        std::fs::create_dir(&dir)?;
        let config = format!(
            "server_name: thief\njetstream {{ store_dir: \"{}\" }}\nleafnodes {{ remotes [ {{ urls: [\"{}\"], {} }} ] }}",
            dir.join("jetstream").display(),
            hub.leaf_url(),
            match hub.credentials.contains_key(&hub.stolen.public_key()) {
                false => format!("nkey: \"{}\"", hub.stolen.seed()?),
                true => format!("credentials: \"{}\"", hub.user_file(&hub.stolen)?.display()),
            }
        );
        let server = PlainServer::start(&dir, &config).await?;
        let thief = async_nats::connect(server.url()).await?;
        until_linked(&hub, &leaf).await?;
        let theft = Self {
            hub,
            leaf,
            thief,
            _server: server,
        };
        theft.is_connected().await?;
        Ok(theft)
    }

    /// Waits until the hub hears what the thief may send.
    async fn is_connected(&self) -> anyhow::Result<()> {
        let owner = self.hub.owner().await?;
        let beat = subject::beat(&stolen());
        let mut beats = owner.subscribe(beat.clone()).await?;
        owner.flush().await?;
        until_heard(&self.thief, &beat, &mut beats).await
    }

    /// Waits until the hub knows all that the other leaf and the thief subscribed to, as far as it lets them: the thief's own
    /// commands reach it.
    async fn is_listening(&self) -> anyhow::Result<()> {
        until_linked(&self.hub, &self.leaf).await?;
        let command = subject::CommandSubject {
            leaf: stolen(),
            caller: ann(),
            noun: "leaf".to_owned(),
            verb: "show".to_owned(),
        }
        .build();
        let mut commands = self.thief.subscribe("leaf.*.cmd.stolen.>").await?;
        self.thief.flush().await?;
        until_heard(&self.hub.ann().await?, &command, &mut commands).await
    }
}

async fn hears_nothing() -> anyhow::Result<()> {
    let theft = Theft::begin().await?;
    let keeper = theft.leaf.with_streams().await?;
    let (service, in_link) = (theft.leaf.service().await?, theft.leaf.claimant().await?);
    let mut commands = in_link.subscribe(subject::commands_of(&leaf())).await?;
    let agent_in_links = theft.hub.agent_in_links().await?;
    let mut claims = agent_in_links.subscribe(subject::hub_requests()).await?;
    let mut all = theft.thief.subscribe(">").await?;
    let mut replies = theft.thief.subscribe("_R_.>").await?;
    let mut inboxes = theft.thief.subscribe("_INBOX.>").await?;
    for client in [&in_link, &agent_in_links, &theft.thief] {
        client.flush().await?;
    }
    theft.is_listening().await?;
    let _ = heard(&mut all).await;

    let answer = async {
        let request = commands.next().await.context("a command")?;
        in_link
            .publish(request.reply.context("a reply subject")?, "secret".into())
            .await?;
        let claim = claims.next().await.context("a claim")?;
        agent_in_links
            .publish(claim.reply.context("a reply subject")?, "secret".into())
            .await?;
        anyhow::Ok(())
    };
    let ask = async {
        let (ann, claimant) = (theft.hub.ann().await?, theft.leaf.claimant().await?);
        ann.request("leaf.v1.cmd.edge.ann.leaf.show", "secret".into())
            .await?;
        claimant
            .request(subject::hub_claim(&leaf()), "secret".into())
            .await?;
        let js = async_nats::jetstream::new(keeper.clone());
        js.publish(
            subject::event(&leaf(), "leaf", "edge", "started"),
            "secret".into(),
        )
        .await?
        .await?;
        js.publish(subject::state_key(&leaf(), "leaf"), "secret".into())
            .await?
            .await?;
        keeper.publish(subject::beat(&leaf()), "secret".into()).await?;
        service.publish("leaf.v1.job.edge.x.log", "secret".into()).await?;
        service
            .publish("leaf.v1.ctr.edge.web.hello", "secret".into())
            .await?;
        keeper.flush().await?;
        service.flush().await?;
        let agent = theft.hub.agent().await?;
        agent
            .request(
                subject::link_read(&leaf(), instance(), subject::LinkRead::EventsInfo),
                "".into(),
            )
            .await?;
        anyhow::Ok(())
    };
    let (answered, asked) = tokio::join!(answer, ask);
    answered?;
    asked?;
    for (name, subscription) in [
        (">", &mut all),
        ("_R_.>", &mut replies),
        ("_INBOX.>", &mut inboxes),
    ] {
        let found = heard(subscription).await;
        let of_hub = |found: &String| !found.starts_with("leaf.v1.ask.") && !found.starts_with("$SRV.");
        let found: Vec<_> = found.into_iter().filter(of_hub).collect();
        ensure!(found.is_empty(), "the thief hears on {name}: {found:?}");
    }
    theft.leaf.server.stop().await;
    Ok(())
}

/// What a thief may try to send: to the hub, to people, to the other leaf, in the other leaf's name.
pub(super) const FORBIDDEN: [&str; 41] = [
    "leaf.v1.evt.edge.leaf.edge.started",
    "leaf.v1.evt.stolen.leaf.stolen.started",
    "leaf.v1.beat.edge",
    "leaf.v1.state.edge.leaf",
    "leaf.v1.job.edge.x.log",
    "leaf.v1.ctr.edge.web.hello",
    "leaf.v1.ctr.edge.web.health",
    "leaf.v1.up.edge.00000000-0000-0000-0000-000000000007.leaf.edge.started",
    "leaf.v1.hub.edge.claim",
    "leaf.v1.hub.edge.release",
    "leaf.v1.hub.edge.fill",
    "leaf.v1.hub.edge.copy.read",
    "leaf.v1.hub.edge.witness",
    "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.events.info",
    "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.events.get",
    "leaf.v1.link.stolen.00000000-0000-0000-0000-000000000007.events.info",
    "leaf.v1.copy.edge.evt.leaf.edge.started",
    "leaf.v1.copy.stolen.evt.leaf.stolen.started",
    "leaf.v1.copy.edge.closed",
    "leaf.v1.copy.stolen.closed",
    "leaf.v1.copy.edge.beat",
    "leaf.v1.copy.edge.state.leaf",
    "leaf.v1.fleet.edge.away",
    "leaf.v1.cmd.edge.admin.leaf.show",
    "leaf.v1.cmd.edge.ann.leaf.show",
    "leaf.v1.cmd.stolen.ann.leaf.show",
    "leaf.v1.ask.leaf.list",
    "$KV.leaf_state.edge.leaf",
    "$KV.leaf_state.stolen.leaf",
    "$KV.fleet.edge",
    "$JS.API.INFO",
    "$JS.API.STREAM.DELETE.EVENTS_edge",
    "$JS.API.STREAM.CREATE.EVENTS_stolen",
    "$JS.API.STREAM.PURGE.KV_leaf_state",
    "$JS.API.CONSUMER.CREATE.EVENTS_edge",
    "$JS.edge.API.STREAM.PURGE.EVENTS_edge",
    "$JS.hub.API.STREAM.DELETE.LEASES",
    "$O.bucket.C.x",
    "$SRV.PING",
    "$SYS.REQ.SERVER.PING",
    "_INBOX.ann.guessed",
];

async fn writes_nothing() -> anyhow::Result<()> {
    let theft = Theft::begin().await?;
    theft.hub.with_streams().await?;
    let keeper = theft.leaf.with_streams().await?;
    let (agent, agent_in_links, ann) = (
        theft.hub.agent().await?,
        theft.hub.agent_in_links().await?,
        theft.hub.ann().await?,
    );
    // Whatever could arrive anywhere.
    let mut everywhere = Vec::new();
    for (client, subject) in [
        (theft.hub.owner().await?, ">".to_owned()),
        (agent.clone(), subject::state_changes()),
        (agent.clone(), "_INBOX.hub.>".to_owned()),
        (agent_in_links, subject::hub_requests()),
        (ann.clone(), subject::events()),
        (ann.clone(), subject::beats()),
        (ann.clone(), subject::state_keys()),
        (ann.clone(), subject::jobs()),
        (ann, "_INBOX.ann.>".to_owned()),
        (theft.leaf.listener(true).await?, ">".to_owned()),
        (theft.leaf.listener(false).await?, ">".to_owned()),
    ] {
        everywhere.push((subject.clone(), client.subscribe(subject).await?));
        client.flush().await?;
    }
    // A subscription that no other of these contains, and the last: its interest reaches the thief after that of all others.
    let log = "leaf.v1.job.stolen.x.log";
    let mut last = theft.hub.ann().await?.subscribe(log).await?;
    until_heard(&theft.thief, log, &mut last).await?;
    for (_, subscription) in &mut everywhere {
        let _ = heard(subscription).await;
    }
    // With a reply subject in each kind of place that a reply could do harm in.
    for forbidden in FORBIDDEN {
        for reply in [
            "leaf.v1.copy.edge.state.leaf",
            "leaf.v1.up.edge.00000000-0000-0000-0000-000000000007.a.b.c",
            "leaf.v1.evt.edge.a.b.c",
            "leaf.v1.cmd.edge.admin.leaf.show",
        ] {
            theft
                .thief
                .publish_with_reply(forbidden, reply, "stolen".into())
                .await?;
        }
    }
    // What it may send, with a reply subject that is not its own: the hub's server would acknowledge there what it stores.
    let up = "leaf.v1.up.stolen.00000000-0000-0000-0000-000000000007.a.b.c";
    for own in ["leaf.v1.hub.stolen.claim", up] {
        for reply in [
            "leaf.v1.copy.edge.state.leaf",
            "leaf.v1.up.edge.00000000-0000-0000-0000-000000000007.a.b.c",
        ] {
            theft
                .thief
                .publish_with_reply(own, reply, "stolen".into())
                .await?;
        }
    }
    theft.thief.flush().await?;
    for (where_, subscription) in &mut everywhere {
        let found = heard(subscription).await;
        let of_others = |found: &String| {
            !["evt", "hub", "up"]
                .iter()
                .any(|kind| found.starts_with(&format!("leaf.v1.{kind}.stolen.")))
        };
        let found: Vec<_> = found.into_iter().filter(of_others).collect();
        ensure!(
            found.is_empty(),
            "the thief's messages arrive at {where_}: {found:?}"
        );
    }
    nothing_stored(&agent, &keeper).await?;
    let js = async_nats::jetstream::new(agent);
    let own = js.get_stream("EVENTS_stolen").await?.get_info().await?;
    ensure!(own.state.messages == 2, "its own copy has {:?}", own.state);
    theft.leaf.server.stop().await;
    Ok(())
}

async fn takes_no_commands() -> anyhow::Result<()> {
    let theft = Theft::begin().await?;
    let in_link = theft.leaf.claimant().await?;
    let mut commands = in_link.subscribe(subject::commands_of(&leaf())).await?;
    in_link.flush().await?;
    // A member of a queue group would get every other command, if its subscription crossed.
    let mut stolen = Vec::new();
    for taken in [
        "leaf.*.cmd.edge.>",
        "leaf.v1.cmd.>",
        "leaf.v1.link.edge.>",
        "leaf.v1.hub.>",
    ] {
        stolen.push(theft.thief.queue_subscribe(taken, "q".to_owned()).await?);
        stolen.push(theft.thief.subscribe(taken).await?);
    }
    theft.is_listening().await?;
    for subscription in &mut stolen {
        let _ = heard(subscription).await;
    }
    let ann = theft.hub.ann().await?;
    for n in 0..20 {
        let ask = ann.request("leaf.v1.cmd.edge.ann.leaf.show", n.to_string().into());
        let answer = async {
            let request = commands.next().await.context("a command")?;
            in_link
                .publish(request.reply.context("a reply subject")?, request.payload)
                .await?;
            anyhow::Ok(())
        };
        let (reply, answered) = tokio::join!(ask, answer);
        answered?;
        ensure!(reply?.payload == n.to_string(), "command {n} got another's reply");
    }
    for subscription in &mut stolen {
        let found = heard(subscription).await;
        ensure!(found.is_empty(), "the thief got {found:?}");
    }
    theft.leaf.server.stop().await;
    Ok(())
}

async fn forges_no_reply() -> anyhow::Result<()> {
    let theft = Theft::begin().await?;
    let in_link = theft.leaf.claimant().await?;
    let mut commands = in_link.subscribe(subject::commands_of(&leaf())).await?;
    in_link.flush().await?;
    theft.is_listening().await?;
    let mut of_thief = theft.thief.subscribe("leaf.*.cmd.stolen.>").await?;
    theft.thief.flush().await?;
    let ann = theft.hub.ann().await?;
    // The thief learns the form of a reply subject from a request of its own. The end of an earlier subscription may reach the hub
    // late, and a request until then has no responder.
    let ask = async {
        loop {
            let inbox = ann.new_inbox();
            ann.publish_with_reply("leaf.v1.cmd.stolen.ann.leaf.show", inbox, "".into())
                .await?;
            if let Ok(request) = tokio::time::timeout(Duration::from_millis(500), of_thief.next()).await
                && let Some(reply) = request.context("the subscription ended")?.reply
            {
                return anyhow::Ok(reply);
            }
        }
    };
    let seen = tokio::time::timeout(LIMIT, ask).await.context("a command")??;
    theft.thief.publish(seen.clone(), "mine".into()).await?;
    let (prefix, _) = seen.rsplit_once('.').context("its last token")?;
    // A request to the other leaf is open, and the thief guesses at its reply subject and at the caller's inbox.
    let inbox = ann.new_inbox();
    let mut replies = ann.subscribe(inbox.clone()).await?;
    ann.publish_with_reply("leaf.v1.cmd.edge.ann.leaf.show", inbox.clone(), "".into())
        .await?;
    let request = tokio::time::timeout(LIMIT, commands.next())
        .await?
        .context("a command")?;
    theft.thief.publish(inbox, "forged".into()).await?;
    for guess in 0..20_000 {
        let reply = format!("{prefix}.{guess:06}");
        theft.thief.publish(reply, "forged".into()).await?;
    }
    theft.thief.flush().await?;
    ensure!(heard(&mut replies).await.is_empty(), "a forged reply arrived");
    in_link
        .publish(request.reply.context("a reply subject")?, "true".into())
        .await?;
    let reply = tokio::time::timeout(LIMIT, replies.next())
        .await?
        .context("a reply")?;
    ensure!(reply.payload == "true", "{reply:?}");
    theft.leaf.server.stop().await;
    Ok(())
}

async fn connects_no_client() -> anyhow::Result<()> {
    let hub = TestHub::start().await?;
    let connected = hub.connect(&hub.stolen, &ann()).await;
    let error = format!("{:?}", connected.err().context("it connected")?).to_lowercase();
    ensure!(error.contains("authorization"), "{error}");
    Ok(())
}

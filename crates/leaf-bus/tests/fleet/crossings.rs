//! Each subject that crosses is needed, and is enough.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use leaf_bus::client::{CallError, CallOptions, Client};
use leaf_bus::connect::{ConnectSettings, Credentials};
use leaf_bus::identity::{Crossing, Home, Way, crossings};
use leaf_core::subject;
use libtest_mimic::Trial;
use tokio::task::JoinSet;

use super::{LinkedLeaf, TestHub, ann, heard, instance, trial_with_operator, until_heard, until_linked};
use crate::support::{LIMIT, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "everything_crosses_with_the_rights_of_the_list",
            everything_crosses,
        ),
        trial(
            "without_one_right_exactly_what_needs_it_does_not_cross",
            each_is_needed,
        ),
        trial("a_command_through_a_hub_is_answered_by_one_message", commands),
        trial("a_listener_hears_each_live_message_once", once),
        trial(
            "a_leafs_own_people_reach_no_other_leaf_and_not_the_hub",
            down_only,
        ),
        trial_with_operator(
            "with_an_operator_everything_crosses_with_the_rights_of_the_list",
            everything_crosses,
        ),
        trial_with_operator(
            "with_an_operator_without_one_right_exactly_what_needs_it_does_not_cross",
            each_is_needed,
        ),
        trial_with_operator(
            "with_an_operator_a_command_through_a_hub_is_answered_by_one_message",
            commands,
        ),
        trial_with_operator("with_an_operator_a_listener_hears_each_live_message_once", once),
        trial_with_operator(
            "with_an_operator_a_leafs_own_people_reach_no_other_leaf_and_not_the_hub",
            down_only,
        ),
    ]
}

/// Both sides of a connection, with users of each account.
struct Ends {
    keeper: async_nats::Client,
    service: async_nats::Client,
    claimant: async_nats::Client,
    agent: async_nats::Client,
    agent_in_links: async_nats::Client,
    ann: async_nats::Client,
    owner: async_nats::Client,
    answering: JoinSet<()>,
}

impl Ends {
    async fn of(hub: &TestHub, server: &LinkedLeaf) -> anyhow::Result<Self> {
        let mut ends = Self {
            keeper: server.with_streams().await?,
            service: server.service().await?,
            claimant: server.claimant().await?,
            agent: hub.agent().await?,
            agent_in_links: hub.agent_in_links().await?,
            ann: hub.ann().await?,
            owner: hub.owner().await?,
            answering: JoinSet::new(),
        };
        // What leafd and the agent answer.
        let answered = [
            (&ends.claimant, subject::commands_of(&leaf())),
            (&ends.service, subject::asks()),
            (&ends.service, subject::containers_of(&leaf())),
            (&ends.service, "$SRV.>".to_owned()),
            (&ends.agent_in_links, subject::hub_requests()),
        ];
        for (client, asked) in answered {
            let mut requests = client.subscribe(asked).await?;
            client.flush().await?;
            let client = client.clone();
            ends.answering.spawn(async move {
                while let Some(request) = requests.next().await {
                    if let Some(reply) = request.reply {
                        let _ = client.publish(reply, "here".into()).await;
                    }
                }
            });
        }
        Ok(ends)
    }

    /// Whether a message or a request crosses on this subject.
    async fn crosses(&self, crossing: &Crossing) -> anyhow::Result<bool> {
        if crossing.subject == subject::ups_of(&leaf()) {
            return self.is_copied().await;
        }
        let wildcard = if crossing.subject.contains(".link.") {
            instance().to_string()
        } else {
            "web".to_owned()
        };
        let literal = crossing.subject.replace('*', &wildcard).replace('>', "x.y.z");
        match (crossing.way, crossing.home) {
            (Way::Up, home) => {
                let sender = if home == Home::Streams {
                    &self.keeper
                } else {
                    &self.service
                };
                let is_state = literal == subject::state_changes_of(&leaf()).replace('>', "x.y.z");
                // People hear it as the key-value bucket's message.
                let there = if is_state {
                    literal.replacen("leaf.v1.state.", "$KV.leaf_state.", 1)
                } else {
                    literal.clone()
                };
                // Nobody at the hub may hear containers yet, but its owner.
                let reader = if literal.contains(".ctr.") {
                    &self.owner
                } else {
                    &self.ann
                };
                let mut messages = reader.subscribe(listened(&there)).await?;
                reader.flush().await?;
                let sent = if is_state { there.clone() } else { literal };
                // The interest crosses after the subscription: it is sent until it is heard.
                for _ in 0..10 {
                    sender.publish(sent.clone(), "up".into()).await?;
                    sender.flush().await?;
                    let heard = tokio::time::timeout(Duration::from_millis(50), messages.next()).await;
                    if matches!(heard, Ok(Some(message)) if message.subject.as_str() == there) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            (Way::Down | Way::DownMany, Home::Streams) => {
                let what = if literal.ends_with(".get") {
                    r#"{"seq":1,"batch":1}"#
                } else {
                    ""
                };
                answers(&self.agent, &literal, what).await
            }
            (Way::Down | Way::DownMany, _) => {
                let asked = literal
                    .replace("leaf.*.cmd", "leaf.v1.cmd")
                    .replace("leaf.web.cmd", "leaf.v1.cmd");
                let asked = if asked.contains(".cmd.") {
                    subject::CommandSubject {
                        leaf: leaf(),
                        caller: ann(),
                        noun: "leaf".to_owned(),
                        verb: "show".to_owned(),
                    }
                    .build()
                } else {
                    asked.replace("$SRV.x.y.z", "$SRV.PING")
                };
                answers(&self.ann, &asked, "").await
            }
            (Way::UpRequest | Way::DownReply, _) => {
                answers(&self.claimant, &subject::hub_claim(&leaf()), "{}").await
            }
            (Way::UpReply, _) => {
                answers(
                    &self.agent,
                    &subject::link_read(&leaf(), instance(), subject::LinkRead::EventsInfo),
                    "",
                )
                .await
            }
        }
    }
}

impl Ends {
    /// Whether a stream of the hub gets an event of the leaf, live or as the leaf sends it again.
    async fn is_copied(&self) -> anyhow::Result<bool> {
        let js = async_nats::jetstream::new(self.agent.clone());
        let mut stream = js
            .create_stream(async_nats::jetstream::stream::Config {
                name: "COPY".to_owned(),
                subjects: vec![subject::up_events_of(&leaf(), instance())],
                ..Default::default()
            })
            .await?;
        let live = subject::event(&leaf(), "leaf", "edge", "started");
        let again = format!("{}leaf.edge.started", subject::up_prefix(&leaf(), instance()));
        let (mut is_live, mut is_again) = (false, false);
        for _ in 0..10 {
            for (sender, sent, arrives) in [
                (&self.keeper, &live, &mut is_live),
                (&self.claimant, &again, &mut is_again),
            ] {
                let before = stream.info().await?.state.messages;
                sender.publish(sent.clone(), "up".into()).await?;
                sender.flush().await?;
                tokio::time::sleep(Duration::from_millis(25)).await;
                *arrives |= stream.info().await?.state.messages > before;
            }
        }
        js.delete_stream("COPY").await?;
        ensure!(is_live == is_again, "live: {is_live}, again: {is_again}");
        Ok(is_live)
    }
}

/// Returns the wildcard that a person may listen to, for a subject.
fn listened(subject: &str) -> String {
    for all in [
        subject::events(),
        subject::beats(),
        subject::state_keys(),
        subject::jobs(),
    ] {
        let stem = all.trim_end_matches(['>', '*']);
        if subject.starts_with(stem) {
            return all;
        }
    }
    subject.to_owned()
}

async fn answers(client: &async_nats::Client, subject: &str, body: &'static str) -> anyhow::Result<bool> {
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(inbox.clone()).await?;
    client
        .publish_with_reply(subject.to_owned(), inbox, body.into())
        .await?;
    client.flush().await?;
    match tokio::time::timeout(Duration::from_millis(500), replies.next()).await {
        Ok(Some(reply)) => Ok(reply.status != Some(async_nats::StatusCode::NO_RESPONDERS)),
        _ => Ok(false),
    }
}

async fn linked(without: &str) -> anyhow::Result<(TestHub, LinkedLeaf, Ends)> {
    let hub = Box::pin(TestHub::start_without(without)).await?;
    let server = Box::pin(LinkedLeaf::start(&hub)).await?;
    let ends = Box::pin(Ends::of(&hub, &server)).await?;
    Ok((hub, server, ends))
}

async fn everything_crosses() -> anyhow::Result<()> {
    let (hub, server, ends) = linked("").await?;
    until_linked(&hub, &server).await?;
    for crossing in crossings(&leaf()) {
        ensure!(
            ends.crosses(&crossing).await?,
            "{} does not cross",
            crossing.subject
        );
    }
    server.server.stop().await;
    Ok(())
}

async fn each_is_needed() -> anyhow::Result<()> {
    let all = crossings(&leaf());
    for missing in &all {
        let (hub, server, ends) = linked(&missing.subject).await?;
        let is_beat = missing.subject == subject::beat(&leaf());
        if is_beat {
            tokio::time::timeout(LIMIT, async {
                while !ends.crosses(&all[0]).await.unwrap_or(false) {}
            })
            .await
            .context("waiting for the connection")?;
        } else {
            until_linked(&hub, &server).await?;
        }
        ensure!(
            !ends.crosses(missing).await?,
            "{} crosses without the right to it",
            missing.subject
        );
        let of_beats = |crossing: &&Crossing| crossing.subject == subject::beat(&leaf());
        let other = if is_beat {
            all.first()
        } else {
            all.iter().find(of_beats)
        };
        let other = other.context("another one")?;
        ensure!(ends.crosses(other).await?, "{} does not cross", other.subject);
        server.server.stop().await;
    }
    Ok(())
}

async fn once() -> anyhow::Result<()> {
    let (hub, server, ends) = linked("").await?;
    until_linked(&hub, &server).await?;
    // At the hub an event is heard when it is stored in the copy.
    hub.with_streams().await?;
    let here = server.listener(false).await?;
    let local_admin = server
        .connect(&server.identity.admin_credentials(), "_INBOX.admin")
        .await?;
    let mut subscriptions = Vec::new();
    for all in [subject::events(), subject::state_keys()] {
        for client in [&ends.ann, &local_admin, &here] {
            subscriptions.push((all.clone(), client.subscribe(all.clone()).await?));
            client.flush().await?;
        }
    }
    let message = |all: &str, name: &str| {
        if all == subject::events() {
            subject::event(&leaf(), "leaf", "edge", name)
        } else {
            subject::state_key(&leaf(), name)
        }
    };
    for (all, subscription) in &mut subscriptions {
        until_heard(&ends.keeper, &message(all, "first"), subscription).await?;
    }
    let js = async_nats::jetstream::new(ends.keeper.clone());
    for all in [subject::events(), subject::state_keys()] {
        js.publish(message(&all, "started"), "{}".into()).await?.await?;
    }
    for (all, mut subscription) in subscriptions {
        let (started, first) = (message(&all, "started"), message(&all, "first"));
        let mut found = heard(&mut subscription).await;
        found.retain(|found| *found != first);
        ensure!(found == [started], "a listener to {all} heard {found:?}");
    }
    server.server.stop().await;
    Ok(())
}

async fn down_only() -> anyhow::Result<()> {
    let (hub, server, ends) = linked("").await?;
    until_linked(&hub, &server).await?;
    let owner = hub.owner().await?;
    let mut at_hub = owner.subscribe(">").await?;
    let mut of_ann = ends.ann.subscribe("_INBOX.ann.>").await?;
    owner.flush().await?;
    ends.ann.flush().await?;
    let log = "leaf.v1.job.edge.x.log";
    until_heard(&ends.service, log, &mut at_hub).await?;
    let _ = heard(&mut at_hub).await;
    let person = server.listener(false).await?;
    for sent in [
        "leaf.v1.cmd.stolen.admin.leaf.show",
        "leaf.v1.ask.leaf.list",
        "leaf.v1.evt.edge.leaf.edge.started",
        "$JS.API.INFO",
        "$JS.hub.API.INFO",
        "$KV.leaf_state.edge.leaf",
        "$O.bucket.C.x",
        "leaf.v1.hub.edge.claim",
        "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.events.info",
        "_INBOX.ann.guessed",
        "$SRV.PING",
    ] {
        person.publish(sent, "from below".into()).await?;
    }
    person.flush().await?;
    ends.service.publish(log, "last".into()).await?;
    ends.service.flush().await?;
    let found = heard(&mut at_hub).await;
    ensure!(found == [log], "the hub heard {found:?}");
    let found = heard(&mut of_ann).await;
    ensure!(found.is_empty(), "ann heard {found:?}");
    server.server.stop().await;
    Ok(())
}

async fn ask(client: &Client, verb: &str) -> Result<Vec<u8>, CallError> {
    client
        .call_raw(&leaf(), "leaf", verb, b"{}".to_vec(), CallOptions::default())
        .await
}

async fn commands() -> anyhow::Result<()> {
    let hub = TestHub::start().await?;
    let server = LinkedLeaf::start(&hub).await?;
    until_linked(&hub, &server).await?;
    let as_user = |credentials, inbox_prefix: &str, url: String| ConnectSettings {
        credentials,
        inbox_prefix: inbox_prefix.to_owned(),
        ..ConnectSettings::new(&url)
    };
    let mut answering = server.takes_commands().await?;
    let key = Credentials::in_file(&hub.user_file(&hub.ann)?);
    let ann = Client::connect(&as_user(key, "_INBOX.ann", hub.server.url()), LIMIT).await?;
    let secret = Credentials::Text(server.identity.admin_credentials());
    let admin = Client::connect(
        &as_user(secret, "_INBOX.admin", server.server.client_url()),
        LIMIT,
    )
    .await?;
    let test = async {
        // The leaf's own admin first: a server drops what comes from a hub before the subscription that it is meant for, and says
        // nothing.
        for client in [&admin, &ann] {
            let found = tokio::time::timeout(LIMIT, async {
                loop {
                    match ask(client, "show").await {
                        Err(CallError::NoLeaf(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                        other => return other,
                    }
                }
            })
            .await??;
            ensure!(found == b"{}", "{found:?}");
        }
        let refused = ask(&ann, "large").await.err().context("a large reply crossed")?;
        ensure!(
            refused.to_string().contains("crosses from the leaf to its hub"),
            "{refused}"
        );
        ensure!(matches!(refused, CallError::Problem(_)), "{refused:?}");
        let nobody = ann
            .call_raw(
                &super::stolen(),
                "leaf",
                "show",
                Vec::new(),
                CallOptions::default(),
            )
            .await;
        ensure!(
            matches!(nobody, Err(CallError::NoLeaf(_))),
            "a leaf that is not there: {nobody:?}"
        );
        anyhow::Ok(())
    };
    let answer = async {
        while let Some(request) = answering.next().await {
            let bytes = if request.verb == "large" { 2 << 20 } else { 2 };
            let body = if bytes == 2 {
                b"{}".to_vec()
            } else {
                vec![b' '; bytes]
            };
            request
                .responder
                .reply(request.command_id.as_ref(), Ok(body))
                .await;
        }
    };
    tokio::select! {
        () = answer => anyhow::bail!("the server ended"),
        tested = test => tested?,
    }
    server.server.stop().await;
    Ok(())
}

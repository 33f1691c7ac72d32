//! A leaf of the fleet: a server, and what leafd does there: it publishes events, claims its name and fills its copy.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use leaf_bus::connect::{Bus, ConnectSettings, Credentials};
use leaf_bus::fill::FillCopy;
use leaf_bus::hub_link::HubLink;
use leaf_bus::identity::daemon_caller;
use leaf_bus::kv::StateBucket;
use leaf_bus::stream::{EventStream, StreamSettings};
use leaf_core::beat::Beat;
use leaf_core::event::EventRecord;
use leaf_core::fleet::{Claim, ClaimReply, Release, Released};
use leaf_core::host_op::Secret;
use leaf_core::id::{InstanceId, LeafName};
use leaf_core::subject;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::servers::{Server, Wire, until};
use crate::site::LIMIT;

/// A leaf: a server, a stream of events, and a claim.
pub(crate) struct TestLeaf {
    pub(crate) name: LeafName,
    pub(crate) instance: InstanceId,
    pub(crate) server: Server,
    /// The server's configuration for an instance.
    config: Config,
    pub(crate) wire: Wire,
    bus: Bus,
    stream: EventStream,
    bucket: StateBucket,
    link: async_nats::Client,
    pub(crate) events: Vec<EventRecord>,
    pub(crate) state: BTreeMap<String, Vec<u8>>,
    /// The instance and the last number that it has published, for the task that fills the copy.
    published: watch::Sender<(InstanceId, u64)>,
    _filling: JoinSet<()>,
}

/// Fills the copy as leafd does, but asks the agent for ever.
async fn keep_filled(link: HubLink, url: String, mut published: watch::Receiver<(InstanceId, u64)>) {
    loop {
        let (instance, _) = *published.borrow_and_update();
        let copy = FillCopy {
            hub: link.clone(),
            instance,
            streams: as_leafd(&url),
            link: as_link(&url),
        };
        // Another instance goes on in its place.
        let filled = tokio::select! {
            filled = copy.fill(|| published.borrow().1) => filled,
            () = replaced(published.clone(), instance) => continue,
        };
        let pause = if filled.is_ok() { 20 } else { 200 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

async fn replaced(mut published: watch::Receiver<(InstanceId, u64)>, instance: InstanceId) {
    if published.wait_for(|now| now.0 != instance).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn as_user(user: &str, url: &str) -> ConnectSettings {
    ConnectSettings {
        credentials: Credentials::Password {
            user: user.to_owned(),
            password: Secret::new("x".to_owned()),
        },
        ..ConnectSettings::new(url)
    }
}

fn as_leafd(url: &str) -> ConnectSettings {
    ConnectSettings {
        inbox_prefix: subject::inbox_prefix(&daemon_caller()),
        ..as_user("leafd", url)
    }
}

fn as_link(url: &str) -> ConnectSettings {
    as_user("link", url)
}

pub(crate) type Config = Box<dyn Fn(InstanceId) -> String + Send + Sync>;

/// Connects as leafd, and makes the leaf's stream if there is none.
async fn connect(url: &str, name: &LeafName) -> anyhow::Result<(Bus, EventStream)> {
    let bus = Bus::connect(&as_leafd(url)).await?;
    bus.connected().await;
    let settings = StreamSettings {
        max_bytes: 64 << 20,
        replicas: 1,
    };
    let (stream, _) = EventStream::ensure(&bus, name, settings, 1).await?;
    Ok((bus, stream))
}

impl TestLeaf {
    pub(crate) async fn start(
        name: &str,
        instance: InstanceId,
        server: Server,
        config: Config,
        wire: Wire,
    ) -> anyhow::Result<Self> {
        let url = format!("nats://127.0.0.1:{}", server.port);
        let name = LeafName::new(name)?;
        let (bus, stream) = connect(&url, &name).await?;
        let bucket = StateBucket::ensure(&bus, &name).await?;
        republish(&url).await?;
        let link = async_nats::ConnectOptions::with_user_and_password("link".to_owned(), "x".to_owned())
            .custom_inbox_prefix(subject::leaf_inbox_prefix(&name))
            .retry_on_initial_connect()
            .connect(&url)
            .await?;
        let published = watch::Sender::new((instance, 0));
        let mut filling = JoinSet::new();
        let to_hub = HubLink::open(&as_link(&url), &name).await?;
        filling.spawn(keep_filled(to_hub, url, published.subscribe()));
        Ok(Self {
            name,
            instance,
            server,
            config,
            wire,
            bus,
            stream,
            bucket,
            link,
            events: Vec::new(),
            state: BTreeMap::new(),
            published,
            _filling: filling,
        })
    }

    /// Goes on as another instance, as after a restart.
    pub(crate) async fn starts_again(&mut self) -> anyhow::Result<()> {
        self.instance = InstanceId(Uuid::now_v7());
        self.server.kill().await?;
        std::fs::write(self.server.config(), (self.config)(self.instance))?;
        self.server.start_again().await?;
        let url = format!("nats://127.0.0.1:{}", self.server.port);
        (self.bus, self.stream) = connect(&url, &self.name).await?;
        self.has_published();
        Ok(())
    }

    /// Tells the task that fills the copy where the stream ends.
    fn has_published(&self) {
        self.published.send_replace((self.instance, self.last()));
    }

    pub(crate) fn last(&self) -> u64 {
        self.events.last().map_or(0, |event| event.sequence)
    }

    pub(crate) fn event(&self, sequence: u64) -> Option<&EventRecord> {
        let first = self.events.first()?.sequence;
        self.events
            .get(usize::try_from(sequence.checked_sub(first)?).ok()?)
    }

    /// Claims of this leaf, as it is now.
    pub(crate) fn claims(&self) -> Claims {
        Claims {
            link: self.link.clone(),
            claim: Claim {
                beat: Beat {
                    leaf: self.name.clone(),
                    instance: self.instance,
                    hostname: "test".to_owned(),
                    version: "0".to_owned(),
                    started_at: Timestamp::UNIX_EPOCH,
                    sequence: self.last(),
                    time: Timestamp::now(),
                    interval_seconds: 10,
                    labels: Default::default(),
                    nix: None,
                },
                predecessor: None,
                stream_last: self.last(),
            },
        }
    }

    /// Claims the name, which must be granted, and returns the last number of the copy.
    pub(crate) async fn claimed(&self) -> anyhow::Result<Option<u64>> {
        self.claims().claimed().await
    }

    /// Claims the name as another instance.
    pub(crate) async fn claim_as(&self, instance: InstanceId) -> anyhow::Result<ClaimReply> {
        let mut claims = self.claims();
        claims.claim.beat.instance = instance;
        claims.reply().await
    }

    /// Gives its claim back, as an instance.
    pub(crate) async fn released(&self, instance: InstanceId) -> anyhow::Result<bool> {
        let release = Release {
            instance,
            stream_last: self.last(),
        };
        let subject = subject::hub_release(&self.name);
        let reply: Released = self.ask(&subject, serde_json::to_vec(&release)?).await?;
        Ok(reply.released)
    }

    /// Claims the name as the successor of the instance that holds it.
    pub(crate) async fn succeeds(&self) -> anyhow::Result<()> {
        let mut claims = self.claims();
        if let ClaimReply::Held { by } = claims.reply().await? {
            claims.claim.predecessor = Some(by.instance);
        }
        claims.claimed().await.map(drop)
    }

    /// Sends a request to the agent until it answers.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, subject: &str, body: Vec<u8>) -> anyhow::Result<T> {
        ask(&self.link, subject, body).await
    }

    /// A client of the account of the link.
    pub(crate) fn link(&self) -> &async_nats::Client {
        &self.link
    }

    /// Publishes events and changes the state with each.
    pub(crate) async fn publish(&mut self, count: u64) -> anyhow::Result<()> {
        let mut publisher = self.stream.publisher(self.last()).await?;
        for _ in 0..count {
            let event = event(&self.name, self.last() + 1, "first");
            publisher.publish(event.clone()).await?;
            self.events.push(event);
        }
        publisher.settle().await?;
        self.has_published();
        let last = self.last();
        let mut changes: Vec<(String, Option<Bytes>)> = Vec::new();
        for key in [format!("container.c{}", last % 7), "leaf".to_owned()] {
            let value = format!("{{\"at\":{last}}}").into_bytes();
            self.state.insert(key.clone(), value.clone());
            changes.push((key, Some(value.into())));
        }
        if last.is_multiple_of(3) && self.state.remove("container.c1").is_some() {
            changes.retain(|(key, _)| key != "container.c1");
            changes.push(("container.c1".to_owned(), None));
        }
        Ok(self.bucket.apply(&changes).await?)
    }

    /// Publishes an event with this body.
    pub(crate) async fn publish_body(&mut self, body: Vec<u8>) -> anyhow::Result<()> {
        let mut publisher = self.stream.publisher(self.last()).await?;
        let event = EventRecord {
            body,
            ..event(&self.name, self.last() + 1, "first")
        };
        publisher.publish(event.clone()).await?;
        self.events.push(event);
        publisher.settle().await?;
        self.has_published();
        Ok(())
    }

    /// Begins the stream anew with other events, from this number on, as another history.
    pub(crate) async fn rewrite(&mut self, first: u64, count: u64, history: &str) -> anyhow::Result<()> {
        self.stream.recreate(first).await?;
        self.events = (first..first + count)
            .map(|sequence| event(&self.name, sequence, history))
            .collect();
        let mut publisher = self.stream.publisher(first - 1).await?;
        for event in &self.events {
            publisher.publish(event.clone()).await?;
        }
        publisher.settle().await?;
        self.has_published();
        Ok(())
    }

    /// Publishes events of another history after those that there are.
    pub(crate) async fn diverges(&mut self, count: u64) -> anyhow::Result<()> {
        let mut publisher = self.stream.publisher(self.last()).await?;
        for _ in 0..count {
            let event = event(&self.name, self.last() + 1, "second");
            publisher.publish(event.clone()).await?;
            self.events.push(event);
        }
        publisher.settle().await?;
        self.has_published();
        Ok(())
    }

    /// Waits until the client is connected to a server that was started again.
    pub(crate) async fn connected(&self) -> anyhow::Result<()> {
        until("the leaf's own stream answers", LIMIT, async || {
            self.bus.connected().await;
            Ok(self.stream.state().await.ok().map(drop))
        })
        .await
    }
}

/// Claims of a leaf.
pub(crate) struct Claims {
    link: async_nats::Client,
    pub(crate) claim: Claim,
}

impl Claims {
    /// The same, by a clock of the leaf that is this far off.
    pub(crate) fn by_a_clock_off_by(mut self, off: SignedDuration) -> Self {
        self.claim.beat.time += off;
        self.claim.beat.started_at = self.claim.beat.time;
        self
    }

    pub(crate) async fn reply(&self) -> anyhow::Result<ClaimReply> {
        let body = serde_json::to_vec(&self.claim)?;
        ask(&self.link, &subject::hub_claim(&self.claim.beat.leaf), body).await
    }

    /// Claims the name, which must be granted, and returns the last number of the copy.
    pub(crate) async fn claimed(&self) -> anyhow::Result<Option<u64>> {
        match self.reply().await? {
            ClaimReply::Granted { copy, .. } => Ok(copy.map(|copy| copy.last)),
            ClaimReply::Held { by } => bail!("the name is held by {by:?}"),
        }
    }
}

async fn ask<T: DeserializeOwned>(
    link: &async_nats::Client,
    subject: &str,
    body: Vec<u8>,
) -> anyhow::Result<T> {
    let answered = until("the agent answers", LIMIT, async || {
        let request = async_nats::Request::new()
            .payload(body.clone().into())
            .timeout(Some(Duration::from_secs(2)));
        Ok(link.send_request(subject.to_owned(), request).await.ok())
    });
    Ok(serde_json::from_slice(&answered.await?.payload)?)
}

/// An event of a leaf's history.
pub(crate) fn event(leaf: &LeafName, sequence: u64, history: &str) -> EventRecord {
    EventRecord {
        sequence,
        subject: subject::event(leaf, "container", "web", "started"),
        headers: [
            ("ce-datacontenttype", "application/json".to_owned()),
            ("ce-id", format!("{leaf}/1/{sequence}")),
            ("ce-sequence", format!("{sequence:020}")),
            ("ce-source", format!("urn:cim-leaf:{leaf}")),
            ("ce-specversion", "1.0".to_owned()),
            ("ce-type", "cim.leaf.container.started.v1".to_owned()),
        ]
        .into_iter()
        .collect(),
        body: format!("{{\"name\":\"web\",\"ready_after_ms\":{sequence},\"of\":\"{history}\"}}").into_bytes(),
    }
}

/// Makes a leaf's server publish changed entries again where they cross the link.
async fn republish(url: &str) -> anyhow::Result<()> {
    let client = async_nats::ConnectOptions::with_user_and_password("leafd".to_owned(), "x".to_owned())
        .connect(url)
        .await?;
    let context = async_nats::jetstream::new(client);
    let mut stream = context.get_stream(subject::state_stream()).await?;
    let mut config = stream.info().await?.config.clone();
    config.republish = Some(async_nats::jetstream::stream::Republish {
        source: "$KV.leaf_state.*.>".to_owned(),
        destination: "leaf.v1.state.{{wildcard(1)}}.>".to_owned(),
        headers_only: false,
    });
    context.update_stream(config).await?;
    Ok(())
}

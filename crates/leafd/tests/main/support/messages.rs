//! What a test says to its leaf, and what it reads of it: commands, events, the state.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures::StreamExt as _;
use leaf_bus::client::{CallError, CallOptions, Client, EventsFrom};
use leaf_bus::context;
use leaf_core::command::{LeafReport, Request, ShowLeaf};
use leaf_core::event::{Event, EventRecord, header};
use leaf_core::host_op::Secret;
use leaf_core::id::{Caller, CommandId};
use leaf_core::state::{State, apply};
use leaf_core::subject;
use serde_json::Value;

use super::super::{LIMIT, until};
use super::{TestLeaf, header_of};

impl TestLeaf {
    /// A client as `admin`, connected by the context file; the same one each time.
    pub(crate) async fn client(&mut self) -> anyhow::Result<Client> {
        if self.client.is_none() {
            self.client = Some(self.connect().await?);
        }
        Ok(self.client.clone().expect("connected above"))
    }

    /// A new client as `admin`.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let file = self.context_file();
        until("a client is connected", async || {
            let settings = context::load(file.to_str())?;
            Ok(Some(Client::connect(&settings, Duration::from_secs(5)).await?))
        })
        .await
    }

    /// A plain NATS client as anybody, by credentials; `caller` names its inbox.
    pub(crate) async fn nats(
        &self,
        credentials: &Secret,
        caller: &Caller,
    ) -> anyhow::Result<async_nats::Client> {
        let url = context::load(self.context_file().to_str())?.servers.join(",");
        let client = async_nats::ConnectOptions::new()
            .credentials(credentials.expose())?
            .custom_inbox_prefix(subject::inbox_prefix(caller))
            .reconnect_delay_callback(|_| Duration::from_millis(50))
            .connect(url)
            .await?;
        Ok(client)
    }

    /// A plain NATS client as the admin.
    pub(crate) async fn nats_as_admin(&self) -> anyhow::Result<async_nats::Client> {
        let credentials = self.identity()?.admin_credentials();
        self.nats(&credentials, &leaf_bus::identity::admin_caller()).await
    }

    /// A plain NATS client as the daemon itself where its callers are.
    pub(crate) async fn nats_as_service(&self) -> anyhow::Result<async_nats::Client> {
        let credentials = self.identity()?.service_credentials();
        self.nats(&credentials, &leaf_bus::identity::daemon_caller())
            .await
    }

    /// A plain NATS client as the daemon itself where the streams are, and may do everything with them.
    pub(crate) async fn nats_as_leafd(&self) -> anyhow::Result<async_nats::Client> {
        let credentials = self.identity()?.leaf_credentials();
        self.nats(&credentials, &leaf_bus::identity::daemon_caller())
            .await
    }

    /// Sends a command once.
    pub(crate) async fn call<R: Request>(&mut self, request: &R) -> Result<R::Reply, CallError> {
        self.call_with(
            request,
            CallOptions {
                timeout: LIMIT,
                ..CallOptions::default()
            },
        )
        .await
    }

    /// Sends a command once, under this id.
    pub(crate) async fn call_as<R: Request>(
        &mut self,
        id: &CommandId,
        request: &R,
    ) -> Result<R::Reply, CallError> {
        let options = CallOptions {
            id: Some(id.clone()),
            timeout: LIMIT,
            ..CallOptions::default()
        };
        self.call_with(request, options).await
    }

    /// Sends a command once.
    pub(crate) async fn call_with<R: Request>(
        &mut self,
        request: &R,
        options: CallOptions,
    ) -> Result<R::Reply, CallError> {
        let client = self
            .client()
            .await
            .map_err(|error| CallError::Other(format!("{error:#}")))?;
        client.call(&self.name, request, options).await
    }

    /// Sends any noun, verb and body once.
    pub(crate) async fn call_raw(&mut self, noun: &str, verb: &str, body: &[u8]) -> Result<Value, CallError> {
        let client = self
            .client()
            .await
            .map_err(|error| CallError::Other(format!("{error:#}")))?;
        let options = CallOptions {
            timeout: LIMIT,
            ..CallOptions::default()
        };
        let reply = client
            .call_raw(&self.name, noun, verb, body.to_vec(), options)
            .await?;
        Ok(serde_json::from_slice(&reply).expect("a reply is JSON"))
    }

    /// What the leaf says of itself; asks again while it does not answer.
    pub(crate) async fn show(&mut self) -> anyhow::Result<LeafReport> {
        let (client, name) = (self.client().await?, self.name.clone());
        let options = CallOptions {
            timeout: Duration::from_secs(2),
            ..CallOptions::default()
        };
        let shown = until("the leaf answers leaf.show", async || {
            Ok(Some(client.call(&name, &ShowLeaf {}, options.clone()).await?))
        })
        .await;
        self.with_log(shown)
    }

    /// Waits until all that is recorded now is in the stream, with some devices; returns the last sequence number.
    pub(crate) async fn published(&mut self) -> anyhow::Result<u64> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let shown = self.show().await?;
            if shown.published >= shown.sequence && shown.devices > 0 {
                return Ok(shown.sequence);
            }
            ensure!(
                Instant::now() < deadline,
                "not within {LIMIT:?}: all is published; published {} of {}; the log:\n{}",
                shown.published,
                shown.sequence,
                self.log_end()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// All events of the stream, as they stand there.
    pub(crate) async fn events(&mut self) -> anyhow::Result<Vec<EventRecord>> {
        let client = self.client().await?;
        // It may still be on its way back from a restart of the server.
        let last = until("the stream answers", async || {
            Ok(Some(client.last_sequence(&self.name).await?))
        })
        .await?;
        let mut events = client.events(&self.name, EventsFrom::Beginning);
        let mut read: Vec<EventRecord> = Vec::new();
        while read.last().map_or(0, |event| event.sequence) < last {
            let next = tokio::time::timeout(LIMIT, events.next())
                .await
                .with_context(|| format!("reading the stream, {} of {last} so far", read.len()))?;
            read.push(next.context("the events end")??);
        }
        Ok(read)
    }

    /// All events of the stream, after making sure that it holds each sequence number once, in order, from `first` on:
    /// the stream's number equal to the event's own, no event twice.
    pub(crate) async fn complete_events(&mut self, first: u64) -> anyhow::Result<Vec<EventRecord>> {
        let events = self.events().await?;
        let mut ids = BTreeMap::new();
        for (expected, event) in (first..).zip(&events) {
            ensure!(
                event.sequence == expected,
                "{} stands where {expected} should",
                event.sequence
            );
            let own = header_of(event, header::SEQUENCE).and_then(|text| text.parse::<u64>().ok());
            ensure!(own == Some(expected), "event {expected} says that it is {own:?}");
            let id = header_of(event, header::ID).context("an event has an id")?;
            if let Some(before) = ids.insert(id.to_owned(), expected) {
                bail!("{before} and {expected} are the same event {id}");
            }
        }
        Ok(events)
    }

    /// The state after these events.
    pub(crate) fn replay(events: &[EventRecord]) -> anyhow::Result<State> {
        let mut state = State::default();
        for record in events {
            apply(&mut state, &Event::from_record(record)?);
        }
        Ok(state)
    }

    /// The entries of the bucket `leaf_state`.
    pub(crate) async fn bucket(&mut self) -> anyhow::Result<BTreeMap<String, Value>> {
        Ok(self.client().await?.state_entries(&self.name).await?)
    }
}

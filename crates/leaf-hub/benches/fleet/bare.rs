//! Two servers with an open connection between them, and a stream.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::Client;
use async_nats::jetstream::{self, stream};
use futures::StreamExt as _;
use tokio::process::{Child, Command};

use crate::server::Server;
use crate::{Programs, WITHIN, headers_of, record};

pub(crate) const STREAM: &str = "BARE";
pub(crate) const SUBJECT: &str = "bare.event";
pub(crate) const REQUEST: &str = "bare.request";

/// How many publishes wait for their acknowledgement.
const WINDOW: usize = 1024;

pub(crate) struct Bare {
    pub(crate) hub: Client,
    pub(crate) leaf: Client,
    servers: [Server; 2],
}

impl Bare {
    pub(crate) async fn start(programs: &Programs<'_>, dir: &Path) -> Result<Self> {
        let store = |name: &str| {
            format!(
                "jetstream {{ store_dir: \"{}\", domain: {name} }}",
                dir.join(name).display()
            )
        };
        let config = format!(
            "server_name: hub\n{}\nleafnodes {{ listen: \"127.0.0.1:-1\" }}",
            store("hub")
        );
        let hub = Server::start(programs.nats_server, &dir.join("hub"), &config).await?;
        let config = format!(
            "server_name: leaf\n{}\nleafnodes {{ remotes [ {{ urls: [\"nats://127.0.0.1:{}\"] }} ] }}",
            store("leaf"),
            hub.leaf_port
        );
        let leaf = Server::start(programs.nats_server, &dir.join("leaf"), &config).await?;
        let bare = Self {
            hub: async_nats::connect(hub.url()).await?,
            leaf: async_nats::connect(leaf.url()).await?,
            servers: [hub, leaf],
        };
        jetstream::new(bare.hub.clone())
            .create_stream(stream::Config {
                name: STREAM.to_owned(),
                subjects: vec![SUBJECT.to_owned()],
                ..Default::default()
            })
            .await?;
        bare.connected().await?;
        Ok(bare)
    }

    /// Waits until a message of the leaf arrives at the hub.
    async fn connected(&self) -> Result<()> {
        let mut heard = self.hub.subscribe("bare.hello").await?;
        self.hub.flush().await?;
        let connected = async {
            loop {
                self.leaf.publish("bare.hello", "".into()).await?;
                self.leaf.flush().await?;
                if let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(50), heard.next()).await {
                    return anyhow::Ok(());
                }
            }
        };
        tokio::time::timeout(WITHIN, connected).await?
    }

    /// Starts the responder on the leaf, and waits until it answers through the hub.
    pub(crate) async fn respond(&self, bytes: usize) -> Result<Child> {
        let responder = start_responder(&self.servers[1].url(), REQUEST, None, bytes)?;
        let answered = async {
            while self.hub.request(REQUEST, "".into()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(WITHIN, answered).await?;
        Ok(responder)
    }

    /// Fills a stream of the leaf's server.
    pub(crate) async fn fill(&self, count: u64) -> Result<()> {
        let context = jetstream::new(self.leaf.clone());
        context
            .create_stream(stream::Config {
                name: "SOURCE".to_owned(),
                subjects: vec!["source.>".to_owned()],
                ..Default::default()
            })
            .await?;
        let inbox = self.leaf.new_inbox();
        let mut acks = self.leaf.subscribe(inbox.clone()).await?;
        let mut waiting = 0;
        for sequence in 1..=count {
            let record = record(sequence);
            let headers = headers_of(&record);
            self.leaf
                .publish_with_reply_and_headers("source.event", inbox.clone(), headers, record.body.into())
                .await?;
            waiting += 1;
            if waiting == WINDOW {
                for _ in 0..WINDOW / 2 {
                    acks.next().await.context("an acknowledgement")?;
                }
                waiting -= WINDOW / 2;
            }
        }
        for _ in 0..waiting {
            acks.next().await.context("an acknowledgement")?;
        }
        Ok(())
    }

    /// Creates a stream at the hub that sources the leaf's.
    pub(crate) async fn source(&self) -> Result<()> {
        jetstream::new(self.hub.clone())
            .create_stream(stream::Config {
                name: "SOURCED".to_owned(),
                sources: Some(vec![stream::Source {
                    name: "SOURCE".to_owned(),
                    external: Some(stream::External {
                        api_prefix: "$JS.leaf.API".to_owned(),
                        delivery_prefix: None,
                    }),
                    ..Default::default()
                }]),
                ..Default::default()
            })
            .await?;
        Ok(())
    }

    /// Waits until it has so many messages.
    pub(crate) async fn sourced(&self, count: u64) -> Result<()> {
        let mut stream = jetstream::new(self.hub.clone()).get_stream("SOURCED").await?;
        let all = async {
            while stream.info().await?.state.messages < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(WITHIN, all).await?
    }
}

/// Starts a process that answers requests on these subjects with so many bytes.
pub(crate) fn start_responder(
    url: &str,
    subjects: &str,
    credentials: Option<&Path>,
    bytes: usize,
) -> Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["respond", url, subjects, &bytes.to_string()])
        .args(credentials)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("can't start the responder")
}

/// Answers requests on these subjects of a server with so many bytes.
pub(crate) async fn respond(
    url: &str,
    subjects: &str,
    bytes: usize,
    credentials: Option<&Path>,
) -> Result<()> {
    let options = match credentials {
        Some(file) => async_nats::ConnectOptions::with_credentials_file(file).await?,
        None => async_nats::ConnectOptions::new(),
    };
    let client = options.connect(url).await?;
    let mut requests = client.subscribe(subjects.to_owned()).await?;
    let body = bytes::Bytes::from(vec![b' '; bytes]);
    while let Some(request) = requests.next().await {
        if let Some(reply) = request.reply {
            client.publish(reply, body.clone()).await?;
        }
    }
    Ok(())
}

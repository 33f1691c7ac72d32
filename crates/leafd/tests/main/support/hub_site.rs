//! A hub of a test's own: a nats-server with the accounts of a hub, and wires to it that can be cut.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use leaf_bus::client::Client;
use leaf_bus::context;
use leaf_bus::identity::{HubUsers, hub_caller};
use leaf_core::id::{Caller, LeafName};
use leaf_core::subject;
use nkeys::KeyPair;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::host::hub_agent;
use super::{Setup, nats_server, until};

/// The files with the seeds of the users: the agent's two, a person's.
const SEEDS: [&str; 3] = ["agent.seed", "links.seed", "ann.seed"];

fn seed_file(leaf: &LeafName) -> String {
    format!("{leaf}.seed")
}

fn ann_caller() -> anyhow::Result<Caller> {
    Ok(Caller::new("ann")?)
}

/// A hub, and the name of its first leaf.
pub(crate) struct HubSite {
    pub(crate) leaf: LeafName,
    pub(crate) leaves: Vec<LeafName>,
    agent_in_links: KeyPair,
    clients: u16,
    for_leaves: SocketAddr,
    directory: tempfile::TempDir,
    _server: Child,
    agent: Option<Child>,
}

impl HubSite {
    /// Starts a hub's server, without an agent, for a leaf of a name of its own.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::start_for(1).await
    }

    /// The same, for this many leaves.
    pub(crate) async fn start_for(count: usize) -> anyhow::Result<Self> {
        let leaves: Vec<LeafName> = (0..count).map(|_| Setup::new().name().clone()).collect();
        let leaf = leaves.first().context("a leaf")?.clone();
        let directory = tempfile::Builder::new().prefix("leafd-hub-").tempdir()?;
        let keys = [(); 3].map(|()| KeyPair::new_user());
        for (key, file) in keys.iter().zip(SEEDS) {
            std::fs::write(directory.path().join(file), key.seed()?)?;
        }
        let [agent, agent_in_links, ann] = keys;
        let mut leaf_keys = Vec::new();
        for leaf in &leaves {
            let key = KeyPair::new_user();
            std::fs::write(directory.path().join(seed_file(leaf)), key.seed()?)?;
            leaf_keys.push((leaf.clone(), key.public_key()));
        }
        let users = HubUsers {
            agent: agent.public_key(),
            agent_in_links: agent_in_links.public_key(),
            leaves: leaf_keys,
            people: vec![(ann_caller()?, ann.public_key())],
        };
        let (config, log) = (
            directory.path().join("hub.conf"),
            directory.path().join("hub.log"),
        );
        std::fs::write(
            &config,
            format!(
                "server_name: hub\nlisten: \"127.0.0.1:-1\"\nlog_file: \"{}\"\njetstream {{ store_dir: \"{}\" }}\n\
                 leafnodes {{ listen: \"127.0.0.1:-1\", advertise: \"127.0.0.1:1\", isolate_leafnode_interest: true }}\n{}",
                log.display(),
                directory.path().join("jetstream").display(),
                users.accounts()
            ),
        )?;
        let server = nats_server(&config, None).await?;
        let [clients, for_leaves] = until("the hub's server listens", async || addresses_in(&log)).await?;
        Ok(Self {
            leaf,
            leaves,
            agent_in_links,
            clients: clients.port(),
            for_leaves,
            directory,
            _server: server,
            agent: None,
        })
    }

    /// The settings of the leaf, whose server connects through this wire.
    pub(crate) fn setup(&self, wire: &Wire) -> Setup {
        self.setup_of(&self.leaf, wire)
    }

    /// The same, of one of its leaves.
    pub(crate) fn setup_of(&self, leaf: &LeafName, wire: &Wire) -> Setup {
        Setup::new()
            .named(leaf)
            .set("nats.embedded.hub.url", format!("nats://{}", wire.address))
            .set(
                "nats.embedded.hub.credentials",
                self.file(&seed_file(leaf)).display().to_string(),
            )
    }

    /// A new wire to this hub.
    pub(crate) async fn wire(&self) -> anyhow::Result<Wire> {
        Wire::to(self.for_leaves).await
    }

    /// Starts the real agent.
    pub(crate) fn start_agent(&mut self) -> anyhow::Result<()> {
        let settings = format!(
            "[nats]\nurl = \"nats://127.0.0.1:{}\"\nfleet_credentials = \"{}\"\nlinks_credentials = \"{}\"\n",
            self.clients,
            self.file("agent.seed").display(),
            self.file("links.seed").display(),
        );
        std::fs::write(self.file("hub.toml"), settings)?;
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.file("agent.log"))?;
        let agent = Command::new(hub_agent())
            .args(["run", "--config"])
            .arg(self.file("hub.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.agent = Some(agent);
        Ok(())
    }

    /// The real agent's process, if it runs.
    pub(crate) fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref()?.id()
    }

    /// Kills the real agent.
    pub(crate) async fn kill_agent(&mut self) -> anyhow::Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().await?;
        }
        Ok(())
    }

    /// What the real agent printed.
    pub(crate) fn agent_log(&self) -> String {
        std::fs::read_to_string(self.file("agent.log")).unwrap_or_default()
    }

    /// A context with which the person `ann` connects.
    pub(crate) fn context(&self) -> anyhow::Result<PathBuf> {
        let context = serde_json::json!({
            "url": format!("nats://127.0.0.1:{}", self.clients),
            "nkey": self.file("ann.seed"),
            "inbox_prefix": subject::inbox_prefix(&ann_caller()?),
        });
        let file = self.file("ann.json");
        std::fs::write(&file, context.to_string())?;
        Ok(file)
    }

    /// A client of that person.
    pub(crate) async fn ann(&self) -> anyhow::Result<Client> {
        let settings = context::load(self.context()?.to_str())?;
        Ok(Client::connect(&settings, Duration::from_secs(5)).await?)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The agent's connection in the account of the leaves' connections.
    pub(crate) async fn agent_in_links(&self) -> anyhow::Result<async_nats::Client> {
        self.connect(&self.agent_in_links).await
    }

    async fn connect(&self, key: &KeyPair) -> anyhow::Result<async_nats::Client> {
        async_nats::ConnectOptions::with_nkey(key.seed()?)
            .custom_inbox_prefix(subject::inbox_prefix(&hub_caller()))
            .connect(format!("nats://127.0.0.1:{}", self.clients))
            .await
            .context("connecting as the hub agent")
    }
}

/// Reads in its log where a server listens for clients and leaf nodes, once it is ready.
fn addresses_in(log: &Path) -> anyhow::Result<Option<[SocketAddr; 2]>> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    if !text.contains("Server is ready") {
        return Ok(None);
    }
    let address = |kind: &str| {
        let words = format!("Listening for {kind} connections on ");
        let (_, rest) = text.split_once(&words).with_context(|| words.clone())?;
        let address = rest.lines().next().unwrap_or_default();
        address
            .parse::<SocketAddr>()
            .with_context(|| format!("{address:?} is no address"))
    };
    Ok(Some([address("client")?, address("leafnode")?]))
}

/// What a wire is like. A wire of TCP loses nothing: what is lost is sent again, and all that follows waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weather {
    /// As loopback is.
    Clear,
    /// A delay of [`DELAY`] each way, and [`BYTES_PER_SECOND`].
    Slow,
    /// A delay of [`DELAY`] each way, and one of [`SENT_AGAIN`] more for one part of sixteen.
    Lossy,
    /// Nothing passes, and nobody is told.
    Stalled,
    /// There is no connection.
    Cut,
}

const DELAY: Duration = Duration::from_millis(150);
const BYTES_PER_SECOND: u32 = 64 << 10;
const SENT_AGAIN: Duration = Duration::from_millis(600);

/// A TCP connection to the hub that can be cut and mended, and made worse.
pub(crate) struct Wire {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    _tasks: JoinSet<()>,
}

impl Wire {
    async fn to(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (weather, state) = watch::channel(Weather::Clear);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut passing = JoinSet::new();
            while let Ok((leaf, _)) = listener.accept().await {
                passing.spawn(pass(leaf, target, state.clone()));
            }
        });
        Ok(Self {
            address,
            weather,
            _tasks: tasks,
        })
    }

    pub(crate) fn becomes(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    pub(crate) fn cut(&self) {
        self.becomes(Weather::Cut);
    }

    pub(crate) fn mend(&self) {
        self.becomes(Weather::Clear);
    }
}

/// Passes bytes both ways until the wire is cut.
async fn pass(leaf: TcpStream, target: SocketAddr, mut weather: watch::Receiver<Weather>) {
    if *weather.borrow_and_update() == Weather::Cut {
        return;
    }
    let Ok(hub) = TcpStream::connect(target).await else {
        return;
    };
    let ((from_leaf, to_leaf), (from_hub, to_hub)) = (leaf.into_split(), hub.into_split());
    tokio::select! {
        _ = carry(from_leaf, to_hub, weather.clone()) => {}
        _ = carry(from_hub, to_leaf, weather.clone()) => {}
        _ = weather.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}

/// Passes bytes one way.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    weather: watch::Receiver<Weather>,
) -> anyhow::Result<()> {
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let mut now = weather.clone();
    let read = async move {
        let mut buffer = vec![0; 4 << 10];
        loop {
            let length = from.read(&mut buffer).await?;
            let delay = match *weather.borrow() {
                Weather::Slow | Weather::Lossy => DELAY,
                _ => Duration::ZERO,
            };
            let part = (Instant::now() + delay, buffer[..length].to_vec());
            if length == 0 || queue.send(part).await.is_err() {
                return anyhow::Ok(());
            }
        }
    };
    let write = async move {
        let mut parts = 0;
        while let Some((due, bytes)) = queued.recv().await {
            tokio::time::sleep_until(due).await;
            let weather = *now.wait_for(|weather| *weather != Weather::Stalled).await?;
            match weather {
                Weather::Slow => {
                    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                    tokio::time::sleep(Duration::from_secs(1) * length / BYTES_PER_SECOND).await;
                }
                Weather::Lossy => {
                    parts += 1;
                    if parts % 16 == 0 {
                        tokio::time::sleep(SENT_AGAIN).await;
                    }
                }
                _ => {}
            }
            to.write_all(&bytes).await?;
        }
        Ok(())
    };
    tokio::try_join!(read, write).map(drop)
}

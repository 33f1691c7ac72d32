//! A hub with its agent, and a leaf: its server alone, with the events and claims of this program, or leafd.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::Client;
use async_nats::jetstream;
use jiff::Timestamp;
use leaf_bus::connect::{Bus, ConnectSettings, Credentials};
use leaf_bus::embedded::{EmbeddedServer, EmbeddedSettings, Hub};
use leaf_bus::fill::FillCopy;
use leaf_bus::hub_link::HubLink;
use leaf_bus::identity::{HubUsers, Identity, daemon_caller};
use leaf_bus::kv::StateBucket;
use leaf_bus::publisher::Publisher;
use leaf_bus::stream::{EventStream, StreamSettings};
use leaf_core::beat::Beat;
use leaf_core::fleet::Claim;
use leaf_core::id::{Caller, LeafName};
use leaf_core::subject;
use nkeys::KeyPair;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::server::Server;
use crate::{Programs, WITHIN, instance, leaf};

/// A hub's server, and the keys of its users.
pub(crate) struct TheHub {
    pub(crate) server: Server,
    agent: KeyPair,
    agent_in_links: KeyPair,
    ann: KeyPair,
    pub(crate) leaf: KeyPair,
    dir: PathBuf,
}

impl TheHub {
    /// Starts it for these leaves beside [`leaf`], which share its key pair's kind. `change` edits the accounts.
    pub(crate) async fn start(
        programs: &Programs<'_>,
        dir: &Path,
        leaves: Vec<(LeafName, String)>,
        change: impl Fn(String) -> String,
    ) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let [agent, agent_in_links, ann, of_leaf] = [(); 4].map(|()| KeyPair::new_user());
        let users = HubUsers {
            agent: agent.public_key(),
            agent_in_links: agent_in_links.public_key(),
            leaves: [(leaf(), of_leaf.public_key())]
                .into_iter()
                .chain(leaves)
                .collect(),
            people: vec![(Caller::new("ann")?, ann.public_key())],
        };
        let config = format!(
            "server_name: hub\njetstream {{ store_dir: \"{}\" }}\nleafnodes {{ listen: \"127.0.0.1:-1\" }}\n{}",
            dir.join("jetstream").display(),
            change(users.accounts())
        );
        let server = Server::start(programs.nats_server, dir, &config).await?;
        Ok(Self {
            server,
            agent,
            agent_in_links,
            ann,
            leaf: of_leaf,
            dir: dir.to_owned(),
        })
    }

    pub(crate) fn seed_file(&self, name: &str, key: &KeyPair) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.dir.join(name);
        std::fs::write(&path, key.seed()?)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }

    pub(crate) async fn agent(&self) -> Result<Client> {
        connect(&self.server.url(), &self.agent, "_INBOX.hub").await
    }

    pub(crate) async fn ann(&self) -> Result<Client> {
        connect(&self.server.url(), &self.ann, "_INBOX.ann").await
    }

    /// The settings of a person's connection.
    pub(crate) fn person(&self) -> Result<ConnectSettings> {
        Ok(ConnectSettings {
            credentials: Credentials::NkeyFile(self.seed_file("ann", &self.ann)?),
            inbox_prefix: "_INBOX.ann".to_owned(),
            ..ConnectSettings::new(&self.server.url())
        })
    }

    /// Starts the agent.
    pub(crate) fn start_agent(&self, programs: &Programs<'_>) -> Result<Child> {
        let config = self.dir.join("leaf-hub.toml");
        let text = format!(
            "log = \"error\"\n[nats]\nurl = \"{}\"\nfleet_credentials = \"{}\"\nlinks_credentials = \"{}\"\n",
            self.server.url(),
            self.seed_file("agent", &self.agent)?.display(),
            self.seed_file("agent-in-links", &self.agent_in_links)?.display()
        );
        std::fs::write(&config, text)?;
        Command::new(programs.leaf_hub)
            .arg("run")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("can't start the hub agent")
    }
}

async fn connect(url: &str, key: &KeyPair, inbox_prefix: &str) -> Result<Client> {
    Ok(async_nats::ConnectOptions::with_nkey(key.seed()?)
        .custom_inbox_prefix(inbox_prefix)
        .connect(url)
        .await?)
}

pub(crate) struct Ours {
    pub(crate) agent: Client,
    pub(crate) ann: Client,
    pub(crate) hub: TheHub,
    agent_process: Option<Child>,
    leaf: TheLeaf,
}

enum TheLeaf {
    Server(Box<ServerAlone>),
    Leafd(Child),
}

/// A leaf's server, for which this program publishes and claims.
struct ServerAlone {
    server: EmbeddedServer,
    bus: Bus,
    last: Arc<AtomicU64>,
    _claims: JoinSet<()>,
}

impl Ours {
    pub(crate) async fn start(programs: &Programs<'_>, dir: &Path) -> Result<Self> {
        let mut ours = Self::without_agent(programs, dir).await?;
        ours.start_agent(programs).await?;
        Ok(ours)
    }

    pub(crate) async fn without_agent(programs: &Programs<'_>, dir: &Path) -> Result<Self> {
        let hub = TheHub::start(programs, &dir.join("hub"), Vec::new(), |accounts| accounts).await?;
        let identity = Identity::open_or_create(&dir.join("identity"), &leaf())?.of_instance(instance());
        let settings = EmbeddedSettings {
            nats_server: Some(programs.nats_server.to_owned()),
            hub: Some(Hub {
                urls: vec![format!("nats://127.0.0.1:{}", hub.server.leaf_port)],
                credentials: hub.seed_file("leaf", &hub.leaf)?,
                ca: None,
            }),
            ..EmbeddedSettings::new(dir.join("nats"), "127.0.0.1:0".parse()?)
        };
        let server = EmbeddedServer::start(settings, &identity).await?;
        let user = |credentials, prefix: &str| ConnectSettings {
            credentials: Credentials::Text(credentials),
            inbox_prefix: prefix.to_owned(),
            ..ConnectSettings::new(&server.client_url())
        };
        let inbox = subject::inbox_prefix(&daemon_caller());
        let keeper = user(identity.leaf_credentials(), &inbox);
        let bus = Bus::connect_apart(&user(identity.service_credentials(), &inbox), &keeper).await?;
        bus.connected().await;
        StateBucket::ensure(&bus, &leaf()).await?;
        let link = user(
            identity.claimant_credentials(),
            &subject::leaf_inbox_prefix(&leaf()),
        );
        let copy = FillCopy {
            hub: HubLink::open(&link, &leaf()).await?,
            instance: instance(),
            streams: keeper,
            link,
        };
        let last = Arc::new(AtomicU64::new(0));
        let mut claims = JoinSet::new();
        claims.spawn(claim_for_ever(copy, last.clone()));
        Ok(Self {
            agent: hub.agent().await?,
            ann: hub.ann().await?,
            hub,
            agent_process: None,
            leaf: TheLeaf::Server(Box::new(ServerAlone {
                server,
                bus,
                last,
                _claims: claims,
            })),
        })
    }

    /// Starts leafd as the leaf, at a hub of which these are leaves as well.
    pub(crate) async fn with_leafd(
        programs: &Programs<'_>,
        dir: &Path,
        others: Vec<(LeafName, String)>,
    ) -> Result<Self> {
        let hub = TheHub::start(programs, &dir.join("hub"), others, |accounts| accounts).await?;
        let config = dir.join("leafd.toml");
        let text = format!(
            "name = \"{}\"\nstate_dir = \"{}\"\nlog = \"warn\"\n[nats.embedded]\nprogram = \"{}\"\naddress = \"127.0.0.1\"\nport = 0\n\
             [nats.embedded.hub]\nurl = \"nats://127.0.0.1:{}\"\ncredentials = \"{}\"\n[containers]\nenable = false\n",
            leaf(),
            dir.join("state").display(),
            programs.nats_server.display(),
            hub.server.leaf_port,
            hub.seed_file("leaf", &hub.leaf)?.display()
        );
        std::fs::write(&config, text)?;
        let leafd = Command::new(programs.leafd)
            .arg("run")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("can't start leafd")?;
        let mut ours = Self {
            agent: hub.agent().await?,
            ann: hub.ann().await?,
            hub,
            agent_process: None,
            leaf: TheLeaf::Leafd(leafd),
        };
        ours.start_agent(programs).await?;
        let answered = async {
            let asked = "leaf.v1.cmd.bench.ann.leaf.show";
            while ours.ann.request(asked, "{}".into()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(WITHIN, answered)
            .await
            .context("leafd answers")?;
        Ok(ours)
    }

    pub(crate) async fn start_agent(&mut self, programs: &Programs<'_>) -> Result<()> {
        self.agent_process = Some(self.hub.start_agent(programs)?);
        Ok(())
    }

    /// Publishes events into the leaf's own stream, as leafd does.
    pub(crate) async fn publisher(&self) -> Result<Publisher> {
        let TheLeaf::Server(alone) = &self.leaf else {
            anyhow::bail!("leafd publishes itself")
        };
        let (stream, state) = EventStream::ensure(&alone.bus, &leaf(), StreamSettings::default(), 1).await?;
        Ok(stream.publisher(state.last_sequence).await?)
    }

    /// Waits until the copy ends with this number.
    pub(crate) async fn copied(&self, last: u64) -> Result<()> {
        if let TheLeaf::Server(alone) = &self.leaf {
            alone.last.store(last, Ordering::Relaxed);
        }
        let context = jetstream::new(self.agent.clone());
        let copied = async {
            loop {
                if let Ok(stream) = context.get_stream("EVENTS_bench").await
                    && stream.cached_info().state.last_sequence >= last
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(WITHIN, copied).await.context("the copy")
    }

    pub(crate) async fn stop(self) -> Result<()> {
        match self.leaf {
            TheLeaf::Server(alone) => alone.server.stop().await,
            TheLeaf::Leafd(mut leafd) => {
                let pid = leafd.id().and_then(|pid| i32::try_from(pid).ok());
                if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
                }
                tokio::time::timeout(WITHIN, leafd.wait()).await??;
            }
        }
        if let Some(mut agent) = self.agent_process {
            agent.kill().await?;
        }
        Ok(())
    }
}

/// Claims the leaf's name each second, as leafd does every ten, and sends what the copy lacks.
async fn claim_for_ever(copy: FillCopy, last: Arc<AtomicU64>) {
    loop {
        let claim = Claim {
            beat: beat_of(&leaf(), last.load(Ordering::Relaxed)),
            predecessor: None,
            stream_last: last.load(Ordering::Relaxed),
        };
        let claimed = copy.hub.claim(&claim).await;
        if claimed.is_ok() {
            // What can't be sent is sent after the next claim.
            let _ = copy.fill(|| last.load(Ordering::Relaxed)).await;
        }
        let pause = if claimed.is_ok() { 1000 } else { 20 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

pub(crate) fn beat_of(leaf: &LeafName, sequence: u64) -> Beat {
    Beat {
        leaf: leaf.clone(),
        instance: instance(),
        hostname: "bench".to_owned(),
        version: "0.0.0".to_owned(),
        started_at: Timestamp::from_second(1_700_000_000).expect("a time"),
        sequence,
        time: Timestamp::now(),
        interval_seconds: 10,
        labels: std::collections::BTreeMap::new(),
        nix: None,
    }
}

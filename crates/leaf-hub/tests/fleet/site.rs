//! A fleet on loopback: a hub with the agent, and its leaves.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use leaf_bus::connect::{ConnectSettings, Credentials};
use leaf_bus::hub::Hub;
use leaf_bus::identity::{HubUsers, hub_caller};
use leaf_core::fleet::{CopyState, CopyStatus};
use leaf_core::id::{InstanceId, LeafName};
use leaf_core::subject;
use leaf_trust::ssh_signature::{private_key_of_seed, public_key_of};
use nkeys::KeyPair;
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::servers::{LeafEnd, Server, Wire, free_port, hub_config, leaf_config, program, until};
use crate::test_leaf::TestLeaf;

/// The longest that a copy may take to be whole again.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A hub with its agent.
pub(crate) struct Site {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) server: Server,
    leaf_port: u16,
    /// The seeds of the leaves' users at the hub.
    seeds: BTreeMap<String, String>,
    agent: Option<Child>,
    pub(crate) hub: Hub,
    /// The public key of the agent as a witness.
    pub(crate) witness: String,
}

impl Site {
    /// Starts a hub for these leaves, with the agent.
    pub(crate) async fn start(leaves: &[&str]) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("leaf-hub-").tempdir()?;
        let (port, leaf_port) = (free_port()?, free_port()?);
        let mut keys = Vec::new();
        for name in ["fleet", "links"] {
            let pair = KeyPair::new_user();
            let file = directory.path().join(format!("{name}.seed"));
            std::fs::write(&file, pair.seed()?)?;
            keys.push((file, pair.public_key()));
        }
        let mut users = HubUsers {
            agent: keys[0].1.clone(),
            agent_in_links: keys[1].1.clone(),
            ..HubUsers::default()
        };
        let mut seeds = BTreeMap::new();
        for leaf in leaves {
            let pair = KeyPair::new_user();
            users.leaves.push((LeafName::new(*leaf)?, pair.public_key()));
            seeds.insert((*leaf).to_owned(), pair.seed()?);
        }
        let config = directory.path().join("hub.conf");
        std::fs::write(&config, hub_config(directory.path(), port, leaf_port, &users))?;
        let server = Server::start(&program().await?, config, port).await?;
        let witness_key = private_key_of_seed(&[9; 32], "the witness of a test");
        let witness_file = directory.path().join("witness.key");
        std::fs::write(&witness_file, &*witness_key)?;
        std::fs::set_permissions(&witness_file, Permissions::from_mode(0o600))?;
        let settings = format!(
            "log = \"info\"\nwitness_key = {witness_file:?}\n[nats]\nurl = \"nats://127.0.0.1:{port}\"\nfleet_credentials = \"{}\"\nlinks_credentials = \"{}\"\n\
             [copies]\nmax_bytes = 67108864\n",
            keys[0].0.display(),
            keys[1].0.display(),
        );
        std::fs::write(directory.path().join("hub.toml"), settings)?;
        let connect = |file: &Path| ConnectSettings {
            credentials: Credentials::NkeyFile(file.to_owned()),
            inbox_prefix: subject::inbox_prefix(&hub_caller()),
            ..ConnectSettings::new(&format!("nats://127.0.0.1:{port}"))
        };
        let hub = Hub::connect(&connect(&keys[0].0), &connect(&keys[1].0)).await?;
        let mut site = Self {
            directory,
            server,
            leaf_port,
            seeds,
            agent: None,
            hub,
            witness: public_key_of(witness_key.as_bytes())?.to_line(),
        };
        site.start_agent()?;
        Ok(site)
    }

    pub(crate) fn start_agent(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("agent.log"))?;
        let agent = Command::new(env!("CARGO_BIN_EXE_leaf-hub"))
            .args(["run", "--config"])
            .arg(self.settings())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.agent = Some(agent);
        Ok(())
    }

    pub(crate) async fn kill_agent(&mut self) -> anyhow::Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().await?;
        }
        Ok(())
    }

    /// Gives the agent that was started last to the caller.
    pub(crate) fn take_agent(&mut self) -> anyhow::Result<Child> {
        self.agent.take().context("an agent runs")
    }

    /// The id of its process.
    pub(crate) fn agent_id(&self) -> anyhow::Result<u32> {
        self.agent.as_ref().and_then(Child::id).context("an agent runs")
    }

    /// The instance of the active agent.
    pub(crate) async fn active_agent(&self) -> anyhow::Result<InstanceId> {
        let active = self.hub.registry_as_it_is().active().await?;
        let document = active.and_then(|(document, _)| document);
        Ok(document.context("an agent was active")?.instance)
    }

    /// Runs one of the agent's other commands, and returns what it prints.
    pub(crate) async fn command(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(env!("CARGO_BIN_EXE_leaf-hub"))
            .stdin(Stdio::null())
            .args(arguments)
            .arg("--config")
            .arg(self.settings())
            .output()
            .await?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    pub(crate) fn settings(&self) -> PathBuf {
        self.directory.path().join("hub.toml")
    }

    /// Where leaves' servers connect to.
    pub(crate) fn leaf_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.leaf_port)
    }

    /// A file with the seed of a leaf's user at the hub.
    pub(crate) fn seed_file(&self, leaf: &str) -> anyhow::Result<PathBuf> {
        let file = self.directory.path().join(format!("{leaf}.witness-seed"));
        std::fs::write(&file, self.seeds.get(leaf).context("a leaf that the hub knows")?)?;
        Ok(file)
    }

    /// Deletes the hub's streams.
    pub(crate) async fn break_store(&self) -> anyhow::Result<()> {
        let user = async_nats::ConnectOptions::with_nkey(
            std::fs::read_to_string(self.directory.path().join("fleet.seed"))?
                .trim()
                .to_owned(),
        )
        .custom_inbox_prefix(subject::inbox_prefix(&hub_caller()));
        let client = user
            .connect(format!("nats://127.0.0.1:{}", self.server.port))
            .await?;
        let js = async_nats::jetstream::new(client);
        for name in ["KV_fleet", "FLEET", "KV_leaf_state", "LEASES"] {
            js.delete_stream(name).await?;
        }
        Ok(())
    }

    /// Where the hub's server stores its streams.
    pub(crate) fn store(&self) -> PathBuf {
        self.directory.path().join("hub-js")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("agent.log")).unwrap_or_default()
    }

    /// Returns the document about a copy.
    pub(crate) async fn status(&self, leaf: &TestLeaf) -> anyhow::Result<Option<CopyStatus>> {
        let statuses = self.hub.registry_as_it_is().statuses().await;
        Ok(statuses.ok().and_then(|mut statuses| statuses.remove(&leaf.name)))
    }

    /// Waits until the agent shows this state.
    pub(crate) async fn shows(&self, leaf: &TestLeaf, state: CopyState) -> anyhow::Result<CopyStatus> {
        let what = format!("the copy is {state}");
        let shown = until(&what, LIMIT, async || {
            Ok(self.status(leaf).await?.filter(|status| status.state == state))
        });
        shown.await.with_context(|| self.log())
    }

    /// Waits until the copy is the leaf's history, event by event, and its state the leaf's.
    pub(crate) async fn has_all(&self, leaf: &TestLeaf, limit: Duration) -> anyhow::Result<()> {
        let last = leaf.last();
        let copy = self.hub.copy(&leaf.name, 64 << 20);
        let what = format!("the copy ends with {last}");
        let whole = until(&what, limit, async || {
            let end = copy.extent().await.ok().flatten().map(|extent| extent.last);
            ensure!(
                end.is_none_or(|end| end <= last),
                "the copy ends with {end:?} instead of {last}"
            );
            Ok((end == Some(last)).then_some(()))
        });
        whole.await.with_context(|| self.log())?;
        let mut reader = copy.read_from(1);
        let mut next = leaf.events.first().map_or(1, |event| event.sequence);
        while let Some(event) = reader.next().await? {
            ensure!(
                Some(&event) == leaf.event(next),
                "event {next} of the copy is {event:?}"
            );
            next += 1;
        }
        ensure!(next == last + 1, "the copy ends with {}", next - 1);
        let states = self.hub.state_copy().await?;
        let mut copied = BTreeMap::new();
        let same = until("the copied state is the leaf's", limit, async || {
            copied = states.entries(&leaf.name).await?;
            let is_same = copied.iter().eq(leaf.state.iter());
            Ok(is_same.then_some(()))
        })
        .await;
        same.with_context(|| {
            format!(
                "the leaf has {:?}, the copy {copied:?}; {}",
                leaf.state,
                self.log()
            )
        })
    }

    /// Waits until an event of this kind is in the stream `FLEET`, and returns all kinds about the leaf.
    pub(crate) async fn facts(&self, leaf: &TestLeaf) -> anyhow::Result<Vec<String>> {
        let events = self.hub.registry_as_it_is().events().await?;
        let of_leaf = events
            .iter()
            .filter(|(subject, _)| subject::leaf_of(subject).as_ref() == Some(&leaf.name));
        Ok(of_leaf
            .filter_map(|(subject, _)| subject.rsplit('.').next())
            .map(str::to_owned)
            .collect())
    }

    /// Starts a leaf's server, which is linked to the hub.
    pub(crate) async fn leaf(&self, name: &str) -> anyhow::Result<TestLeaf> {
        self.leaf_with(name, name, &program().await?).await
    }

    /// Starts one with a name of its own for its server, of this program.
    pub(crate) async fn leaf_with(
        &self,
        name: &str,
        server: &str,
        program: &Path,
    ) -> anyhow::Result<TestLeaf> {
        let wire = Wire::to(self.leaf_port).await?;
        let port = free_port()?;
        let directory = self.directory.path().to_owned();
        let file = directory.join(format!("{server}.conf"));
        let end = LeafEnd {
            leaf: name.to_owned(),
            server: server.to_owned(),
            port,
            hub: wire.address,
            seed: self.seeds.get(name).context("a leaf that the hub knows")?.clone(),
        };
        let config = move |instance| leaf_config(&directory, &end, instance);
        let instance = InstanceId(Uuid::now_v7());
        std::fs::write(&file, config(instance))?;
        let server = Server::start(program, file, port).await?;
        TestLeaf::start(name, instance, server, Box::new(config), wire).await
    }
}

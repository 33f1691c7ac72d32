//! A fleet of a test's own, as `leafctl fleet init` makes it: the directory of its keys, and the hub's server and agent from `hub/`.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context as _, ensure};
use leaf_bus::connect::{ConnectSettings, Credentials, Tls};
use leaf_bus::identity::fleet::{KeyKind, NatsKey};
use leaf_bus::resolver::{PUSHER, Resolvers};
use leaf_core::host_op::Secret;
use leaf_core::id::LeafName;
use leaf_core::subject;
use serde_json::Value;
use tokio::process::{Child, Command};

use super::host::hub_agent;
use super::{LIMIT, Setup, nats_server, ssh_key, until};
use crate::commands::ctl;

/// A fleet with its hub.
pub(crate) struct FleetSite {
    directory: tempfile::TempDir,
    server: Option<Child>,
    agent: Option<Child>,
}

/// A client of the hub, and what happened to its connection.
pub(crate) struct Connected {
    pub(crate) client: async_nats::Client,
    cut: tokio::sync::watch::Receiver<bool>,
}

impl FleetSite {
    /// Makes the keys, over TLS, and starts the hub's server.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let mut site = Self::made().await?;
        site.start_server().await?;
        Ok(site)
    }

    /// Makes the keys.
    pub(crate) async fn made() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("leafctl-fleet-").tempdir()?;
        let site = Self {
            directory,
            server: None,
            agent: None,
        };
        std::fs::create_dir(site.work())?;
        let (keys, hub, state) = (site.keys(), site.keys().join("hub"), site.at("state"));
        let (leaves, clients) = (free_port()?, free_port()?);
        let mut command = ctl::command(&["fleet", "init"]);
        command
            .arg(&keys)
            .args(["--hub", &format!("tls://127.0.0.1:{leaves}")])
            .args(["--clients", &format!("tls://127.0.0.1:{clients}")])
            .arg("--hub-directory")
            .arg(&hub)
            .arg("--hub-state")
            .arg(&state);
        ctl::ended(&ctl::run(command).await?, 0, "")?;
        Ok(site)
    }

    pub(crate) async fn start_server(&mut self) -> anyhow::Result<()> {
        let log = self.at("hub.log");
        let _ = std::fs::remove_file(&log);
        let config = self.keys().join("hub/nats-server.conf");
        self.server = Some(nats_server(&config, Some(&log)).await?);
        until("the hub's server is ready", async || {
            let log = self.log();
            ensure!(!log.contains("[FTL]"), "{log}");
            Ok(log.contains("Server is ready").then_some(()))
        })
        .await
    }

    pub(crate) async fn stop_server(&mut self) -> anyhow::Result<()> {
        let mut server = self.server.take().context("the server runs")?;
        server.kill().await?;
        Ok(())
    }

    /// Starts the real agent, with the settings that were made for it.
    pub(crate) fn start_agent(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::create(self.at("agent.log"))?;
        let agent = Command::new(hub_agent())
            .args(["run", "--config"])
            .arg(self.keys().join("hub/leaf-hub.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.agent = Some(agent);
        Ok(())
    }

    /// What the hub's server has logged since its start.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.at("hub.log")).unwrap_or_default()
    }

    pub(crate) fn agent_log(&self) -> String {
        std::fs::read_to_string(self.at("agent.log")).unwrap_or_default()
    }

    /// The directory of the keys.
    pub(crate) fn keys(&self) -> PathBuf {
        self.at("keys")
    }

    /// The directory in which the commands run: the flake, and where a person's files are.
    pub(crate) fn work(&self) -> PathBuf {
        self.at("work")
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs `leafctl fleet`.
    pub(crate) async fn fleet(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        self.fleet_in(&self.keys(), arguments).await
    }

    /// Runs it with another directory of keys.
    pub(crate) async fn fleet_in(&self, keys: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = ctl::command(&["fleet", "--dir"]);
        command.arg(keys).args(arguments).current_dir(self.work());
        ctl::run(command).await
    }

    /// Runs it with success, and returns its document.
    pub(crate) async fn done(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let all: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let output = self.fleet(&all).await?;
        ctl::ended(&output, 0, "").with_context(|| format!("{arguments:?}"))?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Returns what `fleet show` says of a user.
    pub(crate) async fn shown(&self, name: &str) -> anyhow::Result<Value> {
        let shown = self.done(&["show"]).await?;
        let users = shown["users"].as_array().context("users")?;
        let user = users.iter().find(|user| user["name"] == name);
        user.cloned().with_context(|| format!("{name} in {shown}"))
    }

    /// Runs another command of `leafctl` as a person who was added.
    pub(crate) async fn as_person(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = ctl::command(arguments);
        command.env("LEAFCTL_CONTEXT", self.work().join(format!("{name}.json")));
        ctl::run(command).await
    }

    /// Makes an SSH host key, and returns the file with its private part.
    pub(crate) async fn host_key(&self, name: &str) -> anyhow::Result<PathBuf> {
        let file = self.at(&format!("host-{name}"));
        ssh_key(&file).await?;
        Ok(file)
    }

    /// Decrypts a leaf's credentials with its host key into a file, as agenix does it on the host.
    pub(crate) fn decrypted(&self, leaf: &str, host_key: &Path) -> anyhow::Result<PathBuf> {
        let secret = std::fs::read(self.work().join(format!("secrets/{leaf}-hub.creds.age")))?;
        let content = leaf_trust::age_file::decrypt(&std::fs::read(host_key)?, &secret, 1 << 16)?;
        let file = self.at(&format!("{leaf}.creds"));
        std::fs::write(&file, &*content)?;
        Ok(file)
    }

    /// Adds a leaf by `leafctl`, and returns its settings.
    pub(crate) async fn leaf(&self) -> anyhow::Result<(LeafName, Setup)> {
        let leaf = Setup::new().name().clone();
        let key = self.host_key(leaf.as_str()).await?;
        let public = key.with_extension("pub").display().to_string();
        self.done(&["add-leaf", leaf.as_str(), "--host-key", &public])
            .await?;
        let setup = self.setup(&leaf, &self.decrypted(leaf.as_str(), &key)?)?;
        Ok((leaf, setup))
    }

    /// Returns the settings of a leaf with these credentials, as the module in `hosts/` has them.
    pub(crate) fn setup(&self, leaf: &LeafName, credentials: &Path) -> anyhow::Result<Setup> {
        let host = self.work().join("hosts").join(leaf.as_str());
        let module = std::fs::read_to_string(host.join("hub.nix"))?;
        let (_, url) = module.split_once("url = \"").context("a URL")?;
        let (url, _) = url.split_once('"').context("a URL")?;
        Ok(Setup::new()
            .named(leaf)
            .set("nats.embedded.hub.url", url)
            .set("nats.embedded.hub.credentials", credentials.display().to_string())
            .set(
                "nats.embedded.hub.ca",
                host.join("hub-ca.pem").display().to_string(),
            ))
    }

    /// Connects with a credentials file, or says why it can't. A connection that is cut connects again if it can.
    pub(crate) async fn connect(
        &self,
        credentials: &Path,
        name: &str,
    ) -> anyhow::Result<Result<Connected, async_nats::ConnectErrorKind>> {
        self.connect_to(&self.clients()?, credentials, name).await
    }

    /// The same at another server.
    pub(crate) async fn connect_to(
        &self,
        url: &str,
        credentials: &Path,
        name: &str,
    ) -> anyhow::Result<Result<Connected, async_nats::ConnectErrorKind>> {
        let (sender, cut) = tokio::sync::watch::channel(false);
        let sender = std::sync::Arc::new(sender);
        let options = async_nats::ConnectOptions::with_credentials_file(credentials)
            .await?
            .add_root_certificates(self.keys().join("tls/ca.pem"))
            .custom_inbox_prefix(format!("_INBOX.{name}"))
            .event_callback(move |event| {
                let sender = sender.clone();
                async move {
                    if matches!(event, async_nats::Event::Disconnected) {
                        sender.send_replace(true);
                    }
                }
            });
        Ok(match options.connect(url).await {
            Ok(client) => Ok(Connected { client, cut }),
            Err(error) => Err(error.kind()),
        })
    }

    /// Connects as a person who was added.
    pub(crate) async fn person(
        &self,
        name: &str,
    ) -> anyhow::Result<Result<Connected, async_nats::ConnectErrorKind>> {
        self.connect(&self.work().join(format!("{name}.creds")), name)
            .await
    }

    /// The URL of the hub's server for clients.
    pub(crate) fn clients(&self) -> anyhow::Result<String> {
        Ok(self.manifest()?["clients"].as_str().context("a URL")?.to_owned())
    }

    pub(crate) fn manifest(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&std::fs::read(
            self.keys().join("fleet.json"),
        )?)?)
    }

    /// The key of a role, such as `CALLERS/person`.
    pub(crate) fn role_key(&self, role: &str) -> anyhow::Result<NatsKey> {
        let manifest = self.manifest()?;
        let public = manifest["roles"][role].as_str().context("a role")?;
        let seed = std::fs::read_to_string(key_file(&self.keys(), public))?;
        Ok(NatsKey::from_seed(&seed, KeyKind::Account)?)
    }

    /// Makes credentials of a role by hand, with times of the test's choice.
    pub(crate) fn by_hand(
        &self,
        role: &str,
        name: &str,
        issued_at: i64,
        expires_at: i64,
    ) -> anyhow::Result<Secret> {
        let manifest = self.manifest()?;
        let (account, _) = role.split_once('/').context("an account")?;
        let account = manifest["accounts"][account].as_str().context("an account")?;
        let user =
            leaf_bus::identity::fleet::new_user(name, account, &self.role_key(role)?, issued_at, expires_at);
        Ok(user.credentials)
    }

    /// The servers' resolvers, as whoever has a user of the role push reaches them.
    pub(crate) async fn resolvers(&self) -> anyhow::Result<Resolvers> {
        let now = jiff::Timestamp::now().as_second();
        let settings = ConnectSettings {
            credentials: Credentials::Text(self.by_hand("SYS/push", PUSHER, now, now + 60)?),
            inbox_prefix: subject::inbox_prefix_of_token(PUSHER),
            tls: Tls {
                ca: Some(self.keys().join("tls/ca.pem")),
                ..Tls::default()
            },
            ..ConnectSettings::new(&self.clients()?)
        };
        Ok(Resolvers::connect(&settings, LIMIT).await?)
    }

    /// The JWT of an account in the directory.
    pub(crate) fn account(&self, name: &str) -> anyhow::Result<String> {
        let file = format!("stores/fleet/accounts/{name}/{name}.jwt");
        Ok(std::fs::read_to_string(self.keys().join(file))?)
    }
}

/// Returns a port that nobody listens on.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The file of a key.
pub(crate) fn key_file(keys: &Path, public: &str) -> PathBuf {
    keys.join(format!(
        "keys/keys/{}/{}/{public}.nk",
        &public[..1],
        &public[1..3]
    ))
}

impl Connected {
    /// Whether the server has closed the connection by now.
    pub(crate) fn cut_seen(&self) -> tokio::sync::watch::Ref<'_, bool> {
        self.cut.borrow()
    }

    /// Waits until the server has closed the connection.
    pub(crate) async fn is_cut(&mut self) -> anyhow::Result<()> {
        tokio::time::timeout(LIMIT, self.cut.wait_for(|cut| *cut))
            .await
            .context("waiting for the server to cut the connection")??;
        Ok(())
    }
}

//! A NATS server that is no leaf's own: for leaves that connect to one, and for what happens without.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use leaf_bus::connect::{ConnectSettings, Credentials};
use leaf_bus::embedded::{EmbeddedServer, EmbeddedSettings};
use leaf_bus::identity::{Identity, Permissions, daemon_caller};
use leaf_core::host_op::Secret;
use leaf_core::id::LeafName;
use leaf_core::subject;

use super::Setup;

/// A server with the users of one leaf. It can be stopped and started again; its address stays.
pub(crate) struct Hub {
    pub(crate) leaf: LeafName,
    identity: Identity,
    address: SocketAddr,
    max_payload: u32,
    max_storage: Option<u64>,
    server: Option<EmbeddedServer>,
    directory: tempfile::TempDir,
}

impl Hub {
    /// Starts a server for a leaf of a name of its own.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::start_with(1 << 20).await
    }

    /// Starts one that accepts messages of this size, in bytes.
    pub(crate) async fn start_with(max_payload: u32) -> anyhow::Result<Self> {
        Self::start_limited(max_payload, None).await
    }

    /// Starts one that stores this many bytes at most.
    pub(crate) async fn start_with_storage(max_storage: u64) -> anyhow::Result<Self> {
        Self::start_limited(1 << 20, Some(max_storage)).await
    }

    async fn start_limited(max_payload: u32, max_storage: Option<u64>) -> anyhow::Result<Self> {
        let leaf = Setup::new().name().clone();
        let directory = tempfile::Builder::new().prefix("leafd-hub-").tempdir()?;
        let identity = Identity::open_or_create(&directory.path().join("identity"), &leaf)?;
        let mut hub = Self {
            leaf,
            identity,
            address: "127.0.0.1:0".parse()?,
            max_payload,
            max_storage,
            server: None,
            directory,
        };
        hub.start_again().await?;
        let users = [
            hub.identity.service_credentials(),
            hub.identity.leaf_credentials(),
        ];
        hub.write_credentials(&hub.leaf, users)?;
        Ok(hub)
    }

    fn write_credentials(&self, leaf: &LeafName, users: [Secret; 2]) -> anyhow::Result<()> {
        for (file, user) in self.credentials(leaf).iter().zip(users) {
            std::fs::write(file, user.expose())?;
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600))?;
        }
        Ok(())
    }

    pub(crate) async fn start_again(&mut self) -> anyhow::Result<()> {
        let settings = EmbeddedSettings {
            max_payload: self.max_payload,
            max_file_store: self.max_storage,
            ..EmbeddedSettings::new(self.directory.path().join("nats"), self.address)
        };
        let server = EmbeddedServer::start(settings, &self.identity).await?;
        self.address = server.address();
        self.server = Some(server);
        Ok(())
    }

    /// Starts it again, at another address.
    pub(crate) async fn move_to(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        self.stop().await;
        self.address = address;
        self.start_again().await
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }

    /// The settings of a leaf that connects to it.
    pub(crate) fn setup(&self) -> Setup {
        let url = format!("nats://{}", self.address);
        Setup::new()
            .named(&self.leaf)
            .server(&url, self.credentials(&self.leaf), &self.identity_dir())
    }

    /// The settings of another leaf that connects to it, with users of its own in the same accounts. People command it
    /// with the context of the first.
    pub(crate) fn setup_of(&self, leaf: &LeafName) -> anyhow::Result<Setup> {
        let daemon = daemon_caller();
        let users = [
            self.identity
                .user_credentials(&daemon, &Permissions::service(leaf)),
            self.identity
                .trusted_credentials(&daemon, &Permissions::keeper(leaf)),
        ];
        self.write_credentials(leaf, users)?;
        let url = format!("nats://{}", self.address);
        let own_identity = self.directory.path().join(format!("identity.{leaf}"));
        let setup = Setup::new().named(leaf);
        Ok(setup.server(&url, self.credentials(leaf), &own_identity))
    }

    /// Writes the seed of the scoped signing key of its callers' account into a file.
    pub(crate) fn signing_key(&self) -> anyhow::Result<PathBuf> {
        let keys = std::fs::read_to_string(self.identity_dir().join("keys.json"))?;
        let keys: serde_json::Value = serde_json::from_str(&keys)?;
        self.secret_file(
            "containers.seed",
            keys["container_signer"].as_str().context("a seed")?,
        )
    }

    /// Writes a file that only its owner can read.
    pub(crate) fn secret_file(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let file = self.directory.path().join(name);
        std::fs::write(&file, text)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        Ok(file)
    }

    /// The settings of the daemon's user in the account of the streams.
    pub(crate) fn streams(&self) -> ConnectSettings {
        ConnectSettings {
            credentials: Credentials::Text(self.identity.leaf_credentials()),
            inbox_prefix: subject::inbox_prefix(&daemon_caller()),
            ..ConnectSettings::new(&format!("nats://{}", self.address))
        }
    }

    /// A client of that user, for what the daemon does not do.
    pub(crate) async fn nats_of_streams(&self) -> anyhow::Result<async_nats::Client> {
        async_nats::ConnectOptions::new()
            .credentials(self.identity.leaf_credentials().expose())?
            .custom_inbox_prefix(subject::inbox_prefix(&daemon_caller()))
            .connect(format!("nats://{}", self.address))
            .await
            .context("connecting as the daemon")
    }

    /// The users of a leaf's daemon: where its callers are, and where the streams are.
    fn credentials(&self, leaf: &LeafName) -> [PathBuf; 2] {
        ["callers", "streams"].map(|account| self.directory.path().join(format!("{account}.{leaf}.creds")))
    }

    fn identity_dir(&self) -> PathBuf {
        self.directory.path().join("identity")
    }
}

//! The relay, between containers and a server that asks for TLS and a client's certificate.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use leaf_bus::client::Client;
use leaf_bus::connect::ConnectSettings;
use leaf_bus::container::ContainerClient;
use leaf_bus::identity::{ContainerSigner, Identity, admin_caller};
use leaf_bus::relay::{Relay, port_at};
use leaf_core::host_op::ContainerBinding;
use leaf_core::id::ContainerName;
use leaf_core::subject;
use libtest_mimic::Trial;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::settings_for;
use crate::plain::PlainServer;
use crate::support::authority;
use crate::support::{LIMIT, User, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("a_container_reaches_a_server_with_tls_through_the_relay", reaches),
        trial("messages_of_every_size_pass_the_relay_unchanged", unchanged),
        trial(
            "what_the_relay_can_t_connect_is_closed_and_a_container_has_a_number_of_connections",
            refused,
        ),
        trial(
            "only_a_server_without_tls_at_the_leafs_address_needs_no_relay",
            direct,
        ),
    ]
}

/// A server in operator mode that takes no client without a certificate.
struct Hub {
    dir: tempfile::TempDir,
    identity: Identity,
    server: PlainServer,
    _relays: JoinSet<()>,
}

impl Hub {
    async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let identity = Identity::open_or_create(&dir.path().join("identity"), &leaf())?;
        let (issuer, ca) = authority("hub")?;
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).map(|()| path)
        };
        file("ca.pem", &ca)?;
        for (name, of) in [("server", "127.0.0.1"), ("leaf", "edge")] {
            let key = rcgen::KeyPair::generate()?;
            let cert = rcgen::CertificateParams::new(vec![of.to_owned()])?.signed_by(&key, &issuer)?;
            file(&format!("{name}.pem"), &cert.pem())?;
            file(&format!("{name}.key"), &key.serialize_pem())?;
        }
        let path = |name: &str| dir.path().join(name);
        let config = format!(
            "{}tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}\n\
             client_advertise: \"192.0.2.1:4222\"\n",
            identity.server_config()?,
            path("server.pem"),
            path("server.key"),
            path("ca.pem"),
        );
        let server = PlainServer::start(dir.path(), &config).await?;
        Ok(Self {
            dir,
            identity,
            server,
            _relays: JoinSet::new(),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The leaf's way to it.
    fn settings(&self) -> ConnectSettings {
        let mut settings = ConnectSettings::new(&self.server.url());
        settings.tls.ca = Some(self.path("ca.pem"));
        settings.tls.cert = Some(self.path("leaf.pem"));
        settings.tls.key = Some(self.path("leaf.key"));
        settings
    }

    /// Opens a relay, and returns its address.
    async fn relay(&mut self, settings: &ConnectSettings) -> anyhow::Result<SocketAddr> {
        let relay = Relay::bind("127.0.0.1:0".parse()?, settings).await?;
        let address = relay.address()?;
        self._relays.spawn(relay.run());
        Ok(address)
    }

    /// The key that a leaf on this server is given.
    fn signer(&self) -> anyhow::Result<ContainerSigner> {
        let keys: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(self.path("identity/keys.json"))?)?;
        let secret = |name: &str, text: &str| {
            std::fs::write(self.path(name), text)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(self.path(name), mode)?;
            anyhow::Ok(self.path(name))
        };
        let key = secret("key", keys["container_signer"].as_str().context("a seed")?)?;
        let leafd = secret("leafd.creds", self.identity.service_credentials().expose())?;
        Ok(ContainerSigner::open(&key, &leafd)?)
    }
}

async fn reaches() -> anyhow::Result<()> {
    let mut hub = Hub::start().await?;
    let to = hub.settings();
    let relay = hub.relay(&to).await?;
    let name = ContainerName::new("web")?;
    let binding = ContainerBinding::new(&leaf(), &name, &format!("nats://{relay}"));
    let credentials = tempfile::NamedTempFile::new()?;
    std::fs::write(&credentials, hub.signer()?.credentials(&leaf(), &name).expose())?;
    let container = ContainerClient::connect(&binding, credentials.path()).await?;
    let mut serving = JoinSet::new();
    let served = container.clone();
    serving.spawn(async move {
        served
            .serve_health(|| b"{\"status\":\"ok\"}".to_vec())
            .await
            .map_err(drop)
    });

    let admin = hub.identity.admin_credentials();
    let mut settings = settings_for(&hub.server.url(), &admin, &admin_caller());
    settings.tls = hub.settings().tls;
    let client = Client::connect(&settings, LIMIT).await?;
    let health = super::until("the container's health", async || {
        client
            .request_container_health(&leaf(), &name, Duration::from_secs(2))
            .await
            .ok()
    })
    .await?;
    ensure!(health["status"] == "ok", "{health}");

    // A user that no key of the account issued gets no further than the server.
    let stranger = tempfile::tempdir()?;
    let stranger = Identity::open_or_create(stranger.path(), &leaf())?;
    let url = format!("nats://{relay}");
    let refused = User::connect(
        &url,
        &stranger.container_credentials(&name),
        &name.caller(&leaf()),
    )
    .await;
    ensure!(refused.is_err(), "the server takes a user of another operator");
    Ok(())
}

async fn unchanged() -> anyhow::Result<()> {
    let mut hub = Hub::start().await?;
    let to = hub.settings();
    let url = format!("nats://{}", hub.relay(&to).await?);
    let credentials = hub.identity.service_credentials();
    let user = User::connect(&url, &credentials, &admin_caller()).await?;
    let prefix = subject::jobs_of(&leaf()).replace('>', "");
    // Through the relay in both directions: the service's own prefix is one that it may publish to and hear.
    let own = subject::containers_of(&leaf()).replace('>', "x");
    let mut heard = user.client.subscribe(own.clone()).await?;
    let mut sent = Vec::new();
    for size in [0, 1, 2, 100, 4095, 4096, 32_767, 32_768, 65_536, 1_000_000, 7] {
        // Bytes that look like the protocol's own.
        let payload: Vec<u8> = b"INFO {\"connect_urls\":[]}\r\nMSG a 1 5\r\n-ERR\r\n"
            .iter()
            .copied()
            .cycle()
            .take(size)
            .collect();
        user.client.publish(own.clone(), payload.clone().into()).await?;
        sent.push(payload);
    }
    for number in 0..2000 {
        let payload = format!("{prefix}{number}").into_bytes();
        user.client.publish(own.clone(), payload.clone().into()).await?;
        sent.push(payload);
    }
    for payload in sent {
        let message = tokio::time::timeout(LIMIT, heard.next())
            .await?
            .context("a message")?;
        ensure!(
            message.payload == payload,
            "{} bytes instead of {}",
            message.payload.len(),
            payload.len()
        );
    }
    let info = user.client.server_info();
    ensure!(!info.tls_required && info.connect_urls.is_empty(), "{info:?}");
    Ok(())
}

async fn refused() -> anyhow::Result<()> {
    let mut hub = Hub::start().await?;
    let mut without = hub.settings();
    (without.tls.cert, without.tls.key) = (None, None);
    let mut nowhere = ConnectSettings::new("tls://127.0.0.1:1");
    nowhere.tls.ca = Some(hub.path("ca.pem"));
    let mut stranger = hub.settings();
    let (_, other) = authority("other")?;
    std::fs::write(hub.path("other.pem"), other)?;
    stranger.tls.ca = Some(hub.path("other.pem"));
    for settings in [nowhere, stranger] {
        let relay = hub.relay(&settings).await?;
        let mut said = Vec::new();
        let closed = async { TcpStream::connect(relay).await?.read_to_end(&mut said).await };
        // Closed with or without a reset.
        let _ = tokio::time::timeout(LIMIT, closed)
            .await
            .context("it is closed")?;
        ensure!(said.is_empty(), "{said:?}");
    }
    // A server that wants a certificate says so after the handshake only.
    let relay = hub.relay(&without).await?;
    let credentials = hub.identity.service_credentials();
    let url = format!("nats://{relay}");
    let user = User::connect(&url, &credentials, &admin_caller()).await;
    ensure!(user.is_err(), "the server takes a leaf without a certificate");

    let to = hub.settings();
    let relay = hub.relay(&to).await?;
    let mut open = Vec::new();
    for _ in 0..64 {
        let mut client = TcpStream::connect(relay).await?;
        let mut first = [0; 4];
        client.read_exact(&mut first).await?;
        ensure!(&first == b"INFO");
        open.push(client);
    }
    let mut first = [0; 4];
    let more = async { TcpStream::connect(relay).await?.read(&mut first).await };
    let read = tokio::time::timeout(LIMIT, more).await.context("it is closed")?;
    ensure!(!matches!(read, Ok(1..)), "{read:?}");
    // One that ends makes room for another.
    drop(open.pop());
    super::until("there is room", async || {
        let mut client = TcpStream::connect(relay).await.ok()?;
        client.read_exact(&mut [0; 4]).await.ok()
    })
    .await
    .map(drop)
}

async fn direct() -> anyhow::Result<()> {
    let address = "10.233.0.1".parse()?;
    for (servers, port) in [
        ("nats://10.233.0.1:4222", Some(4222)),
        ("nats://10.233.0.1", Some(4222)),
        ("nats://hub:4222, nats://10.233.0.1:4333", Some(4333)),
        ("tls://10.233.0.1:4222", None),
        ("nats://10.233.0.2:4222", None),
        ("tls://hub.example:4222", None),
    ] {
        let found = port_at(&ConnectSettings::new(servers), address);
        ensure!(found == port, "{servers}: {found:?}");
    }
    ensure!(
        Relay::bind("127.0.0.1:0".parse()?, &ConnectSettings::new("wss://hub"))
            .await
            .is_err()
    );
    Ok(())
}

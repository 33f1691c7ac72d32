//! A machine's part of a server: who it is, in files, and an address of its own on the loopback.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use leaf_bus::embedded::NatsServer;
use leaf_bus::identity::{Identity, Permissions};
use leaf_core::id::{Caller, LeafName};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::{LIMIT, evaluate};

const SAMPLES: &str = "samples.nix";

/// Authorities that server and clients show certificates of.
pub(crate) struct Authority {
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate()?)?;
        Ok(Self { issuer })
    }

    /// Writes a certificate for this name to `NAME.pem` and its key to `NAME.key`.
    pub(crate) fn issue(&self, directory: &Path, file: &str, name: &str) -> anyhow::Result<()> {
        let key = rcgen::KeyPair::generate()?;
        let cert = rcgen::CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &self.issuer)?;
        fs::write(directory.join(format!("{file}.pem")), cert.pem())?;
        fs::write(directory.join(format!("{file}.key")), key.serialize_pem())?;
        Ok(())
    }
}

/// A machine with a server's credentials in a directory and an address of its own on the loopback.
pub(crate) struct Site {
    directory: tempfile::TempDir,
    pub(crate) identity: Identity,
    pub(crate) address: Ipv4Addr,
    pub(crate) given: Value,
}

impl Site {
    pub(crate) fn new(name: &str, authority: &Authority) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("nats-module-").tempdir()?;
        let identity = Identity::open_or_create(&directory.path().join("identity"), &LeafName::new(name)?)?;
        // Any address of 127.0.0.0/8 is this machine's, so each site has one of its own.
        let [.., a, b, c] = uuid::Uuid::now_v7().into_bytes();
        let address = Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254));

        let path = |file: &str| directory.path().join(file);
        // `operator: JWT`, `system_account: KEY`, and the accounts: what a host keeps in two files.
        let config = identity.server_config()?;
        let (operator, accounts) = config.split_once('\n').context("a line of the operator")?;
        let operator = operator
            .strip_prefix("operator: ")
            .context("the operator's JWT")?;
        fs::write(path("operator.jwt"), operator)?;
        fs::write(path("accounts.conf"), accounts)?;
        let caller = Caller::new("hub-user")?;
        let everything = Permissions {
            publish: vec![">".to_owned()],
            subscribe: vec![">".to_owned()],
            ..Permissions::default()
        };
        let everybody = identity.trusted_credentials(&caller, &everything);
        fs::write(path("user.creds"), everybody.expose())?;
        fs::write(path("ca.pem"), authority.issuer.pem())?;
        authority.issue(directory.path(), "tls", &address.to_string())?;
        authority.issue(directory.path(), "hub", "leaf")?;

        let jwts: BTreeMap<&str, &str> = accounts
            .lines()
            .filter_map(|line| line.trim().split_once(": "))
            .filter(|(key, _)| key.len() == 56 && key.starts_with('A'))
            .collect();
        let system = accounts
            .lines()
            .find_map(|line| line.strip_prefix("system_account: "));
        let given = json!({
            "directory": directory.path(),
            "system": system.context("the system account")?,
            "account": identity.account(),
            "accounts": jwts,
            "address": address,
            "port": free_port(address)?,
            "leafnodesPort": free_port(address)?,
            "monitoringPort": free_port(Ipv4Addr::LOCALHOST)?,
            "hub": "tls://hub.example:7422",
            "ca": path("ca.pem"),
        });
        Ok(Self {
            directory,
            identity,
            address,
            given,
        })
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn url(&self) -> String {
        format!("nats://{}:{}", self.address, self.given["port"])
    }

    pub(crate) fn socket(&self) -> anyhow::Result<SocketAddr> {
        Ok(SocketAddr::new(
            self.address.into(),
            serde_json::from_value(self.given["port"].clone())?,
        ))
    }

    /// Evaluates the samples for this site, and writes each to a file.
    pub(crate) async fn render(&self) -> anyhow::Result<BTreeMap<String, PathBuf>> {
        let given = ["--argstr".to_owned(), "given".to_owned(), self.given.to_string()];
        let samples: BTreeMap<String, String> = serde_json::from_value(evaluate(SAMPLES, &given).await?)?;
        samples
            .into_iter()
            .map(|(name, text)| {
                let file = self.path(&format!("{name}.conf"));
                fs::write(&file, text)?;
                Ok((name, file))
            })
            .collect()
    }

    /// Starts a server with this sample, and returns when it takes connections.
    pub(crate) async fn start(&self, sample: &str) -> anyhow::Result<Server> {
        let samples = self.render().await?;
        let log = self.path("nats-server.log");
        let mut command = nats_server().await?;
        let child = command
            .arg("-c")
            .arg(samples.get(sample).context("no such sample")?)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        let mut server = Server { child, log };
        let socket = self.socket()?;
        wait_for("connections to be taken", async || {
            if let Some(status) = server.child.try_wait()? {
                bail!(
                    "nats-server ended with {status}: {}",
                    fs::read_to_string(&server.log)?
                );
            }
            Ok(tokio::net::TcpStream::connect(socket).await.ok())
        })
        .await?;
        Ok(server)
    }

    /// Connects as a user who may everything, with the authorities and certificates that are here.
    pub(crate) async fn connect(&self) -> anyhow::Result<async_nats::Client> {
        let options = async_nats::ConnectOptions::new()
            .credentials_file(self.path("user.creds"))
            .await?;
        self.connect_with(options).await
    }

    pub(crate) async fn connect_with(
        &self,
        options: async_nats::ConnectOptions,
    ) -> anyhow::Result<async_nats::Client> {
        let client = options
            .add_root_certificates(self.path("ca.pem"))
            .connect(self.url())
            .await?;
        Ok(client)
    }
}

/// A running nats-server; dropping it kills it.
pub(crate) struct Server {
    child: Child,
    pub(crate) log: PathBuf,
}

impl Server {
    /// The addresses that the server's process listens on.
    pub(crate) fn listeners(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id().context("it has ended")?));
        let sockets: Vec<String> = fs::read_dir(process.join("fd"))?
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .filter_map(|target| {
                Some(
                    target
                        .to_str()?
                        .strip_prefix("socket:[")?
                        .strip_suffix(']')?
                        .to_owned(),
                )
            })
            .collect();
        let mut listeners = Vec::new();
        for table in ["net/tcp", "net/tcp6"] {
            let table = fs::read_to_string(process.join(table)).unwrap_or_default();
            for line in table.lines().skip(1) {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let [_, local, _, state, ..] = fields[..] else {
                    continue;
                };
                if state == "0A"
                    && fields
                        .get(9)
                        .is_some_and(|inode| sockets.iter().any(|s| s == inode))
                {
                    listeners.push(parse_socket(local).with_context(|| format!("understand {local}"))?);
                }
            }
        }
        Ok(listeners)
    }
}

/// Reads an IPv4 address and port of `/proc/net/tcp` (proc(5)): in hexadecimal, the address in the machine's byte order. One
/// of IPv6 counts as unspecified, since no sample has any.
fn parse_socket(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address = match u32::from_str_radix(address, 16) {
        Ok(address) => Ipv4Addr::from(address.to_ne_bytes()),
        Err(_) => Ipv4Addr::UNSPECIFIED,
    };
    Some(SocketAddr::new(address.into(), port))
}

pub(crate) async fn nats_server() -> anyhow::Result<Command> {
    let mut command = Command::new(NatsServer::find(None).await?.path);
    command.kill_on_drop(true);
    Ok(command)
}

fn free_port(address: Ipv4Addr) -> anyhow::Result<u16> {
    Ok(TcpListener::bind((address, 0))?.local_addr()?.port())
}

/// Asks until there is an answer.
pub(crate) async fn wait_for<T>(
    what: &str,
    mut ask: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let found = timeout(LIMIT, async {
        loop {
            if let Some(found) = ask().await? {
                return anyhow::Ok(found);
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    found
        .await
        .with_context(|| format!("waited in vain for {what}"))?
}

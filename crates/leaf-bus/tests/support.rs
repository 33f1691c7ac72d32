//! What the tests share: a server of their own, and clients of it.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use leaf_bus::embedded::{EmbeddedServer, EmbeddedSettings, EmbeddedStatus, NatsServer};
use leaf_bus::identity::{Identity, admin_caller};
use leaf_core::host_op::Secret;
use leaf_core::id::{Caller, LeafName};
use leaf_core::subject;
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

/// The longest that any wait for a state may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("a runtime")
}

pub(crate) fn find_server() -> Result<NatsServer, String> {
    runtime()
        .block_on(NatsServer::find(None))
        .map_err(|e| e.to_string())
}

/// Returns a test with a runtime of its own, that may take two minutes.
pub(crate) fn trial<F>(name: &'static str, test: fn() -> F) -> Trial
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    trial_of(name, test)
}

/// Returns the same with a test that is no plain function.
pub(crate) fn trial_of<F>(name: &'static str, test: impl FnOnce() -> F + Send + 'static) -> Trial
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    Trial::test(name, move || {
        let outcome = runtime().block_on(async { tokio::time::timeout(4 * LIMIT, test()).await });
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(format!("{e:?}").into()),
            Err(_) => Err("it did not end".into()),
        }
    })
}

pub(crate) fn leaf() -> LeafName {
    LeafName::new("edge").expect("a leaf name")
}

pub(crate) fn settings(dir: &Path) -> EmbeddedSettings {
    EmbeddedSettings::new(dir.join("nats"), "127.0.0.1:0".parse().expect("an address"))
}

/// A leaf's NATS in a directory of its own.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) identity: Identity,
    pub(crate) server: EmbeddedServer,
}

impl Site {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Self::start_with(1 << 20).await
    }

    /// With a server that accepts messages of this size, in bytes.
    pub(crate) async fn start_with(max_payload: u32) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let identity = Identity::open_or_create(&dir.path().join("identity"), &leaf())?;
        let settings = EmbeddedSettings {
            max_payload,
            ..settings(dir.path())
        };
        let server = EmbeddedServer::start(settings, &identity).await?;
        Ok(Self {
            dir,
            identity,
            server,
        })
    }

    pub(crate) async fn connect(&self, credentials: &Secret, caller: &Caller) -> anyhow::Result<User> {
        User::connect(&self.server.client_url(), credentials, caller).await
    }

    /// A user of the leaf's administrator.
    pub(crate) async fn admin(&self) -> anyhow::Result<User> {
        self.connect(&self.identity.admin_credentials(), &admin_caller())
            .await
    }

    /// Ends a test's server.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        self.server.stop().await;
        Ok(())
    }
}

/// A connected user, and what the server complains of.
pub(crate) struct User {
    pub(crate) client: async_nats::Client,
    complaints: mpsc::UnboundedReceiver<String>,
}

impl User {
    pub(crate) async fn connect(url: &str, credentials: &Secret, caller: &Caller) -> anyhow::Result<Self> {
        let (sender, complaints) = mpsc::unbounded_channel();
        let sender = Arc::new(sender);
        let client = async_nats::ConnectOptions::new()
            .credentials(credentials.expose())?
            .custom_inbox_prefix(subject::inbox_prefix(caller))
            .reconnect_delay_callback(|_| Duration::from_millis(20))
            .event_callback(move |event| {
                let sender = sender.clone();
                async move {
                    if let async_nats::Event::ServerError(e) = event {
                        let _ = sender.send(e.to_string());
                    }
                }
            })
            .connect(url)
            .await
            .with_context(|| format!("connecting as {caller}"))?;
        Ok(Self { client, complaints })
    }

    /// Publishes, and returns what the server complains of, if anything, by the time it answers a ping.
    pub(crate) async fn publish(&mut self, subject: &str) -> anyhow::Result<Option<String>> {
        self.client.publish(subject.to_owned(), "x".into()).await?;
        self.complaint().await
    }

    /// Subscribes, and returns what the server complains of.
    pub(crate) async fn subscribe(&mut self, subject: &str) -> anyhow::Result<Option<String>> {
        let _subscriber = self.client.subscribe(subject.to_owned()).await?;
        self.complaint().await
    }

    async fn complaint(&mut self) -> anyhow::Result<Option<String>> {
        // `flush` only empties the client's buffer. A round trip is what shows that the server has said all; an
        // inbox of its own may be subscribed by everyone, and an unsubscribe of it needs no answer, so the server's
        // connection statistics are no help: a second forbidden publish is the marker.
        const MARKER: &str = "forbidden.marker";
        self.client.publish(MARKER, "".into()).await?;
        self.client.flush().await?;
        let mut found = None;
        loop {
            let next = tokio::time::timeout(LIMIT, self.complaints.recv())
                .await
                .context("waiting for the marker")?
                .context("the client is gone")?;
            if next.to_lowercase().contains(MARKER) {
                return Ok(found);
            }
            found = Some(next);
        }
    }

    /// Fails if the server lets this user publish there.
    pub(crate) async fn may_not_publish(&mut self, subject: &str) -> anyhow::Result<()> {
        is_forbidden(self.publish(subject).await?).with_context(|| format!("publishing to {subject}"))
    }

    /// Fails if the server does not let this user publish there.
    pub(crate) async fn may_publish(&mut self, subject: &str) -> anyhow::Result<()> {
        is_allowed(self.publish(subject).await?).with_context(|| format!("publishing to {subject}"))
    }

    /// Fails if the server lets this user subscribe there.
    pub(crate) async fn may_not_subscribe(&mut self, subject: &str) -> anyhow::Result<()> {
        is_forbidden(self.subscribe(subject).await?).with_context(|| format!("subscribing to {subject}"))
    }

    /// Fails if the server does not let this user subscribe there.
    pub(crate) async fn may_subscribe(&mut self, subject: &str) -> anyhow::Result<()> {
        is_allowed(self.subscribe(subject).await?).with_context(|| format!("subscribing to {subject}"))
    }
}

fn is_forbidden(complaint: Option<String>) -> anyhow::Result<()> {
    match complaint {
        Some(complaint) if complaint.to_lowercase().contains("permissions violation") => Ok(()),
        other => bail!("the server says {other:?}"),
    }
}

fn is_allowed(complaint: Option<String>) -> anyhow::Result<()> {
    match complaint {
        None => Ok(()),
        Some(complaint) => bail!("the server says {complaint:?}"),
    }
}

/// Waits until the server runs, in another process than `not`, and returns its process.
pub(crate) async fn runs(server: &EmbeddedServer, not: Option<u32>) -> anyhow::Result<u32> {
    let mut status = server.status();
    let seen = tokio::time::timeout(
        LIMIT,
        status.wait_for(|s| matches!(s, EmbeddedStatus::Running { pid, .. } if Some(*pid) != not)),
    )
    .await
    .context("waiting for nats-server to run")??;
    match &*seen {
        EmbeddedStatus::Running { pid, .. } => Ok(*pid),
        other => bail!("{other:?}"),
    }
}

/// Stops a process by SIGSTOP, and returns when none of its threads runs any more: until then it may go on answering.
pub(crate) async fn freeze(pid: u32) -> anyhow::Result<()> {
    let process = Pid::from_raw(i32::try_from(pid)?).context("a process")?;
    kill_process(process, Signal::STOP)?;
    let stopped = async {
        while !is_stopped(pid)? {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    };
    tokio::time::timeout(LIMIT, stopped).await?
}

/// Returns whether all threads of a process are in the state `T` (proc_pid_stat(5)).
fn is_stopped(pid: u32) -> anyhow::Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = std::fs::read_to_string(thread?.path().join("stat"))?;
        let (_, behind_name) = stat.rsplit_once(") ").context("a thread's state")?;
        if !behind_name.starts_with('T') {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A CA for tests, and its certificate in PEM.
pub(crate) fn authority(
    name: &str,
) -> anyhow::Result<(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>, String)> {
    let mut params = rcgen::CertificateParams::new(Vec::new())?;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let issuer = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate()?)?;
    let pem = issuer.pem();
    Ok((issuer, pem))
}

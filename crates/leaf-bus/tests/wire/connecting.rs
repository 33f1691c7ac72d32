//! What goes wrong on the way to a server, and what is said about it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use leaf_bus::client::Client;
use leaf_bus::connect::{Bus, ConnectError, ConnectSettings, Credentials, Status};
use leaf_bus::container::ContainerClient;
use leaf_bus::context;
use leaf_bus::embedded::EmbeddedServer;
use leaf_bus::identity::{Identity, daemon_caller};
use leaf_core::error::chain;
use leaf_core::host_op::{ContainerBinding, Secret};
use leaf_core::id::ContainerName;
use libtest_mimic::Trial;

use super::{admin, daemon_settings, kill, settings_for, until};
use crate::plain::PlainServer;
use crate::support::{LIMIT, Site, authority, leaf, runs, settings, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("no_server_is_told_apart", no_server),
        trial(
            "refused_credentials_are_told_apart_and_stand_in_the_status",
            refused,
        ),
        trial("credentials_that_cannot_be_read_are_told_apart", unreadable),
        trial(
            "a_server_with_another_ca_is_not_trusted_and_with_its_own_it_is",
            wrong_ca,
        ),
        trial("tls_with_a_server_that_does_not_speak_it_is_an_error", no_tls),
        trial("a_server_that_does_not_answer_times_out", silent),
        trial("jetstream_that_is_off_is_told_apart", jetstream_off),
        trial("a_domain_in_which_no_jetstream_answers_is_named", wrong_domain),
        trial("a_user_without_the_permission_is_told_so", no_permission),
        trial(
            "the_daemon_needs_no_server_to_start_and_finds_one_that_comes",
            comes_later,
        ),
        trial("the_daemon_says_why_it_is_not_connected", says_why),
        trial("a_connection_comes_back_after_the_server_was_killed", comes_back),
        trial(
            "a_context_of_the_embedded_server_connects_as_admin",
            embedded_context,
        ),
        trial("a_container_answers_for_its_health", container_health),
        trial(
            "a_container_whose_leaf_is_gone_tries_less_often_than_a_daemon_and_at_once_after_a_hint",
            leaf_is_gone,
        ),
    ]
}

async fn attempt(settings: &ConnectSettings) -> anyhow::Result<ConnectError> {
    let client = Client::connect(settings, Duration::from_secs(5)).await;
    client.err().context("it connected")
}

/// A port of this machine on which nobody listens.
async fn free_port() -> anyhow::Result<u16> {
    Ok(tokio::net::TcpListener::bind("127.0.0.1:0")
        .await?
        .local_addr()?
        .port())
}

async fn no_server() -> anyhow::Result<()> {
    let url = format!("nats://127.0.0.1:{}", free_port().await?);
    let error = attempt(&ConnectSettings::new(&url)).await?;
    ensure!(matches!(error, ConnectError::NoServer { .. }), "{error:?}");
    ensure!(error.to_string().contains(&url), "{error}");
    let error = attempt(&ConnectSettings::new("nats://no-such-host.invalid:4222")).await?;
    ensure!(matches!(error, ConnectError::NoServer { .. }), "{error:?}");
    for bad in ["", "http://localhost", "nats://"] {
        let error = attempt(&ConnectSettings::new(bad)).await?;
        ensure!(
            matches!(error, ConnectError::BadAddress { .. }),
            "{bad}: {error:?}"
        );
    }
    let error = attempt(&ConnectSettings::new("http://me:hush@localhost")).await?;
    ensure!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
    Ok(())
}

async fn refused() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let other = tempfile::tempdir()?;
    let other = Identity::open_or_create(other.path(), &leaf())?;
    let url = site.server.client_url();
    let foreign = settings_for(&url, &other.leaf_credentials(), &daemon_caller());
    for settings in [foreign.clone(), ConnectSettings::new(&url)] {
        let error = attempt(&settings).await?;
        ensure!(
            matches!(error, ConnectError::CredentialsRefused { .. }),
            "{error:?}"
        );
    }
    let bus = Bus::connect(&foreign).await?;
    let mut status = bus.status();
    let refused = |s: &Status| matches!(s, Status::Disconnected { problem, .. } if problem.contains("authorization violation"));
    tokio::time::timeout(LIMIT, status.wait_for(refused))
        .await
        .context("the reason in the status")??;
    Ok(())
}

async fn unreadable() -> anyhow::Result<()> {
    let mut settings = ConnectSettings::new("nats://127.0.0.1:1");
    let dir = tempfile::tempdir()?;
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "")?;
    for credentials in [
        Credentials::File(dir.path().join("missing")),
        Credentials::File(empty.clone()),
        Credentials::NkeyFile(empty),
        Credentials::Text(Secret::new("no credentials")),
    ] {
        settings.credentials = credentials;
        let error = attempt(&settings).await?;
        ensure!(
            matches!(error, ConnectError::CredentialsUnreadable { .. }),
            "{error:?}"
        );
        ensure!(
            Bus::connect(&settings).await.is_err(),
            "the daemon is told at once"
        );
    }
    Ok(())
}

async fn wrong_ca() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (own, own_pem) = authority("own")?;
    let (_, other_pem) = authority("other")?;
    let key = rcgen::KeyPair::generate()?;
    let cert = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?
        .signed_by(&key, &own)?;
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).map(|()| path)
    };
    let cert = file("cert.pem", &cert.pem())?;
    let key = file("key.pem", &key.serialize_pem())?;
    let (own, other) = (file("own.pem", &own_pem)?, file("other.pem", &other_pem)?);
    let config = format!("tls {{ cert_file: {cert:?}, key_file: {key:?} }}");
    let server = PlainServer::start(dir.path(), &config).await?;
    let mut settings = ConnectSettings::new(&server.url());
    settings.tls.ca = Some(other);
    let error = attempt(&settings).await?;
    ensure!(matches!(error, ConnectError::WrongCa { .. }), "{error:?}");
    settings.tls.ca = Some(own);
    Client::connect(&settings, LIMIT).await?;
    settings.tls.ca = Some(dir.path().join("missing"));
    fails_in_tls(&settings).await
}

/// Fails unless TLS is what prevents the connection.
async fn fails_in_tls(settings: &ConnectSettings) -> anyhow::Result<()> {
    let error = attempt(settings).await?;
    ensure!(matches!(error, ConnectError::Tls { .. }), "{error:?}");
    Ok(())
}

async fn no_tls() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let server = PlainServer::start(dir.path(), "").await?;
    let mut settings = ConnectSettings::new(&server.url());
    settings.tls.required = true;
    fails_in_tls(&settings).await
}

async fn silent() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("nats://{}", listener.local_addr()?);
    let error = Client::connect(&ConnectSettings::new(&url), Duration::from_millis(300)).await;
    let error = error.err().context("it connected")?;
    ensure!(matches!(error, ConnectError::TimedOut { .. }), "{error:?}");
    Ok(())
}

async fn jetstream_off() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let server = PlainServer::start(dir.path(), "").await?;
    let client = Client::connect(&ConnectSettings::new(&server.url()), LIMIT).await?;
    let error = client.check_jetstream().await.expect_err("there is none");
    ensure!(matches!(error, ConnectError::JetStreamOff { .. }), "{error:?}");
    ensure!(client.leaves().await.is_err(), "no leaves without JetStream");
    Ok(())
}

async fn wrong_domain() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let config = format!(
        "jetstream {{ store_dir: {:?}, domain: own }}",
        dir.path().join("js")
    );
    let server = PlainServer::start(dir.path(), &config).await?;
    let mut settings = ConnectSettings::new(&server.url());
    for (domain, is_there) in [(None, true), (Some("own"), true), (Some("other"), false)] {
        settings.jetstream_domain = domain.map(str::to_owned);
        let client = Client::connect(&settings, LIMIT).await?;
        let checked = client.check_jetstream().await;
        if is_there {
            checked?;
            continue;
        }
        let error = chain(&checked.expect_err("no such domain"));
        ensure!(
            error.contains("no JetStream answers in the domain other") && !error.contains("is off"),
            "{error}"
        );
        let error = chain(&client.leaves().await.expect_err("no such domain"));
        ensure!(error.contains("jetstream_domain in a context"), "{error}");
    }
    Ok(())
}

async fn no_permission() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let config = format!(
        "jetstream {{ store_dir: {:?} }}\nauthorization {{ users: [{{ user: a, password: b, \
         permissions: {{ publish: \"x\", subscribe: \"_INBOX.>\" }} }}] }}",
        dir.path().join("js")
    );
    let server = PlainServer::start(dir.path(), &config).await?;
    let mut settings = ConnectSettings::new(&server.url());
    settings.credentials = Credentials::Password {
        user: "a".to_owned(),
        password: Secret::new("b"),
    };
    let client = Client::connect(&settings, LIMIT).await?;
    let error = client.check_jetstream().await.expect_err("it is forbidden");
    let ConnectError::NoPermission { what } = error else {
        anyhow::bail!("{error:?}")
    };
    ensure!(what.contains("$JS.API.INFO"), "{what}");
    let called = client
        .call_raw(&leaf(), "leaf", "show", Vec::new(), Default::default())
        .await;
    ensure!(
        matches!(called, Err(leaf_bus::client::CallError::NoPermission { .. })),
        "{called:?}"
    );
    Ok(())
}

async fn comes_later() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let identity = Identity::open_or_create(&dir.path().join("identity"), &leaf())?;
    let port = free_port().await?;
    let url = format!("nats://127.0.0.1:{port}");
    let bus = Bus::connect(&settings_for(
        &url,
        &identity.leaf_credentials(),
        &daemon_caller(),
    ))
    .await?;
    let mut status = bus.status();
    let why = |s: &Status| matches!(s, Status::Disconnected { problem, .. } if problem.contains("refused"));
    tokio::time::timeout(LIMIT, status.wait_for(why))
        .await
        .context("the reason in the status")??;
    let mut settings = settings(dir.path());
    settings.listen.set_port(port);
    let _server = EmbeddedServer::start(settings, &identity).await?;
    tokio::time::timeout(LIMIT, bus.connected())
        .await
        .context("the connection")?;
    bus.check_jetstream().await?;
    ensure!(status.borrow().is_connected());
    Ok(())
}

async fn says_why() -> anyhow::Result<()> {
    let bus = Bus::connect(&ConnectSettings::new("nats://no-such-host.invalid:4222")).await?;
    let mut status = bus.status();
    let why = |s: &Status| matches!(s, Status::Disconnected { problem, .. } if problem.contains("DNS"));
    tokio::time::timeout(LIMIT, status.wait_for(why))
        .await
        .context("the reason in the status")??;
    Ok(())
}

async fn comes_back() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let bus = super::daemon(&site).await?;
    let before = bus.generation();
    let mut status = bus.status();
    status.mark_unchanged();
    let pid = runs(&site.server, None).await?;
    kill(pid)?;
    tokio::time::timeout(LIMIT, status.wait_for(|s| !s.is_connected()))
        .await
        .context("the loss")??;
    tokio::time::timeout(LIMIT, bus.connected())
        .await
        .context("the connection")?;
    ensure!(bus.generation() > before);
    until("JetStream", || async { bus.check_jetstream().await.ok() }).await
}

async fn embedded_context() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let file = site.dir.path().join("context.json");
    site.identity.write_context(&file, &site.server.client_url())?;
    let settings = context::load(file.to_str())?;
    let client = Client::connect(&settings, LIMIT).await?;
    ensure!(client.caller().as_str() == "admin");
    client.check_jetstream().await?;
    ensure!(client.leaves().await?.heard.is_empty());
    Ok(())
}

async fn container_health() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let name = ContainerName::new("Web")?;
    let binding = ContainerBinding::new(&leaf(), &name, &site.server.client_url());
    let credentials = tempfile::NamedTempFile::new()?;
    std::fs::write(&credentials, site.identity.container_credentials(&name).expose())?;
    let container = ContainerClient::connect(&binding, credentials.path()).await?;
    let admin = admin(&site).await?;
    let asked = until("the container's health", || async {
        admin
            .request_container_health(&leaf(), &name, Duration::from_secs(1))
            .await
            .ok()
    });
    let health = tokio::select! {
        served = container.serve_health(|| br#"{"ready":true}"#.to_vec()) => anyhow::bail!("{served:?}"),
        health = asked => health?,
    };
    ensure!(health == serde_json::json!({ "ready": true }), "{health}");
    for settings in daemon_settings(&site) {
        ensure!(settings.caller() == Some(daemon_caller()));
    }
    Ok(())
}

async fn leaf_is_gone() -> anyhow::Result<()> {
    // It closes each connection at once.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let attempt = async || {
        let accepted = tokio::time::timeout(LIMIT, listener.accept()).await;
        accepted.context("it tries again")??;
        anyhow::Ok(Instant::now())
    };
    let keys = tempfile::tempdir()?;
    let identity = Identity::open_or_create(keys.path(), &leaf())?;
    let name = ContainerName::new("Web")?;
    let url = format!("nats://{}", listener.local_addr()?);
    let binding = ContainerBinding::new(&leaf(), &name, &url);
    let credentials = keys.path().join("container.creds");
    std::fs::write(&credentials, identity.container_credentials(&name).expose())?;
    let container = ContainerClient::connect(&binding, &credentials).await?;
    // A daemon pauses for 2.5 s at most.
    let longer = Duration::from_secs(3);
    let mut pauses = Vec::new();
    let mut last = attempt().await?;
    while pauses.last().is_none_or(|pause| *pause < longer) {
        ensure!(pauses.len() < 12, "the pauses don't grow: {pauses:?}");
        let next = attempt().await?;
        pauses.push(next - last);
        last = next;
    }
    // The next pause is of more than 6 s.
    container.hurry();
    let hurried = attempt().await? - last;
    ensure!(hurried < Duration::from_secs(5), "{hurried:?} after the hint");
    Ok(())
}

//! Servers that are started with what the module's pure functions render.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use libtest_mimic::Trial;
use tokio::time::timeout;

use crate::site::{Authority, Site, nats_server, wait_for};
use crate::{LIMIT, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "nats_server_accepts_every_configuration_that_the_module_renders",
            accepts_every_sample,
        ),
        trial(
            "nats_server_refuses_a_setting_that_it_does_not_know",
            refuses_unknown_settings,
        ),
        trial(
            "a_leafs_server_listens_on_its_one_address_and_on_nothing_else",
            listens_on_one_address,
        ),
        trial(
            "a_leafs_server_takes_nobody_without_credentials_nor_with_those_of_another_operator",
            takes_nobody_without_credentials,
        ),
        trial(
            "jetstream_is_in_the_leafs_domain_and_within_its_limits",
            jetstream_has_domain_and_limits,
        ),
        trial(
            "monitoring_is_reachable_on_the_loopback_where_it_is_wanted",
            monitoring_on_the_loopback,
        ),
        trial(
            "a_server_that_learns_at_its_start_who_it_is_does_not_start_without_that",
            identity_from_the_host,
        ),
        trial(
            "a_client_without_a_certificate_is_refused_where_certificates_are_verified",
            verifies_certificates,
        ),
        trial(
            "messages_cross_between_leaf_and_hub_and_those_of_object_buckets_do_not",
            objects_stay_where_they_are,
        ),
    ]
}

async fn check(file: &Path) -> anyhow::Result<Output> {
    Ok(nats_server()
        .await?
        .arg("-t")
        .arg("-c")
        .arg(file)
        .output()
        .await?)
}

async fn accepts_every_sample() -> anyhow::Result<()> {
    let site = Site::new("edge", &Authority::new()?)?;
    let samples = site.render().await?;
    assert!(samples.len() >= 7, "{samples:?}");
    for (name, file) in samples {
        let output = check(&file).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        assert!(said.contains("is valid"), "{name}: {said}");
    }
    Ok(())
}

async fn refuses_unknown_settings() -> anyhow::Result<()> {
    let site = Site::new("edge", &Authority::new()?)?;
    let file = &site.render().await?["leaf"];
    fs::write(file, fs::read_to_string(file)? + "ping_intervall: \"2s\"\n")?;
    let output = check(file).await?;
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("ping_intervall"), "{said}");
    Ok(())
}

async fn listens_on_one_address() -> anyhow::Result<()> {
    let site = Site::new("edge", &Authority::new()?)?;
    let server = site.start("leaf").await?;
    assert_eq!(server.listeners()?, [site.socket()?]);
    let elsewhere = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), site.socket()?.port());
    let refused = tokio::net::TcpStream::connect(elsewhere).await;
    assert!(refused.is_err(), "it listens on {elsewhere} as well");
    Ok(())
}

async fn takes_nobody_without_credentials() -> anyhow::Result<()> {
    let authority = Authority::new()?;
    let (site, other) = (Site::new("edge", &authority)?, Site::new("other", &authority)?);
    let _server = site.start("leaf").await?;
    let anonymous = site.connect_with(async_nats::ConnectOptions::new()).await;
    let error = format!("{:#}", anonymous.err().context("an anonymous client was let in")?);
    assert!(error.contains("authorization"), "{error}");
    let stranger = async_nats::ConnectOptions::new()
        .credentials_file(other.path("user.creds"))
        .await?;
    let stranger = site.connect_with(stranger).await;
    let error = format!("{:#}", stranger.err().context("a stranger was let in")?);
    assert!(error.contains("authorization"), "{error}");
    site.connect().await?.flush().await?;
    Ok(())
}

async fn jetstream_has_domain_and_limits() -> anyhow::Result<()> {
    let site = Site::new("edge", &Authority::new()?)?;
    let _server = site.start("full_resolver").await?;
    // The same name as the leaf's: `nats-values.nix` says so.
    let context = async_nats::jetstream::with_domain(site.connect().await?, "edge-1");
    let config = |max_bytes| async_nats::jetstream::stream::Config {
        name: "S".to_owned(),
        subjects: vec!["s.>".to_owned()],
        max_bytes,
        ..Default::default()
    };
    let beyond = context.create_stream(config(17 << 20)).await;
    assert!(beyond.is_err(), "a stream beyond max_file_store was made");
    context.create_stream(config(1 << 20)).await?;
    context.publish("s.1", "x".into()).await?.await?;
    assert!(site.path("data/jetstream").is_dir());
    assert!(site.path("data/accounts").is_dir());
    Ok(())
}

async fn monitoring_on_the_loopback() -> anyhow::Result<()> {
    let site = Site::new("edge", &Authority::new()?)?;
    let server = site.start("durable_and_monitored").await?;
    let port = serde_json::from_value(site.given["monitoringPort"].clone())?;
    let mut expected = vec![site.socket()?, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)];
    let mut listeners = server.listeners()?;
    listeners.sort();
    expected.sort();
    assert_eq!(listeners, expected);
    Ok(())
}

async fn identity_from_the_host() -> anyhow::Result<()> {
    let site = Site::new("edge", &Authority::new()?)?;
    for missing in ["operator.jwt", "accounts.conf"] {
        let (here, away) = (site.path(missing), site.path("away"));
        fs::rename(&here, &away)?;
        let error = site.start("of_the_host").await.err();
        let error = format!(
            "{:#}",
            error.with_context(|| format!("it started without {missing}"))?
        );
        assert!(error.contains(missing), "{error}");
        fs::rename(&away, &here)?;
    }
    let server = site.start("of_the_host").await?;
    assert_eq!(server.listeners()?, [site.socket()?]);
    let certificate = |options: async_nats::ConnectOptions| {
        options.add_client_certificate(site.path("hub.pem"), site.path("hub.key"))
    };
    let anonymous = site
        .connect_with(certificate(async_nats::ConnectOptions::new()))
        .await;
    let error = format!("{:#}", anonymous.err().context("an anonymous client was let in")?);
    assert!(error.contains("authorization"), "{error}");
    let admin = async_nats::ConnectOptions::new()
        .credentials(site.identity.admin_credentials().expose())?
        .custom_inbox_prefix("_INBOX.admin");
    site.connect_with(certificate(admin)).await?.flush().await?;
    Ok(())
}

async fn verifies_certificates() -> anyhow::Result<()> {
    let site = Site::new("hub", &Authority::new()?)?;
    let server = site.start("hub").await?;
    site.connect()
        .await
        .err()
        .context("a client without a certificate was let in")?;
    wait_for("the server's word on the client", async || {
        let log = fs::read_to_string(&server.log)?;
        Ok(log.contains("client didn't provide a certificate").then_some(()))
    })
    .await
}

async fn objects_stay_where_they_are() -> anyhow::Result<()> {
    let authority = Authority::new()?;
    let hub = Site::new("hub", &authority)?;
    let mut leaf = Site::new("edge", &authority)?;
    let hub_server = hub.start("hub").await?;
    assert_eq!(hub_server.listeners()?.len(), 2);
    leaf.given["hub"] = format!("tls://{}:{}", hub.address, hub.given["leafnodesPort"]).into();
    // The leaf's user at the hub.
    fs::copy(hub.path("user.creds"), leaf.path("hub.creds"))?;
    let _leaf_server = leaf.start("connected").await?;

    let certified = async_nats::ConnectOptions::new()
        .credentials_file(hub.path("user.creds"))
        .await?
        .add_client_certificate(leaf.path("hub.pem"), leaf.path("hub.key"));
    let at_hub = hub.connect_with(certified).await?;
    let at_leaf = leaf.connect().await?;

    // Each direction: what is published at one side arrives at the other in its order, so nothing is still under way when
    // the last message has arrived.
    for (from, to, never) in [
        (&at_leaf, &at_hub, vec!["$O.bucket.C.x", "private.x"]),
        (&at_hub, &at_leaf, vec!["$O.bucket.C.x"]),
    ] {
        let mut all = to.subscribe(">").await?;
        to.flush().await?;
        wait_for("the leaf's connection to its hub", async || {
            from.publish("free.first", "x".into()).await?;
            from.flush().await?;
            Ok(timeout(Duration::from_millis(100), all.next()).await.ok())
        })
        .await?;
        for subject in &never {
            from.publish((*subject).to_owned(), "x".into()).await?;
        }
        from.publish("free.last", "x".into()).await?;
        loop {
            let message = timeout(LIMIT, all.next())
                .await?
                .context("the subscription ended")?;
            assert!(
                !never.contains(&message.subject.as_str()),
                "{} crossed",
                message.subject
            );
            if message.subject.as_str() == "free.last" {
                break;
            }
        }
    }
    Ok(())
}

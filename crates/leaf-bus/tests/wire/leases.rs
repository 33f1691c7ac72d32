//! Who holds a leaf's name.

use anyhow::ensure;
use async_nats::jetstream;
use async_nats::jetstream::stream::StorageType;
use leaf_bus::client::Client;
use leaf_bus::connect::{Bus, ConnectSettings};
use leaf_bus::identity::{Permissions, daemon_caller};
use leaf_bus::kv::StateBucket;
use leaf_bus::lease::{Lease, LeaseError};
use leaf_bus::stream::{EventStream, StreamError, StreamSettings};
use leaf_core::beat::Beat;
use leaf_core::id::LeafName;
use leaf_core::subject;
use libtest_mimic::Trial;

use super::{admin, instance, kill, site_with_daemon, until};
use crate::plain::PlainServer;
use crate::support::{LIMIT, leaf, runs, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("a_lease_is_held_seen_and_given_back", held),
        trial(
            "a_beat_that_is_unreadable_or_of_another_leaf_harms_no_other",
            hostile,
        ),
        trial(
            "a_lease_of_a_dead_run_can_be_taken_over_and_the_dead_one_is_told",
            taken_over,
        ),
        trial("a_lease_that_was_forgotten_is_taken_again", forgotten),
        trial("a_lease_is_renewed_after_the_server_was_killed", killed),
        trial("a_lease_takes_the_form_that_the_account_allows", forms),
        trial(
            "a_lease_that_the_account_does_not_allow_is_refused_with_the_reason",
            refused,
        ),
        trial(
            "a_stream_that_no_limit_allows_is_refused_with_its_size_and_the_room_that_there_is",
            no_room,
        ),
    ]
}

pub(super) fn beat(run: u128, sequence: u64) -> Beat {
    let time = jiff::Timestamp::from_second(1_700_000_000).expect("a time");
    Beat {
        leaf: leaf(),
        instance: instance(run),
        hostname: "here".to_owned(),
        version: "0.1.0".to_owned(),
        started_at: time,
        sequence,
        time,
        interval_seconds: 10,
        labels: [("site".to_owned(), "hall-2".to_owned())].into(),
        nix: None,
    }
}

/// The beats of the listed leaves.
pub(super) async fn beats(client: &Client) -> anyhow::Result<Vec<Beat>> {
    let leaves = client.leaves().await?;
    Ok(leaves.heard.into_iter().map(|heard| heard.beat).collect())
}

async fn held() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let client = admin(&site).await?;
    let mut lease = Lease::acquire(&bus, &beat(1, 1), false).await?;
    let other = Lease::acquire(&bus, &beat(2, 1), false).await;
    let Err(LeaseError::HeldBy(holder)) = other else {
        anyhow::bail!("{other:?}")
    };
    ensure!(*holder == beat(1, 1));
    for n in 2..5 {
        lease.renew(&beat(1, n)).await?;
    }
    // The server's own time, whatever the leaf's clock says, which is of 2023 here.
    let heard = client.leaves().await?.heard[0].at;
    let age = jiff::Timestamp::now().duration_since(heard).abs();
    ensure!(age < jiff::SignedDuration::from_secs(60), "{heard}");
    ensure!(beats(&client).await? == [beat(1, 4)]);
    lease.release().await?;
    ensure!(client.leaves().await?.heard.is_empty());
    Lease::acquire(&bus, &beat(2, 1), false).await?;
    Ok(())
}

async fn hostile() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let client = admin(&site).await?;
    Lease::acquire(&bus, &beat(1, 1), false).await?;
    // As a stolen leaf may do: it publishes on the subject of its own beat.
    let forged = serde_json::to_vec(&beat(9, 9))?;
    for (thief, body) in [("garbage", &b"{"[..]), ("thief", &forged), ("zebra", b"[1]")] {
        let thief = LeafName::new(thief)?;
        let credentials = site
            .identity
            .trusted_credentials(&daemon_caller(), &Permissions::keeper(&thief));
        let user = site.connect(&credentials, &daemon_caller()).await?;
        let context = jetstream::new(user.client);
        context
            .publish(subject::beat(&thief), body.to_vec().into())
            .await?
            .await?;
    }
    let leaves = client.leaves().await?;
    ensure!(
        leaves.heard.len() == 1 && leaves.heard[0].beat == beat(1, 1),
        "{leaves:?}"
    );
    let unreadable: Vec<&str> = leaves.unreadable.iter().map(|leaf| leaf.as_str()).collect();
    ensure!(unreadable == ["garbage", "thief", "zebra"], "{leaves:?}");
    Ok(())
}

async fn taken_over() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let mut dead = Lease::acquire(&bus, &beat(1, 1), false).await?;
    let mut lease = Lease::acquire(&bus, &beat(2, 1), true).await?;
    let renewed = dead.renew(&beat(1, 2)).await;
    ensure!(
        matches!(&renewed, Err(LeaseError::HeldBy(holder)) if holder.instance == instance(2)),
        "{renewed:?}"
    );
    lease.renew(&beat(2, 2)).await?;
    dead.release().await?;
    ensure!(
        beats(&admin(&site).await?).await? == [beat(2, 2)],
        "giving back an old one changes nothing"
    );
    // One's own is taken again without a word.
    Lease::acquire(&bus, &beat(2, 3), false).await?;
    Ok(())
}

async fn forgotten() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let mut lease = Lease::acquire(&bus, &beat(1, 1), false).await?;
    let user = site
        .connect(&site.identity.leaf_credentials(), &daemon_caller())
        .await?;
    let context = jetstream::new(user.client);
    // As `max_age` does it: the message is gone.
    context.get_stream("LEASES").await?.purge().await?;
    lease.renew(&beat(1, 2)).await?;
    context.delete_stream("LEASES").await?;
    lease.renew(&beat(1, 3)).await?;
    let stream = context.get_stream("LEASES").await?;
    let config = &stream.cached_info().config;
    ensure!(
        config.max_age.as_secs() == leaf_core::beat::LEASE_SECONDS && config.max_messages_per_subject == 1
    );
    context.get_stream("LEASES").await?.purge().await?;
    Lease::acquire(&bus, &beat(2, 1), false).await?;
    Ok(())
}

async fn killed() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let mut lease = Lease::acquire(&bus, &beat(1, 1), false).await?;
    kill(runs(&site.server, None).await?)?;
    let mut sequence = 1;
    let lease = &mut lease;
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        sequence += 1;
        bus.connected().await;
        match lease.renew(&beat(1, sequence)).await {
            Ok(()) => break,
            Err(LeaseError::Stream(_)) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            Err(other) => return Err(other.into()),
        }
        ensure!(tokio::time::Instant::now() < deadline, "renewed within the limit");
    }
    let client = admin(&site).await?;
    until("the leaves", || async {
        let found = beats(&client).await.ok()?;
        (found == [beat(1, sequence)]).then_some(found)
    })
    .await?;
    Ok(())
}

/// A server whose clients are in one account with these limits, with a client that may do everything.
async fn limited(limits: &str) -> anyhow::Result<(tempfile::TempDir, PlainServer, Bus, jetstream::Context)> {
    let dir = tempfile::tempdir()?;
    let store = dir.path().join("js");
    let config = format!(
        "jetstream {{ store_dir: {store:?}, max_mem: 64MB, max_file: 1GB }}\n\
         accounts {{ A {{ jetstream: {limits}, users: [{{ user: a, password: a }}] }} }}\nno_auth_user: a"
    );
    let server = PlainServer::start(dir.path(), &config).await?;
    let mut settings = ConnectSettings::new(&server.url());
    settings.inbox_prefix = "_INBOX.leafd".to_owned();
    let bus = Bus::connect(&settings).await?;
    tokio::time::timeout(LIMIT, bus.connected()).await?;
    let client = async_nats::connect(server.url()).await?;
    Ok((dir, server, bus, jetstream::new(client)))
}

async fn forms() -> anyhow::Result<()> {
    use StorageType::{File, Memory};
    let (mega, kilo) = (1 << 20, 1 << 10);
    for (limits, storage, max_bytes, bucket_bytes) in [
        ("{ max_mem: 8MB, max_file: 512MB }", Memory, -1, -1),
        ("{ max_mem: 0, max_file: 512MB }", File, -1, -1),
        (
            "{ max_mem: 8MB, max_file: 512MB, max_bytes_required: true }",
            Memory,
            mega,
            256 * mega,
        ),
        (
            "{ max_mem: 0, max_file: 40MB, max_bytes_required: true }",
            File,
            mega,
            16 * mega,
        ),
        (
            "{ max_mem: 8MB, max_file: 100MB, max_bytes_required: true, mem_max_stream_bytes: 65536, \
             disk_max_stream_bytes: 4194304 }",
            Memory,
            64 * kilo,
            4 * mega,
        ),
    ] {
        let (_dir, _server, bus, context) = limited(limits).await?;
        let mut lease = Lease::acquire(&bus, &beat(1, 1), false).await?;
        lease.renew(&beat(1, 2)).await?;
        let other = Lease::acquire(&bus, &beat(2, 1), false).await;
        ensure!(matches!(other, Err(LeaseError::HeldBy(_))), "{limits}: {other:?}");
        let config = context.get_stream("LEASES").await?.cached_info().config.clone();
        ensure!(
            config.storage == storage
                && config.max_bytes == max_bytes
                && config.max_messages_per_subject == 1,
            "{limits}: {config:?}"
        );
        lease.release().await?;
        // A stream that exists is kept in its form.
        Lease::acquire(&bus, &beat(2, 1), false).await?;

        let bucket = StateBucket::ensure(&bus, &leaf()).await?;
        bucket.apply(&[("leaf".to_owned(), Some("{}".into()))]).await?;
        StateBucket::ensure(&bus, &leaf()).await?;
        let config = context
            .get_stream("KV_leaf_state")
            .await?
            .cached_info()
            .config
            .clone();
        ensure!(config.max_bytes == bucket_bytes, "{limits}: {config:?}");
    }
    Ok(())
}

async fn no_room() -> anyhow::Result<()> {
    let small = 32 << 20;
    for (limits, says) in [
        (
            "{ max_mem: 8MB, max_file: 100MB }",
            vec![
                "needs 1073741824 bytes (1024.0 MiB)",
                "the account has 100663296 bytes (96.0 MiB) left",
                "its limit for files is 104857600 bytes (100.0 MiB)",
                "lower events.max_bytes",
            ],
        ),
        (
            "{ max_mem: 8MB, max_file: 512MB, disk_max_stream_bytes: 67108864 }",
            vec![
                "allows a stream 67108864 bytes (64.0 MiB) at most",
                "`disk_max_stream_bytes`",
            ],
        ),
        (
            "enabled",
            vec![
                "more than the NATS server has left of its `max_file`",
                "take 4194304 bytes",
            ],
        ),
    ] {
        let (_dir, _server, bus, context) = limited(limits).await?;
        let other = jetstream::stream::Config {
            name: "OTHER".to_owned(),
            subjects: vec!["other".to_owned()],
            max_bytes: 4 << 20,
            ..Default::default()
        };
        context.create_stream(other).await?;
        let settings = StreamSettings::default();
        let error = EventStream::ensure(&bus, &leaf(), settings.clone(), 1)
            .await
            .expect_err(limits);
        let text = error.to_string();
        for part in &says {
            ensure!(text.contains(part), "{limits}: {part:?}: {text}");
        }
        ensure!(error.is_refusal(), "{text}");
        // Its own size does not count where it is to grow.
        let small = StreamSettings {
            max_bytes: small,
            ..settings.clone()
        };
        EventStream::ensure(&bus, &leaf(), small, 1).await?;
        let error = EventStream::ensure(&bus, &leaf(), settings, 1)
            .await
            .expect_err(limits);
        for part in &says {
            ensure!(error.to_string().contains(part), "{limits}: {part:?}: {error}");
        }
    }
    Ok(())
}

async fn refused() -> anyhow::Result<()> {
    let stream = |name: &str, subject: &str| jetstream::stream::Config {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        ..Default::default()
    };
    let limits = "{ max_mem: 8MB, max_file: 100MB, max_streams: 1 }";
    for (limits, other, says) in [
        (limits, stream("OTHER", "other"), "maximum number of streams"),
        (
            "enabled",
            stream("LEASES", "other"),
            "remove it, or give the leaves an account without it",
        ),
        ("enabled", stream("OTHER", "leaf.v1.beat.*"), "overlap"),
    ] {
        let (_dir, _server, bus, context) = limited(limits).await?;
        let name = other.name.clone();
        context.create_stream(other).await?;
        let Err(LeaseError::Stream(error)) = Lease::acquire(&bus, &beat(1, 1), false).await else {
            anyhow::bail!("{name} is no obstacle")
        };
        ensure!(
            error.is_refusal() && error.to_string().contains(says),
            "{name}: {error}"
        );
        context.delete_stream(&name).await?;
        until("the lease", || async {
            Lease::acquire(&bus, &beat(1, 1), false).await.ok()
        })
        .await?;
    }
    let (_dir, _server, bus, _) = limited("disabled").await?;
    let Err(LeaseError::Stream(error)) = Lease::acquire(&bus, &beat(1, 1), false).await else {
        anyhow::bail!("an account without JetStream")
    };
    ensure!(
        error == StreamError::JetStreamOff && error.is_refusal(),
        "{error:?}"
    );
    Ok(())
}

//! Who holds a leaf's name.

use anyhow::ensure;
use async_nats::jetstream;
use leaf_bus::identity::daemon_caller;
use leaf_bus::lease::{Lease, LeaseError};
use leaf_core::beat::Beat;
use libtest_mimic::Trial;

use super::{admin, instance, kill, site_with_daemon, until};
use crate::support::{leaf, runs, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("a_lease_is_held_seen_and_given_back", held),
        trial(
            "a_lease_of_a_dead_run_can_be_taken_over_and_the_dead_one_is_told",
            taken_over,
        ),
        trial("a_lease_that_was_forgotten_is_taken_again", forgotten),
        trial("a_lease_is_renewed_after_the_server_was_killed", killed),
    ]
}

fn beat(run: u128, sequence: u64) -> Beat {
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
    }
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
    ensure!(client.leaves().await? == [beat(1, 4)]);
    lease.release().await?;
    ensure!(client.leaves().await?.is_empty());
    Lease::acquire(&bus, &beat(2, 1), false).await?;
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
        admin(&site).await?.leaves().await? == [beat(2, 2)],
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
    let deadline = tokio::time::Instant::now() + crate::support::LIMIT;
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
        client.leaves().await.ok().filter(|l| *l == [beat(1, sequence)])
    })
    .await?;
    Ok(())
}

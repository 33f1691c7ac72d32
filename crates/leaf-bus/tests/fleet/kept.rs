//! The streams of the hub that the agent alone writes: an agent goes on with those of an earlier version, and several agents
//! write the same ones.

use anyhow::ensure;
use async_nats::jetstream::stream::{Config, SubjectTransform};
use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use jiff::Timestamp;
use leaf_core::beat::Beat;
use leaf_core::json::to_json;
use leaf_core::labels::Labels;
use leaf_core::subject;
use libtest_mimic::Trial;

use super::{TestHub, instance, stolen};
use crate::support::{leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("the_hubs_streams_of_earlier_agents_are_taken_over", of_before),
        trial(
            "agents_that_begin_at_once_write_the_same_streams_also_after_one_has_lost_them",
            several,
        ),
    ]
}

pub(super) fn beat(leaf: &leaf_core::id::LeafName) -> Beat {
    let now = Timestamp::now();
    Beat {
        leaf: leaf.clone(),
        instance: instance(),
        hostname: "edge".to_owned(),
        version: "1".to_owned(),
        started_at: now,
        sequence: 0,
        time: now,
        interval_seconds: 10,
        labels: Labels::default(),
        nix: None,
    }
}

async fn subjects(js: &Context, stream: &str) -> anyhow::Result<Vec<String>> {
    Ok(js.get_stream(stream).await?.cached_info().config.subjects.clone())
}

async fn of_before() -> anyhow::Result<()> {
    let hub = TestHub::start().await?;
    let js = jetstream::new(hub.agent().await?);
    for (name, written, stored) in [
        (
            "LEASES",
            "leaf.v1.copy.*.beat",
            Some("leaf.v1.beat.{{wildcard(1)}}"),
        ),
        (
            "KV_leaf_state",
            "leaf.v1.copy.*.state.>",
            Some("$KV.leaf_state.{{wildcard(1)}}.>"),
        ),
        ("KV_fleet", "$KV.fleet.>", None),
    ] {
        js.create_stream(Config {
            name: name.to_owned(),
            subjects: vec![written.to_owned()],
            subject_transform: stored.map(|stored| SubjectTransform {
                source: written.to_owned(),
                destination: stored.to_owned(),
            }),
            max_messages_per_subject: 1,
            allow_direct: true,
            ..Config::default()
        })
        .await?;
    }
    js.create_stream(Config {
        name: "FLEET".to_owned(),
        subjects: vec!["leaf.v1.fleet.>".to_owned()],
        allow_direct: true,
        ..Config::default()
    })
    .await?;
    let of_before = to_json(&beat(&leaf()));
    js.publish("leaf.v1.copy.edge.beat", of_before.into())
        .await?
        .await?;
    js.publish("leaf.v1.copy.edge.state.leaf", "{}".into())
        .await?
        .await?;

    // An agent of an earlier version may write while the transform is changed: then its beat is stored under the subject that it
    // was written on.
    let leases = js.get_stream("LEASES").await?.cached_info().config.clone();
    js.update_stream(Config {
        subject_transform: None,
        ..leases
    })
    .await?;
    let stray = to_json(&beat(&leaf()));
    js.publish("leaf.v1.copy.edge.beat", stray.into()).await?.await?;

    let keeper = hub.keeper().await?;
    let (registry, states) = (keeper.registry().await?, keeper.state_copy().await?);
    registry.put_beat(&beat(&stolen())).await?;
    let entry = |key: &str| (key.to_owned(), Some(Bytes::from_static(b"{}")));
    states.apply(&leaf(), vec![entry("job.x")]).await?;
    let mut leaves: Vec<_> = registry
        .leaves()
        .await?
        .into_iter()
        .map(|known| known.beat.leaf)
        .collect();
    leaves.sort();
    ensure!(leaves == [leaf(), stolen()], "{leaves:?}");
    let entries = states.entries(&leaf()).await?;
    ensure!(entries.keys().eq(["job.x", "leaf"]), "{entries:?}");
    for stream in ["LEASES", "KV_leaf_state", "KV_fleet", "FLEET"] {
        let found = subjects(&js, stream).await?;
        let is_secret = |subject: &String| {
            let what = subject.split('.').nth(4).unwrap_or_default();
            subject::is_written(subject.trim_end_matches('>'), what)
        };
        ensure!(found.len() == 1 && found.iter().all(is_secret), "{found:?}");
    }
    Ok(())
}

async fn several() -> anyhow::Result<()> {
    let hub = TestHub::start().await?;
    let (one, other) = (hub.keeper().await?, hub.keeper().await?);
    let (first, second) = tokio::join!(one.registry(), other.registry());
    let (first, second) = (first?, second?);
    first.put_beat(&beat(&leaf())).await?;
    second.put_beat(&beat(&stolen())).await?;
    ensure!(first.leaves().await?.len() == 2);
    // The store is another one, with other keys.
    let js = jetstream::new(hub.agent().await?);
    let before = subjects(&js, "LEASES").await?;
    js.delete_stream("LEASES").await?;
    second.put_beat(&beat(&stolen())).await?;
    ensure!(subjects(&js, "LEASES").await? != before);
    first.put_beat(&beat(&leaf())).await?;
    ensure!(second.leaves().await?.len() == 2);
    Ok(())
}

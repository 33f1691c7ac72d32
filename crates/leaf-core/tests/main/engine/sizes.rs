//! Events fit into what the NATS server accepts: snapshots are cut, long texts shortened, and what can't be cut is refused.

use std::collections::BTreeMap;

use leaf_core::command::{CreateContainer, SetContainer, UpdateContainer};
use leaf_core::container::ContainerPhase;
use leaf_core::event::EventRecord;
use leaf_core::id::{ContainerName, StorePath};
use leaf_core::job::{BuildResult, BuiltDerivation, JobOutcome, JobResult};
use leaf_core::problem::ProblemCode;
use leaf_core::spec::{ContainerOptions, ContainerSource};
use leaf_core::state::fit_entry;

use super::steps::Fate;
use super::world::World;
use super::{admin, with_running};

const LIMITS: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];

/// The bytes of a message beside the event: see the server's count of headers and body.
fn on_the_wire(event: &EventRecord) -> usize {
    event.wire_bytes() + "NATS/1.0\r\n\r\nNats-Expected-Last-Sequence: \r\n".len() + 20
}

fn largest(world: &World) -> usize {
    world.events().iter().map(on_the_wire).max().unwrap_or(0)
}

fn path(name: &str) -> StorePath {
    StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}")).expect("a path")
}

fn work(world: &mut World, build: &Result<JobResult, String>) {
    world.commit(usize::MAX);
    while !world.work.is_empty() {
        world.finish_work(0, Fate::Done, build);
        world.commit(usize::MAX);
    }
}

#[test]
fn the_history_of_a_container_with_many_large_revisions_fits_into_every_message() {
    for limit in LIMITS {
        let (mut world, web) = with_running();
        world.max_message_bytes = Some(limit);
        // As much as a server with this limit takes; 60 events make several snapshots.
        let text = "x".repeat((limit / 8).min(7 << 10));
        for n in 0..60 {
            let set = SetContainer {
                name: web.clone(),
                patch: serde_json::json!({ "environment": { "A": format!("{n}{text}"), "B": text } }),
                if_generation: None,
            };
            world.send(admin(), None, set.into());
            work(&mut world, &Err("the builder failed".to_owned()));
        }
        let reply = world.last_reply().expect("answered");
        assert!(reply.is_ok(), "{limit}: {reply:?}");
        let snapshots = world
            .kinds()
            .iter()
            .filter(|kind| kind.contains("snapshotted"))
            .count();
        assert!(snapshots >= 2, "{limit}: {snapshots}");
        assert!(largest(&world) <= limit, "{limit}: {}", largest(&world));
        world.come_to_rest();
        assert_eq!(world.phase(&web), Some(ContainerPhase::Running));
        let kept = world.state().containers[&web].revisions.len();
        assert!(kept > 0 || limit == LIMITS[0], "{limit}: no revision is left");
        // After a crash it is the same.
        let before = world.state().containers.clone();
        world.crash(Fate::Late, false);
        assert_eq!(world.state().containers, before);
    }
}

#[test]
fn a_container_with_a_large_spec_and_a_long_error_fits_into_a_snapshot() {
    let limit = 16 << 10;
    let (mut world, _) = with_running();
    world.max_message_bytes = Some(limit);
    let name = ContainerName::new("new").expect("a name");
    let text = "x".repeat(6 << 10);
    let create = CreateContainer {
        name: name.clone(),
        source: ContainerSource::Template {
            name: "minimal".to_owned(),
        },
        start: true,
        options: ContainerOptions {
            environment: BTreeMap::from([("A".to_owned(), text.clone()), ("B".to_owned(), text)]),
            ..ContainerOptions::default()
        },
    };
    world.send(admin(), None, create.into());
    work(
        &mut world,
        &Err(format!("the first\n{}the last", "x".repeat(12 << 10))),
    );
    for _ in 0..60 {
        let update = UpdateContainer {
            name: name.clone(),
            source: None,
            if_generation: None,
        };
        world.send(admin(), None, update.into());
        work(
            &mut world,
            &Err(format!("the first\n{}the last", "x".repeat(12 << 10))),
        );
    }
    let kinds = world.kinds();
    assert!(kinds.iter().any(|kind| kind.contains("snapshotted")), "{kinds:?}");
    assert!(largest(&world) <= limit, "{}", largest(&world));
    let error = world.state().containers[&name]
        .error
        .as_deref()
        .expect("it failed");
    assert!(
        error.contains("the first") && error.ends_with("the last"),
        "{error}"
    );
}

#[test]
fn the_result_and_the_error_of_a_job_are_shortened_to_what_the_server_accepts() {
    for limit in LIMITS {
        let (mut world, _) = with_running();
        world.max_message_bytes = Some(limit);
        let name = ContainerName::new("new").expect("a name");
        let create = CreateContainer {
            name: name.clone(),
            source: ContainerSource::Template {
                name: "minimal".to_owned(),
            },
            start: true,
            options: ContainerOptions::default(),
        };
        world.send(admin(), None, create.into());
        let references: Vec<StorePath> = (0..30_000).map(|n| path(&format!("dependency-{n}"))).collect();
        let result = BuildResult {
            store_path: path("new"),
            outputs: BTreeMap::from([("out".to_owned(), path("new"))]),
            derivation: None,
            build_time_ms: 1,
            closure_size_bytes: 1,
            references: references.clone(),
            references_left_out: 0,
            others_left_out: 0,
            sources: Vec::new(),
            built: 1,
            origin: None,
            nar_size_bytes: None,
            nar_sha256: BTreeMap::default(),
            others: (0..30_000)
                .map(|n| BuiltDerivation {
                    derivation: None,
                    outputs: BTreeMap::from([("out".to_owned(), path(&format!("other-{n}")))]),
                    ..BuiltDerivation::default()
                })
                .collect(),
        };
        work(&mut world, &Ok(JobResult::Build(result)));
        assert_eq!(world.phase(&name), Some(ContainerPhase::Running), "{limit}");
        let job = world.state().jobs.values().last().expect("the job");
        let Some(JobResult::Build(kept)) = &job.result else {
            panic!("{job:?}");
        };
        let known = kept.references.len() as u64 + kept.references_left_out;
        assert_eq!(known, 30_000, "{limit}");
        assert!(kept.references_left_out > 0 && references.starts_with(&kept.references));
        assert!(!kept.others.is_empty() && kept.others_left_out > 0, "{limit}");
        assert_eq!(kept.others.len() as u64 + kept.others_left_out, 30_000, "{limit}");

        let update = UpdateContainer {
            name: name.clone(),
            source: None,
            if_generation: None,
        };
        world.send(admin(), None, update.into());
        let error = format!("error: the first\n{}\nthe last", "\u{1b}[31m…\n".repeat(1 << 19));
        work(&mut world, &Err(error));
        let job = world.state().jobs.values().last().expect("the job");
        let error = job.error.as_deref().expect("it failed");
        assert!(error.starts_with("error: the first"), "{limit}");
        assert!(
            error.ends_with("the last") && error.contains("bytes left out"),
            "{limit}"
        );
        assert!(largest(&world) <= limit, "{limit}: {}", largest(&world));
        world.come_to_rest();
    }
}

#[test]
fn a_command_whose_event_the_server_would_not_accept_is_refused_and_leaves_nothing() {
    for limit in LIMITS {
        let (mut world, web) = with_running();
        world.max_message_bytes = Some(limit);
        let before = world.state().clone();
        let text = "x".repeat(7 << 10);
        let set = SetContainer {
            name: web.clone(),
            patch: serde_json::json!({ "environment": { "A": text } }),
            if_generation: None,
        };
        world.send(admin(), None, set.into());
        world.commit(usize::MAX);
        let reply = world.last_reply().cloned().expect("answered");
        if limit > 8 << 10 {
            assert!(reply.is_ok(), "{limit}: {reply:?}");
        } else {
            let problem = reply.expect_err("it is refused");
            assert_eq!(problem.code, ProblemCode::TooLarge);
            assert!(problem.detail.contains("raise its `max_payload`"), "{problem}");
            assert_eq!(world.state(), &before);
        }
        work(&mut world, &Err("the builder failed".to_owned()));
        world.come_to_rest();
    }
}

#[test]
fn an_entry_loses_its_oldest_revisions_first() {
    let entry = serde_json::json!({ "name": "web", "revisions": [{ "generation": 1 }, { "generation": 2 }, { "generation": 3 }] });
    let json = entry.to_string();
    assert_eq!(
        fit_entry(json.as_bytes(), json.len()),
        Some(json.clone().into_bytes())
    );
    let fitting = fit_entry(json.as_bytes(), json.len() - 1).expect("it fits without a revision");
    let fitting: serde_json::Value = serde_json::from_slice(&fitting).expect("JSON");
    assert_eq!(
        fitting["revisions"],
        serde_json::json!([{ "generation": 2 }, { "generation": 3 }])
    );
    assert_eq!(fit_entry(json.as_bytes(), 10), None);
    assert_eq!(fit_entry(br#"{"name":"a device"}"#, 10), None);
}

#[test]
fn an_interrupted_job_says_why_in_few_bytes() {
    let (mut world, _) = with_running();
    world.max_message_bytes = Some(LIMITS[0]);
    world.send(
        admin(),
        None,
        leaf_core::command::Build::of([leaf_core::job::Installable::Template {
            name: "minimal".to_owned(),
        }])
        .into(),
    );
    world.commit(usize::MAX);
    world.end_job(JobOutcome::Interrupted("y".repeat(1 << 20)));
    world.commit(usize::MAX);
    assert!(largest(&world) <= LIMITS[0], "{}", largest(&world));
    world.come_to_rest();
}

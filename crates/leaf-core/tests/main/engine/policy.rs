//! Jobs and containers together, step by step: what is started when, and what an end means for others.

use leaf_core::command::*;
use leaf_core::container::ContainerPhase;
use leaf_core::decide::NameHolder;
use leaf_core::engine::Capabilities;
use leaf_core::id::{ContainerName, JobId};
use leaf_core::job::{Installable, Job, JobPhase};
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::spec::{ContainerOptions, ContainerSource, ContainerSpec, SpecRun};

use super::admin;
use super::steps::Fate;
use super::world::{MAX_JOBS, MAX_QUEUED_JOBS, World};

fn world() -> World {
    let mut world = World::new();
    // Its scan, which every run begins with.
    world.commit(1);
    end_work(&mut world);
    world
}

/// Ends the oldest piece of work; a build fails unless it was cancelled.
fn end_work(world: &mut World) {
    world.finish_work(0, Fate::Done, &Err("the builder failed".to_owned()));
    world.commit(usize::MAX);
}

/// Sends a command, and returns the reply if there is one once all is durable.
fn call(world: &mut World, command: impl Into<Command>) -> Option<Result<Vec<u8>, Problem>> {
    world.send(admin(), None, command.into());
    world.commit(usize::MAX);
    world.last_reply().cloned()
}

fn refused(world: &mut World, command: impl Into<Command>) -> Problem {
    let reply = call(world, command).expect("answered at once");
    reply.expect_err("refused")
}

/// Sends a build that is about another thing than those before.
fn build(world: &mut World) -> JobId {
    let installable = Installable::Template {
        name: format!("minimal-{}", world.state().jobs.len()),
    };
    let timeout_seconds = None;
    let reply = call(
        world,
        Build {
            timeout_seconds,
            ..Build::of([installable])
        },
    );
    let body = reply.expect("answered at once").expect("accepted");
    serde_json::from_slice::<JobAccepted>(&body)
        .expect("its reply")
        .job
}

fn cancel(world: &mut World, id: JobId) -> Option<Job> {
    let body = call(world, CancelJob { id })?.expect("it is cancelled");
    Some(serde_json::from_slice(&body).expect("its reply"))
}

/// Makes a container of a template, and returns its name and the job that builds it.
fn create(world: &mut World, name: &str) -> (ContainerName, JobId) {
    let name = ContainerName::new(name).expect("a name");
    let create = CreateContainer {
        name: name.clone(),
        source: ContainerSource::Template {
            name: "minimal".to_owned(),
        },
        start: true,
        options: ContainerOptions::default(),
    };
    call(world, create).expect("answered at once").expect("accepted");
    let job = world.state().containers[&name].desired.build_job;
    (name, job.expect("a job builds it"))
}

fn phases(world: &World, jobs: &[JobId]) -> Vec<JobPhase> {
    jobs.iter().map(|id| world.state().jobs[id].phase).collect()
}

#[test]
fn queued_jobs_start_in_order_also_after_a_crash_and_can_be_cancelled() {
    use JobPhase::{Cancelled, Failed, Queued, Running};
    let mut world = world();
    let jobs: Vec<JobId> = (0..MAX_JOBS + MAX_QUEUED_JOBS)
        .map(|_| build(&mut world))
        .collect();
    assert_eq!(phases(&world, &jobs), [Running, Running, Queued, Queued, Queued]);
    let installable = Installable::Template {
        name: "minimal".to_owned(),
    };
    let problem = refused(&mut world, Build::of([installable]));
    assert_eq!(problem.code, ProblemCode::Overloaded);
    assert!(problem.detail.contains("3 jobs are already queued"), "{problem}");

    let cancelled = cancel(&mut world, jobs[2]).expect("it does not run");
    assert_eq!(cancelled.phase, Cancelled);
    assert_eq!(cancelled.started_at, None);
    assert_eq!(
        phases(&world, &jobs),
        [Running, Running, Cancelled, Queued, Queued]
    );

    world.crash(Fate::Late, false);
    world.commit(usize::MAX);
    assert_eq!(
        phases(&world, &jobs),
        [Running, Running, Cancelled, Queued, Queued]
    );
    let running = world.running_jobs();
    assert_eq!(running, jobs[..2], "the same are followed");
    // First the scan with which a run begins, then the first job.
    end_work(&mut world);
    end_work(&mut world);
    assert_eq!(
        phases(&world, &jobs),
        [Failed, Running, Cancelled, Running, Queued]
    );
    assert_eq!(cancel(&mut world, jobs[1]), None, "it runs");
    end_work(&mut world);
    assert_eq!(
        phases(&world, &jobs),
        [Failed, Cancelled, Cancelled, Running, Running]
    );
    let reply = world.last_reply().expect("it has ended").as_ref();
    let job: Job = serde_json::from_slice(reply.expect("cancelled")).expect("a job");
    assert_eq!(job.error.as_deref(), Some("cancelled by admin"));
}

#[test]
fn cancelling_a_queued_or_a_running_build_fails_its_container() {
    let mut world = world();
    let running: Vec<_> = (0..MAX_JOBS)
        .map(|n| create(&mut world, &format!("c{n}")))
        .collect();
    let (waits, queued) = create(&mut world, "waits");
    let start = StartContainer {
        name: waits.clone(),
        if_generation: None,
    };
    let problem = refused(&mut world, start);
    assert_eq!(problem.code, ProblemCode::Conflict);
    assert!(problem.detail.contains("still building"), "{problem}");

    let cancelled = cancel(&mut world, queued).expect("it does not run");
    assert_eq!(cancelled.phase, JobPhase::Cancelled);
    assert_eq!(cancel(&mut world, running[0].1), None, "it runs");
    end_work(&mut world);
    for name in [&waits, &running[0].0] {
        let container = &world.state().containers[name];
        assert_eq!(container.phase, ContainerPhase::Failed);
        let error = container.error.as_deref().expect("it says why");
        assert!(error.contains("cancelled"), "{error}");
    }
    assert_eq!(world.phase(&running[1].0), Some(ContainerPhase::Building));
    // The name is taken until the container is destroyed.
    let destroy = DestroyContainer {
        name: waits.clone(),
        if_generation: None,
    };
    assert_eq!(call(&mut world, destroy), None);
    world.come_to_rest();
    assert_eq!(world.phase(&waits), None);
}

#[test]
fn destroying_a_container_cancels_its_build() {
    for is_queued in [false, true] {
        let mut world = world();
        for _ in 0..if is_queued { MAX_JOBS } else { 0 } {
            build(&mut world);
        }
        let (name, job) = create(&mut world, "web");
        let destroy = DestroyContainer {
            name: name.clone(),
            if_generation: None,
        };
        assert_eq!(call(&mut world, destroy), None);
        if is_queued {
            assert_eq!(phases(&world, &[job]), [JobPhase::Cancelled]);
        }
        world.come_to_rest();
        assert_eq!(world.phase(&name), None);
        let job = &world.state().jobs[&job];
        assert_eq!(job.phase, JobPhase::Cancelled);
        assert_eq!(job.error.as_deref(), Some("cancelled by admin"));
        let kinds = world.kinds();
        let of_it: Vec<&str> = kinds
            .iter()
            .filter_map(|kind| kind.strip_prefix("cim.leaf.container."))
            .collect();
        assert_eq!(of_it, ["desired.v1", "desired.v1", "destroyed.v1"]);
    }
}

#[test]
fn a_create_or_apply_under_a_name_in_use_on_the_host_is_refused_and_leaves_nothing_behind() {
    let name = |name: &str| ContainerName::new(name).expect("a name");
    let holders = [
        (name("made"), NameHolder::Foreign, "or adopt that container"),
        (name("fixed"), NameHolder::Declared, "NixOS configuration"),
        (
            name("odd"),
            NameHolder::Unreadable("/etc/nixos-containers/odd.conf: it is a FIFO".to_owned()),
            "/etc/nixos-containers/odd.conf: it is a FIFO; remove the file",
        ),
    ];
    let mut world = world();
    create(&mut world, "own");
    let events = world.kinds().len();
    for (name, holder, _) in &holders {
        world.in_use.names.insert(name.clone(), holder.clone());
    }
    // One that a foreign file replaced is still this leaf's in the state, and says so.
    world.in_use.names.insert(name("own"), NameHolder::Foreign);
    let source = ContainerSource::Template {
        name: "minimal".to_owned(),
    };
    for (name, _, says) in &holders {
        let create = CreateContainer {
            name: name.clone(),
            source: source.clone(),
            start: true,
            options: ContainerOptions::default(),
        };
        let apply = ApplyContainer {
            name: name.clone(),
            spec: ContainerSpec {
                source: source.clone(),
                run: SpecRun::Running,
                paused: false,
                options: ContainerOptions::default(),
            },
            if_generation: None,
        };
        for problem in [refused(&mut world, create), refused(&mut world, apply)] {
            assert_eq!(problem.code, ProblemCode::AlreadyExists);
            assert!(problem.detail.contains(says), "{problem}");
        }
        assert_eq!(world.phase(name), None);
    }
    assert_eq!(world.kinds().len(), events, "nothing is recorded");
    let destroy = DestroyContainer {
        name: name("own"),
        if_generation: None,
    };
    call(&mut world, destroy);
    assert!(
        world.kinds().len() > events,
        "the leaf's own is changed as before"
    );
}

#[test]
fn a_leaf_that_can_run_no_containers_or_jobs_says_why_in_its_report_as_in_its_refusals() {
    let report = |world: &mut World| {
        let body = call(world, ShowLeaf {})
            .expect("answered at once")
            .expect("a report");
        serde_json::from_slice::<LeafReport>(&body).expect("its reply")
    };
    let well = report(&mut world());
    assert_eq!((well.no_containers, well.no_nix_jobs), (None, None));

    let mut world = World::of(Capabilities {
        containers: Err("no server of its own".to_owned()),
        nix: Err("no program nix".to_owned()),
        secrets: Err("no helper".to_owned()),
    });
    let shown = report(&mut world);
    assert_eq!(shown.no_containers.as_deref(), Some("no server of its own"));
    assert_eq!(shown.no_nix_jobs.as_deref(), Some("no program nix"));
    let start = StartContainer {
        name: ContainerName::new("web").expect("a name"),
        if_generation: None,
    };
    let problem = refused(&mut world, start);
    assert_eq!(problem.code, ProblemCode::Unsupported);
    assert_eq!(Some(problem.detail), shown.no_containers);
    let build = Build::of([Installable::Template {
        name: "minimal".to_owned(),
    }]);
    assert_eq!(Some(refused(&mut world, build).detail), shown.no_nix_jobs);
}

#[test]
fn a_full_disk_of_the_store_refuses_builds_and_says_so_once_until_it_has_room_again() {
    const FILLED: &str = "cim.leaf.leaf.store_filled.v1";
    const HAS_ROOM: &str = "cim.leaf.leaf.store_has_room.v1";
    let told = |world: &World| {
        let mut kinds = world.kinds();
        kinds.retain(|kind| kind.contains(".store_"));
        kinds
    };
    let mut world = world();
    // 800 are kept.
    world.store_free_bytes = Some(799);
    for _ in 0..2 {
        let problem = refused(
            &mut world,
            Build::of([Installable::Template {
                name: "minimal".to_owned(),
            }]),
        );
        assert_eq!(problem.code, ProblemCode::DiskFull);
        assert!(
            problem.detail.contains("nix.min_free_bytes keeps 800"),
            "{}",
            problem.detail
        );
    }
    assert_eq!(told(&world), [FILLED]);
    let gc = Gc {
        dry_run: false,
        older_than_seconds: None,
        free_bytes: None,
        timeout_seconds: None,
    };
    call(&mut world, gc).expect("answered").expect("accepted");
    // A restart forgets nothing of it.
    world.crash(Fate::Done, false);
    world.commit(usize::MAX);
    assert_eq!(told(&world), [FILLED]);
    // Builds are accepted, but there is not yet so much room that it is said.
    world.store_free_bytes = Some(899);
    build(&mut world);
    assert_eq!(told(&world), [FILLED]);
    world.store_free_bytes = Some(900);
    build(&mut world);
    assert_eq!(told(&world), [FILLED, HAS_ROOM]);
}

//! Which queued jobs start, and what a leaf offers: priorities, features with counts, pressure.

use leaf_core::command::*;
use leaf_core::id::{JobId, StorePath};
use leaf_core::job::{Installable, JobPhase};
use leaf_core::placement::demand::{Features, Priority};
use leaf_core::placement::offer::{Offer, Verdict};
use leaf_core::placement::pressure::Pressure;
use leaf_core::problem::{Problem, ProblemCode};

use super::admin;
use super::steps::Fate;
use super::world::World;

fn world() -> World {
    let mut world = World::new();
    // Its scan, which every run begins with.
    world.commit(1);
    end_work(&mut world);
    world
}

fn end_work(world: &mut World) {
    world.finish_work(0, Fate::Done, &Err("the builder failed".to_owned()));
    world.commit(usize::MAX);
}

fn of(name: &str) -> Installable {
    Installable::Flake {
        reference: format!("github:owner/repo#{name}"),
    }
}

fn kvm(count: u16) -> Features {
    [("kvm".to_owned(), count)].into()
}

fn call(world: &mut World, command: impl Into<Command>) -> Result<Vec<u8>, Problem> {
    world.send(admin(), None, command.into());
    world.commit(usize::MAX);
    world.last_reply().expect("answered at once").clone()
}

fn build(world: &mut World, name: &str, features: Features, priority: Priority) -> JobId {
    let build = Build {
        features,
        priority,
        ..Build::of([of(name)])
    };
    let body = call(world, build).expect("accepted");
    serde_json::from_slice::<JobAccepted>(&body)
        .expect("its reply")
        .job
}

fn if_room(world: &mut World, name: &str, features: Features) -> Result<JobId, Problem> {
    let build = Build {
        features,
        only_if_room: true,
        ..Build::of([of(name)])
    };
    call(world, build).map(|body| {
        serde_json::from_slice::<JobAccepted>(&body)
            .expect("its reply")
            .job
    })
}

fn offer(world: &mut World, name: &str, features: Features) -> Offer {
    let systems = ["x86_64-linux".to_owned(), "i686-linux".to_owned()].into();
    offer_of(
        world,
        Build {
            systems,
            features,
            ..Build::of([of(name)])
        },
    )
}

fn offer_of(world: &mut World, build: Build) -> Offer {
    let before = world.state().sequence;
    let body = call(world, OfferBuild { build }).expect("an offer");
    assert_eq!(world.state().sequence, before, "it records nothing");
    serde_json::from_slice(&body).expect("its reply")
}

fn running(world: &World, jobs: &[JobId]) -> Vec<bool> {
    let is_running = |id| world.state().jobs[id].phase == JobPhase::Running;
    jobs.iter().map(is_running).collect()
}

#[test]
fn a_job_of_a_higher_priority_starts_first() {
    use Priority::{High, Low, Normal};
    let mut world = world();
    let first = ["a", "b"].map(|name| build(&mut world, name, Features::new(), Normal));
    assert_eq!(running(&world, &first), [true, true]);
    let queued = [("low", Low), ("normal", Normal), ("high", High)]
        .map(|(name, priority)| build(&mut world, name, Features::new(), priority));
    for expected in [[false, false, true], [false, true, true], [true, true, true]] {
        end_work(&mut world);
        let has_run = |id: JobId| world.state().jobs[&id].started_at.is_some();
        assert_eq!(queued.map(has_run), expected);
    }
}

#[test]
fn a_job_of_low_priority_is_not_starved() {
    use Priority::{High, Low};
    let mut world = world();
    for name in ["a", "b"] {
        build(&mut world, name, Features::new(), High);
    }
    let low = build(&mut world, "low", Features::new(), Low);
    world.pass(3600);
    build(&mut world, "high", Features::new(), High);
    end_work(&mut world);
    assert_eq!(running(&world, &[low]), [true], "it has waited for an hour");
}

#[test]
fn a_job_waits_for_its_features_without_being_starved_and_blocks_nobody_who_needs_none() {
    use Priority::Normal;
    let mut world = world();
    let one = build(&mut world, "one", kvm(1), Normal);
    let both = build(&mut world, "both", kvm(2), Normal);
    // There is one more kvm, but the job before waits for it.
    let later = build(&mut world, "later", kvm(1), Normal);
    assert_eq!(running(&world, &[one, both, later]), [true, false, false]);
    assert_eq!(
        offer(&mut world, "x", Features::new()).verdict,
        Verdict::Room,
        "they don't count"
    );
    let plain = build(&mut world, "plain", Features::new(), Normal);
    assert_eq!(
        running(&world, &[one, both, later, plain]),
        [true, false, false, true]
    );
    end_work(&mut world);
    assert_eq!(running(&world, &[both, later]), [true, false]);
    world.crash(Fate::Late, false);
    world.commit(usize::MAX);
    assert_eq!(
        running(&world, &[both, later]),
        [true, false],
        "also after a crash"
    );
    assert_eq!(offer(&mut world, "x", kvm(1)).features_free, kvm(0));
}

#[test]
fn what_a_leaf_does_not_have_is_refused_at_once() {
    let mut world = world();
    let refused = |world: &mut World, features| if_room(world, "a", features).expect_err("refused");
    let problem = refused(&mut world, kvm(3));
    assert_eq!(problem.code, ProblemCode::Unsupported);
    assert!(
        problem
            .detail
            .contains("takes 3 of the feature kvm, and the leaf has 2"),
        "{problem}"
    );
    let problem = refused(&mut world, [("gpu".to_owned(), 1)].into());
    assert!(problem.detail.contains("no feature gpu"), "{problem}");
    let problem = refused(&mut world, [("a b".to_owned(), 1)].into());
    assert_eq!(problem.code, ProblemCode::Invalid);
    let offered = offer(&mut world, "a", kvm(3));
    assert_eq!(offered.verdict, Verdict::Never);
    assert!(offered.why.expect("why").contains("the leaf has 2"));
}

#[test]
fn a_queued_job_for_a_feature_that_the_settings_took_away_fails_at_the_next_start() {
    let mut world = world();
    let running_one = build(&mut world, "one", kvm(1), Priority::Normal);
    let both = build(&mut world, "both", kvm(2), Priority::Normal);
    let later = build(&mut world, "later", kvm(1), Priority::Normal);
    world.features = kvm(1);
    world.crash(Fate::Late, false);
    world.commit(usize::MAX);
    let job = &world.state().jobs[&both];
    assert_eq!(job.phase, JobPhase::Failed);
    assert!(
        job.error
            .as_ref()
            .expect("why")
            .contains("takes 2 of the feature kvm, and the leaf has 1")
    );
    assert_eq!(running(&world, &[running_one, later]), [true, false]);
    // First the scan with which a run begins, then the job.
    end_work(&mut world);
    end_work(&mut world);
    assert_eq!(running(&world, &[later]), [true]);
}

#[test]
fn only_if_room_is_refused_once_the_job_would_wait_unless_it_is_about_the_same() {
    let mut world = world();
    assert_eq!(offer(&mut world, "a", kvm(2)).verdict, Verdict::Room);
    let a = if_room(&mut world, "a", kvm(2)).expect("there is room");
    let mine = offer(&mut world, "a", Features::new());
    assert_eq!((mine.verdict, mine.why), (Verdict::WorksOnIt, None));
    let other = offer(&mut world, "b", kvm(1));
    assert_eq!(other.verdict, Verdict::Waits);
    assert!(other.why.expect("why").contains("the feature kvm"));
    let problem = if_room(&mut world, "b", kvm(1)).expect_err("it would wait");
    assert_eq!(problem.code, ProblemCode::NoRoom);
    // A job about the same takes no place while the first one runs.
    let again = if_room(&mut world, "a^dev", Features::new()).expect("the same");
    assert_eq!(running(&world, &[again]), [false]);
    let b = if_room(&mut world, "b", Features::new()).expect("one more runs at once");
    assert_eq!(running(&world, &[a, again, b]), [true, false, true]);
    let full = offer(&mut world, "c", Features::new());
    assert_eq!(
        (full.verdict, full.running, full.queued, full.max_jobs),
        (Verdict::Waits, 2, 1, 2)
    );
    assert!(full.why.expect("why").contains("3 jobs are open"));
    assert_eq!(
        if_room(&mut world, "c", Features::new()).expect_err("full").code,
        ProblemCode::NoRoom
    );
    end_work(&mut world);
    assert_eq!(
        running(&world, &[again]),
        [true],
        "its turn comes after the first one"
    );
}

#[test]
fn a_host_under_pressure_has_no_room_and_one_that_does_not_measure_it_is_judged_by_its_jobs() {
    let mut world = world();
    let pressure = |memory| {
        Some(Pressure {
            cpu: 74.9,
            memory,
            io: 0.0,
        })
    };
    world.pressure = pressure(20.0);
    let at_the_limit = offer(&mut world, "a", Features::new());
    assert_eq!(at_the_limit.verdict, Verdict::Room);
    assert_eq!(at_the_limit.pressure, world.pressure);
    world.pressure = pressure(31.5);
    let offered = offer(&mut world, "a", Features::new());
    assert_eq!(offered.verdict, Verdict::Strained);
    assert!(offered.why.expect("why").contains("waited for memory"));
    let problem = if_room(&mut world, "a", Features::new()).expect_err("no room");
    assert!(
        problem.detail.contains("above 20 % the leaf has no room"),
        "{problem}"
    );
    // Pressure is no reason to hold up a job that does not ask for room.
    let job = build(&mut world, "a", Features::new(), Priority::Normal);
    assert_eq!(running(&world, &[job]), [true]);
    world.pressure = None;
    assert_eq!(offer(&mut world, "b", Features::new()).verdict, Verdict::Room);
}

#[test]
fn what_nix_evaluates_is_for_its_own_system_and_derivations_are_for_each_that_it_builds_for() {
    let mut world = world();
    let on = |system: &str, installable: Installable| Build {
        systems: [system.to_owned()].into(),
        ..Build::of([installable])
    };
    let drv = Installable::StorePath {
        path: StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello.drv").expect("a path"),
    };
    let verdict = |world: &mut World, build| offer_of(world, build).verdict;
    assert_eq!(verdict(&mut world, on("x86_64-linux", of("a"))), Verdict::Room);
    assert_eq!(
        verdict(&mut world, on("aarch64-linux", drv.clone())),
        Verdict::Room
    );
    let other = offer_of(&mut world, on("aarch64-linux", of("a")));
    assert_eq!(other.verdict, Verdict::Never);
    assert_eq!(
        other.why.as_deref(),
        Some("the leaf evaluates for x86_64-linux, not for aarch64-linux")
    );
    let problem = call(&mut world, on("riscv64-linux", drv)).expect_err("another system");
    assert_eq!(problem.code, ProblemCode::Unsupported);
    assert_eq!(
        problem.detail,
        "the leaf builds for x86_64-linux, aarch64-linux, not for riscv64-linux"
    );
}

#[test]
fn a_leaf_offers_nothing_while_it_would_refuse_the_build() {
    let mut world = world();
    let bad = offer_of(&mut world, Build::of([]));
    assert_eq!(bad.verdict, Verdict::Never);
    assert!(bad.why.expect("why").contains("nothing to build"));
    for name in ["a", "b", "c", "d", "e"] {
        build(&mut world, name, Features::new(), Priority::Normal);
    }
    let full = offer(&mut world, "f", Features::new());
    assert_eq!(full.verdict, Verdict::Never);
    assert!(full.why.expect("why").contains("3 jobs are already queued"));
    world.disk_is_low = true;
    assert_eq!(offer(&mut world, "a", Features::new()).verdict, Verdict::Never);
}

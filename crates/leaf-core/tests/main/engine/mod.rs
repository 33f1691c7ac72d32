//! The engine under random inputs, with a model of the shell and of the host, and a crash after any step.
//!
//! The seed is printed; `CIM_LEAF_SEED` repeats a run.

mod boots;
mod boundaries;
mod changes;
mod labels;
mod placement;
mod policy;
mod renewals;
mod secrets;
mod signed;
mod sizes;
mod steps;
mod works;
mod world;

use leaf_core::command::*;
use leaf_core::container::{ContainerPhase, Exit, ForeignContainer};
use leaf_core::id::{Caller, CommandId, ContainerName, StorePath};
use leaf_core::job::{BuildResult, JobResult};
use leaf_core::spec::{ContainerOptions, ContainerSource};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{RngSeed, TestRunner};

use self::steps::Fate;
use self::world::World;
use crate::strategies::{
    age_file, build_result, command, inventory, name, patch, secret_name, spec, store_path,
};

/// A step of a schedule.
#[derive(Debug, Clone)]
enum Action {
    Send(Caller, Option<CommandId>, Command),
    CancelJob(Option<CommandId>, usize),
    SendAgain(usize),
    Commit(usize),
    /// A piece of work on the host ends.
    Work(usize, Fate, Result<JobResult, String>),
    BeginObservation,
    DeliverObservation,
    /// A container moves by itself.
    Moves(ContainerName, Exit),
    OutOfMemory(ContainerName),
    /// Another program removes a container from the host.
    Removed(ContainerName),
    /// Another program creates a container.
    Foreign(ContainerName, StorePath, bool),
    /// From now on this system becomes ready, or does not.
    System(StorePath, bool),
    Hardware(leaf_core::hardware::Inventory),
    Publish,
    /// Hours pass, and the leaf looks at the clock.
    Pass(u64),
    DiskFull(bool),
    DiskLow(bool),
    Crash {
        steps: Fate,
        boot: bool,
    },
    Stop,
}

impl World {
    fn take(&mut self, action: Action) {
        match action {
            Action::Send(caller, id, command) => self.send(caller, id, command),
            Action::CancelJob(command_id, nth) => {
                if let Some(id) = self.nth_job(nth) {
                    self.send(admin(), command_id, CancelJob { id }.into());
                }
            }
            Action::SendAgain(nth) => self.send_again(nth),
            Action::Commit(records) => self.commit(records),
            Action::Work(nth, fate, build) => self.finish_work(nth, fate, &build),
            Action::BeginObservation => self.begin_observation(),
            Action::DeliverObservation => self.deliver_observation(),
            Action::Moves(name, exit) => {
                let now = self.now();
                self.host.moves(&name, exit, now);
            }
            Action::OutOfMemory(name) => self.host.out_of_memory(&name),
            Action::Removed(name) => {
                self.host.containers.remove(&name);
            }
            Action::Foreign(name, toplevel, running) => {
                let foreign = ForeignContainer {
                    name: name.clone(),
                    declarative: false,
                    running,
                    toplevel: Some(toplevel),
                    address: None,
                    host_users: true,
                };
                if !self.host.containers.contains_key(&name) {
                    self.host.foreign.insert(name, foreign);
                }
            }
            Action::System(toplevel, is_good) => {
                if is_good {
                    self.host.broken.remove(&toplevel);
                } else {
                    self.host.broken.insert(toplevel);
                }
            }
            Action::Hardware(inventory) => self.inventory = inventory,
            Action::Publish => self.publish(),
            Action::Pass(hours) => self.pass(hours * 3600 + 1),
            Action::DiskFull(is_full) => self.disk_is_full = is_full,
            Action::DiskLow(is_low) => self.disk_is_low = is_low,
            Action::Crash { steps, boot } => self.crash(steps, boot),
            Action::Stop => self.stop(),
        }
    }
}

fn admin() -> Caller {
    Caller::new("admin").expect("a caller")
}

fn command_id() -> impl Strategy<Value = Option<CommandId>> {
    option::weighted(
        0.7,
        (0u8..8).prop_map(|n| CommandId::new(format!("c{n}")).expect("an id")),
    )
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Done),
        1 => (0u8..3).prop_map(Fate::HelperGone),
        1 => (0u8..3).prop_map(Fate::Fails),
        1 => Just(Fate::Unobserved),
        1 => Just(Fate::Late),
    ]
}

/// Commands that are likely to be accepted.
fn likely() -> impl Strategy<Value = Command> {
    let source = || {
        prop_oneof![
            2 => store_path().prop_map(|path| ContainerSource::Toplevel { path }),
            1 => Just(ContainerSource::Template { name: "minimal".to_owned() }),
        ]
    };
    let if_generation = None;
    prop_oneof![
        4 => (name(), source(), any::<bool>()).prop_map(|(name, source, start)| {
            CreateContainer { name, source, start, options: ContainerOptions::default() }.into()
        }),
        2 => (name(), spec()).prop_map(move |(name, spec)| ApplyContainer { name, spec, if_generation }.into()),
        2 => (name(), option::of(source()))
            .prop_map(move |(name, source)| UpdateContainer { name, source, if_generation }.into()),
        1 => (name(), patch()).prop_map(move |(name, patch)| SetContainer { name, patch, if_generation }.into()),
        4 => name().prop_map(move |name| StartContainer { name, if_generation }.into()),
        4 => name().prop_map(move |name| StopContainer { name, if_generation }.into()),
        3 => name().prop_map(move |name| DestroyContainer { name, if_generation }.into()),
        2 => name().prop_map(|name| AdoptContainer { name }.into()),
        3 => (secret_name(), age_file()).prop_map(|(name, age)| SetSecret { name, age }.into()),
        1 => secret_name().prop_map(|name| RemoveSecret { name }.into()),
        1 => Just(RescanHardware {}.into()),
        1 => Just(ShowLeaf {}.into()),
        1 => Just(ListContainers {}.into()),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let caller = select(&["admin", "bob"][..]).prop_map(|name| Caller::new(name).expect("a caller"));
    let exit = select(&[Exit::Code { code: 0 }, Exit::Code { code: 1 }, Exit::Lost][..]);
    let build = prop_oneof![
        2 => build_result().prop_map(|result| Ok(JobResult::Build(result))),
        1 => Just(Err("the builder failed".to_owned())),
    ];
    let commands = prop_oneof![4 => likely(), 1 => command()];
    prop_oneof![
        10 => (caller, command_id(), commands).prop_map(|(caller, id, command)| Action::Send(caller, id, command)),
        1 => (command_id(), 0usize..8).prop_map(|(id, nth)| Action::CancelJob(id, nth)),
        3 => (0usize..5).prop_map(Action::SendAgain),
        8 => (1usize..5).prop_map(Action::Commit),
        10 => (0usize..8, fate(), build).prop_map(|(nth, fate, build)| Action::Work(nth, fate, build)),
        2 => Just(Action::BeginObservation),
        2 => Just(Action::DeliverObservation),
        2 => (name(), exit).prop_map(|(name, exit)| Action::Moves(name, exit)),
        1 => name().prop_map(Action::OutOfMemory),
        1 => name().prop_map(Action::Removed),
        2 => (name(), store_path(), any::<bool>())
            .prop_map(|(name, toplevel, running)| Action::Foreign(name, toplevel, running)),
        1 => (store_path(), any::<bool>()).prop_map(|(path, is_good)| Action::System(path, is_good)),
        1 => inventory().prop_map(Action::Hardware),
        1 => Just(Action::Publish),
        3 => (0u64..20).prop_map(Action::Pass),
        1 => any::<bool>().prop_map(Action::DiskFull),
        1 => any::<bool>().prop_map(Action::DiskLow),
        2 => (fate(), any::<bool>()).prop_map(|(steps, boot)| Action::Crash { steps, boot }),
        1 => Just(Action::Stop),
    ]
}

/// How many histories are tried.
const CASES: u32 = 256;

#[test]
fn each_command_is_answered_once_and_each_container_reaches_its_desired_state_or_has_an_error() {
    let given = std::env::var("CIM_LEAF_SEED").ok();
    let seed = given.map_or_else(rand_seed, |text| text.parse().expect("CIM_LEAF_SEED is a number"));
    println!("CIM_LEAF_SEED={seed}");
    let mut runner = TestRunner::new(ProptestConfig {
        cases: CASES,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&vec(action(), 1..80), |actions| {
        let mut world = World::new();
        for action in actions {
            world.take(action);
        }
        world.come_to_rest();
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("CIM_LEAF_SEED={seed}: {error}");
    }
}

/// A leaf with a container that runs, and its name.
fn with_running() -> (World, ContainerName) {
    let mut world = World::new();
    let name = ContainerName::new("web").expect("a name");
    let create = CreateContainer {
        name: name.clone(),
        source: ContainerSource::Toplevel {
            path: StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-minimal").expect("a path"),
        },
        start: true,
        options: ContainerOptions::default(),
    };
    // Its scan, which every run begins with.
    world.commit(1);
    world.finish_work(0, Fate::Done, &built());
    world.send(admin(), None, create.into());
    world.commit(usize::MAX);
    world.finish_work(0, Fate::Done, &built());
    world.commit(usize::MAX);
    assert_eq!(world.phase(&name), Some(ContainerPhase::Running));
    assert!(world.work.is_empty());
    (world, name)
}

fn built() -> Result<JobResult, String> {
    Err("the builder failed".to_owned())
}

fn stop(name: &ContainerName) -> Command {
    StopContainer {
        name: name.clone(),
        if_generation: None,
    }
    .into()
}

fn destroy(name: &ContainerName) -> Command {
    DestroyContainer {
        name: name.clone(),
        if_generation: None,
    }
    .into()
}

#[test]
fn a_failed_observation_after_outdated_steps_does_not_mark_a_container_as_destroyed() {
    let (mut world, name) = with_running();
    world.send(admin(), None, stop(&name));
    world.commit(usize::MAX);
    world.send(admin(), None, destroy(&name));
    world.commit(usize::MAX);
    // The steps of the stop end, and the state of the container is unknown.
    world.finish_work(0, Fate::Unobserved, &built());
    assert_eq!(world.phase(&name), Some(ContainerPhase::Destroying));
    assert!(world.host.containers.contains_key(&name));
    world.come_to_rest();
    assert!(!world.host.containers.contains_key(&name));
}

#[test]
fn a_container_that_could_not_be_observed_is_not_taken_for_a_missing_one() {
    let (mut world, name) = with_running();
    world.observe_none_but([name.clone()].into());
    world.commit(usize::MAX);
    assert_eq!(world.phase(&name), Some(ContainerPhase::Running));
    world.observe_none_but([].into());
    world.commit(usize::MAX);
    assert_ne!(world.phase(&name), Some(ContainerPhase::Running));
}

#[test]
fn a_destroy_is_not_carried_out_by_an_earlier_commit() {
    let (mut world, name) = with_running();
    world.send(admin(), None, stop(&name));
    world.send(admin(), None, destroy(&name));
    world.commit(1);
    world.finish_work(0, Fate::Done, &built());
    assert!(
        world.host.containers.contains_key(&name),
        "stopped, and no more than that"
    );
    world.crash(Fate::Late, false);
    world.come_to_rest();
    assert_eq!(world.phase(&name), Some(ContainerPhase::Stopped));
}

#[test]
fn a_build_that_ends_during_steps_is_not_reverted_by_their_end() {
    let (mut world, name) = with_running();
    let update = UpdateContainer {
        name: name.clone(),
        source: Some(ContainerSource::Template {
            name: "minimal".to_owned(),
        }),
        if_generation: None,
    };
    world.send(admin(), None, update.into());
    world.commit(usize::MAX);
    // Its limits change while its system is built.
    let set = SetContainer {
        name: name.clone(),
        patch: serde_json::json!({ "limits": { "memory_bytes": "64 MiB" } }),
        if_generation: None,
    };
    world.send(admin(), None, set.into());
    world.commit(usize::MAX);
    let result = JobResult::Build(BuildResult {
        store_path: StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-web-1.0").expect("a path"),
        outputs: Default::default(),
        derivation: None,
        build_time_ms: 1,
        closure_size_bytes: 1,
        references: Vec::new(),
        references_left_out: 0,
        others_left_out: 0,
        sources: Vec::new(),
        built: 1,
        others: Vec::new(),
        origin: None,
        nar_size_bytes: None,
        nar_sha256: std::collections::BTreeMap::default(),
    });
    // First the job, then the steps for the limits.
    world.finish_work(0, Fate::Done, &Ok(result));
    world.finish_work(0, Fate::Done, &built());
    world.come_to_rest();
    assert_eq!(world.phase(&name), Some(ContainerPhase::Running));
    assert_eq!(world.reverted(&name), None);
}

/// A seed that differs from run to run.
fn rand_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |since| u64::from(since.subsec_nanos()) ^ since.as_secs())
}

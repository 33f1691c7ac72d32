//! A plan against a host that does what it is told: after success nothing is left to plan.

use leaf_core::command::{
    ApplyContainer, CancelJob, Command, CreateContainer, DestroyContainer, RollbackContainer, SetContainer,
    StartContainer, StopContainer, UpdateContainer,
};
use leaf_core::container::{ContainerPhase, DesiredRun, Exit, ObservedContainer, ObservedRun};
use leaf_core::decide::{Context, Reply, Target, adopt, after_job, decide};
use leaf_core::event::{
    ContainerFailed, ContainerReverted, ContainerStep, Fact, JobFailed, JobStarted, JobSucceeded,
};
use leaf_core::host_op::HostOp;
use leaf_core::id::{ContainerName, JobId, StorePath};
use leaf_core::job::{BuildResult, JobFailureCause, JobPhase, JobResult};
use leaf_core::plan::{observe, plan};
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::runtime::Runtime;
use leaf_core::spec::{ContainerOptions, ContainerSource};
use leaf_core::state::{State, apply};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::model_host::{ModelHost, plan_context};
use crate::strategies::{build_result, context, events, leaf, name, store_path};

/// A leaf's state and a host that carries out every operation.
#[derive(Default)]
struct World {
    state: State,
    host: ModelHost,
    fresh: u128,
}

/// What happens to the world.
#[derive(Debug, Clone)]
enum Step {
    Command(Command),
    BuildEnds(Result<BuildResult, String>),
    ContainerExits(ContainerName, Exit),
    RemovedByOthers(ContainerName),
    HostRestarts,
    /// From now on this system becomes ready, or does not.
    SystemTurns(StorePath, bool),
}

impl World {
    fn record(&mut self, facts: Vec<Fact>) {
        for event in events(self.state.sequence + 1, facts) {
            apply(&mut self.state, &event);
        }
    }

    /// The second in which the next event happens.
    fn now(&self) -> u64 {
        self.state.sequence + 1
    }

    fn look(&mut self, name: &ContainerName) {
        // As the engine does: one that is to be paused has not reached its desired state when it is ready.
        for _ in 0..4 {
            let Some(container) = self.state.containers.get(name) else {
                return;
            };
            let facts = observe(container, self.host.containers.get(name), &leaf());
            self.record(facts);
        }
    }

    fn plan(&self, name: &ContainerName) -> Vec<HostOp> {
        self.state
            .containers
            .get(name)
            .map_or_else(Vec::new, |container| {
                plan(container, self.host.containers.get(name), &plan_context())
            })
    }

    fn reconcile(&mut self, name: &ContainerName) {
        // Once for what is wanted, once for the way back if that did not work.
        for _ in 0..2 {
            let worked = {
                let (ops, now) = (self.plan(name), self.now());
                ops.iter().all(|op| self.host.carry_out(op, now))
            };
            if worked {
                self.look(name);
                self.expect_settled(name);
                return;
            }
            let Some(container) = self.state.containers.get(name) else {
                return;
            };
            let mut facts = vec![Fact::from(ContainerFailed {
                name: name.clone(),
                step: ContainerStep::Start,
                reason: "it was not ready".to_owned(),
            })];
            let Some(toplevel) = container.desired.fallback.clone() else {
                self.record(facts);
                assert_eq!(self.state.containers[name].phase, ContainerPhase::Failed);
                return;
            };
            facts.push(Fact::from(ContainerReverted {
                name: name.clone(),
                toplevel: toplevel.clone(),
                reason: "it was not ready".to_owned(),
            }));
            self.record(facts);
            let container = &self.state.containers[name];
            assert_eq!(container.desired.toplevel.as_ref(), Some(&toplevel));
            assert_eq!(container.desired.fallback, None, "it goes back once");
            assert!(container.reverted.is_some());
        }
    }

    /// Nothing is left to plan, another look says nothing new, and the phase is what is wanted.
    fn expect_settled(&self, name: &ContainerName) {
        assert_eq!(
            self.plan(name),
            Vec::new(),
            "left to do for {:?}",
            self.state.containers.get(name)
        );
        let Some(container) = self.state.containers.get(name) else {
            assert!(
                !self.host.containers.contains_key(name),
                "{name} is forgotten, and still on the host"
            );
            return;
        };
        let observed = self.host.containers.get(name);
        assert_eq!(
            observe(container, observed, &leaf()),
            Vec::new(),
            "news of {container:?} by {observed:?}"
        );
        if container.desired.toplevel.is_some() && container.phase != ContainerPhase::Failed {
            let wanted = match container.desired.run {
                DesiredRun::Running => ContainerPhase::Running,
                DesiredRun::Stopped => ContainerPhase::Stopped,
                DesiredRun::Absent => panic!("{name} was to go: {container:?}"),
            };
            assert_eq!(container.phase, wanted, "{container:?} by {observed:?}");
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Command(command) => {
                self.fresh += 1;
                let Ok(decision) = decide(&self.state, &command, &context(self.fresh)) else {
                    return;
                };
                self.record(decision.facts);
                if let Reply::When(Target::Container(name)) | Reply::Container(name) = decision.reply {
                    self.reconcile(&name);
                }
            }
            Step::BuildEnds(outcome) => {
                let open = self.state.jobs.values().find(|job| !job.phase.is_final());
                let Some(id) = open.map(|job| job.id) else { return };
                self.end_build(id, outcome);
            }
            Step::ContainerExits(name, exit) => self.exit(&name, exit),
            Step::RemovedByOthers(name) => {
                if self.host.containers.remove(&name).is_some() {
                    self.look(&name);
                    let Some(container) = self.state.containers.get(&name) else {
                        return;
                    };
                    assert_eq!(
                        observe(container, None, &leaf()),
                        Vec::new(),
                        "told once: {container:?}"
                    );
                    if container.phase.is_moving() {
                        self.reconcile(&name);
                    }
                }
            }
            Step::SystemTurns(toplevel, good) => {
                if good {
                    self.host.broken.remove(&toplevel);
                } else {
                    self.host.broken.insert(toplevel);
                }
            }
            Step::HostRestarts => {
                self.host.boot();
                let names: Vec<ContainerName> = self.state.containers.keys().cloned().collect();
                for name in names {
                    self.look(&name);
                    self.reconcile(&name);
                }
            }
        }
    }

    /// A container exits by itself, and is started again where its policy says so.
    fn exit(&mut self, name: &ContainerName, exit: Exit) {
        let observed = self.host.containers.get(name);
        if !observed.is_some_and(|observed| matches!(observed.run, ObservedRun::Running { .. })) {
            return;
        }
        let before = &self.state.containers[name];
        let was_running = before.phase == ContainerPhase::Running;
        let again = before.desired.options.restart.when.covers(Some(exit));
        self.host.moves(name, exit, self.now());
        self.look(name);
        if was_running {
            let container = &self.state.containers[name];
            let expected = if again {
                ContainerPhase::Restarting
            } else {
                ContainerPhase::Stopped
            };
            assert_eq!(container.phase, expected);
            assert!(container.error.is_some(), "it says why it stopped");
        }
        self.host.rest(self.now());
        self.look(name);
        // One that is paused is to be frozen again.
        if self.state.containers[name].phase.is_moving() {
            self.reconcile(name);
        }
        let runs = |observed: &ObservedContainer| matches!(observed.run, ObservedRun::Running { .. });
        if was_running && self.host.containers.get(name).is_some_and(runs) {
            self.expect_settled(name);
        }
    }

    fn end_build(&mut self, id: JobId, outcome: Result<BuildResult, String>) {
        self.record(vec![Fact::from(JobStarted { id })]);
        assert_eq!(self.state.jobs[&id].phase, JobPhase::Running);
        let mut facts = after_job(&self.state, id, outcome.as_ref().map_err(String::as_str));
        facts.insert(
            0,
            match outcome {
                Ok(result) => Fact::from(JobSucceeded {
                    id,
                    result: JobResult::Build(result),
                }),
                Err(error) => Fact::from(JobFailed {
                    id,
                    cause: JobFailureCause::Failed,
                    error,
                    partial: Vec::new(),
                    explanation: None,
                }),
            },
        );
        self.record(facts);
        assert!(self.state.jobs[&id].phase.is_final());
        let waits: Vec<ContainerName> = self
            .state
            .containers
            .values()
            .filter(|c| c.phase.is_moving())
            .map(|c| c.name.clone())
            .collect();
        for name in waits {
            self.reconcile(&name);
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let source = prop_oneof![
        2 => store_path().prop_map(|path| ContainerSource::Toplevel { path }),
        1 => Just(ContainerSource::Template { name: "minimal".to_owned() }),
    ];
    let command = prop_oneof![
        3 => (name(), source, any::<bool>())
            .prop_map(|(name, source, start)| {
                CreateContainer { name, source, start, options: ContainerOptions::default() }.into()
            }),
        3 => (name(), crate::strategies::spec())
            .prop_map(|(name, spec)| ApplyContainer { name, spec, if_generation: None }.into()),
        2 => (name(), store_path()).prop_map(|(name, path)| {
            let source = Some(ContainerSource::Toplevel { path });
            UpdateContainer { name, source, if_generation: None }.into()
        }),
        1 => name().prop_map(|name| UpdateContainer { name, source: None, if_generation: None }.into()),
        2 => (name(), crate::strategies::patch())
            .prop_map(|(name, patch)| SetContainer { name, patch, if_generation: None }.into()),
        1 => name().prop_map(|name| RollbackContainer { name, generation: None, if_generation: None }.into()),
        3 => name().prop_map(|name| StartContainer { name, if_generation: None }.into()),
        2 => name().prop_map(|name| StopContainer { name, if_generation: None }.into()),
        2 => name().prop_map(|name| DestroyContainer { name, if_generation: None }.into()),
        1 => crate::strategies::job_id().prop_map(|id| CancelJob { id }.into()),
    ];
    let exit = select(&[Exit::Code { code: 1 }, Exit::Signal { signal: 9 }, Exit::Lost][..]);
    prop_oneof![
        6 => command.prop_map(Step::Command),
        2 => build_result().prop_map(|result| Step::BuildEnds(Ok(result))),
        1 => Just(Step::BuildEnds(Err("builder failed".to_owned()))),
        1 => (name(), exit).prop_map(|(name, exit)| Step::ContainerExits(name, exit)),
        1 => name().prop_map(Step::RemovedByOthers),
        1 => Just(Step::HostRestarts),
        1 => (store_path(), any::<bool>()).prop_map(|(path, good)| Step::SystemTurns(path, good)),
    ]
}

#[test]
fn destroying_a_container_removes_what_an_interrupted_create_left() {
    let mut world = World::default();
    let name = ContainerName::new("web").expect("a name");
    let path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a";
    let create = CreateContainer {
        name: name.clone(),
        source: ContainerSource::Toplevel {
            path: StorePath::new(path).expect("a store path"),
        },
        start: false,
        options: ContainerOptions::default(),
    };
    let record = |world: &mut World, command: Command| {
        let decision = decide(&world.state, &command, &context(1)).expect("accepted");
        world.record(decision.facts);
    };
    record(&mut world, create.into());
    // The daemon is killed in the middle of the create, and the look finds no container.
    record(
        &mut world,
        DestroyContainer {
            name: name.clone(),
            if_generation: None,
        }
        .into(),
    );
    assert_eq!(
        world.plan(&name),
        vec![HostOp::DestroyContainer { name: name.clone() }]
    );
    world.reconcile(&name);
    assert!(world.state.containers.is_empty());
}

#[test]
fn an_update_says_what_it_did_and_nothing_of_an_earlier_one() {
    let mut world = World::default();
    let name = ContainerName::new("web").expect("a name");
    let source = |of: &str| ContainerSource::Toplevel {
        path: StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{of}"))
            .expect("a store path"),
    };
    let last = |world: &World| world.state.containers[&name].last_update.clone();
    let create = CreateContainer {
        name: name.clone(),
        source: source("a"),
        start: true,
        options: ContainerOptions::default(),
    };
    world.take(Step::Command(create.into()));
    assert_eq!(last(&world), None, "a start is no update");
    let update = UpdateContainer {
        name: name.clone(),
        source: Some(source("b")),
        if_generation: None,
    };
    world.take(Step::Command(update.into()));
    let done = last(&world).expect("it was restarted");
    assert_eq!(done.restarted.as_deref(), Some("it can't switch"));
    // Takes effect without a restart.
    let set = SetContainer {
        name: name.clone(),
        patch: serde_json::from_str(r#"{"limits":{"tasks":7}}"#).expect("a patch"),
        if_generation: None,
    };
    world.take(Step::Command(set.into()));
    assert_eq!(world.state.containers[&name].phase, ContainerPhase::Running);
    assert_eq!(last(&world), None);
}

#[test]
fn what_the_runtime_does_not_support_is_refused_without_a_change() {
    let mut world = World::default();
    let name = ContainerName::new("web").expect("a name");
    let path = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a").expect("a store path");
    let nspawn = Context {
        runtime: Runtime::Nspawn,
        ..context(1)
    };
    let unsupported = Problem::new(ProblemCode::Unsupported, "").kind;
    let create = |options: &str| CreateContainer {
        name: name.clone(),
        source: ContainerSource::Toplevel { path: path.clone() },
        start: false,
        options: serde_json::from_str(options).expect("options"),
    };
    for (field, options) in [
        ("limits", r#"{"limits":{"tasks":7}}"#),
        ("restart", r#"{"restart":{"when":"always"}}"#),
        ("autostart", r#"{"autostart":"with_host"}"#),
        ("after", r#"{"after":["db"]}"#),
    ] {
        let command = Command::from(create(options));
        assert!(decide(&world.state, &command, &context(1)).is_ok());
        let refused = decide(&world.state, &command, &nspawn).expect_err("it can't");
        assert_eq!(refused.kind, unsupported);
        assert!(refused.detail.starts_with(&format!("{field}: ")), "{refused}");
    }
    let made = decide(&world.state, &create("{}").into(), &nspawn).expect("accepted");
    world.record(made.facts);
    let set = SetContainer {
        name: name.clone(),
        patch: serde_json::from_str(r#"{"limits":{"tasks":7}}"#).expect("a patch"),
        if_generation: None,
    };
    let refused = decide(&world.state, &set.into(), &nspawn).expect_err("it can't");
    assert_eq!(refused.kind, unsupported);
    let adopted = adopt(&world.state, &name, None, &nspawn).expect_err("it can't");
    assert_eq!(adopted.kind, unsupported);
}

#[test]
fn a_name_that_can_not_start_is_refused_for_a_new_container_and_an_old_one_that_has_it_is_still_changed() {
    let mut world = World::default();
    let source = ContainerSource::Toplevel {
        path: StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a").expect("a store path"),
    };
    let create = |name: &str| CreateContainer {
        name: ContainerName::new(name).expect("a name"),
        source: source.clone(),
        start: false,
        options: ContainerOptions::default(),
    };
    let apply_to = |name: &str| ApplyContainer {
        name: ContainerName::new(name).expect("a name"),
        spec: serde_json::from_value(serde_json::json!({ "source": source, "run": "running" }))
            .expect("a spec"),
        if_generation: None,
    };
    let invalid = Problem::new(ProblemCode::Invalid, "").kind;
    for name in ["f_b", "f-", "_fx"] {
        for command in [Command::from(create(name)), apply_to(name).into()] {
            let refused = decide(&world.state, &command, &context(1)).expect_err(name);
            assert_eq!(refused.kind, invalid, "{refused}");
            assert!(refused.detail.contains("systemd-machined"), "{refused}");
        }
        let found = leaf_core::container::ForeignContainer {
            name: ContainerName::new(name).expect("a name"),
            declarative: false,
            running: false,
            toplevel: StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a").ok(),
            address: None,
            host_users: false,
        };
        let refused = adopt(&world.state, &found.name, Some(&found), &context(1)).expect_err(name);
        assert_eq!(refused.kind, invalid, "{refused}");
    }
    // An earlier leafd created it.
    let mut made = decide(&world.state, &create("fb").into(), &context(1)).expect("accepted");
    let Some(Fact::Container(leaf_core::event::ContainerFact::Desired(desired))) = made.facts.first_mut()
    else {
        panic!("{made:?}");
    };
    desired.name = ContainerName::new("f_b").expect("a name");
    world.record(made.facts);
    decide(&world.state, &apply_to("f_b").into(), &context(2)).expect("accepted");
}

proptest! {
    #[test]
    fn a_plan_after_success_is_empty_whatever_happened_before(steps in vec(step(), 1..40)) {
        let mut world = World::default();
        for step in steps {
            world.take(step);
        }
        for name in world.host.containers.keys() {
            prop_assert!(world.state.containers.contains_key(name), "{} is on the host and unknown", name);
        }
    }

    #[test]
    fn no_two_containers_have_the_same_addresses(steps in vec(step(), 1..40)) {
        let mut world = World::default();
        for step in steps {
            world.take(step);
            let mut links: Vec<_> =
                world.state.containers.values().map(|c| c.desired.network.container_address).collect();
            links.sort();
            let count = links.len();
            links.dedup();
            prop_assert_eq!(links.len(), count);
        }
    }
}

//! "The same id gets the first reply": each change is sent, the leaf is killed after each number of commits, and the
//! change is sent again under its id.

use leaf_core::command::*;
use leaf_core::container::{ContainerPhase, ForeignContainer};
use leaf_core::host_op::Secret;
use leaf_core::id::{CommandId, ContainerName, JobId, SecretName, StorePath};
use leaf_core::job::Installable;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::spec::{ContainerOptions, ContainerSource, ContainerSpec, SpecRun};
use serde_json::Value;

use super::steps::Fate;
use super::world::World;
use super::{admin, with_running};

const IF_GENERATION: Option<u64> = None;

fn minimal() -> ContainerSource {
    ContainerSource::Toplevel {
        path: StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-minimal").expect("a path"),
    }
}

fn other() -> ContainerSource {
    ContainerSource::Toplevel {
        path: StorePath::new("/nix/store/11bgd045z0d4icpbc2yyz4gx48ak44la-other").expect("a path"),
    }
}

fn named(name: &str) -> ContainerName {
    ContainerName::new(name).expect("a name")
}

fn id() -> CommandId {
    CommandId::new("once").expect("an id")
}

/// Carries out everything that waits, without the change under test.
fn settle(world: &mut World, command: impl Into<Command>) {
    world.send(admin(), None, command.into());
    world.commit(usize::MAX);
    while !world.work.is_empty() {
        world.finish_work(0, Fate::Done, &Err("the builder failed".to_owned()));
        world.commit(usize::MAX);
    }
}

/// A leaf with the container `web`, which runs, a foreign container `guest`, and a running job.
fn leaf() -> (World, JobId) {
    let (mut world, web) = with_running();
    let update = UpdateContainer {
        name: web,
        source: Some(other()),
        if_generation: IF_GENERATION,
    };
    settle(&mut world, update);
    let foreign = ForeignContainer {
        name: named("guest"),
        declarative: false,
        running: true,
        toplevel: Some(StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-guest").expect("a path")),
        address: None,
        host_users: true,
    };
    world.host.foreign.insert(foreign.name.clone(), foreign);
    world.send(admin(), None, build().into());
    world.commit(usize::MAX);
    let job = world.running_jobs()[0];
    (world, job)
}

fn set_secret() -> SetSecret {
    SetSecret {
        name: SecretName::new("db").expect("a name"),
        age: Secret::new("-----BEGIN AGE ENCRYPTED FILE-----\n"),
    }
}

fn build() -> Build {
    Build::of([Installable::Template {
        name: "minimal".to_owned(),
    }])
}

fn eval() -> Eval {
    Eval {
        installable: Installable::Flake {
            reference: "github:o/r#version".to_owned(),
        },
        apply: None,
        impure: false,
        timeout_seconds: None,
    }
}

fn diff() -> Diff {
    let path = |name: &str| {
        StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{name}")).expect("a path")
    };
    Diff {
        from: path("old"),
        to: path("new"),
        timeout_seconds: None,
    }
}

fn verify() -> VerifySystem {
    VerifySystem {
        stated: Vec::new(),
        contents: true,
        timeout_seconds: None,
    }
}

fn print_env() -> PrintEnv {
    PrintEnv {
        installable: Installable::Flake {
            reference: "github:o/r#hello".to_owned(),
        },
        impure: false,
        timeout_seconds: None,
    }
}

fn check() -> Check {
    Check {
        installable: print_env().installable,
        impure: false,
        timeout_seconds: None,
    }
}

fn gc() -> Gc {
    Gc {
        dry_run: false,
        older_than_seconds: None,
        free_bytes: None,
        timeout_seconds: None,
    }
}

/// Every change, with what has to be done to the leaf before it.
fn changes(job: JobId) -> Vec<(Command, Option<Command>)> {
    let (web, if_generation) = (named("web"), IF_GENERATION);
    let spec = ContainerSpec {
        source: minimal(),
        run: SpecRun::Running,
        paused: false,
        options: ContainerOptions::default(),
    };
    let create = |source| {
        let (name, options) = (named("new"), ContainerOptions::default());
        CreateContainer {
            name,
            source,
            start: true,
            options,
        }
    };
    let stop = StopContainer {
        name: web.clone(),
        if_generation,
    };
    let template = ContainerSource::Template {
        name: "minimal".to_owned(),
    };
    let name = || web.clone();
    vec![
        (create(minimal()).into(), None),
        (create(template.clone()).into(), None),
        (
            ApplyContainer {
                name: named("new"),
                spec: spec.clone(),
                if_generation,
            }
            .into(),
            None,
        ),
        (
            ApplyContainer {
                name: name(),
                spec,
                if_generation,
            }
            .into(),
            None,
        ),
        (
            UpdateContainer {
                name: name(),
                source: Some(minimal()),
                if_generation,
            }
            .into(),
            None,
        ),
        (
            UpdateContainer {
                name: name(),
                source: Some(template),
                if_generation,
            }
            .into(),
            None,
        ),
        (
            SetContainer {
                name: name(),
                patch: serde_json::json!({ "limits": { "memory_bytes": "64 MiB" } }),
                if_generation,
            }
            .into(),
            None,
        ),
        (
            RollbackContainer {
                name: name(),
                generation: None,
                if_generation,
            }
            .into(),
            None,
        ),
        (AdoptContainer { name: named("guest") }.into(), None),
        (
            StartContainer {
                name: name(),
                if_generation,
            }
            .into(),
            Some(stop.clone().into()),
        ),
        (stop.into(), None),
        (
            PauseContainer {
                name: name(),
                if_generation,
            }
            .into(),
            None,
        ),
        (
            ResumeContainer {
                name: name(),
                if_generation,
            }
            .into(),
            Some(
                PauseContainer {
                    name: name(),
                    if_generation,
                }
                .into(),
            ),
        ),
        (
            DestroyContainer {
                name: name(),
                if_generation,
            }
            .into(),
            None,
        ),
        (
            LabelLeaf {
                set: [("rack".to_owned(), "7".to_owned())].into(),
                remove: ["gpu".to_owned()].into(),
            }
            .into(),
            None,
        ),
        (set_secret().into(), None),
        (
            RemoveSecret {
                name: set_secret().name,
            }
            .into(),
            Some(set_secret().into()),
        ),
        (RescanHardware {}.into(), None),
        (build().into(), None),
        (eval().into(), None),
        (print_env().into(), None),
        (check().into(), None),
        (gc().into(), None),
        (
            Roots {
                path: None,
                timeout_seconds: None,
            }
            .into(),
            None,
        ),
        (diff().into(), None),
        (verify().into(), None),
        (CancelJob { id: job }.into(), None),
    ]
}

/// Prepares a leaf and returns it with the nth change.
fn before(nth: usize) -> Option<(World, Command)> {
    let (mut world, job) = leaf();
    let (command, first) = changes(job).into_iter().nth(nth)?;
    if let Some(first) = first {
        world.send(admin(), None, first);
        world.commit(usize::MAX);
        world.finish_work(1, Fate::Done, &Err("the builder failed".to_owned()));
        world.commit(usize::MAX);
    }
    Some((world, command))
}

/// Commits record by record and ends work in between, until the change has its reply or this many records are
/// committed. Returns the number of commits.
fn proceed(world: &mut World, commits: usize) -> usize {
    for committed in 0..commits {
        while !world.has_uncommitted() {
            if world.last_reply().is_some() || world.work.is_empty() {
                return committed;
            }
            // The last piece of work is the change's own.
            world.finish_work(
                world.work.len() - 1,
                Fate::Done,
                &Err("the builder failed".to_owned()),
            );
        }
        world.commit(1);
    }
    commits
}

/// Returns what of a reply is the same however long it took: a container or a job changes on.
fn essence(reply: &Result<Vec<u8>, Problem>) -> Result<Value, ProblemCode> {
    let body = reply.as_ref().map_err(|problem| problem.code)?;
    let mut reply: Value = serde_json::from_slice(body).expect("JSON");
    if let Some(job) = reply.pointer_mut("/desired/build_job") {
        // Its id is a fresh one when the command was not accepted before the crash.
        *job = Value::from(job.is_string());
    }
    let kept = ["name", "id", "desired"].map(|key| reply.get(key).cloned().unwrap_or_default());
    Ok(Value::from(kept.to_vec()))
}

#[test]
fn a_change_sent_again_after_a_crash_at_any_commit_has_its_effect_once_and_the_first_reply() {
    for nth in 0.. {
        let Some((mut undisturbed, command)) = before(nth) else {
            break;
        };
        let generation = |world: &World| {
            let containers = world.state().containers.values();
            containers
                .map(|c| (c.name.clone(), c.desired.generation))
                .collect::<Vec<_>>()
        };
        undisturbed.send(admin(), Some(id()), command.clone());
        let commits = proceed(&mut undisturbed, usize::MAX);
        let first = undisturbed.last_reply().cloned().expect("it is answered");
        assert!(first.is_ok(), "{command:?}: {first:?}");
        undisturbed.come_to_rest();
        for crash_after in 0..=commits {
            let place = || format!("after {crash_after} of {commits} commits of {command:?}");
            let (mut world, command) = before(nth).expect("the same again");
            world.send(admin(), Some(id()), command.clone());
            proceed(&mut world, crash_after);
            let answered = world.last_reply().cloned();
            world.crash(Fate::Late, false);
            world.send(admin(), Some(id()), command);
            world.commit(usize::MAX);
            let at_once = world.last_reply().cloned();
            world.come_to_rest();
            let again = world
                .last_reply()
                .cloned()
                .unwrap_or_else(|| panic!("no reply {}", place()));
            if let Some(answered) = answered {
                assert_eq!(at_once, Some(answered), "another reply {}", place());
            }
            let is_job = matches!(command_kind(nth), CommandKind::Job);
            if is_job {
                assert!(again.is_ok(), "{again:?} {}", place());
            } else {
                assert_eq!(essence(&again), essence(&first), "{}", place());
            }
            assert_eq!(generation(&world), generation(&undisturbed), "{}", place());
            assert_eq!(
                world.state().jobs.len(),
                undisturbed.state().jobs.len(),
                "{}",
                place()
            );
        }
    }
}

fn command_kind(nth: usize) -> CommandKind {
    before(nth).expect("a change").1.kind()
}

#[test]
fn every_change_is_among_those_that_are_sent_again() {
    let (_, job) = leaf();
    let tried: Vec<&str> = changes(job)
        .iter()
        .map(|(command, _)| command.declaration().noun_verb)
        .collect();
    let declared = COMMANDS
        .iter()
        .filter(|declaration| declaration.kind != CommandKind::Query)
        // These need a signature: `changes.rs` sends changes again, and `nix.run` is queued as `nix.build` is.
        .filter(|declaration| !declaration.power.is_for_named_callers());
    for declaration in declared {
        assert!(
            tried.contains(&declaration.noun_verb),
            "{}",
            declaration.noun_verb
        );
    }
}

#[test]
fn an_adopt_sent_again_during_the_search_is_decided_once() {
    let (mut world, _) = leaf();
    let adopt = Command::from(AdoptContainer { name: named("guest") });
    world.send(admin(), Some(id()), adopt.clone());
    world.commit(usize::MAX);
    world.send(admin(), Some(id()), adopt.clone());
    world.commit(usize::MAX);
    assert_eq!(world.searches(), 1, "it is searched for once");
    // Another command under the same id waits for nothing.
    world.send(admin(), Some(id()), AdoptContainer { name: named("web") }.into());
    let reused = world.commit_and_reply().expect("at once").expect_err("refused");
    assert_eq!(reused.code, ProblemCode::CommandIdReused);
    world.finish_work(
        world.work.len() - 1,
        Fate::Done,
        &Err("the builder failed".to_owned()),
    );
    // Decided, and not durable yet.
    world.send(admin(), Some(id()), adopt);
    world.commit(usize::MAX);
    let replies = world.replies(&id());
    let adopted: Vec<_> = replies.iter().filter(|reply| reply.is_ok()).collect();
    assert_eq!(adopted.len(), 3, "{replies:?}");
    assert!(adopted.iter().all(|reply| *reply == adopted[0]));
    world.come_to_rest();
    assert_eq!(world.phase(&named("guest")), Some(ContainerPhase::Running));
    let desired = world
        .kinds()
        .into_iter()
        .filter(|kind| kind == "cim.leaf.container.desired.v1");
    assert_eq!(desired.count(), 3, "create, update and adopt");
}

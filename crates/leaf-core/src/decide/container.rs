//! Decides the commands about containers.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use super::job::queue_system;
use super::{
    Context, Decision, NameHolder, Question, Reply, Target, conflict, invalid, known, not_found, only,
};
use crate::command::container::{Command, ContainerHistory};
use crate::container::{Container, ContainerNetwork, ContainerPhase, Desired, DesiredRun, ForeignContainer};
use crate::event::{ContainerDesired, Fact};
use crate::id::{ContainerName, JobId, StorePath};
use crate::job::Installable;
use crate::problem::{Problem, ProblemCode};
use crate::runtime::Runtime;
use crate::secret;
use crate::spec::{ContainerOptions, ContainerSource, ContainerSpec, Opening, SpecRun, Users, spec_diff};
use crate::state::State;

/// A query for a page of a container's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// The container's name.
    pub name: ContainerName,
    /// The maximum number of lines: the last ones or, with a cursor, the first ones after it.
    pub lines: u32,
    /// Only lines written at or after this time.
    pub since: Option<Timestamp>,
    /// Only lines after the page that returned this cursor.
    pub cursor: Option<String>,
}

/// The default number of log lines.
const DEFAULT_LOG_LINES: u32 = 200;

pub(super) fn decide(state: &State, command: &Command, context: &Context) -> Result<Decision, Problem> {
    match command {
        Command::Create(c) => {
            let run = if c.start {
                SpecRun::Running
            } else {
                SpecRun::Stopped
            };
            let spec = ContainerSpec {
                source: c.source.clone(),
                run,
                paused: false,
                options: c.options.clone(),
            };
            create(state, &c.name, spec, context)
        }
        Command::Apply(c) => match (state.containers.get(&c.name), c.if_generation) {
            (None, None | Some(0)) => create(state, &c.name, c.spec.clone(), context),
            (None, Some(seen)) => Err(conflict(format!(
                "container {} does not exist, so it is not at generation {seen}",
                c.name
            ))),
            (Some(_), seen) => change(state, &c.name, seen, false, context, |_| Ok(c.spec.clone())),
        },
        Command::Update(c) => change(state, &c.name, c.if_generation, true, context, |spec| {
            Ok(ContainerSpec {
                source: c.source.clone().unwrap_or(spec.source),
                ..spec
            })
        }),
        Command::Set(c) => change(state, &c.name, c.if_generation, false, context, |spec| {
            spec.patched(&c.patch)
                .map_err(|e| invalid(format!("the patched spec is invalid: {e}")))
        }),
        Command::Rollback(c) => rollback(state, &c.name, c.generation, c.if_generation, context),
        Command::Diff(c) => {
            let container = find_container(state, &c.name)?;
            check_spec(&c.name, &c.spec, context)?;
            Ok(only(known(&spec_diff(&container.desired.spec(), &c.spec))))
        }
        Command::History(c) => Ok(only(known(&ContainerHistory {
            revisions: find_container(state, &c.name)?.revisions.clone(),
        }))),
        Command::Adopt(c) => match state.containers.get(&c.name) {
            Some(_) => Err(Problem::new(
                ProblemCode::AlreadyExists,
                format!("container {} is already this leaf's", c.name),
            )),
            None => Ok(only(Reply::AfterSearch(c.name.clone()))),
        },
        Command::Stats(c) => {
            find_container(state, &c.name)?;
            Ok(only(Reply::FromHost(Question::ContainerStats(c.name.clone()))))
        }
        Command::Start(c) => set_run(state, &c.name, c.if_generation, DesiredRun::Running, context),
        Command::Stop(c) => set_run(state, &c.name, c.if_generation, DesiredRun::Stopped, context),
        Command::Pause(c) => pause(state, &c.name, c.if_generation, true, context),
        Command::Resume(c) => pause(state, &c.name, c.if_generation, false, context),
        Command::Destroy(c) => set_run(state, &c.name, c.if_generation, DesiredRun::Absent, context),
        Command::List(_) => Ok(only(Reply::FromHost(Question::Containers(
            state.containers.values().map(without_revisions).collect(),
        )))),
        Command::Show(c) => {
            find_container(state, &c.name)?;
            Ok(only(Reply::ContainerReport(c.name.clone())))
        }
        Command::Logs(c) => {
            find_container(state, &c.name)?;
            Ok(only(Reply::FromHost(Question::ContainerLog(LogQuery {
                name: c.name.clone(),
                lines: c.lines.unwrap_or(DEFAULT_LOG_LINES),
                since: c.since,
                cursor: c.cursor.clone(),
            }))))
        }
    }
}

/// Returns a container without its revisions and its last update, for a list that must fit into a message.
fn without_revisions(container: &Container) -> Container {
    Container {
        revisions: Vec::new(),
        last_update: None,
        ..container.clone()
    }
}

fn find_container<'a>(state: &'a State, name: &ContainerName) -> Result<&'a Container, Problem> {
    state.containers.get(name).ok_or_else(|| {
        not_found(format!(
            "container {name} does not exist; container.list lists all"
        ))
    })
}

/// Checks the name of a new container. One that exists under another name stays as it is.
fn check_name(name: &ContainerName) -> Result<(), Problem> {
    name.check_startable().map_err(|error| invalid(error.to_string()))
}

/// Checks that nothing else on the host has the name of a new container.
fn check_is_free(name: &ContainerName, context: &Context) -> Result<(), Problem> {
    let Some(holder) = context.in_use.names.get(name) else {
        return Ok(());
    };
    let detail = match holder {
        NameHolder::Foreign => format!(
            "this host already has a foreign container {name}, which this leaf did not create; choose another name, or adopt \
            that container (container.adopt)"
        ),
        NameHolder::Declared => format!(
            "this host already has a container {name}, declared in its NixOS configuration; choose another name, or remove \
            the container there first"
        ),
        NameHolder::Unreadable(why) => format!(
            "the name {name} is in use on this host, by a file that can't be read as a container's: {why}; remove the file, \
            or choose another name"
        ),
    };
    Err(Problem::new(ProblemCode::AlreadyExists, detail))
}

fn check_spec(name: &ContainerName, spec: &ContainerSpec, context: &Context) -> Result<(), Problem> {
    spec.options.check(name).map_err(invalid)?;
    spec.options.check_runtime(context.runtime).map_err(unsupported)
}

fn unsupported(why: String) -> Problem {
    Problem::new(ProblemCode::Unsupported, why)
}

/// Returns the system of a source, or what must be built for it.
fn system_of(source: &ContainerSource) -> Result<StorePath, Installable> {
    match source {
        ContainerSource::Toplevel { path } => Ok(path.clone()),
        ContainerSource::Flake { reference } => Err(Installable::Flake {
            reference: reference.clone(),
        }),
        ContainerSource::Template { name } => Err(Installable::Template { name: name.clone() }),
    }
}

fn create(
    state: &State,
    name: &ContainerName,
    spec: ContainerSpec,
    context: &Context,
) -> Result<Decision, Problem> {
    if let Some(container) = state.containers.get(name) {
        return Err(Problem::new(
            ProblemCode::AlreadyExists,
            format!(
                "container {name} already exists, created at {}; destroy it first, or choose another name",
                container.created_at
            ),
        ));
    }
    check_name(name)?;
    check_is_free(name, context)?;
    check_spec(name, &spec, context)?;
    check_others(state, name, &spec.options)?;
    let network = free_link(state, context)?;
    let job = JobId(context.fresh_id);
    let mut facts = Vec::new();
    let system = system_of(&spec.source);
    if let Err(installable) = &system {
        facts.push(queue_system(state, job, installable, name.clone(), context)?);
    }
    facts.push(Fact::from(ContainerDesired {
        name: name.clone(),
        desired: Desired {
            generation: 1,
            run: spec.run.into(),
            paused: spec.paused,
            source: spec.source,
            build_job: system.is_err().then_some(job),
            toplevel: system.ok(),
            network,
            secrets: secret::restarting(&state.secrets, name, &spec.options),
            options: spec.options,
            fallback: None,
            adopted: false,
        },
        caller: context.caller.clone(),
    }));
    Ok(Decision {
        facts,
        reply: Reply::Container(name.clone()),
    })
}

fn free_link(state: &State, context: &Context) -> Result<ContainerNetwork, Problem> {
    context.pool.free_link(state, &context.in_use.networks).ok_or_else(|| {
        Problem::new(
            ProblemCode::Overloaded,
            format!(
                "all 255 container networks of the address pool {} are in use, by containers or by the host; destroy a \
                container first",
                context.pool
            ),
        )
    })
}

/// Checks the parts of a spec that concern other containers.
fn check_others(state: &State, own: &ContainerName, options: &ContainerOptions) -> Result<(), Problem> {
    for opening in &options.allow {
        let Opening::Ingress {
            protocol, host_port, ..
        } = opening
        else {
            continue;
        };
        let same = |other: &Opening| matches!(other, Opening::Ingress { protocol: p, host_port: h, .. } if p == protocol && h == host_port);
        let holder = state
            .containers
            .values()
            .find(|c| c.name != *own && c.desired.options.allow.iter().any(same));
        if let Some(holder) = holder {
            return Err(conflict(format!(
                "{protocol} port {host_port} of the leaf is already forwarded to container {}",
                holder.name
            )));
        }
        if state.raw_entry_has("host_port", &Value::from(*host_port)) {
            return Err(conflict(format!(
                "{protocol} port {host_port} of the leaf may already be forwarded to a container that only a newer leafd can read; \
                leaf.show lists those"
            )));
        }
    }
    Ok(())
}

/// Changes the desired spec of a container; with `rebuild`, its system is built again. The container keeps its present
/// system until then.
fn change(
    state: &State,
    name: &ContainerName,
    if_generation: Option<u64>,
    rebuild: bool,
    context: &Context,
    with: impl FnOnce(ContainerSpec) -> Result<ContainerSpec, Problem>,
) -> Result<Decision, Problem> {
    let container = find_container(state, name)?;
    check_generation(container, if_generation)?;
    let before = &container.desired;
    if before.run == DesiredRun::Absent {
        return Err(conflict(format!("container {name} is being destroyed")));
    }
    let spec = with(before.spec())?;
    check_spec(name, &spec, context)?;
    check_others(state, name, &spec.options)?;
    // A container whose build has failed is built again with any other change.
    let lacks_system = before.toplevel.is_none() && before.build_job.is_none();
    let anew = spec.source != before.source || rebuild || (lacks_system && spec != before.spec());
    let mut facts = Vec::new();
    let mut desired = Desired {
        generation: before.generation + 1,
        run: spec.run.into(),
        paused: spec.paused,
        secrets: secret::restarting_again(&state.secrets, name, &spec.options, &before.secrets),
        options: spec.options,
        ..before.clone()
    };
    if anew {
        let job = JobId(context.fresh_id);
        match system_of(&spec.source) {
            Ok(toplevel) => {
                desired.fallback = fallback(container, &toplevel);
                desired.toplevel = Some(toplevel);
                desired.build_job = None;
            }
            Err(installable) => {
                facts.push(queue_system(state, job, &installable, name.clone(), context)?);
                desired.build_job = Some(job);
            }
        }
        desired.source = spec.source;
    }
    let unchanged = Desired {
        generation: before.generation,
        ..desired.clone()
    } == *before;
    if !unchanged {
        facts.push(Fact::from(ContainerDesired {
            name: name.clone(),
            desired,
            caller: context.caller.clone(),
        }));
    }
    Ok(Decision {
        facts,
        reply: Reply::Container(name.clone()),
    })
}

/// Returns the system to revert to if this one does not become ready: the last one that the container was ready with.
fn fallback(container: &Container, toplevel: &StorePath) -> Option<StorePath> {
    let before = &container.desired;
    match &before.fallback {
        // It has not been ready with its present system.
        Some(good) => Some(good.clone()),
        None => before.toplevel.clone().filter(|_| container.ready_at.is_some()),
    }
    .filter(|good| good != toplevel)
}

fn rollback(
    state: &State,
    name: &ContainerName,
    generation: Option<u64>,
    if_generation: Option<u64>,
    context: &Context,
) -> Result<Decision, Problem> {
    let container = find_container(state, name)?;
    check_generation(container, if_generation)?;
    if container.desired.run == DesiredRun::Absent {
        return Err(conflict(format!("container {name} is being destroyed")));
    }
    let mut usable = container.revisions.iter().rev().filter(|r| r.toplevel.is_some());
    let revision = match generation {
        Some(generation) => usable.find(|r| r.generation == generation).ok_or_else(|| {
            not_found(format!(
                "container {name} has no revision of generation {generation} with a system; container.history lists all"
            ))
        })?,
        None => usable
            .find(|r| r.toplevel != container.desired.toplevel || r.options != container.desired.options)
            .ok_or_else(|| conflict(format!("container {name} has no earlier revision to restore")))?,
    };
    check_others(state, name, &revision.options)?;
    let toplevel = revision.toplevel.clone();
    Ok(Decision {
        facts: vec![Fact::from(ContainerDesired {
            name: name.clone(),
            desired: Desired {
                generation: container.desired.generation + 1,
                source: revision.source.clone(),
                fallback: toplevel
                    .as_ref()
                    .and_then(|toplevel| fallback(container, toplevel)),
                toplevel,
                build_job: None,
                secrets: secret::restarting_again(
                    &state.secrets,
                    name,
                    &revision.options,
                    &container.desired.secrets,
                ),
                options: revision.options.clone(),
                ..container.desired.clone()
            },
            caller: context.caller.clone(),
        })],
        reply: Reply::Container(name.clone()),
    })
}

/// Decides to adopt a foreign container. `found` is the container as observed on the host.
///
/// # Errors
/// A [`Problem`] when it can't be adopted.
pub fn adopt(
    state: &State,
    name: &ContainerName,
    found: Option<&ForeignContainer>,
    context: &Context,
) -> Result<Decision, Problem> {
    if context.runtime == Runtime::Nspawn {
        return Err(unsupported(context.runtime.unsupported_text("adopt")));
    }
    let Some(found) = found else {
        return Err(not_found(format!(
            "this host has no foreign container {name}; container.list lists all"
        )));
    };
    if state.containers.contains_key(name) {
        return Err(Problem::new(
            ProblemCode::AlreadyExists,
            format!("container {name} is already this leaf's"),
        ));
    }
    check_name(name)?;
    if found.declarative {
        return Err(conflict(format!(
            "container {name} is declared in the host's NixOS configuration; remove it there first"
        )));
    }
    let Some(toplevel) = &found.toplevel else {
        return Err(conflict(format!(
            "can't determine the system of container {name}: neither its SYSTEM_PATH nor its profile leads to one"
        )));
    };
    let users = if found.host_users {
        Users::Host
    } else {
        Users::Private
    };
    Ok(Decision {
        facts: vec![Fact::from(ContainerDesired {
            name: name.clone(),
            desired: Desired {
                generation: 1,
                run: if found.running {
                    DesiredRun::Running
                } else {
                    DesiredRun::Stopped
                },
                paused: false,
                source: ContainerSource::Toplevel {
                    path: toplevel.clone(),
                },
                toplevel: Some(toplevel.clone()),
                build_job: None,
                network: free_link(state, context)?,
                options: ContainerOptions {
                    users,
                    ..ContainerOptions::default()
                },
                secrets: BTreeMap::new(),
                fallback: None,
                adopted: true,
            },
            caller: context.caller.clone(),
        })],
        reply: Reply::Container(name.clone()),
    })
}

fn check_generation(container: &Container, if_generation: Option<u64>) -> Result<(), Problem> {
    let generation = container.desired.generation;
    match if_generation {
        Some(seen) if seen != generation => Err(conflict(format!(
            "container {} is at generation {generation}, not {seen}; query it again",
            container.name
        ))),
        _ => Ok(()),
    }
}

/// Decides a change of the desired state to another `run`.
fn set_run(
    state: &State,
    name: &ContainerName,
    if_generation: Option<u64>,
    run: DesiredRun,
    context: &Context,
) -> Result<Decision, Problem> {
    let container = find_container(state, name)?;
    let generation = container.desired.generation;
    check_generation(container, if_generation)?;
    match (container.desired.run, run) {
        (DesiredRun::Absent, DesiredRun::Running | DesiredRun::Stopped) => {
            return Err(conflict(format!("container {name} is being destroyed")));
        }
        (_, DesiredRun::Running | DesiredRun::Stopped) if container.desired.toplevel.is_none() => {
            return Err(conflict(match container.desired.build_job {
                Some(job) if container.phase == ContainerPhase::Building => {
                    format!("job {job} is still building the system of container {name}; wait for it")
                }
                _ => format!(
                    "the build of the system of container {name} failed; update it, or destroy it and create it again"
                ),
            }));
        }
        _ => {}
    }
    let settled = match run {
        DesiredRun::Running => container.phase == ContainerPhase::Running,
        DesiredRun::Stopped => container.phase == ContainerPhase::Stopped,
        DesiredRun::Absent => false,
    };
    let mut facts = Vec::new();
    // A command for the present desired state waits for the same outcome as the one that set it.
    if container.desired.run != run || !(settled || container.phase.is_moving()) {
        facts.push(Fact::from(ContainerDesired {
            name: name.clone(),
            desired: Desired {
                generation: generation + 1,
                run,
                ..container.desired.clone()
            },
            caller: context.caller.clone(),
        }));
    }
    Ok(Decision {
        facts,
        reply: Reply::When(Target::Container(name.clone())),
    })
}

fn pause(
    state: &State,
    name: &ContainerName,
    if_generation: Option<u64>,
    paused: bool,
    context: &Context,
) -> Result<Decision, Problem> {
    let desired = &find_container(state, name)?.desired;
    if desired.run != DesiredRun::Running {
        return Err(conflict(format!(
            "the desired state of container {name} is {}, so it can't be paused or resumed; start it first",
            match desired.run {
                DesiredRun::Absent => "destroyed",
                DesiredRun::Running | DesiredRun::Stopped => "stopped",
            }
        )));
    }
    let mut decision = change(state, name, if_generation, false, context, |spec| {
        Ok(ContainerSpec { paused, ..spec })
    })?;
    decision.reply = Reply::When(Target::Container(name.clone()));
    Ok(decision)
}

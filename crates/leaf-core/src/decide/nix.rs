//! Decides the commands about Nix.

use jiff::{SignedDuration, Timestamp};

use super::job::{by_policy, check_queue, ended_before, queue, time_limit};
use super::{Context, Decision, Question, Reply, conflict, invalid, known, only};
use crate::cause::Cause;
use crate::command::nix::{Attestation, Attestations, Build, Command, JobAccepted};
use crate::event::{Fact, JobQueued, JobStoodBy};
use crate::id::{JobId, StorePath};
use crate::job::build::check_all;
use crate::job::run::{MOST_OF_A_CALLER, MOST_PROGRAMS};
use crate::job::{
    BuildTask, CheckTask, DevelopTask, DiffTask, EvalTask, GcTask, Installable, Job, JobPhase, JobResult,
    NixPolicy, PrintEnvTask, RootsTask, RunTask, Task,
};
use crate::placement::JobKey;
use crate::placement::demand::{Demand, check_features};
use crate::placement::offer::{Offer, Verdict};
use crate::placement::room::{JobRules, works_on};
use crate::placement::work::{Work, WorkPlace};
use crate::problem::{Problem, ProblemCode};
use crate::state::State;
use crate::transfer;

/// The time limit of an evaluation whose command sets none, in seconds.
const EVAL_SECONDS: u32 = 60;
/// The maximum number of systems that a build names.
const MOST_SYSTEMS: usize = 8;
/// The maximum number of statements in a reply.
const MOST_ATTESTATIONS: usize = 8;

pub(super) fn decide(state: &State, command: &Command, context: &Context) -> Result<Decision, Problem> {
    let (task, demand) = match command {
        Command::Attestations(c) => return Ok(only(known(&attestations(state, &c.path)))),
        Command::Put(c) => {
            transfer::check(&c.paths).map_err(invalid)?;
            let question = Question::Lacking(context.caller.clone(), c.paths.clone());
            return Ok(only(Reply::FromHost(question)));
        }
        Command::Get(c) => {
            transfer::stored::check_wanted(&c.paths).map_err(invalid)?;
            let question = Question::Stored {
                caller: context.caller.clone(),
                paths: c.paths.clone(),
                closure: c.closure,
            };
            return Ok(only(Reply::FromHost(question)));
        }
        Command::Offer(c) => return Ok(only(known(&offer(state, &c.build, context)))),
        Command::Build(c) => {
            let (task, demand) = build(c, context)?;
            if let Some(work) = &c.work {
                return attempt(state, c, work, (task, demand), context);
            }
            if c.only_if_room {
                check_room(state, &task, &demand, context)?;
            }
            (task, demand)
        }
        Command::Eval(c) => {
            let task = EvalTask {
                installable: allowed(&c.installable, c.impure, context)?,
                impure: c.impure,
                apply: c.apply.clone(),
                timeout_seconds: time_limit(c.timeout_seconds.or(Some(EVAL_SECONDS)), context)?,
            };
            task.check().map_err(invalid)?;
            (Task::Eval(task), Demand::default())
        }
        Command::PrintEnv(c) => {
            let task = PrintEnvTask {
                installable: allowed(&c.installable, c.impure, context)?,
                impure: c.impure,
                timeout_seconds: time_limit(c.timeout_seconds, context)?,
            };
            task.check().map_err(invalid)?;
            (Task::PrintEnv(task), Demand::default())
        }
        Command::Check(c) => {
            let task = CheckTask {
                installable: allowed(&c.installable, c.impure, context)?,
                impure: c.impure,
                timeout_seconds: time_limit(c.timeout_seconds, context)?,
            };
            task.check().map_err(invalid)?;
            (Task::Check(task), Demand::default())
        }
        Command::Gc(c) => {
            let seconds = c.older_than_seconds;
            let then = seconds.map(|seconds| {
                let age = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                context.now.checked_sub(age).unwrap_or(Timestamp::MIN)
            });
            let task = GcTask {
                dry_run: c.dry_run,
                free_bytes: c.free_bytes,
                gives_up: then.map(|then| ended_before(state, then)).unwrap_or_default(),
                timeout_seconds: time_limit(c.timeout_seconds, context)?,
            };
            (Task::Gc(task), Demand::default())
        }
        Command::Roots(c) => {
            let task = RootsTask {
                path: c.path.clone(),
                timeout_seconds: time_limit(c.timeout_seconds, context)?,
            };
            (Task::Roots(task), Demand::default())
        }
        Command::Diff(c) => {
            let task = DiffTask {
                from: c.from.clone(),
                to: c.to.clone(),
                timeout_seconds: time_limit(c.timeout_seconds, context)?,
            };
            (Task::Diff(task), Demand::default())
        }
        Command::Run(c) => {
            let task = RunTask {
                packages: c.packages.clone(),
                command: c.command.clone(),
                environment: c.environment.clone(),
                pure: c.pure,
                session: c.session.clone(),
                timeout_seconds: time_limit(c.timeout_seconds, context)?,
            };
            task.check().map_err(invalid)?;
            for package in &task.packages {
                by_policy(package, false, context)?;
            }
            has_room(state, context)?;
            (Task::Run(task), Demand::default())
        }
        Command::Develop(c) => {
            let task = DevelopTask {
                installable: c.installable.clone(),
                packages: c.packages.clone(),
                command: c.command.clone(),
                shell_hook: c.shell_hook.clone(),
                environment: c.environment.clone(),
                pure: c.pure,
                impure: c.impure,
                session: c.session.clone(),
                timeout_seconds: time_limit(c.timeout_seconds, context)?,
            };
            task.check().map_err(invalid)?;
            for installable in task.installable.iter().chain(&task.packages) {
                by_policy(installable, task.impure, context)?;
            }
            has_room(state, context)?;
            (Task::Develop(task), Demand::default())
        }
    };
    let job = JobId(context.fresh_id);
    let fact = queue(state, job, task, demand, context)?;
    Ok(Decision {
        facts: vec![fact],
        reply: known(&JobAccepted {
            job,
            phase: JobPhase::Queued,
        }),
    })
}

/// Decides an attempt of a work: the first leaf queues it, and the second one stands by.
fn attempt(
    state: &State,
    c: &Build,
    work: &Work,
    (task, demand): (Task, Demand),
    context: &Context,
) -> Result<Decision, Problem> {
    let place = work.place_of(&context.leaf).ok_or_else(|| {
        invalid(format!(
            "leaf {} is not one of the two leaves of the work: {} and {}",
            context.leaf, work.first, work.second
        ))
    })?;
    // At the second leaf, whose caller sees the id before, nobody else's job is in the way: the first leaf's job says whose it is.
    let has_it = |job: &&Job| {
        let is_it = job.work.as_ref().is_some_and(|of_job| of_job.id == work.id);
        is_it && (place == WorkPlace::First || job.owner == context.caller)
    };
    if let Some(job) = state.jobs.values().find(has_it) {
        return Err(conflict(format!("job {} is this work's already", job.id)));
    }
    let id = JobId(context.fresh_id);
    let owner = context.caller.clone();
    let (fact, phase) = match place {
        WorkPlace::First => {
            if c.only_if_room {
                check_room(state, &task, &demand, context)?;
            }
            check_queue(state, context)?;
            let queued = JobQueued {
                id,
                owner,
                task,
                demand,
                work: Some(work.clone()),
            };
            (Fact::from(queued), JobPhase::Queued)
        }
        WorkPlace::Second => {
            check_standby(state, context)?;
            let stood_by = JobStoodBy {
                id,
                owner,
                task,
                demand,
                work: work.clone(),
            };
            (Fact::from(stood_by), JobPhase::Standby)
        }
    };
    Ok(Decision {
        facts: vec![fact],
        reply: known(&JobAccepted { job: id, phase }),
    })
}

/// Checks that the leaf can stand by for one more build.
fn check_standby(state: &State, context: &Context) -> Result<(), Problem> {
    if !context.works {
        let why = "the leaf can't stand by for a build: it has no hub whose agent says when the first leaf is gone, or that does not answer now";
        return Err(Problem::new(ProblemCode::Unsupported, why.to_owned()));
    }
    let standing_by = state.jobs.values().filter(|job| job.phase == JobPhase::Standby);
    let count = standing_by.count();
    if count >= context.jobs.max_queued {
        let why = format!("the leaf stands by for {count} builds already; try again later");
        return Err(Problem::new(ProblemCode::Overloaded, why));
    }
    Ok(())
}

/// Returns why a build that this leaf stood by for may not be started here any more: the settings may have changed since.
#[must_use]
pub fn not_allowed_now(job: &Job, rules: &JobRules, policy: &NixPolicy) -> Option<String> {
    let Task::Build(task) = &job.task else { return None };
    let refused = |installable| policy.check(installable, task.impure).err();
    rules.lacks(&job.demand).or_else(|| task.all().find_map(refused))
}

/// Refuses a program beyond the number of those that may run at the same time.
fn has_room(state: &State, context: &Context) -> Result<(), Problem> {
    let open = || {
        let open = state.jobs.values().filter(|job| !job.phase.is_final());
        open.filter(|job| job.task.has_program())
    };
    let own = open().filter(|job| job.owner == context.caller).count();
    if open().count() < MOST_PROGRAMS && own < MOST_OF_A_CALLER {
        return Ok(());
    }
    Err(Problem::new(
        ProblemCode::Overloaded,
        format!(
            "{} programs run already, {own} of them are {}'s: a leaf runs at most {MOST_PROGRAMS}, and {MOST_OF_A_CALLER} of one \
             caller; job.list shows them, and job.cancel ends one",
            open().count(),
            context.caller
        ),
    ))
}

/// Returns an installable that is valid and that the policy of this leaf does not refuse.
fn allowed(installable: &Installable, impure: bool, context: &Context) -> Result<Installable, Problem> {
    installable.check().map_err(invalid)?;
    by_policy(installable, impure, context)?;
    Ok(installable.clone())
}

/// Returns the task of a build, and what it takes.
fn build(c: &Build, context: &Context) -> Result<(Task, Demand), Problem> {
    if c.installable.is_some() && !c.installables.is_empty() {
        return Err(invalid(
            "give either installable or installables, not both".to_owned(),
        ));
    }
    let installables = c.installable.iter().chain(&c.installables);
    check_all(installables.clone()).map_err(invalid)?;
    for installable in installables.clone() {
        allowed(installable, c.impure, context)?;
    }
    check_features(&c.features).map_err(invalid)?;
    if c.systems.len() > MOST_SYSTEMS {
        return Err(invalid(format!("give at most {MOST_SYSTEMS} systems")));
    }
    let demand = Demand {
        features: c.features.clone(),
        priority: c.priority,
    };
    let rules = &context.jobs;
    let lacking = rules.lacks_system(&c.systems, installables.clone());
    if let Some(why) = lacking.or_else(|| rules.lacks(&demand)) {
        return Err(Problem::new(ProblemCode::Unsupported, why));
    }
    let task = BuildTask {
        keep_going: c.keep_going,
        impure: c.impure,
        ..BuildTask::new(
            installables.cloned().collect(),
            time_limit(c.timeout_seconds, context)?,
        )
    };
    Ok((Task::Build(task), demand))
}

/// Checks that a build starts at once, or is about the same as an open job.
fn check_room(state: &State, task: &Task, demand: &Demand, context: &Context) -> Result<(), Problem> {
    match would(state, task, demand, context) {
        (Verdict::WorksOnIt | Verdict::Room, _) => Ok(()),
        (_, why) => {
            let why = why.unwrap_or_default();
            let detail = format!("the build has only_if_room, and there is none: {why}");
            Err(Problem::new(ProblemCode::NoRoom, detail))
        }
    }
}

/// Returns what would come of a build that is not refused, and why.
fn would(state: &State, task: &Task, demand: &Demand, context: &Context) -> (Verdict, Option<String>) {
    if JobKey::of(task).is_some_and(|key| works_on(state, &key)) {
        return (Verdict::WorksOnIt, None);
    }
    let job = Job {
        id: JobId(context.fresh_id),
        owner: context.caller.clone(),
        task: task.clone(),
        demand: demand.clone(),
        work: None,
        phase: JobPhase::Queued,
        cause: Cause::default(),
        queued_at: context.now,
        started_at: None,
        ended_at: None,
        result: None,
        failure: None,
        error: None,
        explanation: None,
        partial: Vec::new(),
        attestation: None,
    };
    let rules = &context.jobs;
    if let Some(why) = rules.waits_for(state, &job, context.in_places, context.now) {
        return (Verdict::Waits, Some(why));
    }
    let strain = context
        .pressure
        .as_ref()
        .and_then(|pressure| rules.limits.exceeded(pressure));
    match strain {
        Some(why) => (Verdict::Strained, Some(why)),
        None => (Verdict::Room, None),
    }
}

/// Returns the leaf's offer for a build: the decision on it, without a record.
fn offer(state: &State, c: &Build, context: &Context) -> Offer {
    let decided = match &context.refusing {
        Some(problem) => Err(problem.clone()),
        None => build(c, context).and_then(|(task, demand)| {
            check_queue(state, context)?;
            Ok(would(state, &task, &demand, context))
        }),
    };
    let (verdict, why) = decided.unwrap_or_else(|problem| (Verdict::Never, Some(problem.detail)));
    Offer {
        works: context.works,
        ..context.jobs.offer(state, verdict, why, context.pressure)
    }
}

/// Returns the statements about what built a store path, newest first.
fn attestations(state: &State, path: &StorePath) -> Attestations {
    let built = |job: &&Job| match &job.result {
        Some(JobResult::Build(result)) => {
            let others = result.others.iter().flat_map(|other| other.outputs.values());
            result.outputs.values().chain(others).any(|output| output == path)
        }
        _ => false,
    };
    let jobs = state.jobs.values().rev().filter(built);
    let attested = jobs.filter_map(|job| {
        Some(Attestation {
            job: job.id,
            envelope: job.attestation.clone()?,
        })
    });
    let leaf = state.leaf.as_ref();
    Attestations {
        key: leaf.and_then(|leaf| leaf.provenance_key.clone()),
        attestations: attested.take(MOST_ATTESTATIONS).collect(),
    }
}

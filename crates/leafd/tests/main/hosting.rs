//! Containers and Nix jobs through a running leafd: real nix, systemd-nspawn, nftables and nats-server.

#[path = "hosting/containers.rs"]
mod containers;
#[path = "hosting/crowds.rs"]
mod crowds;
#[path = "hosting/failing.rs"]
mod failing;
#[path = "hosting/fleet.rs"]
mod fleet;
#[path = "hosting/given.rs"]
mod given;
#[path = "hosting/jobs.rs"]
mod jobs;
#[path = "hosting/pause.rs"]
mod pause;
#[path = "hosting/reach.rs"]
mod reach;
#[path = "hosting/renewals.rs"]
mod renewals;
#[path = "hosting/restarts.rs"]
mod restarts;
#[path = "hosting/secrets.rs"]
mod secrets;
#[path = "hosting/systems.rs"]
mod systems;
#[path = "hosting/traces.rs"]
mod traces;

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail, ensure};
use leaf_bus::client::CallError;
use leaf_core::command::{
    Build, CreateContainer, DestroyContainer, JobReport, ListJobs, ReadContainerLog, ReadJobLog,
    ShowContainer, ShowJob, StartContainer, StopContainer,
};
use leaf_core::container::{Container, ContainerPhase};
use leaf_core::id::{ContainerName, JobId, StorePath};
use leaf_core::job::{Installable, Job, JobPhase};
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::spec::ContainerSource;
use libtest_mimic::Trial;

use crate::support::{Host, LIMIT, Setup, TestLeaf, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let mut trials = containers::trials(host);
    trials.extend(failing::trials(host));
    trials.extend(reach::trials(host));
    trials.extend(given::trials(host));
    trials.push(fleet::trial(host));
    trials.extend(crowds::trials(host));
    trials.extend(jobs::trials(host));
    trials.extend(pause::trials(host));
    trials.extend(renewals::trials(host));
    trials.extend(restarts::trials(host));
    trials.extend(secrets::trials(host));
    trials
}

/// A leaf that runs containers.
async fn leaf() -> anyhow::Result<TestLeaf> {
    Setup::new().containers().start().await
}

/// Fails if anything of a container that was destroyed is left on the host.
fn nothing_left(leaf: &TestLeaf, name: &ContainerName) -> anyhow::Result<()> {
    let left = traces::of_container(&leaf.name, name);
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

/// A container's name that no other test on this machine has.
fn name() -> ContainerName {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::SeqCst);
    ContainerName::new(format!("h{:x}-{number}", std::process::id())).expect("a container's name")
}

/// The problem that a command was answered with.
fn problem<T: std::fmt::Debug>(answer: Result<T, CallError>) -> anyhow::Result<Problem> {
    match answer {
        Err(CallError::Problem(problem)) => Ok(problem),
        other => bail!("not a problem: {other:?}"),
    }
}

/// Makes sure that a command was refused or failed like this.
fn is_problem<T: std::fmt::Debug>(
    answer: Result<T, CallError>,
    code: ProblemCode,
    says: &str,
) -> anyhow::Result<()> {
    let problem = problem(answer)?;
    ensure!(
        problem.code == code && problem.detail.contains(says),
        "{code:?} {says:?} was expected: {problem:?}"
    );
    Ok(())
}

fn toplevel(path: &StorePath) -> ContainerSource {
    ContainerSource::Toplevel { path: path.clone() }
}

fn minimal() -> ContainerSource {
    ContainerSource::Template {
        name: "minimal".to_owned(),
    }
}

impl TestLeaf {
    /// Starts leafd again, and waits until it answers: the client of the test has found it again, too.
    async fn back(&mut self) -> anyhow::Result<()> {
        self.start_again().await?;
        self.show().await.map(drop)
    }

    /// Creates a container. One that needs no build is waited for until it has settled, or has failed.
    async fn create(
        &mut self,
        name: &ContainerName,
        source: ContainerSource,
        start: bool,
    ) -> Result<Container, CallError> {
        let create = CreateContainer {
            name: name.clone(),
            source,
            start,
            options: Default::default(),
        };
        let mut container = self.call(&create).await?;
        while container.phase.is_moving() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            container = self.container(name).await?;
        }
        if container.phase == ContainerPhase::Failed {
            let error = container.error.unwrap_or_default();
            return Err(Problem::new(ProblemCode::Failed, error).into());
        }
        Ok(container)
    }

    async fn start_container(&mut self, name: &ContainerName) -> Result<Container, CallError> {
        self.call(&start(name)).await
    }

    async fn stop_container(&mut self, name: &ContainerName) -> Result<Container, CallError> {
        self.call(&stop(name)).await
    }

    async fn destroy(&mut self, name: &ContainerName) -> anyhow::Result<()> {
        let gone = self.call(&destroy(name)).await?;
        ensure!(gone.name == *name);
        Ok(())
    }

    /// Destroys a container, and makes sure that nothing of it is left on the host.
    async fn destroy_without_a_trace(&mut self, name: &ContainerName) -> anyhow::Result<()> {
        self.destroy(name).await?;
        nothing_left(self, name)
    }

    async fn container(&mut self, name: &ContainerName) -> Result<Container, CallError> {
        self.call(&ShowContainer { name: name.clone() }).await
    }

    async fn console(&mut self, name: &ContainerName) -> anyhow::Result<String> {
        let request = ReadContainerLog {
            name: name.clone(),
            lines: None,
            since: None,
            cursor: None,
        };
        Ok(self.call(&request).await?.text)
    }

    /// Waits until a container is in this phase.
    async fn in_phase(&mut self, name: &ContainerName, phase: ContainerPhase) -> anyhow::Result<Container> {
        let deadline = std::time::Instant::now() + LIMIT;
        loop {
            let shown = self.container(name).await?;
            if shown.phase == phase {
                return Ok(shown);
            }
            ensure!(
                std::time::Instant::now() < deadline,
                "not within {LIMIT:?}: {name} is {phase:?}; {shown:?}; the log:\n{}",
                self.log()
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// The events about a container, each by its kind and its data, in order, after all is published.
    async fn told(&mut self, about: &str) -> anyhow::Result<Vec<(String, serde_json::Value)>> {
        self.published().await?;
        let events = self.events().await?;
        let mut told = Vec::new();
        for event in events {
            let kind = event.kind().context("an event has a kind")?.to_owned();
            let body: serde_json::Value = serde_json::from_slice(&event.body)?;
            if event.subject.contains(&format!(".{about}.")) {
                told.push((kind, body));
            }
        }
        Ok(told)
    }

    /// The data of the last event about a container, which must be of this kind.
    async fn told_last(&mut self, name: &ContainerName, kind: &str) -> anyhow::Result<serde_json::Value> {
        let (found, data) = self.told(&name.token()).await?.pop().context("an event")?;
        ensure!(found == kind, "{found}");
        Ok(data)
    }

    /// Fails unless the events of a container say that it was made, as `first` says, and then created, started, stopped
    /// and destroyed, each once.
    async fn told_a_whole_life(&mut self, name: &ContainerName, first: &[&str]) -> anyhow::Result<()> {
        let then = [
            "created",
            "desired",
            "started",
            "desired",
            "stopped",
            "desired",
            "destroyed",
        ];
        let expected: Vec<String> = first
            .iter()
            .chain(&then)
            .map(|kind| format!("container.{kind}"))
            .collect();
        let kinds = self.kinds_told(&name.token()).await?;
        ensure!(kinds == expected, "{kinds:?}");
        Ok(())
    }

    async fn kinds_told(&mut self, about: &str) -> anyhow::Result<Vec<String>> {
        let told = self.told(about).await?;
        let short = |kind: &str| {
            kind.trim_start_matches("cim.leaf.")
                .trim_end_matches(".v1")
                .to_owned()
        };
        Ok(told.iter().map(|(kind, _)| short(kind)).collect())
    }

    async fn build(&mut self, installable: Installable) -> anyhow::Result<JobId> {
        self.build_within(installable, None).await
    }

    async fn build_within(
        &mut self,
        installable: Installable,
        timeout_seconds: Option<u32>,
    ) -> anyhow::Result<JobId> {
        let build = Build {
            timeout_seconds,
            ..Build::of([installable])
        };
        let accepted = self.call(&build).await?;
        ensure!(accepted.phase == JobPhase::Queued, "{accepted:?}");
        Ok(accepted.job)
    }

    async fn job(&mut self, id: JobId) -> Result<JobReport, CallError> {
        self.call(&ShowJob { id }).await
    }

    /// Waits until a job has ended.
    async fn job_ended(&mut self, id: JobId) -> anyhow::Result<Job> {
        self.job_until(id, |job| job.phase.is_final()).await
    }

    /// Waits until a job is so.
    async fn job_until(&mut self, id: JobId, so: impl Fn(&Job) -> bool) -> anyhow::Result<Job> {
        let deadline = std::time::Instant::now() + 2 * LIMIT;
        loop {
            let report = self.job(id).await?;
            if so(&report.job) {
                return Ok(report.job);
            }
            ensure!(
                std::time::Instant::now() < deadline,
                "not in time: {report:?}; the log:\n{}",
                self.log()
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn jobs(&mut self) -> anyhow::Result<Vec<Job>> {
        Ok(self.call(&ListJobs {}).await?.jobs)
    }

    /// All of a job's log, read in pieces.
    async fn job_log(&mut self, id: JobId) -> anyhow::Result<String> {
        let (mut text, mut offset) = (String::new(), 0);
        loop {
            let chunk = self.call(&ReadJobLog { id, offset }).await?;
            text.push_str(&chunk.text);
            if chunk.complete {
                return Ok(text);
            }
            ensure!(chunk.next_offset > offset, "no progress at {offset}: {chunk:?}");
            offset = chunk.next_offset;
        }
    }

    /// Waits until a job's log says this.
    async fn job_says(&mut self, id: JobId, wanted: &str) -> anyhow::Result<()> {
        let client = self.client().await?;
        let leaf = self.name.clone();
        until(&format!("job {id} says {wanted:?}"), async || {
            let chunk = client
                .call(&leaf, &ReadJobLog { id, offset: 0 }, Default::default())
                .await?;
            Ok(chunk.text.contains(wanted).then_some(()))
        })
        .await
    }
}

fn start(name: &ContainerName) -> StartContainer {
    StartContainer {
        name: name.clone(),
        if_generation: None,
    }
}

fn stop(name: &ContainerName) -> StopContainer {
    StopContainer {
        name: name.clone(),
        if_generation: None,
    }
}

fn destroy(name: &ContainerName) -> DestroyContainer {
    DestroyContainer {
        name: name.clone(),
        if_generation: None,
    }
}

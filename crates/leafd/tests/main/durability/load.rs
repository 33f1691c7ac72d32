//! Many real events, cheaply: clients that queue Nix builds and cancel them again, while one build holds the only place.
//! Each command is sent under its id until it is answered, as a person's script would.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use leaf_bus::client::{CallError, CallOptions, Client};
use leaf_bus::context;
use leaf_core::command::{Build, CancelJob, ListContainers, ListHardware, ListJobs, Request};
use leaf_core::event::{Event, EventRecord, Fact, JobFact};
use leaf_core::id::{CommandId, JobId, LeafName};
use leaf_core::job::{Installable, JobPhase};
use leaf_core::problem::ProblemCode;
use leaf_core::state::{SNAPSHOT_KEY, State};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::{LIMIT, Setup, TestLeaf, until};

/// How many clients send at once.
const CLIENTS: usize = 6;

/// How long one attempt waits for its answer.
const ATTEMPT: Duration = Duration::from_secs(2);

/// One answered pair of commands.
#[derive(Debug)]
pub(crate) struct Done {
    build: CommandId,
    job: JobId,
    phase: JobPhase,
}

/// Clients at work.
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    clients: JoinSet<anyhow::Result<Vec<Done>>>,
    answered: watch::Receiver<u64>,
}

/// The settings of a leaf on which a load runs: one job at a time.
pub(crate) fn setup() -> Setup {
    Setup::new().set("nix.max_jobs", 1)
}

/// Takes the only place for jobs, with a build that never ends.
async fn block_jobs(leaf: &mut TestLeaf) -> anyhow::Result<JobId> {
    let file = leaf.scratch().join("endless.nix");
    let expression = format!(
        r#"derivation {{ name = "endless-{}"; system = "{}-linux"; builder = "/bin/sh"; args = [ "-c" "while :; do sleep 60; done" ]; }}"#,
        leaf.name,
        std::env::consts::ARCH
    );
    std::fs::write(&file, expression)?;
    let job = leaf.call(&build(&file)).await?.job;
    until("the endless build runs", async || {
        let jobs = leaf.call(&ListJobs {}).await?.jobs;
        Ok(jobs
            .iter()
            .any(|j| j.id == job && j.phase == JobPhase::Running)
            .then_some(()))
    })
    .await?;
    Ok(job)
}

/// Starts a leaf with these settings, one job at a time, that is kept busy by a build without an end.
pub(crate) async fn busy_leaf(setup: Setup) -> anyhow::Result<(TestLeaf, JobId)> {
    let mut leaf = setup.start().await?;
    let job = block_jobs(&mut leaf).await?;
    Ok((leaf, job))
}

/// Makes some history.
pub(crate) async fn work(leaf: &mut TestLeaf) -> anyhow::Result<()> {
    let mut load = Load::start(leaf);
    load.answers_more(30).await?;
    load.finish().await.map(drop)
}

fn build(file: &Path) -> Build {
    Build::of([Installable::File {
        path: file.display().to_string(),
        attribute: None,
    }])
}

impl Load {
    /// Begins. Jobs must be [blocked](block_jobs).
    pub(crate) fn start(leaf: &TestLeaf) -> Self {
        Self::through(leaf, &leaf.context_file(), "load")
    }

    /// Begins, with clients that connect by this context, whose command ids begin with this text.
    pub(crate) fn through(leaf: &TestLeaf, context: &Path, label: &str) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (count, answered) = watch::channel(0);
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let client = LoadClient {
                leaf: leaf.name.clone(),
                context: context.to_owned(),
                label: format!("{label}-{number}"),
                stopped: stopped.clone(),
                count: count.clone(),
            };
            clients.spawn(client.run());
        }
        Self {
            stop,
            clients,
            answered,
        }
    }

    /// How many commands were answered so far.
    pub(crate) fn answered(&self) -> u64 {
        *self.answered.borrow()
    }

    /// Waits until so many more commands were answered; fails when a client did.
    pub(crate) async fn answers_more(&mut self, commands: u64) -> anyhow::Result<()> {
        let wanted = self.answered() + commands;
        tokio::select! {
            reached = tokio::time::timeout(LIMIT, self.answered.wait_for(|answered| *answered >= wanted)) => {
                reached.with_context(|| format!("{commands} more answers within {LIMIT:?}"))??;
                Ok(())
            }
            Some(ended) = self.clients.join_next() => {
                let done = ended??;
                anyhow::bail!("a client ended early, after {} pairs", done.len())
            }
        }
    }

    /// Lets each client finish what it is about, and returns all that was answered.
    pub(crate) async fn finish(mut self) -> anyhow::Result<Vec<Done>> {
        self.stop.send_replace(true);
        let mut all = Vec::new();
        while let Some(done) = tokio::time::timeout(LIMIT, self.clients.join_next())
            .await
            .context("the clients finish")?
        {
            all.extend(done??);
        }
        Ok(all)
    }
}

struct LoadClient {
    leaf: LeafName,
    context: PathBuf,
    label: String,
    stopped: watch::Receiver<bool>,
    count: watch::Sender<u64>,
}

impl LoadClient {
    async fn run(self) -> anyhow::Result<Vec<Done>> {
        let mut client = self.connect().await?;
        let mut done = Vec::new();
        while !*self.stopped.borrow() {
            let id = |verb: &str| CommandId::new(format!("{}-{}-{verb}", self.label, done.len()));
            let (build_id, cancel_id) = (id("build")?, id("cancel")?);
            let request = build(&self.context.with_file_name("nothing.nix"));
            let job = self.send(&mut client, &build_id, &request).await?.job;
            let cancelled = self.send(&mut client, &cancel_id, &CancelJob { id: job }).await?;
            // Where the place for jobs is lost to a full disk, it may have begun, and failed.
            ensure!(
                cancelled.id == job && cancelled.phase.is_final(),
                "{cancelled:?} is the answer to the cancelling of {job}"
            );
            done.push(Done {
                build: build_id,
                job,
                phase: cancelled.phase,
            });
        }
        Ok(done)
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let settings = context::load(self.context.to_str())?;
            match Client::connect(&settings, ATTEMPT).await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Sends a command until it is answered. A client that was disconnected is replaced by a new one: after many failed
    /// attempts to connect, its next one may come after the server's next end, each time.
    async fn send<R: Request>(
        &self,
        client: &mut Client,
        id: &CommandId,
        request: &R,
    ) -> anyhow::Result<R::Reply> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let options = CallOptions {
                id: Some(id.clone()),
                timeout: ATTEMPT,
                ..CallOptions::default()
            };
            let error = match client.call(&self.leaf, request, options).await {
                Ok(reply) => {
                    self.count.send_modify(|count| *count += 1);
                    return Ok(reply);
                }
                Err(error) => error,
            };
            let passes = match &error {
                CallError::Problem(problem) => matches!(
                    problem.code,
                    ProblemCode::Draining | ProblemCode::DiskFull | ProblemCode::Overloaded
                ),
                _ => true,
            };
            if !passes || Instant::now() > deadline {
                return Err(anyhow::Error::new(error).context(format!("the command {id}")));
            }
            if matches!(error, CallError::Disconnected) {
                *client = self.connect().await?;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Makes sure that each answered command is in the history exactly once, and did what its answer said.
pub(crate) fn check_done(events: &[EventRecord], done: &[Done]) -> anyhow::Result<()> {
    let mut queued: BTreeMap<CommandId, Vec<JobId>> = BTreeMap::new();
    let mut ended: BTreeMap<JobId, Vec<JobPhase>> = BTreeMap::new();
    for record in events {
        let event = Event::from_record(record)?;
        let (id, phase) = match event.fact {
            Fact::Job(JobFact::Queued(fact)) => {
                if let Some(command) = event.causation {
                    queued.entry(command).or_default().push(fact.id);
                }
                continue;
            }
            Fact::Job(JobFact::Cancelled(fact)) => (fact.id, JobPhase::Cancelled),
            Fact::Job(JobFact::Failed(fact)) => (fact.id, JobPhase::Failed),
            Fact::Job(JobFact::Interrupted(fact)) => (fact.id, JobPhase::Interrupted),
            Fact::Job(JobFact::Succeeded(fact)) => (fact.id, JobPhase::Succeeded),
            _ => continue,
        };
        ended.entry(id).or_default().push(phase);
    }
    for done in done {
        let queued = queued.get(&done.build).map(Vec::as_slice);
        ensure!(
            queued == Some(&[done.job][..]),
            "{} was answered with job {}, and queued {queued:?}",
            done.build,
            done.job
        );
        let ended = ended.get(&done.job).map(Vec::as_slice);
        ensure!(
            ended == Some(&[done.phase][..]),
            "the cancelling of {} was answered with {:?}, and its ends are {ended:?}",
            done.job,
            done.phase
        );
    }
    Ok(())
}

/// Makes sure that this state is what the leaf shows: by its commands, and in the bucket.
pub(crate) async fn check_shown(leaf: &mut TestLeaf, replayed: &State) -> anyhow::Result<()> {
    let shown = leaf.show().await?;
    ensure!(
        shown.sequence == replayed.sequence,
        "the leaf is at {}, the replay ends with {}",
        shown.sequence,
        replayed.sequence
    );
    let jobs: Vec<_> = replayed.jobs.values().rev().cloned().collect();
    ensure!(leaf.call(&ListJobs {}).await?.jobs == jobs, "the jobs differ");
    let devices: Vec<_> = replayed.devices.values().cloned().collect();
    ensure!(
        leaf.call(&ListHardware {}).await?.devices == devices,
        "the devices differ"
    );
    let containers: Vec<_> = replayed.containers.values().cloned().collect();
    ensure!(
        leaf.call(&ListContainers {}).await?.containers == containers,
        "the containers differ"
    );
    let mut entries = replayed.entries();
    // Where the newest snapshot begins is for the replay only.
    entries.remove(SNAPSHOT_KEY);
    until("the bucket shows the same", async || {
        let mut bucket = leaf.bucket().await?;
        bucket.remove(SNAPSHOT_KEY);
        if bucket == entries {
            return Ok(Some(()));
        }
        let other: Vec<_> = bucket
            .keys()
            .chain(entries.keys())
            .filter(|key| bucket.get(*key) != entries.get(*key))
            .collect();
        anyhow::bail!("they differ in {other:?}")
    })
    .await
}

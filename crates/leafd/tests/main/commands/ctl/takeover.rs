//! Builds that a second leaf takes over if the first one is lost: `docs/protocol/placement.md`, part 4. All parts are real: the hub's server
//! and agent, two leaves with servers of their own, Nix, `leafctl`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use leaf_core::id::LeafName;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;
use tokio::task::JoinSet;

use super::placing::Served;
use super::{command, run, text};
use crate::support::{HubSite, OLD_LEAFD, TestLeaf, Wire, remains, until};

/// How long an agent takes no leaf for gone after its start, and some more.
const AGENT_JUDGES_AFTER: Duration = Duration::from_secs(21);
/// The longest from the death of a leaf to the start of its build at the other one. The contract says 15 s; this machine has other work.
const AT_MOST: Duration = Duration::from_secs(40);

/// A hub with its agent, and two leaves.
struct Site {
    hub: HubSite,
    agent_since: Instant,
    leaves: Vec<(TestLeaf, Wire)>,
    served: Served,
    context: PathBuf,
}

/// A build that `leafctl` follows, and its two jobs.
struct Work {
    child: Child,
    /// Reads what it says from now on, and returns it.
    said: JoinSet<String>,
    id: String,
    first: Place,
    second: Place,
}

/// A job, and the number of its leaf.
#[derive(Debug)]
struct Place {
    leaf: usize,
    job: String,
}

impl Site {
    async fn start() -> anyhow::Result<Self> {
        let mut hub = HubSite::start_for(2).await?;
        hub.start_agent()?;
        let agent_since = Instant::now();
        let mut leaves = Vec::new();
        for name in &hub.leaves {
            let wire = hub.wire().await?;
            let setup = hub.setup_of(name, &wire);
            // A machine that is busy with other tests is judged by the leaf's jobs alone.
            let setup = setup
                .set("nix.max_jobs", 1)
                .set("nix.room.cpu_percent", 100)
                .set("nix.room.memory_percent", 100)
                .set("nix.room.io_percent", 100);
            leaves.push((setup.start().await?, wire));
        }
        let context = hub.context()?;
        let served = Served::start(hub.leaf.as_str()).await?;
        let site = Self {
            hub,
            agent_since,
            leaves,
            served,
            context,
        };
        for number in 0..2 {
            until(
                "the agent answers for works, and the copy is current",
                async || {
                    let leaf = site.name(number);
                    let shown: Value = site.json(&["leaf", "show", leaf.as_str()]).await?;
                    Ok((shown["hub"]["works"] == true).then_some(()))
                },
            )
            .await?;
        }
        Ok(site)
    }

    fn name(&self, number: usize) -> LeafName {
        self.leaves[number].0.name.clone()
    }

    async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut command = command(arguments);
        command.arg("--json").env("LEAFCTL_CONTEXT", &self.context);
        let output = run(command).await?;
        ensure!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Returns a job, as its leaf shows it to its own people: also while the leaf is cut off.
    async fn job(&self, place: &Place) -> anyhow::Result<Value> {
        let leaf = &self.leaves[place.leaf].0;
        let list = super::document(leaf, &["nix", "jobs"]).await?;
        let jobs = list["jobs"].as_array().context("jobs")?;
        let job = jobs.iter().find(|job| job["id"] == place.job.as_str());
        job.cloned().with_context(|| format!("{place:?} in {list}"))
    }

    async fn is(&self, place: &Place, phase: &str) -> anyhow::Result<Value> {
        until(&format!("the job {place:?} is {phase}"), async || {
            let job = self.job(place).await?;
            Ok((job["phase"] == phase).then_some(job))
        })
        .await
    }

    /// Begins a build for any leaf, and waits until it runs at one and the other stands by.
    async fn begin(&self, package: &str) -> anyhow::Result<Work> {
        let mut command = command(&["nix", "build", "--any", "--json", &self.served.package(package)]);
        command
            .env("LEAFCTL_CONTEXT", &self.context)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("a pipe")?).lines();
        let (mut first, mut said) = (None, String::new());
        while let Some(line) = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await?? {
            said += &line;
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |name: &str| (0..2).find(|number| self.name(*number).as_str() == name);
            match words[..] {
                ["job", job, "is", "at", "leaf", leaf] => {
                    first = Some(Place {
                        leaf: number(leaf).context("a leaf")?,
                        job: job.to_owned(),
                    });
                }
                ["leaf", leaf, "stands", "by", "with", "job", job, ..] => {
                    let id = line.split("nix work ").nth(1).context("the work")?;
                    let id = id.split('`').next().context("the work")?.to_owned();
                    let second = Place {
                        leaf: number(leaf).context("a leaf")?,
                        job: job.trim_end_matches(':').to_owned(),
                    };
                    let first = first.context("the first leaf is said before")?;
                    let mut said = JoinSet::new();
                    said.spawn(async move {
                        let mut said = String::new();
                        while let Ok(Some(line)) = lines.next_line().await {
                            said += &format!("{line}\n");
                        }
                        said
                    });
                    self.is(&first, "running").await?;
                    self.is(&second, "standby").await?;
                    return Ok(Work {
                        child,
                        said,
                        id,
                        first,
                        second,
                    });
                }
                _ => {}
            }
        }
        bail!("nobody stands by: {said}")
    }

    async fn agent_judges(&self) {
        tokio::time::sleep_until((self.agent_since + AGENT_JUDGES_AFTER).into()).await;
    }

    /// Kills a leaf with all that it has, as a power cut does.
    async fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        let leaf = &mut self.leaves[number].0;
        leaf.kill().await?;
        remains::end_processes(&leaf.state_dir);
        Ok(())
    }

    /// What `nix work` says of the two jobs: the state of each.
    async fn states(&self, work: &Work) -> anyhow::Result<Value> {
        let shown = self.json(&["nix", "work", &work.id]).await?;
        Ok(serde_json::json!([
            shown["jobs"][0]["state"],
            shown["jobs"][1]["state"]
        ]))
    }
}

/// Waits until `leafctl` has ended with success, and returns the leaf and the job that it printed.
async fn ended(work: &mut Work) -> anyhow::Result<Value> {
    let mut out = work.child.stdout.take().context("a pipe")?;
    let mut printed = String::new();
    let read = tokio::io::AsyncReadExt::read_to_string(&mut out, &mut printed);
    tokio::time::timeout(Duration::from_secs(120), read).await??;
    let status = work.child.wait().await?;
    ensure!(status.success(), "{status}: {printed}");
    Ok(serde_json::from_str(&printed)?)
}

pub(super) async fn dies() -> anyhow::Result<()> {
    let mut site = Site::start().await?;
    site.agent_judges().await;
    let mut work = site.begin("short").await?;
    ensure!(site.states(&work).await? == serde_json::json!(["counts", "stands by"]));
    site.kill(work.first.leaf).await?;
    let died = Instant::now();
    let taken = until("the other leaf builds", async || {
        let job = site.job(&work.second).await?;
        let has_started = !job["started_at"].is_null();
        Ok(has_started.then(|| (died.elapsed(), job)))
    })
    .await?;
    eprintln!(
        "from the leaf's death to the other's start: {:.1} s",
        taken.0.as_secs_f64()
    );
    ensure!(taken.0 < AT_MOST, "{taken:?}");
    ensure!(!taken.1["work"]["taken_over_at"].is_null(), "{}", taken.1);
    let printed = ended(&mut work).await?;
    ensure!(
        printed["leaf"] == site.name(work.second.leaf).as_str() && printed["reply"]["phase"] == "succeeded",
        "{printed}"
    );
    ensure!(site.states(&work).await? == serde_json::json!(["superseded", "counts"]));
    Ok(())
}

pub(super) async fn cut_off() -> anyhow::Result<()> {
    let site = Site::start().await?;
    site.agent_judges().await;
    let mut work = site.begin("slow").await?;
    site.leaves[work.first.leaf].1.cut();
    let taken = until("the other leaf takes the build over", async || {
        let job = site.job(&work.second).await?;
        Ok((!job["work"]["taken_over_at"].is_null()).then_some(job))
    })
    .await?;
    // The one that was cut off goes on, and knows of nothing.
    let first = site.job(&work.first).await?;
    ensure!(
        first["phase"] == "running" && first["work"]["superseded_at"].is_null(),
        "{first} {taken}"
    );
    let first = site.is(&work.first, "succeeded").await?;
    ensure!(first["work"]["superseded_at"].is_null(), "{first}");
    site.leaves[work.first.leaf].1.mend();
    let printed = ended(&mut work).await?;
    ensure!(
        printed["leaf"] == site.name(work.second.leaf).as_str()
            && printed["reply"]["id"] == work.second.job.as_str()
            && printed["reply"]["phase"] == "succeeded",
        "{printed}"
    );
    until("the first leaf learns that its job does not count", async || {
        let job = site.job(&work.first).await?;
        Ok((!job["work"]["superseded_at"].is_null()).then_some(()))
    })
    .await?;
    let states = until("both leaves answer", async || {
        let states = site.states(&work).await?;
        Ok((states[0] == "superseded").then_some(states))
    })
    .await?;
    ensure!(states == serde_json::json!(["superseded", "counts"]), "{states}");
    Ok(())
}

pub(super) async fn back_in_time() -> anyhow::Result<()> {
    let mut site = Site::start().await?;
    site.agent_judges().await;
    let mut work = site.begin("slow").await?;
    // leafd alone is killed, and started again: the build goes on meanwhile.
    let leaf = &mut site.leaves[work.first.leaf].0;
    leaf.kill().await?;
    leaf.start_again().await?;
    let printed = ended(&mut work).await?;
    ensure!(
        printed["leaf"] == site.name(work.first.leaf).as_str() && printed["reply"]["phase"] == "succeeded",
        "{printed}"
    );
    let second = site.is(&work.second, "cancelled").await?;
    ensure!(
        second["error"]
            .as_str()
            .is_some_and(|why| why.contains("has ended at leaf"))
            && second["started_at"].is_null(),
        "{second}"
    );

    let mut work = site.begin("endless").await?;
    let leaf = site.name(work.first.leaf);
    site.json(&["nix", "cancel", "--leaf", leaf.as_str(), &work.first.job])
        .await?;
    site.is(&work.first, "cancelled").await?;
    let second = site.is(&work.second, "cancelled").await?;
    ensure!(
        second["error"]
            .as_str()
            .is_some_and(|why| why.starts_with("cancelled by")),
        "at the second leaf first, by the person: {second}"
    );
    let status = tokio::time::timeout(Duration::from_secs(60), work.child.wait()).await??;
    ensure!(!status.success(), "{status}");
    Ok(())
}

pub(super) async fn agent_anew() -> anyhow::Result<()> {
    let mut site = Site::start().await?;
    let mut work = site.begin("slow").await?;
    // The copy of its state has the job.
    site.agent_judges().await;
    site.hub.kill_agent().await?;
    site.kill(work.first.leaf).await?;
    site.hub.start_agent()?;
    let started = Instant::now();
    let after = until("the other leaf takes the build over", async || {
        let job = site.job(&work.second).await?;
        Ok((!job["work"]["taken_over_at"].is_null()).then(|| started.elapsed()))
    })
    .await?;
    eprintln!(
        "from the agent's start to the take-over: {:.1} s",
        after.as_secs_f64()
    );
    ensure!(after > Duration::from_secs(19), "too early to judge: {after:?}");
    // Whatever it says later, nothing changes.
    site.hub.kill_agent().await?;
    site.hub.start_agent()?;
    let printed = ended(&mut work).await?;
    ensure!(
        printed["leaf"] == site.name(work.second.leaf).as_str() && printed["reply"]["phase"] == "succeeded",
        "{printed}"
    );
    Ok(())
}

/// The first leaf's build ends while the second one is cut off: it counts, and the person is told what is not known.
pub(super) async fn second_is_silent() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut work = site.begin("short").await?;
    site.leaves[work.second.leaf].1.cut();
    let printed = ended(&mut work).await?;
    ensure!(
        printed["leaf"] == site.name(work.first.leaf).as_str() && printed["reply"]["phase"] == "succeeded",
        "{printed}"
    );
    let said = work.said.join_next().await.context("it says something")??;
    let expected = format!(
        "leaf {} does not say whether it has taken the build over with job {}, which would count in the place of this one",
        site.name(work.second.leaf),
        work.second.job
    );
    ensure!(said.contains(&expected), "{said:?} lacks {expected:?}");
    site.leaves[work.second.leaf].1.mend();
    let second = site.is(&work.second, "cancelled").await?;
    ensure!(second["started_at"].is_null(), "{second}");
    Ok(())
}

/// An older leafd, after a rollback of the leaf that stands by, keeps the job as it is and starts nothing.
pub(super) async fn rolled_back() -> anyhow::Result<()> {
    let old = std::env::var_os(OLD_LEAFD).context("a leafd of an earlier commit")?;
    let mut site = Site::start().await?;
    let mut work = site.begin("endless").await?;
    let leaf = &mut site.leaves[work.second.leaf].0;
    leaf.stop().await?;
    leaf.run_program(Path::new(&old));
    // A system of before has settings of its own, without what its leafd does not know.
    let settings = std::fs::read_to_string(leaf.settings_file())?;
    let mut kept = true;
    let older: String = settings
        .lines()
        .filter(|line| {
            if line.starts_with('[') {
                kept = !["[nats.embedded.hub", "[nix.room"]
                    .iter()
                    .any(|newer| line.starts_with(newer));
            }
            kept
        })
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(leaf.settings_file(), older)?;
    leaf.start_again().await?;
    let key = format!("job.{}", work.second.job);
    let shown = super::document(leaf, &["leaf", "show"]).await?;
    let raw = shown["raw_entries"].to_string();
    ensure!(raw.contains(&key), "it reads what it does not know: {shown}");
    let list = super::document(leaf, &["nix", "jobs"]).await?;
    ensure!(list["jobs"].as_array().is_some_and(Vec::is_empty), "{list}");
    leaf.stop().await?;
    std::fs::write(leaf.settings_file(), settings)?;
    leaf.run_own_program();
    leaf.start_again().await?;
    let second = site.is(&work.second, "standby").await?;
    ensure!(second["started_at"].is_null(), "{second}");
    let name = site.name(work.first.leaf);
    site.json(&["nix", "cancel", "--leaf", name.as_str(), &work.first.job])
        .await?;
    site.is(&work.second, "cancelled").await?;
    work.child.wait().await?;
    Ok(())
}

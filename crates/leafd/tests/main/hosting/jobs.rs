//! Nix jobs: what they give, how they fail, how they are ended, and what they leave.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use leaf_core::command::{Build, CancelJob, Eval, Gc, ReadJobLog, ShowJob};
use leaf_core::id::{JobId, StorePath};
use leaf_core::job::explanation::FailureKind;
use leaf_core::job::{Installable, JobPhase as Phase, JobResult, Origin};
use leaf_core::problem::ProblemCode;
use leaf_core::subject;
use libtest_mimic::Trial;
use uuid::Uuid;

use super::systems::{derivation, file, mark, script};
use super::{is_problem, traces};
use crate::support::{Host, Need, Setup, TestLeaf, until};

/// A script that waits for a file that the sandbox will never have.
pub(crate) const HANGS: &str = "echo hangs; while :; do :; done";

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let needs = &[Need::Root, Need::Nix];
    vec![
        host.trial(
            "a successful build has a complete result, also from the store",
            needs,
            works,
        ),
        host.trial(
            "the error of a failed builder names the derivation, and the log stays readable",
            needs,
            builder_fails,
        ),
        host.trial("a build that hangs is killed at its time limit", needs, times_out),
        host.trial("a cancelled build leaves no process", needs, cancelled),
        host.trial(
            "a build can be cancelled right after it was accepted",
            needs,
            cancelled_at_once,
        ),
        host.trial(
            "a build that prints 100 MB keeps 16 MiB of log, head and tail, and the leaf's memory is bounded",
            needs,
            prints_much,
        ),
        host.trial(
            "a running build reports progress, and its log can be read",
            needs,
            tells_meanwhile,
        ),
        host.trial(
            "what a build that keeps going has built is in the record of the job although it failed",
            needs,
            keeps_going,
        ),
        host.trial(
            "an evaluation gives its value, the second time from the first, and ends at its time limit",
            needs,
            evaluates,
        ),
        host.trial(
            "what the policy of a leaf refuses is a problem with the setting's name, or a job that fails with its kind",
            needs,
            policy,
        ),
        host.trial(
            "a leaf whose store has too little room refuses builds but not gc, and says so as an event",
            needs,
            store_fills,
        ),
        host.trial("an unknown job is not found", needs, unknown),
        host.trial(
            "an impossible build is refused or fails with the reason",
            needs,
            bad_installables,
        ),
        host.trial(
            "the logs and GC roots of forgotten jobs are removed",
            needs,
            forgotten,
        ),
    ]
}

async fn works() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let below = derivation(&leaf, "below", "echo below > $out");
    let text = format!(
        "let below = {below}; in {}",
        derivation(&leaf, "works", "echo this is said; echo ${below} > $out")
    );
    let installable = file(&leaf, "works", &text)?;
    let id = leaf.build(installable.clone()).await?;
    let job = leaf.job_ended(id).await?;
    ensure!(job.phase == Phase::Succeeded && job.error.is_none(), "{job:?}");
    let result = job
        .result
        .as_ref()
        .and_then(JobResult::build)
        .context("a result")?;
    ensure!(result.store_path.as_str().ends_with("-works"), "{result:?}");
    ensure!(
        result.outputs.get("out") == Some(&result.store_path),
        "{result:?}"
    );
    ensure!(
        result
            .derivation
            .as_ref()
            .is_some_and(|d| d.as_str().ends_with("-works.drv")),
        "{result:?}"
    );
    ensure!(result.built == 2 && result.build_time_ms > 0, "{result:?}");
    let reference = result.references.first().context("a reference")?;
    ensure!(
        result.references.len() == 1 && reference.as_str().ends_with("-below"),
        "{result:?}"
    );
    ensure!(result.closure_size_bytes > 100, "{result:?}");
    ensure!(job.owner.as_str() == "admin" && job.started_at.is_some() && job.ended_at.is_some());
    let root = std::fs::read_link(traces::gc_root(&leaf, id))?;
    ensure!(root.as_os_str() == result.store_path.as_str(), "{root:?}");
    ensure!(leaf.job_log(id).await?.contains("this is said"));

    let again = leaf.build(installable).await?;
    let job_again = leaf.job_ended(again).await?;
    let cached = job_again
        .result
        .as_ref()
        .and_then(JobResult::build)
        .context("a result")?;
    ensure!(
        cached.built == 0 && cached.store_path == result.store_path,
        "{cached:?}"
    );
    ensure!(cached.references == result.references && cached.outputs == result.outputs);
    ensure!(traces::gc_root(&leaf, again).exists());

    let path = Installable::StorePath {
        path: result.store_path.clone(),
    };
    let id = leaf.build(path).await?;
    let job = leaf.job_ended(id).await?;
    let realised = job
        .result
        .as_ref()
        .and_then(JobResult::build)
        .context("a result")?;
    ensure!(
        realised.store_path == result.store_path && realised.built == 0,
        "{realised:?}"
    );

    let listed: Vec<JobId> = leaf.jobs().await?.iter().map(|job| job.id).collect();
    ensure!(
        listed.len() == 3 && listed[0] == id,
        "the newest first: {listed:?}"
    );
    let kinds = leaf.kinds_told(&again.to_string()).await?;
    ensure!(
        kinds == ["job.queued", "job.started", "job.succeeded"],
        "{kinds:?}"
    );
    Ok(())
}

async fn builder_fails() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let id = leaf
        .build(script(&leaf, "fails", "echo before the end; exit 9")?)
        .await?;
    let job = leaf.job_ended(id).await?;
    ensure!(job.phase == Phase::Failed && job.result.is_none(), "{job:?}");
    let error = job.error.context("a reason")?;
    ensure!(
        error.contains("-fails.drv") && error.contains("exit code 9"),
        "{error}"
    );
    ensure!(leaf.job_log(id).await?.contains("before the end"));
    leaf.stop().await?;
    leaf.back().await?;
    ensure!(leaf.job_log(id).await?.contains("before the end"));
    ensure!(!traces::gc_root(&leaf, id).exists());
    let kinds = leaf.kinds_told(&id.to_string()).await?;
    ensure!(kinds == ["job.queued", "job.started", "job.failed"], "{kinds:?}");
    Ok(())
}

/// Waits until a job has ended, and makes sure that it failed with this error.
async fn job_fails(leaf: &mut TestLeaf, id: JobId, says: &str) -> anyhow::Result<()> {
    let job = leaf.job_ended(id).await?;
    ensure!(job.phase == Phase::Failed, "{job:?}");
    ensure!(job.error.as_deref().is_some_and(|e| e.contains(says)), "{job:?}");
    Ok(())
}

async fn times_out() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let id = leaf.build_within(script(&leaf, "hangs", HANGS)?, Some(2)).await?;
    job_fails(&mut leaf, id, "longer than 2 s").await?;
    no_builder(&leaf)?;
    let refused = Build {
        timeout_seconds: Some(0),
        ..Build::of([script(&leaf, "never", HANGS)?])
    };
    is_problem(leaf.call(&refused).await, ProblemCode::Invalid, "from 1 to")
}

/// Makes sure that no builder of this leaf runs.
fn no_builder(leaf: &TestLeaf) -> anyhow::Result<()> {
    let left = traces::processes_with(&format!(": {};", mark(leaf)));
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

async fn cancelled() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let id = leaf.build(script(&leaf, "hangs", HANGS)?).await?;
    leaf.job_says(id, "hangs").await?;
    ensure!(!traces::processes_with(&format!(": {};", mark(&leaf))).is_empty());
    let job = leaf.call(&CancelJob { id }).await?;
    // Nothing of it is left by the time of the answer.
    no_builder(&leaf)?;
    ensure!(traces::runner(&leaf, id).is_none());
    ensure!(job.phase == Phase::Cancelled, "{job:?}");
    ensure!(job.error.as_deref() == Some("cancelled by admin"), "{job:?}");
    ensure!(leaf.job_log(id).await?.contains("hangs"));
    // Again is fine, and changes nothing.
    ensure!(leaf.call(&CancelJob { id }).await? == job);
    let kinds = leaf.kinds_told(&id.to_string()).await?;
    ensure!(
        kinds == ["job.queued", "job.started", "job.cancelled"],
        "{kinds:?}"
    );
    Ok(())
}

async fn cancelled_at_once() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let installable = script(&leaf, "hangs", HANGS)?;
    for _ in 0..30 {
        let id = leaf.build(installable.clone()).await?;
        let began = Instant::now();
        let job = leaf.call(&CancelJob { id }).await?;
        ensure!(job.phase == Phase::Cancelled, "{job:?}");
        ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
    no_builder(&leaf)
}

async fn prints_much() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    // 1 KiB a line, 100 lines a turn, 1000 turns: 100 MB.
    let line = "x".repeat(1000);
    let printing = format!(
        "echo the first line; l={line}; h=\"$l\n$l\n$l\n$l\n$l\n$l\n$l\n$l\n$l\n$l\"; i=0; \
         while test $i -lt 10000; do echo \"$h\"; i=$((i+1)); done; echo the last line; echo done > $out"
    );
    let before = resident(&leaf)?;
    let id = leaf.build(script(&leaf, "prints", &printing)?).await?;
    let mut most = before;
    let job = loop {
        let report = leaf.job(id).await?;
        most = most.max(resident(&leaf)?);
        if report.job.phase.is_final() {
            break report.job;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    ensure!(job.phase == Phase::Succeeded, "{job:?}");
    let log = leaf.job_log(id).await?;
    most = most.max(resident(&leaf)?);
    let limit = 16 * 1024 * 1024;
    ensure!(log.len() > limit / 2 && log.len() < limit + 4096, "{}", log.len());
    ensure!(
        log.lines().take(20).any(|line| line.contains("the first line")),
        "{:?}",
        &log[..2000]
    );
    let end = &log[log.len() - 4000..];
    ensure!(end.contains("the last line"), "{end:?}");
    ensure!(log.contains("left out"));
    let directory = leaf.state_dir.join("jobs").join(id.to_string());
    let stored: u64 = std::fs::read_dir(directory)?
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum();
    ensure!(stored < 17 * 1024 * 1024, "{stored}");
    ensure!(
        most < before + 48 * 1024 * 1024,
        "leafd grew from {before} to {most} bytes"
    );
    Ok(())
}

/// The memory of a leaf's process, in bytes.
pub(crate) fn resident(leaf: &TestLeaf) -> anyhow::Result<u64> {
    let pid = leaf.pid().context("it runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

async fn tells_meanwhile() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let first = derivation(&leaf, "first", "echo the first says; echo 1 > $out");
    let text = format!(
        "let first = {first}; in {}",
        derivation(&leaf, "hangs", &format!("echo after ${{first}}; {HANGS}"))
    );
    let (client, own) = (leaf.client().await?, leaf.name.clone());
    let id = leaf.build(file(&leaf, "meanwhile", &text)?).await?;
    let nats = leaf.nats_as_admin().await?;
    let mut messages = nats.subscribe(subject::job_messages(&own, id)).await?;
    nats.request("$JS.API.INFO", "".into()).await?;
    let mut hints = client.job_hints(&own, id).await?;
    let began = Instant::now();
    loop {
        let progress = leaf.job(id).await?.progress.unwrap_or_default();
        if progress.done >= 1 && progress.expected == 2 && progress.running == 1 {
            break;
        }
        ensure!(began.elapsed() < crate::support::LIMIT, "{progress:?}");
        hints.next(Duration::from_secs(1)).await;
    }
    leaf.job_says(id, "hangs").await?;
    ensure!(leaf.job_log_now(id).await?.contains("the first says"));
    let report = leaf.job(id).await?;
    let progress = report.progress.context("it tells how far it is")?;
    ensure!(progress.done == 1 && progress.expected == 2, "{progress:?}");
    ensure!(progress.activity.is_some_and(|a| a.contains("hangs")));
    let cancelled = leaf.call(&CancelJob { id }).await?;
    ensure!(cancelled.phase == Phase::Cancelled);
    // Whoever listens hears of it; the outcome is what the leaf says.
    let (mut said, ended) = (String::new(), subject::job_ended(&own, id));
    loop {
        use futures::StreamExt as _;
        let message = tokio::time::timeout(crate::support::LIMIT, messages.next()).await?;
        let message = message.context("messages end")?;
        if *message.subject == *ended {
            break;
        }
        if *message.subject == *subject::job_log(&own, id) {
            said.push_str(&String::from_utf8_lossy(&message.payload));
        }
    }
    ensure!(said.contains("after"), "{said}");
    Ok(())
}

impl TestLeaf {
    async fn job_log_now(&mut self, id: JobId) -> anyhow::Result<String> {
        let chunk = self.call(&ReadJobLog { id, offset: 0 }).await?;
        ensure!(!chunk.complete, "it runs: {chunk:?}");
        Ok(chunk.text)
    }
}

async fn keeps_going() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let build = Build {
        keep_going: true,
        ..Build::of([
            script(&leaf, "broken", "echo the disk is square; exit 3")?,
            script(&leaf, "fine", "echo x > $out")?,
        ])
    };
    let id = leaf.call(&build).await?.job;
    job_fails(&mut leaf, id, "the disk is square").await?;
    leaf.stop().await?;
    leaf.back().await?;
    let job = leaf.job(id).await?.job;
    let [built] = &job.partial[..] else {
        anyhow::bail!("{job:?}")
    };
    let path = built.main_output().context("an output")?;
    ensure!(
        path.as_str().ends_with("-fine") && built.origin == Some(Origin::Built),
        "{built:?}"
    );
    ensure!(!traces::gc_root(&leaf, id).exists());
    Ok(())
}

async fn evaluates() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let directory = leaf.scratch().join("flake");
    std::fs::create_dir(&directory)?;
    std::fs::write(
        directory.join("flake.nix"),
        "{ outputs = _: {
             value = { a = [ 1 null ]; };
             slow = builtins.all (n: builtins.foldl' (a: b: a + b) 0 (builtins.genList (x: x) 1000) >= 0)
               (builtins.genList (x: x) 100000000);
           }; }",
    )?;
    let eval = |attribute: &str, timeout_seconds| Eval {
        installable: Installable::Flake {
            reference: format!("path:{}#{attribute}", directory.display()),
        },
        apply: None,
        impure: false,
        timeout_seconds,
    };
    for cached in [false, true] {
        let id = leaf.call(&eval("value", None)).await?.job;
        let job = leaf.job_ended(id).await?;
        let Some(JobResult::Eval(result)) = &job.result else {
            anyhow::bail!("{job:?}")
        };
        ensure!(
            result.value == serde_json::json!({ "a": [1, null] }),
            "{result:?}"
        );
        ensure!(result.cached == cached, "{result:?}");
        if !cached {
            // It outlives leafd.
            leaf.stop().await?;
            leaf.back().await?;
        }
    }
    let id = leaf.call(&eval("slow", Some(2))).await?.job;
    job_fails(&mut leaf, id, "longer than 2 s").await?;
    let why = leaf.job(id).await?.job.explanation.context("an explanation")?;
    ensure!(why.kind == FailureKind::TimedOut, "{why:?}");
    let template = Eval {
        installable: Installable::Template {
            name: "minimal".to_owned(),
        },
        ..eval("value", None)
    };
    is_problem(
        leaf.call(&template).await,
        ProblemCode::Invalid,
        "can't be evaluated",
    )
}

async fn unknown() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let id = JobId(Uuid::now_v7());
    let says = id.to_string();
    is_problem(leaf.call(&ShowJob { id }).await, ProblemCode::NotFound, &says)?;
    is_problem(leaf.call(&CancelJob { id }).await, ProblemCode::NotFound, &says)?;
    is_problem(
        leaf.call(&ReadJobLog { id, offset: 0 }).await,
        ProblemCode::NotFound,
        &says,
    )?;
    let answer = leaf.call_raw("job", "show", br#"{"id":"../../etc"}"#).await;
    is_problem(answer, ProblemCode::Malformed, "job")?;
    ensure!(leaf.jobs().await?.is_empty());
    Ok(())
}

async fn policy() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let dir = std::fs::canonicalize(scratch.path())?;
    std::fs::create_dir(dir.join("own"))?;
    let mut leaf = Setup::new()
        .set("nix.policy.unlocked_references", false)
        .set("nix.policy.import_from_derivation", false)
        .set(
            "nix.policy.host_paths",
            vec![dir.join("own").display().to_string()],
        )
        .start()
        .await?;
    let flake = |reference: &str| Installable::Flake {
        reference: reference.to_owned(),
    };
    let inside = Installable::File {
        path: dir.join("own/a.nix").display().to_string(),
        attribute: None,
    };
    let outside = Installable::File {
        path: dir.join("b.nix").display().to_string(),
        attribute: None,
    };
    let impure = Build {
        impure: true,
        ..Build::of([inside.clone()])
    };
    for (build, setting) in [
        (Build::of([flake("github:o/r#a")]), "unlocked_references"),
        (Build::of([inside.clone(), outside]), "host_paths"),
        (impure, "impure"),
    ] {
        let says = format!("nix.policy.{setting} refuses it here");
        is_problem(leaf.call(&build).await, ProblemCode::Forbidden, &says)?;
    }
    ensure!(leaf.jobs().await?.is_empty());
    let imported = derivation(&leaf, "imported", "echo 1 > $out");
    std::fs::write(dir.join("own/a.nix"), format!("import ({imported})"))?;
    let id = leaf.build(inside.clone()).await?;
    job_fails(&mut leaf, id, "nix.policy.import_from_derivation").await?;
    let why = leaf.job(id).await?.job.explanation.context("an explanation")?;
    ensure!(why.kind == FailureKind::Policy, "{why:?}");
    // A link that leads out is only seen on the host.
    std::fs::write(dir.join("b.nix"), "1")?;
    std::fs::remove_file(dir.join("own/a.nix"))?;
    std::os::unix::fs::symlink(dir.join("b.nix"), dir.join("own/a.nix"))?;
    let id = leaf.build(inside).await?;
    job_fails(&mut leaf, id, "nix.policy.host_paths").await?;
    let why = leaf.job(id).await?.job.explanation.context("an explanation")?;
    ensure!(why.kind == FailureKind::Policy, "{why:?}");
    Ok(())
}

async fn store_fills() -> anyhow::Result<()> {
    // More than any disk has.
    let setup = Setup::new().set("nix.min_free_bytes", i64::MAX);
    let mut leaf = setup.start().await?;
    let build = Build::of([script(&leaf, "never", "echo > $out")?]);
    is_problem(
        leaf.call(&build).await,
        ProblemCode::DiskFull,
        "nix.min_free_bytes keeps",
    )?;
    let name = leaf.name.to_string();
    let kinds = leaf.kinds_told(&name).await?;
    ensure!(
        kinds.iter().filter(|kind| *kind == "leaf.store_filled").count() == 1,
        "{kinds:?}"
    );
    let dry_run = Gc {
        dry_run: true,
        older_than_seconds: None,
        free_bytes: None,
        timeout_seconds: None,
    };
    let id = leaf.call(&dry_run).await?.job;
    let job = leaf.job_ended(id).await?;
    ensure!(job.phase == Phase::Succeeded, "{job:?}");
    Ok(())
}

async fn bad_installables() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let flake = |reference: &str| Installable::Flake {
        reference: reference.to_owned(),
    };
    let file = |path: &str| Installable::File {
        path: path.to_owned(),
        attribute: None,
    };
    let template = |name: &str| Installable::Template {
        name: name.to_owned(),
    };
    for installable in [
        flake(""),
        flake("--impure"),
        flake("a\nb"),
        flake(&"x".repeat(5000)),
        file("relative.nix"),
        template("../minimal"),
    ] {
        let build = Build::of([installable]);
        is_problem(leaf.call(&build).await, ProblemCode::Invalid, "")?;
    }
    let many = Build::of(std::iter::repeat_n(file("/a.nix"), 33));
    is_problem(
        leaf.call(&many).await,
        ProblemCode::Invalid,
        "33 installables are too many",
    )?;
    let long = Build::of(std::iter::repeat_n(flake(&"x".repeat(2000)), 9));
    is_problem(leaf.call(&long).await, ProblemCode::Invalid, "18000 bytes")?;
    let none = Build::of([]);
    is_problem(leaf.call(&none).await, ProblemCode::Invalid, "nothing to build")?;
    let both = Build {
        installable: Some(file("/a.nix")),
        ..Build::of([file("/a.nix"), file("/b.nix")])
    };
    is_problem(leaf.call(&both).await, ProblemCode::Invalid, "not both")?;
    ensure!(leaf.jobs().await?.is_empty());
    let absent = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-absent")?;
    for (installable, says) in [
        (flake("path:/no/such/flake"), "/no/such/flake"),
        (file("/no/such/file.nix"), "/no/such/file.nix"),
        (super::systems::file(&leaf, "syntax", "{ x = ")?, "syntax error"),
        (
            super::systems::file(&leaf, "throws", "throw \"the reason\"")?,
            "the reason",
        ),
        (template("no-such"), "no-such"),
        // No shell reads it.
        (flake("path:/no/such/flake#$(id>/x);`id`|'\""), "/no/such/flake"),
        (
            Installable::StorePath { path: absent },
            "00bgd045z0d4icpbc2yyz4gx48ak44la-absent",
        ),
    ] {
        let id = leaf.build(installable.clone()).await?;
        job_fails(&mut leaf, id, says).await?;
    }
    Ok(())
}

async fn forgotten() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let made = leaf.build(script(&leaf, "made", "echo made > $out")?).await?;
    let made = leaf.job_ended(made).await?.id;
    let files = leaf.state_dir.join("jobs").join(made.to_string());
    ensure!(files.is_dir() && traces::gc_root(&leaf, made).exists());
    // Jobs that end at once, as many as are remembered.
    let absent = Installable::Template {
        name: "no-such".to_owned(),
    };
    for _ in 0..leaf_core::state::REMEMBERED_JOBS {
        let id = leaf.build(absent.clone()).await?;
        leaf.job_ended(id).await?;
    }
    is_problem(leaf.call(&ShowJob { id: made }).await, ProblemCode::NotFound, "")?;
    until("its files are gone", async || {
        Ok((!files.exists() && !traces::gc_root(&leaf, made).exists()).then_some(()))
    })
    .await?;

    // And what a run that was killed left of others: a directory that no history knows.
    let stranger = JobId(Uuid::now_v7());
    let files = leaf.state_dir.join("jobs").join(stranger.to_string());
    std::fs::create_dir_all(&files)?;
    leaf.stop().await?;
    leaf.back().await?;
    until("the stranger's files are gone", async || {
        Ok((!files.exists()).then_some(()))
    })
    .await
}

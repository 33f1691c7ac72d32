//! Deaths: of the daemon, of the runner.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use leaf_core::job::{JobOutcome, JobPhase, JobResult};
use leaf_nix::Found;

use crate::lab::{Lab, new_id, says};
use crate::tests;

tests![
    a_job_outlives_the_daemon_and_is_found_again,
    a_job_that_ended_while_the_daemon_was_dead_is_found_with_its_outcome,
    a_killed_runner_leaves_nothing_and_its_job_is_interrupted(needs_cgroup),
    a_job_that_nobody_started_is_lost,
];

/// A daemon that starts one job of the given folder's file, says its id, and waits to be killed.
pub(crate) fn daemon(dir: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let lab = Lab::at(dir);
        let path = dir.join("job.nix").to_str().expect("UTF-8").to_owned();
        let mut job = lab.start(leaf_core::job::Installable::File {
            path,
            attribute: None,
        });
        println!("{}", job.id());
        loop {
            job.next().await;
            std::future::pending::<()>().await;
        }
    })
}

/// Starts a job by a daemon, which is killed at once.
fn orphan(lab: &Lab, script: &str) -> leaf_core::id::JobId {
    lab.script("job", script);
    let mut daemon = Command::new(std::env::current_exe().expect("this program"))
        .arg("daemon")
        .arg(&lab.dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut line = String::new();
    BufReader::new(daemon.stdout.as_mut().expect("piped"))
        .read_line(&mut line)
        .expect("a line");
    daemon.kill().expect("killed");
    daemon.wait().expect("dead");
    line.trim().parse().expect("an id")
}

const SPIN: &str = "echo begun; n=0; while [ $n -lt 400000 ]; do n=$((n+1)); done; echo x > $out";

async fn a_job_outlives_the_daemon_and_is_found_again() {
    let lab = Lab::new();
    let id = orphan(&lab, SPIN);
    let Found::Running(mut job) = lab.nix.find(id).await.expect("found") else {
        panic!("it runs")
    };
    assert!(matches!(
        lab.nix.forget(id).await,
        Err(leaf_nix::NixError::Runs(_))
    ));
    assert_eq!(
        lab.nix.sweep(&Default::default()).await.expect("swept").running,
        [id]
    );
    says(&mut job, "begun").await;
    assert!(matches!(job.ended().await, JobOutcome::Succeeded(_)));
    let Found::Ended(JobOutcome::Succeeded(JobResult::Build(result))) =
        lab.nix.find(id).await.expect("found")
    else {
        panic!("it ended")
    };
    assert!(Path::new(result.store_path.as_str()).exists());
    let id = orphan(&lab, "echo begun; while :; do :; done");
    lab.nix.cancel(id).await.expect("cancelled");
    assert!(matches!(
        lab.nix.find(id).await.expect("found"),
        Found::Ended(JobOutcome::Cancelled)
    ));
}

async fn a_job_that_ended_while_the_daemon_was_dead_is_found_with_its_outcome() {
    let lab = Lab::new();
    let id = orphan(&lab, "echo wrong; exit 7");
    while !lab
        .settings
        .jobs_dir
        .join(id.to_string())
        .join("outcome.json")
        .exists()
    {
        tokio::task::yield_now().await;
    }
    let outcome = match lab.nix.find(id).await.expect("found") {
        Found::Running(mut job) => job.ended().await,
        Found::Ended(outcome) => outcome,
        Found::Lost(why) => panic!("{why}"),
    };
    assert_eq!(outcome.phase(), JobPhase::Failed);
    assert!(outcome.error().expect("a reason").contains("exit code 7"));
    if let Some(cgroup) = lab.cgroup() {
        assert!(!cgroup.join(id.to_string()).exists());
    }
}

async fn a_killed_runner_leaves_nothing_and_its_job_is_interrupted() {
    let lab = Lab::new();
    let script = format!(
        "trap \"\" TERM; : {}; echo ready; while :; do :; done",
        lab.unique
    );
    let mut job = lab.start(lab.script("orphaned", &script));
    says(&mut job, "ready").await;
    let pid = rustix::process::Pid::from_raw(job.pid().cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    let outcome = job.ended().await;
    assert_eq!(outcome.phase(), JobPhase::Interrupted);
    assert!(
        outcome.error().expect("a reason").contains("without an outcome"),
        "{outcome:?}"
    );
    assert_eq!(lab.processes(), Vec::<String>::new());
    assert!(matches!(
        lab.nix.find(job.id()).await.expect("found"),
        Found::Ended(JobOutcome::Interrupted(_))
    ));
    assert!(!lab.gc_root(job.id()).exists());
    assert!(lab.whole_log(job.id()).contains("ready"), "the log is kept");
}

async fn a_job_that_nobody_started_is_lost() {
    let lab = Lab::new();
    let id = new_id();
    assert!(matches!(lab.nix.find(id).await.expect("found"), Found::Lost(_)));
    std::fs::create_dir_all(lab.settings.jobs_dir.join(id.to_string())).expect("a folder");
    assert!(
        matches!(lab.nix.find(id).await.expect("found"), Found::Lost(why) if why.contains("never began"))
    );
}

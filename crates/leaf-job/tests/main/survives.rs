//! Deaths: of the daemon, of the runner. And jobs that another version of leafd has started.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use leaf_core::id::JobId;
use leaf_core::job::{JobOutcome, JobPhase};
use leaf_job::{Found, JobError};
use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{Lab, failed, new_id, says};
use crate::tests;

tests![
    a_job_outlives_the_daemon_and_is_found_again,
    a_job_that_ended_while_the_daemon_was_dead_is_found_with_its_outcome,
    a_killed_runner_leaves_nothing_and_its_job_is_interrupted(needs_cgroup),
    a_job_that_was_never_started_is_not_found,
    the_order_has_the_format_of_leafd_0_1_0,
    a_job_of_leafd_0_1_0_is_found_with_log_and_outcome,
];

/// A daemon that starts one job of these words, prints its id, and waits to be killed.
pub(crate) fn daemon(dir: &Path, words: Vec<String>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let lab = Lab::at(dir);
        let job = lab.start(&words.join(" "));
        println!("{}", job.id());
        std::future::pending().await
    })
}

/// Starts a job by a daemon, which is killed at once.
fn orphan(lab: &Lab, words: &str) -> JobId {
    let mut daemon = Command::new(std::env::current_exe().expect("this program"))
        .arg("daemon")
        .arg(&lab.dir)
        .args(words.split(' '))
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

async fn a_job_outlives_the_daemon_and_is_found_again() {
    let lab = Lab::new();
    let id = orphan(&lab, "say begun sleep 1000");
    let Found::Running(mut job) = lab.jobs.find(id).await.expect("found") else {
        panic!("it runs")
    };
    assert!(matches!(lab.jobs.forget(id).await, Err(JobError::Runs(_))));
    let swept = lab.jobs.sweep(&Default::default()).await.expect("swept");
    assert_eq!((swept.removed, swept.running), (Vec::new(), vec![id]));
    says(&mut job, "begun").await;
    assert!(matches!(job.ended().await, JobOutcome::Succeeded(_)));
    let Found::Ended(JobOutcome::Succeeded(_)) = lab.jobs.find(id).await.expect("found") else {
        panic!("it ended")
    };
    assert!(lab.result_dir(id).join("result").exists());

    let other = orphan(&lab, "say begun hang");
    lab.jobs.cancel(other).await.expect("cancelled");
    let found = lab.jobs.find(other).await.expect("found");
    assert!(matches!(found, Found::Ended(JobOutcome::Cancelled)), "{found:?}");
    assert_eq!(lab.processes(), Vec::<String>::new());

    // Something else under the id of a job keeps the others' files from being removed no longer.
    let odd = new_id();
    std::fs::write(lab.job_dir(odd), "").expect("a file");
    let swept = lab.jobs.sweep(&[id].into()).await.expect("swept");
    assert_eq!((swept.removed, swept.running), (vec![other], Vec::new()));
    assert_eq!(swept.kept.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [odd]);
    assert!(!lab.job_dir(other).exists() && lab.job_dir(id).exists());
}

async fn a_job_that_ended_while_the_daemon_was_dead_is_found_with_its_outcome() {
    let lab = Lab::new();
    let id = orphan(&lab, "say wrong exit 7");
    while !lab.job_dir(id).join("outcome.json").exists() {
        tokio::task::yield_now().await;
    }
    let outcome = match lab.jobs.find(id).await.expect("found") {
        Found::Running(mut job) => job.ended().await,
        Found::Ended(outcome) => outcome,
        Found::NotStarted(why) => panic!("{why}"),
    };
    assert_eq!(failed(&outcome), "wrong");
    if let Some(cgroup) = lab.cgroup() {
        assert!(!cgroup.join(id.to_string()).exists());
    }
}

async fn a_killed_runner_leaves_nothing_and_its_job_is_interrupted() {
    let lab = Lab::new();
    let mut job = lab.start("ignore-signals say ready hang");
    says(&mut job, "ready").await;
    let pid = job.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    kill_process(pid.expect("a pid"), Signal::KILL).expect("killed");
    let outcome = job.ended().await;
    assert_eq!(outcome.phase(), JobPhase::Interrupted);
    assert!(
        outcome.error().expect("a reason").contains("without an outcome"),
        "{outcome:?}"
    );
    assert_eq!(lab.processes(), Vec::<String>::new());
    assert!(matches!(
        lab.jobs.find(job.id()).await.expect("found"),
        Found::Ended(JobOutcome::Interrupted(_))
    ));
    assert!(!lab.result_dir(job.id()).exists());
    assert!(lab.whole_log(job.id()).contains("ready"), "the log is kept");
}

async fn a_job_that_was_never_started_is_not_found() {
    let lab = Lab::new();
    let id = new_id();
    let found = lab.jobs.find(id).await.expect("found");
    assert!(
        matches!(&found, Found::NotStarted(why) if why.contains("missing")),
        "{found:?}"
    );
    std::fs::create_dir_all(lab.job_dir(id)).expect("a directory");
    let found = lab.jobs.find(id).await.expect("found");
    assert!(
        matches!(&found, Found::NotStarted(why) if why.contains("never started")),
        "{found:?}"
    );
}

/// Keys and their order are those that leafd 0.1.0 wrote when jobs were a part of leaf-nix: the task's own come first.
async fn the_order_has_the_format_of_leafd_0_1_0() {
    let lab = Lab::new();
    let mut job = lab.start("say done");
    job.ended().await;
    let (id, dir) = (job.id(), lab.dir.display());
    let cgroup = match lab.cgroup().filter(|cgroup| cgroup.exists()) {
        Some(cgroup) => format!("\"{}/{id}\"", cgroup.display()),
        None => "null".to_owned(),
    };
    let program = std::env::current_exe().expect("this program");
    let order = std::fs::read_to_string(lab.job_dir(id).join("order.json")).expect("an order");
    // Further ones come last, and leafd 0.1.0 does not read them.
    let known = match order.split_once(",\"tasks_cgroup\"") {
        Some((known, _)) => format!("{known}}}"),
        None => order,
    };
    assert_eq!(
        known,
        format!(
            r#"{{"program":"{}","runs":[["named","{}","say","done"]],"gc_root":"{dir}/results/{id}","timeout_ms":100000,"grace_ms":10000,"max_log_bytes":16777216,"cgroup":{cgroup}}}"#,
            program.display(),
            lab.unique,
        )
    );
}

/// The directory of a build as leafd 0.1.0 left it, with an order that names no task and a log of two parts.
async fn a_job_of_leafd_0_1_0_is_found_with_log_and_outcome() {
    let lab = Lab::new();
    let id = new_id();
    std::fs::create_dir_all(lab.job_dir(id)).expect("a directory");
    std::fs::create_dir_all(lab.result_dir(id)).expect("a directory");
    let results = lab.result_dir(id).display().to_string();
    for (name, text) in [
        (
            "order.json",
            format!(
                r#"{{"nix":"nix","target":{{"other":{{"flags":["--file","/a.nix"],"installable":null}}}},"options":{{}},"gc_root":"{results}","timeout_ms":3600000,"grace_ms":10000,"max_log_bytes":16777216,"cgroup":"/sys/fs/cgroup/none/{id}"}}"#
            ),
        ),
        ("lock", String::new()),
        ("pid", "4194303".to_owned()),
        ("log.00000000000000000000", "first\n".to_owned()),
        ("log.00000000000000000106", "last\n".to_owned()),
        (
            "progress.json",
            r#"{"done":1,"expected":2,"running":1,"failed":0,"fetched_bytes":0,"fetch_expected_bytes":0,"activity":"building a"}"#.to_owned(),
        ),
        ("runner.err", String::new()),
        (
            "outcome.json",
            r#"{"outcome":{"phase":"failed","about":"builder for 'a' failed"},"log_missing":"[… 5 bytes could not be written: full …]\n"}"#.to_owned(),
        ),
    ] {
        std::fs::write(lab.job_dir(id).join(name), text).expect("a file");
    }
    assert_eq!(
        lab.jobs.progress(id).and_then(|p| p.activity).as_deref(),
        Some("building a")
    );
    let Found::Ended(outcome) = lab.jobs.find(id).await.expect("found") else {
        panic!("it has ended")
    };
    assert_eq!(failed(&outcome), "builder for 'a' failed");
    assert!(!lab.result_dir(id).exists(), "the roots of a job that failed");
    assert_eq!(
        lab.whole_log(id),
        "first\n[… 100 bytes left out …]\nlast\n[… 5 bytes could not be written: full …]\n"
    );
}

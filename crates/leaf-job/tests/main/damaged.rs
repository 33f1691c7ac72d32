//! Damaged directories and full disks: the outcome says what is wrong.

use std::fs;
use std::time::Duration;

use leaf_core::job::{JobOutcome, JobPhase};
use leaf_job::{Found, JobError};

use crate::lab::{Lab, failed, new_id, says};
use crate::tests;

tests![
    an_order_that_is_missing_or_unreadable_fails_the_job,
    an_outcome_that_cannot_be_read_interrupts_the_job,
    a_damaged_order_does_not_keep_processes_and_results(needs_cgroup),
    a_directory_that_is_removed_interrupts_the_job,
    a_disk_that_is_full_at_the_start_is_named(needs_root),
    a_disk_that_is_full_before_the_runner_begins_is_named(needs_root),
    a_disk_that_fills_does_not_stop_the_job_and_its_log_says_so(needs_root),
];

/// Runs the runner on a directory with this order, as if the order had been damaged after leafd wrote it.
async fn run_with_order(lab: &Lab, order: Option<&str>) -> JobOutcome {
    let id = new_id();
    fs::create_dir_all(lab.job_dir(id)).expect("a directory");
    if let Some(order) = order {
        fs::write(lab.job_dir(id).join("order.json"), order).expect("written");
    }
    let status = std::process::Command::new(&lab.settings.runner)
        .args(&lab.settings.runner_args)
        .arg(lab.job_dir(id))
        .status();
    assert!(status.expect("started").success());
    match lab.jobs.find(id).await.expect("found") {
        Found::Ended(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

async fn an_order_that_is_missing_or_unreadable_fails_the_job() {
    let lab = Lab::new();
    assert_eq!(
        failed(&run_with_order(&lab, None).await),
        "the job has no order.json"
    );
    let common = r#""gc_root":"/nonexistent","timeout_ms":1,"grace_ms":1,"max_log_bytes":1000,"cgroup":null"#;
    for (order, why) in [
        ("", "can't read the job's order.json: EOF"),
        ("{\"gc_root\":", "can't read the job's order.json: EOF"),
        ("[]", "can't read the job's order.json: "),
        ("{}", "missing field `gc_root`"),
        (&format!("{{{common}}}"), "missing field `program`"),
        (
            &format!("{{\"program\":1,\"runs\":[],{common}}}"),
            "can't read the job's order.json: invalid type",
        ),
    ] {
        let outcome = run_with_order(&lab, Some(order)).await;
        assert!(failed(&outcome).contains(why), "{order}: {outcome:?}");
    }
}

async fn an_outcome_that_cannot_be_read_interrupts_the_job() {
    let lab = Lab::new();
    for damage in [
        "",
        "{",
        "null",
        "{}",
        r#"{"outcome":{"phase":"exploded","about":"x"}}"#,
        r#"{"outcome":{"phase":"succeeded","about":{"store_path":"/etc/passwd"}}}"#,
    ] {
        let mut job = lab.start("say done");
        assert!(matches!(job.ended().await, JobOutcome::Succeeded(_)));
        fs::write(lab.job_dir(job.id()).join("outcome.json"), damage).expect("written");
        let Found::Ended(outcome) = lab.jobs.find(job.id()).await.expect("found") else {
            panic!("it has ended")
        };
        assert_eq!(outcome.phase(), JobPhase::Interrupted);
        assert!(
            outcome
                .error()
                .expect("a reason")
                .contains("can't read the outcome of the job"),
            "{outcome:?}"
        );
        assert!(!lab.result_dir(job.id()).exists());
    }
}

async fn a_damaged_order_does_not_keep_processes_and_results() {
    let lab = Lab::new();
    let mut job = lab.start("ignore-signals say ready hang");
    let id = job.id();
    says(&mut job, "ready").await;
    fs::write(lab.job_dir(id).join("order.json"), "{").expect("written");
    let pid = job
        .pid()
        .and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
    rustix::process::kill_process(pid.expect("a pid"), rustix::process::Signal::KILL).expect("killed");
    assert_eq!(job.ended().await.phase(), JobPhase::Interrupted);
    assert_eq!(lab.processes(), Vec::<String>::new());
    assert!(!lab.result_dir(id).exists());
    assert!(!lab.cgroup().expect("a cgroup").join(id.to_string()).exists());
}

async fn a_directory_that_is_removed_interrupts_the_job() {
    let lab = Lab::new();
    let mut job = lab.start("say ready sleep 300");
    says(&mut job, "ready").await;
    fs::remove_dir_all(lab.job_dir(job.id())).expect("removed");
    assert_eq!(job.ended().await.phase(), JobPhase::Interrupted);
    let found = lab.jobs.find(job.id()).await.expect("found");
    assert!(matches!(found, Found::NotStarted(_)), "{found:?}");
    assert_eq!(lab.processes(), Vec::<String>::new());
}

async fn a_disk_that_is_full_at_the_start_is_named() {
    let mut lab = Lab::new();
    let disk = lab.small_disk("512k");
    fs::create_dir_all(&lab.settings.jobs_dir).expect("a directory");
    disk.fill();
    let words = lab.words(&["say never"]);
    let error = lab
        .jobs
        .start(new_id(), &words, Duration::from_secs(100))
        .expect_err("there is no space");
    let JobError::File { source, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{error}");
}

async fn a_disk_that_is_full_before_the_runner_begins_is_named() {
    let mut lab = Lab::new();
    let disk = lab.small_disk("512k");
    let id = new_id();
    fs::create_dir_all(lab.job_dir(id)).expect("a directory");
    fs::write(lab.job_dir(id).join("pid"), "4194303").expect("written");
    disk.fill();
    let Found::Ended(outcome) = lab.jobs.find(id).await.expect("found") else {
        panic!("it has ended")
    };
    assert_eq!(outcome.phase(), JobPhase::Interrupted);
    let why = outcome.error().expect("a reason");
    assert!(why.contains("without an outcome: the file system of"), "{why}");
    assert!(why.ends_with("is full"), "{why}");
}

async fn a_disk_that_fills_does_not_stop_the_job_and_its_log_says_so() {
    let mut lab = Lab::new();
    let _disk = lab.small_disk("512k");
    let mut job = lab.start("lines 20000 40");
    let outcome = job.ended().await;
    assert!(matches!(outcome, JobOutcome::Succeeded(_)), "{outcome:?}");
    let log = lab.whole_log(job.id());
    assert!(
        log.contains("bytes could not be written: No space left"),
        "{}",
        &log[log.len().saturating_sub(300)..]
    );
}

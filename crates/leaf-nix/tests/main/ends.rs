//! Jobs that are ended: nothing of them is left.

use std::time::{Duration, Instant};

use leaf_core::job::{JobOutcome, JobPhase};

use crate::lab::{Lab, says};
use crate::tests;

tests![
    a_build_that_takes_too_long_is_ended_and_leaves_no_process,
    a_cancelled_build_leaves_no_process_even_if_it_ignores_the_signal_and_forks_twice,
    a_cancelled_evaluation_leaves_no_process,
    a_job_is_cancelled_at_any_moment_of_its_start,
    a_cancelled_nix_that_ignores_the_signal_is_killed_after_the_grace_time,
];

fn stubborn(lab: &Lab) -> String {
    // Its name stands in the command line of each process, where the test looks for it.
    format!(
        "trap \"\" TERM INT HUP; : {u}; (/bin/sh -c \"trap : TERM; : {u}; echo grandchild; while :; do :; done\" & ) ; echo ready; while :; do :; done",
        u = lab.unique
    )
}

async fn a_build_that_takes_too_long_is_ended_and_leaves_no_process() {
    let lab = Lab::new();
    let mut job = lab.start_within(lab.script("slow", &stubborn(&lab)), 2);
    let id = job.id();
    let outcome = job.ended().await;
    assert!(
        matches!(&outcome, JobOutcome::TimedOut(why) if why.contains("longer than 2 s")),
        "{outcome:?}"
    );
    assert_eq!(outcome.phase(), JobPhase::Failed);
    assert_eq!(lab.processes(), Vec::<String>::new());
    assert!(!lab.gc_root(id).exists());
    assert!(lab.whole_log(id).contains("ready"));
}

async fn a_cancelled_build_leaves_no_process_even_if_it_ignores_the_signal_and_forks_twice() {
    let lab = Lab::new();
    let mut job = lab.start(lab.script("stubborn", &stubborn(&lab)));
    says(&mut job, "grandchild").await;
    assert!(lab.processes().len() >= 2, "{:?}", lab.processes());
    lab.nix.cancel(job.id()).await.expect("cancelled");
    assert_eq!(lab.processes(), Vec::<String>::new());
    assert_eq!(job.ended().await, JobOutcome::Cancelled);
    lab.nix.cancel(job.id()).await.expect("again is fine");
    assert_eq!(job.ended().await, JobOutcome::Cancelled);
}

async fn a_cancelled_evaluation_leaves_no_process() {
    let lab = Lab::new();
    let list = |length| format!("(builtins.genList (n: n) {length})");
    let text = format!(
        "builtins.foldl' (a: b: builtins.foldl' (x: y: x + y) a {}) (builtins.trace \"begun\" 0) {}",
        list(100_000),
        list(1_000_000)
    );
    let mut job = lab.start(lab.file("endless", &text));
    says(&mut job, "begun").await;
    lab.nix.cancel(job.id()).await.expect("cancelled");
    assert_eq!(job.ended().await, JobOutcome::Cancelled);
    assert_eq!(lab.processes(), Vec::<String>::new());
}

async fn a_job_is_cancelled_at_any_moment_of_its_start() {
    let lab = Lab::new();
    for n in 0..12 {
        let mut job = lab.start(lab.script(&format!("early{n}"), &stubborn(&lab)));
        let begin = Instant::now();
        let _ = tokio::time::timeout(Duration::from_millis(n * 8), job.ended()).await;
        lab.nix.cancel(job.id()).await.expect("cancelled");
        assert_eq!(
            job.ended().await,
            JobOutcome::Cancelled,
            "after {:?}",
            begin.elapsed()
        );
        assert_eq!(lab.processes(), Vec::<String>::new());
    }
}

async fn a_cancelled_nix_that_ignores_the_signal_is_killed_after_the_grace_time() {
    let mut lab = Lab::new();
    let program = lab.dir.join("stubborn-nix");
    std::fs::write(
        &program,
        "#!/bin/sh\ntrap '' TERM\necho here >&2\nwhile :; do :; done\n",
    )
    .expect("written");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    lab.set(|settings| {
        settings.nix = program;
        settings.cancel_grace = Duration::from_millis(500);
    });
    let mut job = lab.start(lab.script("never", ""));
    says(&mut job, "here").await;
    let begin = Instant::now();
    lab.nix.cancel(job.id()).await.expect("cancelled");
    assert!(begin.elapsed() >= Duration::from_millis(500));
    assert_eq!(job.ended().await, JobOutcome::Cancelled);
    assert_eq!(lab.processes(), Vec::<String>::new());
}

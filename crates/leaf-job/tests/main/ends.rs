//! Jobs that end: by themselves, by their time limit, cancelled. No process of them is left.

use std::time::{Duration, Instant};

use leaf_core::job::{JobOutcome, JobPhase};
use leaf_job::JobError;

use crate::lab::{Lab, RESULT, failed, new_id, says};
use crate::tests;

tests![
    the_programs_of_a_job_run_in_turn_and_make_its_result,
    a_program_that_fails_ends_the_job_with_the_reason,
    a_program_that_leaves_a_process_behind_does_not_hold_up_the_end,
    a_missing_program_or_an_unreadable_result_fails_the_job,
    a_job_is_started_once,
    jobs_run_at_the_same_time,
    a_job_that_takes_too_long_is_killed_and_leaves_no_process,
    a_cancelled_job_leaves_no_process_even_if_it_ignores_signals_and_changes_its_session,
    a_job_is_cancelled_at_any_moment_of_its_start,
    a_cancelled_program_that_ignores_the_signal_is_killed_after_the_grace_time,
    a_cancelled_program_that_misses_a_signal_gets_another,
    a_job_that_forks_without_end_is_bounded_and_leaves_no_process(needs_cgroup),
    a_job_takes_little_longer_than_its_programs,
];

const LONG: Duration = Duration::from_secs(100);
const STUBBORN: &str = "ignore-signals say ready hang";

async fn the_programs_of_a_job_run_in_turn_and_make_its_result() {
    let lab = Lab::new();
    let id = new_id();
    let words = lab.words(&["say one sleep 50", "say two", "say three print three"]);
    let mut job = lab.jobs.start(id, &words, LONG).expect("started");
    let outcome = job.ended().await;
    let JobOutcome::Succeeded(result) = &outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(result.build().expect("a result").store_path.as_str(), RESULT);
    assert_eq!(lab.whole_log(id), "one\ntwo\nthree\n");
    assert!(lab.result_dir(id).join("result").exists());
    assert!(
        lab.cgroup()
            .is_none_or(|path| !path.join(id.to_string()).exists())
    );

    lab.jobs.forget(id).await.expect("forgotten");
    assert!(matches!(lab.jobs.read_log(id, 0, 10), Err(JobError::NoJob(_))));
    assert!(
        lab.result_dir(id).exists(),
        "a result is held until it is released"
    );
    lab.jobs.release(id).expect("released");
    assert!(!lab.result_dir(id).exists());
}

async fn a_program_that_fails_ends_the_job_with_the_reason() {
    let lab = Lab::new();
    let id = new_id();
    let words = lab.words(&["say first", "say broken exit 7", "say never"]);
    let mut job = lab.jobs.start(id, &words, LONG).expect("started");
    assert_eq!(failed(&job.ended().await), "broken");
    assert_eq!(lab.whole_log(id), "first\nbroken\n");
    assert!(!lab.result_dir(id).exists());
    let silent = lab.start("exit 7").ended().await;
    let why = failed(&silent);
    assert!(
        why.contains("printed no error") && why.contains("exit status: 7"),
        "{why}"
    );
}

async fn a_program_that_leaves_a_process_behind_does_not_hold_up_the_end() {
    let lab = Lab::new();
    let words = format!("background 6 named {} ignore-signals say behind hang", lab.unique);
    let mut job = lab.start(&words);
    let outcome = job.ended().await;
    assert!(matches!(outcome, JobOutcome::Succeeded(_)), "{outcome:?}");
    assert_eq!(lab.processes(), Vec::<String>::new());
}

async fn a_job_that_forks_without_end_is_bounded_and_leaves_no_process() {
    let mut lab = Lab::new();
    lab.set(|settings| settings.max_tasks = 40);
    let id = new_id();
    // The runner is in its cgroup once a first program has run. The test itself ends with 200.
    let forks = format!("forks {} 200 exit 3", lab.unique);
    let words = lab.words(&["say begun sleep 200", &forks]);
    let mut job = lab.jobs.start(id, &words, LONG).expect("started");
    let outcome = job.ended().await;
    let why = failed(&outcome);
    let count: u32 = why
        .strip_suffix(" processes")
        .and_then(|count| count.parse().ok())
        .unwrap_or_else(|| panic!("{why}"));
    assert!((10..40).contains(&count), "{count} processes were started");
    assert_eq!(lab.processes(), Vec::<String>::new());
    // Another job has a bound of its own.
    let after = lab.start("say well exit 5").ended().await;
    assert_eq!(failed(&after), "well");
}

async fn a_missing_program_or_an_unreadable_result_fails_the_job() {
    let lab = Lab::new();
    let mut words = lab.words(&["say never"]);
    words.program = "/nowhere/program".into();
    let mut job = lab.jobs.start(new_id(), &words, LONG).expect("started");
    let outcome = job.ended().await;
    assert!(
        failed(&outcome).contains("can't run /nowhere/program"),
        "{outcome:?}"
    );
    let outcome = lab.start("print nonsense").ended().await;
    assert_eq!(failed(&outcome), "the result can't be read");
}

async fn a_job_is_started_once() {
    let lab = Lab::new();
    let (id, words) = (new_id(), lab.words(&["say once"]));
    let mut job = lab.jobs.start(id, &words, LONG).expect("started");
    let again = lab.jobs.start(id, &words, LONG);
    assert!(matches!(again, Err(JobError::Started(_))), "while it runs");
    assert!(matches!(job.ended().await, JobOutcome::Succeeded(_)));
    let again = lab.jobs.start(id, &words, LONG);
    assert!(matches!(again, Err(JobError::Started(_))), "after its end");
    assert_eq!(lab.whole_log(id), "once\n");
}

async fn jobs_run_at_the_same_time() {
    let lab = Lab::new();
    let mut jobs: Vec<_> = (0..4)
        .map(|n| lab.start(&format!("say here sleep 300 say {n}")))
        .collect();
    for job in &mut jobs {
        says(job, "here").await;
    }
    for (n, job) in jobs.iter_mut().enumerate() {
        assert!(matches!(job.ended().await, JobOutcome::Succeeded(_)));
        assert_eq!(lab.whole_log(job.id()), format!("here\n{n}\n"));
    }
}

async fn a_job_that_takes_too_long_is_killed_and_leaves_no_process() {
    let mut lab = Lab::new();
    lab.set(|settings| settings.cancel_grace = Duration::from_millis(200));
    let mut job = lab.start_within(STUBBORN, Duration::from_secs(1));
    let id = job.id();
    let outcome = job.ended().await;
    assert!(
        matches!(&outcome, JobOutcome::TimedOut(failure) if failure.error.contains("longer than 1 s")),
        "{outcome:?}"
    );
    assert_eq!(outcome.phase(), JobPhase::Failed);
    assert_eq!(lab.processes(), Vec::<String>::new());
    assert!(!lab.result_dir(id).exists());
    assert!(lab.whole_log(id).contains("ready"));
}

async fn a_cancelled_job_leaves_no_process_even_if_it_ignores_signals_and_changes_its_session() {
    let mut lab = Lab::new();
    lab.set(|settings| settings.cancel_grace = Duration::from_millis(200));
    let background = format!(
        "background 6 named {} ignore-signals say grandchild hang",
        lab.unique
    );
    let mut job = lab.start(&format!("{background} {STUBBORN}"));
    says(&mut job, "grandchild ready").await;
    assert_eq!(lab.processes().len(), 2, "{:?}", lab.processes());
    lab.jobs.cancel(job.id()).await.expect("cancelled");
    assert_eq!(lab.processes(), Vec::<String>::new());
    assert_eq!(job.ended().await, JobOutcome::Cancelled);
    lab.jobs.cancel(job.id()).await.expect("idempotent");
    assert_eq!(job.ended().await, JobOutcome::Cancelled);
}

async fn a_job_is_cancelled_at_any_moment_of_its_start() {
    let mut lab = Lab::new();
    lab.set(|settings| settings.cancel_grace = Duration::from_millis(100));
    for n in 0..24 {
        let mut job = lab.start(STUBBORN);
        let begin = Instant::now();
        let _ = tokio::time::timeout(Duration::from_millis(n), job.ended()).await;
        lab.jobs.cancel(job.id()).await.expect("cancelled");
        assert_eq!(
            job.ended().await,
            JobOutcome::Cancelled,
            "after {:?}",
            begin.elapsed()
        );
        assert_eq!(lab.processes(), Vec::<String>::new());
    }
}

async fn a_cancelled_program_that_ignores_the_signal_is_killed_after_the_grace_time() {
    let mut lab = Lab::new();
    lab.set(|settings| settings.cancel_grace = Duration::from_millis(500));
    let mut job = lab.start(STUBBORN);
    says(&mut job, "ready").await;
    let begin = Instant::now();
    lab.jobs.cancel(job.id()).await.expect("cancelled");
    assert!(begin.elapsed() >= Duration::from_millis(500));
    assert_eq!(job.ended().await, JobOutcome::Cancelled);
    assert_eq!(lab.processes(), Vec::<String>::new());
    // One that takes the signal is not waited for.
    lab.set(|settings| settings.cancel_grace = Duration::from_secs(60));
    let mut job = lab.start("say ready hang");
    says(&mut job, "ready").await;
    let begin = Instant::now();
    lab.jobs.cancel(job.id()).await.expect("cancelled");
    assert!(begin.elapsed() < Duration::from_secs(60));
    assert_eq!(job.ended().await, JobOutcome::Cancelled);
}

async fn a_cancelled_program_that_misses_a_signal_gets_another() {
    let lab = Lab::new();
    let mut job = lab.start("end-at-signal 2");
    says(&mut job, "ready").await;
    lab.jobs.cancel(job.id()).await.expect("cancelled");
    assert_eq!(job.ended().await, JobOutcome::Cancelled);
    assert_eq!(lab.whole_log(job.id()), "ready\nends by itself\n");
}

/// Other tests run at the same time, so the bound is loose; `cargo xtask bench` measures it.
async fn a_job_takes_little_longer_than_its_programs() {
    let lab = Lab::new();
    let own = std::env::current_exe().expect("this program");
    let (mut bare, mut job) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        let begin = Instant::now();
        for _ in 0..2 {
            let mut program = std::process::Command::new(&own);
            let status = program
                .args(["program", "sleep", "30"])
                .status()
                .expect("started");
            assert!(status.success());
        }
        bare.push(begin.elapsed());
        let begin = Instant::now();
        let words = lab.words(&["sleep 30", "sleep 30"]);
        let mut running = lab.jobs.start(new_id(), &words, LONG).expect("started");
        assert!(matches!(running.ended().await, JobOutcome::Succeeded(_)));
        job.push(begin.elapsed());
    }
    bare.sort();
    job.sort();
    println!("a job: {:?}, its programs {:?}", job[4], bare[4]);
    assert!(
        job[4] < bare[4] * 3,
        "job {:?}, its programs {:?}",
        job[4],
        bare[4]
    );
}

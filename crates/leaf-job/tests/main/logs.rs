//! Logs and progress of running jobs.

use std::time::Instant;

use leaf_core::job::JobOutcome;
use leaf_job::{JobUpdate, RunningJob};

use crate::lab::{Lab, says};
use crate::tests;

tests![
    a_log_is_read_while_the_job_runs_and_afterwards,
    a_program_that_prints_100_mb_keeps_head_and_tail_and_little_memory,
    one_line_of_a_gibibyte_is_cut_and_takes_little_memory,
    progress_and_log_are_passed_on_before_the_end,
];

async fn a_log_is_read_while_the_job_runs_and_afterwards() {
    let lab = Lab::new();
    let mut job = lab.start("say one say two hang");
    let id = job.id();
    says(&mut job, "two").await;
    let chunk = lab.jobs.read_log(id, 0, 1000).expect("readable");
    assert!(chunk.text.contains("one\n") && !chunk.complete, "{chunk:?}");
    let rest = lab.jobs.read_log(id, chunk.next_offset, 1000).expect("readable");
    assert_eq!(
        (rest.text.as_str(), rest.next_offset, rest.complete),
        ("", chunk.next_offset, false)
    );
    lab.jobs.cancel(id).await.expect("cancelled");
    assert!(lab.whole_log(id).starts_with(&chunk.text));
}

/// Follows a job to its end; returns the outcome and the peak of its runner's memory, in KiB.
async fn followed(job: &mut RunningJob) -> (JobOutcome, u64) {
    let pid = job.pid().expect("a child");
    let mut peak_kib = 0;
    let outcome = loop {
        match job.next_update().await {
            JobUpdate::Ended(outcome) => break outcome,
            JobUpdate::Log(chunk) => assert!(chunk.text.len() < 70_000),
            JobUpdate::Progress(_) => {}
        }
        if let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status"))
            && let Some(line) = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))
        {
            peak_kib = line
                .trim()
                .trim_end_matches(" kB")
                .parse::<u64>()
                .expect("a number");
        }
    };
    (outcome, peak_kib)
}

async fn one_line_of_a_gibibyte_is_cut_and_takes_little_memory() {
    let lab = Lab::new();
    // The sleep lets the peak be read after the line.
    let mut job = lab.start("say begin line 1024 say after sleep 700 say finish");
    let id = job.id();
    let (outcome, peak_kib) = followed(&mut job).await;
    assert!(matches!(outcome, JobOutcome::Succeeded(_)), "{outcome:?}");
    assert!(peak_kib > 0 && peak_kib < 64 * 1024, "{peak_kib} KiB");
    let log = lab.whole_log(id);
    assert!(log.len() < 17 << 20, "{}", log.len());
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(
        (lines[0], lines[lines.len() - 2], lines[lines.len() - 1]),
        ("begin", "after", "finish")
    );
    assert!(lines[1].starts_with("xxxx"), "{:?}", &lines[1][..9]);
}

async fn a_program_that_prints_100_mb_keeps_head_and_tail_and_little_memory() {
    let lab = Lab::new();
    let begin = Instant::now();
    let mut job = lab.start("say begin lines 12500 8192 say finish");
    let id = job.id();
    let (outcome, peak_kib) = followed(&mut job).await;
    assert!(matches!(outcome, JobOutcome::Succeeded(_)), "{outcome:?}");
    println!("100 MB: {:?}, the runner's peak {peak_kib} KiB", begin.elapsed());
    assert!(peak_kib > 0 && peak_kib < 64 * 1024, "{peak_kib} KiB");
    let kept: u64 = std::fs::read_dir(lab.job_dir(id))
        .expect("a directory")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("log."))
        .map(|entry| entry.metadata().expect("a file").len())
        .sum();
    assert!(kept <= 16 << 20 && kept > 14 << 20, "{kept}");
    let log = lab.whole_log(id);
    assert!(log.starts_with("begin\n") && log.ends_with("finish\n"));
    assert_eq!(log.matches("bytes left out …]").count(), 1);
}

async fn progress_and_log_are_passed_on_before_the_end() {
    let lab = Lab::new();
    let mut job = lab.start("say first sleep 700 say last");
    let (mut log, mut done) = (String::new(), Vec::new());
    let outcome = loop {
        match job.next_update().await {
            JobUpdate::Progress(progress) => done.push(progress.done),
            JobUpdate::Log(chunk) => log.push_str(&chunk.text),
            JobUpdate::Ended(outcome) => break outcome,
        }
    };
    assert!(matches!(outcome, JobOutcome::Succeeded(_)), "{outcome:?}");
    assert!(done.contains(&1), "the progress of a running job: {done:?}");
    assert_eq!(log, "first\nlast\n");
    assert_eq!(log, lab.whole_log(job.id()));
    assert_eq!(
        job.next_update().await,
        JobUpdate::Ended(outcome),
        "and the end again"
    );
}

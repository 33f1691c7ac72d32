//! Logs of real builds.

use std::time::Instant;

use leaf_core::job::{JobOutcome, JobResult};
use leaf_nix::JobNews;

use crate::lab::{Lab, says};
use crate::tests;

tests![
    a_log_is_read_while_the_job_runs_and_afterwards,
    a_builder_that_prints_100_mb_keeps_head_and_tail_and_little_memory,
    a_full_disk_does_not_stop_the_build_and_the_log_tells,
    progress_is_told_and_the_end_comes_once_everything_was_said,
];

async fn a_log_is_read_while_the_job_runs_and_afterwards() {
    let lab = Lab::new();
    let mut job = lab.start(lab.script("talk", "echo one; echo two; while :; do :; done"));
    let id = job.id();
    says(&mut job, "two").await;
    let chunk = lab.nix.read_log(id, 0, 1000).expect("readable");
    assert!(
        chunk.text.contains("-talk> one\n") && !chunk.complete,
        "{chunk:?}"
    );
    let rest = lab.nix.read_log(id, chunk.next_offset, 1000).expect("readable");
    assert_eq!(
        (rest.text.as_str(), rest.next_offset, rest.complete),
        ("", chunk.next_offset, false)
    );
    lab.nix.cancel(id).await.expect("cancelled");
    let whole = lab.whole_log(id);
    assert!(whole.starts_with(&chunk.text));
}

async fn a_builder_that_prints_100_mb_keeps_head_and_tail_and_little_memory() {
    let lab = Lab::new();
    // Eight kilobytes a line, 12,500 lines.
    let script = "echo begin; x=0123456789abcdef; for i in 1 2 3 4 5 6 7 8 9; do x=$x$x; done; \
         n=0; while [ $n -lt 12500 ]; do echo $n $x; n=$((n+1)); done; echo finish; echo x > $out";
    let begin = Instant::now();
    let mut job = lab.start(lab.script("loud", script));
    let (id, pid) = (job.id(), job.pid());
    let mut peak_kib = 0;
    let outcome = loop {
        match job.next().await {
            JobNews::Ended(outcome) => break outcome,
            JobNews::Log(chunk) => assert!(chunk.text.len() < 70_000),
            JobNews::Progress(_) => {}
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
    assert!(matches!(outcome, JobOutcome::Succeeded(_)), "{outcome:?}");
    println!("100 MB: {:?}, the runner's peak {peak_kib} KiB", begin.elapsed());
    assert!(peak_kib > 0 && peak_kib < 64 * 1024, "{peak_kib} KiB");
    let kept: u64 = std::fs::read_dir(lab.settings.jobs_dir.join(id.to_string()))
        .expect("a folder")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("log."))
        .map(|entry| entry.metadata().expect("a file").len())
        .sum();
    assert!(kept <= 16 << 20 && kept > 14 << 20, "{kept}");
    let log = lab.whole_log(id);
    assert!(log.contains("> begin\n") && log.ends_with("> finish\n"));
    assert_eq!(log.matches("bytes left out …]").count(), 1);
}

async fn a_full_disk_does_not_stop_the_build_and_the_log_tells() {
    let mut lab = Lab::new();
    let small = lab.dir.join("small");
    std::fs::create_dir(&small).expect("a folder");
    let mount = |words: &[&str]| {
        std::process::Command::new(words[0])
            .args(&words[1..])
            .status()
            .is_ok_and(|status| status.success())
    };
    let path = small.to_str().expect("UTF-8").to_owned();
    assert!(
        mount(&["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", &path]),
        "root may mount"
    );
    lab.set(|settings| settings.jobs_dir = small.join("jobs"));
    let script = "n=0; while [ $n -lt 20000 ]; do echo $n 0123456789012345678901234567890123456789; n=$((n+1)); done; echo x > $out";
    let mut job = lab.start(lab.script("full", script));
    let id = job.id();
    let outcome = job.ended().await;
    let log = lab.whole_log(id);
    assert!(mount(&["umount", &path]));
    assert!(matches!(outcome, JobOutcome::Succeeded(_)), "{outcome:?}");
    assert!(
        log.contains("bytes could not be written: No space left"),
        "{}",
        &log[log.len() - 300..]
    );
}

async fn progress_is_told_and_the_end_comes_once_everything_was_said() {
    let lab = Lab::new();
    let mut job = lab.start(lab.script(
        "steps",
        "n=0; while [ $n -lt 300000 ]; do n=$((n+1)); done; echo last words; echo x > $out",
    ));
    let (mut log, mut busy) = (String::new(), false);
    let outcome = loop {
        match job.next().await {
            JobNews::Progress(progress) => busy |= progress.running == 1 && progress.expected == 1,
            JobNews::Log(chunk) => log.push_str(&chunk.text),
            JobNews::Ended(outcome) => break outcome,
        }
    };
    assert!(
        matches!(&outcome, JobOutcome::Succeeded(JobResult::Build(result)) if result.built == 1),
        "{outcome:?}"
    );
    assert!(busy, "a running build is told");
    assert_eq!(log, lab.whole_log(job.id()));
    assert!(log.ends_with("> last words\n"), "{log}");
    assert_eq!(job.next().await, JobNews::Ended(outcome), "and once more");
}

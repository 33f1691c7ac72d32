//! Jobs that the helper runs, each in a unit: the tests' helper starts the runner in a cgroup of the unit's name, as
//! systemd would.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind};
use leaf_core::job::JobOutcome;
use leaf_host::cgroup::Cgroup;
use leaf_host::contract::job_unit;
use leaf_job::{Found, JobError, Launch};

use crate::lab::{Lab, failed, new_id, says};
use crate::tests;

tests![
    a_job_in_a_unit_is_followed_found_cancelled_and_removed(needs_cgroup),
    a_helper_that_refuses_fails_the_job_with_its_reason,
];

/// Carries out operations on jobs as the helper does.
async fn carry_out(op: HostOp, jobs_dir: PathBuf, slice: PathBuf) -> Result<(), HostOpError> {
    match op {
        HostOp::StartJob { id } => start_unit(&jobs_dir.join(id.to_string()), &slice.join(job_unit(id))),
        HostOp::StopJob { id, .. } => {
            let unit = Cgroup::at(slice.join(job_unit(id)));
            unit.kill_and_wait(Duration::from_secs(10)).await.expect("killed");
            unit.remove().expect("removed");
        }
        HostOp::RemoveJob { id } => {
            std::fs::remove_dir_all(jobs_dir.join(id.to_string())).expect("removed");
        }
        other => panic!("{other:?} is no operation on a job"),
    }
    Ok(())
}

fn start_unit(directory: &Path, unit: &Path) {
    let unit = Cgroup::at(unit);
    unit.create().expect("a cgroup");
    std::fs::create_dir(directory.join("root")).expect("a directory");
    // The shell waits until it is in the cgroup: nothing of the job starts outside.
    let mut runner = Command::new("/bin/sh")
        .args(["-c", "read moved && exec \"$@\" </dev/null", "sh"])
        .arg(std::env::current_exe().expect("this program"))
        .arg("job")
        .arg(directory)
        .stdin(Stdio::piped())
        .spawn()
        .expect("started");
    unit.attach(runner.id()).expect("moved");
    let mut stdin = runner.stdin.take().expect("piped");
    stdin.write_all(b"moved\n").expect("the shell reads");
    // As systemd does for every process of its units.
    std::thread::spawn(move || runner.wait());
}

fn lab_with_units() -> Lab {
    let mut lab = Lab::new();
    let slice = lab.cgroup().expect("a cgroup").to_owned();
    std::fs::create_dir_all(&lab.settings.jobs_dir).expect("a directory");
    let jobs_dir = lab.settings.jobs_dir.clone();
    lab.set(|settings| {
        settings.launch = Launch::Unit {
            slice: slice.clone(),
            host_operations: Arc::new(move |op| Box::pin(carry_out(op, jobs_dir.clone(), slice.clone()))),
        };
    });
    lab
}

async fn a_job_in_a_unit_is_followed_found_cancelled_and_removed() {
    let lab = lab_with_units();
    let mut job = lab.start("say done");
    let id = job.id();
    assert_eq!(job.pid(), None, "its runner is another user's");
    assert!(matches!(job.ended().await, JobOutcome::Succeeded(_)));
    assert_eq!(lab.whole_log(id), "done\n");
    assert!(lab.job_dir(id).join("root/result").exists());
    let found = lab.jobs.find(id).await.expect("found");
    assert!(
        matches!(found, Found::Ended(JobOutcome::Succeeded(_))),
        "{found:?}"
    );

    let mut running = lab.start("ignore-signals say ready hang");
    says(&mut running, "ready").await;
    let Found::Running(mut again) = lab.jobs.find(running.id()).await.expect("found") else {
        panic!("it runs")
    };
    says(&mut again, "ready").await;
    let start = lab
        .jobs
        .start(running.id(), &lab.words(&["say never"]), Duration::from_secs(100));
    assert!(matches!(start, Err(JobError::Started(_))));
    assert!(matches!(
        lab.jobs.forget(running.id()).await,
        Err(JobError::Runs(_))
    ));
    lab.jobs.cancel(running.id()).await.expect("cancelled");
    assert_eq!(running.ended().await, JobOutcome::Cancelled);
    assert_eq!(again.ended().await, JobOutcome::Cancelled);
    assert_eq!(lab.processes(), Vec::<String>::new());

    let swept = lab.jobs.sweep(&Default::default()).await.expect("swept");
    assert_eq!(swept.removed, [id, running.id()]);
    assert!(!lab.job_dir(id).exists());
}

async fn a_helper_that_refuses_fails_the_job_with_its_reason() {
    let mut lab = Lab::new();
    std::fs::create_dir_all(&lab.settings.jobs_dir).expect("a directory");
    let slice = lab.dir.clone();
    lab.set(|settings| {
        settings.launch = Launch::Unit {
            slice,
            host_operations: Arc::new(|_| {
                Box::pin(async {
                    Err(HostOpError {
                        op: "start a job".to_owned(),
                        kind: HostOpErrorKind::Refused,
                        reason: "not today".to_owned(),
                    })
                })
            }),
        };
    });
    let id = new_id();
    let mut job = lab
        .jobs
        .start(id, &lab.words(&["say never"]), Duration::from_secs(100))
        .expect("asked for");
    let outcome = job.ended().await;
    assert!(failed(&outcome).contains("not today"), "{outcome:?}");
}

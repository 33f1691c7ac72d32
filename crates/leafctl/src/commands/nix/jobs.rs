use clap::Args;
use leaf_core::command::ListJobs;
use leaf_core::job::{JobResult, Task};

use super::installables::{brief, several};
use super::run::exit_text;
use crate::error::Error;
use crate::output::{Output, ago, first_line, name_of};
use crate::session::Session;

/// List a leaf's jobs, newest first.
#[derive(Debug, Args)]
pub(crate) struct Jobs;

impl Jobs {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        session
            .show(&ListJobs {}, output, |list| {
                let mut table = output.table(&["JOB", "PHASE", "OWNER", "QUEUED", "WHAT", "RESULT"]);
                for job in &list.jobs {
                    let what = match &job.task {
                        Task::Build(build) => several(build.all()),
                        Task::Eval(eval) => format!("eval {}", brief(&eval.installable)),
                        Task::Gc(task) if task.dry_run => "gc (dry run)".to_owned(),
                        Task::Gc(_) => "gc".to_owned(),
                        Task::Roots(task) => match &task.path {
                            Some(path) => format!("gc why {path}"),
                            None => "gc roots".to_owned(),
                        },
                        Task::Check(task) => format!("check {}", brief(&task.installable)),
                        Task::PrintEnv(task) => format!("print-env {}", brief(&task.installable)),
                        Task::Diff(task) => format!("diff {} {}", task.from, task.to),
                        Task::Verify(task) if task.contents => {
                            "verify the system and its contents".to_owned()
                        }
                        Task::Verify(_) => "verify the system".to_owned(),
                        Task::Develop(task) => super::develop::text(task),
                        Task::Run(run) => format!("run {}", run.command.join(" ")),
                    };
                    let result = match (&job.result, &job.error) {
                        (Some(JobResult::Build(result)), _) => result.store_path.to_string(),
                        (Some(JobResult::Eval(result)), _) => {
                            format!(
                                "{} bytes of JSON",
                                result.value_left_out_bytes.unwrap_or_default()
                            )
                        }
                        (Some(JobResult::Gc(result)), _) => format!("{} store paths", result.paths),
                        (Some(JobResult::Roots(result)), _) => {
                            let count = result.roots.len() as u64 + result.roots_left_out;
                            format!("{count} roots")
                        }
                        (Some(JobResult::Check(_)), _) => "reproducible".to_owned(),
                        (Some(JobResult::PrintEnv(result)), _) => {
                            format!(
                                "{} bytes of JSON",
                                result.environment_left_out_bytes.unwrap_or_default()
                            )
                        }
                        (Some(JobResult::Diff(result)), _) => {
                            let count = result.packages.len() as u64 + result.packages_left_out;
                            format!("{count} packages differ")
                        }
                        (Some(JobResult::Verify(result)), _) => {
                            format!("{} files in /etc differ", result.etc.unexplained)
                        }
                        (Some(JobResult::Run(result)), _) => exit_text(&result.exit),
                        (None, error) => first_line(error.as_deref()),
                    };
                    let is_superseded = job.work.as_ref().is_some_and(|work| work.superseded_at.is_some());
                    let phase = if is_superseded {
                        format!("{}, superseded", name_of(&job.phase))
                    } else {
                        name_of(&job.phase)
                    };
                    table.add_row([
                        job.id.to_string(),
                        phase,
                        job.owner.to_string(),
                        ago(job.queued_at),
                        what,
                        result,
                    ]);
                }
                table
            })
            .await
    }
}

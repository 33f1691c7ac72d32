//! Durable process jobs: programs that outlive the daemon that started them.
//!
//! Start with [`Jobs`]: it starts jobs, finds them again, reads their logs, cancels and forgets them. It does not know
//! the tasks: the crate of a task, such as `leaf-nix`, provides [`Work`] as values, and `leafd` connects the two. Each
//! job is run by a process of its own, [`runner`], in a session and (if cgroup v2 is usable) a cgroup of its own, or as
//! the user `leaf-job` in a unit of its own ([`Launch`]). leafd and the runner share only the job's directory:
//!
//! | file | contents |
//! |---|---|
//! | `order.json` | the order: the task's own part, and the part that every job has |
//! | `lock` | locked (flock) while the runner runs: it inherits the locked file as its standard input (not in a unit) |
//! | `pid` | the runner's process id |
//! | `log.<offset>` | parts of the log, named by the offset of their first byte |
//! | `progress.json` | the progress; written at most five times a second |
//! | `cancel` | exists once the job was cancelled |
//! | `runner.err` | the runner's own error messages (not in a unit) |
//! | `outcome.json` | the outcome; on the disk before the runner ends |
//!
//! These files are a contract between versions: a leafd finds jobs that an older or a newer one started.
//!
//! The other kind of job is the *saga*: steps of leafd and the helper with a durable position, such as a migration. A saga
//! is not run here: it has no process of its own, and its steps are the reconciler's (decision 14). This crate has no
//! state, no queue and no NATS; the caller limits the number of running jobs.

mod changes;
mod descendants;
mod directory;
mod error;
mod jobs;
mod launch;
mod lines;
mod log;
mod order;
mod outcome;
pub mod program;
pub mod runner;
mod running;
mod supervise;
mod unit;
mod work;

pub use error::JobError;
pub use jobs::{Found, Jobs, Settings, Swept, default_cgroup};
pub use launch::{HostOperations, Launch};
pub use running::{JobUpdate, RunningJob};
pub use work::Work;

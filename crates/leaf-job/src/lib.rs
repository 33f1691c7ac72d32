//! Durable process jobs: programs that outlive the daemon that started them.
//!
//! Start with [`Jobs`]: it starts jobs, finds them again, reads their logs, cancels and forgets them. It knows nothing of
//! what a job is for: the crate of a task, such as `leaf-nix`, gives it [`Work`] as values, and `leafd` connects the two.
//! Each job is run by a process of its own, [`runner`], in a session and (where cgroup v2 may be used) a cgroup of its
//! own, or as the user `leaf-job` in a unit of its own ([`Launch`]). leafd and the runner share nothing but the job's
//! directory:
//!
//! | file | contents |
//! |---|---|
//! | `order.json` | what the runner is to do: the task's own part, and that of every job |
//! | `lock` | locked (flock) as long as the runner lives: the runner gets it, locked, as its standard input (not in a unit) |
//! | `pid` | the runner's process id |
//! | `log.<offset>` | parts of the log, each named by the offset of its first byte |
//! | `progress.json` | how far the job is; written at most five times a second |
//! | `cancel` | exists once the job was cancelled |
//! | `runner.err` | why the runner could not do its work (not in a unit) |
//! | `outcome.json` | how the job ended; on the disk before the runner ends |
//!
//! These files are a contract between versions: a leafd finds the jobs that an older or a newer one started.
//!
//! The other kind of job is the *saga*: steps of leafd and the helper with a durable position, such as a migration. A saga
//! is not run here: it has no process of its own, and its steps are the reconciler's (decision 14). This crate knows no
//! state, no queue and no NATS; how many jobs run at once is its caller's business.

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

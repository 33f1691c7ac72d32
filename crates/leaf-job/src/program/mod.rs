//! The program of a job that runs one: its order, its process, and its runner.
//!
//! A program runs under a user of its own. leafd starts its runner as it starts that of a job, under an id of its own
//! ([`JobId::program`](leaf_core::id::JobId::program)). The [runner](host) holds the program's terminal or pipes and the end of its
//! output. The process of the program is `leafd job-program` first ([`start_program`]), which leaves leafd's user. For a session leafd
//! speaks to the runner over a socket in its directory ([`wire`](leaf_core::session::wire)).

mod buffer;
pub mod frame;
mod host;
mod shell;
mod side;
mod start;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use leaf_core::id::StorePath;
use leaf_core::job::{DevelopTask, RunTask, Shell};
use leaf_core::session::{SessionTask, Terminal};
use serde::{Deserialize, Serialize};

use crate::runner::ProcessJob;

pub use start::start_program;

/// The task of the order of a program.
pub const TASK: &str = "program";
/// The task of the order of a development shell.
pub const SHELL_TASK: &str = "shell";

/// The name of the runner's socket in the program's directory.
pub(crate) const SOCKET: &str = "session";
/// The directories of the host's programs.
const HOST_PATH: &str = "/run/current-system/sw/bin:/usr/local/bin:/usr/bin:/bin";
/// The users of programs on a host where leafd is root and starts them itself, one for each: systemd(1) leaves these numbers to nobody
/// (UIDS-GIDS.md), and the id of a job has as many random bits.
const FIRST_USER: u32 = 0x7000_0000;
const USERS: u32 = 0x1000_0000;

/// The order of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramOrder {
    /// [`TASK`], or with a shell [`SHELL_TASK`], which older versions refuse.
    task: String,
    command: Vec<String>,
    environment: BTreeMap<String, String>,
    path: String,
    packages: Vec<StorePath>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<SessionTask>,
    /// The shell that the program is, or begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shell: Option<Shell>,
    /// The program `leafd`.
    starter: PathBuf,
    /// The user that it becomes; `None` if its unit has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<u32>,
}

impl ProgramOrder {
    /// Returns the order of a program with packages that are in the store. `starter` is the program `leafd`.
    #[must_use]
    pub fn new(task: &RunTask, packages: Vec<StorePath>, starter: PathBuf) -> Self {
        Self {
            task: TASK.to_owned(),
            command: task.command.clone(),
            environment: task.environment.clone(),
            path: path(&packages, task.pure),
            packages,
            session: task.session.clone(),
            shell: None,
            starter,
            user: None,
        }
    }

    /// Returns the order of a development shell with packages that are in the store. `starter` is the program `leafd`.
    #[must_use]
    pub fn of_shell(task: &DevelopTask, shell: Shell, packages: Vec<StorePath>, starter: PathBuf) -> Self {
        Self {
            task: SHELL_TASK.to_owned(),
            command: task.command.clone(),
            environment: task.environment.clone(),
            path: path(&packages, task.pure),
            packages,
            session: task.session.clone(),
            shell: Some(shell),
            starter,
            user: None,
        }
    }

    /// Returns its terminal, if it has one.
    fn terminal(&self) -> Option<&Terminal> {
        self.session.as_ref()?.terminal.as_ref()
    }

    /// Returns the order of a program that leafd starts itself: as the user with this number, of which there are as many as random bits.
    pub(crate) fn for_user(mut self, random: u32) -> Self {
        self.user = Some(FIRST_USER + random % USERS);
        self
    }
}

/// Returns the search path of a program.
fn path(packages: &[StorePath], is_pure: bool) -> String {
    let bins = packages.iter().map(|package| format!("{package}/bin"));
    let host = (!is_pure).then_some(HOST_PATH);
    bins.chain(host.map(str::to_owned)).collect::<Vec<_>>().join(":")
}

/// Runs the program of an order to its end: the main function of its runner.
///
/// # Errors
/// The outcome can't be written.
pub fn run(job: ProcessJob) -> io::Result<()> {
    let order = job.task::<ProgramOrder>();
    job.host(async |directory, order_of_job, terminate| match order {
        Ok(order) => host::run(&order, directory, order_of_job, terminate).await,
        Err(why) => Ok(leaf_core::job::JobOutcome::Failed(why.into())),
    })
}

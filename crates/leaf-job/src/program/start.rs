//! The first act of a program's process: it becomes the program's user, and then the program.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use rustix::process::{Gid, Resource, Rlimit, Uid, ioctl_tiocsctty, setrlimit, setsid};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::{Deserialize, Serialize};

/// The maximum number of processes of a program's user.
const MAX_PROCESSES: u64 = 1024;

/// What a program's process becomes. It is in a file and not in the process's environment, since variables such as `LD_PRELOAD` act
/// before the process has left its user.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) command: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) directory: PathBuf,
    /// The user and group that it becomes; `None` if its unit has a user of its own.
    pub(crate) user: Option<u32>,
    pub(crate) terminal: bool,
}

/// Becomes the program of this file: the main function of `leafd job-program`. Returns only if that fails, with the code of a shell:
/// 127 if there is no such program, or else 126.
#[must_use]
pub fn start_program(file: &Path) -> ExitCode {
    let (what, error) = match prepare(file) {
        Ok(start) => (start.command.first().cloned().unwrap_or_default(), run(&start)),
        Err(error) => ("the program".to_owned(), error),
    };
    use io::Write as _;
    let what: String = what.escape_debug().take(200).collect();
    let _ = writeln!(io::stderr(), "leafd: can't run {what}: {error}");
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound {
        127
    } else {
        126
    })
}

fn prepare(file: &Path) -> io::Result<Start> {
    let start: Start = serde_json::from_slice(&fs::read(file)?).map_err(io::Error::other)?;
    setsid()?;
    if start.terminal {
        ioctl_tiocsctty(io::stdin())?;
    }
    if let Some(id) = start.user {
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        setrlimit(
            Resource::Nproc,
            Rlimit {
                current: Some(MAX_PROCESSES),
                maximum: Some(MAX_PROCESSES),
            },
        )?;
        // No thread but this one exists yet.
        set_thread_res_uid(uid, uid, uid)?;
    }
    set_no_new_privs(true)?;
    std::env::set_current_dir(&start.directory)?;
    Ok(start)
}

fn run(start: &Start) -> io::Error {
    let Some((program, arguments)) = start.command.split_first() else {
        return io::Error::other("there is no command");
    };
    // Looked up here, since the process's own PATH is another one.
    let path = start
        .environment
        .get("PATH")
        .map(String::as_str)
        .unwrap_or_default();
    let program = match found(program, path) {
        Ok(program) => program,
        Err(error) => return error,
    };
    Command::new(program)
        .arg0(&start.command[0])
        .args(arguments)
        .env_clear()
        .envs(&start.environment)
        .exec()
}

/// Returns the path of a program: a name without `/` is looked up.
pub(super) fn found(program: &str, path: &str) -> io::Result<PathBuf> {
    if program.contains('/') {
        return Ok(program.into());
    }
    let mut directories = path.split(':').filter(|directory| directory.starts_with('/'));
    directories
        .find_map(|directory| {
            let candidate = Path::new(directory).join(program);
            let is_program = rustix::fs::access(&candidate, rustix::fs::Access::EXEC_OK).is_ok();
            (is_program && candidate.is_file()).then_some(candidate)
        })
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("it is in no directory of PATH: {path}"),
            )
        })
}

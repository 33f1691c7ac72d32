//! What can go wrong around a job. What goes wrong *in* a job is its [`JobOutcome`](leaf_core::job::JobOutcome).

use std::io;
use std::path::PathBuf;

use leaf_core::host_op::HostOpError;
use leaf_core::id::JobId;

/// Why something around a job did not work.
#[derive(Debug, thiserror::Error)]
pub enum NixError {
    /// The `nix` program can't be started.
    #[error("the program {program:?} can't be started; is Nix installed?")]
    NoNix {
        /// The program, as it was set.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The `nix` program gave no version.
    #[error("{program:?} is not a usable nix: --version said {said:?}")]
    NotNix {
        /// The program, as it was set.
        program: PathBuf,
        /// What it said.
        said: String,
    },
    /// The `nix` program is too old.
    #[error("nix {found} is too old, at least 2.8 is needed")]
    TooOld {
        /// Its version.
        found: String,
    },
    /// The installable is nothing that may be built.
    #[error("{installable:?} can't be built: {why}")]
    Installable {
        /// What was to be built.
        installable: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no such template.
    #[error("there is no template {name:?}; this leaf has {known}")]
    Template {
        /// The name that was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The job was started before.
    #[error("job {0} was started before")]
    Started(JobId),
    /// No such job is known here.
    #[error("there is no folder of job {0}")]
    NoJob(JobId),
    /// The job still runs.
    #[error("job {0} still runs")]
    Runs(JobId),
    /// The runner can't be started.
    #[error("the runner {program:?} can't be started")]
    Runner {
        /// The program, as it was set.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The runner can't be watched.
    #[error("the runner of job {id} can't be watched")]
    Watch {
        /// The job.
        id: JobId,
        /// Why not.
        source: io::Error,
    },
    /// The helper did not do what a job needs.
    #[error("the helper could not help job {id}")]
    Helper {
        /// The job.
        id: JobId,
        /// Why not.
        source: HostOpError,
    },
    /// A file or folder of a job can't be read or written.
    #[error("can't {what} {path:?}")]
    File {
        /// What was tried: `read`.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl NixError {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}

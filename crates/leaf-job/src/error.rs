//! Errors of operations on jobs. The failure *of* a job is its [`JobOutcome`](leaf_core::job::JobOutcome).

use std::io;
use std::path::PathBuf;

use leaf_core::host_op::HostOpError;
use leaf_core::id::JobId;
use leaf_host::cgroup::CgroupError;

/// An error of an operation on a job.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The job was started before.
    #[error("job {0} was started before")]
    Started(JobId),
    /// The job has no directory.
    #[error("job {0} has no directory")]
    NoJob(JobId),
    /// The job is still running.
    #[error("job {0} is still running")]
    Runs(JobId),
    /// This process is not root, and there is no helper: it can't give a program a user of its own.
    #[error("the program of job {0} needs a user of its own: run leafd as root, or with leaf-helper")]
    NoUser(JobId),
    /// The runner can't be started.
    #[error("can't start the runner {program:?}")]
    Runner {
        /// The program, as it was set.
        program: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The runner can't be watched.
    #[error("can't watch the runner of job {id}")]
    Watch {
        /// The job's id.
        id: JobId,
        /// The kernel's error.
        source: io::Error,
    },
    /// The helper could not carry out an operation on the job.
    #[error("the helper failed on job {id}")]
    Helper {
        /// The job's id.
        id: JobId,
        /// The helper's error.
        source: HostOpError,
    },
    /// It can't be determined whether the job is running.
    #[error("can't determine whether job {id} is running")]
    Cgroup {
        /// The job's id.
        id: JobId,
        /// The kernel's error.
        source: CgroupError,
    },
    /// A file or directory of a job can't be read or written.
    #[error("can't {what} {path:?}")]
    File {
        /// The attempted action: `read`.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

impl JobError {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}

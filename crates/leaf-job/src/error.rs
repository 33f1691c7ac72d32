//! What can go wrong around a job. What goes wrong *in* a job is its [`JobOutcome`](leaf_core::job::JobOutcome).

use std::io;
use std::path::PathBuf;

use leaf_core::host_op::HostOpError;
use leaf_core::id::JobId;
use leaf_host::cgroup::CgroupError;

/// Why an operation on a job failed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The job was started before.
    #[error("job {0} was started before")]
    Started(JobId),
    /// The job has no directory.
    #[error("job {0} has no directory")]
    NoJob(JobId),
    /// The job still runs.
    #[error("job {0} still runs")]
    Runs(JobId),
    /// The runner can't be started.
    #[error("the runner {program:?} can't be started")]
    Runner {
        /// The program, as it was set.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The runner can't be watched.
    #[error("the runner of job {id} can't be watched")]
    Watch {
        /// The job's id.
        id: JobId,
        /// What the kernel said.
        source: io::Error,
    },
    /// The helper did not carry out an operation on the job.
    #[error("the helper could not help with job {id}")]
    Helper {
        /// The job's id.
        id: JobId,
        /// What the helper said.
        source: HostOpError,
    },
    /// Whether a job's unit runs can't be told.
    #[error("can't find out whether job {id} runs")]
    Cgroup {
        /// The job's id.
        id: JobId,
        /// What the kernel said.
        source: CgroupError,
    },
    /// A file or directory of a job can't be read or written.
    #[error("can't {what} {path:?}")]
    File {
        /// What was tried: `read`.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl JobError {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}

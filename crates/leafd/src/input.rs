//! Everything that can wake the main loop, and everything that it can do in return.

use std::collections::BTreeMap;

use leaf_bus::serve::{Incoming, Responder};
use leaf_container::Changed;
use leaf_core::container::{Container, ForeignContainer, ObservedContainer};
use leaf_core::decide::LogQuery;
use leaf_core::hardware::Inventory;
use leaf_core::id::{CommandId, ContainerName, JobId};
use leaf_core::job::{JobOutcome, Progress};
use leaf_core::problem::Problem;
use tokio::time::Instant;

use crate::publisher::Published;
use crate::steps::Taken;

/// What wakes the main loop.
pub enum Input {
    /// Somebody sent a command.
    Command(Box<Incoming>),
    /// There was a look at the hardware.
    HardwareSeen {
        /// What was seen, or why nothing was.
        seen: Result<Inventory, String>,
        /// The last rescan that was asked for before the look began.
        rescan: u64,
    },
    /// There was a look at containers, because something moved there.
    ContainersSeen {
        /// When the look began.
        looked_at: Instant,
        /// At which.
        at: Changed,
        /// What it showed.
        seen: BTreeMap<ContainerName, ObservedContainer>,
    },
    /// The steps for a container were taken.
    Reconciled {
        /// Which one.
        name: ContainerName,
        /// What is wanted of it, by the count of changes, as it was when the steps were planned.
        generation: u64,
        /// What came of the steps.
        taken: Taken,
    },
    /// There was a look for a container that is not this leaf's.
    ForeignSeen {
        /// Its name.
        name: ContainerName,
        /// What was seen, or why nothing was.
        seen: Result<Option<ForeignContainer>, Problem>,
    },
    /// A running job said how far it is.
    JobProgress(JobId, Progress),
    /// A job ended.
    JobEnded(JobId, JobOutcome),
    /// What the stream is known to hold has changed.
    Published(Published),
    /// No more commands will come.
    Drained,
}

/// What only the host can answer; nothing changes by it.
pub enum Question {
    /// A part of a job's log.
    JobLog {
        /// Which job.
        job: JobId,
        /// From this byte on.
        offset: u64,
        /// Whether the job has ended.
        ended: bool,
    },
    /// A part of a container's log.
    ContainerLog(LogQuery),
    /// What a container uses.
    ContainerStats(ContainerName),
    /// These containers, and those that are not this leaf's.
    Containers(Vec<Container>),
}

/// What the main loop does once the journal has what it follows from.
pub enum Effect {
    /// Answer a command.
    Reply {
        /// Where to.
        responder: Responder,
        /// The command.
        id: CommandId,
        /// The body, or the problem.
        reply: Result<Vec<u8>, Problem>,
    },
    /// Answer a question that the host must be asked.
    Answer {
        /// Where to.
        responder: Responder,
        /// The command.
        id: CommandId,
        /// What is asked.
        question: Question,
    },
    /// Look at the hardware for this rescan.
    LookAtHardware(u64),
    /// Make the container what it is wanted to be.
    Reconcile(ContainerName),
    /// Look whether the host has a container of this name that is not this leaf's.
    LookForForeign(ContainerName),
    /// Start queued jobs as long as there is room.
    StartJobs,
    /// Run this job: that it runs is recorded.
    RunJob(JobId),
    /// End this job.
    CancelJob(JobId),
    /// Take away what is on the disk of these jobs, which are not remembered any more.
    ForgetJobs(Vec<JobId>),
    /// Tell those who wait that this job has ended.
    TellJobEnd(JobId),
}

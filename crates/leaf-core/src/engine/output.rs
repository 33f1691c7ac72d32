//! Outputs of the engine: what goes out at once, and what follows the commit of a batch.

use std::time::Duration;

use crate::accepted::CommandRecord;
use crate::container::Container;
use crate::decide::Question;
use crate::event::EventRecord;
use crate::id::{CommandId, ContainerName, JobId};
use crate::job::Job;
use crate::problem::Problem;
use crate::reconcile::{Interruption, Resource};

use super::input::RequestId;

/// What the engine answers to one input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outputs {
    /// What goes out at once, whatever waits for the disk.
    pub now: Vec<Immediate>,
    /// What goes into the journal, with the effects that follow its commit. Nothing if the input changes nothing.
    pub record: Option<Record>,
}

/// An output that waits for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Immediate {
    /// Answer a request of which nothing is recorded: a refusal, mostly.
    Answer(Answer),
    /// Tell all steps, those in flight and those that were released and have not begun, not to be waited for.
    InterruptAll(Interruption),
}

/// A batch for the journal and the effects of its commit. The shell commits records in the order in which it gets them,
/// and carries out the effects of each, in order, once it and all before it are durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// What is to be durable. It may be empty: then the effects wait for the records before it only.
    pub batch: Batch,
    /// What follows.
    pub effects: Vec<Effect>,
}

/// What one record makes durable: all of it or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// New events, with contiguous sequence numbers.
    pub events: Vec<EventRecord>,
    /// Entries of the state that changed, by key, as JSON; `None` removes one.
    pub entries: Vec<(String, Option<Vec<u8>>)>,
    /// Commands that were accepted, or have an outcome now.
    pub commands: Vec<CommandRecord>,
}

impl Batch {
    /// Returns whether there is nothing to make durable.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.entries.is_empty() && self.commands.is_empty()
    }
}

/// What the shell does once the journal has what it follows from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Answer a request.
    Answer(Answer),
    /// Answer a request with what the host says.
    Ask {
        /// The request.
        to: RequestId,
        /// The command's id.
        id: CommandId,
        /// What is asked of the host.
        question: Question,
    },
    /// Scan the hardware for the rescan with this number.
    ScanHardware {
        /// The number.
        rescan: u64,
    },
    /// Search the host for a foreign container of this name.
    FindForeign(ContainerName),
    /// Take the steps that move a container from observed to desired state. At most one such effect of a container is in
    /// flight: its end comes back as [`StepsEnded`](super::Input::StepsEnded).
    TakeSteps {
        /// The container, with its desired state.
        container: Box<Container>,
        /// How long to wait before.
        after: Duration,
    },
    /// Tell the steps in flight for a resource whether they still need to be waited for.
    Interrupt {
        /// The resource.
        resource: Resource,
        /// Why they need not be waited for, if so.
        interruption: Interruption,
    },
    /// Run a job, or continue to follow one that runs. Its end comes back as [`JobEnded`](super::Input::JobEnded).
    RunJob(Box<Job>),
    /// End a job that runs, or that is about to.
    CancelJob(JobId),
    /// Remove the files of jobs that the state has forgotten.
    ForgetJobs(Vec<JobId>),
    /// Publish that a job has ended.
    PublishJobEnd(JobId),
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The request.
    pub to: RequestId,
    /// The command's id.
    pub id: CommandId,
    /// The reply's body, or the problem.
    pub reply: Result<Vec<u8>, Problem>,
}

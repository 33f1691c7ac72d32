//! Outputs of the engine: those that are carried out at once, and those that follow the commit of a batch.

use std::time::Duration;

use crate::command::CommandRecord;
use crate::container::Container;
use crate::decide::{ChangeStep, Question, SecretChange};
use crate::event::EventRecord;
use crate::fleet::work::WorkTold;
use crate::id::{CommandId, ContainerName, JobId};
use crate::job::Job;
use crate::labels::Labels;
use crate::problem::Problem;
use crate::reconcile::{Interruption, Resource};

use super::input::RequestId;

/// The outputs for one input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outputs {
    /// Outputs to carry out at once, without waiting for the disk.
    pub now: Vec<Immediate>,
    /// The record to commit, with the effects that follow its commit; `None` if the input changes nothing.
    pub record: Option<Record>,
}

/// An output that is carried out at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Immediate {
    /// Answer a request that is not recorded: usually a refusal.
    Answer(Answer),
    /// Interrupt all steps: those in flight, and those that were released and have not begun.
    InterruptAll(Interruption),
    /// Renew the credentials of a container, and do nothing else to it. It has no other steps in flight, and the end comes back as
    /// [`StepsEnded`](super::Input::StepsEnded). It waits for no disk, so that a full one does not cut containers off.
    RenewCredentials(Box<Container>),
}

/// A batch for the journal, and the effects of its commit. The shell commits records in order, and carries out the
/// effects of each, in order, once it and all records before it are durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The batch to commit. If it is empty, the effects only wait for the records before it.
    pub batch: Batch,
    /// The effects to carry out after the commit.
    pub effects: Vec<Effect>,
}

/// The content of one journal commit: all of it becomes durable or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// New events, with contiguous sequence numbers.
    pub events: Vec<EventRecord>,
    /// Changed entries of the state, by key, as JSON; `None` removes one.
    pub entries: Vec<(String, Option<Vec<u8>>)>,
    /// Records of commands that were accepted or got their outcome.
    pub commands: Vec<CommandRecord>,
}

impl Batch {
    /// Returns whether the batch is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.entries.is_empty() && self.commands.is_empty()
    }
}

/// An effect that the shell carries out after the commit of its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Answer a request.
    Answer(Answer),
    /// Answer a request by a query of the host.
    Ask {
        /// The request.
        to: RequestId,
        /// The command's id.
        id: CommandId,
        /// The query.
        question: Question,
    },
    /// Scan the hardware for a rescan.
    ScanHardware {
        /// The rescan's number.
        rescan: u64,
    },
    /// Search the host for a foreign container of this name.
    FindForeign(ContainerName),
    /// Have the helper change a secret. Its end comes back as [`SecretMade`](super::Input::SecretMade). At most one such effect of
    /// a secret is in flight.
    ChangeSecret(SecretChange),
    /// Observe the host's secrets.
    ObserveSecrets {
        /// The number of changes that have begun or ended before.
        moves: u64,
    },
    /// Have the helper carry out a step of a change that can cut the leaf off. Its end comes back as
    /// [`Changed`](super::Input::Changed).
    Change {
        /// Its number.
        number: u64,
        /// The step.
        step: ChangeStep,
    },
    /// Take the steps that move a container from observed to desired state. At most one such effect of a container is in
    /// flight: its end comes back as [`StepsEnded`](super::Input::StepsEnded).
    TakeSteps {
        /// The container, with its desired state.
        container: Box<Container>,
        /// The pause before the first step.
        after: Duration,
        /// Whether the credentials that the container has must be renewed.
        renew: bool,
    },
    /// Change the interruption of the steps in flight for a resource.
    Interrupt {
        /// The resource.
        resource: Resource,
        /// The interruption.
        interruption: Interruption,
    },
    /// Run a job, or follow a running one. Its end comes back as [`JobEnded`](super::Input::JobEnded).
    RunJob(Box<Job>),
    /// Cancel a job that runs or is about to.
    CancelJob(JobId),
    /// Remove the files of jobs that the state has forgotten.
    ForgetJobs(Vec<JobId>),
    /// Publish that a job has ended.
    PublishJobEnd(JobId),
    /// The session of a job's program is that of the client with this key.
    TakeSession(JobId, String),
    /// Put these labels of the leaf into its beat.
    ShowLabels(Labels),
    /// Tell the hub agent of these works: at once, and every 3 s as long as there are any. What it answers comes back as
    /// [`WorksHeard`](super::Input::WorksHeard), and so does that it did not.
    TellWorks(Vec<WorkTold>),
}

/// The reply to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The request.
    pub to: RequestId,
    /// The command's id.
    pub id: CommandId,
    /// The reply's body, or the problem.
    pub reply: Result<Vec<u8>, Problem>,
}

//! What a command or an event is about: the leaf itself, or one of the things that it knows.

use crate::id::{ContainerName, DeviceId, JobId, LeafName};

/// What a command or an event is about. Each but the leaf has a name or an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate<'a> {
    /// The leaf itself, or all things of a kind.
    Leaf,
    /// One device.
    Device(&'a DeviceId),
    /// One container.
    Container(&'a ContainerName),
    /// One job.
    Job(&'a JobId),
}

impl Aggregate<'_> {
    /// The token that stands in the subject of its events: the leaf's name, the device id, the container's name as a
    /// token, the job id.
    #[must_use]
    pub fn token(self, leaf: &LeafName) -> String {
        match self {
            Self::Leaf => leaf.to_string(),
            Self::Device(id) => id.to_string(),
            Self::Container(name) => name.token(),
            Self::Job(id) => id.to_string(),
        }
    }

    /// The key of its entry in the [state](crate::state).
    #[must_use]
    pub fn key(self) -> String {
        match self {
            Self::Leaf => "leaf".to_owned(),
            Self::Device(id) => format!("device.{id}"),
            Self::Container(name) => format!("container.{}", name.token()),
            Self::Job(id) => format!("job.{id}"),
        }
    }
}

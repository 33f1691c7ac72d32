//! Aggregates: the subjects of commands and events.

use crate::id::{ContainerName, DeviceId, JobId, LeafName, SecretName};

/// The subject of a command or an event. Each but the leaf has a name or an id.
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
    /// One secret.
    Secret(&'a SecretName),
}

impl Aggregate<'_> {
    /// Returns its token in the subjects of events: the leaf's name, the device id, the name of the container or
    /// secret as a token, the job id.
    #[must_use]
    pub fn token(self, leaf: &LeafName) -> String {
        match self {
            Self::Leaf => leaf.to_string(),
            Self::Device(id) => id.to_string(),
            Self::Container(name) => name.token(),
            Self::Job(id) => id.to_string(),
            Self::Secret(name) => name.token(),
        }
    }

    /// Returns the key of its entry in the [state](crate::state).
    #[must_use]
    pub fn key(self) -> String {
        match self {
            Self::Leaf => "leaf".to_owned(),
            Self::Device(id) => format!("device.{id}"),
            Self::Container(name) => format!("container.{}", name.token()),
            Self::Job(id) => format!("job.{id}"),
            Self::Secret(name) => format!("secret.{}", name.token()),
        }
    }
}

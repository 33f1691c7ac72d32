//! What needs root: the closed list of operations that `leaf-helper` carries out.
//!
//! A plan yields them, `leafd` sends them, the helper validates everything again in its own process.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::container::ContainerNetwork;
use crate::id::{ContainerName, JobId, LeafName, StorePath};
use crate::spec::ContainerOptions;
use crate::subject;

/// One operation on the host that needs root. Each may be carried out again with the same result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op", deny_unknown_fields)]
#[expect(clippy::large_enum_variant, reason = "there are few of them at a time")]
pub enum HostOp {
    /// Makes the leaf address (on `lo`) and the closed network rules. Once at the start of the daemon.
    PrepareNetwork {
        /// The address that the leaf's NATS server listens on.
        leaf_address: Ipv4Addr,
        /// The port there that containers may reach.
        nats_port: u16,
    },
    /// Makes the root folder, `NAME.conf`, the unit, the GC root and the credentials of a container, or sets them anew. Of
    /// one that runs the limits and the openings of its network hold at once; all else holds from its next start.
    CreateContainer {
        /// Its name.
        name: ContainerName,
        /// Its system.
        toplevel: StorePath,
        /// Its addresses.
        network: ContainerNetwork,
        /// What else is wanted of it.
        options: Box<ContainerOptions>,
        /// Whether a container of this name that somebody else made is taken over, with its files.
        adopt: bool,
        /// What the container is told about its leaf.
        binding: ContainerBinding,
        /// Its credentials by name; the container finds them below `$CREDENTIALS_DIRECTORY`.
        credentials: BTreeMap<String, Secret>,
    },
    /// Starts a container, and returns when it is ready.
    StartContainer {
        /// Its name.
        name: ContainerName,
        /// How long it may take until it says that it is ready, in seconds; then it is ended.
        ready_timeout_seconds: u32,
    },
    /// Brings a container that runs to what `CreateContainer` set last, and returns when it is ready: by a switch inside
    /// where only its system is another and the container can do that, else by a restart.
    UpdateContainer {
        /// Its name.
        name: ContainerName,
        /// How long a start may take until it says that it is ready, in seconds; then it is ended.
        ready_timeout_seconds: u32,
        /// The grace time of a stop, in seconds.
        grace_seconds: u32,
    },
    /// Stops a container: SIGRTMIN+3 to its init, and after the grace time the end of its whole cgroup.
    StopContainer {
        /// Its name.
        name: ContainerName,
        /// The grace time, in seconds.
        grace_seconds: u32,
    },
    /// Removes all that `CreateContainer` made. The container does not run.
    DestroyContainer {
        /// Its name.
        name: ContainerName,
    },
    /// Starts the job whose order is in its folder, as the user of the jobs, in a unit of its own.
    StartJob {
        /// Which one.
        id: JobId,
    },
    /// Ends a job: SIGTERM, and after the grace time SIGKILL to all that is left of it. Returns when nothing is.
    StopJob {
        /// Which one.
        id: JobId,
        /// The grace time, in seconds.
        grace_seconds: u32,
    },
    /// Removes the folder of a job that does not run.
    RemoveJob {
        /// Which one.
        id: JobId,
    },
}

impl HostOp {
    /// The operation in a few words, without any secret.
    #[must_use]
    pub fn summary(&self) -> String {
        match self {
            Self::PrepareNetwork {
                leaf_address,
                nats_port,
            } => {
                format!("prepare the network for {leaf_address}:{nats_port}")
            }
            Self::CreateContainer { name, toplevel, .. } => format!("create container {name} of {toplevel}"),
            Self::StartContainer { name, .. } => format!("start container {name}"),
            Self::UpdateContainer { name, .. } => format!("update container {name}"),
            Self::StopContainer { name, .. } => format!("stop container {name}"),
            Self::DestroyContainer { name } => format!("destroy container {name}"),
            Self::StartJob { id } => format!("start job {id}"),
            Self::StopJob { id, .. } => format!("stop job {id}"),
            Self::RemoveJob { id } => format!("remove job {id}"),
        }
    }
}

/// Why an operation was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("can't {op}: {reason}")]
pub struct HostOpError {
    /// The operation in a few words.
    pub op: String,
    /// Whether it was refused, or did not work.
    pub kind: HostOpErrorKind,
    /// What happened, and what to do about it.
    pub reason: String,
}

/// Whether an operation was refused, or did not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostOpErrorKind {
    /// The helper doesn't do that: a name, a path or a value it does not allow.
    Refused,
    /// The host lacks something: root, a program, a kernel feature.
    Unsupported,
    /// The container ended before it was ready, or was not ready in time.
    NotReady,
    /// It did not work.
    Failed,
    /// Who was to carry it out is not there, or went away in the middle: how far it came is not known. To be looked at, and
    /// planned anew.
    Interrupted,
}

/// What a container is told about its leaf: the credential `leaf.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerBinding {
    /// The leaf that runs it.
    pub leaf: LeafName,
    /// Its own name.
    pub container: ContainerName,
    /// Where NATS is.
    pub nats_url: String,
    /// The only inbox prefix that its NATS user may subscribe below.
    pub inbox_prefix: String,
    /// Its own subjects are below this prefix, which ends without a dot.
    pub subject_prefix: String,
}

impl ContainerBinding {
    /// Returns what this container is told about this leaf.
    #[must_use]
    pub fn new(leaf: &LeafName, container: &ContainerName, nats_url: &str) -> Self {
        Self {
            leaf: leaf.clone(),
            container: container.clone(),
            nats_url: nats_url.to_owned(),
            inbox_prefix: subject::inbox_prefix(&container.caller()),
            subject_prefix: subject::container_prefix(leaf, container),
        }
    }
}

/// A secret: it can be written down on purpose, and never by `{:?}`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Returns the secret that holds this text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What runs the containers of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// systemd as PID 1: a unit `container@NAME.service` each, seen by `systemctl`, `machinectl` and `nixos-container`.
    Systemd,
    /// `leaf-helper supervise` with systemd-nspawn, where systemd is not PID 1. It can't do all that the other can, and says
    /// so.
    Nspawn,
}

impl Runtime {
    /// Returns what is said where a part of a spec, or a command, is beyond it.
    #[must_use]
    pub fn cant(self, what: &str) -> String {
        match self {
            Self::Systemd => format!("{what}: containers as units of systemd can't do that"),
            Self::Nspawn => {
                format!("{what}: the nspawn runtime, for hosts where systemd is not PID 1, can't do that")
            }
        }
    }

    /// The unit of a container under systemd.
    #[must_use]
    pub fn unit(name: &ContainerName) -> String {
        format!("container@{name}.service")
    }
}

/// What is to be run as a container: `spec.json`, written by `CreateContainer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// The leaf.
    pub leaf: LeafName,
    /// The container.
    pub name: ContainerName,
    /// Its system; `init` below it is the first process.
    pub toplevel: StorePath,
    /// Its addresses.
    pub network: ContainerNetwork,
    /// What else is wanted of it.
    #[serde(default)]
    pub options: ContainerOptions,
}

impl RunSpec {
    /// Returns what tells this spec from another: 32 hexadecimal digits.
    #[must_use]
    pub fn digest(&self) -> String {
        short_digest(self)
    }

    /// Returns the digest of that part of the spec that counts from the next start of the container only: its system,
    /// addresses, environment, secrets, binds and users.
    #[must_use]
    pub fn start_digest(&self) -> String {
        let options = &self.options;
        short_digest(&(
            &self.toplevel,
            &self.network,
            &options.environment,
            &options.secrets,
            &options.binds,
            options.users,
        ))
    }
}

fn short_digest(value: &impl Serialize) -> String {
    let bytes = serde_json::to_vec(value).expect("a spec has text keys and no failing parts");
    Sha256::digest(bytes)
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

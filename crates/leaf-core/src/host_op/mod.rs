//! What needs root: the closed list of operations that `leaf-helper` carries out.
//!
//! A plan yields them, `leafd` sends them, the helper validates everything again in its own process. All that is so about an
//! operation stands in its declaration below: its parameters and their types over varlink, what it is about, what it waits
//! for, and its summary.

mod declare;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use data_encoding::HEXLOWER;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::container::ContainerNetwork;
use crate::id::{ContainerName, JobId, LeafName, StorePath};
use crate::json::to_json;
use crate::spec::ContainerOptions;
use crate::subject;
use declare::host_ops;

host_ops! {
    /// Makes the leaf address (on `lo`) and the closed network rules.
    PrepareNetwork on Network, waits for Nothing: "prepare the network for {leaf_address}:{nats_port}" {
        /// The address that the leaf's NATS server listens on.
        leaf_address: Ipv4Addr as "string",
        /// The port there that containers may reach.
        nats_port: u16 as "int",
    }
    /// Makes the root directory, `NAME.conf`, the unit, the GC root and the credentials of a container, or sets them anew. Of
    /// one that runs the limits and the openings of its network hold at once; all else holds from its next start.
    CreateContainer on Container(name), waits for Nothing: "create container {name} of {toplevel}" {
        /// The container's name.
        name: ContainerName as "string",
        /// Its system.
        toplevel: StorePath as "string",
        /// Its addresses.
        network: ContainerNetwork as "Network",
        /// The other parts of its spec (the JSON Schema of a container's options is in the project's docs/protocol).
        options: Box<ContainerOptions> as "object",
        /// Whether a container of this name that somebody else made is taken over, with its files.
        adopt: bool as "bool",
        /// What the container is told about its leaf.
        binding: ContainerBinding as "Binding",
        /// Its credentials by name; the container finds them below `$CREDENTIALS_DIRECTORY`.
        credentials: BTreeMap<String, Secret> as "[string]string",
    }
    /// Starts a container, and returns when it is ready.
    StartContainer on Container(name), waits for Readiness: "start container {name}" {
        /// The container's name.
        name: ContainerName as "string",
        /// How long it may take until it says that it is ready, in seconds; then it is ended.
        ready_timeout_seconds: u32 as "int",
    }
    /// Brings a container that runs to what `CreateContainer` set last, and returns when it is ready: by a switch inside
    /// where only its system is another and the container can do that, else by a restart.
    UpdateContainer on Container(name), waits for Readiness: "update container {name}" {
        /// The container's name.
        name: ContainerName as "string",
        /// How long a start may take until it says that it is ready, in seconds; then it is ended.
        ready_timeout_seconds: u32 as "int",
        /// The grace time of a stop, in seconds.
        grace_seconds: u32 as "int",
    }
    /// Freezes the processes of a container that runs, or thaws them, and returns when that is so. Idempotent.
    FreezeContainer on Container(name), waits for Nothing: "set frozen to {frozen} for container {name}" {
        /// The container's name.
        name: ContainerName as "string",
        /// Whether they are frozen afterwards.
        frozen: bool as "bool",
    }
    /// Stops a container: SIGRTMIN+3 to its init, and after the grace time the end of its whole cgroup.
    StopContainer on Container(name), waits for End: "stop container {name}" {
        /// The container's name.
        name: ContainerName as "string",
        /// The grace time, in seconds.
        grace_seconds: u32 as "int",
    }
    /// Removes all that `CreateContainer` made. The container does not run.
    DestroyContainer on Container(name), waits for Nothing: "destroy container {name}" {
        /// The container's name.
        name: ContainerName as "string",
    }
    /// Starts the job whose order is in its directory, as the user of the jobs, in a unit of its own.
    StartJob on Job(id), waits for Nothing: "start job {id}" {
        /// The job's id.
        id: JobId as "string",
    }
    /// Ends a job: SIGTERM, and after the grace time SIGKILL to all that is left of it. Returns when nothing of it runs.
    StopJob on Job(id), waits for End: "stop job {id}" {
        /// The job's id.
        id: JobId as "string",
        /// The grace time, in seconds.
        grace_seconds: u32 as "int",
    }
    /// Removes the directory of a job that does not run.
    RemoveJob on Job(id), waits for Nothing: "remove job {id}" {
        /// The job's id.
        id: JobId as "string",
    }
}

/// What an operation is about. No two operations on one subject run at the same time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostSubject {
    /// The network of all containers.
    Network,
    /// One container.
    Container(ContainerName),
    /// One job.
    Job(JobId),
}

/// What an operation waits for once its own part is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostWait {
    /// Nothing: it has an outcome as soon as its part is done.
    Nothing,
    /// That a container says that it is ready. The wait is cut short by an operation that waits for the [end](Self::End) of
    /// the same subject; the container goes on by itself.
    Readiness,
    /// That nothing of its subject runs any more.
    End,
}

/// What a host operation looks like over varlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostOpDeclaration {
    /// The name of its method.
    pub method: &'static str,
    /// What it does, a line each.
    pub doc: &'static [&'static str],
    /// Its parameters, with their varlink types.
    pub parameters: &'static [(&'static str, &'static str)],
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
    /// The other parts of its spec.
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
    HEXLOWER.encode(&Sha256::digest(to_json(value))[..16])
}

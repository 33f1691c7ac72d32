//! Host operations: the closed list of privileged operations that `leaf-helper` carries out.
//!
//! Plans yield them, `leafd` sends them, and the helper validates everything again in its own process. Everything that
//! is true of an operation is in its declaration below: its parameters with their varlink types, its subject, what it
//! waits for, and its summary.

mod declare;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use data_encoding::HEXLOWER;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::change::{ConfirmedBy, HubChange, SystemChange};
use crate::container::ContainerNetwork;
use crate::id::{Caller, ChangeId, ContainerName, JobId, LeafName, SecretName, StorePath};
use crate::json::to_json;
pub use crate::secret::Secret;
use crate::secret::SecretUser;
use crate::spec::ContainerOptions;
use crate::subject;
use declare::host_ops;

host_ops! {
    /// Adds the leaf address to `lo`, and sets the rules of the closed network.
    PrepareNetwork on Network, waits for Nothing: "prepare the network for {leaf_address}:{nats_port}" {
        /// The address that the leaf's NATS server listens on.
        leaf_address: Ipv4Addr as "string",
        /// The port that containers may reach there.
        nats_port: u16 as "int",
    }
    /// Removes what `PrepareNetwork` made, if the leaf has no containers.
    ReleaseNetwork on Network, waits for Nothing: "release the network of {leaf_address}" {
        /// The address that the leaf's NATS server listened on.
        leaf_address: Ipv4Addr as "string",
    }
    /// Creates or updates the root directory, `NAME.conf`, the unit, the GC root and the credentials of a container.
    /// For a running container, limits, openings and credentials take effect at once; everything else at its next start. Reports
    /// whether it sees the credentials at its next start only, because an earlier helper started it.
    CreateContainer on Container(name), waits for Nothing: "create container {name} of {toplevel}" {
        /// The container's name.
        name: ContainerName as "string",
        /// Its system.
        toplevel: StorePath as "string",
        /// Its addresses.
        network: ContainerNetwork as "Network",
        /// The other parts of its spec (the JSON Schema of a container's options is in the project's docs/protocol).
        options: Box<ContainerOptions> as "object",
        /// Whether to adopt a foreign container of this name, with its files.
        adopt: bool as "bool",
        /// The secrets of the leaf whose change restarts it, by name, each with the digest of its present age file.
        #[serde(default)]
        secrets: BTreeMap<SecretName, String> as "[string]string",
        /// The container's binding to its leaf.
        binding: ContainerBinding as "Binding",
        /// Its credentials by name; the container finds them below `$CREDENTIALS_DIRECTORY`.
        credentials: BTreeMap<String, Secret> as "[string]string",
    } -> "at_next_start: ?bool"
    /// Replaces credentials that `CreateContainer` set, with the same effect and report, and changes nothing else.
    RenewCredentials on Container(name), waits for Nothing: "renew the credentials of container {name}" {
        /// The container's name.
        name: ContainerName as "string",
        /// The new credentials by name.
        credentials: BTreeMap<String, Secret> as "[string]string",
    } -> "at_next_start: ?bool"
    /// Starts a container, and returns when it is ready.
    StartContainer on Container(name), waits for Readiness: "start container {name}" {
        /// The container's name.
        name: ContainerName as "string",
        /// The time limit for it to become ready, in seconds; after that it is stopped.
        ready_timeout_seconds: u32 as "int",
    }
    /// Brings a running container to what `CreateContainer` last set, and returns when it is ready: by a switch in
    /// place if only its system differs and it can switch, otherwise by a restart.
    UpdateContainer on Container(name), waits for Readiness: "update container {name}" {
        /// The container's name.
        name: ContainerName as "string",
        /// The time limit for it to become ready after a restart, in seconds; after that it is stopped.
        ready_timeout_seconds: u32 as "int",
        /// The grace time of a stop, in seconds.
        grace_seconds: u32 as "int",
    }
    /// Freezes or thaws the processes of a running container, and returns when that is done.
    FreezeContainer on Container(name), waits for Nothing: "set frozen to {frozen} for container {name}" {
        /// The container's name.
        name: ContainerName as "string",
        /// Whether to freeze or to thaw them.
        frozen: bool as "bool",
    }
    /// Stops a container: SIGRTMIN+3 to its init, and after the grace time SIGKILL to its whole cgroup.
    StopContainer on Container(name), waits for End: "stop container {name}" {
        /// The container's name.
        name: ContainerName as "string",
        /// The grace time, in seconds.
        grace_seconds: u32 as "int",
    }
    /// Removes everything that `CreateContainer` made. The container must not be running.
    DestroyContainer on Container(name), waits for Nothing: "destroy container {name}" {
        /// The container's name.
        name: ContainerName as "string",
    }
    /// Starts the job whose order is in its directory, as the user `leaf-job`, in a unit of its own.
    StartJob on Job(id), waits for Nothing: "start job {id}" {
        /// The job's id.
        id: JobId as "string",
    }
    /// Starts the program of a job whose order is in its directory, as a user of its own, in a unit of its own.
    StartProgram on Job(id), waits for Nothing: "start the program of job {id}" {
        /// The program's id, which is made from that of its job.
        id: JobId as "string",
    }
    /// Stops a job: SIGTERM, and after the grace time SIGKILL to its remaining processes. Returns when all have ended.
    StopJob on Job(id), waits for End: "stop job {id}" {
        /// The job's id.
        id: JobId as "string",
        /// The grace time, in seconds.
        grace_seconds: u32 as "int",
    }
    /// Removes the directory of a job that is not running.
    RemoveJob on Job(id), waits for Nothing: "remove job {id}" {
        /// The job's id.
        id: JobId as "string",
    }
    /// Decrypts a secret's age file with the host key, to know that it is for this leaf and of this name, and keeps the file.
    StoreSecret on Secret(name), waits for Nothing: "store secret {name}" {
        /// The secret's name.
        name: SecretName as "string",
        /// The armored age file.
        age: Secret as "string",
    } -> "secrets: ?[]StoredSecret"
    /// Removes a secret's age file, if it exists.
    RemoveSecret on Secret(name), waits for Nothing: "remove secret {name}" {
        /// The secret's name.
        name: SecretName as "string",
    }
    /// Reports the kept secrets, without their content.
    ListSecrets on Secrets, waits for Nothing: "list the secrets" {
    } -> "secrets: ?[]StoredSecret"
    /// Reports the public part of the host key that secrets are encrypted to.
    ShowHostKey on HostKey, waits for Nothing: "show the host key" {
    } -> "host_key: ?string"
    /// Asks the witness whether it answers, arms the way back, and changes the hub's settings; leafd is restarted after that.
    /// The change goes back by itself unless `ConfirmChange` confirms it in time. At most one change is open.
    ArmChange on Change, waits for Nothing: "arm change {id} of the hub" {
        /// The change.
        id: ChangeId as "string",
        /// Who asked for it.
        caller: Caller as "string",
        /// The time in which it must be confirmed, in seconds: 30 to 3600.
        seconds: u32 as "int",
        /// Whether the witness is not asked, and only a person can confirm the change.
        unwitnessed: bool as "bool",
        /// The hub's settings.
        hub: Box<HubChange> as "Hub",
    }
    /// Checks another system, asks the witness whether it answers, arms the way back, and has the system activated. The change goes
    /// back by itself unless `ConfirmChange` confirms it in time. A system for the next boot is set at once. At most one change is open.
    ArmSystem on Change, waits for Nothing: "arm change {id} of the system" {
        /// The change.
        id: ChangeId as "string",
        /// Who asked for it.
        caller: Caller as "string",
        /// The time in which it must be confirmed, in seconds: 30 to 3600.
        seconds: u32 as "int",
        /// Whether the witness is not asked, and only a person can confirm the change.
        unwitnessed: bool as "bool",
        /// The system.
        system: Box<SystemChange> as "System",
    }
    /// Confirms the armed change, or tells that the witness answered the question before a change is armed.
    ConfirmChange on Confirmation, waits for Nothing: "confirm change {id}" {
        /// The change.
        id: ChangeId as "string",
        /// The witness's signature, or the person who confirms it.
        by: ConfirmedBy as "Confirmation",
    }
}

/// The subject of an operation. No two operations on one subject run at the same time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostSubject {
    /// The network of all containers.
    Network,
    /// One container.
    Container(ContainerName),
    /// One job.
    Job(JobId),
    /// One secret.
    Secret(SecretName),
    /// The list of all secrets.
    Secrets,
    /// The open change.
    Change,
    /// The confirmation of a change, which must not wait for the operation that asks the witness.
    Confirmation,
    /// The host's SSH key.
    HostKey,
}

/// What an operation reports beside that it was carried out: nothing but for those on secrets and credentials.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// The public part of the host key that secrets are encrypted to, as a line of a `.pub` file without a comment; absent if
    /// the host has none that can be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
    /// The stored secret, or all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<StoredSecret>,
    /// Whether a running container sees its renewed credentials at its next start only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_next_start: bool,
}

/// A secret's age file on the host, without its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSecret {
    /// The secret's name.
    pub name: SecretName,
    /// The size of the file, in bytes.
    pub file_bytes: u64,
    /// The SHA-256 of the file, as 64 hexadecimal digits.
    pub digest: String,
    /// The users that it names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<SecretUser>,
    /// Why it can't be used, if it can't: it is encrypted to another key, or is another leaf's. Its users are unknown then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The event that an operation waits for after its own part is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostWait {
    /// Nothing: its outcome is known when its part is done.
    Nothing,
    /// A container's readiness. An operation that waits for the [end](Self::End) of the same subject ends the wait; the
    /// container continues by itself.
    Readiness,
    /// The end of all processes of its subject.
    End,
}

/// The varlink declaration of a host operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostOpDeclaration {
    /// The name of its method.
    pub method: &'static str,
    /// Its documentation, line by line.
    pub doc: &'static [&'static str],
    /// Its parameters, with their varlink types.
    pub parameters: &'static [(&'static str, &'static str)],
    /// The fields that it reports, with their varlink types, as varlink's language has them; empty for none.
    pub report: &'static str,
}

/// An operation that was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("can't {op}: {reason}")]
pub struct HostOpError {
    /// A short description of the operation.
    pub op: String,
    /// The kind of failure.
    pub kind: HostOpErrorKind,
    /// What happened, and what to do about it.
    pub reason: String,
}

/// Why an operation was not carried out, as a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostOpErrorKind {
    /// The helper refused it: a name, a path or a value is not allowed.
    Refused,
    /// The host lacks something: root, a program, a kernel feature.
    Unsupported,
    /// The container ended before it was ready, or was not ready in time.
    NotReady,
    /// It failed.
    Failed,
    /// The helper is unreachable, or went away during the operation: its progress is unknown. The caller must observe
    /// again, and plan again.
    Interrupted,
}

/// A container's binding to its leaf: the credential `leaf.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerBinding {
    /// The leaf that runs it.
    pub leaf: LeafName,
    /// The container's name.
    pub container: ContainerName,
    /// The URL of NATS.
    pub nats_url: String,
    /// The only inbox prefix that its NATS user may subscribe below.
    pub inbox_prefix: String,
    /// The prefix of its own subjects, without a final dot.
    pub subject_prefix: String,
}

impl ContainerBinding {
    /// Returns the binding of a container to a leaf.
    #[must_use]
    pub fn new(leaf: &LeafName, container: &ContainerName, nats_url: &str) -> Self {
        Self {
            leaf: leaf.clone(),
            container: container.clone(),
            nats_url: nats_url.to_owned(),
            inbox_prefix: subject::inbox_prefix(&container.caller(leaf)),
            subject_prefix: subject::container_prefix(leaf, container),
        }
    }

    /// Returns whether this is the binding of a container to a leaf, at any server. Earlier ones don't name the leaf in the prefix of
    /// inboxes.
    #[must_use]
    pub fn is_of(&self, leaf: &LeafName, container: &ContainerName) -> bool {
        let now = Self::new(leaf, container, &self.nats_url);
        let earlier = Self {
            inbox_prefix: subject::inbox_prefix(&container.earlier_caller()),
            ..now.clone()
        };
        *self == now || *self == earlier
    }
}

/// The system and settings of a container to run: the content of `spec.json`, written by `CreateContainer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// The leaf.
    pub leaf: LeafName,
    /// The container.
    pub name: ContainerName,
    /// Its system, whose `init` is the leader.
    pub toplevel: StorePath,
    /// Its addresses.
    pub network: ContainerNetwork,
    /// The other parts of its spec.
    #[serde(default)]
    pub options: ContainerOptions,
    /// The secrets of the leaf whose change restarts it, each with the digest of its age file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<SecretName, String>,
}

impl RunSpec {
    /// Returns the digest of the spec: 32 hexadecimal digits.
    ///
    /// It differs from that of a leaf whose containers' credentials don't end: after a rollback that one creates a container again before
    /// it starts it, and so gives it credentials that it need not renew.
    #[must_use]
    pub fn digest(&self) -> String {
        short_digest(&(self, "credentials that end"))
    }

    /// Returns the digest of the part of the spec that takes effect at the container's next start: its system,
    /// addresses, environment, secrets with their content, binds and users.
    #[must_use]
    pub fn start_digest(&self) -> String {
        let options = &self.options;
        let of_spec = (
            &self.toplevel,
            &self.network,
            &options.environment,
            &options.secrets,
            &options.binds,
            options.users,
        );
        // As before there were secrets of the leaf, so that running containers that use none keep their digest.
        if self.secrets.is_empty() {
            short_digest(&of_spec)
        } else {
            short_digest(&(of_spec, &self.secrets))
        }
    }
}

fn short_digest(value: &impl Serialize) -> String {
    HEXLOWER.encode(&Sha256::digest(to_json(value))[..16])
}

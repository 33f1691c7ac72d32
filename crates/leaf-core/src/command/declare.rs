//! The declaration of a command, and the macros that declare the commands of a noun.

use serde::{Deserialize, Serialize};

use crate::container::{Container, ContainerPhase};
use crate::shape::Shape;

/// Whether a command changes something or begins a job. A verb's kind never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandKind {
    /// It changes nothing.
    Query,
    /// It changes something, and is answered when that is done or has failed.
    Change,
    /// It begins a job, and is answered with the job's id once that is recorded.
    Job,
}

/// A capability of the host that a command needs. A leaf without it refuses the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing beyond `leafd` itself.
    Nothing,
    /// A runtime of containers.
    Containers,
    /// Nix.
    Nix,
    /// A helper that keeps secrets.
    Secrets,
}

/// A command's effect on the leaf's free disk space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// It writes nothing.
    Untouched,
    /// It may use space, and is refused while only the reserve is left.
    Takes,
    /// It frees space, and is accepted even if it needs the reserve.
    Frees,
}

/// Whether a command has the field `if_generation`, which makes it depend on the generation that its sender saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfGeneration {
    /// It does not.
    Ignored,
    /// It is refused if the container is of another generation.
    Checked,
    /// As [`Checked`](Self::Checked); 0 requires that no container of this name exists.
    CheckedOrAbsent,
}

/// The condition for a command's success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Success {
    /// It is accepted: the reply is known then.
    Answered,
    /// The container is running and ready.
    ContainerRuns,
    /// The container has stopped.
    ContainerStopped,
    /// The container no longer exists on the host.
    ContainerGone,
    /// The job has ended, in any way.
    JobEnded,
    /// The hardware was scanned.
    HardwareSeen,
}

impl Success {
    /// Returns whether a container without steps in flight meets the condition. A command that was answered when it was
    /// accepted is met by every phase but `failed`.
    #[must_use]
    pub fn is_met_by(self, container: &Container) -> bool {
        match self {
            Self::ContainerRuns => container.phase == ContainerPhase::Running,
            Self::ContainerStopped => container.phase == ContainerPhase::Stopped,
            Self::ContainerGone => false,
            Self::Answered | Self::JobEnded | Self::HardwareSeen => container.phase != ContainerPhase::Failed,
        }
    }
}

/// Whether a query is answered while the journal can't commit and the state in memory is ahead of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhileStuck {
    /// It is refused.
    Refused,
    /// It is answered.
    Answered,
}

/// The power of a command: the kind of effect that it can have on a leaf. The leaf's rules require signatures, and named callers, by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// It shows what is there.
    Reads,
    /// It changes containers, labels and jobs, within what the leaf's settings allow.
    Changes,
    /// It has Nix evaluate and build what the caller names, in its sandbox.
    Builds,
    /// It sets or removes a secret.
    Secrets,
    /// It runs code as a person asks, outside a sandbox.
    RunsCode,
    /// It changes what the leaf is reached by.
    CutsOff,
}

impl Power {
    /// All powers.
    pub const ALL: [Self; 6] = [
        Self::Reads,
        Self::Changes,
        Self::Builds,
        Self::Secrets,
        Self::RunsCode,
        Self::CutsOff,
    ];

    /// Returns the power's name, as in the settings: `runs-code`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Changes => "changes",
            Self::Builds => "builds",
            Self::Secrets => "secrets",
            Self::RunsCode => "runs-code",
            Self::CutsOff => "cuts-off",
        }
    }

    /// Returns whether its commands always need a signature, and a caller whom the leaf's settings name for it.
    #[must_use]
    pub const fn is_for_named_callers(self) -> bool {
        matches!(self, Self::RunsCode | Self::CutsOff)
    }
}

/// Everything that is true of a command, apart from its fields.
#[derive(Debug, Clone, Copy)]
pub struct Declaration {
    /// The noun: `container`.
    pub noun: &'static str,
    /// The verb: `start`.
    pub verb: &'static str,
    /// Noun and verb joined by a dot, the command's name in records and logs: `container.start`.
    pub noun_verb: &'static str,
    /// Whether it changes something or begins a job.
    pub kind: CommandKind,
    /// The capability that it needs.
    pub need: Need,
    /// Its effect on free disk space.
    pub disk: Disk,
    /// Its power, by which the leaf's rules require a signature.
    pub power: Power,
    /// Whether it has the field `if_generation`.
    pub if_generation: IfGeneration,
    /// The condition for its success.
    pub success: Success,
    /// Whether it is answered while the journal is stuck.
    pub while_stuck: WhileStuck,
    /// The name of the request's schema: `cmd.container.start`.
    pub request_name: &'static str,
    /// The request.
    pub request: Shape,
    /// The name of the reply's schema: `reply.container.start`.
    pub reply_name: &'static str,
    /// The reply on success.
    pub reply: Shape,
}

/// The type of a command's request.
pub trait Request: Serialize {
    /// The command's declaration.
    const DECLARATION: &'static Declaration;
    /// The reply on success.
    type Reply: for<'de> Deserialize<'de> + Serialize;
}

/// Defines the type of a request, with the field `if_generation` after the others if the declaration has it.
macro_rules! request {
    ($name:ident Ignored { $($attribute:tt)* } { $($fields:tt)* }) => {
        $($attribute)*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($fields)* }
    };
    ($name:ident Checked { $($attribute:tt)* } { $($fields:tt)* }) => {
        $crate::command::declare::request! { $name Ignored { $($attribute)* } {
            $($fields)*
            /// Carried out only if the container still has this generation.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub if_generation: Option<u64>,
        } }
    };
    ($name:ident CheckedOrAbsent { $($attribute:tt)* } { $($fields:tt)* }) => {
        $crate::command::declare::request! { $name Ignored { $($attribute)* } {
            $($fields)*
            /// Carried out only if the container still has this generation; 0: only if no container of this name
            /// exists.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub if_generation: Option<u64>,
        } }
    };
}

/// Declares the commands of one noun: a type for each request, the enum `Command` of them, and their [`Declaration`]s.
/// A missing attribute is a compile error.
macro_rules! commands {
    ($noun:literal; $(
        $(#[$doc:meta])*
        $variant:ident: $name:ident = $verb:literal {
            kind: $kind:ident,
            about: $about:ident $(($key:ident))?,
            needs: $need:ident,
            disk: $disk:ident,
            power: $power:ident,
            if_generation: $generation:ident,
            success: $success:ident,
            while_stuck: $stuck:ident $(,)?
        } {
            $($(#[$fdoc:meta])* $field:ident : $type:ty),* $(,)?
        } -> $reply:ident
    )*) => {
        $(
            $crate::command::declare::request! { $name $generation { $(#[$doc])* } { $($(#[$fdoc])* pub $field: $type,)* } }

            impl $crate::command::Request for $name {
                const DECLARATION: &'static $crate::command::Declaration = &$crate::command::Declaration {
                    noun: $noun,
                    verb: $verb,
                    noun_verb: concat!($noun, ".", $verb),
                    kind: $crate::command::CommandKind::$kind,
                    need: $crate::command::Need::$need,
                    disk: $crate::command::Disk::$disk,
                    power: $crate::command::Power::$power,
                    if_generation: $crate::command::IfGeneration::$generation,
                    success: $crate::command::Success::$success,
                    while_stuck: $crate::command::WhileStuck::$stuck,
                    request_name: concat!("cmd.", $noun, ".", $verb),
                    request: $crate::shape::Shape::of::<$name>(),
                    reply_name: concat!("reply.", $noun, ".", $verb),
                    reply: $crate::shape::Shape::of::<$reply>(),
                };
                type Reply = $reply;
            }

            impl From<$name> for $crate::command::Command {
                fn from(command: $name) -> Self {
                    Command::$variant(command).into()
                }
            }
        )*

        /// The commands of this noun.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Command { $($(#[$doc])* $variant($name),)* }

        /// The noun.
        pub(super) const NOUN: &str = $noun;

        /// The declaration of each.
        pub(super) const DECLARATIONS: &[$crate::command::Declaration] = &[
            $(*<$name as $crate::command::Request>::DECLARATION,)*
        ];

        impl Command {
            /// Parses the arguments of a command; `None` for an unknown verb.
            pub(super) fn parse(verb: &str, body: &[u8]) -> Option<Result<Self, serde_json::Error>> {
                match verb {
                    $($verb => Some(serde_json::from_slice(body).map(Self::$variant)),)*
                    _ => None,
                }
            }

            pub(super) fn declaration(&self) -> &'static $crate::command::Declaration {
                match self { $(Self::$variant(_) => <$name as $crate::command::Request>::DECLARATION,)* }
            }

            pub(super) fn about(&self) -> $crate::aggregate::Aggregate<'_> {
                match self {
                    $(Self::$variant(_command) => $crate::aggregate::Aggregate::$about $((&_command.$key))?,)*
                }
            }

            pub(super) fn to_body(&self) -> Vec<u8> {
                match self {
                    $(Self::$variant(command) => $crate::json::to_json(command),)*
                }
            }
        }
    };
}

pub(super) use commands;
pub(super) use request;

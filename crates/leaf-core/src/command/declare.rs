//! What is so about a command, and the macros that declare the commands of a noun.

use serde::{Deserialize, Serialize};

use crate::container::{Container, ContainerPhase};
use crate::shape::Shape;

/// Whether a verb answers at once or begins a job; a verb stays what it is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandKind {
    /// It changes nothing.
    Query,
    /// It changes something, and is answered when that is done or has failed.
    Change,
    /// It begins a job, and is answered with the job's id once that is stored.
    Job,
}

/// What a command needs of its host. A leaf that lacks it refuses the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing beyond `leafd` itself.
    Nothing,
    /// A runtime of containers.
    Containers,
    /// Nix.
    Nix,
}

/// What a command does to the disk of the leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// It writes nothing.
    Untouched,
    /// It may take space, and is refused while only the reserve is left.
    Takes,
    /// It leads to more free space, and is accepted at the expense of the reserve.
    Frees,
}

/// Whether a command may be made to depend on the generation that its sender saw. If so, it has the field `if_generation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfGeneration {
    /// It may not.
    Ignored,
    /// It is refused if the container is of another generation.
    Checked,
    /// As [`Checked`](Self::Checked), and 0 says that there must be no container of this name.
    CheckedOrAbsent,
}

/// When a command has succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Success {
    /// When it is answered: its answer is known when it is accepted.
    Answered,
    /// When the container runs and has said that it is ready.
    ContainerRuns,
    /// When the container does not run any more.
    ContainerStopped,
    /// When the container is gone from the host.
    ContainerGone,
    /// When the job has ended, in whichever way.
    JobEnded,
    /// When the hardware was looked at.
    HardwareSeen,
}

impl Success {
    /// Whether a container on which no step is under way is what the command was for. A command that was answered when it
    /// was accepted is content with each phase but `failed`.
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

/// Whether a query is answered while the journal takes nothing and the state in memory is ahead of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhileStuck {
    /// It is refused.
    Refused,
    /// It is answered.
    Answered,
}

/// All that is so about a command beside its fields.
#[derive(Debug, Clone, Copy)]
pub struct Declaration {
    /// What it is about: `container`.
    pub noun: &'static str,
    /// What to do: `start`.
    pub verb: &'static str,
    /// Noun and verb with a dot between them, as records and logs name the command: `container.start`.
    pub noun_verb: &'static str,
    /// Whether it changes something or begins a job.
    pub kind: CommandKind,
    /// What it needs of the host.
    pub need: Need,
    /// What it does to the disk.
    pub disk: Disk,
    /// Whether it has the field `if_generation`.
    pub if_generation: IfGeneration,
    /// When it has succeeded.
    pub success: Success,
    /// Whether it is answered while the journal is stuck.
    pub while_stuck: WhileStuck,
    /// The name of the request's schema: `cmd.container.start`.
    pub request_name: &'static str,
    /// The request.
    pub request: Shape,
    /// The name of the reply's schema: `reply.container.start`.
    pub reply_name: &'static str,
    /// What comes back when it worked.
    pub reply: Shape,
}

/// A command's type: where it goes and what comes back.
pub trait Request: Serialize {
    /// All that is so about the command.
    const DECLARATION: &'static Declaration;
    /// What comes back when it worked.
    type Reply: for<'de> Deserialize<'de> + Serialize;
}

/// Makes the type of a request, with the field `if_generation` behind its own where the declaration says so.
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
            /// Only if the container's generation is still this one.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub if_generation: Option<u64>,
        } }
    };
    ($name:ident CheckedOrAbsent { $($attribute:tt)* } { $($fields:tt)* }) => {
        $crate::command::declare::request! { $name Ignored { $($attribute)* } {
            $($fields)*
            /// Only if the container's generation is still this one; 0 if there must be no container of this name.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub if_generation: Option<u64>,
        } }
    };
}

/// Declares the commands of one noun: a type for each request, the enum `Command` of them, and their [`Declaration`]s.
/// An attribute that is left out does not compile.
macro_rules! commands {
    ($noun:literal; $(
        $(#[$doc:meta])*
        $variant:ident: $name:ident = $verb:literal {
            kind: $kind:ident,
            about: $about:ident $(($key:ident))?,
            needs: $need:ident,
            disk: $disk:ident,
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

        /// What is so about each of them.
        pub(super) const DECLARATIONS: &[$crate::command::Declaration] = &[
            $(*<$name as $crate::command::Request>::DECLARATION,)*
        ];

        impl Command {
            /// Reads the arguments of a command; nothing for an unknown verb.
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

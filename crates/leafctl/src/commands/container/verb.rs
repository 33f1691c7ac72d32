//! The commands that take only a container's name, and wait until the leaf has carried them out.

use clap::{Args, Subcommand};
use leaf_core::command::{DestroyContainer, PauseContainer, ResumeContainer, StartContainer, StopContainer};
use leaf_core::id::ContainerName;

use super::show::text;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// The container's name, and the generation that it must have.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// The container's name.
    pub name: ContainerName,
    /// Proceed only if the container still has this generation, as printed by `container show`.
    #[arg(long, value_name = "N")]
    pub if_generation: Option<u64>,
}

macro_rules! verbs {
    ($($(#[$doc:meta])* $verb:ident = $request:ident, $what:literal, $text:expr;)*) => {
        #[derive(Debug, Subcommand)]
        pub(crate) enum Verb { $($(#[$doc])* $verb(Named),)* }

        impl Verb {
            pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
                match self {
                    $(Self::$verb(Named { name, if_generation }) => {
                        session.show_slow($what, &$request { name, if_generation }, output, $text).await
                    })*
                }
            }
        }
    };
}

verbs! {
    /// Start a container, and wait until it is ready.
    Start = StartContainer, "starting the container", text;
    /// Stop a container, and wait until it has stopped.
    Stop = StopContainer, "stopping the container", text;
    /// Freeze a container's processes, now and after each start, until it is resumed.
    Pause = PauseContainer, "pausing the container", text;
    /// Thaw the processes of a paused container.
    Resume = ResumeContainer, "resuming the container", text;
    /// Stop a container if it is running, and remove it with all its files.
    Destroy = DestroyContainer, "destroying the container", |gone| format!("container {} destroyed", gone.name);
}

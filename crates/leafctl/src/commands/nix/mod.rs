//! The commands about Nix and its jobs.

mod attach;
pub(super) mod build;
mod build_hook;
mod cancel;
mod check;
mod ci;
mod develop;
pub(super) mod diff;
mod eval;
mod follow;
mod gc;
mod get;
pub(super) mod installables;
mod jobs;
mod local;
mod log;
mod out_link;
mod place;
mod print_env;
pub(super) mod run;
mod tree;
pub(super) mod verify;
mod why;
mod work;

use crate::error::Error;
use crate::global::Global;
use crate::output::Output;
use crate::session::Session;

/// Those that need a connection.
mod connected {
    use super::*;

    commands! {
        Build(build::Build),
        Eval(eval::Eval),
        PrintEnv(print_env::PrintEnv),
        Check(check::Check),
        Ci(ci::Ci),
        Run(run::Run),
        Diff(diff::Diff),
        Develop(develop::Develop),
        Gc(gc::Gc),
        Get(get::Get),
        Jobs(jobs::Jobs),
        Attach(attach::Attach),
        Log(log::Log),
        Why(why::Why),
        Work(work::ShowWork),
        Verify(verify::Verify),
        Cancel(cancel::Cancel),
    }
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    #[command(flatten)]
    Connected(connected::Command),
    BuildHook(build_hook::BuildHook),
}

impl Command {
    pub(super) async fn run(self, global: &Global, output: Output) -> Result<(), Error> {
        match self {
            Self::Connected(command) => command.run(&Session::open(global).await?, output).await,
            Self::BuildHook(hook) => hook.run(global).await,
        }
    }
}

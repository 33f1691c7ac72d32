//! The commands about Nix and its jobs.

mod attach;
pub(super) mod build;
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
mod verify;
mod why;
mod work;

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

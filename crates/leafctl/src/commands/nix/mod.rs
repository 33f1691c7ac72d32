//! The commands about Nix and its jobs.

pub(super) mod build;
mod cancel;
mod jobs;
mod log;
mod out_link;

commands! {
    Build(build::Build),
    Jobs(jobs::Jobs),
    Log(log::Log),
    Cancel(cancel::Cancel),
}

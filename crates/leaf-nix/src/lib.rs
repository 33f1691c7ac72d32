//! Nix: the program, its command lines, its log and its results, as values that a job runner takes.
//!
//! Start with [`Nix`], which checks a task and returns its order. In the job's own process the order becomes a state
//! machine, such as [`build::Build`], that names the programs to run, reads their log line by line, and makes the result of
//! their output. This crate starts no job: `leafd` hands these values to `leaf-job`.
//!
//! Every task of Nix is a module here. `nix eval` would be a module `eval` beside [`build`], with an `Order` and a state
//! machine; a method `Nix::eval` that makes its order; its arguments and its result in `leaf_core::job::eval`; and an arm in
//! `leafd`'s `job.rs`, where tasks and job runner are connected. What tasks share is here once: installables and their
//! checks, the options of each command line, Nix's log (`internal-json`), and `nix path-info`.

pub mod build;
mod command_line;
mod error;
mod installable;
mod internal_json;
mod nix;
mod path_info;
mod version;

pub use error::NixError;
pub use nix::{ENVIRONMENT, Nix, Settings, host_options};
pub use version::NixVersion;

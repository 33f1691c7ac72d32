//! Nix: the program, its command lines, its log and its results, as values for a job runner.
//!
//! Start with [`Nix`], which validates a task and returns its order. In the job's own process the order becomes a state
//! machine, such as [`build::Build`], that returns the programs to run, reads their log line by line, and makes the
//! result from their output. This crate starts no job: `leafd` passes these values to `leaf-job`.
//!
//! Every task of Nix is a module here, such as [`build`], [`eval`] and [`print_env`], with an `Order` and a state machine; a method of [`Nix`] that
//! makes its order; its arguments and its result in `leaf_core::job`; and an arm in `leafd`'s `job.rs`, where tasks and job
//! runner are connected. Tasks share installables and their validation, the options of each command line, Nix's log
//! (`internal-json`) with the explanation of a failure, and `nix path-info`.

pub mod build;
pub mod check;
mod command_line;
pub mod compare;
pub mod develop;
pub mod diff;
mod error;
pub mod eval;
pub mod gc;
mod installable;
mod internal_json;
mod nix;
mod path_info;
mod plain_log;
mod policy;
pub mod print_env;
mod source;
pub mod store;
pub mod verify;
mod version;

pub use error::NixError;
pub use nix::{ENVIRONMENT, Nix, Settings, host_options};
pub use version::NixVersion;

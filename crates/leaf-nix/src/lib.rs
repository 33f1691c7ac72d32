//! Builds with Nix as jobs that outlive the daemon.
//!
//! Start with [`Nix`]: it starts jobs, finds them again, reads their logs, cancels and forgets them. Each job is run
//! by a process of its own, [`runner`], in a session and (where cgroup v2 may be used) a cgroup of its own, or by another
//! user in a unit of its own ([`Launch`]), and has a folder, which is all that the daemon and the runner share:
//!
//! | file | what |
//! |---|---|
//! | `order.json` | what the runner is to do |
//! | `lock` | locked (flock) as long as the runner lives: the runner gets it, locked, as its stdin (not in a unit) |
//! | `pid` | the runner's process id |
//! | `log.<offset>` | parts of the log, each named by the offset of its first byte |
//! | `progress.json` | how far it is; written at most five times a second |
//! | `cancel` | somebody asked for its end |
//! | `outcome.json` | how it ended; synced before the runner ends |
//!
//! This crate knows no state, no queue and no NATS; how many jobs run at once is the caller's business.

mod cgroup;
mod error;
mod folder;
mod internal_json;
mod launch;
mod log;
mod nix;
mod order;
mod outcome;
mod result;
pub mod runner;
mod running;
mod unit;

pub use error::NixError;
pub use launch::{CarryOut, Launch};
pub use nix::{Found, Nix, NixVersion, Settings, Swept, default_cgroup, host_options};
pub use running::{JobNews, RunningJob};

//! The daemon of a leaf. Wiring without policy: decisions are made in `leaf-core`, host access is in the crates of the
//! rooms.
//!
//! Start at [`daemon::run`]. The centre is [`main_loop::MainLoop`], the shell around the pure
//! [`Engine`](leaf_core::engine::Engine): it passes inputs in, one at a time, commits the resulting records
//! ([`commits::Commits`]), and has their effects carried out ([`workers::Workers`]) once they are in the journal.

pub mod cli;
pub mod clock;
pub mod commits;
pub mod daemon;
pub mod equipment;
pub mod hardware;
pub mod helper;
pub mod history;
pub mod input;
pub mod inventory;
pub mod job;
pub mod lease;
pub mod listeners;
pub mod main_loop;
pub mod mirror;
pub mod notify;
pub mod programs;
pub mod publisher;
pub mod settings;
pub mod steps;
pub mod tasks;
pub mod workers;

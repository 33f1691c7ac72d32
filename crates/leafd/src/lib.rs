//! The daemon of a leaf. Wiring, no policy: decisions are `leaf-core`'s, steps are the second floor's.
//!
//! Start at [`daemon::run`]. The heart is [`main_loop::MainLoop`], the shell around the pure
//! [`Engine`](leaf_core::engine::Engine): it hands in what wakes it, one input at a time, commits the records that come out
//! ([`commits::Commits`]), and has their effects carried out ([`workers::Workers`]) once the journal has them.

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

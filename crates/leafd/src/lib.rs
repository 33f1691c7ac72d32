//! The daemon of a leaf. Wiring, no policy: decisions are `leaf-core`'s, steps are the second floor's.
//!
//! Start at [`daemon::run`]; the heart is [`main_loop::MainLoop`], which is woken by one [`input::Input`] at a time and
//! answers with [`input::Effect`]s that come out of the [`ledger::Ledger`] once the journal has what they follow from.

pub mod cli;
pub mod daemon;
pub mod equipment;
pub mod guard;
pub mod hardware;
pub mod helper;
pub mod history;
pub mod input;
pub mod inventory;
pub mod job;
pub mod lease;
pub mod ledger;
pub mod listeners;
pub mod main_loop;
pub mod mirror;
pub mod notify;
mod on_command;
mod on_host;
pub mod programs;
pub mod publisher;
pub mod settings;
pub mod steps;
pub mod tasks;
pub mod workers;

//! The daemon of a leaf. Wiring without policy: decisions are made in `leaf-core`, host access is in the crates of the
//! rooms.
//!
//! Start at [`daemon::run`]. The centre is [`main_loop::MainLoop`], the shell around the pure
//! [`Engine`](leaf_core::engine::Engine): it passes inputs in, one at a time, commits the resulting records
//! ([`commits::Commits`]), and has their effects carried out ([`workers::Workers`]) once they are in the journal.
//!
//! | modules | contents |
//! |---|---|
//! | [`cli`], [`settings`], [`inventory`], [`check_nats`], [`programs`] | the command line, the settings file, `leafd inventory` and `check-nats`, installed programs |
//! | [`given_nats`] | the leaf's users on a server that is not its own |
//! | [`daemon`], [`recovery`], [`lease`], [`hub`], [`tasks`] | the start and the end: equipment, state, the leaf's name, here and at the hub, all tasks |
//! | [`main_loop`], [`wake`], [`clock`], [`commits`], [`workers`] | the loop: inputs, the journal, effects |
//! | [`listeners`], [`hardware`] | sources of inputs: commands, observations, scans |
//! | [`changes`], [`hub_override`], [`witness`] | changes that can cut the leaf off: another hub in the settings' place, and `leafd witness`, a process of its own |
//! | [`systems`] | the host's NixOS systems, as its links show them |
//! | [`trust`] | signatures of commands: who may sign, and whether one is new |
//! | [`sessions`] | the input and output of programs that jobs run |
//! | [`steps`], [`container_users`], [`helper`], [`job`] | work on the host: containers and their NATS users, host operations, jobs |
//! | [`publisher`], [`mirror`] | copies of the journal: the stream and the bucket `leaf_state` |

pub mod changes;
pub mod check_nats;
pub mod cli;
pub mod clock;
pub mod commits;
mod complaints;
pub mod container_users;
pub mod daemon;
pub mod given_nats;
pub mod hardware;
pub mod helper;
pub mod hub;
pub mod hub_override;
pub mod inventory;
pub mod job;
pub mod lease;
pub mod listeners;
mod local_access;
pub mod main_loop;
pub mod mirror;
pub mod programs;
pub mod provenance;
pub mod publisher;
pub mod recovery;
mod renewal;
pub mod secrets;
pub mod sessions;
pub mod settings;
pub mod steps;
pub mod systems;
mod table;
pub mod tasks;
pub mod transfers;
pub mod trust;
pub mod wake;
pub mod witness;
pub mod workers;

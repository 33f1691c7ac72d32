//! What a leaf is: ids, messages, subjects, state, decisions, plans, the engine and the reconciler.
//!
//! Everything here is pure: no I/O, no async, no clock, no randomness. Time and ids come in as arguments; what comes
//! out is data that `leafd` carries out. Reading order: [`command`] and [`event`] (what goes over the wire),
//! [`state`] (what a leaf knows), [`mod@decide`] (what a command does), [`engine`] (the loop from inputs to outputs),
//! [`reconcile`] (what is in flight for which resource), [`mod@plan`] and [`mod@diff`] (what an observation means, and which
//! host operations follow), [`host_op`] (the operations that need root).

pub mod accepted;
pub mod aggregate;
pub mod beat;
pub mod cause;
pub mod command;
mod compatibility;
pub mod container;
pub mod decide;
pub mod diff;
pub mod engine;
pub mod error;
pub mod event;
pub mod hardware;
pub mod host_op;
pub mod id;
pub mod job;
pub mod json;
pub mod moment;
pub mod plan;
pub mod problem;
pub mod reconcile;
pub mod runtime;
pub mod schema;
pub mod shape;
pub mod spec;
pub mod state;
pub mod subject;

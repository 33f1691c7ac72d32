//! The model of a leaf: ids, messages, subjects, state, decisions, plans, the engine and the reconciler.
//!
//! Everything here is pure: no I/O, no async, no clock, no randomness. Time and ids are arguments; the results are data
//! that `leafd` acts on. Reading order: [`command`] and [`event`] (the messages), [`state`] (the sum of all events),
//! [`mod@decide`] (the effect of a command), [`engine`] (the loop from inputs to outputs), [`reconcile`] (the steps in
//! flight for each resource), [`mod@plan`] and [`mod@diff`] (from observations to facts and host operations),
//! [`host_op`] (the operations that need root).

pub mod address_pool;
pub mod aggregate;
pub mod beat;
pub mod cause;
pub mod change;
pub mod command;
mod compatibility;
pub mod container;
pub mod decide;
pub mod diff;
pub mod engine;
pub mod error;
pub mod event;
pub mod fleet;
pub mod hardware;
pub mod homecoming;
pub mod host_op;
pub mod id;
pub mod job;
pub mod json;
pub mod labels;
pub mod moment;
pub mod placement;
pub mod plan;
pub mod printable;
pub mod problem;
pub mod provenance;
pub mod reconcile;
pub mod renewal;
pub mod repeats;
pub mod runtime;
pub mod schema;
pub mod secret;
pub mod selector;
pub mod session;
pub mod shape;
pub mod signed;
pub mod spec;
pub mod state;
pub mod subject;
mod text;
pub mod transfer;

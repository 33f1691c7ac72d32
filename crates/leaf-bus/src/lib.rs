//! NATS: connections, commands, streams and identities. The only crate that uses async-nats.
//!
//! Start at [`connect`]. The daemon answers commands with [`serve`], publishes its events into a [`stream`] with a
//! [`publisher`], claims its name with a [`lease`], and writes its current state to the bucket of [`kv`]. [`client`] is
//! the callers' side, with the settings of a [`context`]; [`container`] is the containers' side, and a [`relay`] its way to
//! a server elsewhere. [`rights`] tries what users may do. A leaf without an external NATS runs an [`embedded`] server, with
//! an [`identity`] for each of its users, and a [`leaf_node`] asks its hub anew. The agent of a hub works with [`hub`], and the keys of a fleet reach its servers by a
//! [`resolver`].

pub mod client;
mod client_error;
pub mod connect;
pub mod container;
pub mod context;
mod credentials;
pub mod embedded;
pub mod files;
pub mod fill;
mod follow;
pub mod hub;
pub mod hub_link;
pub mod identity;
mod jetstream;
mod job_hints;
mod jobs;
pub mod kv;
pub mod leaf_node;
pub mod lease;
mod level;
mod link;
mod options;
mod overlap;
mod pages;
pub mod parts;
pub mod publisher;
mod raw;
pub mod relay;
pub mod resolver;
pub mod rights;
pub mod serve;
pub mod service;
mod settings;
pub mod stream;
mod stream_error;

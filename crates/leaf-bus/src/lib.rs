//! NATS, and all that a leaf does with it: the only user of async-nats.
//!
//! Start at [`connect`]. The daemon answers commands with [`serve`], keeps its events in a [`stream`] with a
//! [`publisher`], its name by a [`lease`], and what is so now in the bucket of [`kv`]. A person's side is [`client`],
//! with the settings of a [`context`]; a container's is [`container`]. A leaf without a NATS of its fleet runs one:
//! [`embedded`], with the [`identity`] of all who use it.

pub mod client;
mod client_error;
pub mod connect;
pub mod container;
pub mod context;
mod credentials;
pub mod embedded;
mod follow;
pub mod identity;
mod jetstream;
mod jobs;
pub mod kv;
pub mod lease;
mod level;
mod link;
mod options;
pub mod publisher;
pub mod serve;
pub mod service;
mod settings;
pub mod stream;
mod stream_error;

//! The keys of a fleet in a directory of their operator's machine. `docs/keys.md` is the contract.
//!
//! Start at [`Directory`]. What is made and signed comes from [`leaf_bus::identity::fleet`]; here it is kept, in the layout of `nsc`:
//!
//! - [`init`]: makes a directory
//! - [`users`]: leaves, people and the hub agent, with the credentials that each gets
//! - [`accounts`]: the accounts' JWTs, which hold the revocations, and their way to the hub's servers
//! - [`hub`]: the files for the hub's host
//! - [`witness`]: the key with which a hub confirms changes that can cut a leaf off

pub(crate) mod accounts;
mod directory;
mod error;
mod files;
pub(crate) mod hub;
mod hub_url;
pub(crate) mod init;
mod manifest;
pub(crate) mod places;
mod tls;
pub(crate) mod users;
mod witness;

pub(crate) use directory::Directory;
pub(crate) use error::KeysError;

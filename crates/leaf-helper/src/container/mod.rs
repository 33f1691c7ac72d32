//! Containers under either runtime: their files, their inputs, their start and stop.

mod adopt;
mod conf;
pub(crate) mod create;
pub(crate) mod credentials;
pub(crate) mod directories;
pub(crate) mod id_maps;
pub(crate) mod inputs;
mod owner;
pub(crate) mod record;
mod start;
pub(crate) mod status;
mod upkeep;

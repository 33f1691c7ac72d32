//! What a container is on the host, whatever runs it: its files, its inputs, its start and stop.

mod adopt;
mod conf;
pub(crate) mod create;
pub(crate) mod directories;
pub(crate) mod inputs;
mod owner;
pub(crate) mod record;
mod start;
pub(crate) mod status;

//! Containers as units of systemd.

pub(crate) mod client;
pub(crate) mod generate;
mod launch;
pub(crate) mod payload;
mod prepare;
pub(crate) mod start;
pub(crate) mod unit;

//! The closed network, attacked from inside in every way, and what `allow` opens in it.

mod closed;
mod flushed;
pub(crate) mod machine;
mod openings;

pub(crate) use closed::*;
pub(crate) use flushed::*;
pub(crate) use openings::*;

//! The closed network, tried from inside by somebody who tries everything, and what `allow` opens in it.

mod closed;
pub(crate) mod machine;
mod openings;

pub(crate) use closed::*;
pub(crate) use openings::*;

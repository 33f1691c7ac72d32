//! A connection to a server below the NATS client, for what that does not do: passing on another client's bytes
//! ([`crate::relay`]) and trying one permission after the other ([`crate::rights`]).
//!
//! The protocol: <https://docs.nats.io/reference/reference-protocols/nats-protocol>.

mod dial;
mod frames;

pub use dial::DialError;
pub(crate) use dial::{Dialled, Dialler, Stream, read_info};
pub(crate) use frames::{Frame, Frames};

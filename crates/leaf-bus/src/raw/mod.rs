//! A connection to a server below the NATS client, for what that does not do: passing on another client's bytes
//! ([`crate::relay`]), trying one permission after the other ([`crate::rights`]), and sending many stored messages again as
//! they are ([`crate::fill`]).
//!
//! The protocol: <https://docs.nats.io/reference/reference-protocols/nats-protocol>.

mod dial;
mod frames;
mod session;

pub use dial::DialError;
pub(crate) use dial::{Dialled, Dialler, LEAF_NODES, Stream, read_info};
pub(crate) use frames::{Frame, Frames};
pub use session::LoginError;
pub(crate) use session::{Said, Session};

//! What the daemon's tasks bring to the main loop.

use leaf_bus::serve::Incoming;
use leaf_core::engine::Input;

/// What wakes the main loop.
pub enum Wake {
    /// A command arrived.
    Command(Box<Incoming>),
    /// The engine has an input.
    Input(Box<Input>),
}

impl From<Input> for Wake {
    fn from(input: Input) -> Self {
        Self::Input(Box::new(input))
    }
}

//! The messages of the daemon's tasks to the main loop.

use leaf_bus::serve::Incoming;
use leaf_core::engine::Input;
use leaf_core::signed::Provenance;

/// A message that wakes the main loop.
pub enum Wake {
    /// A command arrived, whose signature was judged.
    Command(Box<Incoming>, Provenance),
    /// An input for the engine.
    Input(Box<Input>),
}

impl From<Input> for Wake {
    fn from(input: Input) -> Self {
        Self::Input(Box::new(input))
    }
}

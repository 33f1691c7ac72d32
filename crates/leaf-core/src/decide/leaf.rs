//! Decides the commands about the leaf itself.

use super::{Decision, Reply, only};
use crate::command::leaf::Command;

pub(super) fn decide(command: &Command) -> Decision {
    match command {
        Command::Show(_) => only(Reply::LeafReport),
    }
}

//! Decides the commands about hardware.

use super::{Decision, Reply, Target, known, not_found, only};
use crate::command::hardware::{Command, DeviceList};
use crate::problem::Problem;
use crate::state::State;

pub(super) fn decide(state: &State, command: &Command) -> Result<Decision, Problem> {
    match command {
        Command::List(_) => Ok(only(known(&DeviceList {
            devices: state.devices.values().cloned().collect(),
        }))),
        Command::Show(c) => match state.devices.get(&c.id) {
            Some(device) => Ok(only(known(device))),
            None => Err(not_found(format!(
                "device {} does not exist; hardware.list lists all",
                c.id
            ))),
        },
        Command::Rescan(_) => Ok(only(Reply::When(Target::Hardware))),
    }
}

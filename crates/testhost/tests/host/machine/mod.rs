//! The test host itself: what the other tests here rely on.

mod commands;
mod devices;
mod directories;
mod identity;
mod link;
mod networks;
mod power_cut;

use crate::Trials;

/// The tests of all files here.
pub(crate) const TRIALS: &[Trials] = &[
    commands::TRIALS,
    devices::TRIALS,
    directories::TRIALS,
    identity::TRIALS,
    link::TRIALS,
    networks::TRIALS,
    power_cut::TRIALS,
];

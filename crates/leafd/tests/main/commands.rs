//! What callers can do wrong, and how a leaf answers: over NATS, through `leafctl`, and on the command line of `leafd`.

#[path = "commands/changes.rs"]
mod changes;
#[path = "commands/ctl.rs"]
pub(crate) mod ctl;
#[path = "commands/input.rs"]
mod input;
#[path = "commands/log.rs"]
mod log;
#[path = "commands/programs.rs"]
mod programs;
#[path = "commands/repeat.rs"]
mod repeat;
#[path = "commands/rights.rs"]
mod rights;
#[path = "commands/service.rs"]
mod service;
#[path = "commands/signed.rs"]
mod signed;
#[path = "commands/wire.rs"]
mod wire;
#[path = "commands/witness.rs"]
mod witness;

use crate::support::Host;
use libtest_mimic::Trial;

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    [
        input::trials(host),
        repeat::trials(host),
        rights::trials(host),
        service::trials(host),
        signed::trials(host),
        ctl::trials(host),
        log::trials(host),
        changes::trials(host),
        witness::trials(host),
        programs::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

//! Handles hardware scans.

use crate::command::RescanReport;
use crate::diff::changes;
use crate::event::{Fact, HardwareFact};
use crate::hardware::Inventory;
use crate::json::to_json;
use crate::problem::{Problem, ProblemCode};

use super::Engine;
use super::turn::Turn;

impl Engine {
    /// Records the changes that a scan shows, and answers the rescans that were requested before it.
    pub(super) fn hardware_scanned(
        &mut self,
        turn: &mut Turn,
        scanned: Result<Inventory, String>,
        rescan: u64,
    ) {
        let (facts, reply) = match scanned {
            Ok(inventory) => {
                let facts = changes(self.state(), &inventory);
                let report = report(&inventory, &facts);
                (facts, Ok(to_json(&report)))
            }
            Err(error) => (Vec::new(), Err(Problem::new(ProblemCode::Failed, error))),
        };
        let answered = self.waiting.take_scanned(rescan);
        let cause = answered
            .last()
            .map(|accepted| accepted.cause.clone())
            .unwrap_or_default();
        self.record(turn, &cause, facts);
        for accepted in answered {
            self.finish(turn, accepted, reply.clone());
        }
    }
}

/// Returns the report of a rescan.
fn report(inventory: &Inventory, facts: &[Fact]) -> RescanReport {
    let mut report = RescanReport {
        devices: inventory.devices.len() as u64,
        appeared: Vec::new(),
        changed: Vec::new(),
        vanished: Vec::new(),
    };
    for fact in facts {
        match fact {
            Fact::Hardware(HardwareFact::Appeared(fact)) => report.appeared.push(fact.device.id.clone()),
            Fact::Hardware(HardwareFact::Changed(fact)) => report.changed.push(fact.device.id.clone()),
            Fact::Hardware(HardwareFact::Vanished(fact)) => report.vanished.push(fact.id.clone()),
            Fact::Leaf(_) | Fact::Container(_) | Fact::Job(_) | Fact::Secret(_) | Fact::Unknown { .. } => {}
        }
    }
    report
}

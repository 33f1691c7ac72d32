use clap::Args;
use leaf_core::command::ListHardware;
use leaf_core::hardware::{Device, Direction, Port};

use crate::error::Error;
use crate::output::{Output, name_of};
use crate::session::Session;
use crate::text::Table;

/// List a leaf's devices, with their inputs and outputs.
#[derive(Debug, Args)]
pub(crate) struct List;

impl List {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        session
            .show(&ListHardware {}, output, |list| table(output, &list.devices))
            .await
    }
}

fn table(output: Output, devices: &[Device]) -> Table {
    let mut table = output.table(&["DEVICE", "KIND", "STATUS", "WHAT", "DRIVERS", "INPUTS", "OUTPUTS"]);
    for device in devices {
        let what = [device.vendor.as_deref(), device.model.as_deref()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>();
        table.add_row([
            device.id.to_string(),
            name_of(&device.kind),
            name_of(&device.status),
            what.join(" "),
            device.drivers.join(" "),
            ports(&device.ports, Direction::Input),
            ports(&device.ports, Direction::Output),
        ]);
    }
    table
}

/// Returns the names of the ports of one direction; a port of both directions is listed under each.
fn ports(ports: &[Port], direction: Direction) -> String {
    ports
        .iter()
        .filter(|port| port.direction == direction || port.direction == Direction::Both)
        .map(|port| port.name.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

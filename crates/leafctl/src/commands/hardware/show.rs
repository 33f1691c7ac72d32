use clap::Args;
use leaf_core::command::ShowHardware;
use leaf_core::hardware::Device;
use leaf_core::id::DeviceId;

use crate::error::Error;
use crate::output::{Output, name_of};
use crate::session::Session;
use crate::text::{Fields, fields};

/// Show one device in full.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The device's id, as `hardware list` shows it.
    id: DeviceId,
}

impl Show {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        session.show(&ShowHardware { id: self.id }, output, text).await
    }
}

fn text(device: &Device) -> Fields {
    let or_none = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let mut lines = vec![
        ("device", device.id.to_string()),
        ("known by", name_of(&device.identity)),
        ("kind", name_of(&device.kind)),
        ("status", name_of(&device.status)),
        ("vendor", or_none(&device.vendor)),
        ("model", or_none(&device.model)),
        ("serial", or_none(&device.serial)),
        ("bus", or_none(&device.bus)),
        ("drivers", device.drivers.join(" ")),
        ("sysfs", or_none(&device.sysfs_path)),
    ];
    for port in &device.ports {
        let node = port.node.as_deref().unwrap_or("");
        lines.push((
            "port",
            format!(
                "{} ({}, {}) {node}",
                port.name,
                name_of(&port.direction),
                name_of(&port.medium)
            ),
        ));
    }
    lines.extend(
        device
            .attributes
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone())),
    );
    fields(&lines)
}

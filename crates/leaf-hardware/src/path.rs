//! Interprets sysfs paths: the piece of hardware that a path belongs to, and the place of that hardware.
//!
//! The kernel numbers USB buses, SCSI hosts and input devices in the order in which it finds them, so a path may differ
//! from boot to boot. A [place](place) consists of the parts that don't: the PCI address, the ports of the hubs, the
//! firmware's name.

/// The meaning of a path's component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// `0000:00:1f.3`
    Pci,
    /// `usb1`, the root hub, a part of its controller.
    UsbRoot,
    /// `1-8.1`
    Usb,
    /// `2:0:0:0`
    Scsi,
    /// `mmc0:0001`
    Mmc,
}

fn part(component: &str) -> Option<Part> {
    let all = |text: &str, test: fn(&u8) -> bool| !text.is_empty() && text.bytes().all(|b| test(&b));
    let hex = |text: &str| all(text, u8::is_ascii_hexdigit);
    let digits = |text: &str| all(text, u8::is_ascii_digit);
    if let Some(number) = component.strip_prefix("usb") {
        return digits(number).then_some(Part::UsbRoot);
    }
    if let Some(rest) = component.strip_prefix("mmc") {
        let (host, card) = rest.split_once(':')?;
        return (digits(host) && hex(card)).then_some(Part::Mmc);
    }
    let colons: Vec<&str> = component.split(':').collect();
    match colons[..] {
        [domain, bus, slot] => {
            let (device, function) = slot.split_once('.')?;
            let fits = domain.len() >= 4 && bus.len() == 2 && device.len() == 2 && function.len() == 1;
            (fits && [domain, bus, device, function].into_iter().all(hex)).then_some(Part::Pci)
        }
        [_, _, _, _] => colons.into_iter().all(digits).then_some(Part::Scsi),
        [name] => {
            let (bus, ports) = name.split_once('-')?;
            (digits(bus) && ports.split('.').all(digits)).then_some(Part::Usb)
        }
        _ => None,
    }
}

/// Returns the path and the bus of the piece of hardware that this device path belongs to, if the path alone tells: a
/// PCI function, a USB device (with all its interfaces), a SCSI or memory card unit that is not behind USB. A virtio
/// device and a root hub belong to their parent.
pub(crate) fn unit(path: &str) -> Option<(&str, &'static str)> {
    let mut found = None;
    let mut end = 0;
    for component in path.split('/') {
        let start = end;
        end += component.len() + 1;
        let upto = &path[..end - 1];
        match (part(component), found) {
            (Some(Part::Pci), _) => found = Some((upto, "pci")),
            (Some(Part::Usb), _) => found = Some((upto, "usb")),
            (Some(Part::Scsi), Some((_, "usb"))) => {}
            (Some(Part::Scsi), _) => found = Some((upto, "scsi")),
            (Some(Part::Mmc), _) => found = Some((upto, "mmc")),
            (Some(Part::UsbRoot), None) => found = Some((&path[..start.saturating_sub(1)], "platform")),
            (Some(Part::UsbRoot) | None, _) => {}
        }
    }
    found
}

/// Returns the place, which is the same after a reboot: see the module.
pub(crate) fn place(path: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut usb: Option<String> = None;
    for component in path.trim_start_matches("/devices/").split('/') {
        match part(component) {
            Some(Part::Pci) => {
                words = vec![component.strip_prefix("0000:").unwrap_or(component).to_owned()];
            }
            Some(Part::UsbRoot) => usb = None,
            Some(Part::Usb) => usb = component.split_once('-').map(|(_, ports)| ports.to_owned()),
            Some(Part::Scsi) => {
                // The host's number depends on the order; channel, target and unit don't.
                words.extend(component.split_once(':').map(|(_, rest)| rest.to_owned()));
            }
            Some(Part::Mmc) => words.push(component.to_owned()),
            None if is_numbered(component) => {}
            None => words.push(component.to_owned()),
        }
    }
    words.extend(usb.map(|ports| format!("port {ports}")));
    words.join(" ")
}

/// Whether a component is only a number or the name of a class, which tells nothing about the place.
fn is_numbered(component: &str) -> bool {
    let stem = component.trim_end_matches(|c: char| c.is_ascii_digit());
    let numbered = stem.len() < component.len();
    matches!(
        component,
        "platform" | "pnp0" | "virtual" | "input" | "block" | "net" | "mmc_host" | "nvme" | "scsi_host"
    ) || component.starts_with("pci0")
        || component.starts_with("target")
        || component.starts_with("LNXSYSTM")
        || component.starts_with("LNXSYBUS")
        || (numbered
            && matches!(
                stem,
                "virtio" | "host" | "input" | "nvme" | "mmc" | "session" | "i2c-"
            ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_the_piece_of_hardware_that_it_belongs_to() {
        let pci = "/devices/pci0000:00/0000:00:14.0";
        for (path, unit_path, bus) in [
            ("/virtio2/net/eth0", "", "pci"),
            ("/usb1/1-0:1.0", "", "pci"),
            ("/usb1/1-8/1-8:1.1/video4linux/video0", "/usb1/1-8", "usb"),
            ("/usb1/1-9/1-9.2/1-9.2:1.0", "/usb1/1-9/1-9.2", "usb"),
            (
                "/usb1/1-9/1-9:1.0/host3/target3:0:0/3:0:0:0/block/sda",
                "/usb1/1-9",
                "usb",
            ),
            (
                "/ata3/host2/target2:0:0/2:0:0:0",
                "/ata3/host2/target2:0:0/2:0:0:0",
                "scsi",
            ),
            ("/nvme/nvme0/nvme0n1", "", "pci"),
            (
                "/mmc_host/mmc0/mmc0:0001/block/mmcblk0",
                "/mmc_host/mmc0/mmc0:0001",
                "mmc",
            ),
        ] {
            assert_eq!(
                unit(&format!("{pci}{path}")),
                Some((format!("{pci}{unit_path}").as_str(), bus))
            );
        }
        assert_eq!(
            unit("/devices/platform/70090000.xhci/usb1/1-0:1.0"),
            Some(("/devices/platform/70090000.xhci", "platform"))
        );
        assert_eq!(unit("/devices/platform/i8042/serio1/input/input5"), None);
        assert_eq!(unit(""), None);
    }

    #[test]
    fn a_place_is_the_same_when_the_kernel_numbers_differently() {
        let a = "/devices/pci0000:00/0000:00:14.0/usb1/1-9/1-9.2";
        let b = "/devices/pci0000:00/0000:00:14.0/usb3/3-9/3-9.2";
        assert_eq!(place(a), "00:14.0 port 9.2");
        assert_eq!(place(a), place(b));
        assert_eq!(
            place("/devices/pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0"),
            "00:1f.2 ata3 0:0:0"
        );
        assert_eq!(place("/devices/platform/i8042/serio1"), "i8042 serio1");
    }
}

//! Hardware that this machine lacks, as a directory made like sysfs.

use leaf_core::diff::diff;
use leaf_core::event::{Fact, HardwareFact};
use leaf_core::hardware::{Device, DeviceKind, DeviceStatus, Direction, Identity, Medium};
use libtest_mimic::Trial;

use crate::machine::{Machine, only};
use crate::trial;

type Outcome = Result<(), Box<dyn std::error::Error>>;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_camera_with_a_microphone_is_one_device_with_two_inputs", camera),
        trial(
            "a_usb_stick_with_a_serial_number_keeps_its_id_in_another_port",
            replug,
        ),
        trial(
            "a_usb_device_without_a_serial_number_is_known_by_its_port_and_says_so",
            by_port,
        ),
        trial(
            "two_usb_sticks_with_the_same_serial_number_are_two_devices",
            twins,
        ),
        trial(
            "a_graphics_card_has_its_outputs_and_the_screen_is_a_device_of_its_own",
            screen,
        ),
        trial("a_sound_card_has_microphones_in_and_speakers_out", sound),
        trial("a_disk_behind_a_controller_is_known_by_its_serial_number", disk),
        trial(
            "a_function_without_a_driver_has_failed_and_a_bridge_without_one_has_not",
            failed,
        ),
        trial("a_network_card_is_known_by_its_permanent_address_only", address),
        trial(
            "a_touchpad_behind_an_i2c_controller_is_a_device_of_its_own",
            touchpad,
        ),
        trial("a_multipath_disk_belongs_to_its_controller", multipath),
        trial(
            "a_serial_port_without_a_chip_and_a_bridge_of_containers_are_no_devices",
            phantoms,
        ),
        trial("temperatures_and_link_states_change_nothing", fluctuations),
    ]
}

fn ports(device: &Device) -> Vec<(&str, Direction, Medium)> {
    device
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.direction, port.medium))
        .collect()
}

const STICK: [(&str, &str); 5] = [
    ("idVendor", "0781"),
    ("idProduct", "5583"),
    ("manufacturer", "SanDisk"),
    ("product", "Ultra Fit"),
    ("serial", "4C531001470916118245"),
];

fn stick(machine: &Machine, port: &str, attributes: &[(&str, &str)]) -> String {
    let path = machine.usb(port, attributes, &[("080650", Some("usb-storage"))]);
    let unit = format!("{path}/1-{port}:1.0/host3/target3:0:0/3:0:0:0");
    machine.device(
        &unit,
        "bus/scsi",
        &[("type", "0"), ("vendor", "SanDisk"), ("model", "Ultra Fit")],
    );
    machine.driver(&unit, "sd");
    machine.device(
        &format!("{unit}/block/sda"),
        "class/block",
        &[("size", "1000"), ("ro", "0"), ("removable", "1")],
    );
    path
}

fn camera() -> Outcome {
    let machine = Machine::new();
    let path = machine.usb(
        "8",
        &[
            ("idVendor", "046d"),
            ("idProduct", "082d"),
            ("product", "HD Pro Webcam"),
            ("serial", "A1B2C3D4"),
        ],
        &[("0e0100", Some("uvcvideo")), ("010100", Some("snd-usb-audio"))],
    );
    for (number, index) in [("0", "0"), ("1", "1")] {
        let video = format!("{path}/1-8:1.0/video4linux/video{number}");
        machine.device(
            &video,
            "class/video4linux",
            &[("index", index), ("name", "HD Pro Webcam")],
        );
    }
    machine.device(&format!("{path}/1-8:1.1/sound/card1"), "class/sound", &[]);
    machine.device(
        &format!("{path}/1-8:1.1/sound/card1/pcmC1D0c"),
        "class/sound",
        &[],
    );
    let seen = machine.scan();
    let camera = only(&seen, DeviceKind::Camera);
    assert_eq!(camera.id.as_str(), "usb-046d-082d-a1b2c3d4");
    assert_eq!(
        ports(camera),
        [
            ("pcmC1D0c", Direction::Input, Medium::Audio),
            ("video0", Direction::Input, Medium::Video)
        ]
    );
    assert_eq!(camera.drivers, ["snd-usb-audio", "uvcvideo"]);
    assert_eq!(camera.ports[1].node.as_deref(), Some("/dev/video0"));
    Ok(())
}

fn replug() -> Outcome {
    let machine = Machine::new();
    let path = stick(&machine, "3", &STICK);
    let before = machine.scan();
    let device = only(&before, DeviceKind::Disk).clone();
    assert_eq!(device.identity, Identity::Serial);
    assert_eq!(
        device.attributes.get("size_bytes").map(String::as_str),
        Some("512000")
    );
    machine.remove(&path);
    let away = machine.scan();
    let facts = diff(&before.devices, &away);
    assert!(
        facts
            .iter()
            .any(|fact| matches!(fact, Fact::Hardware(HardwareFact::Vanished(gone)) if gone.id == device.id)),
        "{facts:?}"
    );
    stick(&machine, "7.2", &STICK);
    let after = machine.scan();
    assert_eq!(only(&after, DeviceKind::Disk).id, device.id);
    let facts = diff(&before.devices, &after);
    assert!(
        matches!(&facts[..], [Fact::Hardware(HardwareFact::Changed(changed))] if changed.changed == ["sysfs_path"]),
        "{facts:?}"
    );
    Ok(())
}

fn by_port() -> Outcome {
    let machine = Machine::new();
    stick(&machine, "3", &STICK[..4]);
    let first = only(&machine.scan(), DeviceKind::Disk).clone();
    assert_eq!(first.identity, Identity::Path);
    assert_eq!(first.id.as_str(), "usb-0781-5583-00-14-0-port-3");
    Ok(())
}

fn twins() -> Outcome {
    let machine = Machine::new();
    stick(&machine, "3", &STICK);
    let path = machine.usb("4", &STICK, &[("080650", Some("usb-storage"))]);
    let seen = machine.scan();
    let disks: Vec<_> = seen
        .devices
        .values()
        .filter(|device| device.kind == DeviceKind::Disk)
        .collect();
    assert_eq!(disks.len(), 2);
    assert!(disks.iter().all(|device| device.identity == Identity::Path));
    machine.remove(&path);
    assert_eq!(only(&machine.scan(), DeviceKind::Disk).identity, Identity::Serial);
    Ok(())
}

/// The first block of an EDID: maker `IVM`, model 611d, serial number 4711, name `PLX`.
fn edid() -> Vec<u8> {
    let mut block = vec![0u8; 128];
    block[..8].copy_from_slice(&[0, 255, 255, 255, 255, 255, 255, 0]);
    block[8..12].copy_from_slice(&[0x26, 0xcd, 0x1d, 0x61]);
    block[12..16].copy_from_slice(&4711_u32.to_le_bytes());
    block[54..72].copy_from_slice(b"\0\0\0\xfc\0PLX\n         ");
    let sum = block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    block[127] = 0u8.wrapping_sub(sum);
    block
}

fn screen() -> Outcome {
    let machine = Machine::new();
    let card = machine.pci("00:02.0", "030000", "8086", "46a6", Some("i915"));
    machine.device(&format!("{card}/drm/card0"), "class/drm", &[]);
    machine.device(&format!("{card}/drm/renderD128"), "class/drm", &[]);
    let hdmi = format!("{card}/drm/card0/card0-HDMI-A-1");
    machine.device(&hdmi, "class/drm", &[("status", "connected")]);
    machine.attribute(&hdmi, "edid", &edid());
    let port = format!("{card}/drm/card0/card0-DP-1");
    machine.device(&port, "class/drm", &[("status", "disconnected")]);
    machine.attribute(&port, "edid", b"");
    let seen = machine.scan();
    let graphics = only(&seen, DeviceKind::Graphics);
    assert_eq!(
        ports(graphics),
        [
            ("DP-1", Direction::Output, Medium::Display),
            ("HDMI-A-1", Direction::Output, Medium::Display),
            ("renderD128", Direction::Both, Medium::Render)
        ]
    );
    let monitor = only(&seen, DeviceKind::Monitor);
    assert_eq!(monitor.id.as_str(), "display-26cd-611d-4711");
    assert_eq!(
        (monitor.vendor.as_deref(), monitor.model.as_deref()),
        (Some("IVM"), Some("PLX"))
    );
    assert_eq!(monitor.attributes["attached_to"], graphics.id.as_str());
    assert_eq!(monitor.attributes["connector"], "HDMI-A-1");
    Ok(())
}

fn sound() -> Outcome {
    let machine = Machine::new();
    let card = machine.pci("00:1f.3", "040300", "8086", "51ca", Some("snd_hda_intel"));
    for name in [
        "card0",
        "card0/pcmC0D0p",
        "card0/pcmC0D0c",
        "card0/controlC0",
        "card0/hwC0D0",
    ] {
        machine.device(&format!("{card}/sound/{name}"), "class/sound", &[]);
    }
    let jack = format!("{card}/sound/card0/input7");
    machine.device(&jack, "class/input", &[("name", "Headphone")]);
    machine.device(&format!("{jack}/event7"), "class/input", &[]);
    let seen = machine.scan();
    assert_eq!(
        ports(only(&seen, DeviceKind::Sound)),
        [
            ("pcmC0D0c", Direction::Input, Medium::Audio),
            ("pcmC0D0p", Direction::Output, Medium::Audio)
        ]
    );
    Ok(())
}

fn disk() -> Outcome {
    let machine = Machine::new();
    let controller = machine.pci("00:17.0", "010601", "8086", "a282", Some("ahci"));
    let unit = format!("{controller}/ata3/host2/target2:0:0/2:0:0:0");
    machine.device(
        &unit,
        "bus/scsi",
        &[("type", "0"), ("vendor", "ATA"), ("model", "Samsung SSD 860")],
    );
    machine.driver(&unit, "sd");
    machine.attribute(&unit, "vpd_pg80", b"\0\x80\0\x14S3Z9NB0K123456X     ");
    machine.device(
        &format!("{unit}/block/sda"),
        "class/block",
        &[("size", "2000"), ("ro", "0")],
    );
    machine.device(
        &format!("{unit}/block/sda/sda1"),
        "class/block",
        &[("size", "1000"), ("partition", "1")],
    );
    let seen = machine.scan();
    let disk = only(&seen, DeviceKind::Disk);
    assert_eq!(disk.id.as_str(), "scsi-ata-samsung-ssd-860-s3z9nb0k123456x");
    assert_eq!(ports(disk), [("sda", Direction::Both, Medium::Block)]);
    assert_eq!(
        only(&seen, DeviceKind::StorageController).status,
        DeviceStatus::Present
    );
    Ok(())
}

fn failed() -> Outcome {
    let machine = Machine::new();
    machine.pci("00:00.0", "060000", "8086", "4660", None);
    machine.pci("00:1f.4", "0c0500", "8086", "51a3", None);
    machine.pci("00:14.3", "028000", "8086", "51f0", None);
    machine.usb(
        "5",
        &[("idVendor", "27c6"), ("idProduct", "609c")],
        &[("ff0000", None)],
    );
    machine.usb(
        "6",
        &[("idVendor", "058f"), ("idProduct", "9540")],
        &[("0b0000", None)],
    );
    machine.usb(
        "9",
        &[("idVendor", "8087"), ("idProduct", "0033")],
        &[("e00101", None)],
    );
    let reader = [
        ("idVendor", "27c6"),
        ("idProduct", "5395"),
        ("product", "Goodix Fingerprint Device"),
    ];
    let modem_they_say = machine.usb("7", &reader, &[("020201", None), ("0a0000", None)]);
    let claims = machine.scan();
    let claims = claims
        .devices
        .values()
        .find(|device| device.sysfs_path.as_ref() == Some(&modem_they_say));
    assert_eq!(
        claims.map(|device| (device.kind, device.status)),
        Some((DeviceKind::Fingerprint, DeviceStatus::Present))
    );
    machine.remove(&modem_they_say);
    let seen = machine.scan();
    let status = |kind| only(&seen, kind).status;
    assert_eq!(status(DeviceKind::Network), DeviceStatus::Failed);
    assert_eq!(status(DeviceKind::Bluetooth), DeviceStatus::Failed);
    for kind in [
        DeviceKind::Bridge,
        DeviceKind::I2c,
        DeviceKind::Fingerprint,
        DeviceKind::SmartCard,
    ] {
        assert_eq!(status(kind), DeviceStatus::Present, "{kind:?}");
    }
    Ok(())
}

fn address() -> Outcome {
    let of = |assigned: &str| {
        let machine = Machine::new();
        let card = machine.pci("00:03.0", "020000", "8086", "15f3", Some("igc"));
        let attributes = [
            ("address", "52:54:00:12:34:56"),
            ("addr_assign_type", assigned),
            ("type", "1"),
        ];
        machine.device(&format!("{card}/net/eth0"), "class/net", &attributes);
        only(&machine.scan(), DeviceKind::Network).clone()
    };
    let own = of("0");
    assert_eq!(own.identity, Identity::Serial);
    assert_eq!(own.serial.as_deref(), Some("52:54:00:12:34:56"));
    assert_eq!(own.attributes["mac_address"], "52:54:00:12:34:56");
    let bonded = {
        let machine = Machine::new();
        let card = machine.pci("00:03.0", "020000", "8086", "15f3", Some("igc"));
        let attributes = [
            ("address", "02:00:00:00:00:01"),
            ("addr_assign_type", "3"),
            ("bonding_slave/perm_hwaddr", "52:54:00:12:34:56"),
        ];
        machine.device(&format!("{card}/net/eth0"), "class/net", &attributes);
        only(&machine.scan(), DeviceKind::Network).clone()
    };
    assert_eq!(bonded.id, own.id, "a bond gives its parts one address");
    let made_up = of("1");
    assert_eq!(made_up.identity, Identity::Path);
    assert!(!made_up.attributes.contains_key("mac_address"));
    Ok(())
}

fn touchpad() -> Outcome {
    let machine = Machine::new();
    let controller = machine.pci("00:15.0", "0c8000", "8086", "51e8", Some("intel-lpss"));
    let adapter = format!("{controller}/i2c_designware.0");
    machine.device(&adapter, "bus/platform", &[]);
    machine.device(
        &format!("{adapter}/i2c-1"),
        "bus/i2c",
        &[("name", "Synopsys DesignWare I2C adapter")],
    );
    let unit = format!("{adapter}/i2c-1/i2c-ELAN0676:00");
    machine.device(&unit, "bus/i2c", &[("name", "ELAN0676:00")]);
    machine.driver(&unit, "i2c_hid_acpi");
    let input = format!("{unit}/0018:04F3:3195.0001/input/input12");
    machine.device(
        &input,
        "class/input",
        &[
            ("name", "ELAN Touchpad"),
            ("capabilities/ev", "b"),
            ("capabilities/key", "e520 10000 0 0 0 0"),
            ("capabilities/abs", "260800000000003"),
            ("properties", "5"),
        ],
    );
    machine.device(&format!("{input}/event5"), "class/input", &[]);
    let seen = machine.scan();
    let touchpad = only(&seen, DeviceKind::Touch);
    assert_eq!(touchpad.bus.as_deref(), Some("i2c"));
    assert_eq!(touchpad.sysfs_path.as_deref(), Some(unit.as_str()));
    assert_eq!(ports(touchpad), [("event5", Direction::Input, Medium::Input)]);
    Ok(())
}

fn multipath() -> Outcome {
    let machine = Machine::new();
    let controller = machine.pci("01:00.0", "010802", "144d", "a808", Some("nvme"));
    let attributes = [("model", "Samsung SSD 970"), ("serial", "S4EWNX0M123456")];
    machine.device(&format!("{controller}/nvme/nvme0"), "class/nvme", &attributes);
    let subsystem = "/devices/virtual/nvme-subsystem/nvme-subsys0";
    machine.device(
        &format!("{subsystem}/nvme0n1"),
        "class/block",
        &[("size", "2000"), ("ro", "0")],
    );
    let hidden = format!("{controller}/nvme/nvme0/nvme0c0n1");
    machine.device(&hidden, "class/block", &[("size", "2000"), ("hidden", "1")]);
    let target = format!("../../../..{controller}/nvme/nvme0").replace("/devices/", "/");
    std::os::unix::fs::symlink(
        target.replacen("../../../..", "../../..", 1),
        machine.path(subsystem).join("nvme0"),
    )?;
    let seen = machine.scan();
    let disk = only(&seen, DeviceKind::Disk);
    assert_eq!(ports(disk), [("nvme0n1", Direction::Both, Medium::Block)]);
    assert_eq!(disk.id.as_str(), "pci-144d-a808-s4ewnx0m123456");
    Ok(())
}

fn phantoms() -> Outcome {
    let machine = Machine::new();
    let ports = "/devices/platform/serial8250";
    machine.device(ports, "bus/platform", &[]);
    machine.device(&format!("{ports}/tty/ttyS1"), "class/tty", &[("type", "0")]);
    for (name, kind) in [("lo", "772"), ("ve-web", "1"), ("br0", "1")] {
        machine.device(
            &format!("/devices/virtual/net/{name}"),
            "class/net",
            &[("type", kind)],
        );
    }
    machine.device("/devices/virtual/block/loop0", "class/block", &[("size", "8")]);
    machine.device("/devices/virtual/tty/tty0", "class/tty", &[]);
    let seen = machine.scan();
    let ids: Vec<&str> = seen.devices.keys().map(|id| id.as_str()).collect();
    assert_eq!(ids, ["virtual-net"]);
    assert_eq!(
        self::ports(only(&seen, DeviceKind::Network)),
        [("lo", Direction::Both, Medium::Network)]
    );
    Ok(())
}

fn fluctuations() -> Outcome {
    let machine = Machine::new();
    let card = machine.pci("00:03.0", "020000", "8086", "15f3", Some("igc"));
    let net = format!("{card}/net/eth0");
    machine.device(
        &net,
        "class/net",
        &[("speed", "1000"), ("carrier", "1"), ("operstate", "up")],
    );
    let sensor = format!("{card}/hwmon/hwmon3");
    machine.device(
        &sensor,
        "class/hwmon",
        &[("name", "igc"), ("temp1_input", "41000")],
    );
    let before = machine.scan();
    for (path, name, text) in [
        (&net, "speed", "-1"),
        (&net, "carrier", "0"),
        (&sensor, "temp1_input", "55000"),
    ] {
        machine.attribute(path, name, text.as_bytes());
    }
    assert_eq!(diff(&before.devices, &machine.scan()), []);
    assert!(ports(only(&before, DeviceKind::Network)).contains(&("igc", Direction::Input, Medium::Sensor)));
    Ok(())
}

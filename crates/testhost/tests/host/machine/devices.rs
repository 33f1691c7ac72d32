//! Devices that come and go while the machine runs, as udev there sees them.

use testhost::{Device, Host};

use crate::{Outcome, Trials, ensure, until};

pub(crate) const TRIALS: Trials = &[
    ("udev_reports_a_disk_that_is_plugged_in_and_unplugged", disks),
    ("udev_reports_usb_devices_of_all_kinds", usb),
    ("udev_reports_network_cards_of_all_kinds", cards),
    ("memory_can_be_plugged_in", memory),
    ("a_refused_device_occupies_no_slot", refused),
];

fn disks() -> Outcome {
    let mut host = Host::restore()?;
    let disks = [
        (Device::virtio_blk("VBLK0001"), "VBLK0001"),
        (Device::nvme("NVME0001"), "NVME0001"),
        (Device::usb_storage("USBS0001"), "USBS0001"),
    ];
    for (device, serial) in disks {
        let find = format!("ls /dev/disk/by-id | grep {serial}; udevadm settle");
        let plugged = host.plug(device)?;
        until(&host, &find, |found| found.contains(serial))?;
        let name = host.ok(&format!("ls /dev/disk/by-id | grep {serial} | head -1"))?;
        let bytes = host.ok(&format!("blockdev --getsize64 /dev/disk/by-id/{name}"))?;
        ensure(bytes.trim() == "67108864", format!("{serial} has {bytes} bytes"))?;
        host.unplug(plugged)?;
        until(&host, &find, |found| !found.contains(serial))?;
    }
    Ok(())
}

fn usb() -> Outcome {
    let mut host = Host::restore()?;
    let all = "for d in $(find /sys/devices -path '*usb*' -name uevent | sed 's/.uevent$//'); do \
        udevadm info --query property --path $d; done | sort -u";
    let keyboard = host.plug(Device::usb_keyboard("KBD01"))?;
    until(&host, all, |seen| {
        seen.contains("ID_INPUT_KEYBOARD=1") && seen.contains("KBD01")
    })?;
    host.plug(Device::usb_tablet("TAB01"))?;
    until(&host, all, |seen| seen.contains("TAB01"))?;
    host.plug(Device::usb_serial("SER01"))?;
    until(&host, "ls /dev", |seen| seen.contains("ttyUSB0"))?;
    host.plug(Device::usb_audio())?;
    until(&host, "ls /dev/snd", |seen| seen.contains("controlC0"))?;
    host.unplug(keyboard)?;
    until(&host, all, |seen| {
        !seen.contains("KBD01") && seen.contains("TAB01")
    })
}

fn cards() -> Outcome {
    let mut host = Host::restore()?;
    // The driver of the USB card takes an address of its own.
    let cards = [
        (Device::virtio_net("52:54:00:aa:00:01"), "52:54:00:aa:00:01"),
        (Device::e1000e("52:54:00:aa:00:02"), "52:54:00:aa:00:02"),
        (Device::usb_net("52:54:00:aa:00:03"), "usb0"),
    ];
    for (device, sign) in cards {
        let plugged = host.plug(device)?;
        until(&host, "ip -oneline link", |seen| seen.contains(sign))?;
        host.unplug(plugged)?;
        until(&host, "ip -oneline link", |seen| !seen.contains(sign))?;
    }
    Ok(())
}

fn memory() -> Outcome {
    let host = Host::options().memory_mib(1536).restore()?;
    let enough = |text: &str| {
        let kib = text
            .split_whitespace()
            .nth(1)
            .and_then(|number| number.parse::<u64>().ok());
        kib.is_some_and(|kib| kib > 1300 << 10)
    };
    until(&host, "grep MemTotal /proc/meminfo", enough)
}

fn refused() -> Outcome {
    let mut host = Host::restore()?;
    let absent = Device::virtio_blk("X").with_file(std::path::Path::new("/no/such/file"));
    // More often than there are places.
    for _ in 0..10 {
        let error = host.plug(absent.clone()).expect_err("there is no such file");
        ensure(
            format!("{error:#}").contains("/no/such/file"),
            format!("{error:#}"),
        )?;
    }
    host.plug(Device::virtio_blk("VBLK0002"))?;
    until(&host, "ls /dev/disk/by-id", |seen| seen.contains("VBLK0002"))
}

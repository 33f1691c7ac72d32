//! Reports that are none, and the program that writes them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use leaf_core::hardware::{DeviceKind, DeviceStatus};
use leaf_hardware::facter::{self, FacterError, RunError};
use leaf_hardware::{HardwareError, scan};
use leaf_host::process;
use libtest_mimic::Trial;

use crate::machine::Machine;
use crate::trial;

type Outcome = Result<(), Box<dyn std::error::Error>>;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "what_is_no_report_is_refused_with_what_where_and_what_to_do",
            refused,
        ),
        trial(
            "a_report_that_is_nested_too_deep_or_too_large_is_refused",
            bounded,
        ),
        trial(
            "any_value_of_any_type_in_an_entry_is_read_without_a_panic",
            odd_values,
        ),
        trial(
            "an_entry_or_a_list_of_another_type_is_left_out_and_the_others_are_read",
            odd_entries,
        ),
        trial(
            "a_report_adds_names_to_what_is_here_and_says_what_is_out_of_date",
            merged,
        ),
        trial(
            "a_report_that_can_not_be_read_fails_the_scan_and_names_the_file",
            unreadable,
        ),
        trial(
            "the_program_gives_its_output_and_its_failure_with_what_it_said",
            program,
        ),
        trial("a_program_that_hangs_is_ended_with_its_children", hanging),
    ]
}

fn refused() -> Outcome {
    for (bytes, words) in [
        ("", "not valid JSON at line 1"),
        ("{\"version\":1,", "not valid JSON at line 1, column 13"),
        ("[]", "the document is a list, not an object"),
        ("null", "the document is null"),
        ("{}", "`version` is missing"),
        ("{\"version\":\"1\"}", "`version` is a text, not a number"),
        (
            "{\"version\":7,\"hardware\":{}}",
            "version 7, only versions 1 and 2",
        ),
        ("{\"version\":1}", "`hardware` is missing"),
        ("{\"version\":1,\"hardware\":[]}", "`hardware` is a list"),
    ] {
        let error = facter::read(bytes.as_bytes()).err().ok_or(bytes)?;
        assert!(error.to_string().contains(words), "{bytes}: {error}");
    }
    Ok(())
}

fn bounded() -> Outcome {
    let deep = format!(
        "{{\"version\":1,\"hardware\":{{\"disk\":[{}{}]}}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert!(matches!(
        facter::read(deep.as_bytes()),
        Err(FacterError::Json { .. })
    ));
    let large = vec![b' '; facter::MAX_REPORT_BYTES + 1];
    assert!(matches!(facter::read(&large), Err(FacterError::TooLarge { .. })));
    Ok(())
}

fn odd_values() -> Outcome {
    let values = [
        "null",
        "true",
        "-1",
        "1e300",
        "9223372036854775808",
        "\"\"",
        "\"\u{d8}\u{1}\"",
        "\"0xzz\"",
        "\"/class/\"",
        "\"/devices/\"",
        "\"////\"",
        "\"/devices/usb1/1-1\"",
        "[]",
        "[null]",
        "{}",
        "{\"value\":-1,\"name\":3}",
        "{\"name\":{\"name\":[]},\"value\":18446744073709551615}",
    ];
    let fields = [
        "bus_type",
        "sysfs_id",
        "sysfs_device_link",
        "sysfs_bus_id",
        "vendor",
        "device",
        "model",
        "serial",
        "driver",
        "drivers",
        "unix_device_name",
        "unix_device_names",
        "resources",
        "detail",
        "base_class",
        "sub_class",
        "attached_to",
        "index",
        "module_alias",
    ];
    for class in [
        "monitor",
        "disk",
        "network_interface",
        "pci",
        "usb",
        "mouse",
        "unknown",
    ] {
        for field in fields {
            for value in values {
                let json = format!(
                    "{{\"version\":2,\"smbios\":{{\"memory_device\":{value}}},\
                     \"hardware\":{{\"cpu\":[{{\"{field}\":{value}}}],\
                     \"{class}\":[null,{{\"{field}\":{value}}},{{\"{field}\":{value}}}]}}}}"
                );
                match facter::read(json.as_bytes()) {
                    Ok(report) => assert_eq!(report.entries.len(), 2, "{json}"),
                    // A text with a control character is no JSON.
                    Err(error) => assert!(matches!(error, FacterError::Json { .. }), "{json}: {error}"),
                }
            }
        }
    }
    Ok(())
}

fn odd_entries() -> Outcome {
    let read = facter::read(
        br#"{"version":1,"hardware":{"disk":{},"camera":[null,3,{"model":"C920","sysfs_id":"/devices/a"}]}}"#,
    )?;
    assert_eq!(
        read.problems,
        [
            "`hardware.camera[1]` is a number, not an object",
            "`hardware.disk` is an object, not a list",
        ]
    );
    assert_eq!(read.inventory.devices.len(), 1);
    Ok(())
}

const REPORT: &str = r#"{"version":1,"hardware":{"network_controller":[
  {"index":5,"bus_type":{"name":"PCI","value":4},"base_class":{"value":2},"sub_class":{"value":0},
   "vendor":{"hex":"8086","name":"Intel Corporation","value":32902},"device":{"hex":"15f3","name":"I225-V","value":5619},
   "sysfs_id":"/devices/pci0000:00/0000:00:03.0","driver":"igc"}],
  "camera":[{"bus_type":{"name":"USB","value":134},"vendor":{"value":1133},"device":{"value":2093},
   "sysfs_id":"/devices/pci0000:00/0000:00:14.0/usb1/1-4/1-4:1.0","driver":"uvcvideo"}],
  "cpu":[{"architecture":"x86_64","vendor_name":"GenuineIntel","physical_id":0,"family":6,"model":85}]},
  "smbios":{"memory_device":[{"location":"DIMM A","manufacturer":"M","part_number":"P","size":"0x400000"}]}}"#;

fn merged() -> Outcome {
    let machine = Machine::new();
    let card = machine.pci("00:03.0", "020000", "8086", "15f3", None);
    machine.pci("00:02.0", "030000", "1234", "1111", Some("bochs-drm"));
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), REPORT)?;
    let mut sources = machine.sources();
    let before = scan(&sources)?;
    sources.report = Some(file.path().to_owned());
    let seen = scan(&sources)?;
    let of_card = |scan: &leaf_hardware::Scan| {
        scan.inventory
            .devices
            .values()
            .find(|device| device.sysfs_path.as_deref() == Some(&card))
            .cloned()
    };
    let device = of_card(&seen).ok_or("the card is lost")?;
    assert_eq!(device.vendor.as_deref(), Some("Intel Corporation"));
    assert_eq!(device.model.as_deref(), Some("I225-V"));
    assert_eq!(
        Some(device.id),
        of_card(&before).map(|device| device.id),
        "a report must not change an id"
    );
    // The host says that no driver has it now.
    assert_eq!(device.status, DeviceStatus::Failed);
    assert!(device.drivers.is_empty());
    assert_eq!(
        seen.gone_since_report,
        ["/devices/pci0000:00/0000:00:14.0/usb1/1-4"]
    );
    assert_eq!(seen.new_since_report.len(), 1, "{:?}", seen.new_since_report);
    let kinds: Vec<DeviceKind> = seen
        .inventory
        .devices
        .values()
        .map(|device| device.kind)
        .collect();
    assert!(
        kinds.contains(&DeviceKind::Processor) && kinds.contains(&DeviceKind::Memory),
        "{kinds:?}"
    );
    assert!(!kinds.contains(&DeviceKind::Camera));
    Ok(())
}

fn unreadable() -> Outcome {
    let machine = Machine::new();
    let mut sources = machine.sources();
    let missing = machine.path("no/report.json");
    sources.report = Some(missing.clone());
    let error = scan(&sources).err().ok_or("it was read")?;
    assert!(
        matches!(&error, HardwareError::Report { path, source: FacterError::Read { .. } } if *path == missing)
    );
    let mut sources = machine.sources();
    sources.sysfs = machine.path("no/sysfs");
    assert!(matches!(scan(&sources), Err(HardwareError::Sysfs { .. })));
    Ok(())
}

fn script(directory: &Path, text: &str) -> Result<PathBuf, std::io::Error> {
    let path = directory.join("program");
    fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Runs a program; a file that another test's child still has open for writing is busy for a moment.
fn run(program: &Path, limit: Duration) -> Result<Vec<u8>, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    loop {
        match runtime.block_on(facter::run(program, limit)) {
            Err(RunError::Run(process::RunError::Start { source, .. }))
                if source.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
            result => return result,
        }
    }
}

fn program() -> Outcome {
    let directory = tempfile::tempdir()?;
    let limit = Duration::from_secs(30);
    let bytes = run(
        &script(directory.path(), "echo '{\"version\":1,\"hardware\":{}}'")?,
        limit,
    )?;
    assert!(facter::read(&bytes)?.inventory.devices.is_empty());
    let error = run(&script(directory.path(), "echo must be root >&2; exit 3")?, limit)
        .err()
        .ok_or("it passed")?;
    assert!(error.to_string().contains("must be root"), "{error}");
    let error = run(&directory.path().join("missing"), limit)
        .err()
        .ok_or("it passed")?;
    assert!(
        matches!(error, RunError::Run(process::RunError::NotFound { .. })),
        "{error}"
    );
    let error = run(&script(directory.path(), "exec cat /dev/zero")?, limit)
        .err()
        .ok_or("it passed")?;
    assert!(
        matches!(error, RunError::Run(process::RunError::TooLarge { .. })),
        "{error}"
    );
    Ok(())
}

fn hanging() -> Outcome {
    let directory = tempfile::tempdir()?;
    let mark = directory.path().join("child");
    let text = format!("sleep 600 & echo $! > {}; wait", mark.display());
    let begun = Instant::now();
    let error = run(&script(directory.path(), &text)?, Duration::from_secs(2))
        .err()
        .ok_or("it passed")?;
    assert!(
        matches!(error, RunError::Run(process::RunError::TimedOut { .. })),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_secs(60));
    let child = fs::read_to_string(&mark)?;
    // It is gone, or dead and not yet waited for by who inherited it.
    let status = || fs::read_to_string(format!("/proc/{}/stat", child.trim()));
    let deadline = Instant::now() + Duration::from_secs(10);
    while status().is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "the child lives on");
        std::thread::yield_now();
    }
    Ok(())
}

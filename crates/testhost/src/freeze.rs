//! Starts a machine from a disk, waits until it is idle, and saves its state.
//!
//! Its memory is in a file. A restored machine maps that file copy-on-write, so machines share the pages that they
//! don't change, and a restore reads only the pages that it needs. QEMU is told to leave this memory out of the saved
//! state, which then contains only the devices' state.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use crate::command::output;
use crate::machine::{self, Machine, Memory, Model, Start};
use crate::platform::Accelerator;
use crate::programs::Programs;
use crate::{pause, say, share};

/// Changes with what is done to a machine before it is frozen.
const VERSION: &str = "1";

/// Changes with how programs are put on a frozen machine.
pub(crate) const VERSION_WITH: &str = "1";

/// Changes with how a script is run on a frozen machine.
pub(crate) const VERSION_AFTER: &str = "1";

/// The time limit for a machine to start, and then to become idle: an emulated NixOS on a busy machine needs minutes.
pub(crate) const BOOT: Duration = Duration::from_secs(600);
/// About 1 in 20 starts with two emulated processors ends in a panic of the kernel.
pub(crate) const TRIES: usize = 3;

/// Returns everything that determines the frozen state, apart from the disk.
pub(crate) fn recipe(accelerator: Accelerator, processors: u32) -> Result<String> {
    let processor = match accelerator {
        Accelerator::Emulation => String::new(),
        // A state saved with one processor may not run on another.
        Accelerator::Kvm => fs::read_to_string("/proc/cpuinfo")
            .context("can't read /proc/cpuinfo")?
            .lines()
            .find(|line| line.starts_with("model name"))
            .unwrap_or_default()
            .to_owned(),
    };
    Ok(format!(
        "{VERSION} {accelerator:?} {processor} {AT_REST} {}",
        machine::recipe(accelerator, processors)
    ))
}

/// Makes an overlay of a disk.
pub(crate) fn overlay(below: &Path, format: &str, disk: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command
        .args(["create", "-q", "-f", "qcow2", "-F", format, "-b"])
        .arg(below)
        .arg(disk);
    output(&mut command).map(|_| ())
}

/// Writes `disk.qcow2`, `memory` and `devices` into a directory.
pub(crate) fn freeze(model: &Model, directory: &Path) -> Result<()> {
    let (disk, memory) = (directory.join("disk.qcow2"), directory.join("memory"));
    let mut tries = 0;
    let mut machine = loop {
        tries += 1;
        for file in [&disk, &memory] {
            let _ = fs::remove_file(file);
        }
        overlay(&model.boot.join("root.img"), "raw", &disk)?;
        match boot(model, directory, &disk, &memory) {
            Ok(machine) => break machine,
            Err(error) if tries < TRIES => {
                say(format_args!("the start failed, trying again: {error:#}"));
            }
            Err(error) => return Err(error),
        }
    };
    let output = command_within(&mut machine, AT_REST, BOOT)?;
    ensure!(output.status == 0, "the machine does not become idle: {output:?}");
    keep(machine, directory)
}

/// The same of the machine that is in `frozen`, with programs on it.
pub(crate) fn freeze_with(model: &Model, frozen: &Path, programs: &Programs, directory: &Path) -> Result<()> {
    let mut machine = thaw(model, frozen, directory)?;
    share::lead(directory, 0, programs.tree())?;
    machine.qmp.execute("device_add", share::device(0))?;
    for text in [
        &share::mount(0, "/run/programs"),
        &programs.script("/run/programs")?,
        "umount /run/programs",
    ] {
        must(&mut machine, text)?;
    }
    share::unplug(&mut machine.qmp, directory, 0)?;
    keep(machine, directory)
}

/// The same of the machine that is in `frozen`, after a script.
pub(crate) fn freeze_after(model: &Model, frozen: &Path, script: &str, directory: &Path) -> Result<()> {
    let mut machine = thaw(model, frozen, directory)?;
    must(&mut machine, script)?;
    keep(machine, directory)
}

/// Continues a copy of the machine that is in `frozen`, with its memory in a file, to change it. One that hangs is replaced by
/// another, as where a test restores one ([`crate::Host::restore`]).
fn thaw(model: &Model, frozen: &Path, directory: &Path) -> Result<Machine> {
    let (disk, memory) = (directory.join("disk.qcow2"), directory.join("memory"));
    let devices = frozen.join("devices");
    let mut left = crate::TRIES;
    loop {
        for file in [&disk, &memory] {
            let _ = fs::remove_file(file);
        }
        overlay(&frozen.join("disk.qcow2"), "qcow2", &disk)?;
        output(
            Command::new("cp")
                .args(["--sparse=always", "--reflink=auto"])
                .arg(frozen.join("memory"))
                .arg(&memory),
        )?;
        let mut machine = Machine::start(&start(model, directory, &disk, &memory, Some(&devices)))?;
        machine.go()?;
        left -= 1;
        match answers(&mut machine) {
            Ok(()) => return Ok(machine),
            Err(error) if left > 0 => {
                say(format_args!("the machine hangs, thawing another one: {error:#}"));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Waits until a thawed machine answers, sets its clock, and lets it write to its disk: a copy that hangs does so at its first
/// write to a device.
fn answers(machine: &mut Machine) -> Result<()> {
    machine.wait(crate::ANSWERS_WITHIN)?;
    let clock = crate::set_clock()?;
    let text = format!(
        "set -e; {clock}; echo >/var/tmp/thawed; sync --file-system /var/tmp/thawed; rm /var/tmp/thawed"
    );
    must_within(machine, &text, crate::LEARNS_WITHIN)
}

/// Runs a command that must succeed.
fn must(machine: &mut Machine, text: &str) -> Result<()> {
    must_within(machine, text, BOOT)
}

fn must_within(machine: &mut Machine, text: &str, limit: Duration) -> Result<()> {
    let output = command_within(machine, text, limit)?;
    ensure!(
        output.status == 0,
        "{text:?} ended with {}: {}",
        output.status,
        output.stderr.trim_end()
    );
    Ok(())
}

/// Stops a machine whose memory is in a file of this directory, and saves the devices' state there.
pub(crate) fn keep(mut machine: Machine, directory: &Path) -> Result<()> {
    must(&mut machine, "sync").context("can't flush the machine's disk")?;
    machine.qmp.execute("stop", json!({}))?;
    machine::ignore_shared(&mut machine.qmp)?;
    let uri = format!("exec:cat > {}", machine::quoted(&directory.join("devices"))?);
    machine.qmp.execute("migrate", json!({"uri": uri}))?;
    let deadline = Instant::now() + BOOT;
    loop {
        let status = machine.qmp.execute("query-migrate", json!({}))?;
        match status["status"].as_str() {
            Some("completed") => break,
            Some("failed" | "cancelled") => bail!("QEMU can't save the machine: {status}"),
            _ if Instant::now() > deadline => bail!("QEMU does not finish saving the machine: {status}"),
            _ => pause(Duration::from_millis(20)),
        }
    }
    machine.qmp.execute("quit", json!({}))?;
    machine.wait_for_end(Duration::from_secs(60))?;
    for name in ["agent", "qmp", "shell", "pid"] {
        let _ = fs::remove_file(directory.join(name));
    }
    Ok(())
}

fn boot(model: &Model, directory: &Path, disk: &Path, memory: &Path) -> Result<Machine> {
    let mut machine = Machine::start(&start(model, directory, disk, memory, None))?;
    machine.go()?;
    machine.wait(BOOT)?;
    Ok(machine)
}

/// Starts a machine with its memory in a file.
fn start<'a>(
    model: &'a Model,
    directory: &'a Path,
    disk: &'a Path,
    memory: &'a Path,
    frozen: Option<&'a Path>,
) -> Start<'a> {
    Start {
        model,
        directory,
        disk,
        memory: Memory::File(memory),
        frozen,
        mac: "52:54:00:00:00:01",
        lives: 3 * BOOT,
    }
}

fn command_within(machine: &mut Machine, text: &str, limit: Duration) -> Result<crate::Output> {
    let pid = machine.agent.start(text, limit)?;
    let ended = machine.agent.finish(pid, Instant::now() + limit)?;
    ended.with_context(|| format!("{text:?} does not end within {} s", limit.as_secs()))
}

/// Ends when the machine is at rest, and prints what failed if anything did. Then it starts what tests will: so that
/// it lies in the memory which all copies share.
const AT_REST: &str = "
systemctl is-system-running --wait >&2 || { systemctl --failed --no-legend >&2; exit 1; }
udevadm settle
{
  nix build --help; nix eval --expr 1; systemd-nspawn --version; machinectl list; busctl list; varlinkctl --version
  nft list ruleset; ip link; journalctl -n 1; systemd-run --wait --quiet true; systemd-analyze --version; jq -n 1
  nats-server --version; loginctl list-sessions; pkcheck --version; runuser -u nobody true; lshw -short
  modprobe -a 9p 9pnet_virtio veth nf_tables nft_ct nvme usb_storage usbhid
} >/dev/null 2>&1
sync; sync";

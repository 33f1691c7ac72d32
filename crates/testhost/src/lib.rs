//! The test host: a real machine with systemd, in QEMU, that is ready in about a second.
//!
//! Start at [`Host::restore`], which returns a fresh machine, and [`Host::run`], which runs a command on it; the
//! machine ends when it is dropped. An image ([`Image`]) is built once (`disk`, [`nixos`]), started once (`freeze`),
//! and kept (`cache`); a restored machine is a copy-on-write copy. It has none of our programs: [`Host::install`]
//! installs them.
//!
//! This crate runs machines; it does not compile programs or install packages here. `cargo xtask` does that, and passes
//! to tests with [`READY_VARIABLE`] that an image exists, and with [`PROGRAMS_VARIABLE`] the programs to install.

mod agent;
mod cache;
pub mod command;
pub mod cost;
mod cpio;
mod debian;
mod device;
mod disk;
mod files;
pub mod fleet;
mod freeze;
mod image;
mod machine;
mod network;
pub mod nixos;
mod options;
mod platform;
mod ports;
mod programs;
mod qmp;
mod running;
mod share;
pub mod shell;
mod socket;

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

pub use cache::{VARIABLE as CACHE_VARIABLE, directory as cache_directory};
pub use device::{Device, Plugged};
pub use fleet::Fleet;
pub use image::{Image, clean};
pub use machine::MEMORY_MIB;
pub use network::{LinkChange, Network};
pub use options::Options;
pub use platform::{Accelerator, can_run};
pub use programs::{Programs, VARIABLE as PROGRAMS_VARIABLE};

pub use running::{Output, Running};

use machine::{Machine, Memory, Start};

/// Set by `cargo xtask test` if the image exists, so that tests may use it.
pub const READY_VARIABLE: &str = "CIM_LEAF_HOST";

/// Set to the reason if there is no image.
pub const LACK_VARIABLE: &str = "CIM_LEAF_HOST_LACK";

/// The default time limit of a command.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The maximum number of restores: with QEMU 7.2 and emulated processors, a few in a hundred copies hang at their first
/// write to a device.
const TRIES: u32 = 4;
/// The time limit for a copy's agent to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
/// The time limit for setting a copy's identity.
const LEARNS_WITHIN: Duration = Duration::from_secs(30);

/// The default lifetime of a machine, after which it ends even without its owner.
pub const LIVES: Duration = Duration::from_secs(30 * 60);

/// A machine. It ends when this value is dropped, and its disk is discarded.
#[derive(Debug)]
pub struct Host {
    image: Image,
    /// Keep the image from being removed.
    _used: [fs::File; 2],
    options: Options,
    /// Declared before the directory, so that it ends before its files are removed.
    machine: Option<RefCell<Machine>>,
    directory: tempfile::TempDir,
    mac: String,
    devices: device::Rack,
    /// The mount points of shared directories, by slot.
    shares: [Option<String>; share::SLOTS],
}

impl Host {
    /// Returns a fresh machine.
    ///
    /// # Errors
    /// If the image does not exist, or QEMU does not start.
    pub fn restore() -> Result<Self> {
        Options::default().restore()
    }

    /// Returns a fresh machine with the programs and units of [`Programs::here`].
    ///
    /// # Errors
    /// As [`Host::restore`]; or if [`PROGRAMS_VARIABLE`] names no programs, or they don't run on it.
    pub fn leaf() -> Result<Self> {
        Options::default().with(&Programs::here()?).restore()
    }

    /// Returns default options, for [`Options::restore`].
    pub fn options() -> Options {
        Options::default()
    }

    fn new(options: Options) -> Result<Self> {
        let mut left = TRIES;
        loop {
            let host = Self::restored(options.clone())?;
            left -= 1;
            match host.become_itself() {
                Ok(()) => return Ok(host),
                Err(error) if left > 0 => {
                    say(format_args!(
                        "the machine hangs, restoring another one: {error:#}"
                    ));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns a running copy without an identity of its own.
    fn restored(options: Options) -> Result<Self> {
        let mut image = match &options.nixos {
            Some(systems) => Image::nixos(systems, options.processors)?,
            None => Image::with_processors(options.processors)?,
        };
        if let Some(programs) = &options.programs {
            image = image.with(programs)?;
        }
        if let Some(script) = &options.after {
            image = image.after(script)?;
        }
        let used = image.mark_used()?;
        let directory = tempfile::Builder::new()
            .prefix("leaf-host-")
            .tempdir()
            .context("can't make a temporary directory")?;
        freeze::overlay(
            &image.frozen.join("disk.qcow2"),
            "qcow2",
            &directory.path().join("disk.qcow2"),
        )?;
        let mut host = Self {
            image,
            _used: used,
            options,
            machine: None,
            directory,
            mac: device::new_mac(),
            devices: device::Rack::default(),
            shares: Default::default(),
        };
        host.first_devices()?;
        let (memory, devices) = (
            host.image.frozen.join("memory"),
            host.image.frozen.join("devices"),
        );
        let machine = host.power(Memory::CopyOf(&memory), Some(&devices), ANSWERS_WITHIN)?;
        host.machine = Some(RefCell::new(machine));
        Ok(host)
    }

    /// Plugs in the first devices: more memory, its networks.
    fn first_devices(&mut self) -> Result<()> {
        if let Some(more) = self
            .options
            .memory_mib
            .checked_sub(MEMORY_MIB)
            .filter(|more| *more > 0)
        {
            self.devices.add(Device::memory(more))?;
        }
        for (network, _) in &self.options.networks {
            self.devices
                .add(Device::on_network(network, &self.options.name))?;
        }
        Ok(())
    }

    /// Starts QEMU with all plugged devices, and waits for the agent.
    fn power(&self, memory: Memory<'_>, frozen: Option<&Path>, limit: Duration) -> Result<Machine> {
        let mut machine = Machine::start(&Start {
            model: &self.image.model,
            directory: self.directory.path(),
            disk: &self.directory.path().join("disk.qcow2"),
            memory,
            frozen,
            mac: &self.mac,
            lives: self.options.lives,
        })?;
        self.devices.plug_all(&mut machine.qmp, self.directory.path())?;
        for (slot, _) in self.shared() {
            machine.qmp.execute("device_add", share::device(slot))?;
        }
        machine.go()?;
        machine.wait(limit)?;
        Ok(machine)
    }

    /// Returns the slots of shared directories in use, with their mount points.
    fn shared(&self) -> impl Iterator<Item = (usize, &str)> {
        let shares = self.shares.iter().enumerate();
        shares.filter_map(|(slot, guest)| Some((slot, guest.as_deref()?)))
    }

    /// Gives a copy its own identity (name, ids, addresses), without which all copies would be the same machine.
    fn become_itself(&self) -> Result<()> {
        let clock = set_clock()?;
        let (name, id) = (&self.options.name, device::random_hex(16));
        ensure!(
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
            "{name:?} is not a host name"
        );
        // The journal continues in its directory, to which the directory of the new id is a link.
        let command = format!(
            "{clock} && {{ [ -L /etc/hostname ] || echo {name} >/etc/hostname; }} && \
             echo {name} >/proc/sys/kernel/hostname && read -r old </etc/machine-id && \
             ln -s $old /var/log/journal/{id} && echo {id} >/etc/machine-id && \
             printf 'link set eth0 down\\nlink set eth0 address {}\\n' >/run/mac && \
             ip -batch <(cat /run/mac /etc/test-host.network) && sync --file-system /etc/machine-id",
            self.mac,
        );
        let output = self
            .run_within(&command, LEARNS_WITHIN)
            .context("can't set the identity of a restored machine")?;
        ensure!(
            output.status == 0,
            "can't set the identity of a restored machine: {output:?}"
        );
        self.addresses()
    }

    fn addresses(&self) -> Result<()> {
        let mut networks = self.options.networks.iter().enumerate();
        networks.try_for_each(|(number, (_, address))| self.address(number, address))
    }

    /// Sets its IP address on a network.
    fn address(&self, number: usize, address: &str) -> Result<()> {
        let mac =
            device::network_mac(&self.devices, number).context("the network's card is not plugged in")?;
        let link = format!("$(grep -l {mac} /sys/class/net/*/address | cut -d/ -f5)");
        self.ok(&format!(
            "until [ -n \"{link}\" ]; do sleep 0.02; done; l={link}; ip address replace {address} dev $l; ip link set $l up"
        ))
        .with_context(|| format!("can't set the address {address}"))
        .map(|_| ())
    }

    /// Runs a bash command line as root, within [`LIMIT`].
    ///
    /// A process that it leaves behind must not keep its output open; redirect it.
    ///
    /// # Errors
    /// If it could not be run or took too long; its exit status is not an error.
    pub fn run(&self, command: &str) -> Result<Output> {
        self.run_within(command, LIMIT)
    }

    /// Like [`Host::run`], with another time limit, after which its process group is killed.
    pub fn run_within(&self, command: &str, limit: Duration) -> Result<Output> {
        self.start_within(command, limit)?.wait()
    }

    /// Runs a command that must exit with 0, and returns its stdout.
    ///
    /// # Errors
    /// If it exits with another status; the text contains its output.
    pub fn ok(&self, command: &str) -> Result<String> {
        self.ok_within(command, LIMIT)
    }

    /// As [`Host::ok`], within a time of its own.
    pub fn ok_within(&self, command: &str, limit: Duration) -> Result<String> {
        let output = self.run_within(command, limit)?;
        if output.status != 0 {
            bail!(
                "{command:?} on {} ended with {}; stderr: {:?}; stdout: {:?}",
                self.options.name,
                output.status,
                output.stderr.trim_end(),
                output.stdout.trim_end()
            );
        }
        Ok(output.stdout)
    }

    /// Starts a command without waiting for it.
    pub fn start(&self, command: &str) -> Result<Running<'_>> {
        self.start_within(command, self.options.lives)
    }

    pub(crate) fn start_within(&self, command: &str, limit: Duration) -> Result<Running<'_>> {
        // The guest's own timeout is a little longer.
        let pid = self
            .machine()?
            .borrow_mut()
            .agent
            .start(command, limit + Duration::from_secs(10))?;
        Ok(Running {
            host: self,
            command: command.to_owned(),
            pid,
            limit,
            deadline: Instant::now() + limit,
        })
    }

    /// Writes a file on the machine, with these permissions (`"0644"`).
    pub fn put(&self, bytes: &[u8], path: &str, mode: &str) -> Result<()> {
        self.machine()?.borrow_mut().agent.put(bytes, path)?;
        self.ok(&format!("chmod {mode} '{path}'")).map(|_| ())
    }

    /// Reads a file on the machine.
    pub fn fetch(&self, path: &str) -> Result<Vec<u8>> {
        self.machine()?.borrow_mut().agent.fetch(path)
    }

    /// Shares a directory of this machine with it, for reading and writing.
    pub fn share(&mut self, directory: &Path, guest: &str) -> Result<()> {
        let slot = self.shares.iter().position(Option::is_none);
        let slot =
            slot.with_context(|| format!("a machine can have only {} shared directories", share::SLOTS))?;
        share::lead(self.directory.path(), slot, directory)?;
        self.machine()?
            .borrow_mut()
            .qmp
            .execute("device_add", share::device(slot))?;
        self.shares[slot] = Some(guest.to_owned());
        self.ok(&share::mount(slot, guest)).map(|_| ())
    }

    /// Installs our programs and units on the running machine, as an upgrade does. No unit is restarted.
    pub fn install(&mut self, programs: &Programs) -> Result<()> {
        self.share(programs.tree(), "/run/programs")?;
        let script = programs.script("/run/programs")?;
        let installed = self.ok(&script).map(|_| ());
        self.unshare("/run/programs")?;
        installed.context("can't install the programs")
    }

    /// Replaces the store of a Debian machine by a disk with the containers' NixOS systems.
    pub fn bring_containers(&mut self, systems: &nixos::Systems) -> Result<()> {
        let copy = self.directory().join("containers.img");
        command::output(
            std::process::Command::new("cp")
                .args(["--sparse=always", "--reflink=auto"])
                .arg(systems.containers_disk())
                .arg(&copy),
        )?;
        self.plug(Device::virtio_blk("containers").with_file(&copy))?;
        self.ok(
            "set -e; disk=/dev/disk/by-id/virtio-containers; until [ -e $disk ]; do sleep 0.02; done; \
             systemctl stop nix-daemon.socket nix-daemon.service; mount $disk /nix; mkdir -p /nix/var/nix/gcroots; \
             chown root:nixbld /nix/store; chmod 1775 /nix/store; nix-store --load-db </nix/registration; \
             systemd-tmpfiles --create nix-daemon.conf cim-leaf.conf; systemctl start nix-daemon.socket",
        )
        .map(|_| ())
    }

    /// Removes a shared directory.
    pub fn unshare(&mut self, guest: &str) -> Result<()> {
        let slot = self
            .shares
            .iter()
            .position(|shared| shared.as_deref() == Some(guest));
        let slot = slot.with_context(|| format!("nothing is shared as {guest}"))?;
        self.ok(&format!("umount '{guest}'"))?;
        share::unplug(&mut self.machine()?.borrow_mut().qmp, self.directory.path(), slot)?;
        self.shares[slot] = None;
        Ok(())
    }

    /// Plugs in a device. The guest notices it a moment later, so the caller must wait for what it needs.
    pub fn plug(&mut self, device: Device) -> Result<Plugged> {
        let plugged = self.devices.add(device)?;
        let machine = self.machine.as_ref().context("the machine is powered off")?;
        let done = self
            .devices
            .plug(plugged, &mut machine.borrow_mut().qmp, self.directory.path());
        if done.is_err() {
            self.devices.forget(plugged);
        }
        done.map(|()| plugged)
    }

    /// Unplugs a device, and waits until the guest has released it.
    pub fn unplug(&mut self, plugged: Plugged) -> Result<()> {
        let machine = self.machine.as_ref().context("the machine is powered off")?;
        self.devices.unplug(plugged, &mut machine.borrow_mut().qmp)?;
        self.devices.forget(plugged);
        Ok(())
    }

    /// Connects or disconnects its cable to the outside.
    pub fn link(&self, up: bool) -> Result<()> {
        let arguments = json!({"name": machine::OUTSIDE, "up": up});
        self.machine()?
            .borrow_mut()
            .qmp
            .execute("set_link", arguments)
            .map(|_| ())
    }

    /// Cuts the power: everything that was not flushed to its disk is lost. [`Host::boot`] starts it again.
    pub fn cut_power(&mut self) {
        self.machine = None;
    }

    /// Starts it from its disk, as after a power cut.
    pub fn boot(&mut self) -> Result<()> {
        ensure!(self.machine.is_none(), "the machine is already powered on");
        let mut tries = 0;
        let machine = loop {
            tries += 1;
            match self.power(Memory::Own, None, freeze::BOOT) {
                Ok(machine) => break machine,
                // A start with two emulated processors may end in a panic of the kernel.
                Err(_) if tries < freeze::TRIES => {}
                Err(error) => {
                    return Err(error.context(format!("the machine does not start, after {tries} tries")));
                }
            }
        };
        self.machine = Some(RefCell::new(machine));
        // Waits for the end of the boot without requiring that all units are healthy, which the test may check.
        self.ok_within("systemctl is-system-running --wait >/dev/null; until ip route show default | grep -q .; do sleep 0.05; done", freeze::BOOT)?;
        self.addresses()?;
        for (slot, guest) in self.shared() {
            self.ok(&share::mount(slot, guest))?;
        }
        Ok(())
    }

    /// Shuts it down in order, and starts it again.
    pub fn reboot(&mut self) -> Result<()> {
        self.ok("systemd-run --quiet --no-block --on-active=0 systemctl reboot")?;
        // An error as well if a unit does not stop within systemd's time limit.
        self.machine()?.borrow_mut().wait_for_end(freeze::BOOT)?;
        self.machine = None;
        self.boot()
    }

    /// Forwards a port of this machine, which is returned, to a TCP port of the host.
    pub fn forward(&self, port: u16) -> Result<u16> {
        // QEMU's network knows the machine's hardware address from its packets. A connection to one that it doesn't know
        // yet may wait for a minute, and is reset then.
        self.ok("until ping -c 1 -W 1 10.0.2.2; do :; done >/dev/null 2>&1")?;
        for _ in 0..20 {
            // The port is free now, but may be taken before QEMU listens on it.
            let ours = std::net::TcpListener::bind(("127.0.0.1", 0)).context("no port is free")?;
            let free = ours.local_addr().context("a port has no number")?.port();
            drop(ours);
            let line = format!("hostfwd_add {} tcp:127.0.0.1:{free}-:{port}", machine::OUTSIDE);
            let answer = self
                .machine()?
                .borrow_mut()
                .qmp
                .execute("human-monitor-command", json!({"command-line": line}))?;
            if answer.as_str().is_none_or(str::is_empty) {
                return Ok(free);
            }
        }
        bail!(
            "can't forward a port of this machine to port {port} of {}",
            self.options.name
        )
    }

    /// Returns whether it is powered on.
    pub fn is_running(&self) -> bool {
        self.machine
            .as_ref()
            .is_some_and(|machine| machine.borrow_mut().is_running())
    }

    /// Returns the directory of its sockets, logs and disk on this machine.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns its host name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Returns the end of its console's and QEMU's output, for the error of a test.
    pub fn last_words(&self) -> String {
        let console = fs::read(machine::console(self.directory.path())).unwrap_or_default();
        debian::last_lines(&console, 40)
    }

    fn machine(&self) -> Result<&RefCell<Machine>> {
        self.machine
            .as_ref()
            .context("the machine is powered off; boot() starts it")
    }
}

/// Prints progress of what takes long or is repeated.
#[expect(
    clippy::print_stderr,
    reason = "it reports to the user who runs a test or `cargo xtask host`"
)]
fn say(text: std::fmt::Arguments<'_>) {
    eprintln!("test host: {text}");
}

/// Returns the command that sets a machine's clock, which stood still while it was frozen.
fn set_clock() -> Result<String> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("this machine's clock is wrong")?;
    Ok(format!(
        "date --utc --set=@{}.{:09} >/dev/null",
        now.as_secs(),
        now.subsec_nanos()
    ))
}

/// Pauses before polling again.
#[expect(
    clippy::disallowed_methods,
    reason = "neither QEMU nor its agent has an event for it, so it is polled"
)]
fn pause(step: Duration) {
    std::thread::sleep(step);
}

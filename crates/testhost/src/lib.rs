//! The test host: a real machine with systemd, in QEMU, that is there in about a second.
//!
//! [`Host::restore`] gives a fresh one, [`Host::run`] runs a command on it; it ends when it is dropped. Start reading
//! there. An image ([`Image`]) is built once (`disk`, [`nixos`]), started once (`freeze`), and kept (`cache`); what is restored
//! is a copy that shares all it does not change. The machine has none of our programs on it: [`Host::install`] brings them.
//!
//! This crate drives machines; it does not compile or install anything. `cargo xtask` does that, and tells tests by
//! [`READY_VARIABLE`] that there is an image and by [`PROGRAMS_VARIABLE`] which programs to put on it.

mod agent;
mod cache;
pub mod command;
mod cpio;
mod debian;
mod device;
mod disk;
mod files;
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
pub use image::{Image, clean};
pub use machine::MEMORY_MIB;
pub use network::Network;
pub use options::Options;
pub use platform::{Accelerator, can_run};
pub use programs::{Programs, VARIABLE as PROGRAMS_VARIABLE};

pub use running::{Output, Running};

use machine::{Machine, Memory, Start};

/// Set where the image is there, so that tests may use it: `cargo xtask test` does it.
pub const READY_VARIABLE: &str = "CIM_LEAF_HOST";

/// Set to the reason where the image can't be had.
pub const LACK_VARIABLE: &str = "CIM_LEAF_HOST_LACK";

/// How long a command may take where nothing else is said.
pub const LIMIT: Duration = Duration::from_secs(120);

/// How often a copy is restored that hangs as soon as it writes to its devices: a few of a hundred do, with QEMU 7.2 and
/// emulated processors.
const TRIES: u32 = 4;
/// How long a copy may take to learn who it is.
const LEARNS_WITHIN: Duration = Duration::from_secs(30);

/// How long a machine lives where nothing else is said; then it ends by itself, whatever became of its owner.
pub const LIVES: Duration = Duration::from_secs(30 * 60);

/// A machine. It ends with this value, and all that was on its disk is gone.
#[derive(Debug)]
pub struct Host {
    image: Image,
    options: Options,
    /// Before the directory, so that it ends before its files are removed.
    machine: Option<RefCell<Machine>>,
    directory: tempfile::TempDir,
    mac: String,
    devices: device::Rack,
    /// Where shared directories are there, by their places.
    shares: [Option<String>; share::SLOTS],
}

impl Host {
    /// Returns a fresh machine.
    ///
    /// # Errors
    /// Where the image is not here, or QEMU does not start.
    pub fn restore() -> Result<Self> {
        Options::default().restore()
    }

    /// Returns a fresh machine with the programs and units that [`Programs::here`] names.
    ///
    /// # Errors
    /// As [`Host::restore`]; and where [`PROGRAMS_VARIABLE`] names no programs, or they don't run there.
    pub fn leaf() -> Result<Self> {
        Options::default().with(&Programs::here()?).restore()
    }

    /// Returns what [`Options::restore`] starts from.
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
                    say(format_args!("thrown away, and restored once more: {error:#}"));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns a copy that runs, and does not know yet who it is.
    fn restored(options: Options) -> Result<Self> {
        let mut image = match &options.nixos {
            Some(systems) => Image::nixos(systems, options.processors)?,
            None => Image::with_processors(options.processors)?,
        };
        if let Some(programs) = &options.programs {
            image = image.with(programs)?;
        }
        image.mark_used()?;
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
        let machine = host.power(Memory::CopyOf(&memory), Some(&devices), Duration::from_secs(60))?;
        host.machine = Some(RefCell::new(machine));
        Ok(host)
    }

    /// What every machine has plugged in: more memory, its networks.
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
            self.devices.add(Device::on_network(network))?;
        }
        Ok(())
    }

    /// Starts QEMU with all that is plugged in, and waits for the agent.
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

    /// The places of shared directories that are taken, and where they are there.
    fn shared(&self) -> impl Iterator<Item = (usize, &str)> {
        let shares = self.shares.iter().enumerate();
        shares.filter_map(|(slot, guest)| Some((slot, guest.as_deref()?)))
    }

    /// Tells a copy who it is: what all copies have alike would make them one machine to each other.
    fn become_itself(&self) -> Result<()> {
        let clock = set_clock()?;
        let (name, id) = (&self.options.name, device::random_hex(16));
        ensure!(
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
            "{name:?} is no host name"
        );
        // The journal goes on in the directory that it has, and that of the new id leads there.
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
            .context("a restored machine can't be told who it is")?;
        ensure!(
            output.status == 0,
            "a restored machine can't be told who it is: {output:?}"
        );
        self.addresses()
    }

    fn addresses(&self) -> Result<()> {
        let mut networks = self.options.networks.iter().enumerate();
        networks.try_for_each(|(number, (_, address))| self.address(number, address))
    }

    /// Sets its address on a network.
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

    /// Runs a command line of bash as root, within [`LIMIT`].
    ///
    /// A process that it leaves behind must not keep its output open: redirect that.
    ///
    /// # Errors
    /// Where it could not be run or took too long; how it ended is no error.
    pub fn run(&self, command: &str) -> Result<Output> {
        self.run_within(command, LIMIT)
    }

    /// As [`Host::run`], within a time of its own. After that its process group is ended.
    pub fn run_within(&self, command: &str, limit: Duration) -> Result<Output> {
        self.start_within(command, limit)?.wait()
    }

    /// Runs a command that must end with 0, and returns what it prints.
    ///
    /// # Errors
    /// Where it ends with something else: the text says all it printed.
    pub fn ok(&self, command: &str) -> Result<String> {
        let output = self.run(command)?;
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

    /// Starts a command, and goes on beside it.
    pub fn start(&self, command: &str) -> Result<Running<'_>> {
        self.start_within(command, self.options.lives)
    }

    fn start_within(&self, command: &str, limit: Duration) -> Result<Running<'_>> {
        // The guest's own guard ends it a little after we would.
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

    /// Writes a file on it, with these permissions (`"0644"`).
    pub fn put(&self, bytes: &[u8], path: &str, mode: &str) -> Result<()> {
        self.machine()?.borrow_mut().agent.put(bytes, path)?;
        self.ok(&format!("chmod {mode} '{path}'")).map(|_| ())
    }

    /// Reads a file on it.
    pub fn fetch(&self, path: &str) -> Result<Vec<u8>> {
        self.machine()?.borrow_mut().agent.fetch(path)
    }

    /// Shows it a directory of this machine, for reading and writing.
    pub fn share(&mut self, directory: &Path, guest: &str) -> Result<()> {
        let slot = self.shares.iter().position(Option::is_none);
        let slot = slot.with_context(|| {
            format!(
                "a machine can have {} shared directories, and has them",
                share::SLOTS
            )
        })?;
        share::lead(self.directory.path(), slot, directory)?;
        self.machine()?
            .borrow_mut()
            .qmp
            .execute("device_add", share::device(slot))?;
        self.shares[slot] = Some(guest.to_owned());
        self.ok(&share::mount(slot, guest)).map(|_| ())
    }

    /// Puts the house's programs and units on it while it runs, as an upgrade does. No unit is restarted.
    pub fn install(&mut self, programs: &Programs) -> Result<()> {
        self.share(programs.tree(), "/run/programs")?;
        let script = programs.script("/run/programs")?;
        let installed = self.ok(&script).map(|_| ());
        self.unshare("/run/programs")?;
        installed.context("the programs can't be installed")
    }

    /// Gives a Debian machine a disk with the containers' NixOS systems in its store, in the place of the store that it had.
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

    /// Takes a shared directory away again.
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

    /// Plugs a device in. Its guest sees it a moment later: wait for what you need of it.
    pub fn plug(&mut self, device: Device) -> Result<Plugged> {
        let plugged = self.devices.add(device)?;
        let machine = self.machine.as_ref().context("the machine has no power")?;
        let done = self
            .devices
            .plug(plugged, &mut machine.borrow_mut().qmp, self.directory.path());
        if done.is_err() {
            self.devices.forget(plugged);
        }
        done.map(|()| plugged)
    }

    /// Unplugs a device, and waits until it is gone.
    pub fn unplug(&mut self, plugged: Plugged) -> Result<()> {
        let machine = self.machine.as_ref().context("the machine has no power")?;
        self.devices.unplug(plugged, &mut machine.borrow_mut().qmp)?;
        self.devices.forget(plugged);
        Ok(())
    }

    /// Connects or cuts its way outside, as a cable would.
    pub fn link(&self, up: bool) -> Result<()> {
        let arguments = json!({"name": machine::OUTSIDE, "up": up});
        self.machine()?
            .borrow_mut()
            .qmp
            .execute("set_link", arguments)
            .map(|_| ())
    }

    /// Connects or cuts a network card that was plugged in.
    pub fn link_of(&self, plugged: Plugged, up: bool) -> Result<()> {
        let arguments = json!({"name": device::id(plugged), "up": up});
        self.machine()?
            .borrow_mut()
            .qmp
            .execute("set_link", arguments)
            .map(|_| ())
    }

    /// Connects or cuts its cable in a network that it is on.
    pub fn link_in(&self, network: &Network, up: bool) -> Result<()> {
        let plugged = self
            .devices
            .on(network)
            .context("the machine is not on that network")?;
        self.link_of(plugged, up)
    }

    /// Takes its power away: what was not flushed to its disk is lost. [`Host::boot`] gives it back.
    pub fn cut_power(&mut self) {
        self.machine = None;
    }

    /// Starts it from its disk, as after a power cut.
    pub fn boot(&mut self) -> Result<()> {
        ensure!(self.machine.is_none(), "the machine has power already");
        let mut tries = 0;
        let machine = loop {
            tries += 1;
            match self.power(Memory::Own, None, freeze::BOOT) {
                Ok(machine) => break machine,
                // A start with two emulated processors may end in a panic of the kernel.
                Err(_) if tries < freeze::TRIES => {}
                Err(error) => {
                    return Err(error.context(format!("the machine does not start, in {tries} tries")));
                }
            }
        };
        self.machine = Some(RefCell::new(machine));
        // Not `--wait`, which asks for all units to be well: that is for the test to say.
        self.ok("systemctl is-system-running --wait >/dev/null; until ip route show default | grep -q .; do sleep 0.05; done")?;
        self.addresses()?;
        for (slot, guest) in self.shared() {
            self.ok(&share::mount(slot, guest))?;
        }
        Ok(())
    }

    /// Shuts it down as a person would, and starts it again.
    pub fn reboot(&mut self) -> Result<()> {
        self.ok("systemd-run --quiet --no-block --on-active=0 systemctl reboot")?;
        // Also an error: where a unit does not end before systemd loses patience with it.
        self.machine()?.borrow_mut().wait_for_end(LIMIT)?;
        self.machine = None;
        self.boot()
    }

    /// Lets a port of this machine, which is returned, lead to a TCP port of the host.
    pub fn forward(&self, port: u16) -> Result<u16> {
        for _ in 0..20 {
            // The number is free now; another may take it before QEMU does.
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
            "no port of this machine could be led to port {port} of {}",
            self.options.name
        )
    }

    /// Whether it has power.
    pub fn is_running(&self) -> bool {
        self.machine
            .as_ref()
            .is_some_and(|machine| machine.borrow_mut().is_running())
    }

    /// The directory of its sockets, logs and disk, on this machine.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// What it and its console said last: for the error of a test.
    pub fn last_words(&self) -> String {
        let console = fs::read(machine::console(self.directory.path())).unwrap_or_default();
        debian::last_lines(&console, 40)
    }

    fn machine(&self) -> Result<&RefCell<Machine>> {
        self.machine
            .as_ref()
            .context("the machine has no power; boot() gives it back")
    }
}

/// Tells a person what takes its time, or is done again.
#[expect(
    clippy::print_stderr,
    reason = "it speaks to whoever runs a test or `cargo xtask host`"
)]
fn say(text: std::fmt::Arguments<'_>) {
    eprintln!("test host: {text}");
}

/// What sets a machine's clock: a frozen one has stood still.
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

/// Waits a little before the next look.
#[expect(
    clippy::disallowed_methods,
    reason = "neither QEMU nor its agent tells: one must look again"
)]
fn pause(step: Duration) {
    std::thread::sleep(step);
}

//! A QEMU process: its command line, and its two connections.
//!
//! # The disk and a power cut
//!
//! The disk is a qcow2 file with `cache=unsafe`: a flush of the guest moves everything that QEMU holds (data and the
//! tables of qcow2) to this machine's page cache, without waiting for this machine's disk. A power cut is a SIGKILL of
//! QEMU, which this machine's page cache survives. So everything that the guest flushed is kept; data only in its own
//! page cache, or in tables that QEMU had not written yet, is lost; data written to the device and not flushed may or
//! may not be kept, as on a disk with a cache. `cache=none` or `writeback` would wait for this machine's disk at each
//! flush, and keep the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::agent::Agent;
use crate::command::line;
use crate::debian::last_lines;
use crate::platform::Accelerator;
use crate::qmp::Qmp;
use crate::{cost, pause, ports, share};

/// A machine's base memory, in MiB; more is plugged in.
pub const MEMORY_MIB: u64 = 1024;
/// QEMU's name of the outside network.
pub(crate) const OUTSIDE: &str = "outside";

/// The time limit for QEMU to open its sockets and to read a frozen state.
const START: Duration = Duration::from_secs(60);

/// The backing of a machine's memory.
pub(crate) enum Memory<'a> {
    /// QEMU's own.
    Own,
    /// A file that is written.
    File(&'a Path),
    /// A private copy of a file, which several machines read and none writes.
    CopyOf(&'a Path),
}

/// The properties that all machines of an image share.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) accelerator: Accelerator,
    /// How many processors it has.
    pub(crate) processors: u32,
    /// The directory with `vmlinuz` and `initrd`.
    pub(crate) boot: PathBuf,
}

/// The parameters of a machine's start.
pub(crate) struct Start<'a> {
    pub(crate) model: &'a Model,
    /// The directory of its sockets and logs.
    pub(crate) directory: &'a Path,
    pub(crate) disk: &'a Path,
    pub(crate) memory: Memory<'a>,
    /// The frozen state of the devices, if it is restored.
    pub(crate) frozen: Option<&'a Path>,
    /// The hardware address of its network card; a frozen machine keeps its own.
    pub(crate) mac: &'a str,
    /// Its lifetime, after which it ends.
    pub(crate) lives: Duration,
}

/// A powered machine. It ends when this value is dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The process `timeout`, which ends QEMU at the end of its lifetime.
    child: Child,
    directory: PathBuf,
    pub(crate) qmp: Qmp,
    pub(crate) agent: Agent,
}

/// Returns the paths of files in a machine's directory.
pub(crate) fn console(directory: &Path) -> PathBuf {
    directory.join("console.log")
}
pub(crate) fn shell_socket(directory: &Path) -> PathBuf {
    directory.join("shell")
}

impl Machine {
    /// Starts a paused machine: see [`Machine::go`].
    pub(crate) fn start(start: &Start<'_>) -> Result<Self> {
        let directory = start.directory;
        for name in ["qmp", "agent", "shell", "pid"] {
            let _ = fs::remove_file(directory.join(name));
        }
        let log = fs::File::create(directory.join("qemu.log")).context("can't make a log")?;
        let mut command = command(start);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("a log can't be shared")?)
            .stderr(log)
            .spawn()
            .context("can't run QEMU")?;
        match connect(&mut child, directory) {
            Ok((qmp, agent)) => {
                let mut machine = Self {
                    child,
                    directory: directory.to_owned(),
                    qmp,
                    agent,
                };
                if let Some(state) = start.frozen {
                    machine.thaw(state)?;
                }
                Ok(machine)
            }
            Err(error) => {
                end(&mut child, directory);
                let text = fs::read(directory.join("qemu.log")).unwrap_or_default();
                Err(error.context(format!("QEMU does not start: {}", last_lines(&text, 10))))
            }
        }
    }

    fn thaw(&mut self, state: &Path) -> Result<()> {
        ignore_shared(&mut self.qmp)?;
        let uri = format!("exec:cat {}", quoted(state)?);
        self.qmp.execute("migrate-incoming", json!({"uri": uri}))?;
        let deadline = Instant::now() + START;
        loop {
            let status = self.qmp.execute("query-status", json!({}))?;
            match status["status"].as_str().unwrap_or_default() {
                "inmigrate" => {}
                "paused" | "postmigrate" | "prelaunch" => return Ok(()),
                other => bail!("a frozen machine is restored to the state {other}"),
            }
            if Instant::now() > deadline {
                bail!("a frozen machine is not restored within {} s", START.as_secs());
            }
            pause(Duration::from_millis(3));
        }
    }

    /// Lets the machine run.
    pub(crate) fn go(&mut self) -> Result<()> {
        self.qmp.execute("cont", json!({})).map(|_| ())
    }

    /// Waits until its agent answers.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<()> {
        let answered = self.agent.wait(Instant::now() + limit);
        answered.with_context(|| self.last_words())
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait_for_end(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() > deadline {
                bail!(
                    "the machine does not end within {} s: {}",
                    limit.as_secs(),
                    self.last_words()
                );
            }
            pause(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns the end of its console's and QEMU's output.
    pub(crate) fn last_words(&self) -> String {
        let read = |file: PathBuf| last_lines(&fs::read(file).unwrap_or_default(), 10);
        let (console, qemu) = (
            read(console(&self.directory)),
            read(self.directory.join("qemu.log")),
        );
        format!("the end of its console: {console:?}; of QEMU's output: {qemu:?}")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.child, &self.directory);
    }
}

/// Kills QEMU, and waits until the process has ended.
fn end(child: &mut Child, directory: &Path) {
    // QEMU first, since a SIGKILL of `timeout` would not end it.
    let pid = fs::read_to_string(directory.join("pid")).ok();
    let pid = pid.and_then(|text| rustix::process::Pid::from_raw(text.trim().parse().ok()?));
    cost::add_process(pid);
    // The process id is not reused while `timeout`, whose child QEMU is, was not reaped.
    if let (Some(pid), Ok(None)) = (pid, child.try_wait()) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    } else {
        let _ = child.kill();
    }
    let _ = child.wait();
}

/// Excludes memory in a file from the frozen state.
pub(crate) fn ignore_shared(qmp: &mut Qmp) -> Result<()> {
    let capabilities = json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]});
    qmp.execute("migrate-set-capabilities", capabilities).map(|_| ())
}

/// Returns a path quoted for the shell that QEMU starts.
pub(crate) fn quoted(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// Returns a path for an option of QEMU, in which commas are doubled.
fn option(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Returns the part of the command line that determines whether a frozen state can be restored.
pub(crate) fn recipe(accelerator: Accelerator, processors: u32) -> String {
    let nowhere = Path::new("");
    let model = Model {
        accelerator,
        processors,
        boot: PathBuf::new(),
    };
    line(&command(&Start {
        model: &model,
        directory: nowhere,
        disk: nowhere,
        memory: Memory::Own,
        frozen: None,
        mac: "",
        lives: Duration::ZERO,
    }))
}

fn connect(child: &mut Child, directory: &Path) -> Result<(Qmp, Agent)> {
    let deadline = Instant::now() + START;
    loop {
        let pid = fs::metadata(directory.join("pid")).is_ok_and(|file| file.len() > 0);
        let open = |name: &str| directory.join(name).exists();
        // The last socket may exist a moment before QEMU listens on it.
        if pid && open("agent") && open("qmp") {
            match Qmp::connect(&directory.join("qmp")) {
                Ok(qmp) => return Ok((qmp, Agent::connect(&directory.join("agent"))?)),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
        }
        if let Some(status) = child.try_wait().context("can't wait for QEMU")? {
            bail!("it ended with {status}");
        }
        if Instant::now() > deadline {
            bail!("it opens no socket within {} s", START.as_secs());
        }
        pause(Duration::from_millis(3));
    }
}

fn command(start: &Start<'_>) -> Command {
    let directory = start.directory;
    let mut qemu = Command::new("timeout");
    // In the foreground, so that a signal to this program's process group ends QEMU as well.
    qemu.args(["--foreground", "--kill-after=5"])
        .arg(start.lives.as_secs().max(1).to_string())
        .arg("qemu-system-x86_64");
    let mut all = |arguments: &[&str]| {
        qemu.args(arguments);
    };
    all(&[
        "-name",
        "leaf-test-host",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-S",
    ]);
    all(&["-pidfile", &directory.join("pid").to_string_lossy()]);

    let accelerator = match start.model.accelerator {
        Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
        // Features of newer processors (AVX, SMAP, five-level page tables) are emulated slowly, and tests don't need
        // them.
        Accelerator::Emulation => ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem"],
    };
    all(&accelerator);
    all(&["-smp", &start.model.processors.to_string()]);
    all(&["-m", &format!("{MEMORY_MIB}M,slots=4,maxmem=16G")]);
    let size = format!("id=ram0,size={MEMORY_MIB}M");
    let memory = match start.memory {
        Memory::Own => format!("memory-backend-ram,{size}"),
        Memory::File(file) => format!("memory-backend-file,{size},share=on,mem-path={}", option(file)),
        Memory::CopyOf(file) => format!("memory-backend-file,{size},share=off,mem-path={}", option(file)),
    };
    all(&["-machine", "q35,memory-backend=ram0", "-object", &memory]);

    all(&["-kernel", &start.model.boot.join("vmlinuz").to_string_lossy()]);
    all(&["-initrd", &start.model.boot.join("initrd").to_string_lossy()]);
    all(&["-append", &kernel(start.model.accelerator)]);
    if start.frozen.is_some() {
        all(&["-incoming", "defer"]);
    }

    let disk = format!(
        "file={},format=qcow2,if=none,id=root,cache=unsafe,discard=unmap",
        option(start.disk)
    );
    all(&[
        "-drive",
        &disk,
        "-device",
        "virtio-blk-pci,drive=root,id=root-disk,serial=root",
    ]);
    all(&["-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto"]);
    let socket = |name: &str| format!("{},server=on,wait=off", option(&directory.join(name)));
    all(&[
        "-chardev",
        &format!("file,id=console,append=on,path={}", option(&console(directory))),
    ]);
    all(&[
        "-serial",
        "chardev:console",
        "-device",
        "virtio-serial-pci,id=ports",
    ]);
    all(&["-chardev", &format!("socket,id=agent,path={}", socket("agent"))]);
    all(&[
        "-device",
        "virtserialport,bus=ports.0,chardev=agent,name=org.qemu.guest_agent.0",
    ]);
    all(&["-chardev", &format!("socket,id=shell,path={}", socket("shell"))]);
    all(&["-device", "virtconsole,bus=ports.0,chardev=shell"]);
    all(&["-qmp", &format!("unix:{}", socket("qmp"))]);

    all(&["-netdev", &format!("user,id={OUTSIDE}")]);
    let card = format!(
        "virtio-net-pci,netdev={OUTSIDE},id=card,romfile=,mac={}",
        start.mac
    );
    all(&["-device", &card]);

    // The slots of plugged devices.
    for port in 0..ports::COUNT {
        all(&[
            "-device",
            &format!(
                "pcie-root-port,id={},chassis={},slot={}",
                ports::id(port),
                port + 1,
                port + 1
            ),
        ]);
    }
    all(&[
        "-device",
        "qemu-xhci,id=usb,p2=8,p3=8",
        "-audiodev",
        "none,id=silence",
    ]);
    for slot in 0..share::SLOTS {
        let path = option(&share::slot(directory, slot));
        all(&[
            "-fsdev",
            &format!(
                "local,id={},path={path},security_model=none,multidevs=remap",
                share::id(slot)
            ),
        ]);
    }
    qemu
}

/// The kernel's command line (kernel-parameters.txt of Linux).
fn kernel(accelerator: Accelerator) -> String {
    match accelerator {
        Accelerator::Kvm => KERNEL.to_owned(),
        // Translated code is found again by its address: with random addresses, each start of a program is translated
        // again, which takes four times as long.
        Accelerator::Emulation => format!("{KERNEL} norandmaps"),
    }
}

/// Options for a fast start, without probing for missing hardware.
const KERNEL: &str = "root=/dev/vda rw console=ttyS0 quiet loglevel=4 panic=-1 net.ifnames=0 mitigations=off audit=0 \
    apparmor=0 selinux=0 random.trust_cpu=on no_timer_check memhp_default_state=online_movable \
    systemd.show_status=no";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_for_the_shell_and_for_an_option() {
        assert_eq!(quoted(Path::new("/a b/it's")).expect("text"), r"'/a b/it'\''s'");
        assert_eq!(option(Path::new("/a,b")), "/a,,b");
    }

    #[test]
    fn a_qemu_that_refuses_its_options_says_why() {
        if crate::command::find("qemu-system-x86_64").is_none() {
            return;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let model = Model {
            accelerator: Accelerator::Emulation,
            processors: 1,
            boot: directory.path().to_owned(),
        };
        let start = Start {
            model: &model,
            directory: directory.path(),
            disk: &directory.path().join("absent.qcow2"),
            memory: Memory::Own,
            frozen: None,
            mac: "52:54:00:00:00:01",
            lives: Duration::from_secs(20),
        };
        let error = Machine::start(&start).expect_err("there is no disk");
        assert!(format!("{error:#}").contains("absent.qcow2"), "{error:#}");
    }
}

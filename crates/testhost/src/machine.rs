//! One QEMU process: how it is started, and its two connections.
//!
//! # The disk and a power cut
//!
//! The disk is a qcow2 file with `cache=unsafe`: a flush of the guest moves all that QEMU holds (data and the tables of
//! qcow2) to this machine's page cache, and asks this machine's disk for nothing. A power cut is a SIGKILL of QEMU, and
//! this machine's page cache survives it. So what the guest flushed is kept, whole; what it only wrote is lost with its
//! own page cache, or with the tables that QEMU had not written yet; what it wrote to the device and did not flush may
//! be there or not, as on a disk with a cache. `cache=none` or `writeback` would wait for this machine's disk at each
//! flush, and keep no more and no less.

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
use crate::{pause, ports, share};

/// A machine's memory; more is plugged in.
pub const MEMORY_MIB: u64 = 1024;
/// QEMU's name for the way outside.
pub(crate) const OUTSIDE: &str = "outside";

/// How long QEMU may take to open its sockets and to read a frozen state.
const START: Duration = Duration::from_secs(60);

/// Where a machine's memory is.
pub(crate) enum Memory<'a> {
    /// QEMU's own.
    Own,
    /// In a file that keeps it.
    File(&'a Path),
    /// As it is in a file, which several machines read and none writes.
    CopyOf(&'a Path),
}

/// What all machines of an image have alike.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) accelerator: Accelerator,
    /// How many processors it has.
    pub(crate) processors: u32,
    /// The directory with `vmlinuz` and `initrd`.
    pub(crate) boot: PathBuf,
}

/// What a machine is started with.
pub(crate) struct Start<'a> {
    pub(crate) model: &'a Model,
    /// The directory of its sockets and logs.
    pub(crate) directory: &'a Path,
    pub(crate) disk: &'a Path,
    pub(crate) memory: Memory<'a>,
    /// What is running on it already: the devices' state, as it was frozen.
    pub(crate) frozen: Option<&'a Path>,
    /// The address of its network card; a frozen machine keeps the one that it had.
    pub(crate) mac: &'a str,
    /// When it ends by itself.
    pub(crate) lives: Duration,
}

/// A machine that has power. It ends with this value.
#[derive(Debug)]
pub(crate) struct Machine {
    /// `timeout`, which ends QEMU when its time is over.
    child: Child,
    directory: PathBuf,
    pub(crate) qmp: Qmp,
    pub(crate) agent: Agent,
}

/// What a directory of a machine has in it.
pub(crate) fn console(directory: &Path) -> PathBuf {
    directory.join("console.log")
}
pub(crate) fn shell_socket(directory: &Path) -> PathBuf {
    directory.join("shell")
}

impl Machine {
    /// Starts a machine that stands still yet: see [`Machine::go`].
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
                other => bail!("a frozen machine comes back {other}"),
            }
            if Instant::now() > deadline {
                bail!("a frozen machine does not come back within {} s", START.as_secs());
            }
            pause(Duration::from_millis(3));
        }
    }

    /// Lets it run.
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

    /// What its console and QEMU said last.
    pub(crate) fn last_words(&self) -> String {
        let read = |file: PathBuf| last_lines(&fs::read(file).unwrap_or_default(), 10);
        let (console, qemu) = (
            read(console(&self.directory)),
            read(self.directory.join("qemu.log")),
        );
        format!("its console said last: {console:?}; QEMU said: {qemu:?}")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        end(&mut self.child, &self.directory);
    }
}

/// Takes the power away, and waits until the process is gone.
fn end(child: &mut Child, directory: &Path) {
    // QEMU first: SIGKILL would take its guard alone.
    let pid = fs::read_to_string(directory.join("pid")).ok();
    let pid = pid.and_then(|text| rustix::process::Pid::from_raw(text.trim().parse().ok()?));
    // While the guard was not waited for, and QEMU is its child, the number is nobody else's.
    if let (Some(pid), Ok(None)) = (pid, child.try_wait()) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    } else {
        let _ = child.kill();
    }
    let _ = child.wait();
}

/// Says that memory in a file is not part of the frozen state.
pub(crate) fn ignore_shared(qmp: &mut Qmp) -> Result<()> {
    let capabilities = json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]});
    qmp.execute("migrate-set-capabilities", capabilities).map(|_| ())
}

/// A path as the shell takes it that QEMU starts.
pub(crate) fn quoted(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// A path in an option of QEMU's, in which a comma is doubled.
fn option(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// All of the command line that decides whether a frozen state fits.
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
        // The one that listens last may be there a moment before it does.
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
    // In the foreground, so that what ends this program's process group ends QEMU too.
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
        // What newer processors have (AVX, SMAP, five-level page tables) is emulated slowly, and shows nothing.
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

    // Where things are plugged in.
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
        // What was translated of a program is found again by its address: with one that is random, each start of a program
        // translates it anew, which takes four times as long.
        Accelerator::Emulation => format!("{KERNEL} norandmaps"),
    }
}

/// What makes a short start: no checks of hardware that is not there.
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

//! A bare SSH server on the loopback, which sessions are compared with: Debian's, unpacked, in a mount namespace of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::command::{find, output, run, target};

const READY_WITHIN: Duration = Duration::from_secs(20);
/// The packages of Debian with the server and a library that few hosts have.
const PACKAGES: [&str; 2] = ["openssh-server", "libwrap0"];

/// A server in which root may run programs with one key. Dropping it stops it.
pub(super) struct Sshd {
    child: Child,
    port: u16,
    directory: PathBuf,
}

impl Sshd {
    /// Starts it, with its files in this directory.
    pub(super) fn start(directory: &Path) -> Result<Self> {
        let (program, libraries) = program()?;
        let key = |name: &str| -> Result<()> {
            let mut make = Command::new("ssh-keygen");
            make.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
                .arg(directory.join(name));
            run(&mut make)
        };
        key("host")?;
        key("user")?;
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .context("no port is free")?
            .port();
        // It wants a user of its own, and an empty directory at a path that is compiled in.
        let script = "set -e; mount -t tmpfs none /run; mkdir -p /run/sshd; cp /etc/passwd \"$1/passwd\"; \
            grep -q ^sshd: \"$1/passwd\" || echo sshd:x:65533:65533::/run/sshd:/usr/sbin/nologin >>\"$1/passwd\"; \
            mount --bind \"$1/passwd\" /etc/passwd; shift; exec \"$@\"";
        let at = |name: &str| directory.join(name).display().to_string();
        let options = [
            format!("Port={port}"),
            "ListenAddress=127.0.0.1".to_owned(),
            format!("HostKey={}", at("host")),
            format!("AuthorizedKeysFile={}", at("user.pub")),
            "StrictModes=no".to_owned(),
            "PermitRootLogin=yes".to_owned(),
            "PidFile=none".to_owned(),
            "UsePAM=no".to_owned(),
        ];
        let log = std::fs::File::create(directory.join("sshd.log")).context("can't make a log")?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(directory)
            .arg(&program)
            .args(["-D", "-e", "-f", "/dev/null"])
            .args(options.iter().flat_map(|option| ["-o", option]))
            .env("LD_LIBRARY_PATH", libraries)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().context("can't run unshare")?;
        let sshd = Self {
            child,
            port,
            directory: directory.to_owned(),
        };
        let began = Instant::now();
        while !sshd
            .ssh(false)
            .arg("true")
            .status()
            .is_ok_and(|end| end.success())
        {
            let log = std::fs::read_to_string(directory.join("sshd.log")).unwrap_or_default();
            ensure!(began.elapsed() < READY_WITHIN, "sshd does not answer: {log}");
        }
        Ok(sshd)
    }

    /// Returns the options by which `ssh` gets there, none of which has a blank.
    pub(super) fn options(&self) -> Vec<String> {
        let (port, key) = (self.port.to_string(), self.directory.join("user"));
        let words = ["-F", "/dev/null", "-p", &port, "-i", &key.display().to_string()];
        let settings = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            "LogLevel=ERROR",
        ];
        let settings = settings.into_iter().flat_map(|setting| ["-o", setting]);
        words.into_iter().chain(settings).map(str::to_owned).collect()
    }

    /// Returns `ssh` to it, without a command yet; with a terminal, as for a person.
    pub(super) fn ssh(&self, terminal: bool) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(self.options());
        // Since OpenSSH 9.5, where it would delay keys.
        if output(Command::new("ssh").args(["-G", "-o", "ObscureKeystrokeTiming=no", "x"])).is_ok() {
            ssh.args(["-o", "ObscureKeystrokeTiming=no"]);
        }
        if terminal {
            ssh.arg("-tt");
        }
        ssh.arg("root@127.0.0.1");
        ssh
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the server's program and the directory of its libraries: the host's own, or that of Debian's packages, unpacked.
fn program() -> Result<(PathBuf, PathBuf)> {
    let unpacked = target().join("tools/sshd");
    if let Some(own) =
        find("sshd").or_else(|| Some(PathBuf::from("/usr/sbin/sshd")).filter(|file| file.is_file()))
    {
        return Ok((own, PathBuf::new()));
    }
    let program = unpacked.join("usr/sbin/sshd");
    let libraries = unpacked
        .join("usr/lib")
        .join(format!("{}-linux-gnu", std::env::consts::ARCH));
    if program.is_file() {
        return Ok((program, libraries));
    }
    if find("apt-get").is_none() {
        bail!("no sshd is installed, and this is not Debian or Ubuntu: install OpenSSH's server");
    }
    let directory = tempfile::tempdir().context("can't make a temporary directory")?;
    let mut download = Command::new("apt-get");
    download
        .args(["--quiet", "download"])
        .args(PACKAGES)
        .current_dir(directory.path());
    run(&mut download)?;
    std::fs::create_dir_all(&unpacked).with_context(|| format!("can't make {}", unpacked.display()))?;
    for entry in std::fs::read_dir(directory.path()).context("can't list the packages")? {
        let package = entry.context("can't list the packages")?.path();
        run(Command::new("dpkg-deb")
            .arg("--extract")
            .arg(package)
            .arg(&unpacked))?;
    }
    Ok((program, libraries))
}

//! A session of `leafctl nix run`, compared with the same over `ssh` on the loopback.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::leaf::Measured;
use super::measures::{children_of, field, json};
use super::numbers::{Row, Target, each, median};
use super::programs::Programs;
use super::sshd::Sshd;
use crate::build_shell::BUILD_SHELL;
use crate::command::{line, output, run};

/// The number of keys in each round.
const KEYS: usize = 200;
/// The number of rounds at most: each begins two sessions.
const ROUNDS: usize = 5;
/// The size of a long output, in bytes.
const OUTPUT: u64 = 1 << 30;
/// The time limit for something to be printed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a terminal is silent before keys are typed.
const SILENCE: Duration = Duration::from_millis(500);

const PACKAGE: &str = r#"shell: {
  tool = derivation {
    name = "cim-leaf-bench-tool";
    allowSubstitutes = false;
    system = builtins.currentSystem;
    inherit (shell) builder;
    args = shell.args ++ [ "echo tool > $out" ];
  };
}
"#;

/// A leaf on which a person may run programs.
struct Runner {
    leaf: Measured,
    key: PathBuf,
    packages: PathBuf,
}

impl Runner {
    fn start(programs: &Programs) -> Result<Self> {
        let leaf = Measured::start_with(programs, |directory| {
            let key = directory.join("person");
            let mut make = Command::new("ssh-keygen");
            make.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
                .arg(&key);
            run(&mut make)?;
            let public = std::fs::read_to_string(key.with_extension("pub")).context("no public key")?;
            let signers = directory.join("signers");
            std::fs::write(&signers, format!("admin {public}")).context("can't write the signers")?;
            Ok(format!(
                "[trust]\nallowed_signers = \"{}\"\n[trust.callers]\nadmin = [\"runs-code\"]\n",
                signers.display()
            ))
        })?;
        leaf.wait_published()?;
        let packages = leaf.directory().join("packages.nix");
        std::fs::write(&packages, format!("({PACKAGE}) {BUILD_SHELL}"))
            .context("can't write the packages")?;
        Ok(Self {
            key: leaf.directory().join("person"),
            leaf,
            packages,
        })
    }

    /// Returns `leafctl` that runs a program in a session.
    fn nix_run(&self, command: &[&str]) -> Command {
        let mut leafctl = self.leaf.leafctl();
        leafctl
            .args(["nix", "run", "--sign-with"])
            .arg(&self.key)
            .arg("--file")
            .arg(&self.packages)
            .args(["tool", "--"])
            .args(command);
        leafctl
    }
}

/// A person's terminal, in which a program runs.
struct Screen {
    master: File,
    child: Child,
}

impl Screen {
    fn open(mut command: Command) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        tcsetwinsize(
            &master,
            Winsize {
                ws_row: 24,
                ws_col: 80,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )?;
        let side = |slave: &OwnedFd| -> Result<Stdio> { Ok(Stdio::from(slave.try_clone()?)) };
        command
            .env("TERM", "xterm-256color")
            .stdin(side(&slave)?)
            .stdout(side(&slave)?)
            .stderr(side(&slave)?);
        let child = command
            .spawn()
            .with_context(|| format!("can't run {}", line(&command)))?;
        Ok(Self {
            master: File::from(master),
            child,
        })
    }

    /// Returns what is printed next; nothing if that takes longer than this.
    fn prints(&mut self, within: Duration) -> Result<Vec<u8>> {
        let mut buffer = vec![0; 1 << 16];
        let mut polled = [PollFd::new(&self.master, PollFlags::IN)];
        if poll(&mut polled, Some(&Timespec::try_from(within)?))? == 0 {
            return Ok(Vec::new());
        }
        // EIO: nobody has the other side open any more.
        let count = self.master.read(&mut buffer).unwrap_or(0);
        buffer.truncate(count);
        Ok(buffer)
    }

    /// Types keys, each once the one before is seen; returns the time to each echo, in seconds.
    fn echoes(&mut self, keys: usize) -> Result<Vec<f64>> {
        let began = Instant::now();
        let mut said = Vec::new();
        while !said.ends_with(b"ready> ") {
            said.extend(self.prints(PATIENCE)?);
            ensure!(
                began.elapsed() < PATIENCE,
                "no prompt in {:?}",
                String::from_utf8_lossy(&said)
            );
        }
        while !self.prints(SILENCE)?.is_empty() {}
        let mut times = Vec::with_capacity(keys);
        for nth in 0..keys {
            // A line that does not get long.
            let key = if nth % 40 == 39 { b"\x15" } else { b"x" };
            let typed = Instant::now();
            self.master.write_all(key)?;
            ensure!(!self.prints(PATIENCE)?.is_empty(), "no echo of key {nth}");
            if key == b"x" {
                times.push(typed.elapsed().as_secs_f64());
            } else {
                while !self.prints(SILENCE)?.is_empty() {}
            }
        }
        self.master.write_all(b"\x15exit\r")?;
        while !self.prints(PATIENCE)?.is_empty() {}
        self.child.wait()?;
        Ok(times)
    }

    /// Reads all that is printed; returns the number of bytes.
    fn drained(&mut self) -> Result<u64> {
        let mut bytes = 0;
        loop {
            match self.prints(PATIENCE)?.len() as u64 {
                0 => break,
                more => bytes += more,
            }
        }
        self.child.wait()?;
        Ok(bytes)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Keys, and a long output.
pub(super) fn measure(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let runner = Runner::start(programs)?;
    let directory = tempfile::tempdir().context("can't make a temporary directory")?;
    let sshd = Sshd::start(directory.path())?;
    let mut rows = keys(programs, &runner, &sshd, rounds.min(ROUNDS))?;
    rows.extend(long_output(&runner, &sshd, directory.path())?);
    runner.leaf.stop()?;
    Ok(rows)
}

fn keys(programs: &Programs, runner: &Runner, sshd: &Sshd, rounds: usize) -> Result<Vec<Row>> {
    let bash = [
        "/usr/bin/env",
        "PS1=ready> ",
        "/bin/bash",
        "--norc",
        "--noprofile",
        "-i",
    ];
    let (mut own, mut other) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        own.extend(Screen::open(runner.nix_run(&bash))?.echoes(KEYS)?);
        let mut ssh = sshd.ssh(true);
        ssh.arg("PS1='ready> ' exec /bin/bash --norc --noprofile -i");
        other.extend(Screen::open(ssh)?.echoes(KEYS)?);
    }
    let found = json(
        Command::new(&programs.requests)
            .arg("round-trip")
            .arg(runner.leaf.state())
            .args([Measured::name(), rounds.to_string(), "1000".to_owned()]),
    )?;
    let bare = median(&each(&found, "rounds", &["bare", "p50_us"]));
    let us = |seconds: f64| format!("{:.0} µs", seconds * 1e6);
    let (leaf, ssh) = (median(&own), median(&other));
    let late = |times: &[f64]| {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() * 99 / 100]
    };
    let (leaf_late, ssh_late) = (late(&own), late(&other));
    Ok(vec![
        Row::report(
            "a key typed into a shell of `leafctl nix run` until its echo, median, compared with `ssh` on the loopback",
            us(leaf),
        )
        .against(us(ssh), leaf / ssh)
        .target(Target::AtMost(1.5)),
        Row::report("the same, 99th percentile", us(leaf_late)).against(us(ssh_late), leaf_late / ssh_late),
        Row::report(
            "the same, median, compared with a request to a bare responder",
            format!("{}, {:.0} µs more", us(leaf), leaf * 1e6 - bare),
        )
        .against(format!("{bare:.0} µs"), leaf * 1e6 / bare),
    ])
}

fn long_output(runner: &Runner, sshd: &Sshd, directory: &Path) -> Result<Vec<Row>> {
    let head = format!("head -c {OUTPUT} /dev/zero");
    let words: Vec<&str> = head.split(' ').collect();
    let mut rows = Vec::new();
    let leafd = runner.leaf.pid();
    let before = peak(leafd)?;
    let mut ssh = sshd.ssh(false);
    ssh.arg(&head);
    let (other, _) = piped(ssh, directory, |_| Ok(()))?;
    let mut runners = 0;
    let (own, client) = piped(runner.nix_run(&words), directory, |_| {
        // The runner of the program, which has its output.
        for pid in children_of(leafd)? {
            runners = runners.max(peak(pid).unwrap_or(0));
        }
        Ok(())
    })?;
    let rate = |seconds: f64| format!("{:.0} MB/s", OUTPUT as f64 / 1e6 / seconds);
    let mb = |kib: u64| kib as f64 * 1024.0 / 1e6;
    rows.push(
        Row::report(
            "1 GiB that a program prints into a pipe, compared with `ssh` on the loopback",
            rate(own),
        )
        .against(rate(other), other / own),
    );
    let began = Instant::now();
    let mut ssh = sshd.ssh(true);
    ssh.arg(&head);
    let bytes = Screen::open(ssh)?.drained()?;
    let other = began.elapsed().as_secs_f64();
    ensure!(bytes >= OUTPUT, "ssh printed {bytes} bytes");
    let began = Instant::now();
    let bytes = Screen::open(runner.nix_run(&words))?.drained()?;
    let own = began.elapsed().as_secs_f64();
    ensure!(bytes >= OUTPUT, "leafctl printed {bytes} bytes");
    rows.push(
        Row::report(
            "the same with a terminal, compared with `ssh` on the loopback",
            rate(own),
        )
        .against(rate(other), other / own),
    );
    rows.push(Row::report(
        "peak memory for both: `leafd` more than before, the program's runner, `leafctl`",
        format!(
            "{:.1} MB, {:.1} MB, {:.1} MB",
            mb(peak(leafd)?.saturating_sub(before)),
            mb(runners),
            mb(client)
        ),
    ));
    Ok(rows)
}

/// Returns the peak of a process's resident memory, in KiB.
fn peak(pid: u32) -> Result<u64> {
    field(&PathBuf::from(format!("/proc/{pid}/status")), "VmHWM:")
}

/// Runs a command whose output goes into a pipe; returns the time in seconds and the peak of its memory in KiB. `watch` is called meanwhile,
/// every 16 MiB.
fn piped(
    mut command: Command,
    directory: &Path,
    mut watch: impl FnMut(u32) -> Result<()>,
) -> Result<(f64, u64)> {
    let shown = line(&command);
    let log = File::create(directory.join("said")).context("can't make a file")?;
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .with_context(|| format!("can't run {shown}"))?;
    let mut stdout = child.stdout.take().context("piped")?;
    let mut buffer = vec![0; 1 << 16];
    let (mut bytes, mut next, mut most) = (0, 0, 0);
    loop {
        match stdout.read(&mut buffer)? as u64 {
            0 => break,
            more => bytes += more,
        }
        if bytes > next {
            most = most.max(peak(child.id()).unwrap_or(0));
            watch(child.id())?;
            next += 16 << 20;
        }
    }
    let status = child.wait()?;
    let said = output(Command::new("tail").arg("-n3").arg(directory.join("said"))).unwrap_or_default();
    ensure!(
        status.success() && bytes == OUTPUT,
        "{shown} printed {bytes} bytes and ended with {status}: {said}"
    );
    Ok((began.elapsed().as_secs_f64(), most))
}

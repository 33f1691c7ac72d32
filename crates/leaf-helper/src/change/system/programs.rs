//! The programs that a switch runs: the system's own `switch-to-configuration`, and Nix's for its profile.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use leaf_core::change::ArmedSystem;
use leaf_core::error::chain;
use leaf_core::id::StorePath;
use leaf_host::process::{Bounds, RunError, run, run_into};
use rustix::fs::{FallocateFlags, MemfdFlags, memfd_create};
use rustix::io::Errno;
use tokio::process::Command;

use super::{PROFILE, Root};
use crate::error::{Error, Result};

/// The file with the output of the last switch, beside the records.
pub(super) const LOG: &str = "switch.log";
/// How much of the end of a switch's output is judged, in bytes.
const JUDGED: u64 = 256 * 1024;
/// The space that its file has on the disk from the beginning, in bytes.
const RESERVED: u64 = 1 << 20;
/// The time limit of Nix's programs.
const NIX_WITHIN: Duration = Duration::from_secs(60);
/// The time limit of the boot loader's installation.
const BOOT_WITHIN: Duration = Duration::from_secs(600);

/// How a run of `switch-to-configuration` ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub(super) code: Option<i32>,
    /// Whether it did not end in time. What it started may still run: it is killed with this process.
    pub(super) is_late: bool,
    /// The end of its output.
    pub(super) output: String,
}

/// What `switch-to-configuration` is run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// To activate a system.
    Test,
    /// To activate the system that ran before, without that system's own checks.
    Back,
    /// To set the boot loader.
    Boot,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Test | Self::Back => "test",
            Self::Boot => "boot",
        }
    }
}

/// Runs `SYSTEM/bin/switch-to-configuration VERB`, with its output in [`LOG`].
///
/// # Errors
/// If it can't be run.
pub(super) async fn switch_to(
    root: &Root,
    directory: &Path,
    path: &str,
    system: &StorePath,
    verb: Verb,
    within: Duration,
) -> Result<Ended> {
    let program = root.of(system, "bin/switch-to-configuration");
    tracing::info!(system = %system, verb = verb.as_str(), "runs switch-to-configuration");
    let mut log = match log(directory) {
        Ok(log) => log,
        // What has to be activated is, also on a full disk; what it prints goes to the journal all the same.
        Err(error) => {
            tracing::warn!(
                error = chain(&error),
                "the output of the switch is kept in memory"
            );
            in_memory()?
        }
    };
    let mut command = Command::new(&program);
    command
        .arg(verb.as_str())
        .current_dir("/")
        .env_clear()
        .env("PATH", path)
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8");
    if verb == Verb::Back {
        // A system that ran before is not to refuse that it runs again.
        command.env("NIXOS_NO_CHECK", "1");
    }
    let ended = run_into(
        command,
        log.try_clone().map_err(Error::io("open the log"))?,
        within,
    )
    .await;
    let output = tail(&mut log)?;
    for line in output.lines() {
        tracing::info!(output = line);
    }
    let (code, is_late) = match ended {
        Ok(status) => (status.code(), false),
        Err(RunError::TimedOut { .. }) => (None, true),
        Err(error) => return Err(Error::Failed(chain(&error))),
    };
    Ok(Ended {
        code,
        is_late,
        output,
    })
}

fn log(directory: &Path) -> Result<File> {
    let path = directory.join(LOG);
    // It is written anew, and belongs to root whatever it was.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(format!("remove {}", path.display()))(error));
        }
        _ => {}
    }
    let failed = || Error::io::<std::io::Error>(format!("create {}", path.display()));
    let log = OpenOptions::new()
        .read(true)
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed())?;
    // A program that can't print may end in the middle of an activation.
    match rustix::fs::fallocate(&log, FallocateFlags::KEEP_SIZE, 0, RESERVED) {
        // A file system without it.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(log),
        Err(errno) => Err(failed()(errno.into())),
    }
}

/// Returns a file that is in memory alone.
fn in_memory() -> Result<File> {
    let file = memfd_create("switch.log", MemfdFlags::CLOEXEC);
    let file = file.map_err(|errno| {
        Error::io::<std::io::Error>("keep the output of the switch in memory")(errno.into())
    })?;
    Ok(file.into())
}

fn tail(log: &mut File) -> Result<String> {
    let failed = || Error::io("read the log of the switch");
    let length = log.metadata().map_err(failed())?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(JUDGED)))
        .map_err(failed())?;
    let mut bytes = Vec::new();
    log.take(JUDGED).read_to_end(&mut bytes).map_err(failed())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Checks that Nix's database has both systems: the new one, and the one that the way back leads to.
///
/// # Errors
/// [`Error::Refused`] if not.
pub(super) async fn are_valid(system: &ArmedSystem) -> Result<()> {
    for path in [&system.toplevel, &system.previous] {
        nix(system, "nix-store", &["--check-validity", path.as_str()])
            .await
            .map_err(|why| Error::Refused(format!("{path} is not valid in this leaf's store: {why}")))?;
    }
    Ok(())
}

/// Makes the system the profile's, as its newest generation: boot loaders take only so many of the newest. It can be repeated: Nix makes
/// no generation where the present one has this system already.
///
/// # Errors
/// If Nix can't.
pub(super) async fn set_profile(root: &Root, system: &ArmedSystem) -> Result<()> {
    let profile = root.at(PROFILE);
    let profile = profile.to_string_lossy();
    nix(
        system,
        "nix-env",
        &["--profile", &profile, "--set", system.toplevel.as_str()],
    )
    .await
    .map_err(|why| Error::Failed(format!("can't set the profile {profile}: {why}")))
}

/// Removes generations of the profile.
///
/// # Errors
/// If Nix can't.
pub(super) async fn delete_generations(root: &Root, system: &ArmedSystem, numbers: &[u64]) -> Result<()> {
    let profile = root.at(PROFILE);
    let profile = profile.to_string_lossy();
    let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    let mut words = vec!["--profile", &*profile, "--delete-generations"];
    words.extend(numbers.iter().map(String::as_str));
    nix(system, "nix-env", &words)
        .await
        .map_err(|why| Error::Failed(format!("can't remove generations of {profile}: {why}")))
}

/// Has the system's own program set the boot loader. It can be repeated.
///
/// # Errors
/// If it fails.
pub(super) async fn set_boot_loader(root: &Root, directory: &Path, system: &ArmedSystem) -> Result<()> {
    let ended = switch_to(
        root,
        directory,
        &system.path,
        &system.toplevel,
        Verb::Boot,
        BOOT_WITHIN,
    )
    .await?;
    match ended.code {
        // The file systems of the boot loader, of the profile and of the records may be three.
        Some(0) => {
            rustix::fs::sync();
            Ok(())
        }
        code => Err(Error::Failed(format!(
            "can't set the boot loader: {}",
            failure(code, &ended.output)
        ))),
    }
}

/// Returns how a program failed, with the last lines of its output.
pub(super) fn failure(code: Option<i32>, output: &str) -> String {
    let end = code.map_or_else(
        || "it was ended by a signal".to_owned(),
        |code| format!("it ended with {code}"),
    );
    let lines: Vec<_> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join(" | ");
    if last.is_empty() {
        end
    } else {
        format!("{end}: {last}")
    }
}

async fn nix(system: &ArmedSystem, program: &str, arguments: &[&str]) -> std::result::Result<(), String> {
    let found = std::env::split_paths(&system.path)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file());
    let Some(found) = found else {
        return Err(format!("{program} is not in {}", system.path));
    };
    let mut command = Command::new(found);
    command
        .args(arguments)
        .current_dir("/")
        .env_clear()
        .env("PATH", &system.path)
        .env("HOME", "/root");
    match run(command, b"", Bounds::of_time(NIX_WITHIN)).await {
        Ok(finished) if finished.status.success() => Ok(()),
        Ok(finished) => Err(finished.failure()),
        Err(error) => Err(chain(&error)),
    }
}

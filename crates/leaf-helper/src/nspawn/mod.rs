//! systemd-nspawn, for both runtimes: its command line and its end. All flags are made here; callers can't add any.

pub(crate) mod cgroup;
mod console;
mod lock;
mod start;
pub(crate) mod supervise;

use std::ffi::OsString;
use std::io::PipeWriter;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use leaf_core::container::Exit;
use leaf_core::error::chain;
use leaf_core::host_op::RunSpec;
use leaf_core::runtime::Runtime;
use leaf_core::spec::Users;
use leaf_host::cgroup::Cgroup;
use leaf_host::process::ProcessHandle;
use rustix::process::{Pid, Signal, kill_process};
use rustix_libc_wrappers::process::SignalExt as _;
use tokio::process::{Child, Command};

use crate::Helper;
use crate::container::credentials;
use crate::container::id_maps::maps_users;
use crate::container::inputs::Inputs;
use crate::error::{Error, Result};
use crate::network::peer_link;
use crate::secrets::MemoryFile;
use crate::settings::check_path;

/// The exit code of systemd-nspawn for a container that reboots and must be started again; not a failure.
pub(crate) const RESTARTS: i32 = 133;

/// The path of `leaf-init` inside a container.
pub(crate) const INNER_INIT: &str = "/run/leaf/init";

/// The environment of systemd-nspawn itself, apart from `NOTIFY_SOCKET`.
pub(crate) const ENVIRONMENT: [(&str, &str); 2] = [
    ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin"),
    ("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1"),
];

/// The time limit for the kernel to thaw all processes of a container.
const THAWED_WITHIN: Duration = Duration::from_secs(5);

/// The connections of a systemd-nspawn process.
#[derive(Debug)]
pub(crate) struct Wiring {
    /// Whether it accepts a link with its present and its new name (since systemd 254).
    pub(crate) named_link: bool,
    /// The socket for its notifications (sd_notify(3)).
    pub(crate) notify_socket: Option<OsString>,
    /// The pipe for the console's output and its own messages; by default this process's output.
    pub(crate) console: Option<PipeWriter>,
}

/// A systemd-nspawn child process.
#[derive(Debug)]
pub(crate) struct Nspawn {
    child: Child,
    /// The secrets of the leaf that it reads when it starts.
    _given: Vec<MemoryFile>,
}

impl Nspawn {
    /// Waits for its end, and returns how the container ended. Cancel-safe.
    pub(crate) async fn ended(&mut self) -> Result<Exit> {
        let status = self
            .child
            .wait()
            .await
            .map_err(Error::io("wait for systemd-nspawn"))?;
        Ok(exit_of(status))
    }

    /// Makes it ask the container's init to halt, by SIGTERM; a second SIGTERM would end it at once. The processes of a
    /// paused container are thawed first, since frozen ones can't react.
    pub(crate) async fn ask_to_halt(&self, payload: &Cgroup) {
        if let Err(error) = payload.set_frozen(false, THAWED_WITHIN).await {
            tracing::debug!(error = chain(&error), "can't thaw the container's processes");
        }
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = id.and_then(Pid::from_raw) {
            // Fails only if the process has ended, which the waiting task notices.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

/// Asks a container's init to halt, by SIGRTMIN+3 (systemd(1), "Signals"), if this process belongs to the container.
pub(crate) fn ask_init_to_halt(init: u32, belongs: impl FnOnce(u32) -> bool) -> Result<()> {
    let failed = || Error::io(format!("signal the init, process {init}"));
    let gone = || Error::Failed(format!("the init, process {init}, has ended"));
    let process = ProcessHandle::open(init).map_err(failed())?.ok_or_else(gone)?;
    // The process id may be reused; the pidfd refers to the process that is checked here.
    if !belongs(init) {
        return Err(Error::Failed(format!(
            "process {init} does not belong to this container"
        )));
    }
    let halt = Signal::rt(3).ok_or_else(|| Error::Unsupported("this system has no SIGRTMIN+3".into()))?;
    match process.signal(halt).map_err(failed())? {
        true => Ok(()),
        false => Err(gone()),
    }
}

/// Returns how a container ended, from the exit status of its systemd-nspawn.
fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code { code },
        (None, Some(signal)) => Exit::Signal { signal },
        (None, None) => Exit::Lost,
    }
}

impl Helper {
    /// Starts systemd-nspawn for a container whose inputs are prepared.
    pub(crate) fn start_nspawn(&self, spec: &RunSpec, inputs: Inputs, wiring: Wiring) -> Result<Nspawn> {
        let program = &self.settings.nspawn;
        let mut command = Command::new(program);
        command
            .args(self.nspawn_arguments(spec, &inputs, wiring.named_link)?)
            .env_clear()
            .envs(ENVIRONMENT)
            .current_dir("/")
            .stdin(Stdio::null());
        if let Some(socket) = wiring.notify_socket {
            command.env("NOTIFY_SOCKET", socket);
        }
        if let Some(console) = wiring.console {
            let errors = console.try_clone().map_err(Error::io("share a pipe"))?;
            command
                .env("SYSTEMD_LOG_TARGET", "console")
                .stdout(Stdio::from(console))
                .stderr(Stdio::from(errors));
        }
        let started = command.spawn();
        let child = started.map_err(Error::io(format!("start {}", program.display())))?;
        Ok(Nspawn {
            child,
            _given: inputs.given,
        })
    }

    /// Returns the arguments of systemd-nspawn for a container whose inputs are prepared; `pairs`: whether it accepts a
    /// link with its present and its new name.
    fn nspawn_arguments(&self, spec: &RunSpec, inputs: &Inputs, pairs: bool) -> Result<Vec<OsString>> {
        let root = self.paths.roots.join(spec.name.as_str());
        let leaf_init = check_path(&self.settings.leaf_init)?;
        let private = spec.options.users == Users::Private;
        let mut arguments: Vec<String> = ["--quiet", "--settings=no", "--keep-unit"]
            .map(Into::into)
            .to_vec();
        arguments.push(match self.settings.runtime {
            Runtime::Systemd => "--register=yes".into(),
            Runtime::Nspawn => "--register=no".into(),
        });
        arguments.push(format!("--machine={}", spec.name));
        arguments.push(format!("--directory={}", check_path(&root)?));
        arguments.push("--private-network".into());
        match self.settings.runtime {
            // With both names, since it moves the link back at the end (systemd-nspawn(1)).
            Runtime::Systemd if pairs => {
                arguments.push(format!("--network-interface={}:eth0", peer_link(&spec.name)));
            }
            Runtime::Systemd => arguments.push(format!("--network-interface={}", peer_link(&spec.name))),
            // `--network-interface=` accepts only links that udev has initialized, and udev may not run here: the
            // supervisor moves the link.
            Runtime::Nspawn => {}
        }
        if private {
            arguments.extend(["--private-users=pick", "--private-users-ownership=auto"].map(Into::into));
        } else {
            arguments.push("--private-users=no".into());
        }
        arguments.extend(
            [
                "--notify-ready=yes",
                "--kill-signal=SIGRTMIN+3",
                "--link-journal=no",
                "--resolv-conf=off",
                "--timezone=off",
                "--console=read-only",
            ]
            .map(Into::into),
        );
        // Makes the store's files root's inside as well: programs such as sudo require that.
        let mapped = private && self.settings.runtime == Runtime::Systemd && store_maps_users()?;
        arguments.push(match mapped {
            true => "--bind-ro=/nix/store:/nix/store:idmap".into(),
            false => "--bind-ro=/nix/store".into(),
        });
        arguments.push(format!("--bind-ro={leaf_init}:{INNER_INIT}"));
        for (source, bind) in &inputs.binds {
            let source = check_path(source)?;
            let target = bind.target();
            arguments.push(match (bind.writable, private) {
                (false, _) => format!("--bind-ro={source}:{target}:norbind"),
                (true, true) => format!("--bind={source}:{target}:norbind,rootidmap"),
                (true, false) => format!("--bind={source}:{target}:norbind"),
            });
        }
        let shown = check_path(&inputs.shown.directory)?;
        let mapped = if inputs.shown.is_mapped { ",rootidmap" } else { "" };
        arguments.push(format!(
            "--bind-ro={shown}:{}:norbind{mapped}",
            credentials::INNER
        ));
        // In place of systemd-nspawn's own, where they would stay as they are.
        arguments.push(format!("--setenv=CREDENTIALS_DIRECTORY={}", credentials::INNER));
        arguments.push(format!("--setenv=HOST_ADDRESS={}", spec.network.host_address));
        arguments.push(format!(
            "--setenv=LOCAL_ADDRESS={}",
            spec.network.container_address
        ));
        for (variable, address) in [
            ("HOST_ADDRESS6", spec.network.host_address6),
            ("LOCAL_ADDRESS6", spec.network.container_address6),
        ] {
            if let Some(address) = address {
                arguments.push(format!("--setenv={variable}={address}"));
            }
        }
        for (variable, value) in &spec.options.environment {
            arguments.push(format!("--setenv={variable}={value}"));
        }
        for (credential, file) in &inputs.credentials {
            arguments.push(format!("--load-credential={credential}:{}", check_path(file)?));
        }
        arguments.extend(["--", INNER_INIT, "enter", "--"].map(Into::into));
        arguments.push(format!("{}/init", spec.toplevel));
        Ok(arguments.into_iter().map(Into::into).collect())
    }
}

fn store_maps_users() -> Result<bool> {
    let store = std::fs::File::open("/nix/store").map_err(Error::io("open /nix/store"))?;
    maps_users(&store)
}

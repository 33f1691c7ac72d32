//! The program of the root side: takes operations from leafd, or supervises one container.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use leaf_core::container::Exit;
use leaf_core::id::ContainerName;
use leaf_helper::Helper;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// The root side of a leaf.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one container until it ends, and outlives whoever started it
    Supervise(Container),
    /// Runs systemd-nspawn with a container in it, and ends as that does; a container's unit starts this
    Run(Container),
    /// Brings a running container to another system; a container's unit reloads by this
    Switch(Container),
    /// Carries out what leafd asks for, over the socket that systemd gives it
    Serve(Serve),
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// The settings, which must be root's
    #[arg(long, default_value = "/etc/cim-leaf/helper.toml")]
    config: PathBuf,
    /// Makes this socket, where there is no systemd to give one; only leafd's user may open it
    #[arg(long)]
    socket: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Container {
    /// The container
    name: ContainerName,
    /// What the helper that made it keeps of its settings
    #[arg(long)]
    record: PathBuf,
}

fn main() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match Cli::parse().command {
        Command::Supervise(args) => small()?.block_on(async {
            let exit = args.helper()?.supervise(&args.name).await?;
            tracing::info!(container = %args.name, "ended with {exit}");
            Ok(())
        }),
        Command::Run(args) => {
            let exit = small()?.block_on(async { anyhow::Ok(args.helper()?.run(&args.name).await?) })?;
            return Ok(as_it_ended(exit));
        }
        Command::Switch(args) => small()?.block_on(async { Ok(args.helper()?.switch(&args.name).await?) }),
        // Operations hold up a thread with files.
        Command::Serve(args) => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_all()
            .build()?
            .block_on(args.serve()),
    }
    .map(|()| ExitCode::SUCCESS)
}

impl Serve {
    async fn serve(&self) -> anyhow::Result<()> {
        let (helper, mut serving) = leaf_helper::config::load(&self.config)?;
        let given = listenfd::ListenFd::from_env().take_unix_listener(0);
        let listener = match (
            &self.socket,
            given.context("the socket that systemd gave can't be used")?,
        ) {
            (None, Some(listener)) => {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener)?
            }
            (Some(path), None) => {
                // Without a socket of systemd no call starts it again.
                serving.idle = None;
                bind(path, serving.client).with_context(|| format!("can't listen on {}", path.display()))?
            }
            (Some(_), Some(_)) => anyhow::bail!("systemd gave a socket, so --socket has no place"),
            (None, None) => {
                anyhow::bail!(
                    "systemd gave no socket: start leaf-helper.socket, or name a socket by --socket"
                )
            }
        };
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        };
        leaf_helper::serve(helper, listener, serving, stop)
            .await
            .context("the socket can't be used any more")
    }
}

/// Makes a socket that only one user may open.
fn bind(path: &Path, owner: u32) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    // What an earlier helper left there; whoever listens still is left alone.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        anyhow::bail!("another helper serves there");
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    // Until it has its owner and mode, nobody but root may open it.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    std::os::unix::fs::chown(path, Some(owner), None)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The exit code for systemd, which counts restarts by it: a signal as shells have it (bash(1), "Exit status"), but those that are
/// no failure (systemd.service(5), `SuccessExitStatus=`), and the one whose number would ask for a restart.
fn as_it_ended(exit: Exit) -> ExitCode {
    const ASKS_FOR_A_RESTART: i32 = 133;
    let no_failure = [
        SignalKind::hangup(),
        SignalKind::interrupt(),
        SignalKind::pipe(),
        SignalKind::terminate(),
    ];
    let code = match exit {
        Exit::Code { code } => code,
        Exit::Signal { signal } if no_failure.contains(&SignalKind::from_raw(signal)) => 0,
        Exit::Signal { signal } if 128 + signal != ASKS_FOR_A_RESTART => 128 + signal,
        Exit::Signal { .. } | Exit::Lost => 1,
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn small() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

impl Container {
    fn helper(&self) -> anyhow::Result<Helper> {
        Ok(Helper::of_record(&self.record)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_so_that_systemd_restarts_only_what_failed_or_asks_for_it() {
        let of = |exit| format!("{:?}", as_it_ended(exit));
        let code = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(of(Exit::Code { code: 0 }), code(0));
        assert_eq!(of(Exit::Code { code: 133 }), code(133));
        for signal in [1, 2, 13, 15] {
            assert_eq!(of(Exit::Signal { signal }), code(0), "{signal}");
        }
        assert_eq!(of(Exit::Signal { signal: 9 }), code(137));
        // SIGTRAP, whose number would be that of a restart.
        assert_eq!(of(Exit::Signal { signal: 5 }), code(1));
        assert_eq!(of(Exit::Lost), code(1));
    }
}

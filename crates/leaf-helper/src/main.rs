//! `leaf-helper`, the privileged program of a leaf: serves operations to leafd, or runs one container.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use leaf_core::container::Exit;
use leaf_core::id::ContainerName;
use leaf_helper::{Helper, NetworkChange};
use leaf_host::signals::Termination;
use tokio::net::UnixListener;
use tokio::signal::unix::SignalKind;

/// The privileged helper of a leaf.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one container until it ends, outliving the process that started this
    Supervise(Container),
    /// Run a container in systemd-nspawn, and exit as it does; started by a container's unit
    Run(Container),
    /// Switch a running container to another system in place; started by a reload of a container's unit
    Switch(Container),
    /// Carry out leafd's operations, received over the socket passed by systemd
    Serve(Serve),
    /// Watch over a change that can cut the leaf off
    #[command(subcommand)]
    Change(ChangeCommand),
    /// Answer systemd, which asks for the secret of a unit over the socket on standard input; started by leaf-secrets.socket
    GiveSecret(Config),
    /// Answer systemd so that the unit does not start, unless the secret was given; run when the program above has ended
    RefuseSecret,
    /// Close the network of all leaves' containers before another program removes nftables' rules, or open it again
    Network(Network),
}

#[derive(Debug, Subcommand)]
enum ChangeCommand {
    /// Wait until the open change is confirmed, and go back when its time is over or the host was rebooted; started by
    /// leaf-change.service
    Guard(Guard),
    /// Activate the system of the open change, and the one before if it goes back; started by leaf-change.service
    Switch(Guard),
}

#[derive(Debug, clap::Args)]
struct Guard {
    /// The state directory of changes
    #[arg(long, default_value = leaf_host::contract::CHANGE_DIRECTORY)]
    directory: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Network {
    /// Cut all containers off, or set the rules and connect them
    change: Change,
    /// The directory of the leaves' state directories
    #[arg(long, default_value = leaf_helper::LEAVES)]
    leaves: PathBuf,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Change {
    Close,
    Open,
}

impl From<Change> for NetworkChange {
    fn from(change: Change) -> Self {
        match change {
            Change::Close => Self::Close,
            Change::Open => Self::Open,
        }
    }
}

#[derive(Debug, clap::Args)]
struct Serve {
    #[command(flatten)]
    settings: Config,
    /// Create and serve this socket where systemd passes none; only leafd's user may open it
    #[arg(long)]
    socket: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Config {
    /// The settings file, which must belong to root
    #[arg(long, default_value = "/etc/cim-leaf/helper.toml")]
    config: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Container {
    /// The container's name
    name: ContainerName,
    /// The record of the helper that created the container
    #[arg(long)]
    record: PathBuf,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(leaf_host::log::stderr)
        .with_ansi(false)
        .init();
    carry_out(Cli::parse().command).unwrap_or_else(|error| {
        tracing::error!("{}", leaf_core::error::chain(error.as_ref()));
        ExitCode::FAILURE
    })
}

fn carry_out(command: Command) -> anyhow::Result<ExitCode> {
    leaf_host::process::write_no_core().context("can't set the limit of core files")?;
    match command {
        Command::Supervise(args) => small()?.block_on(async {
            let exit = args.helper()?.supervise(&args.name).await?;
            tracing::info!(container = %args.name, "the container ended with {exit}");
            Ok(())
        }),
        Command::Run(args) => {
            let exit = small()?.block_on(async { anyhow::Ok(args.helper()?.run(&args.name).await?) })?;
            return Ok(exit_code(exit));
        }
        Command::Network(args) => small()?
            .block_on(async { Ok(leaf_helper::change_network(&args.leaves, args.change.into()).await?) }),
        Command::Change(ChangeCommand::Guard(args)) => {
            small()?.block_on(async { Ok(leaf_helper::guard_change(&args.directory).await?) })
        }
        Command::Change(ChangeCommand::Switch(args)) => {
            small()?.block_on(async { Ok(leaf_helper::switch_system(&args.directory).await?) })
        }
        Command::GiveSecret(args) => {
            let store = leaf_helper::config::load_secrets(&args.config);
            leaf_helper::give_credential(&input()?, store.map_err(anyhow::Error::from))
                .context("a unit does not get its secret")
        }
        Command::RefuseSecret => {
            // systemd.exec(5)
            if std::env::var("SERVICE_RESULT").is_ok_and(|result| result != "success") {
                leaf_helper::refuse_credential(&input()?);
            }
            Ok(())
        }
        Command::Switch(args) => small()?.block_on(async { Ok(args.helper()?.switch(&args.name).await?) }),
        Command::Serve(args) => {
            // Before there are threads.
            let termination = Termination::receive().context("can't receive SIGTERM and SIGINT")?;
            // Operations block threads with file access.
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(4)
                .enable_all()
                .build()?
                .block_on(args.serve(termination))
        }
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Returns the connection on standard input.
fn input() -> std::io::Result<std::os::unix::net::UnixStream> {
    Ok(std::io::stdin().as_fd().try_clone_to_owned()?.into())
}

impl Serve {
    async fn serve(&self, mut termination: Termination) -> anyhow::Result<()> {
        let (helper, mut serving) = leaf_helper::config::load(&self.settings.config)?;
        let given = listenfd::ListenFd::from_env().take_unix_listener(0);
        let listener = match (
            &self.socket,
            given.context("can't use the socket passed by systemd")?,
        ) {
            (None, Some(listener)) => {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener)?
            }
            (Some(path), None) => {
                // Without a socket of systemd, no call would start the service again.
                serving.idle = None;
                bind(path, serving.client).with_context(|| format!("can't listen on {}", path.display()))?
            }
            (Some(_), Some(_)) => anyhow::bail!("systemd passed a socket, so --socket is not allowed"),
            (None, None) => {
                anyhow::bail!("systemd passed no socket: start leaf-helper.socket, or give one by --socket")
            }
        };
        let stop = async move {
            termination.next().await;
        };
        leaf_helper::serve(helper, listener, serving, stop)
            .await
            .context("the socket failed")
    }
}

/// Creates a socket that only one user may open.
fn bind(path: &Path, owner: u32) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    // Removes the socket of an earlier helper, unless a helper still listens on it.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        anyhow::bail!("another helper is listening on it");
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    // Only root may open it until its owner and mode are set.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    std::os::unix::fs::chown(path, Some(owner), None)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Returns the exit code for systemd, which decides on restarts by it: a signal is encoded as by shells (bash(1), "Exit
/// status"), except those that are not a failure (systemd.service(5), `SuccessExitStatus=`), and the one whose code
/// would request a reboot.
fn exit_code(exit: Exit) -> ExitCode {
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
    fn the_exit_code_makes_systemd_restart_only_after_a_failure_or_a_reboot() {
        let of = |exit| format!("{:?}", exit_code(exit));
        let code = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(of(Exit::Code { code: 0 }), code(0));
        assert_eq!(of(Exit::Code { code: 133 }), code(133));
        for signal in [1, 2, 13, 15] {
            assert_eq!(of(Exit::Signal { signal }), code(0), "{signal}");
        }
        assert_eq!(of(Exit::Signal { signal: 9 }), code(137));
        // SIGTRAP, whose code would request a reboot.
        assert_eq!(of(Exit::Signal { signal: 5 }), code(1));
        assert_eq!(of(Exit::Lost), code(1));
    }
}

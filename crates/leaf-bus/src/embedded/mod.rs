//! The embedded `nats-server`: leafd configures, starts, supervises and stops it.
//!
//! Start at [`EmbeddedServer::start`]. The server is a child process. It is restarted when it exits, and when the
//! daemon reports that it no longer acknowledges publishes ([`EmbeddedServer::restart`]). A server that a killed leafd
//! left behind is ended first, so that two servers never share a store.

mod config;
mod processes;
mod program;

use std::io::{self, Read as _, Seek as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use leaf_core::error::chain;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::identity::{Identity, IdentityError};
use config::Home;
pub use program::{NATS_SERVER_VARIABLE, NatsServer};

/// The first pause before a server that exited is restarted; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A server that ran for this long resets the pauses.
const GOOD_RUN: Duration = Duration::from_secs(3);
/// How many bytes of the log an error contains.
const LOG_TAIL_BYTES: u64 = 4096;

/// How often the server syncs what it has stored: its own default. It looks for unsynced data that often also while idle. A
/// power cut may lose what it acknowledged since, so whoever publishes what must not be lost keeps it for longer.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(120);

/// The longest message that the server accepts, in bytes: the default of nats-server. A hub's server must accept the same, since a
/// message that one of them refuses cuts the connection between them.
pub const MAX_PAYLOAD: u32 = 1 << 20;

/// The settings of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedSettings {
    /// The directory of its configuration, log and store; exclusively the server's.
    pub dir: PathBuf,
    /// The address that it listens on: one address of this host, never all. With port 0 the first start chooses a port
    /// and stores it.
    pub listen: SocketAddr,
    /// The program; if `None`, see [`NatsServer::find`].
    pub nats_server: Option<PathBuf>,
    /// The most bytes that JetStream may store on disk in all streams; if `None`, the size of the file system.
    pub max_file_store: Option<u64>,
    /// The most bytes that JetStream may store in memory.
    pub max_memory_store: u64,
    /// The longest message, in bytes.
    pub max_payload: u32,
    /// The hub that it connects to as a leaf node.
    pub hub: Option<Hub>,
    /// How long it may take from its start until it accepts connections, including recovery of the store.
    pub ready_within: Duration,
    /// How long it may take to exit after SIGTERM before it gets SIGKILL.
    pub stop_within: Duration,
}

impl EmbeddedSettings {
    /// Returns settings with defaults for the rest: 64 MiB in memory, messages of 1 MiB, a minute to start, 10 s to
    /// stop.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            dir: dir.into(),
            listen,
            nats_server: None,
            max_file_store: None,
            max_memory_store: 64 << 20,
            max_payload: MAX_PAYLOAD,
            hub: None,
            ready_within: Duration::from_secs(60),
            stop_within: Duration::from_secs(10),
        }
    }
}

/// A hub that the server connects to as a leaf node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// The URLs of its servers, without users: `tls://hub.example:7422`.
    pub urls: Vec<String>,
    /// The file with the leaf's credentials there, or with the seed of its NKEY.
    pub credentials: PathBuf,
    /// The CA certificates that are trusted (PEM); the system's if `None`.
    pub ca: Option<PathBuf>,
}

/// Why the server can't be run.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No program was found.
    #[error(
        "no nats-server was found on PATH: install version 2.12 or newer, or set its path with the setting `nats_server` or the variable {NATS_SERVER_VARIABLE}"
    )]
    NoServer,
    /// The program is too old.
    #[error("{} is nats-server {version}, and at least 2.12 is needed: install a newer one, or set its path with the setting `nats_server` or the variable {NATS_SERVER_VARIABLE}", path.display())]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// The program does not tell its version, since it fails.
    #[error("{} --version failed: {why}", path.display())]
    Fails {
        /// The program.
        path: PathBuf,
        /// The exit status or the signal, and the end of its output.
        why: String,
    },
    /// The program is not nats-server.
    #[error("{} is not a nats-server: --version prints {output:?}", path.display())]
    NotNatsServer {
        /// The program.
        path: PathBuf,
        /// The output of `--version`.
        output: String,
    },
    /// The credentials for the hub can't be read.
    #[error("can't read the credentials for the hub in {}: set nats.embedded.hub.credentials to the file that the hub's operator gave for this leaf", path.display())]
    HubCredentials {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The program can't be asked for its version.
    #[error("can't find out the version of {}", path.display())]
    Version {
        /// The program.
        path: PathBuf,
        /// Why not.
        source: leaf_host::process::RunError,
    },
    /// The program can't be run.
    #[error("can't run {}", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file or directory of the server can't be read or written.
    #[error("can't read or write {}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Another leafd runs its server in the directory.
    #[error("another process runs a nats-server in {}: stop it first, or give this leaf its own state directory", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The part of the configuration from the identity can't be read.
    #[error("can't write the users to the server's configuration")]
    Identity(#[from] IdentityError),
    /// A path can't be written to the configuration.
    #[error(
        "the path {path:?} can't be written to the server's configuration: it is not UTF-8, or has control characters"
    )]
    PathNotText {
        /// The path.
        path: PathBuf,
    },
    /// The address is all addresses.
    #[error(
        "the embedded server listens on one address of this host, not on all of them ({address}): use 127.0.0.1 or the leaf's address"
    )]
    ListensToTheWorld {
        /// The address.
        address: IpAddr,
    },
    /// The host does not have the address.
    #[error(
        "this host has no address {address} to listen on: add it to an interface (`ip address add {address}/32 dev lo`), or listen on 127.0.0.1"
    )]
    NoSuchAddress {
        /// The address.
        address: IpAddr,
    },
    /// Another process listens on the address.
    #[error("{address} is in use by {holder}: stop it, or let the embedded server listen on another port")]
    PortTaken {
        /// The address.
        address: SocketAddr,
        /// The process, as far as this user may know it.
        holder: String,
    },
    /// The address can't be listened on for another reason.
    #[error("can't listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's error.
        source: io::Error,
    },
    /// The server exited before it accepted connections.
    #[error("nats-server exited during its start ({status}); its log says: {log}")]
    Ended {
        /// The exit status.
        status: ExitStatus,
        /// The end of the server's log.
        log: String,
    },
    /// The server accepts no connections.
    #[error("nats-server accepted no connections within {within:?}; its log says: {log}")]
    NotReady {
        /// The time limit.
        within: Duration,
        /// The end of the server's log.
        log: String,
    },
    /// A server that an earlier leafd left behind can't be ended.
    #[error("can't end the nats-server that an earlier leafd left behind (process {pid})")]
    Leftover {
        /// The process id.
        pid: i32,
        /// The operating system's error.
        source: io::Error,
    },
}

/// The status of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddedStatus {
    /// The server accepts connections.
    Running {
        /// The process id.
        pid: u32,
        /// When that began.
        since: Timestamp,
    },
    /// The server exited or is being stopped, and is restarted.
    Restarting {
        /// The reason.
        reason: String,
    },
    /// The server was stopped and is not restarted.
    Stopped,
}

/// A running `nats-server`. Dropping it kills the server; [`stop`](Self::stop) shuts it down.
#[derive(Debug)]
pub struct EmbeddedServer {
    address: SocketAddr,
    restarts: mpsc::Sender<String>,
    reloads: mpsc::Sender<Reload>,
    stop: watch::Sender<bool>,
    status: watch::Receiver<EmbeddedStatus>,
    supervisor: JoinSet<()>,
}

impl EmbeddedServer {
    /// Starts the server and returns when it accepts connections and JetStream is on.
    ///
    /// # Errors
    /// [`EmbeddedError`]; no process is left running then.
    pub async fn start(settings: EmbeddedSettings, identity: &Identity) -> Result<Self, EmbeddedError> {
        let program = NatsServer::find(settings.nats_server.as_deref()).await?;
        let home = Home::prepare(&settings.dir).await?;
        processes::end_leftovers(&home.config, settings.stop_within).await?;
        let address = home.address(&settings)?;
        home.load_account_at_start(identity)?;
        home.write_config(&settings, address, identity)?;
        let supervisor = Supervisor {
            program,
            home,
            address,
            settings,
            identity: identity.clone(),
        };
        let child = supervisor.launch().await?;
        let (status_sender, status) = watch::channel(running(&child));
        let (restarts, restart_requests) = mpsc::channel(1);
        let (reloads, reload_requests) = mpsc::channel(16);
        let (stop, stopped) = watch::channel(false);
        tracing::info!(%address, version = supervisor.program.version, "nats-server is running");
        let mut tasks = JoinSet::new();
        tasks.spawn(supervisor.keep(child, restart_requests, reload_requests, stopped, status_sender));
        Ok(Self {
            address,
            restarts,
            reloads,
            stop,
            status,
            supervisor: tasks,
        })
    }

    /// The URL for clients, `nats://127.0.0.1:14222`. It stays the same across restarts.
    #[must_use]
    pub fn client_url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The server's status, which can be awaited.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<EmbeddedStatus> {
        self.status.clone()
    }

    /// Restarts the server, for example when it no longer acknowledges publishes. Returns at once; has no effect while
    /// it is restarting already.
    pub fn restart(&self, reason: impl Into<String>) {
        // A full queue holds an unprocessed request: one is enough.
        let _ = self.restarts.try_send(reason.into());
    }

    /// Returns a handle that makes the server reload its users.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        Reloader {
            reloads: self.reloads.clone(),
        }
    }

    /// Returns when the server's supervisor exited, which is a defect: the daemon should end.
    pub async fn unattended(&mut self) {
        while let Some(end) = self.supervisor.join_next().await {
            if let Err(e) = end {
                tracing::error!("the nats-server supervisor exited: {e}");
            }
        }
    }

    /// Stops the server: SIGTERM, the grace time of the settings, SIGKILL. Returns when it has exited.
    pub async fn stop(mut self) {
        // No receiver is left if the supervisor exited already.
        let _ = self.stop.send(true);
        self.unattended().await;
    }
}

fn running(child: &Child) -> EmbeddedStatus {
    EmbeddedStatus::Running {
        // A child that was just reaped has no pid; the supervisor notices at its next step.
        pid: child.id().unwrap_or_default(),
        since: Timestamp::now(),
    }
}

/// A request to reload, with the channel of its answer.
type Reload = oneshot::Sender<Result<(), EmbeddedError>>;

/// Makes the server reload its users without a restart; see [`Identity::revoke_container`].
#[derive(Debug, Clone)]
pub struct Reloader {
    reloads: mpsc::Sender<Reload>,
}

impl Reloader {
    /// Writes the configuration and reloads the server, which closes the connections of revoked users.
    ///
    /// # Errors
    /// [`EmbeddedError`] if the configuration can't be written or the server can't be signalled.
    pub async fn reload(&self) -> Result<(), EmbeddedError> {
        let (done, answer) = oneshot::channel();
        // A stopped server reads the configuration when it is started.
        if self.reloads.send(done).await.is_err() {
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }
}

/// The task behind [`EmbeddedServer`].
struct Supervisor {
    program: NatsServer,
    home: Home,
    address: SocketAddr,
    settings: EmbeddedSettings,
    identity: Identity,
}

impl Supervisor {
    async fn keep(
        self,
        first: Child,
        mut restarts: mpsc::Receiver<String>,
        mut reloads: mpsc::Receiver<Reload>,
        mut stopped: watch::Receiver<bool>,
        status: watch::Sender<EmbeddedStatus>,
    ) {
        let mut child = Some(first);
        tokio::select! {
            // An error means that the handle was dropped: stop the server as well.
            _ = stopped.wait_for(|stop| *stop) => {}
            () = self.keep_running(&mut child, &mut restarts, &mut reloads, &status) => {}
        }
        if let Some(child) = child.take() {
            self.end(child).await;
        }
        status.send_replace(EmbeddedStatus::Stopped);
    }

    /// Restarts the server whenever it exits. The child stays in `self` at every await, so that it can be stopped after
    /// this future is dropped.
    async fn keep_running(
        &self,
        place: &mut Option<Child>,
        restarts: &mut mpsc::Receiver<String>,
        reloads: &mut mpsc::Receiver<Reload>,
        status: &watch::Sender<EmbeddedStatus>,
    ) {
        let mut pause = FIRST_PAUSE;
        loop {
            let since = Instant::now();
            let mut reason = match place.as_mut() {
                None => "it is not running".to_owned(),
                Some(child) => loop {
                    tokio::select! {
                        exit = child.wait() => break match exit {
                            Ok(status) => format!("nats-server ended: {status}"),
                            Err(e) => format!("can't wait for nats-server: {e}"),
                        },
                        // The stop branch notices that the handle was dropped.
                        Some(reason) = restarts.recv() => break reason,
                        Some(done) = reloads.recv() => {
                            let _ = done.send(self.reload(child));
                        }
                    }
                },
            };
            if since.elapsed() >= GOOD_RUN {
                pause = FIRST_PAUSE;
            }
            loop {
                tracing::warn!(reason, "restarting nats-server");
                status.send_replace(EmbeddedStatus::Restarting { reason });
                if let Some(child) = place.as_mut() {
                    self.end_in_place(child).await;
                    *place = None;
                }
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                match self.launch().await {
                    Ok(child) => {
                        status.send_replace(running(&child));
                        *place = Some(child);
                        // Requested while the old process was exiting.
                        while restarts.try_recv().is_ok() {}
                        break;
                    }
                    Err(e) => reason = chain(&e),
                }
            }
        }
    }

    /// Writes the configuration and makes the server read it. A server that just exited reads it at its next start.
    fn reload(&self, child: &Child) -> Result<(), EmbeddedError> {
        self.home
            .write_config(&self.settings, self.address, &self.identity)?;
        let process = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(rustix::process::Pid::from_raw);
        let signalled = process.map_or(Ok(()), |process| {
            rustix::process::kill_process(process, rustix::process::Signal::HUP)
        });
        signalled.map_err(|e| EmbeddedError::Program {
            path: self.program.path.clone(),
            source: e.into(),
        })
    }

    /// Starts the server and waits until it accepts connections. On failure or if dropped, the child is killed.
    async fn launch(&self) -> Result<Child, EmbeddedError> {
        processes::end_leftovers(&self.home.config, self.settings.stop_within).await?;
        config::check_free(self.address)?;
        let failed = |source| EmbeddedError::File {
            path: self.home.log.clone(),
            source,
        };
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.home.log)
            .map_err(failed)?;
        let log_start = log.metadata().map_err(failed)?.len();
        let mut child = Command::new(&self.program.path)
            .arg("-c")
            .arg(&self.home.config)
            .current_dir(&self.home.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // For errors before the server opens its log.
            .stderr(log)
            // Its own process group: a Ctrl-C in a terminal is for leafd, which stops the server last.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| EmbeddedError::Program {
                path: self.program.path.clone(),
                source,
            })?;
        let within = self.settings.ready_within;
        let not_ready = tokio::select! {
            exit = child.wait() => EmbeddedError::Ended {
                status: exit.map_err(failed)?,
                log: self.log_since(log_start),
            },
            ready = timeout(within, self.answers()) => match ready {
                Ok(()) => return Ok(child),
                Err(_) => EmbeddedError::NotReady { within, log: self.log_since(log_start) },
            },
        };
        self.end(child).await;
        Err(not_ready)
    }

    /// Returns when the server accepts connections and JetStream is on.
    async fn answers(&self) {
        while !timeout(Duration::from_secs(2), self.says_info())
            .await
            .is_ok_and(|line| line.is_ok_and(|info| info.contains("\"jetstream\":true")))
        {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Connects and reads the server's first line, `INFO {…}`.
    async fn says_info(&self) -> io::Result<String> {
        let stream = TcpStream::connect(self.address).await?;
        let mut line = String::new();
        BufReader::new(stream.take(64 << 10)).read_line(&mut line).await?;
        Ok(line)
    }

    async fn end(&self, mut child: Child) {
        self.end_in_place(&mut child).await;
    }

    async fn end_in_place(&self, child: &mut Child) {
        // As long as there is an id the child is not reaped, so the id can't be another process's.
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            if let Err(e) = rustix::process::kill_process(pid, rustix::process::Signal::TERM) {
                tracing::warn!("can't send SIGTERM to nats-server: {e}");
            }
            if timeout(self.settings.stop_within, child.wait()).await.is_err() {
                tracing::warn!(grace = ?self.settings.stop_within, "nats-server did not exit in time; killing it");
            }
        }
        if let Err(e) = child.kill().await {
            tracing::debug!("nats-server has exited already: {e}");
        }
    }

    /// Returns the errors that the server has logged since then, or the last lines.
    fn log_since(&self, start: u64) -> String {
        let read = || -> io::Result<String> {
            let mut file = std::fs::File::open(&self.home.log)?;
            let len = file.metadata()?.len();
            file.seek(io::SeekFrom::Start(
                start.min(len).max(len.saturating_sub(LOG_TAIL_BYTES)),
            ))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let telling = |line: &&&str| {
            let marked = ["[ERR]", "[FTL]"].iter().any(|mark| line.contains(mark));
            marked || line.starts_with("nats-server:") || line.starts_with("panic:")
        };
        let mut chosen: Vec<&str> = lines.iter().filter(telling).copied().collect();
        if chosen.is_empty() {
            chosen = lines.iter().rev().take(3).rev().copied().collect();
        }
        if chosen.is_empty() {
            return "nothing".to_owned();
        }
        chosen.join(" / ")
    }
}

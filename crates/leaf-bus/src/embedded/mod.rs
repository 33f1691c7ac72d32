//! A `nats-server` of the leaf's own: configured, started, watched and ended by leafd.
//!
//! Start at [`EmbeddedServer::start`]. The server is a child process. It is started again when it dies, and when
//! the daemon says that it no longer answers publishes ([`EmbeddedServer::restart`]). A server that an earlier
//! leafd left behind (after a SIGKILL) is ended first, so two never share a store.

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

/// The first pause before a server that ended is started again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A server that ran for this long is a good one: the pauses begin anew.
const GOOD_RUN: Duration = Duration::from_secs(3);
/// How much of the log goes into an error.
const LOG_TAIL_BYTES: u64 = 4096;

/// How the server is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedSettings {
    /// The folder for its configuration, log and store; no one else's.
    pub dir: PathBuf,
    /// Where it listens: one address of this host, never all. Port 0 lets the first start choose one, which is
    /// kept.
    pub listen: SocketAddr,
    /// The program; without it, see [`NatsServer::find`].
    pub nats_server: Option<PathBuf>,
    /// The most bytes that JetStream may have on disk, over all streams; without it, the size of the file system.
    pub max_file_store: Option<u64>,
    /// The most bytes that JetStream may have in memory.
    pub max_memory_store: u64,
    /// The longest message, in bytes.
    pub max_payload: u32,
    /// How long it may take from its start until it takes connections, recovery of the store included.
    pub ready_within: Duration,
    /// How long it may take to end after SIGTERM; then SIGKILL.
    pub stop_within: Duration,
}

impl EmbeddedSettings {
    /// Returns settings with everything else at its default: 64 MiB in memory, messages of 1 MiB, a minute to
    /// start, 10 s to stop.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            dir: dir.into(),
            listen,
            nats_server: None,
            max_file_store: None,
            max_memory_store: 64 << 20,
            max_payload: 1 << 20,
            ready_within: Duration::from_secs(60),
            stop_within: Duration::from_secs(10),
        }
    }
}

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// There is none.
    #[error(
        "no nats-server was found on PATH: install one of at least 2.12, or name it with the setting `nats_server` or the variable {NATS_SERVER_VARIABLE}"
    )]
    NoServer,
    /// It can't do what is needed.
    #[error("{} is nats-server {version}, and at least 2.12 is needed: install a newer one, or name it with the setting `nats_server` or the variable {NATS_SERVER_VARIABLE}", path.display())]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// Another program.
    #[error("{} is not a nats-server: to --version it says {said:?}", path.display())]
    NotNatsServer {
        /// The program.
        path: PathBuf,
        /// What it printed.
        said: String,
    },
    /// It can't be run.
    #[error("can't run {}", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file or folder of the server can't be read or written.
    #[error("can't read or write {}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another leafd runs its server there.
    #[error("another process runs a nats-server in {}: end it first, or give this leaf a state folder of its own", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// What of the identity stands in its configuration can't be read.
    #[error("the server can't be told who its users are")]
    Identity(#[from] IdentityError),
    /// A path that can't stand in a configuration file.
    #[error(
        "the path {path:?} can't stand in the server's configuration: it is not UTF-8, or has control characters"
    )]
    PathNotText {
        /// The path.
        path: PathBuf,
    },
    /// It would listen on every interface.
    #[error(
        "the embedded server listens on one address of this host, not on all of them ({address}): take 127.0.0.1 or the leaf's address"
    )]
    ListensToTheWorld {
        /// The address.
        address: IpAddr,
    },
    /// The host has no such address.
    #[error(
        "this host has no address {address} to listen on: put it on an interface (`ip address add {address}/32 dev lo`), or listen on 127.0.0.1"
    )]
    NoSuchAddress {
        /// The address.
        address: IpAddr,
    },
    /// Somebody else listens there.
    #[error("{address} is taken by {holder}: end it, or let the embedded server listen on another port")]
    PortTaken {
        /// The address.
        address: SocketAddr,
        /// Who holds it, as far as this user may know.
        holder: String,
    },
    /// It can't be listened on, for another reason.
    #[error("can't listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// It ended before it took connections.
    #[error("nats-server ended at once ({status}); its log says: {log}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// It takes no connections.
    #[error("nats-server took no connections within {within:?}; its log says: {log}")]
    NotReady {
        /// How long was waited.
        within: Duration,
        /// The end of its log.
        log: String,
    },
    /// What an earlier leafd left behind can't be ended.
    #[error("can't end the nats-server that an earlier leafd left behind (process {pid})")]
    Leftover {
        /// The process.
        pid: i32,
        /// What the system says.
        source: io::Error,
    },
}

/// What the server does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddedStatus {
    /// It takes connections.
    Running {
        /// Its process.
        pid: u32,
        /// Since when.
        since: Timestamp,
    },
    /// It ended, or is being ended, and is started again.
    Restarting {
        /// Why.
        reason: String,
    },
    /// It was stopped, and stays so.
    Stopped,
}

/// A running `nats-server`. Dropping it kills the server; [`stop`](Self::stop) ends it properly.
#[derive(Debug)]
pub struct EmbeddedServer {
    address: SocketAddr,
    restarts: mpsc::Sender<String>,
    reloads: mpsc::Sender<Reload>,
    stop: watch::Sender<bool>,
    status: watch::Receiver<EmbeddedStatus>,
    keeper: JoinSet<()>,
}

impl EmbeddedServer {
    /// Starts the server and returns when it takes connections, with JetStream on.
    ///
    /// # Errors
    /// [`EmbeddedError`]; nothing is left running then.
    pub async fn start(settings: EmbeddedSettings, identity: &Identity) -> Result<Self, EmbeddedError> {
        let program = NatsServer::find(settings.nats_server.as_deref()).await?;
        let home = Home::prepare(&settings.dir).await?;
        processes::end_leftovers(&home.config, settings.stop_within).await?;
        let address = home.address(&settings)?;
        home.write_config(&settings, address, identity)?;
        let keeper = Keeper {
            program,
            home,
            address,
            settings,
            identity: identity.clone(),
        };
        let child = keeper.launch().await?;
        let (status_sender, status) = watch::channel(running(&child));
        let (restarts, restart_requests) = mpsc::channel(1);
        let (reloads, reload_requests) = mpsc::channel(16);
        let (stop, stopped) = watch::channel(false);
        tracing::info!(%address, version = keeper.program.version, "nats-server runs");
        let mut tasks = JoinSet::new();
        tasks.spawn(keeper.keep(child, restart_requests, reload_requests, stopped, status_sender));
        Ok(Self {
            address,
            restarts,
            reloads,
            stop,
            status,
            keeper: tasks,
        })
    }

    /// The address for clients: `nats://127.0.0.1:14222`. It stays the same over restarts.
    #[must_use]
    pub fn client_url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it does now, and a way to wait for a change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<EmbeddedStatus> {
        self.status.clone()
    }

    /// Has it ended and started again, because publishes go unanswered, say. Returns at once; while it restarts
    /// already, nothing more happens.
    pub fn restart(&self, reason: impl Into<String>) {
        // A full queue holds a request that has not been seen yet: one is enough.
        let _ = self.restarts.try_send(reason.into());
    }

    /// Returns what has it read anew who its users are.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        Reloader {
            reloads: self.reloads.clone(),
        }
    }

    /// Returns when nobody looks after the server any more, which is a defect: the daemon should end.
    pub async fn unattended(&mut self) {
        while let Some(end) = self.keeper.join_next().await {
            if let Err(e) = end {
                tracing::error!("the task that keeps nats-server ended: {e}");
            }
        }
    }

    /// Ends the server: SIGTERM, the time given in the settings, SIGKILL. Returns when it is gone.
    pub async fn stop(mut self) {
        // Nobody receives it if the keeper ended already.
        let _ = self.stop.send(true);
        self.unattended().await;
    }
}

fn running(child: &Child) -> EmbeddedStatus {
    EmbeddedStatus::Running {
        // A child that has just been reaped has no pid; the keeper notices at its next step.
        pid: child.id().unwrap_or_default(),
        since: Timestamp::now(),
    }
}

/// A request to reload, and who waits for it.
type Reload = oneshot::Sender<Result<(), EmbeddedError>>;

/// Has the server read anew who its users are, without a restart; see [`Identity::revoke_container`].
#[derive(Debug, Clone)]
pub struct Reloader {
    reloads: mpsc::Sender<Reload>,
}

impl Reloader {
    /// Writes the configuration and tells the server. It drops the connections of users who are refused now.
    ///
    /// # Errors
    /// [`EmbeddedError`] when the configuration can't be written, or the server can't be told.
    pub async fn reload(&self) -> Result<(), EmbeddedError> {
        let (done, answer) = oneshot::channel();
        // A server that was stopped is told when it is started.
        if self.reloads.send(done).await.is_err() {
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }
}

/// The task behind [`EmbeddedServer`].
struct Keeper {
    program: NatsServer,
    home: Home,
    address: SocketAddr,
    settings: EmbeddedSettings,
    identity: Identity,
}

impl Keeper {
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
            // An error means that the handle was dropped: stop as well.
            _ = stopped.wait_for(|stop| *stop) => {}
            () = self.keep_running(&mut child, &mut restarts, &mut reloads, &status) => {}
        }
        if let Some(child) = child.take() {
            self.end(child).await;
        }
        status.send_replace(EmbeddedStatus::Stopped);
    }

    /// Starts the server again whenever it ended. The child stays in its place at every await, so that whoever
    /// drops this future can end it.
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
                None => "it does not run".to_owned(),
                Some(child) => loop {
                    tokio::select! {
                        exit = child.wait() => break match exit {
                            Ok(status) => format!("nats-server ended: {status}"),
                            Err(e) => format!("nats-server can't be waited for: {e}"),
                        },
                        // The handle being gone is seen as a stop.
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
                tracing::warn!(reason, "nats-server is started again");
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
                        // Asked for while the old one was dying.
                        while restarts.try_recv().is_ok() {}
                        break;
                    }
                    Err(e) => reason = chain(&e),
                }
            }
        }
    }

    /// Writes the configuration and has the server read it. One that has just ended reads it at its next start.
    fn reload(&self, child: &Child) -> Result<(), EmbeddedError> {
        self.home
            .write_config(&self.settings, self.address, &self.identity)?;
        let process = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(rustix::process::Pid::from_raw);
        let told = process.map_or(Ok(()), |process| {
            rustix::process::kill_process(process, rustix::process::Signal::HUP)
        });
        told.map_err(|e| EmbeddedError::Program {
            path: self.program.path.clone(),
            source: e.into(),
        })
    }

    /// Starts the server and waits until it takes connections. When it fails, or is dropped, the child is killed.
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
            // What goes wrong before it has read where to log.
            .stderr(log)
            // Its own group: a Ctrl-C in a terminal is for leafd, which ends the server last.
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

    /// Returns when the server takes connections with JetStream on.
    async fn answers(&self) {
        while !timeout(Duration::from_secs(2), self.says_info())
            .await
            .is_ok_and(|said| said.is_ok_and(|info| info.contains("\"jetstream\":true")))
        {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Connects and reads the line `INFO {…}`, with which a server greets.
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
        // Not reaped yet as long as there is an id, so it can't be another process's.
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            if let Err(e) = rustix::process::kill_process(pid, rustix::process::Signal::TERM) {
                tracing::warn!("can't send SIGTERM to nats-server: {e}");
            }
            if timeout(self.settings.stop_within, child.wait()).await.is_err() {
                tracing::warn!(grace = ?self.settings.stop_within, "nats-server did not end in time and is killed");
            }
        }
        if let Err(e) = child.kill().await {
            tracing::debug!("nats-server is gone already: {e}");
        }
    }

    /// What the server logged since then that tells of an error; else the last lines.
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

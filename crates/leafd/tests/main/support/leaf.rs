//! A leaf of a test's own: `leafd` as a process, in a directory that goes with it.

mod messages;

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use leaf_bus::client::Client;
use leaf_bus::identity::Identity;
use leaf_core::address_pool::AddressPool;
use leaf_core::event::EventRecord;
use leaf_core::id::LeafName;
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};

use super::host::{helper, static_init};
use super::{LIMIT, remains, short_lives, until};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// How a leaf is to be. Begins with a name, a directory and an embedded server of its own, without containers.
pub(crate) struct Setup {
    name: LeafName,
    state_dir: Option<PathBuf>,
    identity_dir: Option<PathBuf>,
    settings: toml::Table,
    variables: Vec<(&'static str, PathBuf)>,
    containers: bool,
    program: PathBuf,
    /// The state directory of changes; one of its own that is not there by default.
    changes: Option<PathBuf>,
}

/// The host's programs that builders have: a shell, and bash with its libraries for what reads an environment.
fn sandbox_paths() -> String {
    let libraries = std::process::Command::new("ldd").arg("/bin/bash").output();
    let libraries = libraries.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let libraries = libraries.unwrap_or_default();
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    let paths: Vec<&str> = ["/bin/sh=/bin/busybox", "/bin/bash"]
        .into_iter()
        .chain(libraries)
        .collect();
    paths.join(" ")
}

impl Setup {
    pub(crate) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = LeafName::new(format!("t{:x}-{number}", std::process::id())).expect("a leaf's name");
        let mut setup = Self {
            name,
            state_dir: None,
            identity_dir: None,
            settings: toml::Table::new(),
            variables: Vec::new(),
            containers: false,
            program: own_program(),
            changes: None,
        };
        setup.put("log", "info,leafd=debug");
        setup.put("nats.embedded.address", "127.0.0.1");
        setup.put("nats.embedded.port", 0);
        setup.put("containers.enable", false);
        for (option, value) in [
            ("sandbox", "true"),
            ("sandbox-fallback", "false"),
            ("substituters", ""),
            ("build-users-group", ""),
            ("flake-registry", ""),
        ] {
            setup.put(&format!("nix.options.{option}"), value);
        }
        setup.put("nix.options.sandbox-paths", sandbox_paths());
        setup
    }

    pub(crate) fn name(&self) -> &LeafName {
        &self.name
    }

    /// Another name, for a second leaf of the same.
    pub(crate) fn named(mut self, name: &LeafName) -> Self {
        self.name = name.clone();
        self
    }

    /// Sets one setting, by its place: `events.reserve_bytes`.
    pub(crate) fn set(mut self, place: &str, value: impl Into<toml::Value>) -> Self {
        self.put(place, value);
        self
    }

    /// Returns a setting that is a text.
    pub(crate) fn get(&self, place: &str) -> anyhow::Result<String> {
        let mut parts = place.split('.');
        let first = parts.next().and_then(|part| self.settings.get(part));
        let found = parts.try_fold(first.context("a table")?, |table, part| table.get(part));
        let text = found.and_then(toml::Value::as_str);
        Ok(text.with_context(|| format!("{place} is set"))?.to_owned())
    }

    /// Has its changes that can cut it off in this directory.
    pub(crate) fn changes(mut self, directory: &Path) -> Self {
        self.changes = Some(directory.to_owned());
        self
    }

    /// Leaves containers to the leaf: it runs them where it can.
    pub(crate) fn containers_if_it_can(mut self) -> Self {
        self.settings.remove("containers");
        self
    }

    /// Sets an environment variable of `leafd` to a path.
    pub(crate) fn variable(mut self, name: &'static str, path: &Path) -> Self {
        self.variables.push((name, path.to_owned()));
        self
    }

    /// Gives containers credentials that live for seconds.
    pub(crate) fn container_life(mut self, life: Duration) -> anyhow::Result<Self> {
        self.program = std::env::current_exe()?;
        let seconds = life.as_secs().to_string();
        Ok(self.variable(short_lives::LIFE, Path::new(&seconds)))
    }

    /// A state directory that somebody else looks after.
    pub(crate) fn state_dir(mut self, dir: &Path) -> Self {
        self.state_dir = Some(dir.to_owned());
        self
    }

    /// A server that is there already, in place of an embedded one; its identity is kept in a directory.
    pub(crate) fn server(mut self, url: &str, [callers, streams]: [PathBuf; 2], identity_dir: &Path) -> Self {
        self.settings.remove("nats");
        self.identity_dir = Some(identity_dir.to_owned());
        self.set("nats.url", url)
            .set("nats.credentials", callers.display().to_string())
            .set("nats.stream_credentials", streams.display().to_string())
    }

    /// With containers, an address pool of its own, and a server on the leaf's address.
    pub(crate) fn containers(mut self) -> Self {
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let block = 100 + (std::process::id().wrapping_mul(7) + number) % 100;
        self.containers = true;
        if let Some(toml::Value::Table(nats)) = self.settings.get_mut("nats")
            && let Some(toml::Value::Table(embedded)) = nats.get_mut("embedded")
        {
            embedded.remove("address");
        }
        let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../containers");
        let mut setup = self
            .set("containers.enable", true)
            .set("containers.address_pool", format!("10.{block}.0.0/16"))
            .set("containers.helper", helper().display().to_string())
            .set("containers.templates", templates.display().to_string());
        if let Some(init) = static_init() {
            setup.put("containers.leaf_init", init.display().to_string());
        }
        setup
    }

    fn put(&mut self, place: &str, value: impl Into<toml::Value>) {
        let mut table = &mut self.settings;
        let mut parts: Vec<&str> = place.split('.').collect();
        let last = parts.pop().expect("a place has a name");
        for part in parts {
            table = table
                .entry(part)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()))
                .as_table_mut()
                .expect("a place in a table");
        }
        table.insert(last.to_owned(), value.into());
    }

    /// Starts the leaf and returns when it takes commands.
    pub(crate) async fn start(self) -> anyhow::Result<TestLeaf> {
        let mut leaf = self.launch().await?;
        leaf.ready().await?;
        Ok(leaf)
    }

    /// Writes the settings file.
    pub(crate) fn write(&self, file: &Path, state_dir: &Path) -> anyhow::Result<toml::Table> {
        let mut settings = self.settings.clone();
        settings.insert("name".into(), self.name.to_string().into());
        settings.insert("state_dir".into(), state_dir.display().to_string().into());
        std::fs::write(file, toml::to_string(&settings)?)?;
        Ok(settings)
    }

    /// Starts the leaf and returns at once.
    pub(crate) async fn launch(self) -> anyhow::Result<TestLeaf> {
        let directory = tempfile::Builder::new().prefix("leafd-").tempdir()?;
        let state_dir = self
            .state_dir
            .clone()
            .unwrap_or_else(|| directory.path().join("state"));
        let settings = self.write(&directory.path().join("leafd.toml"), &state_dir)?;
        if let (Some(dir), Some(url)) = (&self.identity_dir, settings["nats"].get("url")) {
            // What an embedded server's leaf writes itself.
            std::fs::create_dir_all(&state_dir)?;
            std::fs::set_permissions(&state_dir, std::fs::Permissions::from_mode(0o700))?;
            let url = url.as_str().expect("set above");
            Identity::open_or_create(dir, &self.name)?.write_context(&state_dir.join("context.json"), url)?;
        }
        let identity_dir = self.identity_dir.unwrap_or_else(|| state_dir.join("identity"));
        let changes = self.changes.unwrap_or_else(|| directory.path().join("changes"));
        let mut leaf = TestLeaf {
            name: self.name,
            changes,
            identity_dir,
            state_dir,
            pool: self.containers.then(|| {
                settings["containers"]["address_pool"]
                    .as_str()
                    .expect("set above")
                    .to_owned()
            }),
            directory,
            variables: self.variables,
            program: self.program,
            runs: 0,
            child: None,
            notify: None,
            said_to_systemd: String::new(),
            client: None,
        };
        leaf.launch_again()?;
        Ok(leaf)
    }
}

/// A leaf that runs as a process of its own. All of it ends with the test.
pub(crate) struct TestLeaf {
    pub(crate) name: LeafName,
    pub(crate) state_dir: PathBuf,
    identity_dir: PathBuf,
    changes: PathBuf,
    pool: Option<String>,
    directory: tempfile::TempDir,
    variables: Vec<(&'static str, PathBuf)>,
    program: PathBuf,
    runs: u32,
    child: Option<Child>,
    notify: Option<UnixDatagram>,
    /// What it told systemd when it was ready: `READY=1`, `STATUS=…`.
    said_to_systemd: String,
    client: Option<Client>,
}

impl TestLeaf {
    /// Starts a leaf with an embedded server and nothing special.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        Setup::new().start().await
    }

    // ---- the process -----------------------------------------------------------------------------------------

    /// Starts `leafd` once more, which must not run, and returns when it takes commands.
    pub(crate) async fn start_again(&mut self) -> anyhow::Result<()> {
        self.launch_again()?;
        self.ready().await
    }

    /// Starts `leafd` once more, which must not run, and returns at once.
    pub(crate) fn launch_again(&mut self) -> anyhow::Result<()> {
        ensure!(self.child.is_none(), "it runs already");
        self.runs += 1;
        let socket = self.directory.path().join(format!("notify.{}", self.runs));
        self.notify = Some(UnixDatagram::bind(&socket)?);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--config").arg(self.settings_file());
        // An earlier one knows nothing of changes.
        if self.program == own_program() {
            command.arg("--changes").arg(&self.changes);
        }
        let child = command
            .env("NOTIFY_SOCKET", &socket)
            .envs(self.variables.iter().map(|(name, path)| (name, path)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// Starts it once more if it has ended by itself, as systemd does; returns whether it had.
    pub(crate) fn launch_again_if_ended(&mut self) -> anyhow::Result<bool> {
        let ended = match &mut self.child {
            Some(child) => child.try_wait()?.is_some(),
            None => true,
        };
        if ended {
            self.child = None;
            self.launch_again()?;
        }
        Ok(ended)
    }

    /// Starts run another program from now on.
    pub(crate) fn run_program(&mut self, program: &Path) {
        program.clone_into(&mut self.program);
    }

    /// Starts run the `leafd` under test from now on.
    pub(crate) fn run_own_program(&mut self) {
        self.program = own_program();
    }

    /// Waits until it says that it is ready; fails at once if it ends before.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        let notify = self.notify.as_ref().context("it was not started")?;
        let child = self.child.as_mut().context("it was not started")?;
        let said = async {
            let mut buffer = [0; 4096];
            loop {
                let length = notify.recv(&mut buffer).await?;
                let text = String::from_utf8_lossy(&buffer[..length]);
                if text.lines().any(|line| line == "READY=1") {
                    return anyhow::Ok(text.into_owned());
                }
            }
        };
        let outcome = tokio::select! {
            said = tokio::time::timeout(LIMIT, said) => said.map_err(|_| "it is not ready".to_owned()),
            ended = child.wait() => Err(format!("it ended before it was ready ({ended:?})")),
        };
        match outcome {
            Ok(said) => {
                self.said_to_systemd = said?;
                Ok(())
            }
            Err(why) => {
                if let Ok(Some(_)) = child.try_wait() {
                    self.child = None;
                }
                bail!("{why}; its log:\n{}", self.log_end())
            }
        }
    }

    /// What it told systemd when it was ready last, as lines.
    pub(crate) fn said_to_systemd(&self) -> &str {
        &self.said_to_systemd
    }

    /// Its process, if it was started and not waited for.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) -> anyhow::Result<()> {
        let pid = self.pid().context("it does not run")?;
        kill(pid, signal)
    }

    /// Waits until it has ended, and returns how.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let child = self.child.as_mut().context("it does not run")?;
        let status = tokio::time::timeout(LIMIT, child.wait())
            .await
            .with_context(|| format!("it did not end within {LIMIT:?}"))??;
        self.child = None;
        Ok(status)
    }

    /// Waits until it has ended by itself, with an error that says all of this.
    pub(crate) async fn refuses(&mut self, says: &[&str]) -> anyhow::Result<()> {
        let ended = self.ended().await;
        let status = self.with_log(ended)?;
        let (log, end) = (self.log(), self.log_end());
        let last = log
            .lines()
            .rfind(|line| line.starts_with("leafd: "))
            .unwrap_or_default();
        ensure!(
            !status.success() && status.code().is_some(),
            "{status}; its log:\n{end}"
        );
        for text in says {
            ensure!(
                last.contains(text),
                "it does not say {text:?}, but {last:?}; its log:\n{end}"
            );
        }
        Ok(())
    }

    /// Starts the program a second time with the same settings; returns how it ended and what it said last.
    pub(crate) async fn second(&self) -> anyhow::Result<(ExitStatus, String)> {
        let run = Command::new(env!("CARGO_BIN_EXE_leafd"))
            .arg("run")
            .arg("--config")
            .arg(self.settings_file())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(LIMIT, run)
            .await
            .context("a second leafd ends")??;
        let said = String::from_utf8_lossy(&output.stderr);
        Ok((output.status, said.lines().last().unwrap_or_default().to_owned()))
    }

    /// Ends it by SIGTERM, and returns how it ended.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(rustix::process::Signal::TERM)?;
        self.ended().await
    }

    /// Ends it by SIGKILL. Its server lives on, until the next start ends it.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(rustix::process::Signal::KILL)?;
        self.ended().await.map(drop)
    }

    /// Stops it, and starts it again.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        let status = self.stop().await?;
        ensure!(status.success(), "{status}; its log:\n{}", self.log_end());
        self.start_again().await
    }

    /// Returns the process of its embedded server.
    pub(crate) fn nats_pid(&self) -> Option<u32> {
        remains::processes_of(&self.state_dir)
            .into_iter()
            .find(|pid| remains::name_of(*pid) == "nats-server")
    }

    /// Kills its embedded server by SIGKILL, and returns what it was.
    pub(crate) async fn kill_nats(&self) -> anyhow::Result<u32> {
        let pid = until("a nats-server runs", async || Ok(self.nats_pid())).await?;
        kill(pid, rustix::process::Signal::KILL)?;
        Ok(pid)
    }

    /// All processes that have to do with its state directory (but itself): server, jobs. Supervisors are not among
    /// them.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let own = self.pid();
        remains::processes_of(&self.state_dir)
            .into_iter()
            .filter(|pid| Some(*pid) != own)
            .collect()
    }

    /// Connects anew for the next command: its keys or its address are others now.
    pub(crate) fn forget_client(&mut self) {
        self.client = None;
    }

    // ---- files -----------------------------------------------------------------------------------------------

    /// The settings file.
    pub(crate) fn settings_file(&self) -> PathBuf {
        self.directory.path().join("leafd.toml")
    }

    /// The leaf's address in the pool of its containers.
    pub(crate) fn address(&self) -> anyhow::Result<Ipv4Addr> {
        let pool = self.pool.as_deref().context("it runs no containers")?;
        let pool: AddressPool = toml::Value::from(pool).try_into()?;
        Ok(pool.leaf_address())
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("leafd.log")
    }

    /// All that it printed so far, of all runs.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The end of its log, for people, without what it recorded.
    pub(crate) fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| !line.contains(": recorded sequence="))
            .collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Adds the end of its log to an error, after the cause.
    pub(crate) fn with_log<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        const LOG: &str = "; the log:\n";
        result.map_err(|error| match format!("{error:#}") {
            text if text.contains(LOG) => error,
            text => anyhow::Error::msg(format!("{text}{LOG}{}", self.log_end())),
        })
    }

    /// Waits until it has logged this text.
    pub(crate) async fn logged(&self, text: &str) -> anyhow::Result<()> {
        let what = format!("the log says {text:?}");
        self.with_log(until(&what, async || Ok(self.log().contains(text).then_some(()))).await)
    }

    /// The journal's file.
    pub(crate) fn journal_file(&self) -> PathBuf {
        self.state_dir.join(leaf_journal::FILE)
    }

    /// A directory of the test's own, outside the state directory.
    pub(crate) fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// Its context file, for leafctl and clients.
    pub(crate) fn context_file(&self) -> PathBuf {
        self.state_dir.join("context.json")
    }

    /// Its identity: makes any credentials.
    pub(crate) fn identity(&self) -> anyhow::Result<Identity> {
        Ok(Identity::open_or_create(&self.identity_dir, &self.name)?)
    }
}

fn own_program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_leafd"))
}

/// A header of an event.
pub(crate) fn header_of<'a>(event: &'a EventRecord, name: &str) -> Option<&'a str> {
    event.headers.get(name)
}

fn kill(pid: u32, signal: rustix::process::Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    Ok(rustix::process::kill_process(pid.context("a process")?, signal)?)
}

impl Drop for TestLeaf {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.start_kill();
            remains::wait_for(&mut child);
        }
        remains::clear(&self.name, &self.state_dir, self.pool.as_deref());
        // What works with files beside it: a build of a test's own expression.
        remains::end_processes(self.directory.path());
    }
}

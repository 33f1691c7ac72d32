//! A running fleet as other processes of the same user reach it, such as a second terminal: by a unix socket on which each
//! connection carries one request and its answer, a line of JSON each.
//!
//! | request | answer |
//! |---|---|
//! | `{"run": COMMAND, "on": MACHINE, "limit_s": SECONDS}` | `{"status": …, "stdout": …, "stderr": …}`; the command is killed if the connection ends before |
//! | `{"link": MACHINE, "change": TEXT}` | `{}` |
//! | `{"console": MACHINE}` | `{"socket": PATH}` |
//! | any, in vain | `{"error": TEXT}` |

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::Fleet;
use crate::shell::Console;
use crate::socket::JsonSocket;
use crate::{Host, LinkChange, Network, Output, Running, cost, machine, pause};

/// The beginning of the name of a fleet's directory.
const PREFIX: &str = "leaf-fleet-";
/// How long an answer takes at most that does not wait for a command.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a shell can be open.
const SHELL: Duration = Duration::from_secs(12 * 60 * 60);

/// A fleet that other processes reach. It ends when this value is dropped.
#[derive(Debug)]
pub struct Served {
    directory: tempfile::TempDir,
    inputs: Sender<Input>,
    /// Returns the processor time of the machines.
    owner: Option<JoinHandle<Duration>>,
}

/// The machines of a fleet, which one thread owns.
#[derive(Debug)]
struct Machines {
    network: Network,
    hosts: BTreeMap<String, Host>,
}

enum Input {
    Joined(UnixStream),
    /// Something is done with the machines.
    Act(Box<dyn FnOnce(&Machines) + Send>),
    End,
}

impl Served {
    /// Lets other processes reach a fleet.
    ///
    /// # Errors
    /// If its socket can't be made.
    pub fn new(fleet: Fleet) -> Result<Self> {
        let hosts = std::iter::once(fleet.hub).chain(fleet.leaves);
        Self::serve(Machines {
            network: fleet.network,
            hosts: hosts.map(|host| (host.name().to_owned(), host)).collect(),
        })
    }

    fn serve(machines: Machines) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir()
            .context("can't make a temporary directory")?;
        let listener = UnixListener::bind(socket(directory.path())).context("can't make a fleet's socket")?;
        let (inputs, received) = mpsc::channel();
        let joins = inputs.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // The receiver is gone: the fleet has ended.
                if stream.is_ok_and(|stream| joins.send(Input::Joined(stream)).is_err()) {
                    break;
                }
            }
        });
        let clients = inputs.clone();
        let owner = std::thread::spawn(move || {
            own(&machines, received, &clients);
            drop(machines);
            cost::of_this_thread()
        });
        Ok(Self {
            directory,
            inputs,
            owner: Some(owner),
        })
    }

    /// Returns the fleet as any process reaches it.
    pub fn reached(&self) -> Reached {
        Reached::at(self.directory.path().to_owned())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.inputs.send(Input::End);
        if let Some(Ok(spent)) = self.owner.take().map(JoinHandle::join) {
            cost::add(spent);
        }
        // Wakes the listening thread, which then notices that the receiver is gone.
        let _ = UnixStream::connect(socket(self.directory.path()));
    }
}

/// Does with the machines what the inputs say, until the fleet ends.
fn own(machines: &Machines, received: Receiver<Input>, clients: &Sender<Input>) {
    for input in received {
        match input {
            Input::Joined(stream) => {
                let client = Client {
                    stream,
                    inputs: clients.clone(),
                };
                std::thread::spawn(move || client.serve());
            }
            Input::Act(act) => act(machines),
            Input::End => break,
        }
    }
}

impl Machines {
    fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.get(name).with_context(|| {
            let names: Vec<&str> = self.hosts.keys().map(String::as_str).collect();
            format!("there is no machine {name}, only: {}", names.join(", "))
        })
    }
}

/// A connection of another process.
struct Client {
    stream: UnixStream,
    inputs: Sender<Input>,
}

impl Client {
    fn serve(self) {
        let answer = match self.answer() {
            Ok(answer) => answer,
            Err(error) => json!({"error": format!("{error:#}")}),
        };
        // Nobody waits for it any more where this fails.
        let _ = writeln!(&self.stream, "{answer}");
    }

    /// Reads the request, and returns the answer to it.
    fn answer(&self) -> Result<Value> {
        let mut line = String::new();
        let mut reader = BufReader::new(&self.stream);
        reader.read_line(&mut line).context("can't read a request")?;
        let request: Value = serde_json::from_str(&line).context("a request is a line of JSON")?;
        let text = |key: &str| request[key].as_str().map(str::to_owned);
        if let (Some(machine), Some(change)) = (text("link"), text("change")) {
            let change = change.parse()?;
            self.act(move |machines| machines.network.change(&machine, change))?;
            return Ok(json!({}));
        }
        if let Some(machine) = text("console") {
            let socket = self.act(move |machines| {
                let host = machines.host(&machine)?;
                Ok(machine::shell_socket(host.directory()))
            })?;
            return Ok(json!({"socket": socket}));
        }
        if let (Some(line), Some(machine), Some(seconds)) =
            (text("run"), text("on"), request["limit_s"].as_u64())
        {
            let output = self.run(machine, line, Duration::from_secs(seconds))?;
            return Ok(json!({"status": output.status, "stdout": output.stdout, "stderr": output.stderr}));
        }
        bail!("{line:?} is not a request of a fleet")
    }

    /// Does something with the machines, which belong to another thread.
    fn act<T: Send + 'static>(&self, act: impl FnOnce(&Machines) -> Result<T> + Send + 'static) -> Result<T> {
        let (done, result) = mpsc::channel();
        let act = Box::new(move |machines: &Machines| {
            let _ = done.send(act(machines));
        });
        let asked = self.inputs.send(Input::Act(act)).is_ok();
        let result = asked.then(|| result.recv().ok()).flatten();
        result.context("the fleet has ended")?
    }

    /// Runs a command, and kills it where the client goes away.
    fn run(&self, machine: String, line: String, limit: Duration) -> Result<Output> {
        let command = self.act(move |machines| {
            let pid = machines.host(&machine)?.start_within(&line, limit)?.pid;
            Ok(Arc::new(Command {
                machine,
                line,
                pid,
                limit,
                deadline: Instant::now() + limit,
            }))
        })?;
        let mut step = Duration::from_millis(5);
        // In between the machines are free for other clients.
        loop {
            let running = Arc::clone(&command);
            if let Some(output) = self.act(move |machines| running.on(machines)?.ended())? {
                return Ok(output);
            }
            let running = Arc::clone(&command);
            if Instant::now() >= command.deadline {
                return self.act(move |machines| running.on(machines)?.wait());
            }
            if is_gone(&self.stream) {
                return self.act(move |machines| running.on(machines)?.kill());
            }
            pause(step);
            step = (step * 3 / 2).min(Duration::from_millis(200));
        }
    }
}

/// A running command.
struct Command {
    machine: String,
    line: String,
    pid: i64,
    limit: Duration,
    deadline: Instant,
}

impl Command {
    fn on<'a>(&self, machines: &'a Machines) -> Result<Running<'a>> {
        Ok(Running {
            host: machines.host(&self.machine)?,
            command: self.line.clone(),
            pid: self.pid,
            limit: self.limit,
            deadline: self.deadline,
        })
    }
}

/// Returns whether the other end of a connection is closed.
fn is_gone(client: &UnixStream) -> bool {
    if client.set_nonblocking(true).is_err() {
        return true;
    }
    let mut client_reader = client;
    let read = client_reader.read(&mut [0]);
    let _ = client.set_nonblocking(false);
    match read {
        Ok(count) => count == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("control")
}

/// A fleet that runs in this process or in another.
#[derive(Debug, Clone)]
pub struct Reached {
    directory: PathBuf,
}

impl Reached {
    /// Returns the fleet with this directory.
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Returns the only fleet of this user that is running.
    ///
    /// # Errors
    /// If there is none, or if there are several.
    pub fn only_one() -> Result<Self> {
        Self::only_one_in(&std::env::temp_dir())
    }

    fn only_one_in(directory: &Path) -> Result<Self> {
        let own = rustix::process::geteuid().as_raw();
        let entries =
            std::fs::read_dir(directory).with_context(|| format!("can't read {}", directory.display()))?;
        let mut running: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
            .filter(|entry| entry.metadata().is_ok_and(|file| file.uid() == own))
            .map(|entry| entry.path())
            // What is left of a fleet that was killed answers nobody.
            .filter(|path| UnixStream::connect(socket(path)).is_ok())
            .collect();
        running.sort();
        match running.as_slice() {
            [] => bail!("no fleet is running; `cargo xtask host fleet` starts one"),
            [one] => Ok(Self::at(one.clone())),
            several => {
                let names: Vec<_> = several.iter().map(|path| path.display().to_string()).collect();
                bail!(
                    "several fleets are running; choose one by --fleet: {}",
                    names.join(", ")
                )
            }
        }
    }

    /// Returns its directory, by which other processes find it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs a bash command line on a machine, as [`Host::run_within`].
    ///
    /// # Errors
    /// As [`Host::run_within`]; or if there is no such machine, or the fleet has ended.
    pub fn run(&self, machine: &str, command: &str, limit: Duration) -> Result<Output> {
        // The fleet ends the command at its time limit, and then answers.
        let deadline = Instant::now() + limit + ANSWER;
        let mut running = self.start(machine, command, limit)?;
        running.ended(deadline)?.context("the fleet does not answer")
    }

    /// Changes the link of a machine.
    ///
    /// # Errors
    /// As [`Network::change`].
    pub fn link(&self, machine: &str, change: LinkChange) -> Result<()> {
        self.ask(&json!({"link": machine, "change": change.to_string()}))
            .map(|_| ())
    }

    /// Runs bash on a machine, at the terminal of this process, as [`crate::shell::shell`].
    ///
    /// # Errors
    /// As [`crate::shell::shell`].
    pub fn shell(&self, machine: &str) -> Result<()> {
        let answer = self.ask(&json!({"console": machine}))?;
        let console = Console::open(Path::new(
            answer["socket"].as_str().context("a console has a socket")?,
        ))?;
        let mut bash = self.start(machine, &console.bash(), SHELL)?;
        console.attend(
            || Ok(bash.ended(Instant::now() + Duration::from_millis(1))?.is_some()),
            |command| self.run(machine, command, ANSWER).map(|_| ()),
        )
    }

    fn start(&self, machine: &str, command: &str, limit: Duration) -> Result<Started> {
        let mut socket = self.connect()?;
        socket.send(
            b"",
            &json!({"run": command, "on": machine, "limit_s": limit.as_secs()}),
        )?;
        Ok(Started { socket })
    }

    fn ask(&self, request: &Value) -> Result<Value> {
        let mut socket = self.connect()?;
        socket.send(b"", request)?;
        let answer = answer(&mut socket, Instant::now() + ANSWER)?;
        answer.context("the fleet does not answer")
    }

    fn connect(&self) -> Result<JsonSocket> {
        JsonSocket::connect(&socket(&self.directory)).context("no fleet is running there")
    }
}

/// A command that was started on a machine; it is killed where this is dropped before its end.
struct Started {
    socket: JsonSocket,
}

impl Started {
    /// Returns its output if it ends before the deadline. Must not be called again after that.
    fn ended(&mut self, deadline: Instant) -> Result<Option<Output>> {
        let Some(answer) = answer(&mut self.socket, deadline)? else {
            return Ok(None);
        };
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        let status = answer["status"]
            .as_i64()
            .and_then(|status| i32::try_from(status).ok());
        Ok(Some(Output {
            status: status.context("a command's status is a number")?,
            stdout: text("stdout"),
            stderr: text("stderr"),
        }))
    }
}

/// Returns the answer to a request; `None` if the deadline comes first.
fn answer(socket: &mut JsonSocket, deadline: Instant) -> Result<Option<Value>> {
    let Some(answer) = socket.receive(deadline)? else {
        return Ok(None);
    };
    match answer["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok(Some(answer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network with one machine, of which there is no more than the link.
    fn served() -> (Network, Served) {
        let network = Network::new().expect("a network");
        network.backend("card", "leaf-1").expect("a link");
        let machines = Machines {
            network: network.clone(),
            hosts: BTreeMap::new(),
        };
        (network, Served::serve(machines).expect("served"))
    }

    fn refused<T: std::fmt::Debug>(result: Result<T>) -> String {
        format!("{:#}", result.expect_err("it is refused"))
    }

    #[test]
    fn links_are_changed_from_outside_and_what_does_not_exist_is_named() {
        let (_network, served) = served();
        let reached = Reached::at(served.reached().directory().to_owned());
        for change in [
            LinkChange::Cut,
            LinkChange::Delay(Duration::from_micros(1500)),
            LinkChange::Mend,
        ] {
            reached.link("leaf-1", change).expect("changed");
        }
        let error = refused(reached.link("leaf-9", LinkChange::Cut));
        assert!(error.contains("no machine leaf-9"), "{error}");
        let error = refused(reached.run("leaf-9", "true", ANSWER));
        assert!(error.contains("no machine leaf-9"), "{error}");
        let error = refused(reached.ask(&json!({"dance": true})));
        assert!(error.contains("is not a request"), "{error}");
    }

    #[test]
    fn the_only_running_fleet_is_found_and_one_that_has_ended_is_not() {
        let found = |directory: &Path| Reached::only_one_in(directory);
        let directory = tempfile::tempdir().expect("a directory");
        let error = refused(found(directory.path()));
        assert!(error.contains("no fleet is running"), "{error}");
        let listen = |name: &str| {
            let fleet = directory.path().join(format!("{PREFIX}{name}"));
            std::fs::create_dir(&fleet).expect("a directory");
            (UnixListener::bind(socket(&fleet)).expect("a socket"), fleet)
        };
        let (ended, _) = listen("ended");
        drop(ended);
        let (_one, fleet) = listen("one");
        assert_eq!(found(directory.path()).expect("the only one").directory(), fleet);
        let _other = listen("other");
        let error = refused(found(directory.path()));
        assert!(error.contains("--fleet"), "{error}");
    }
}

//! A network of several machines: an Ethernet switch, and a link to each machine that can be cut, slowed and made lossy.
//!
//! The switch is a thread of this process: QEMU connects to it by a unix socket for each link and sends a frame as four
//! bytes of length, high byte first, and the frame. Nothing of this machine's own network is touched, and the guests
//! need nothing for it. [`switch`] decides what arrives when, [`link`] what a link does to a frame.

mod link;
mod switch;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

pub use link::LinkChange;
use switch::{Frame, PortId, Switch};

/// The maximum length of a frame, in bytes.
const LONGEST: usize = 128 << 10;
/// The maximum of frames that wait for a machine which doesn't read; what comes then is lost.
const UNREAD: usize = 1024;

/// A network; it ends when its last handle is dropped.
#[derive(Debug, Clone)]
pub struct Network {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    directory: tempfile::TempDir,
    inputs: Sender<Input>,
    thread: Option<JoinHandle<()>>,
}

enum Input {
    /// A machine gets a link, if it has none.
    Port {
        name: String,
        done: Sender<Result<()>>,
    },
    /// The condition of a machine's link changes.
    Change {
        name: String,
        change: LinkChange,
        done: Sender<Result<()>>,
    },
    /// QEMU has connected to a link.
    Joined {
        port: PortId,
        stream: UnixStream,
    },
    Frame {
        port: PortId,
        frame: Frame,
    },
    /// A connection to a link has ended.
    Left {
        port: PortId,
        connection: u64,
    },
    End,
}

impl Network {
    /// Returns a new network without machines.
    ///
    /// # Errors
    /// If no temporary directory can be made.
    pub fn new() -> Result<Self> {
        Self::with_seed(0)
    }

    /// Returns a new network whose lossy links lose the frames that this seed chooses: of two networks with the same seed,
    /// links of the same name lose the same frames, as long as the same is sent.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn with_seed(seed: u64) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("leaf-network-")
            .tempdir()
            .context("can't make a temporary directory")?;
        let (inputs, received) = mpsc::channel();
        let shell = Shell {
            directory: directory.path().to_owned(),
            inputs: inputs.clone(),
            switch: Switch::new(seed),
            connections: BTreeMap::new(),
            joined: 0,
            began: Instant::now(),
        };
        let thread = Some(std::thread::spawn(move || shell.run(received)));
        let handle = Handle {
            directory,
            inputs,
            thread,
        };
        Ok(Self {
            handle: Arc::new(handle),
        })
    }

    /// Cuts the link of a machine: see [`LinkChange::Cut`].
    ///
    /// # Errors
    /// If no machine of this name is on the network, like the other changes.
    pub fn cut(&self, machine: &str) -> Result<()> {
        self.change(machine, LinkChange::Cut)
    }

    /// Mends the link of a machine, which is again as it was at first.
    ///
    /// # Errors
    /// As [`Network::cut`].
    pub fn mend(&self, machine: &str) -> Result<()> {
        self.change(machine, LinkChange::Mend)
    }

    /// Lets each frame on the link of a machine take this long: a ping takes twice that.
    ///
    /// # Errors
    /// As [`Network::cut`]; or if it is longer than a minute.
    pub fn delay(&self, machine: &str, delay: Duration) -> Result<()> {
        self.change(machine, LinkChange::Delay(delay))
    }

    /// Lets a fraction of the frames on the link of a machine be lost, in each direction.
    ///
    /// # Errors
    /// As [`Network::cut`]; or if it is not from 0 to 1.
    pub fn loss(&self, machine: &str, fraction: f64) -> Result<()> {
        self.change(machine, LinkChange::Loss(fraction))
    }

    /// Limits the link of a machine to so many bits a second, in each direction; 0 takes the limit away.
    ///
    /// # Errors
    /// As [`Network::cut`].
    pub fn rate(&self, machine: &str, bits_per_second: u64) -> Result<()> {
        self.change(machine, LinkChange::Rate(bits_per_second))
    }

    /// Changes the link of a machine.
    ///
    /// # Errors
    /// As [`Network::cut`]; or if the change has an impossible number.
    pub fn change(&self, machine: &str, change: LinkChange) -> Result<()> {
        let name = machine.to_owned();
        self.ask(|done| Input::Change { name, change, done })
    }

    /// Returns QEMU's backend for the card of a machine on the network, which has a link from now on. If a card is
    /// connected to that link already, the new one takes its place.
    pub(crate) fn backend(&self, id: &str, machine: &str) -> Result<Value> {
        let path = self.port(machine)?;
        Ok(json!({"type": "stream", "id": id, "server": false, "addr": {"type": "unix", "path": path}}))
    }

    /// Returns the socket of a machine's link.
    fn port(&self, machine: &str) -> Result<PathBuf> {
        let name = machine.to_owned();
        self.ask(|done| Input::Port { name, done })?;
        Ok(socket(self.handle.directory.path(), machine))
    }

    fn ask(&self, input: impl FnOnce(Sender<Result<()>>) -> Input) -> Result<()> {
        let (done, answer) = mpsc::channel();
        let asked = self.handle.inputs.send(input(done)).is_ok();
        let answer = asked.then(|| answer.recv().ok()).flatten();
        answer.context("the network has ended")?
    }
}

/// Returns the path of a link's socket.
fn socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(name)
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.inputs.send(Input::End);
        // The sockets are removed with their directory after that.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The connection of a machine.
struct Connection {
    number: u64,
    stream: UnixStream,
    frames: SyncSender<Frame>,
}

/// The switch with its sockets.
struct Shell {
    directory: PathBuf,
    inputs: Sender<Input>,
    switch: Switch,
    connections: BTreeMap<PortId, Connection>,
    joined: u64,
    began: Instant,
}

impl Shell {
    /// Carries out what the switch decides, until the network ends.
    fn run(mut self, received: Receiver<Input>) {
        loop {
            let input = match self.switch.next_arrival() {
                None => received.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(next) => received.recv_timeout(next.saturating_sub(self.began.elapsed())),
            };
            match input {
                Ok(Input::Port { name, done }) => {
                    let _ = done.send(self.listen(&name));
                }
                Ok(Input::Change { name, change, done }) => {
                    let _ = done.send(self.switch.change(&name, change));
                }
                Ok(Input::Joined { port, stream }) => self.join(port, stream),
                Ok(Input::Frame { port, frame }) => self.switch.send(self.began.elapsed(), port, frame),
                Ok(Input::Left { port, connection }) => {
                    if self.is_current(port, connection) {
                        self.leave(port);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Input::End) | Err(RecvTimeoutError::Disconnected) => break,
            }
            self.deliver();
        }
        for port in self.connections.keys().copied().collect::<Vec<_>>() {
            self.leave(port);
        }
        drop(received);
        // Wakes the listening threads, which then notice that the receiver is gone.
        for name in self.switch.names() {
            let _ = UnixStream::connect(socket(&self.directory, name));
        }
    }

    /// Lets QEMU connect to the link of a machine.
    fn listen(&mut self, name: &str) -> Result<()> {
        if self.switch.port(name).is_some() {
            return Ok(());
        }
        let path = socket(&self.directory, name);
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("can't make the socket of a link, {}", path.display()))?;
        let (port, inputs) = (self.switch.add(name), self.inputs.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // The receiver is gone: the network has ended.
                if stream.is_ok_and(|stream| inputs.send(Input::Joined { port, stream }).is_err()) {
                    break;
                }
            }
        });
        Ok(())
    }

    fn join(&mut self, port: PortId, stream: UnixStream) {
        self.leave(port);
        let (Ok(reader), Ok(writer)) = (stream.try_clone(), stream.try_clone()) else {
            return;
        };
        self.joined += 1;
        let (number, inputs) = (self.joined, self.inputs.clone());
        std::thread::spawn(move || read(reader, port, number, &inputs));
        let (frames, unread) = mpsc::sync_channel(UNREAD);
        std::thread::spawn(move || write(writer, &unread));
        let connection = Connection {
            number,
            stream,
            frames,
        };
        self.connections.insert(port, connection);
    }

    fn is_current(&self, port: PortId, connection: u64) -> bool {
        self.connections
            .get(&port)
            .is_some_and(|current| current.number == connection)
    }

    /// Ends the connection of a link, and so its threads.
    fn leave(&mut self, port: PortId) {
        if let Some(connection) = self.connections.remove(&port) {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }

    /// Passes on what has arrived.
    fn deliver(&mut self) {
        for (port, frame) in self.switch.arrived(self.began.elapsed()) {
            let connection = self.connections.get(&port);
            let sent = connection.map(|connection| connection.frames.try_send(frame));
            if let Some(Err(TrySendError::Disconnected(_))) = sent {
                self.leave(port);
            }
        }
    }
}

/// Reads the frames of a machine.
fn read(mut stream: UnixStream, port: PortId, connection: u64, inputs: &Sender<Input>) {
    while let Ok(frame) = frame(&mut stream) {
        if inputs.send(Input::Frame { port, frame }).is_err() {
            return;
        }
    }
    let _ = inputs.send(Input::Left { port, connection });
}

/// Writes the frames for a machine, until its connection or the network ends.
fn write(mut stream: UnixStream, frames: &Receiver<Frame>) {
    while let Ok(frame) = frames.recv() {
        if stream.write_all(&frame).is_err() {
            return;
        }
    }
}

/// Reads a frame, which its length precedes.
fn frame(stream: &mut UnixStream) -> std::io::Result<Frame> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let count = u32::from_be_bytes(length) as usize;
    if count > LONGEST {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = length.to_vec();
    bytes.resize(4 + count, 0);
    stream.read_exact(&mut bytes[4..])?;
    Ok(bytes.into())
}

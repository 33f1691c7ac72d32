//! A network of several machines: an Ethernet switch that sends every frame to all other machines.
//!
//! QEMU sends a frame as four bytes of length, high byte first, and the frame. Nothing of this machine's own network
//! is touched.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The maximum length of a frame, in bytes.
const LONGEST: usize = 128 << 10;
/// A machine that reads nothing for this long is disconnected.
const STALLED: Duration = Duration::from_secs(5);

/// A network; it ends when its last handle is dropped.
#[derive(Debug, Clone)]
pub struct Network {
    switch: Arc<Switch>,
}

#[derive(Debug)]
struct Switch {
    directory: tempfile::TempDir,
    inputs: Sender<Input>,
}

enum Input {
    Joined(UnixStream),
    Frame { from: u64, bytes: Vec<u8> },
    Left(u64),
    End,
}

impl Network {
    /// Returns a new network without machines.
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("leaf-network-")
            .tempdir()
            .context("can't make a temporary directory")?;
        let listener =
            UnixListener::bind(directory.path().join("switch")).context("can't make a network's socket")?;
        let (inputs, received) = mpsc::channel();
        let joins = inputs.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // The receiver is gone: the network has ended.
                if stream.is_ok_and(|stream| joins.send(Input::Joined(stream)).is_err()) {
                    break;
                }
            }
        });
        let frames = inputs.clone();
        std::thread::spawn(move || forward(&received, &frames));
        let switch = Switch { directory, inputs };
        Ok(Self {
            switch: Arc::new(switch),
        })
    }

    /// Returns whether both are the same network.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.switch, &other.switch)
    }

    /// Returns QEMU's backend for a card on the network.
    pub(crate) fn backend(&self, id: &str) -> Value {
        let path = self.switch.directory.path().join("switch");
        json!({"type": "stream", "id": id, "server": false, "addr": {"type": "unix", "path": path}})
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.inputs.send(Input::End);
        // Wakes the listening thread, which then notices that the receiver is gone.
        let _ = UnixStream::connect(self.directory.path().join("switch"));
    }
}

/// Forwards each machine's frames to all others, until the network ends.
fn forward(received: &Receiver<Input>, inputs: &Sender<Input>) {
    let mut peers = BTreeMap::new();
    let mut joined = 0;
    for input in received {
        match input {
            Input::Joined(stream) => {
                joined += 1;
                let _ = stream.set_write_timeout(Some(STALLED));
                if let Ok(reader) = stream.try_clone() {
                    let (from, inputs) = (joined, inputs.clone());
                    std::thread::spawn(move || listen(reader, from, &inputs));
                    peers.insert(joined, stream);
                }
            }
            Input::Frame { from, bytes } => {
                peers.retain(|peer, stream| *peer == from || stream.write_all(&bytes).is_ok());
            }
            Input::Left(peer) => {
                peers.remove(&peer);
            }
            Input::End => break,
        }
    }
    for stream in peers.values() {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Reads the frames of a machine.
fn listen(mut stream: UnixStream, from: u64, inputs: &Sender<Input>) {
    while let Ok(bytes) = frame(&mut stream) {
        if inputs.send(Input::Frame { from, bytes }).is_err() {
            return;
        }
    }
    let _ = inputs.send(Input::Left(from));
}

/// Reads a frame, which its length precedes.
fn frame(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let count = u32::from_be_bytes(length) as usize;
    if count > LONGEST {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = length.to_vec();
    bytes.resize(4 + count, 0);
    stream.read_exact(&mut bytes[4..])?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(network: &Network) -> UnixStream {
        let stream =
            UnixStream::connect(network.switch.directory.path().join("switch")).expect("the switch listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a time-out");
        stream
    }

    #[test]
    fn a_frame_reaches_all_machines_but_its_sender() {
        let network = Network::new().expect("a network");
        let (mut a, mut b, mut c) = (connect(&network), connect(&network), connect(&network));
        a.write_all(b"\0\0\0\x03one").expect("sent");
        assert_eq!(frame(&mut b).expect("a frame"), b"\0\0\0\x03one");
        assert_eq!(frame(&mut c).expect("a frame"), b"\0\0\0\x03one");
        b.write_all(b"\0\0\0\x03two").expect("sent");
        assert_eq!(
            frame(&mut a).expect("b's frame, and not its own"),
            b"\0\0\0\x03two"
        );
    }

    #[test]
    fn a_machine_that_leaves_or_sends_garbage_does_not_disturb_the_others() {
        let network = Network::new().expect("a network");
        let (mut a, mut b, c, mut d) = (
            connect(&network),
            connect(&network),
            connect(&network),
            connect(&network),
        );
        drop(c);
        d.write_all(b"\xff\xff\xff\xff").expect("sent");
        a.write_all(b"\0\0\0\x01x").expect("sent");
        assert_eq!(frame(&mut b).expect("a frame"), b"\0\0\0\x01x");
    }

    #[test]
    fn a_network_ends_with_its_last_holder() {
        let network = Network::new().expect("a network");
        let other = network.clone();
        let mut a = connect(&network);
        drop(network);
        let mut b = connect(&other);
        b.write_all(b"\0\0\0\x01x").expect("sent");
        assert_eq!(frame(&mut a).expect("a frame"), b"\0\0\0\x01x");
        drop(other);
        assert!(frame(&mut a).is_err(), "the network has ended");
    }
}

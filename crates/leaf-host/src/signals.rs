//! Receives signals without a moment in which one is lost.
//!
//! The handler of signal-hook-registry, which tokio uses, is installed before it knows what to do with the signal. One that
//! arrives in between does what it did before, and where that was the default, nothing: neither does it end the program, nor
//! is it received. systemd asks a unit to stop once, so a program that loses its SIGTERM runs on until it is killed.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow};
use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Returns the receiver of a signal. A signal that was sent earlier has its default effect; every later one is received.
///
/// Call it while the program has one thread: the signal is held back for the calling thread only. So in a program with
/// several threads it is called before the runtime; the receiver needs one with I/O only when it is awaited.
///
/// # Errors
/// The kernel's error; [`io::ErrorKind::InvalidInput`] for a signal that can't be received, or a real-time signal.
pub fn receive(kind: SignalKind) -> io::Result<Signal> {
    let mut held = SigSet::empty();
    held.add(kind.as_raw_value().try_into()?);
    let before = held.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let receiver = register(kind);
    before.thread_set_mask()?;
    receiver
}

/// The signals that ask a program to end: SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Termination {
    terminate: Signal,
    interrupt: Signal,
}

impl Termination {
    /// Returns the receiver of both; see [`receive`] about when to call it.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn receive() -> io::Result<Self> {
        Ok(Self {
            terminate: receive(SignalKind::terminate())?,
            interrupt: receive(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next of them, and returns its name. Cancel-safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the caller holds the signal back")]
fn register(kind: SignalKind) -> io::Result<Signal> {
    if Handle::try_current().is_ok() {
        return signal(kind);
    }
    // Asked for, but not used: the receiver is woken by whichever runtime runs.
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let _in_it = runtime.enter();
    signal(kind)
}

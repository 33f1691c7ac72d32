//! Ctrl-C: it ends leafctl, unless a command takes it for a program that it runs.

use std::sync::atomic::{AtomicBool, Ordering};

static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// Has a command take Ctrl-C from now on, until the guard is dropped.
pub(crate) fn take() -> Taken {
    IS_TAKEN.store(true, Ordering::Relaxed);
    Taken
}

/// A command that takes Ctrl-C.
pub(crate) struct Taken;

impl Drop for Taken {
    fn drop(&mut self) {
        IS_TAKEN.store(false, Ordering::Relaxed);
    }
}

/// Waits for a Ctrl-C that no command takes.
pub(crate) async fn asked() {
    loop {
        let asked = tokio::signal::ctrl_c().await;
        if asked.is_err() || !IS_TAKEN.load(Ordering::Relaxed) {
            return;
        }
    }
}

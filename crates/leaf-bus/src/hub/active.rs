//! The fence before each write of a hub agent, of which one at a time is active, and the document about the active one.
//!
//! The document is an entry of the bucket `fleet`, written with the number that it had before, so of two agents that take over at
//! once one fails. The active agent renews it, and stops writing before another one may take over.

use tokio::sync::watch;
use tokio::time::Instant;

use crate::stream_error::StreamError;

/// Whether a process may write the hub's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// It may: a person's command.
    Always,
    /// It may until this time.
    Until(Instant),
    /// It may not.
    Never,
}

/// Refuses the writes of an agent that is not active.
#[derive(Debug, Clone)]
pub(super) struct Fence {
    allowed: watch::Receiver<Allowed>,
}

impl Fence {
    pub(super) fn new(allowed: watch::Receiver<Allowed>) -> Self {
        Self { allowed }
    }

    /// # Errors
    /// [`StreamError::NotActive`] if nothing may be written at the moment.
    pub(super) fn check(&self) -> Result<(), StreamError> {
        match *self.allowed.borrow() {
            Allowed::Always => Ok(()),
            Allowed::Until(time) if Instant::now() < time => Ok(()),
            Allowed::Until(_) | Allowed::Never => Err(StreamError::NotActive),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_agent_that_did_not_renew_in_time_writes_nothing() {
        let allowed = watch::Sender::new(Allowed::Always);
        let fence = Fence::new(allowed.subscribe());
        assert_eq!(fence.check(), Ok(()));
        allowed.send_replace(Allowed::Until(Instant::now() + Duration::from_secs(60)));
        assert_eq!(fence.check(), Ok(()));
        for not in [Allowed::Until(Instant::now()), Allowed::Never] {
            allowed.send_replace(not);
            assert_eq!(fence.check(), Err(StreamError::NotActive));
        }
    }
}

//! What a container printed: from the journal, or from the file that its supervisor writes.

use leaf_core::command::LogText;
use leaf_core::decide::LogQuery;
use leaf_core::runtime::Runtime;

use crate::{Containers, ObserveError};

impl Containers {
    /// Returns lines of a container's log: the last ones, or those that follow a cursor; at most so many, and at most
    /// so many bytes. Nothing is an empty text. The answer's cursor leads to what follows it. Blocks.
    ///
    /// Under systemd it is the journal of the container's unit: its console, and what the helper and systemd say of it.
    ///
    /// # Errors
    /// [`ObserveError`] when a log that is there can't be read, or the query can't be answered: see
    /// [`ObserveError::kind`].
    pub fn logs(&self, query: &LogQuery, max_bytes: usize) -> Result<LogText, ObserveError> {
        match self.runtime {
            Runtime::Systemd => crate::journal::read(query, max_bytes),
            Runtime::Nspawn => {
                if query.since.is_some() {
                    return Err(ObserveError::NoTimes(query.name.clone()));
                }
                crate::log_file::read(&self.paths.log(&query.name), query, max_bytes)
            }
        }
    }
}

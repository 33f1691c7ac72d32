//! A container's log: from the systemd journal, or from the file written by its supervisor.

use leaf_core::command::LogText;
use leaf_core::decide::LogQuery;
use leaf_core::runtime::Runtime;

use crate::{Containers, ObserveError};

impl Containers {
    /// Returns a page of a container's log: the last lines, or those after a cursor, at most `max_bytes`. Its cursor
    /// leads to the next page. Blocks.
    ///
    /// Under systemd, the log is the journal of the container's unit: its console, and messages of the helper and
    /// systemd.
    ///
    /// # Errors
    /// [`ObserveError`] when an existing log can't be read, or the query can't be answered: see [`ObserveError::kind`].
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

//! The instances that have claimed the name from this state directory. Whoever has locked it knows that they are dead, so their
//! claims may be taken over before they expire.
//!
//! The journal names the last instance that recorded something, which is not always the one that the hub knows: leafd may have been killed
//! again before it recorded anything, or each time that it ran while the link was cut. leafd before this file ignores it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use leaf_core::id::InstanceId;
use leaf_core::json::to_json;
use serde::{Deserialize, Serialize};

/// The name of the file in the state directory.
const FILE: &str = "hub-claims.json";

/// The number of instances that are remembered: more don't begin within the time in which a claim expires.
const KEPT: usize = 16;

/// The file's content.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    /// The instances, the latest last.
    instances: Vec<InstanceId>,
}

/// The instances that have claimed the name from this state directory before.
#[derive(Debug)]
pub(super) struct Earlier {
    path: PathBuf,
    instances: Vec<InstanceId>,
}

impl Earlier {
    /// Reads them. A file that can't be read names none: then a claim is taken over when it has expired.
    pub(super) fn in_directory(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let text = fs::read(&path).unwrap_or_default();
        let Content { instances } = serde_json::from_slice(&text).unwrap_or_default();
        Self { path, instances }
    }

    /// Returns whether this instance claimed the name from here before.
    pub(super) fn contains(&self, instance: InstanceId) -> bool {
        self.instances.contains(&instance)
    }

    /// Remembers, for those that come after it, that this instance claims the name.
    ///
    /// # Errors
    /// The error of writing the file.
    pub(super) fn remember(&self, instance: InstanceId) -> io::Result<()> {
        let mut instances = self.instances.clone();
        instances.retain(|other| *other != instance);
        instances.push(instance);
        instances.drain(..instances.len().saturating_sub(KEPT));
        let draft = self.path.with_extension("new");
        fs::write(&draft, to_json(&Content { instances }))?;
        // It is not synchronized to the disk: after a power cut the boot takes longer than the claim lasts.
        fs::rename(&draft, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn instance(number: u128) -> InstanceId {
        InstanceId(Uuid::from_u128(number))
    }

    #[test]
    fn the_last_instances_are_known_to_those_after_them() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        for number in 1..=20 {
            let earlier = Earlier::in_directory(directory.path());
            assert!(!earlier.contains(instance(number)));
            earlier.remember(instance(number))?;
            earlier.remember(instance(number))?;
        }
        let earlier = Earlier::in_directory(directory.path());
        assert!((5..=20).all(|number| earlier.contains(instance(number))));
        assert!((1..5).all(|number| !earlier.contains(instance(number))));
        Ok(())
    }

    #[test]
    fn a_file_that_cant_be_read_names_none_and_is_replaced() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join(FILE), "{")?;
        let earlier = Earlier::in_directory(directory.path());
        assert!(!earlier.contains(instance(1)));
        earlier.remember(instance(1))?;
        assert!(Earlier::in_directory(directory.path()).contains(instance(1)));
        Ok(())
    }
}

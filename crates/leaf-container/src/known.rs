//! Facts about ready runs that are kept between observations, since they don't change during a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use leaf_core::id::ContainerName;
use tokio::sync::Mutex;

use crate::units::Known;

/// The known facts about the ready runs of a leaf's containers. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownRuns(Arc<Mutex<BTreeMap<ContainerName, Known>>>);

impl KnownRuns {
    /// Returns the known facts about a container's run.
    pub(crate) async fn get(&self, name: &ContainerName) -> Option<Known> {
        self.0.lock().await.get(name).cloned()
    }

    /// Replaces the known facts about the runs of these containers.
    pub(crate) async fn set(&self, runs: Vec<(ContainerName, Option<Known>)>) {
        let mut known = self.0.lock().await;
        for (name, run) in runs {
            match run {
                Some(run) => drop(known.insert(name, run)),
                None => drop(known.remove(&name)),
            }
        }
    }

    /// Forgets the runs of all other containers.
    pub(crate) async fn retain(&self, names: &[ContainerName]) {
        self.0.lock().await.retain(|name, _| names.contains(name));
    }
}

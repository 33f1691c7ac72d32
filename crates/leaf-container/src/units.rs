//! Observes containers that run as systemd units, by their units, their status files, and their cgroups.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use futures::future::join_all;
use jiff::Timestamp;
use leaf_core::container::ObservedRun;
use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use leaf_host::cgroup::{self, Cgroup};
use leaf_host::contract::RunStatus;
use leaf_host::systemd::ListedUnit;

use crate::unit::{Stage, Unit, run_of};
use crate::{Containers, ObserveError, block_on};

/// The run states of containers, and the number of processes of each that were killed for lack of memory; an error for
/// one of which a file can't be read.
pub(crate) type Runs = BTreeMap<ContainerName, Result<(ObservedRun, u64), ObserveError>>;
/// A set of containers.
pub(crate) type Names = BTreeSet<ContainerName>;

/// The number of containers from which one pattern is queried instead of each name.
const MANY: usize = 4;
/// The pattern of the units of all containers, of any owner.
const ALL_CONTAINERS: &str = "container@*.service";

/// The observed facts about a ready run. They are valid as long as the status is of the same run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    run: (u32, Timestamp),
    unit: Unit,
    leader: u32,
}

/// The observation of one container.
struct Look {
    run: ObservedRun,
    /// The number of its processes killed for lack of memory.
    oom_kills: u64,
    /// The facts to remember.
    known: Option<Known>,
    /// Whether it is in transition, and its next change may give no signal.
    moving: bool,
}

impl Containers {
    /// Returns the run states of these containers with the number of processes killed for lack of memory, and the
    /// containers in transition. Blocks.
    pub(crate) fn runs_of_units(&self, names: &[ContainerName]) -> Result<(Runs, Names), ObserveError> {
        if names.is_empty() {
            return Ok((Runs::new(), Names::new()));
        }
        let mount = cgroup::mount().ok();
        block_on(async {
            let units = self.units(names).await?;
            let stage = |name: &ContainerName| {
                let listed = units.iter().find(|unit| unit.name == Runtime::unit(name));
                listed.map(stage_of)
            };
            let looks = names
                .iter()
                .map(|name| self.run_of_unit(name, stage(name), mount.as_deref()));
            // Concurrently: the bus accepts a call before it has answered the previous one.
            let (mut runs, mut known, mut moving) = (Runs::new(), Vec::new(), Names::new());
            for (name, look) in names.iter().zip(join_all(looks).await) {
                let run = match look {
                    // Not about this container: systemd does not answer.
                    Err(error @ ObserveError::Systemd(_)) => return Err(error),
                    Err(error) => {
                        known.push((name.clone(), None));
                        Err(error)
                    }
                    Ok(look) => {
                        if look.moving {
                            moving.insert(name.clone());
                        }
                        known.push((name.clone(), look.known));
                        Ok((look.run, look.oom_kills))
                    }
                };
                runs.insert(name.clone(), run);
            }
            self.known.set(known).await;
            Ok((runs, moving))
        })
    }

    /// Forgets the known facts about all other containers. Blocks.
    pub(crate) fn forget_others(&self, names: &[ContainerName]) {
        block_on(self.known.retain(names));
    }

    /// Returns the loaded units of containers, of any owner, that are up or about to be. Blocks.
    pub(crate) fn units_up(&self) -> Result<Vec<String>, ObserveError> {
        block_on(async {
            let units = self.systemd.list_units(&[ALL_CONTAINERS.to_owned()]).await?;
            let up = |unit: &ListedUnit| !matches!(stage_of(unit), Stage::Down | Stage::Waiting);
            Ok(units.into_iter().filter(up).map(|unit| unit.name).collect())
        })
    }

    /// Returns the path of a container's cgroup below the mount, according to systemd, if it has one. Blocks.
    pub(crate) fn group_of_unit(&self, name: &ContainerName) -> Result<Option<String>, ObserveError> {
        Ok(block_on(self.unit(name))?.group)
    }

    async fn units(&self, names: &[ContainerName]) -> Result<Vec<ListedUnit>, ObserveError> {
        let patterns: Vec<_> = if names.len() < MANY {
            names.iter().map(Runtime::unit).collect()
        } else {
            vec![ALL_CONTAINERS.to_owned()]
        };
        Ok(self.systemd.list_units(&patterns).await?)
    }

    /// Observes a container by the stage of its unit, if that is loaded.
    async fn run_of_unit(
        &self,
        name: &ContainerName,
        stage: Option<Stage>,
        mount: Option<&Path>,
    ) -> Result<Look, ObserveError> {
        // Read after the list: for a run that is listed as ready, the status is of that run or of a later one.
        let status = self.status(name)?;
        let this = status.as_ref().and_then(open_run);
        let moving = stage.is_some_and(|stage| stage.is_moving(status.as_ref()));
        let look = |run, oom_kills, known| Look {
            run,
            oom_kills,
            known,
            moving,
        };
        let known = match self.known.get(name).await {
            Some(known) if stage == Some(Stage::Up) && Some(known.run) == this => Some(known),
            _ => None,
        };
        if let Some(known) = known {
            let kills = self.oom_kills(name, status.as_ref(), Some(&known.unit), mount);
            let run = run_of(Some(&known.unit), status.as_ref(), Some(known.leader));
            return Ok(look(run, kills, Some(known)));
        }
        let plain = match (stage, status.as_ref().map(|status| status.exit)) {
            // systemd would load the unit's files to answer, and unload them again.
            (None, None) => Some(ObservedRun::Stopped),
            (Some(Stage::Starting), _) => Some(ObservedRun::Starting),
            (Some(Stage::Waiting), Some(Some(exit))) => Some(ObservedRun::Restarting(exit)),
            (None | Some(Stage::Down), Some(Some(exit))) => Some(ObservedRun::Exited(exit)),
            _ => None,
        };
        if let Some(run) = plain {
            let kills = self.oom_kills(name, status.as_ref(), None, mount);
            return Ok(look(run, kills, None));
        }
        let unit = self.unit(name).await?;
        if matches!(unit.stage, Stage::Down | Stage::Waiting) {
            // The helper records the end before systemd reports it. If the status has changed, it is of a run that
            // began in the meantime.
            let status = self.status(name)?;
            let now = status.as_ref().and_then(open_run);
            let run = if now.is_some() && now != this {
                ObservedRun::Starting
            } else {
                run_of(Some(&unit), status.as_ref(), None)
            };
            let kills = self.oom_kills(name, status.as_ref(), None, mount);
            return Ok(look(run, kills, None));
        }
        let leader = match unit.stage {
            Stage::Up | Stage::Ending => self.leader(name, &unit, mount).await,
            _ => None,
        };
        let run = run_of(Some(&unit), status.as_ref(), leader);
        let kills = self.oom_kills(name, status.as_ref(), Some(&unit), mount);
        let known = match (this, leader) {
            (Some(run), Some(leader)) if unit.stage == Stage::Up && unit.was_ready() => {
                Some(Known { run, unit, leader })
            }
            _ => None,
        };
        Ok(look(run, kills, known))
    }

    fn oom_kills(
        &self,
        name: &ContainerName,
        status: Option<&RunStatus>,
        unit: Option<&Unit>,
        mount: Option<&Path>,
    ) -> u64 {
        let counted = mount.and_then(|mount| {
            let group = unit.and_then(|unit| unit.group.as_ref());
            let payload = match group {
                Some(group) => Cgroup::at(mount.join(group)).child("payload"),
                None => self.payload(mount, name),
            };
            payload.oom_kills()
        });
        let written = status.map_or(0, |status| status.oom_kills);
        written.max(counted.unwrap_or(0))
    }

    async fn unit(&self, name: &ContainerName) -> Result<Unit, ObserveError> {
        let properties = self.systemd.unit_properties(&Runtime::unit(name)).await?;
        Ok(Unit::of(&properties))
    }

    /// Returns the leader of a container, from machined or else from its cgroup.
    async fn leader(&self, name: &ContainerName, unit: &Unit, mount: Option<&Path>) -> Option<u32> {
        let by_machined = self.systemd.machine_leader(name.as_str()).await;
        let by_cgroup = || Cgroup::at(mount?.join(unit.group.as_ref()?)).first_process();
        by_machined.or_else(by_cgroup)
    }
}

fn stage_of(unit: &ListedUnit) -> Stage {
    Stage::of(&unit.active, &unit.sub)
}

/// Returns the identity of the run in a status without an end.
fn open_run(status: &RunStatus) -> Option<(u32, Timestamp)> {
    status
        .exit
        .is_none()
        .then_some((status.supervisor_pid, status.started_at))
}

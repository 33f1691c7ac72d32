//! How containers do that systemd runs: by their units, by what the helper wrote, and by their control groups.

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

/// How containers do, and how many processes of each were killed for want of memory.
pub(crate) type Runs = BTreeMap<ContainerName, (ObservedRun, u64)>;
/// Some of them.
pub(crate) type Names = BTreeSet<ContainerName>;

/// From how many containers on one pattern is asked for instead of each name.
const MANY: usize = 4;
/// The pattern of the units of containers, anybody's.
const ALL_CONTAINERS: &str = "container@*.service";

/// What was seen of a run that is ready. It holds as long as what the helper wrote of the run says that it is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    run: (u32, Timestamp),
    unit: Unit,
    leader: u32,
}

/// How one container does.
struct Look {
    run: ObservedRun,
    /// How many of its processes were killed for want of memory.
    oom_kills: u64,
    /// What may be remembered of it.
    known: Option<Known>,
    /// Whether it is on the way to something else, of which no signal may come.
    moving: bool,
}

impl Containers {
    /// Whether these containers run, and how many of their processes were killed for want of memory; and which of them are
    /// on the way to something else. Blocks.
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
            // All at once: the bus takes the next question before it has answered the last.
            let seen: Result<Vec<_>, _> = join_all(looks).await.into_iter().collect();
            let (mut runs, mut known, mut moving) = (Runs::new(), Vec::new(), Names::new());
            for (name, look) in names.iter().zip(seen?) {
                if look.moving {
                    moving.insert(name.clone());
                }
                runs.insert(name.clone(), (look.run, look.oom_kills));
                known.push((name.clone(), look.known));
            }
            self.known.set(known).await;
            Ok((runs, moving))
        })
    }

    /// Forgets what is known of all other containers. Blocks.
    pub(crate) fn forget_others(&self, names: &[ContainerName]) {
        block_on(self.known.retain(names));
    }

    /// Returns the units of containers that systemd has loaded, and that are up or about to be; anybody's. Blocks.
    pub(crate) fn units_up(&self) -> Result<Vec<String>, ObserveError> {
        block_on(async {
            let units = self.systemd.list_units(&[ALL_CONTAINERS.to_owned()]).await?;
            let up = |unit: &ListedUnit| !matches!(stage_of(unit), Stage::Down | Stage::Waiting);
            Ok(units.into_iter().filter(up).map(|unit| unit.name).collect())
        })
    }

    /// Returns where systemd has the control group of a container, below the mount, if it has one. Blocks.
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

    /// Returns how one does by the stage of its unit, if systemd has that loaded.
    async fn run_of_unit(
        &self,
        name: &ContainerName,
        stage: Option<Stage>,
        mount: Option<&Path>,
    ) -> Result<Look, ObserveError> {
        // After the list: what is written of a run that is listed as ready is of that run or of a later one.
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
            // systemd would read the unit's files to answer, and forget them.
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
            // The helper writes the end before systemd tells of it. Is something else written by now, it is of a run
            // that began since.
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

    /// Returns the first process of a container, by machined or else by its cgroup.
    async fn leader(&self, name: &ContainerName, unit: &Unit, mount: Option<&Path>) -> Option<u32> {
        let by_machined = self.systemd.machine_leader(name.as_str()).await;
        let by_cgroup = || Cgroup::at(mount?.join(unit.group.as_ref()?)).first_process();
        by_machined.or_else(by_cgroup)
    }
}

fn stage_of(unit: &ListedUnit) -> Stage {
    Stage::of(&unit.active, &unit.sub)
}

/// Which run the helper wrote of, if it wrote of no end.
fn open_run(status: &RunStatus) -> Option<(u32, Timestamp)> {
    status
        .exit
        .is_none()
        .then_some((status.supervisor_pid, status.started_at))
}

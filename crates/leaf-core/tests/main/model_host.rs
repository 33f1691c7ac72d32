//! A model of the host: it carries out host operations, and containers move by themselves.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::HEXLOWER;
use leaf_core::container::{Exit, ForeignContainer, LastUpdate, ObservedContainer, ObservedRun};
use leaf_core::decide::SecretChange;
use leaf_core::host_op::{HostOp, RunSpec, Secret, StoredSecret};
use leaf_core::id::{ContainerName, SecretName, StorePath};
use leaf_core::plan::PlanContext;
use sha2::{Digest as _, Sha256};

use crate::strategies::{leaf, time};

/// What is on the host.
#[derive(Default)]
pub(crate) struct ModelHost {
    pub(crate) containers: BTreeMap<ContainerName, ObservedContainer>,
    /// What the helper was told of each container last.
    told: BTreeMap<ContainerName, RunSpec>,
    /// When the credentials that a container has were issued.
    pub(crate) credentials: BTreeMap<ContainerName, u64>,
    /// Whether renewals before a start fail.
    pub(crate) renewals_fail: bool,
    pub(crate) foreign: BTreeMap<ContainerName, ForeignContainer>,
    /// Systems that don't become ready.
    pub(crate) broken: BTreeSet<StorePath>,
    /// The age files of secrets.
    pub(crate) secrets: BTreeMap<SecretName, StoredSecret>,
}

impl ModelHost {
    /// Stores or removes a secret. Users stand in the clear in the model's age files.
    pub(crate) fn change_secret(&mut self, change: &SecretChange) -> Option<StoredSecret> {
        match change {
            SecretChange::Set { name, age } => {
                let users = age.expose().lines().filter_map(|line| line.strip_prefix("for: "));
                let stored = StoredSecret {
                    name: name.clone(),
                    file_bytes: age.expose().len() as u64,
                    digest: digest(age),
                    users: users.map(|user| user.parse().expect("a user")).collect(),
                    problem: None,
                };
                self.secrets.insert(name.clone(), stored.clone());
                Some(stored)
            }
            SecretChange::Remove { name } => {
                self.secrets.remove(name);
                None
            }
        }
    }

    /// Begins an operation that nobody waits for.
    pub(crate) fn begin(&mut self, op: &HostOp) {
        if let HostOp::StartContainer { name, .. } = op
            && let Some(observed) = self.containers.get_mut(name)
        {
            observed.frozen = false;
            observed.run = ObservedRun::Starting;
        }
    }

    /// Carries out an operation, and returns whether it succeeded.
    pub(crate) fn carry_out(&mut self, op: &HostOp, now: u64) -> bool {
        match op {
            HostOp::CreateContainer {
                name,
                toplevel,
                network,
                options,
                secrets,
                ..
            } => {
                let spec = RunSpec {
                    leaf: leaf(),
                    name: name.clone(),
                    toplevel: toplevel.clone(),
                    network: *network,
                    options: (**options).clone(),
                    secrets: secrets.clone(),
                };
                let before = self.containers.remove(name);
                let observed = ObservedContainer {
                    name: name.clone(),
                    toplevel: Some(toplevel.clone()),
                    digest: Some(spec.digest()),
                    frozen: before.as_ref().is_some_and(|before| before.frozen),
                    run: before.map_or(ObservedRun::Stopped, |before| before.run),
                    oom_kills: 0,
                };
                self.foreign.remove(name);
                self.containers.insert(name.clone(), observed);
                self.told.insert(name.clone(), spec);
                self.credentials.insert(name.clone(), now);
                true
            }
            HostOp::RenewCredentials { name, .. } => {
                self.created(name);
                self.credentials.insert(name.clone(), now);
                true
            }
            HostOp::StartContainer { name, .. } | HostOp::UpdateContainer { name, .. } => {
                let mut run = self.run_of(name, now);
                if let ObservedRun::Running { last_update, .. } = &mut run
                    && matches!(op, HostOp::UpdateContainer { .. })
                {
                    *last_update = Some(Box::new(LastUpdate::restart(
                        time(now),
                        "it can't switch".to_owned(),
                    )));
                }
                let is_ready = matches!(run, ObservedRun::Running { .. });
                let observed = self.created(name);
                assert!(!observed.frozen, "{name} is frozen");
                observed.run = run;
                is_ready
            }
            HostOp::FreezeContainer { name, frozen } => {
                let observed = self.created(name);
                assert!(
                    matches!(observed.run, ObservedRun::Running { .. }),
                    "{name} does not run"
                );
                observed.frozen = *frozen;
                true
            }
            HostOp::StopContainer { name, .. } => {
                let observed = self.created(name);
                assert!(!observed.frozen, "{name} is frozen");
                observed.run = ObservedRun::Exited(Exit::Code { code: 0 });
                true
            }
            HostOp::DestroyContainer { name } => {
                let gone = self.containers.remove(name);
                assert!(
                    gone.is_none_or(|gone| matches!(gone.run, ObservedRun::Stopped | ObservedRun::Exited(_))),
                    "{name} is destroyed while it runs"
                );
                self.told.remove(name);
                self.credentials.remove(name);
                true
            }
            other => panic!("a plan for a container has no {other:?}"),
        }
    }

    /// Returns a container that a step is about: a plan names none that does not exist.
    fn created(&mut self, name: &ContainerName) -> &mut ObservedContainer {
        self.containers.get_mut(name).expect("it was created before")
    }

    /// How a container runs that is started now.
    fn run_of(&self, name: &ContainerName, now: u64) -> ObservedRun {
        let Some(spec) = self.told.get(name) else {
            return ObservedRun::Stopped;
        };
        if self.broken.contains(&spec.toplevel) {
            return ObservedRun::Exited(Exit::Code { code: 1 });
        }
        ObservedRun::Running {
            leader_pid: 1000,
            started_at: time(now),
            ready_after_ms: 100,
            start_digest: Some(spec.start_digest()),
            last_update: None,
        }
    }

    /// A container moves by itself: one that starts becomes ready or not, one that runs ends, and is started again as its
    /// policy says.
    pub(crate) fn moves(&mut self, name: &ContainerName, exit: Exit, now: u64) {
        let Some(observed) = self.containers.get(name) else {
            return;
        };
        let run = match observed.run {
            ObservedRun::Starting | ObservedRun::Restarting(_) => self.run_of(name, now),
            ObservedRun::Running { .. } => {
                let spec = self.told.get(name);
                if spec.is_some_and(|spec| spec.options.restart.when.covers(Some(exit))) {
                    ObservedRun::Restarting(exit)
                } else {
                    ObservedRun::Exited(exit)
                }
            }
            ObservedRun::Stopped | ObservedRun::Exited(_) => return,
        };
        if let Some(observed) = self.containers.get_mut(name) {
            observed.frozen = false;
            observed.run = run;
        }
    }

    /// Processes of a container are killed for want of memory.
    pub(crate) fn out_of_memory(&mut self, name: &ContainerName) {
        if let Some(observed) = self.containers.get_mut(name)
            && matches!(observed.run, ObservedRun::Running { .. })
        {
            observed.oom_kills += 1;
        }
    }

    /// The host is booted: nothing runs.
    pub(crate) fn boot(&mut self) {
        for observed in self.containers.values_mut() {
            observed.frozen = false;
            observed.run = ObservedRun::Stopped;
            observed.oom_kills = 0;
        }
    }

    /// Lets all come to rest that moves by itself.
    pub(crate) fn rest(&mut self, now: u64) {
        let names: Vec<ContainerName> = self.containers.keys().cloned().collect();
        for name in names {
            let run = self.containers.get(&name).map(|observed| &observed.run);
            if let Some(ObservedRun::Starting | ObservedRun::Restarting(_)) = run {
                self.moves(&name, Exit::Lost, now);
            }
        }
    }
}

/// Returns what the plans for this host are made with.
pub(crate) fn plan_context() -> PlanContext {
    plan_context_with(false)
}

/// Returns the same; with credentials that must be renewed, if that is so.
pub(crate) fn plan_context_with(renew: bool) -> PlanContext {
    PlanContext {
        renew,
        leaf: leaf(),
        nats_url: "nats://10.233.0.1:4222".to_owned(),
        nats_credentials: Secret::new("creds"),
        ready_timeout_seconds: 30,
        stop_timeout_seconds: 30,
    }
}

/// Returns the SHA-256 of an age file, in hexadecimal.
pub(crate) fn digest(age: &Secret) -> String {
    HEXLOWER.encode(&Sha256::digest(age.expose().as_bytes()))
}

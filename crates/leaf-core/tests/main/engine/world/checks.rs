//! What must hold of each answer, and of everything once it has come to rest.

use leaf_core::command::CommandKind;
use leaf_core::container::{Container, ContainerPhase, DesiredRun};
use leaf_core::engine::Answer;
use leaf_core::plan::plan;
use leaf_core::problem::ProblemCode;
use leaf_core::renewal::{CONTAINER_VALID, Life};
use leaf_core::secret::restarting;

use super::{ROUNDS, World};
use crate::model_host::plan_context;
use crate::strategies::time;

impl World {
    /// An answer to a change is what the journal has for its id, or a refusal.
    pub(super) fn check_answer(&self, answer: &Answer) {
        let sent = &self.sent[usize::try_from(answer.to.0).expect("small")];
        if sent.command.kind() == CommandKind::Query {
            return;
        }
        let key = (sent.caller.clone(), answer.id.clone());
        match (self.journal.commands.get(&key), &answer.reply) {
            (Some(record), reply) if record.fingerprint == sent.command.fingerprint() => {
                let outcome = record.outcome.as_ref().expect("an answer follows its outcome");
                match reply {
                    Ok(body) => assert!(!outcome.problem && *body == outcome.body),
                    Err(problem) => {
                        assert!(outcome.problem);
                        let kept = serde_json::from_slice(&outcome.body).ok();
                        assert_eq!(Some(problem), kept.as_ref());
                    }
                }
            }
            (Some(_), Err(problem)) => assert_eq!(problem.code, ProblemCode::CommandIdReused),
            (None, Err(_)) => {}
            (_, Ok(_)) => panic!("a success that the journal does not have: {answer:?}"),
        }
    }

    /// Lets all come to rest with a host that answers, and checks that everybody has what they asked for, or knows why
    /// not.
    pub(in crate::engine) fn come_to_rest(&mut self) {
        self.disk_is_full = false;
        self.disk_is_low = false;
        // A caller that got no answer from an earlier run asks again.
        for nth in 0..self.sent.len() {
            let sent = &self.sent[nth];
            if sent.run < self.run && sent.answers == 0 && sent.id.is_some() {
                self.send(sent.caller.clone(), sent.id.clone(), sent.command.clone());
            }
        }
        let mut rounds = 0;
        while !self.pending.is_empty() || !self.work.is_empty() || rounds < 2 {
            assert!(rounds < ROUNDS, "it does not come to rest");
            self.do_all();
            rounds += 1;
        }
        for sent in &self.sent {
            let expected = usize::from(sent.run == self.run);
            let is_right = sent.answers == expected || (sent.run < self.run && sent.answers <= 1);
            assert!(is_right, "{} answers to {:?}", sent.answers, sent.command);
        }
        for record in self.journal.commands.values() {
            assert!(record.outcome.is_some(), "without an outcome: {record:?}");
        }
        for job in self.engine.state().jobs.values() {
            assert!(job.phase.is_final(), "it does not end: {job:?}");
        }
        for container in self.engine.state().containers.values() {
            self.check_container(container);
            self.check_credentials(container);
        }
        for name in self.host.containers.keys() {
            assert!(
                self.engine.state().containers.contains_key(name),
                "{name} is on the host and unknown"
            );
        }
        let state = self.engine.state();
        let recorded: Vec<_> = state
            .secrets
            .values()
            .map(|s| (&s.name, &s.digest, &s.users))
            .collect();
        let kept: Vec<_> = self
            .host
            .secrets
            .values()
            .map(|s| (&s.name, &s.digest, &s.users))
            .collect();
        assert_eq!(recorded, kept, "the state has the secrets of the host");
        for container in state
            .containers
            .values()
            .filter(|c| c.desired.run != DesiredRun::Absent)
        {
            let desired = &container.desired;
            if desired.toplevel.is_none() {
                continue;
            }
            for (name, digest) in restarting(&state.secrets, &container.name, &desired.options) {
                assert_eq!(desired.secrets.get(&name), Some(&digest), "{container:?}");
            }
        }
        let entries = self.engine.state().entries();
        assert_eq!(
            entries, self.journal.entries,
            "the journal's entries are the state"
        );
    }

    /// A container that should run has credentials that don't end soon.
    fn check_credentials(&self, container: &Container) {
        let name = &container.name;
        if container.phase != ContainerPhase::Running || !self.host.containers.contains_key(name) {
            return;
        }
        let issued = self.host.credentials.get(name).expect("it was created with some");
        let life = Life::from(time(*issued), CONTAINER_VALID);
        // It was looked at in the last round, in which they may have been issued.
        let now = time(self.now.saturating_sub(600).max(*issued));
        assert!(
            !life.is_due(now),
            "{name} has credentials of {issued}, and it is {}",
            self.now
        );
    }

    /// A container is in its desired state, or says why not.
    fn check_container(&self, container: &Container) {
        let observed = self.host.containers.get(&container.name);
        let is_explained = container.error.is_some();
        match (container.phase, container.desired.run) {
            (ContainerPhase::Running, DesiredRun::Running)
            | (ContainerPhase::Stopped, DesiredRun::Stopped) => {
                let left = plan(container, observed, &plan_context());
                // A stopped container that another program removed is created again when a caller needs it.
                let is_removed = observed.is_none() && container.phase == ContainerPhase::Stopped;
                assert!(
                    is_removed || left.is_empty(),
                    "left to do for {container:?}: {left:?}"
                );
            }
            (ContainerPhase::Stopped, DesiredRun::Running) | (ContainerPhase::Failed, _) => {
                assert!(is_explained, "not explained: {container:?}, {observed:?}");
            }
            _ => panic!("neither reached nor explained: {container:?}, {observed:?}"),
        }
    }
}

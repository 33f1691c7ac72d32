//! The commits of the model, the effects that follow them, and the ends of the work that they began.

use leaf_core::decide::Question;
use leaf_core::engine::{Answer, Effect, Input, Record};
use leaf_core::event::Event;
use leaf_core::job::{JobOutcome, JobPhase, JobResult};
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::reconcile::Resource;
use leaf_core::state::apply;

use super::super::steps::{Fate, Of};
use super::{Work, World, labels_of_settings};

impl World {
    /// Commits the oldest records, and carries out their effects.
    pub(in crate::engine) fn commit(&mut self, records: usize) {
        for _ in 0..records {
            if self.disk_is_full
                && self
                    .pending
                    .front()
                    .is_some_and(|record| !record.batch.is_empty())
            {
                return;
            }
            let Some(Record { batch, effects }) = self.pending.pop_front() else {
                return;
            };
            self.committed += 1;
            for (key, json) in batch.entries {
                match json {
                    Some(json) => {
                        let value = serde_json::from_slice(&json).expect("JSON");
                        self.journal.entries.insert(key, value);
                    }
                    None => {
                        self.journal.entries.remove(&key);
                    }
                }
            }
            for command in batch.commands {
                let key = (command.caller.clone(), command.id.clone());
                self.journal.commands.insert(key, command);
            }
            for event in batch.events {
                apply(
                    &mut self.journal.replayed,
                    &Event::from_record(&event).expect("its own event"),
                );
                self.journal.events.push(event);
            }
            for effect in effects {
                self.carry_out(effect);
            }
        }
    }

    /// Begins what an effect asks for. What it is about must be committed.
    fn carry_out(&mut self, effect: Effect) {
        let known = &self.journal.replayed;
        match effect {
            Effect::Answer(answer) => {
                self.check_answer(&answer);
                self.count_answer(&answer);
            }
            Effect::Ask { to, question, .. } => {
                if let Question::Containers(listed) = &question {
                    assert!(listed.iter().all(|container| container.revisions.is_empty()));
                }
                self.sent[usize::try_from(to.0).expect("small")].answers += 1;
            }
            Effect::TakeSession(id, _) => {
                assert!(self.state().jobs.contains_key(&id), "a session is a job's");
            }
            Effect::ScanHardware { rescan } => self.work.push(Work::Scan { rescan }),
            Effect::FindForeign(name) => self.work.push(Work::Foreign(name)),
            Effect::ChangeSecret(change) => {
                let is_same =
                    |work: &Work| matches!(work, Work::Secret(other) if other.name() == change.name());
                assert!(
                    !self.work.iter().any(is_same),
                    "two changes of {} at once",
                    change.name()
                );
                self.work.push(Work::Secret(change));
            }
            Effect::Change { number, step } => self.work.push(Work::Change { number, step }),
            Effect::ObserveSecrets { moves } => {
                let found = self.host.secrets.values().cloned().collect();
                self.of_secrets.push_back(Input::SecretsObserved { moves, found });
            }
            Effect::TakeSteps { container, renew, .. } => {
                let name = &container.name;
                let committed = known.containers.get(name).map(|container| &container.desired);
                assert_eq!(
                    committed,
                    Some(&container.desired),
                    "steps for what is not committed"
                );
                self.begin_steps(container, Of::Desired { renew }, self.told);
            }
            Effect::Interrupt {
                resource: Resource::Container(name),
                interruption,
            } => {
                for work in &mut self.work {
                    if let Work::Steps { container, told, .. } = work
                        && container.name == name
                    {
                        *told = interruption;
                    }
                }
            }
            Effect::RunJob(job) => {
                let phase = known.jobs.get(&job.id).map(|job| job.phase);
                assert_eq!(
                    phase,
                    Some(JobPhase::Running),
                    "a job whose start is not committed"
                );
                let is_same =
                    |work: &Work| matches!(work, Work::Job { job: other, .. } if other.id == job.id);
                assert!(!self.work.iter().any(is_same), "two runs of job {}", job.id);
                self.work.push(Work::Job {
                    job,
                    cancelled: false,
                });
            }
            Effect::CancelJob(id) => {
                for work in &mut self.work {
                    if let Work::Job { job, cancelled } = work
                        && job.id == id
                    {
                        *cancelled = true;
                    }
                }
            }
            Effect::ForgetJobs(ids) => {
                assert!(
                    ids.iter().all(|id| !known.jobs.contains_key(id)),
                    "a job that is known is forgotten"
                );
            }
            Effect::TellWorks(works) => self.told_works = works,
            Effect::ShowLabels(labels) => {
                let committed = known.leaf.as_ref().map(|leaf| &leaf.labels);
                let committed = committed.expect("a leaf that has started");
                assert_eq!(
                    labels,
                    leaf_core::labels::effective(&labels_of_settings(), committed),
                    "labels are shown before they are committed"
                );
            }
            Effect::PublishJobEnd(id) => {
                let is_final = known.jobs.get(&id).is_none_or(|job| job.phase.is_final());
                assert!(
                    is_final,
                    "the end of job {id} is published before it is committed"
                );
            }
        }
    }

    pub(super) fn count_answer(&mut self, answer: &Answer) {
        let sent = &mut self.sent[usize::try_from(answer.to.0).expect("small")];
        sent.answers += 1;
        sent.reply = Some(answer.reply.clone());
        assert_eq!(sent.answers, 1, "answered twice: {answer:?}");
        assert_eq!(
            sent.run, self.run,
            "a request of an earlier run is answered: {answer:?}"
        );
    }

    /// Ends one piece of work.
    pub(in crate::engine) fn finish_work(
        &mut self,
        nth: usize,
        fate: Fate,
        build: &Result<JobResult, String>,
    ) {
        let Some(nth) = nth.checked_rem(self.work.len()) else {
            return;
        };
        self.now += 1;
        let input = match self.work.remove(nth) {
            Work::Steps { container, of, told } => Input::StepsEnded {
                outcome: self.host.take_steps(&container, of, told, fate, self.now),
                name: container.name,
            },
            Work::Job { job, cancelled } => {
                let outcome = match (cancelled, build) {
                    (true, _) => JobOutcome::Cancelled,
                    (false, Ok(result)) => JobOutcome::Succeeded(result.clone()),
                    (false, Err(why)) => JobOutcome::Failed(why.clone().into()),
                };
                Input::JobEnded {
                    id: job.id,
                    outcome,
                    attestation: None,
                }
            }
            Work::Scan { rescan } => Input::HardwareScanned {
                scanned: Ok(self.inventory.clone()),
                rescan,
            },
            Work::Secret(change) => {
                let name = change.name().clone();
                let failed = || Err(Problem::new(ProblemCode::Failed, "the helper went away"));
                let outcome = match fate {
                    Fate::Fails(_) => failed(),
                    Fate::HelperGone(_) => {
                        self.host.change_secret(&change);
                        failed()
                    }
                    Fate::Done | Fate::Unobserved | Fate::Late => Ok(self.host.change_secret(&change)),
                };
                Input::SecretMade { name, outcome }
            }
            Work::Change { number, .. } => Input::Changed {
                number,
                outcome: match fate {
                    Fate::Done => Ok(()),
                    _ => Err(Problem::new(ProblemCode::Conflict, "the witness did not answer")),
                },
            },
            Work::Foreign(name) => Input::ForeignObserved {
                found: Ok(self.host.foreign.get(&name).cloned()),
                name,
            },
        };
        self.feed(input);
    }
}

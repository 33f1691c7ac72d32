//! Makes the leaf's report on itself.

use crate::command::LeafReport;
use crate::container::ContainerPhase;
use crate::hardware::DeviceStatus;
use crate::job::JobPhase;
use crate::labels;

use super::Engine;
use super::input::At;

impl Engine {
    pub(super) fn report(&self, at: &At) -> LeafReport {
        let conditions = &at.conditions;
        let state = self.state();
        let leaf = state.leaf.as_ref().expect("an instance records its start first");
        let capabilities = self.admission.capabilities();
        let containers = |phase| state.containers.values().filter(move |c| c.phase == phase);
        let jobs = |phase| state.jobs.values().filter(move |job| job.phase == phase);
        let present = state
            .devices
            .values()
            .filter(|device| device.status != DeviceStatus::Absent);
        LeafReport {
            name: leaf.name.clone(),
            instance: leaf.instance,
            version: leaf.version.clone(),
            started_at: leaf.started_at,
            host: leaf.host.clone(),
            labels: labels::effective(&self.settings.labels, &leaf.labels),
            labels_of_settings: self.settings.labels.keys().cloned().collect(),
            epoch: self.history.epoch(),
            // With a full disk, what is only in memory is not reported.
            sequence: if self.is_stuck(conditions) {
                conditions.durable_sequence
            } else {
                state.sequence
            },
            published: self.published,
            devices_present: present.count() as u64,
            devices: state.devices.len() as u64,
            containers_running: containers(ContainerPhase::Running).count() as u64,
            containers: state.containers.len() as u64,
            jobs_running: jobs(JobPhase::Running).count() as u64,
            jobs_queued: jobs(JobPhase::Queued).count() as u64,
            refusing: self.refuses(conditions).map(|problem| problem.detail),
            no_containers: capabilities.containers.as_ref().err().cloned(),
            no_nix_jobs: capabilities.nix.as_ref().err().cloned(),
            raw_entries: state.raw_entries(),
            hub: self.hub.clone(),
            credentials_until: self.credentials_until,
            change: self.changes.open(at.moment),
            hub_in_place: self.changes.hub_in_place(),
            provenance_key: self.settings.provenance_key.clone(),
            local_access: self.local_access.clone(),
        }
    }
}

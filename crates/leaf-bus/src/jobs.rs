//! What a job says while it runs: core messages of the moment, which nobody keeps.

use async_nats::HeaderMap;
use bytes::Bytes;
use jiff::Timestamp;
use leaf_core::event::header;
use leaf_core::id::{JobId, LeafName};
use leaf_core::job::Progress;
use leaf_core::subject;

use crate::connect::Bus;

impl Bus {
    /// Tells how far a job is. Without a connection it is dropped: the next one says more.
    pub async fn publish_progress(&self, leaf: &LeafName, job: JobId, progress: &Progress) {
        let body = serde_json::to_vec(progress).expect("progress has string keys only");
        let to = subject::job_progress(leaf, job);
        self.publish_of_job(
            leaf,
            job,
            to,
            "cim.leaf.job.progress.v1",
            "application/json",
            body.into(),
        )
        .await;
    }

    /// Passes on a piece of what a job prints. Without a connection it is dropped: the job's log has all of it.
    pub async fn publish_log(&self, leaf: &LeafName, job: JobId, text: &[u8]) {
        let to = subject::job_log(leaf, job);
        let body = Bytes::copy_from_slice(text);
        self.publish_of_job(
            leaf,
            job,
            to,
            "cim.leaf.job.log.v1",
            "text/plain; charset=utf-8",
            body,
        )
        .await;
    }

    /// Tells that a job has ended, for those who wait. The event says it for good.
    pub async fn publish_ended(&self, leaf: &LeafName, job: JobId) {
        let to = subject::job_ended(leaf, job);
        let body = Bytes::from_static(b"{}");
        self.publish_of_job(leaf, job, to, "cim.leaf.job.ended.v1", "application/json", body)
            .await;
    }

    async fn publish_of_job(
        &self,
        leaf: &LeafName,
        job: JobId,
        to: String,
        kind: &str,
        content: &str,
        body: Bytes,
    ) {
        if !self.link.is_connected() {
            return;
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::SPECVERSION, "1.0");
        headers.insert(header::ID, uuid::Uuid::now_v7().hyphenated().to_string());
        headers.insert(header::SOURCE, format!("urn:cim-leaf:{leaf}"));
        headers.insert(header::TYPE, kind);
        headers.insert(header::SUBJECT, job.to_string());
        headers.insert(header::TIME, Timestamp::now().to_string());
        headers.insert(header::CONTENT_TYPE, content);
        if let Err(error) = self.link.client().publish_with_headers(to, headers, body).await {
            tracing::debug!(%error, %job, "a message of a job was not sent");
        }
    }
}

//! Messages of running jobs: core NATS messages that are not stored.

use async_nats::HeaderMap;
use bytes::Bytes;
use jiff::Timestamp;
use leaf_core::command::LogChunk;
use leaf_core::event::header;
use leaf_core::id::{JobId, LeafName};
use leaf_core::job::{ENDED_TYPE, JobEnded, LOG_TYPE, PROGRESS_TYPE, Progress};
use leaf_core::json::to_json;
use leaf_core::subject;

use crate::connect::Bus;

/// The kind of a message.
struct Kind {
    name: &'static str,
    content: &'static str,
}

impl Bus {
    /// Publishes a job's progress. Dropped without a connection: the next one replaces it.
    pub async fn publish_progress(&self, leaf: &LeafName, job: JobId, progress: &Progress) {
        let body = to_json(progress);
        let to = subject::job_progress(leaf, job);
        self.publish_of_job(
            leaf,
            job,
            to,
            Kind {
                name: PROGRESS_TYPE,
                content: "application/json",
            },
            body.into(),
            [],
        )
        .await;
    }

    /// Publishes the piece of a job's log that begins at `offset`. Dropped without a connection: the job's log is
    /// complete.
    pub async fn publish_log(&self, leaf: &LeafName, job: JobId, offset: u64, piece: &LogChunk) {
        let to = subject::job_log(leaf, job);
        let body = Bytes::copy_from_slice(piece.text.as_bytes());
        self.publish_of_job(
            leaf,
            job,
            to,
            Kind {
                name: LOG_TYPE,
                content: "text/plain; charset=utf-8",
            },
            body,
            [(header::OFFSET, offset), (header::NEXT_OFFSET, piece.next_offset)],
        )
        .await;
    }

    /// Publishes that a job has ended, for waiting clients. The durable record is the event.
    pub async fn publish_ended(&self, leaf: &LeafName, job: JobId) {
        let to = subject::job_ended(leaf, job);
        let body = to_json(&JobEnded {});
        let kind = Kind {
            name: ENDED_TYPE,
            content: "application/json",
        };
        self.publish_of_job(leaf, job, to, kind, body.into(), []).await;
    }

    async fn publish_of_job<const N: usize>(
        &self,
        leaf: &LeafName,
        job: JobId,
        to: String,
        kind: Kind,
        body: Bytes,
        more: [(&'static str, u64); N],
    ) {
        if !self.link.is_connected() {
            return;
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::SPECVERSION, "1.0");
        headers.insert(header::ID, uuid::Uuid::now_v7().hyphenated().to_string());
        headers.insert(header::SOURCE, format!("urn:cim-leaf:{leaf}"));
        headers.insert(header::TYPE, kind.name);
        headers.insert(header::SUBJECT, job.to_string());
        headers.insert(header::TIME, Timestamp::now().to_string());
        headers.insert(header::DATA_CONTENT_TYPE, header::encode(kind.content).as_ref());
        for (name, number) in more {
            headers.insert(name, number.to_string());
        }
        if let Err(error) = self.link.client().publish_with_headers(to, headers, body).await {
            tracing::debug!(%error, %job, "can't publish a job's message");
        }
    }
}

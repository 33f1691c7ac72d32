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
use crate::parts;

/// The least size of a piece of a log, in bytes.
const LEAST_PIECE_BYTES: usize = 128;

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

    /// Publishes the piece of a job's log that begins at `offset`, in several messages if the server accepts only smaller
    /// ones. Dropped without a connection: the job's log is complete.
    pub async fn publish_log(&self, leaf: &LeafName, job: JobId, offset: u64, piece: &LogChunk) {
        let room = parts::room(self.link.client().max_payload()).saturating_sub(parts::HEADER_ROOM);
        for (from, to, text) in pieces(
            &piece.text,
            offset,
            piece.next_offset,
            room.max(LEAST_PIECE_BYTES),
        ) {
            self.publish_of_job(
                leaf,
                job,
                subject::job_log(leaf, job),
                Kind {
                    name: LOG_TYPE,
                    content: "text/plain; charset=utf-8",
                },
                Bytes::copy_from_slice(text.as_bytes()),
                [(header::OFFSET, from), (header::NEXT_OFFSET, to)],
            )
            .await;
        }
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

/// Cuts a piece of a log into pieces of at most this many bytes, each with its offset and the offset of the next. The text may
/// have another size than the part of the log that it stands for, since bytes that are not UTF-8 are replaced and parts of a
/// very verbose job left out; then the offsets between are in proportion.
fn pieces(text: &str, from: u64, to: u64, max_bytes: usize) -> Vec<(u64, u64, &str)> {
    let (span, length) = (to.saturating_sub(from), text.len() as u64);
    let offset_of = |place: usize| match length {
        0 => to,
        _ if place as u64 == length => to,
        _ => from + (u128::from(span) * place as u128 / u128::from(length)) as u64,
    };
    let mut pieces = Vec::new();
    let mut begin = 0;
    loop {
        let mut end = text.floor_char_boundary((begin + max_bytes).min(text.len()));
        if end == begin {
            end = text.len();
        }
        let after = if end == text.len() { to } else { offset_of(end) };
        pieces.push((
            if begin == 0 { from } else { offset_of(begin) },
            after,
            &text[begin..end],
        ));
        if end == text.len() {
            return pieces;
        }
        begin = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_between_characters_with_its_offsets() {
        assert_eq!(pieces("", 7, 7, 4), [(7, 7, "")]);
        assert_eq!(pieces("abc", 7, 10, 4), [(7, 10, "abc")]);
        assert_eq!(
            pieces("abcdefgh\n", 7, 16, 4),
            [(7, 11, "abcd"), (11, 15, "efgh"), (15, 16, "\n")]
        );
        assert_eq!(
            pieces("aéééb", 0, 8, 4),
            [(0, 3, "aé"), (3, 7, "éé"), (7, 8, "b")]
        );
        // A part of the log was left out.
        let cut = pieces("abcdefgh", 100, 1100, 4);
        assert_eq!(cut, [(100, 600, "abcd"), (600, 1100, "efgh")]);
    }
}

//! The streams that the hub agent alone writes, and the subjects that it writes them on.
//!
//! Such a stream stores its messages under subjects that everybody knows, and takes them on others, which have a random key
//! in them. The key stands in the stream's settings, which a leaf can't read. A leaf can't publish in the account
//! of the hub's streams anyway; but it can bring the hub's server to do so, on a subject of its choice: whoever floods its own copy is
//! answered by `queueInbound` of nats-server (`server/stream.go`), acknowledgements or not.

use std::sync::Arc;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, Info, SubjectTransform};
use bytes::Bytes;
use leaf_core::subject;
use tokio::sync::watch;
use uuid::Uuid;

use crate::link::Link;
use crate::stream_error::StreamError;

/// Returns a key that nobody can guess: 122 bits of the random number generator that `rand` holds fit for keys.
#[allow(
    clippy::disallowed_methods,
    reason = "it is no id: it tells nothing of the time"
)]
pub(super) fn new_key() -> Uuid {
    Uuid::new_v4()
}

/// The settings of such a stream, but for the subjects that the agent writes it on.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    /// Its settings without subjects.
    pub(super) config: Config,
    /// The token of what it holds, in the subjects that it is written on.
    pub(super) what: &'static str,
    /// The beginning of the subjects that it stores its messages under, without the last dot.
    pub(super) stored: String,
    /// The subjects that earlier agents wrote it on.
    pub(super) written_before: String,
}

/// A stream that the hub agent alone writes. Cheap to clone; clones share what they know of it.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    link: Link,
    kind: Arc<Kind>,
    /// The beginning of the subjects that it is written on, with the last dot, once it was looked up.
    written: watch::Sender<Option<String>>,
}

impl Kept {
    pub(super) fn new(link: Link, kind: Kind) -> Self {
        Self {
            link,
            kind: Arc::new(kind),
            written: watch::Sender::default(),
        }
    }

    /// The stream's name.
    pub(super) fn name(&self) -> &str {
        &self.kind.config.name
    }

    /// Makes the stream if it does not exist, and looks up what it is written on.
    ///
    /// # Errors
    /// [`StreamError::Foreign`] if it has other settings; [`StreamError`].
    pub(super) async fn make(&self) -> Result<(), StreamError> {
        self.looked_up().await.map(drop)
    }

    /// Returns the subject to write a message on that is to be stored under this one. The stream is made if it does not exist.
    ///
    /// # Errors
    /// [`StreamError::Foreign`] if the stream has other settings; [`StreamError`].
    pub(super) async fn written(&self, stored: &str) -> Result<String, StreamError> {
        let known = self.written.borrow().clone();
        let prefix = match known {
            Some(prefix) => prefix,
            None => self.looked_up().await?,
        };
        let rest = stored
            .strip_prefix(&self.kind.stored)
            .and_then(|rest| rest.strip_prefix('.'));
        let rest = rest.ok_or_else(|| StreamError::Server {
            code: 0,
            description: format!("{stored} is no subject of the stream {}", self.name()),
        })?;
        Ok(prefix + rest)
    }

    /// Stores a message, and returns its number. A stream that is lost is made anew.
    ///
    /// # Errors
    /// [`StreamError`].
    pub(super) async fn put(
        &self,
        stored: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<u64, StreamError> {
        let put = async |headers, body| {
            let subject = self.written(stored).await?;
            self.link
                .publish_acked(self.name(), &subject, headers, body)
                .await
        };
        let result = match put(headers.clone(), body.clone()).await {
            Err(StreamError::NoStream { .. }) => {
                self.make().await?;
                put(headers, body).await
            }
            other => other,
        };
        self.noted(result)
    }

    /// Returns the result of a write. After an error that another stream of this name may be the reason for, it is looked up again before the
    /// next write: where somebody listens to all subjects, no server says that a stream is gone.
    pub(super) fn noted<T>(&self, result: Result<T, StreamError>) -> Result<T, StreamError> {
        if let Err(error) = &result
            && !matches!(
                error,
                StreamError::WrongLastSequence { .. } | StreamError::NotActive
            )
        {
            self.written.send_replace(None);
        }
        result
    }

    async fn looked_up(&self) -> Result<String, StreamError> {
        let info = match self.ensure().await {
            // Another agent may have made it meanwhile, with another key.
            Err(StreamError::Foreign { .. }) => self.ensure().await?,
            other => other?,
        };
        let prefix = self.prefix_of(&info.config).ok_or_else(|| StreamError::Foreign {
            stream: self.name().to_owned(),
            why: format!("its subjects are {:?}", info.config.subjects),
        })?;
        self.written.send_replace(Some(prefix.clone()));
        Ok(prefix)
    }

    async fn ensure(&self) -> Result<Info, StreamError> {
        let prefix = subject::written(new_key(), self.kind.what);
        let desired = Config {
            subjects: vec![format!("{prefix}>")],
            subject_transform: Some(self.transform(&prefix)),
            ..self.kind.config.clone()
        };
        let differs = |found: &Config| {
            let mut why = Vec::new();
            if self.prefix_of(found).is_none() && found.subjects != [self.kind.written_before.as_str()] {
                why.push(format!("its subjects are {:?}", found.subjects));
            }
            if found.max_messages_per_subject != desired.max_messages_per_subject || !found.max_age.is_zero()
            {
                why.push("it keeps another number of messages, or for a time only".to_owned());
            }
            if found.mirror.is_some() || found.sources.as_ref().is_some_and(|sources| !sources.is_empty()) {
                why.push("it is a copy of other streams".to_owned());
            }
            (!why.is_empty()).then(|| why.join(", "))
        };
        let merge = |found: &mut Config| {
            if self.prefix_of(found).is_none() {
                found.subjects.clone_from(&desired.subjects);
                found.subject_transform.clone_from(&desired.subject_transform);
            }
            found.republish.clone_from(&desired.republish);
            found.allow_direct = true;
        };
        let ensured = self.link.ensure_stream(&desired, differs, merge).await;
        ensured.map(|(info, _)| info)
    }

    fn transform(&self, prefix: &str) -> SubjectTransform {
        SubjectTransform {
            source: format!("{prefix}>"),
            destination: format!("{}.>", self.kind.stored),
        }
    }

    /// Returns the beginning of the subjects that a stream with these settings is written on; `None` if everybody knows it, or if it stores
    /// its messages under other subjects.
    fn prefix_of(&self, found: &Config) -> Option<String> {
        let [subjects] = &found.subjects[..] else {
            return None;
        };
        let prefix = subjects.strip_suffix('>')?;
        let is_secret = subject::is_written(prefix, self.kind.what);
        let stores = found.subject_transform.as_ref() == Some(&self.transform(prefix));
        (is_secret && stores).then(|| prefix.to_owned())
    }
}

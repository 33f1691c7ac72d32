//! The JetStream API as plain requests (NATS ADR-1, ADR-31), to distinguish all of its errors.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{Config, Info, RawMessage, RetentionPolicy};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::link::Link;
use crate::settings::ConnectError;
use crate::stream_error::{RequestError, Room, StreamError, request_error};

/// How long the server may take to answer a request.
pub(crate) const API_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the settings of a stream that keeps the last message of each subject, without other limits and without its
/// subjects.
pub(crate) fn last_of_each_subject(name: String) -> Config {
    Config {
        name,
        max_messages_per_subject: 1,
        max_messages: -1,
        max_bytes: -1,
        max_consumers: -1,
        max_message_size: -1,
        num_replicas: 1,
        retention: RetentionPolicy::Limits,
        allow_direct: true,
        ..Config::default()
    }
}

/// An error of the API.
#[derive(Debug, Deserialize)]
pub(crate) struct ApiError {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// The answer about an account (`JSApiAccountInfoResponse` of nats-server), as far as it is used. Limits of -1 are none.
#[derive(Debug, Deserialize)]
struct AccountInfo {
    #[serde(flatten)]
    all: AccountUse,
    /// By the number of replicas, such as `R1`, if the account's limits differ by it.
    #[serde(default)]
    tier: BTreeMap<String, AccountUse>,
}

#[derive(Debug, Deserialize)]
struct AccountUse {
    #[serde(default)]
    reserved_storage: u64,
    limits: AccountLimits,
}

#[derive(Debug, Deserialize)]
struct AccountLimits {
    max_storage: i64,
    #[serde(default)]
    storage_max_stream_bytes: i64,
}

impl AccountInfo {
    /// Returns the room for a stream in files that has no room with this size, of which it has `own` bytes already.
    fn room(&self, needed: u64, own: u64, replicas: usize) -> Room {
        let AccountUse {
            reserved_storage,
            limits,
        } = self.tier.get(&format!("R{replicas}")).unwrap_or(&self.all);
        let reserved_bytes = reserved_storage.saturating_sub(own);
        let limit = |bytes: i64| u64::try_from(bytes).ok().filter(|bytes| *bytes > 0);
        match (limit(limits.storage_max_stream_bytes), limit(limits.max_storage)) {
            (Some(limit_bytes), _) if needed > limit_bytes => Room::OfStream { limit_bytes },
            (_, Some(limit_bytes)) if needed + reserved_bytes > limit_bytes => Room::OfAccount {
                limit_bytes,
                reserved_bytes,
            },
            _ => Room::OfServer { reserved_bytes },
        }
    }
}

#[derive(Deserialize)]
struct MaybeError {
    error: Option<ApiError>,
}

/// The acknowledgement of a publish.
#[derive(Debug, Deserialize)]
pub(crate) struct Ack {
    #[serde(default)]
    pub(crate) seq: u64,
    error: Option<ApiError>,
}

impl ApiError {
    pub(crate) fn into_stream_error(self, stream: &str) -> StreamError {
        let description = self.description;
        match (self.err_code, self.code) {
            (10071 | 10164, _) => StreamError::WrongLastSequence {
                actual: description.rsplit_once(": ").and_then(|(_, n)| n.parse().ok()),
            },
            (10059, _) => StreamError::NoStream {
                stream: stream.to_owned(),
            },
            (10039 | 10076, _) => StreamError::JetStreamOff,
            // insufficient resources, memory, storage; the store failed (a full disk, or a limit of the stream)
            (10023 | 10028 | 10047 | 10077, _) => StreamError::StorageFull { description },
            (10054, _) => StreamError::TooLarge { description },
            (code, _) if is_limit(code) => StreamError::Limited {
                stream: stream.to_owned(),
                code,
                description,
            },
            (code, _) => StreamError::Server { code, description },
        }
    }
}

/// Whether the server rejects a stream's configuration permanently, by its error code (`server/errors.json` of
/// nats-server). Other errors may be temporary: no leader yet, too busy, starting.
fn is_conflict(code: u64) -> bool {
    matches!(
        code,
        // An invalid configuration or change, a name in use, subjects of another stream, a mirror with subjects, a
        // changed mirror, a sealed stream.
        10052 | 10058 | 10065 | 10034 | 10055 | 10109
    )
}

/// Whether an error code (`server/errors.json` of nats-server) says that a limit of the account does not allow a stream of
/// this form: the number of streams, no limits for its number of replicas, no size though one is required, a size that is
/// too large.
fn is_limit(code: u64) -> bool {
    matches!(code, 10027 | 10113 | 10120 | 10122)
}

/// Reads the acknowledgement of a publish, and returns the message's sequence number.
pub(crate) fn read_ack(payload: &[u8], stream: &str) -> Result<u64, StreamError> {
    let ack: Ack = serde_json::from_slice(payload).map_err(|e| unreadable(&e))?;
    match ack.error {
        Some(error) => Err(error.into_stream_error(stream)),
        None => Ok(ack.seq),
    }
}

/// Returns the response of the API about a stream, or its error.
pub(crate) fn read_answer<T: DeserializeOwned>(payload: &[u8], stream: &str) -> Result<T, StreamError> {
    let error: MaybeError = serde_json::from_slice(payload).map_err(|e| unreadable(&e))?;
    match error.error {
        Some(error) => Err(error.into_stream_error(stream)),
        None => serde_json::from_slice(payload).map_err(|e| unreadable(&e)),
    }
}

fn unreadable(error: &serde_json::Error) -> StreamError {
    StreamError::Server {
        code: 0,
        description: format!("the answer can't be read: {error}"),
    }
}

impl Link {
    pub(crate) async fn check_jetstream(&self) -> Result<(), ConnectError> {
        let limit = Duration::from_secs(5);
        let servers = self.servers().to_owned();
        let result: Result<serde_json::Value, _> = self.api("INFO", &serde_json::json!({}), limit).await;
        match result {
            Ok(_) => Ok(()),
            Err(StreamError::NoPermission { what }) => Err(ConnectError::NoPermission { what }),
            Err(StreamError::Unanswered { .. }) => Err(ConnectError::TimedOut {
                servers,
                seconds: 5.0,
            }),
            Err(StreamError::Disconnected) => {
                let problem = self.status().borrow().to_string();
                Err(ConnectError::NoServer {
                    servers,
                    source: problem.into(),
                })
            }
            Err(StreamError::JetStreamOff | StreamError::NoJetStream { domain: None }) => {
                Err(ConnectError::JetStreamOff { servers })
            }
            Err(source) => Err(ConnectError::NoJetStream { servers, source }),
        }
    }

    /// Sends a request to the API and returns its response.
    pub(crate) async fn api<T: DeserializeOwned>(
        &self,
        what: &str,
        body: &(impl Serialize + Sync),
        limit: Duration,
    ) -> Result<T, StreamError> {
        let subject = format!("{}.{what}", self.api_prefix());
        let body = serde_json::to_vec(body).expect("a request of the API has string keys only");
        let answer = self.request(&subject, None, body.into(), limit).await;
        let answer = answer.map_err(|e| request_error(e, what, self.domain()))?;
        read_answer(&answer.payload, what.rsplit('.').next().unwrap_or(what))
    }

    pub(crate) async fn stream_info(&self, stream: &str) -> Result<Info, StreamError> {
        self.api(
            &format!("STREAM.INFO.{stream}"),
            &serde_json::json!({}),
            API_TIMEOUT,
        )
        .await
    }

    /// Sets the settings of a stream.
    pub(crate) async fn update_stream(&self, config: &Config) -> Result<Info, StreamError> {
        self.api(&format!("STREAM.UPDATE.{}", config.name), config, API_TIMEOUT)
            .await
    }

    /// Creates a stream, or updates its settings; `differs` returns those that differ and can't be updated.
    pub(crate) async fn ensure_stream(
        &self,
        desired: &Config,
        differs: impl Fn(&Config) -> Option<String>,
        merge: impl Fn(&mut Config),
    ) -> Result<(Info, bool), StreamError> {
        let name = &desired.name;
        match self.stream_info(name).await {
            Ok(info) => {
                let foreign = |why| StreamError::Foreign {
                    stream: name.clone(),
                    why,
                };
                if let Some(why) = differs(&info.config) {
                    return Err(foreign(why));
                }
                let mut config = info.config.clone();
                merge(&mut config);
                if config == info.config {
                    return Ok((info, false));
                }
                match self.update_stream(&config).await {
                    Ok(info) => Ok((info, false)),
                    Err(StreamError::Server { code, description }) if is_conflict(code) => {
                        Err(foreign(format!("{description} ({code})")))
                    }
                    Err(other) => Err(other),
                }
            }
            Err(StreamError::NoStream { .. }) => {
                match self
                    .api(&format!("STREAM.CREATE.{name}"), desired, API_TIMEOUT)
                    .await
                {
                    Ok(info) => Ok((info, true)),
                    Err(StreamError::Server { code, description }) if is_conflict(code) => {
                        Err(StreamError::Foreign {
                            stream: name.clone(),
                            why: format!("{description} ({code})"),
                        })
                    }
                    Err(other) => Err(other),
                }
            }
            Err(other) => Err(other),
        }
    }

    /// Like [`Self::ensure_stream`], with several forms of the stream to create, which differ in storage and size: it gets
    /// the first one that the account's limits allow. One that exists is kept in its form.
    pub(crate) async fn ensure_stream_in_a_form(
        &self,
        best: &Config,
        others: impl IntoIterator<Item = Config>,
        differs: impl Fn(&Config) -> Option<String>,
        merge: impl Fn(&mut Config),
    ) -> Result<(Info, bool), StreamError> {
        let is_limited = |error: &StreamError| {
            matches!(
                error,
                StreamError::StorageFull { .. } | StreamError::Limited { .. }
            )
        };
        let refused = match self.ensure_stream(best, &differs, &merge).await {
            Err(error) if is_limited(&error) => error,
            other => return other,
        };
        for form in others {
            match self.ensure_stream(&form, &differs, &merge).await {
                Err(error) if is_limited(&error) => {}
                other => return other,
            }
        }
        Err(refused)
    }

    /// Returns a refusal of a stream's size with the size and the room that there is. Other errors are returned as they are.
    pub(crate) async fn with_room(&self, error: StreamError, desired: &Config) -> StreamError {
        // 10122: larger than the account allows a stream (`server/errors.json` of nats-server).
        if !matches!(
            error,
            StreamError::StorageFull { .. } | StreamError::Limited { code: 10122, .. }
        ) {
            return error;
        }
        let none = serde_json::json!({});
        let Ok(account) = self.api::<AccountInfo>("INFO", &none, API_TIMEOUT).await else {
            return error;
        };
        let size_of = |config: &Config| u64::try_from(config.max_bytes).unwrap_or(0);
        let own = match self.stream_info(&desired.name).await {
            Ok(info) => size_of(&info.config),
            Err(_) => 0,
        };
        let needed_bytes = size_of(desired);
        StreamError::NoRoom {
            stream: desired.name.clone(),
            needed_bytes,
            room: Box::new(account.room(needed_bytes, own, desired.num_replicas)),
        }
    }

    pub(crate) async fn delete_stream(&self, stream: &str) -> Result<(), StreamError> {
        let what = format!("STREAM.DELETE.{stream}");
        match self
            .api::<serde_json::Value>(&what, &serde_json::json!({}), API_TIMEOUT)
            .await
        {
            Ok(_) | Err(StreamError::NoStream { .. }) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// Reads one message from the stream's leader, or returns `None` if there is none.
    pub(crate) async fn get_message(
        &self,
        stream: &str,
        which: &serde_json::Value,
    ) -> Result<Option<StreamMessage>, StreamError> {
        #[derive(Deserialize)]
        struct Answer {
            message: RawMessage,
        }
        match self
            .api::<Answer>(&format!("STREAM.MSG.GET.{stream}"), which, API_TIMEOUT)
            .await
        {
            Ok(answer) => {
                let sequence = answer.message.sequence;
                let message = StreamMessage::try_from(answer.message);
                message.map(Some).map_err(|_| StreamError::NotAnEvent {
                    stream: stream.to_owned(),
                    sequence,
                })
            }
            Err(StreamError::Server { code: 10037, .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Publishes into a stream and waits for the acknowledgement.
    pub(crate) async fn publish_acked(
        &self,
        stream: &str,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<u64, StreamError> {
        match self.request(subject, Some(headers), body, API_TIMEOUT).await {
            Ok(answer) => read_ack(&answer.payload, stream),
            Err(RequestError::NoResponders) => Err(StreamError::NoStream {
                stream: stream.to_owned(),
            }),
            Err(error) => Err(request_error(
                error,
                &format!("a publish on {subject}"),
                self.domain(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_errors_are_not_conflicts() {
        for code in [10052, 10058, 10065] {
            assert!(is_conflict(code), "{code}");
        }
        // No cluster leader, no suitable peers, the server is shutting down, an update that failed in the store, a
        // write that failed, no code at all.
        for code in [10009, 10005, 10008, 10069, 10077, 0] {
            assert!(!is_conflict(code), "{code}");
        }
    }

    #[test]
    fn answers_to_a_publish_are_distinguished() {
        let read = |json: &str| read_ack(json.as_bytes(), "S");
        assert_eq!(read(r#"{"stream":"S","seq":7}"#), Ok(7));
        assert_eq!(
            read(
                r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"},"stream":"S","seq":0}"#
            ),
            Err(StreamError::WrongLastSequence { actual: Some(5) })
        );
        assert_eq!(
            read(r#"{"error":{"code":400,"err_code":10164,"description":"wrong last sequence"}}"#),
            Err(StreamError::WrongLastSequence { actual: None })
        );
        assert!(matches!(
            read(r#"{"error":{"code":503,"err_code":10077,"description":"no space left on device"}}"#),
            Err(StreamError::StorageFull { .. })
        ));
        assert!(matches!(read("+OK"), Err(StreamError::Server { code: 0, .. })));
    }
}

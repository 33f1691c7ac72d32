//! The requests of a session's client.

use std::cell::Cell;
use std::time::Duration;

use data_encoding::BASE64;
use leaf_bus::client::{CallError, Client, SessionReply};
use leaf_core::id::{JobId, LeafName};
use leaf_core::session::text::{Signed, signed_text};
use leaf_core::session::{
    Attach, Attached, NUMBER_HEADER, OFFSET_HEADER, REPLY_CHARACTERS, SESSION_HEADER, SIGNATURE_HEADER,
};
use leaf_trust::session_key::SessionKey;

/// The client's side of a session.
pub(crate) struct Wire {
    client: Client,
    leaf: LeafName,
    job: JobId,
    key: SessionKey,
    attachment: Cell<u64>,
}

/// A request that got no reply of this leaf.
#[derive(Debug)]
pub(crate) enum Failed {
    /// It can be sent again.
    Lost(CallError),
    /// The leaf refused it.
    Refused(CallError),
}

impl Wire {
    pub(crate) fn new(client: Client, leaf: LeafName, job: JobId, key: SessionKey) -> Self {
        Self {
            client,
            leaf,
            job,
            key,
            attachment: Cell::new(0),
        }
    }

    /// Returns the most bytes that fit into a message beside the headers.
    pub(crate) fn room(&self) -> usize {
        self.client.max_payload().saturating_sub(1024)
    }

    /// Attaches: asks for the nonce, and then with it.
    pub(crate) async fn attach(
        &self,
        size: Option<(u32, u32)>,
        timeout: Duration,
    ) -> Result<Attached, Failed> {
        let attach = Attach {
            versions: vec![leaf_core::session::VERSION],
            chunk_bytes: self.room(),
            size,
        };
        let body = serde_json::to_vec(&attach).unwrap_or_default();
        let mut nonce = "-".to_owned();
        for _ in 0..3 {
            let session = format!("{}/{nonce}", self.job);
            let reply = self
                .signed("attach", &session, 0, None, body.clone(), timeout)
                .await?;
            let attached: Attached = serde_json::from_slice(&reply.body).map_err(|error| {
                Failed::Lost(CallError::Other(format!("the reply to session.attach: {error}")))
            })?;
            match attached.nonce {
                Some(given) => nonce = given,
                None => {
                    self.attachment.set(0);
                    return Ok(attached);
                }
            }
        }
        Err(Failed::Lost(CallError::Other(
            "the leaf gives no nonce that it takes".to_owned(),
        )))
    }

    /// Sends a request of an attachment.
    pub(crate) async fn ask(
        &self,
        verb: &str,
        attachment: &str,
        offset: Option<u64>,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<SessionReply, Failed> {
        let number = self.attachment.get() + 1;
        self.attachment.set(number);
        let session = format!("{}/{attachment}", self.job);
        self.signed(verb, &session, number, offset, body, timeout).await
    }

    async fn signed(
        &self,
        verb: &str,
        session: &str,
        number: u64,
        offset: Option<u64>,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<SessionReply, Failed> {
        let text = signed_text(&Signed {
            leaf: &self.leaf,
            caller: self.client.caller(),
            verb,
            session,
            number,
            offset,
            body: &body,
        });
        let signature = BASE64.encode(&self.key.sign(&text));
        let tag: String = signature.chars().take(REPLY_CHARACTERS).collect();
        let mut headers = vec![
            (SESSION_HEADER, session.to_owned()),
            (NUMBER_HEADER, number.to_string()),
            (SIGNATURE_HEADER, signature),
        ];
        headers.extend(offset.map(|offset| (OFFSET_HEADER, offset.to_string())));
        let reply = self
            .client
            .session_request(&self.leaf, verb, (&headers, &tag), body, timeout)
            .await;
        match reply {
            Ok(reply) => Ok(reply),
            Err(error @ CallError::Problem(_)) => Err(Failed::Refused(error)),
            Err(error) => Err(Failed::Lost(error)),
        }
    }
}

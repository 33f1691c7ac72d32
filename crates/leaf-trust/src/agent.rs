//! The messages of ssh-agent (draft-miller-ssh-agent) that sign: which keys it has, and one signature. The socket is the caller's.

use ssh_encoding::{Decode as _, Encode as _, Reader as _};

use crate::ssh_signature::SignerKey;

const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// The largest message of an agent, in bytes (`AGENT_MAX_LEN` of OpenSSH).
pub const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// Why an agent's answer can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It does not do it.
    #[error(
        "ssh-agent refused: the key may be locked, its token absent or not touched, or the question declined"
    )]
    Refused,
    /// It is no answer to this message.
    #[error("can't read the answer of ssh-agent")]
    Malformed(#[source] ssh_encoding::Error),
}

/// Returns the message that asks for the agent's keys, with its length before it.
#[must_use]
pub fn identities_request() -> Vec<u8> {
    framed(&[REQUEST_IDENTITIES])
}

/// Returns the keys of an agent's answer that can sign, in its order; others are left out.
///
/// # Errors
/// [`AgentError`].
pub fn identities(answer: &[u8]) -> Result<Vec<SignerKey>, AgentError> {
    let mut reader = of_kind(answer, IDENTITIES_ANSWER)?;
    let count = u32::decode(&mut reader).map_err(AgentError::Malformed)?;
    let mut keys = Vec::new();
    for _ in 0..count {
        let key = Vec::<u8>::decode(&mut reader).map_err(AgentError::Malformed)?;
        reader.drain_prefixed().map_err(AgentError::Malformed)?;
        keys.extend(SignerKey::from_bytes(&key).ok());
    }
    Ok(keys)
}

/// Returns the message that asks for a signature over these bytes, with its length before it.
///
/// # Panics
/// If there are more than 4 GiB of them.
#[must_use]
pub fn sign_request(key: &SignerKey, data: &[u8]) -> Vec<u8> {
    let mut message = vec![SIGN_REQUEST];
    let flags = 0_u32;
    key.to_bytes()
        .encode(&mut message)
        .and_then(|()| data.encode(&mut message))
        .and_then(|()| flags.encode(&mut message))
        .expect("it is written into memory");
    framed(&message)
}

/// Returns the signature of an agent's answer, for [`SshSignature::of_agent`](crate::ssh_signature::SshSignature::of_agent).
///
/// # Errors
/// [`AgentError`].
pub fn signature(answer: &[u8]) -> Result<Vec<u8>, AgentError> {
    let mut reader = of_kind(answer, SIGN_RESPONSE)?;
    Vec::<u8>::decode(&mut reader).map_err(AgentError::Malformed)
}

fn of_kind(answer: &[u8], kind: u8) -> Result<&[u8], AgentError> {
    match answer.split_first() {
        Some((found, rest)) if *found == kind => Ok(rest),
        Some(_) => Err(AgentError::Refused),
        None => Err(AgentError::Malformed(ssh_encoding::Error::Length)),
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(message.len() + 4);
    message.encode(&mut framed).expect("it is written into memory");
    framed
}

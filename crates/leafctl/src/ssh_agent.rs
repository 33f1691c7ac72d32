//! The connection to ssh-agent.

use std::io;
use std::path::PathBuf;

use leaf_trust::agent::{self, AgentError, MAX_MESSAGE_BYTES};
use leaf_trust::ssh_signature::{SignError, SignerKey, SshSignature};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Why ssh-agent gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SshAgentError {
    /// None is named.
    #[error(
        "SSH_AUTH_SOCK names no ssh-agent: start one with `eval $(ssh-agent)`, and add the key with ssh-add"
    )]
    None,
    /// It can't be spoken to.
    #[error("can't speak to ssh-agent at {}", socket.display())]
    Io {
        /// Its socket.
        socket: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Its answer.
    #[error(transparent)]
    Answer(#[from] AgentError),
    /// Its signature can't be read.
    #[error("can't use the signature of ssh-agent")]
    Signature(#[source] SignError),
}

/// Returns the keys of ssh-agent that can sign commands, in its order.
pub(crate) async fn keys() -> Result<Vec<SignerKey>, SshAgentError> {
    let answer = ask(&agent::identities_request()).await?;
    Ok(agent::identities(&answer)?)
}

/// Has ssh-agent sign a text. It may take as long as a person needs to touch a token.
pub(crate) async fn sign(
    key: &SignerKey,
    namespace: &str,
    text: &[u8],
) -> Result<SshSignature, SshAgentError> {
    let data = SshSignature::data_to_sign(namespace, text).map_err(SshAgentError::Signature)?;
    let answer = ask(&agent::sign_request(key, &data)).await?;
    let made = agent::signature(&answer)?;
    SshSignature::of_agent(key, namespace, &made).map_err(SshAgentError::Signature)
}

async fn ask(message: &[u8]) -> Result<Vec<u8>, SshAgentError> {
    let socket = std::env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty());
    let socket = PathBuf::from(socket.ok_or(SshAgentError::None)?);
    exchange(&socket, message)
        .await
        .map_err(|source| SshAgentError::Io { socket, source })
}

async fn exchange(socket: &PathBuf, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(message).await?;
    let length = stream.read_u32().await? as usize;
    if length > MAX_MESSAGE_BYTES {
        let text = format!("its answer would have {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

//! Signs commands where a leaf asks for it: one signature for all leaves of a command, as far as one key may sign for them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use leaf_bus::client::{CallOptions, Client, Signed};
use leaf_core::command::{Challenge, ChallengeSigner, Declaration};
use leaf_core::id::{CommandId, LeafName};
use leaf_core::signed::{
    MAX_TEXT_BYTES, NAMESPACE, Nonce, OPENPGP_KIND, SSH_KIND, SignedText, TOLERANCE, body_hash, id_at,
};
use leaf_trust::ssh_signature::{SignError, SignerKey, SshSignature, public_key_of};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::error::Error;
use crate::gpg::GpgKey;
use crate::output::Output;
use crate::signing_error::SigningError;
use crate::ssh_agent;

/// For how long a signature holds.
const HOLDS: SignedDuration = SignedDuration::from_mins(2);
/// How long a leaf may take to say what a signature must have.
const CHALLENGE: Duration = Duration::from_secs(5);
/// The room in a message for other headers, and what base64 adds to the rest.
const OTHER_HEADERS: usize = 16 * 1024;
/// The bytes of a leaf's line in the text, at most.
const LEAF_LINE: usize = 64;

/// A key that may be signed with.
enum Candidate {
    /// An SSH key.
    Ssh {
        key: SignerKey,
        /// The file of the private key, if it signs by itself; else ssh-agent does.
        file: Option<PathBuf>,
    },
    /// An OpenPGP key.
    Gpg(GpgKey),
}

/// Whether a command to several leaves has one body, so that one text can be for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    /// One body for all leaves.
    OfAll,
    /// Another for each leaf: its text names that leaf only.
    Own,
}

/// The signatures of a command.
pub(crate) struct Signing {
    client: Client,
    /// All leaves that the command is for, sorted.
    leaves: Vec<LeafName>,
    /// The id of the command to all of them, if there are several.
    shared: Option<CommandId>,
    sign_with: Option<PathBuf>,
    timeout: Duration,
    output: Output,
    made: Mutex<Vec<Made>>,
}

/// A signature that was made, and the leaves that it was sent to.
struct Made {
    text: SignedText,
    signed: Signed,
    used: BTreeSet<LeafName>,
}

impl Signing {
    /// Returns the signatures of a command, of which none is made yet.
    pub(crate) fn new(
        client: Client,
        leaves: Vec<LeafName>,
        shared: Option<CommandId>,
        sign_with: Option<PathBuf>,
        timeout: Duration,
        output: Output,
    ) -> Self {
        Self {
            client,
            leaves,
            shared,
            sign_with,
            timeout,
            output,
            made: Mutex::default(),
        }
    }

    /// Returns a signature of a command to a leaf, and the id under which it is to be sent there. `id` is the one under which it
    /// was sent without, if it had one: the command keeps it.
    pub(crate) async fn sign(
        &self,
        leaf: &LeafName,
        command: &'static Declaration,
        body: &[u8],
        of: Body,
        id: Option<&CommandId>,
    ) -> Result<(CommandId, Signed), Error> {
        let hash = body_hash(body);
        // One after the other, so that the first signs for all.
        let mut made = self.made.lock().await;
        let is_for = |made: &&mut Made| {
            let text = &made.text;
            (text.noun.as_str(), text.verb.as_str()) == (command.noun, command.verb)
                && text.body == hash
                && text.leaves.contains_key(leaf)
                && !made.used.contains(leaf)
                && id.is_none_or(|id| id_at(&text.id, leaf, text.leaves.len()) == *id)
        };
        if let Some(made) = made.iter_mut().find(is_for) {
            made.used.insert(leaf.clone());
            let id = id_at(&made.text.id, leaf, made.text.leaves.len());
            return Ok((id, made.signed.clone()));
        }
        let new = self.make(leaf, command, body, of, id).await?;
        let id = id_at(&new.text.id, leaf, new.text.leaves.len());
        let signed = new.signed.clone();
        made.push(new);
        Ok((id, signed))
    }

    async fn make(
        &self,
        leaf: &LeafName,
        command: &'static Declaration,
        body: &[u8],
        of: Body,
        id: Option<&CommandId>,
    ) -> Result<Made, Error> {
        // A later change of this leaf alone has an id of its own.
        let shared = self
            .shared
            .as_ref()
            .filter(|shared| id.is_none_or(|id| shared.for_leaf(leaf) == *id));
        let asked = match (of, shared, id) {
            (Body::Own, _, _) | (Body::OfAll, None, Some(_)) => std::slice::from_ref(leaf),
            (Body::OfAll, _, _) => &self.leaves,
        };
        let mut challenges = self.challenges(asked).await;
        let own = challenges.remove(leaf).unwrap_or_else(|| {
            Err(Error::NoLeaf(format!(
                "leaf {leaf} does not say what a signature must have"
            )))
        })?;
        if let Some(why) = own.refusing {
            let (leaf, command) = (leaf.clone(), command.noun_verb);
            return Err(SigningError::Refusing { leaf, command, why }.into());
        }
        let mut answered: BTreeMap<&LeafName, Challenge> = BTreeMap::new();
        let (mut silent, mut clocks) = (Vec::new(), Vec::new());
        for (name, challenge) in &challenges {
            // What is no nonce would be a line of the text.
            let nonce = |challenge: &Challenge| {
                challenge
                    .nonce
                    .as_ref()
                    .is_none_or(|it| it.parse::<Nonce>().is_ok())
            };
            match challenge {
                Ok(challenge) if challenge.refusing.is_none() && nonce(challenge) => {
                    answered.insert(name, challenge.clone());
                }
                Ok(_) | Err(_) => silent.push(name.to_string()),
            }
        }
        answered.insert(
            leaf,
            Challenge {
                refusing: None,
                ..own
            },
        );
        let candidate = self.key_for(leaf, command, &answered).await?;
        let fingerprint = candidate.fingerprint();
        answered.retain(|_, challenge| challenge.keys.contains(&fingerprint));
        let time = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH);
        let mut leaves = BTreeMap::new();
        for (name, challenge) in self.part_of(&answered, leaf, body) {
            if challenge.time.duration_since(time).abs() > TOLERANCE {
                clocks.push(format!("{name} ({})", challenge.time));
            }
            let nonce = challenge.nonce.as_deref().map(str::parse::<Nonce>).transpose();
            let nonce = nonce.map_err(|source| SigningError::Nonce {
                leaf: name.clone(),
                source,
            })?;
            leaves.insert(name.clone(), nonce);
        }
        let text_id = match (leaves.len(), shared, id) {
            (1, _, Some(id)) => id.clone(),
            (_, Some(shared), Some(_)) => shared.clone(),
            _ => Uuid::now_v7().into(),
        };
        let text = SignedText {
            caller: self.client.caller().clone(),
            noun: command.noun.to_owned(),
            verb: command.verb.to_owned(),
            leaves,
            body: body_hash(body),
            id: text_id,
            time,
            expires: time.checked_add(HOLDS).unwrap_or(time),
        };
        self.announce(command, &text, &candidate, &silent, &clocks);
        let written = text.to_string();
        let signature = candidate.sign(written.as_bytes()).await?;
        Ok(Made {
            used: [leaf.clone()].into(),
            signed: Signed {
                text: written,
                kind: candidate.kind(),
                signature,
            },
            text,
        })
    }

    /// Asks leaves what a signature must have.
    async fn challenges(&self, leaves: &[LeafName]) -> BTreeMap<LeafName, Result<Challenge, Error>> {
        let asked = leaves.iter().map(async |leaf| {
            let options = CallOptions {
                timeout: self.timeout.min(CHALLENGE),
                ..CallOptions::default()
            };
            let answer = self.client.call(leaf, &ChallengeSigner {}, options).await;
            (leaf.clone(), answer.map_err(Error::from))
        });
        join_all(asked).await.into_iter().collect()
    }

    /// Returns as many leaves as fit into one signed text, this one among them.
    fn part_of<'a>(
        &self,
        answered: &'a BTreeMap<&'a LeafName, Challenge>,
        leaf: &LeafName,
        body: &[u8],
    ) -> impl Iterator<Item = (&'a LeafName, &'a Challenge)> {
        let room = self
            .client
            .max_payload()
            .saturating_sub(body.len() + OTHER_HEADERS)
            / 4
            * 3;
        let at_once = (room.min(MAX_TEXT_BYTES - 1024) / LEAF_LINE).max(1);
        let place = answered.keys().position(|name| *name == leaf).unwrap_or_default();
        let first = place / at_once * at_once;
        let part = answered.iter().skip(first).take(at_once);
        part.map(|(name, challenge)| (*name, challenge))
    }

    /// Returns the first key that all these leaves let sign, or else this leaf.
    async fn key_for(
        &self,
        leaf: &LeafName,
        command: &'static Declaration,
        answered: &BTreeMap<&LeafName, Challenge>,
    ) -> Result<Candidate, Error> {
        let own = &answered[leaf].keys;
        let is_allowed = |candidate: &Candidate| own.contains(&candidate.fingerprint());
        if let Some(file) = &self.sign_with {
            let candidate = named(file)?;
            if is_allowed(&candidate) {
                return Ok(candidate);
            }
            return Err(SigningError::NotAllowed {
                leaf: leaf.clone(),
                key: candidate.fingerprint(),
                file: file.clone(),
                hint: candidate.hint(),
            }
            .into());
        }
        let (mut candidates, mut because) = (Vec::new(), String::new());
        match ssh_agent::keys().await {
            Ok(keys) => candidates.extend(keys.into_iter().map(|key| Candidate::Ssh { key, file: None })),
            Err(error) => because = format!(" ({})", leaf_core::error::chain(&error)),
        }
        candidates.extend(at_home());
        candidates.retain(is_allowed);
        let of_all = |candidate: &Candidate| {
            let key = candidate.fingerprint();
            answered.values().all(|challenge| challenge.keys.contains(&key))
        };
        let place = candidates.iter().position(of_all).unwrap_or_default();
        if candidates.is_empty() {
            return Err(SigningError::NoKey {
                leaf: leaf.clone(),
                command: command.noun_verb,
                allowed: if own.is_empty() {
                    "of nobody".to_owned()
                } else {
                    own.join(", ")
                },
                because,
            }
            .into());
        }
        Ok(candidates.swap_remove(place))
    }

    /// Says what is about to be signed, where that is more than the command line says.
    fn announce(
        &self,
        command: &Declaration,
        text: &SignedText,
        candidate: &Candidate,
        silent: &[String],
        clocks: &[String],
    ) {
        if !clocks.is_empty() {
            self.output.note(&format!(
                "the clock of this host says {}, and those of leaves differ by more than a minute: {}",
                text.time,
                clocks.join(", ")
            ));
        }
        if !silent.is_empty() {
            self.output.note(&format!(
                "without a signature for {}, which did not say what it must have",
                silent.join(", ")
            ));
        }
        if self.leaves.len() > 1 {
            let names: Vec<&str> = text.leaves.keys().map(LeafName::as_str).collect();
            self.output.note(&format!(
                "signing {} for {} of {} leaves: {}",
                command.noun_verb,
                names.len(),
                self.leaves.len(),
                names.join(", ")
            ));
        }
        if candidate.is_on_token() {
            self.output.note(&format!(
                "touch the token of {} to sign {}",
                candidate.fingerprint(),
                command.noun_verb
            ));
        }
    }
}

impl Candidate {
    /// Returns the fingerprint as a leaf shows it.
    fn fingerprint(&self) -> String {
        match self {
            Self::Ssh { key, .. } => key.fingerprint(),
            Self::Gpg(key) => key.shown(),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Ssh { .. } => SSH_KIND,
            Self::Gpg(_) => OPENPGP_KIND,
        }
    }

    /// Returns whether a person has to touch a token for a signature, and is told only here.
    fn is_on_token(&self) -> bool {
        match self {
            Self::Ssh { key, .. } => key.is_on_token(),
            Self::Gpg(_) => false,
        }
    }

    /// Returns what may be the cause where a leaf does not let the key sign.
    fn hint(&self) -> &'static str {
        match self {
            Self::Ssh { .. } => "",
            Self::Gpg(_) => {
                "; only a leafd that was built with the cargo feature openpgp accepts OpenPGP keys, those of trust.allowed_openpgp"
            }
        }
    }

    /// Returns the bytes of a signature over a text.
    async fn sign(&self, text: &[u8]) -> Result<Vec<u8>, SigningError> {
        match self {
            Self::Ssh { file: Some(file), .. } => {
                let private = read(file)?;
                let signed = SshSignature::sign(&private, NAMESPACE, text);
                signed
                    .map(|signature| signature.to_bytes())
                    .map_err(|source| SigningError::File {
                        file: file.clone(),
                        source,
                    })
            }
            Self::Ssh { key, file: None } => ssh_agent::sign(key, NAMESPACE, text)
                .await
                .map(|signature| signature.to_bytes())
                .map_err(SigningError::Agent),
            Self::Gpg(key) => Ok(key.sign(text).await?),
        }
    }
}

/// Returns the key of `--sign-with`: that of a private key's file, one of ssh-agent by its public key, or one of gpg.
fn named(given: &Path) -> Result<Candidate, SigningError> {
    match given.to_str().map(GpgKey::of).transpose()?.flatten() {
        Some(key) => Ok(Candidate::Gpg(key)),
        None => named_file(given),
    }
}

fn named_file(file: &Path) -> Result<Candidate, SigningError> {
    let content = read(file)?;
    let by_itself = |source| SigningError::File {
        file: file.to_owned(),
        source,
    };
    if let Some(key) = std::str::from_utf8(&content)
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return Ok(Candidate::Ssh { key, file: None });
    }
    let key = public_key_of(&content).map_err(by_itself)?;
    match SshSignature::sign(&content, NAMESPACE, b"") {
        Ok(_) => Ok(Candidate::Ssh {
            key,
            file: Some(file.to_owned()),
        }),
        // With a passphrase or on a token, it may be in ssh-agent.
        Err(SignError::Encrypted | SignError::OnToken) => Ok(Candidate::Ssh { key, file: None }),
        Err(error) => Err(by_itself(error)),
    }
}

/// Returns the usual keys of this user that sign by themselves. One in ssh-agent was found there.
fn at_home() -> Vec<Candidate> {
    let Some(home) = std::env::var_os("HOME") else {
        return Vec::new();
    };
    let file = Path::new(&home).join(".ssh/id_ed25519");
    named_file(&file)
        .ok()
        .filter(|candidate| matches!(candidate, Candidate::Ssh { file: Some(_), .. }))
        .into_iter()
        .collect()
}

fn read(file: &Path) -> Result<Vec<u8>, SigningError> {
    std::fs::read(file).map_err(|source| SigningError::Read {
        file: file.to_owned(),
        source,
    })
}

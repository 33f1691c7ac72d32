//! Signed commands over NATS: what is refused, and why, and that a signature counts once.

#[path = "signed/signatures.rs"]
mod signatures;
#[path = "signed/signers.rs"]
mod signers;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use async_nats::{HeaderMap, Message};
use data_encoding::BASE64;
use jiff::{SignedDuration, Timestamp};
use leaf_core::id::{Caller, CommandId, LeafName};
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::signed::{NAMESPACE, SIGNATURE_HEADER, SignedText, TEXT_HEADER, body_hash};
use leaf_journal::{Journal, Options};
use leaf_trust::ssh_signature::SshSignature;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use uuid::Uuid;

use super::wire::{Wire, problem, valid, value};
use crate::support::{Host, Setup, TestLeaf, ssh_key, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    vec![
        host.trial("signed: a command that needs a signature is refused without one and accepted with one, of ssh-keygen as well, and its record names the key", &[], signatures::accepted),
        host.trial("signed: a signature that is altered, for something else, by another key or not of now is refused, and nothing changes", &[], signatures::refused),
        host.trial("signed: a change that is sent again gets its first reply and a query is refused, also after a restart", &[], signatures::replayed),
        host.trial("signed: a key that is revoked or taken out counts no more at once, and files that can't be used refuse all", &[], signers::files),
        host.trial("signed: without a trusted clock only a nonce of this run for this caller counts", &[], signatures::nonces),
        host.trial("signed: what was signed before the journal was lost is refused, and what has a nonce is not", &[], signatures::journal_lost),
        host.trial("signed: refused signatures are recorded, once in ten seconds and not for each caller that is made up", &[], signers::recorded),
        host.trial("signed: a person at the machine sees and stops containers without a signature, and nobody else does", &[], signers::at_the_machine),
    ]
}

/// A directory with keys, and who may sign.
struct Keys {
    directory: tempfile::TempDir,
}

impl Keys {
    async fn make(names: &[&str]) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let keys = Self { directory };
        for name in names {
            ssh_key(&keys.path(name)).await?;
        }
        Ok(keys)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn public(&self, name: &str) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(self.path(&format!("{name}.pub")))?;
        Ok(text.trim().to_owned())
    }

    fn fingerprint(&self, name: &str) -> anyhow::Result<String> {
        let key: leaf_trust::ssh_signature::SignerKey = self.public(name)?.parse()?;
        Ok(key.fingerprint())
    }

    /// Writes a file that only its owner can write.
    fn write(&self, name: &str, content: &str) -> anyhow::Result<PathBuf> {
        let file = self.path(name);
        // In one step, as it is replaced where people do it.
        let beside = self.path("new");
        std::fs::write(&beside, content)?;
        std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o644))?;
        std::fs::rename(&beside, &file)?;
        Ok(file)
    }

    /// Returns settings in which `tester` may sign with the key `tester`, and `zoe` with her own.
    fn setup(&self, clock: &str, require: &[&str]) -> anyhow::Result<Setup> {
        let allowed = format!("tester {}\nzoe {}\n", self.public("tester")?, self.public("zoe")?);
        let allowed = self.write("allowed", &allowed)?;
        let revoked = self.write("revoked", "")?;
        let require: Vec<&str> = ["runs-code", "cuts-off"].iter().chain(require).copied().collect();
        Ok(Setup::new()
            .set("trust.allowed_signers", allowed.display().to_string())
            .set("trust.revoked_signers", revoked.display().to_string())
            .set("trust.clock", clock)
            .set("trust.require_signature", require))
    }
}

const LABEL: &str = "leaf.label";

fn label(value: &str) -> Value {
    json!({ "set": { "site": value } })
}

/// Opens the journal of a leaf that does not run.
async fn open_journal(name: &LeafName, directory: &Path) -> anyhow::Result<Journal> {
    let options = Options {
        leaf: name.clone(),
        epoch_if_new: u64::try_from(Timestamp::now().as_millisecond())?,
        cache_bytes: 1 << 20,
        holder: "a test".to_owned(),
    };
    let directory = directory.to_owned();
    std::fs::create_dir_all(&directory)?;
    let (journal, _) = tokio::task::spawn_blocking(move || Journal::open(&directory, &options)).await??;
    Ok(journal)
}

/// Makes the journal of a leaf that was made an hour ago, so that it needs no nonce.
async fn old_journal(name: &LeafName, directory: &Path) -> anyhow::Result<()> {
    let journal = open_journal(name, directory).await?;
    journal
        .mark(Timestamp::now() - SignedDuration::from_hours(1))
        .await?;
    journal.close().await;
    Ok(())
}

/// A leaf that goes by its clock, and needs a signature for labels and for the list of devices.
struct Scene {
    wire: Wire,
    keys: Keys,
    _state: tempfile::TempDir,
}

impl Scene {
    /// A change of the leaf's label to this value, signed for its caller.
    fn signed_label(&self, value: &str) -> anyhow::Result<Signed> {
        let leaf = &self.wire.leaf;
        let body = label(value);
        Signed::new(leaf, &text(leaf, LABEL, &body), &self.keys, "tester", &body)
    }

    async fn start() -> anyhow::Result<Self> {
        let keys = Keys::make(&["tester", "zoe", "nobody"]).await?;
        let state = tempfile::tempdir()?;
        let setup = keys.setup("trusted", &[LABEL, "hardware.list"])?;
        let directory = state.path().join("state");
        old_journal(setup.name(), &directory).await?;
        let wire = Wire::to(setup.state_dir(&directory).start().await?).await?;
        Ok(Self {
            wire,
            keys,
            _state: state,
        })
    }

    async fn send(&self, text: &SignedText, key: &str, body: &Value) -> anyhow::Result<Message> {
        let message = Signed::new(&self.wire.leaf, text, &self.keys, key, body)?;
        message.send(&self.wire).await
    }

    async fn site(&mut self) -> anyhow::Result<Option<String>> {
        Ok(self.wire.leaf.show().await?.labels.get("site").cloned())
    }
}

fn now(seconds: i64) -> Timestamp {
    let now = Timestamp::now().as_second() + seconds;
    Timestamp::from_second(now).expect("a time")
}

/// The text that is signed for a command of `tester` to a leaf.
fn text(leaf: &TestLeaf, noun_verb: &str, body: &Value) -> SignedText {
    let (noun, verb) = noun_verb.split_once('.').expect("a noun and a verb");
    SignedText {
        caller: Caller::new("tester").expect("a caller"),
        noun: noun.to_owned(),
        verb: verb.to_owned(),
        leaves: [(leaf.name.clone(), None)].into(),
        body: body_hash(body.to_string().as_bytes()),
        id: CommandId::from(Uuid::now_v7()),
        time: now(0),
        expires: now(120),
    }
}

/// A message with a signature.
#[derive(Clone)]
struct Signed {
    subject: String,
    id: String,
    text: Vec<u8>,
    signature: Vec<u8>,
    body: Vec<u8>,
}

impl Signed {
    fn new(leaf: &TestLeaf, text: &SignedText, keys: &Keys, key: &str, body: &Value) -> anyhow::Result<Self> {
        let private = std::fs::read(keys.path(key))?;
        let written = text.to_string();
        Ok(Self {
            subject: format!(
                "leaf.v1.cmd.{}.{}.{}.{}",
                leaf.name, text.caller, text.noun, text.verb
            ),
            id: text.id.to_string(),
            signature: SshSignature::sign(&private, NAMESPACE, written.as_bytes())?.to_bytes(),
            text: written.into_bytes(),
            body: body.to_string().into_bytes(),
        })
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("ce-id", self.id.as_str());
        headers.insert(TEXT_HEADER, BASE64.encode(&self.text).as_str());
        headers.insert(
            SIGNATURE_HEADER,
            format!("ssh:{}", BASE64.encode(&self.signature)).as_str(),
        );
        headers
    }

    async fn send(&self, wire: &Wire) -> anyhow::Result<Message> {
        wire.send(&self.subject, self.headers(), self.body.clone()).await
    }
}

/// Fails unless the signature was refused, for this reason.
fn invalid(answer: &Message, says: &str) -> anyhow::Result<Problem> {
    let problem = problem(answer)?;
    ensure!(problem.code == ProblemCode::SignatureInvalid, "{problem:?}");
    ensure!(problem.detail.contains(says), "{says:?} is not in {problem:?}");
    Ok(problem)
}

//! Signed commands over NATS: what is refused, and why, and that a signature counts once.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use async_nats::{HeaderMap, Message};
use data_encoding::BASE64;
use jiff::{SignedDuration, Timestamp};
use leaf_core::id::{Caller, CommandId, LeafName};
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::signed::{NAMESPACE, Nonce, SIGNATURE_HEADER, SignedText, TEXT_HEADER, body_hash};
use leaf_journal::{Journal, Options};
use leaf_trust::ssh_signature::SshSignature;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use uuid::Uuid;

use super::wire::{Wire, problem, value};
use crate::support::{Host, Setup, TestLeaf, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    vec![
        host.trial("signed: a command that needs a signature is refused without one and accepted with one, of ssh-keygen as well, and its record names the key", &[], accepted),
        host.trial("signed: a signature that is altered, for something else, by another key or not of now is refused, and nothing changes", &[], refused),
        host.trial("signed: a change that is sent again gets its first reply and a query is refused, also after a restart", &[], replayed),
        host.trial("signed: a key that is revoked or taken out counts no more at once, and files that can't be used refuse all", &[], files),
        host.trial("signed: without a trusted clock only a nonce of this run for this caller counts", &[], nonces),
        host.trial("signed: what was signed before the journal was lost is refused, and what has a nonce is not", &[], journal_lost),
        host.trial("signed: refused signatures are recorded, once in ten seconds and not for each caller that is made up", &[], recorded),
        host.trial("signed: a person at the machine sees and stops containers without a signature, and nobody else does", &[], at_the_machine),
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
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
                .arg(keys.path(name))
                .status()
                .await?;
            ensure!(made.success(), "ssh-keygen: {made}");
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

async fn accepted() -> anyhow::Result<()> {
    let mut scene = Scene::start().await?;
    let refused = scene
        .wire
        .refused(LABEL, &label("a"), ProblemCode::SignatureRequired)
        .await?;
    ensure!(refused.detail.contains("leaf.challenge"), "{refused:?}");
    let challenge = value(
        &scene.wire.ask("leaf.challenge", &json!({})).await?,
        "reply.leaf.challenge",
    )?;
    ensure!(
        challenge["keys"] == json!([scene.keys.fingerprint("tester")?]),
        "{challenge}"
    );
    ensure!(
        challenge.get("nonce").is_none() && challenge.get("refusing").is_none(),
        "{challenge}"
    );
    let signed = text(&scene.wire.leaf, LABEL, &label("a"));
    value(
        &scene.send(&signed, "tester", &label("a")).await?,
        "reply.leaf.label",
    )?;
    ensure!(scene.site().await?.as_deref() == Some("a"));
    // By hand, with the tool that people have.
    let by_hand = text(&scene.wire.leaf, LABEL, &label("b"));
    let mut child = Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", "command@cim-leaf", "-f"])
        .arg(scene.keys.path("tester"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("piped")?;
    input.write_all(by_hand.to_string().as_bytes()).await?;
    drop(input);
    let armored = String::from_utf8(child.wait_with_output().await?.stdout)?;
    let lines: String = armored.lines().filter(|line| !line.starts_with('-')).collect();
    let mut message = Signed::new(&scene.wire.leaf, &by_hand, &scene.keys, "tester", &label("b"))?;
    message.signature = BASE64.decode(lines.as_bytes())?;
    value(&message.send(&scene.wire).await?, "reply.leaf.label")?;
    ensure!(scene.site().await?.as_deref() == Some("b"));
    // A query, and a command that need not be signed.
    for noun_verb in ["hardware.list", "leaf.show"] {
        let query = text(&scene.wire.leaf, noun_verb, &json!({}));
        let reply = scene.send(&query, "tester", &json!({})).await?;
        value(&reply, &format!("reply.{noun_verb}"))?;
    }
    scene
        .wire
        .refused("hardware.list", &json!({}), ProblemCode::SignatureRequired)
        .await?;
    scene.wire.leaf.stop().await?;
    let journal = open_journal(&scene.wire.leaf.name, &scene.wire.leaf.state_dir).await?;
    let record = journal
        .command(&signed.caller, &signed.id)?
        .context("its record")?;
    ensure!(
        record.signer == Some(scene.keys.fingerprint("tester")?),
        "{record:?}"
    );
    journal.close().await;
    Ok(())
}

async fn refused() -> anyhow::Result<()> {
    let mut scene = Scene::start().await?;
    let leaf = &scene.wire.leaf;
    let good = text(leaf, LABEL, &label("x"));
    let other: LeafName = "other-leaf".parse()?;
    let with = |change: &dyn Fn(&mut SignedText)| {
        let mut changed = good.clone();
        change(&mut changed);
        changed
    };
    // What is signed is not what is sent.
    for (signed, says) in [
        (
            with(&|text| text.verb = "show".to_owned()),
            "and the message is leaf.v1.cmd.*.tester.leaf.label",
        ),
        (
            with(&|text| text.caller = "zoe".parse().expect("a caller")),
            "is for leaf.v1.cmd.*.zoe.leaf.label",
        ),
        (
            with(&|text| text.leaves = [(other.clone(), None)].into()),
            "is not for leaf",
        ),
        (
            with(&|text| text.leaves.extend([(other.clone(), None)])),
            "the header ce-id must be",
        ),
        (
            with(&|text| text.body = body_hash(b"{}")),
            "body of the message is not the one",
        ),
        (
            with(&|text| text.id = "another".parse().expect("an id")),
            "the header ce-id must be another",
        ),
        (
            with(&|text| (text.time, text.expires) = (now(-200), now(-1))),
            "the signature expired at",
        ),
        (
            with(&|text| (text.time, text.expires) = (now(70), now(100))),
            "compare the clocks",
        ),
        (with(&|text| text.expires = now(3700)), "at most an hour later"),
        (
            with(&|text| (text.time, text.expires) = (now(-3600), now(-1))),
            "expired",
        ),
    ] {
        let mut message = Signed::new(leaf, &signed, &scene.keys, "tester", &label("x"))?;
        message.subject = scene.wire.subject(LABEL);
        message.id = good.id.to_string();
        invalid(&message.send(&scene.wire).await?, says)?;
    }
    // Another's key, and one of nobody.
    for (key, says) in [
        ("zoe", "may not sign for tester"),
        ("nobody", "is not among the allowed signers"),
    ] {
        invalid(&scene.send(&good, key, &label("x")).await?, says)?;
    }
    let message = Signed::new(leaf, &good, &scene.keys, "tester", &label("x"))?;
    let altered = |change: &dyn Fn(&mut Signed)| {
        let mut altered = message.clone();
        change(&mut altered);
        altered
    };
    for (message, says) in [
        (
            altered(&|it| it.body = b"{\"set\":{\"site\":\"y\"}}".to_vec()),
            "body of the message",
        ),
        (
            altered(&|it| *it.signature.last_mut().expect("a byte") ^= 1),
            "is not by its key over this text",
        ),
        (altered(&|it| it.signature.truncate(40)), "not an SSH signature"),
        (altered(&|it| it.text.push(b'\n')), "the one form"),
        (
            altered(&|it| it.text = b"cim-leaf signed command 2\n".to_vec()),
            "reads no other version",
        ),
        (altered(&|it| it.text = vec![0xff]), "no UTF-8"),
        (altered(&|it| it.text = vec![b'x'; 70_000]), "Leaf-Signed"),
    ] {
        let problem = invalid(&message.send(&scene.wire).await?, "")?;
        ensure!(
            problem.detail.contains(says) || says == "Leaf-Signed" && problem.detail.contains("bytes"),
            "{says:?}: {problem:?}"
        );
    }
    for (name, header, says) in [
        (TEXT_HEADER, None, "Leaf-Signed is missing"),
        (SIGNATURE_HEADER, None, "Leaf-Signature is missing"),
        (
            SIGNATURE_HEADER,
            Some("pgp:AAAA"),
            "the kind of signature \"pgp\"",
        ),
        (SIGNATURE_HEADER, Some("ssh:?"), "not in base64"),
        (TEXT_HEADER, Some("?"), "not in base64"),
        ("ce-id", None, "needs the header ce-id"),
    ] {
        let mut headers = HeaderMap::new();
        for (kept, values) in message.headers().iter() {
            if kept.to_string() != name {
                headers.insert(kept.clone(), values[0].clone());
            }
        }
        if let Some(header) = header {
            headers.insert(name, header);
        }
        let answer = scene
            .wire
            .send(&message.subject, headers, message.body.clone())
            .await?;
        invalid(&answer, says)?;
    }
    ensure!(scene.site().await?.is_none());
    // None of that used the signature up.
    value(&message.send(&scene.wire).await?, "reply.leaf.label")?;
    ensure!(scene.site().await?.as_deref() == Some("x"));
    Ok(())
}

async fn replayed() -> anyhow::Result<()> {
    let mut scene = Scene::start().await?;
    let leaf = &scene.wire.leaf;
    let change = scene.signed_label("1")?;
    let query = text(leaf, "hardware.list", &json!({}));
    let query = Signed::new(leaf, &query, &scene.keys, "tester", &json!({}))?;
    let first = change.send(&scene.wire).await?;
    value(&first, "reply.leaf.label")?;
    value(&query.send(&scene.wire).await?, "reply.hardware.list")?;
    let later = text(&scene.wire.leaf, LABEL, &label("2"));
    value(
        &scene.send(&later, "tester", &label("2")).await?,
        "reply.leaf.label",
    )?;
    for restart in [false, true] {
        if restart {
            scene.wire.leaf.restart().await?;
            let label = json!({});
            until("the leaf answers after its restart", async || {
                Ok(scene.wire.ask("leaf.show", &label).await.ok())
            })
            .await?;
        }
        let again = change.send(&scene.wire).await?;
        ensure!(again.payload == first.payload, "{again:?} is not {first:?}");
        invalid(&query.send(&scene.wire).await?, "a signed query is answered once")?;
        // The same id without the signature brings nothing to light.
        let mut headers = HeaderMap::new();
        headers.insert("ce-id", change.id.as_str());
        let bare = scene
            .wire
            .send(&change.subject, headers, change.body.clone())
            .await?;
        ensure!(problem(&bare)?.code == ProblemCode::SignatureRequired, "{bare:?}");
    }
    ensure!(scene.site().await?.as_deref() == Some("2"));
    // A person repeats a change whose reply was lost with a new signature, under the same id.
    let mut repeated = text(&scene.wire.leaf, LABEL, &label("1"));
    repeated.id = change.id.parse()?;
    let again = scene.send(&repeated, "tester", &label("1")).await?;
    ensure!(again.payload == first.payload, "{again:?} is not {first:?}");
    let mut reused = text(&scene.wire.leaf, LABEL, &label("3"));
    reused.id = change.id.parse()?;
    let reused = problem(&scene.send(&reused, "tester", &label("3")).await?)?;
    ensure!(reused.code == ProblemCode::CommandIdReused, "{reused:?}");
    Ok(())
}

async fn files() -> anyhow::Result<()> {
    let mut scene = Scene::start().await?;
    let sent = async |scene: &Scene, value: &str| {
        let signed = text(&scene.wire.leaf, LABEL, &label(value));
        scene.send(&signed, "tester", &label(value)).await
    };
    value(&sent(&scene, "1").await?, "reply.leaf.label")?;
    let (key, fingerprint) = (scene.keys.public("tester")?, scene.keys.fingerprint("tester")?);
    let allowed = std::fs::read_to_string(scene.keys.path("allowed"))?;
    for revoked in [&key, &fingerprint] {
        scene.keys.write("revoked", &format!("# lost\n{revoked}\n"))?;
        invalid(&sent(&scene, "2").await?, "is revoked")?;
        let challenge = value(
            &scene.wire.ask("leaf.challenge", &json!({})).await?,
            "reply.leaf.challenge",
        )?;
        ensure!(challenge["keys"] == json!([]), "{challenge}");
    }
    scene.keys.write("revoked", "")?;
    value(&sent(&scene, "3").await?, "reply.leaf.label")?;
    for (content, says) in [
        (String::new(), "is not among the allowed signers"),
        (
            format!("tester valid-before=\"20260101Z\" {key}\n"),
            "before 2026-01-01T00:00:00Z only",
        ),
        (
            format!("tester valid-after=\"29990101Z\" {key}\n"),
            "after 2999-01-01T00:00:00Z only",
        ),
        (format!("tester namespaces=\"file\" {key}\n"), "other namespaces"),
        (format!("{allowed}\nann ssh-rsa AAAA\n"), "line 4 can't be used"),
        (format!("tester cert-authority {key}\n"), "cert-authority"),
    ] {
        scene.keys.write("allowed", &content)?;
        invalid(&sent(&scene, "4").await?, says)?;
    }
    let file = scene.keys.write("allowed", &allowed)?;
    for (mode, says) in [(0o664, "others can write it"), (0o646, "others can write it")] {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))?;
        invalid(&sent(&scene, "5").await?, says)?;
    }
    std::fs::remove_file(&file)?;
    invalid(&sent(&scene, "6").await?, "trust.allowed_signers")?;
    // What is wrong without the files is found without them.
    let mut altered = scene.signed_label("6")?;
    altered.body = label("7").to_string().into_bytes();
    invalid(&altered.send(&scene.wire).await?, "body of the message")?;
    let mut expired = text(&scene.wire.leaf, LABEL, &label("6"));
    (expired.time, expired.expires) = (now(-200), now(-1));
    invalid(
        &scene.send(&expired, "tester", &label("6")).await?,
        "the signature expired",
    )?;
    let challenge = value(
        &scene.wire.ask("leaf.challenge", &json!({})).await?,
        "reply.leaf.challenge",
    )?;
    let why = challenge["refusing"].as_str().context("a reason")?;
    ensure!(why.contains("trust.allowed_signers"), "{challenge}");
    // A link is followed, as NixOS makes them.
    let real = scene.keys.write("real", &allowed)?;
    std::os::unix::fs::symlink(real, &file)?;
    value(&sent(&scene, "7").await?, "reply.leaf.label")?;
    ensure!(scene.site().await?.as_deref() == Some("7"));
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(scene.keys.path("real"), Some(12345), None)?;
        invalid(&sent(&scene, "8").await?, "belongs to user 12345")?;
    }
    Ok(())
}

/// Asks for a nonce, as a caller.
async fn nonce(wire: &Wire, caller: &str) -> anyhow::Result<Nonce> {
    let subject = format!("leaf.v1.cmd.{}.{caller}.leaf.challenge", wire.leaf.name);
    let mut headers = HeaderMap::new();
    headers.insert("ce-id", Uuid::now_v7().to_string().as_str());
    let answer = wire.send(&subject, headers, Vec::new()).await?;
    let challenge = value(&answer, "reply.leaf.challenge")?;
    let nonce = challenge["nonce"]
        .as_str()
        .with_context(|| format!("no nonce: {challenge}"))?;
    Ok(nonce.parse()?)
}

async fn nonces() -> anyhow::Result<()> {
    let keys = Keys::make(&["tester", "zoe"]).await?;
    let mut wire = Wire::to(keys.setup("untrusted", &[LABEL])?.start().await?).await?;
    let signed = |wire: &Wire, nonce: Option<Nonce>, value: &str| {
        let mut text = text(&wire.leaf, LABEL, &label(value));
        text.leaves.insert(wire.leaf.name.clone(), nonce);
        // The leaf does not go by these.
        (text.time, text.expires) = (now(-100_000), now(-99_000));
        Signed::new(&wire.leaf, &text, &keys, "tester", &label(value))
    };
    invalid(&signed(&wire, None, "1")?.send(&wire).await?, "needs a nonce")?;
    let own = nonce(&wire, "tester").await?;
    let first = signed(&wire, Some(own), "1")?;
    let reply = first.send(&wire).await?;
    value(&reply, "reply.leaf.label")?;
    let again = first.send(&wire).await?;
    ensure!(again.payload == reply.payload, "{again:?}");
    let made_up = Nonce::from([7; 16]);
    let of_zoe = {
        // The server maps the reply subjects of callers, so she asks by herself.
        let caller = Caller::new("zoe")?;
        let credentials = wire
            .leaf
            .identity()?
            .user_credentials(&caller, &leaf_bus::identity::Permissions::person(&caller));
        let client = wire.leaf.nats(&credentials, &caller).await?;
        let request = client.request(
            format!("leaf.v1.cmd.{}.zoe.leaf.challenge", wire.leaf.name),
            "".into(),
        );
        let challenge = value(&request.await?, "reply.leaf.challenge")?;
        challenge["nonce"].as_str().context("a nonce")?.parse()?
    };
    for wrong in [made_up, of_zoe] {
        invalid(
            &signed(&wire, Some(wrong), "2")?.send(&wire).await?,
            "did not give to this caller",
        )?;
    }
    wire.leaf.restart().await?;
    until("the leaf answers after its restart", async || {
        Ok(wire.ask("leaf.show", &json!({})).await.ok())
    })
    .await?;
    // A nonce is of one run. What it was used for is remembered all the same.
    invalid(
        &signed(&wire, Some(own), "3")?.send(&wire).await?,
        "since leafd started",
    )?;
    let new = nonce(&wire, "tester").await?;
    value(
        &signed(&wire, Some(new), "4")?.send(&wire).await?,
        "reply.leaf.label",
    )?;
    ensure!(wire.leaf.show().await?.labels["site"] == "4");
    Ok(())
}

async fn journal_lost() -> anyhow::Result<()> {
    let mut scene = Scene::start().await?;
    let before = scene.signed_label("1")?;
    value(&before.send(&scene.wire).await?, "reply.leaf.label")?;
    scene.wire.leaf.published().await?;
    scene.wire.leaf.stop().await?;
    std::fs::remove_file(scene.wire.leaf.journal_file())?;
    scene.wire.leaf.start_again().await?;
    until("the leaf answers after its restart", async || {
        Ok(scene.wire.ask("leaf.show", &json!({})).await.ok())
    })
    .await?;
    // It got its state from the stream, which has no command ids.
    ensure!(scene.site().await?.as_deref() == Some("1"));
    invalid(&before.send(&scene.wire).await?, "it may have been used before")?;
    let mut with_nonce = text(&scene.wire.leaf, LABEL, &label("2"));
    let nonce = nonce(&scene.wire, "tester").await?;
    with_nonce
        .leaves
        .insert(scene.wire.leaf.name.clone(), Some(nonce));
    value(
        &scene.send(&with_nonce, "tester", &label("2")).await?,
        "reply.leaf.label",
    )?;
    ensure!(scene.site().await?.as_deref() == Some("2"));
    Ok(())
}

async fn recorded() -> anyhow::Result<()> {
    let mut scene = Scene::start().await?;
    scene
        .wire
        .refused(LABEL, &label("x"), ProblemCode::SignatureRequired)
        .await?;
    let leaf = &scene.wire.leaf;
    let signed = text(leaf, LABEL, &label("x"));
    for _ in 0..20 {
        invalid(
            &scene.send(&signed, "nobody", &label("x")).await?,
            "allowed signers",
        )?;
    }
    // A pattern names nobody: callers that are made up share an event.
    let everybody = format!(
        "tester {}\n* {}\n",
        scene.keys.public("tester")?,
        scene.keys.public("zoe")?
    );
    scene.keys.write("allowed", &everybody)?;
    for number in 0..5 {
        let caller = Caller::new(format!("made-up-{number}"))?;
        let credentials = leaf
            .identity()?
            .user_credentials(&caller, &leaf_bus::identity::Permissions::person(&caller));
        let client = leaf.nats(&credentials, &caller).await?;
        let mut signed = text(leaf, LABEL, &label("x"));
        signed.caller = caller;
        let message = Signed::new(leaf, &signed, &scene.keys, "nobody", &label("x"))?;
        let answer =
            client.request_with_headers(message.subject.clone(), message.headers(), message.body.into());
        invalid(&answer.await?, "is not among the allowed signers")?;
    }
    scene.wire.client.flush().await?;
    scene.wire.leaf.published().await?;
    let events = scene.wire.leaf.events().await?;
    let refused: Vec<Value> = events
        .iter()
        .filter(|event| event.subject.ends_with(".signature_refused"))
        .map(|event| serde_json::from_slice(&event.body))
        .collect::<Result<_, _>>()?;
    let [one, of_all] = refused.as_slice() else {
        anyhow::bail!("not one event of the caller and one of all others: {refused:?}");
    };
    ensure!(
        of_all["caller"] == "made-up-0" && of_all["refused"] == 1,
        "{of_all}"
    );
    super::wire::valid(one, "cim.leaf.leaf.signature_refused.v1")?;
    ensure!(
        one["caller"] == "tester" && one["command"] == LABEL && one["refused"] == 1,
        "{one}"
    );
    ensure!(one["signer"] == json!(scene.keys.fingerprint("nobody")?), "{one}");
    Ok(())
}

async fn at_the_machine() -> anyhow::Result<()> {
    let keys = Keys::make(&["tester", "zoe"]).await?;
    let setup = keys.setup("trusted", &["reads", "changes", "builds"])?;
    let mut wire = Wire::to(setup.start().await?).await?;
    let name = json!({ "name": "absent" });
    // The caller `admin` of the leaf's own server.
    for (noun, verb) in [
        ("container", "show"),
        ("container", "stop"),
        ("container", "start"),
        ("container", "rollback"),
    ] {
        let answer = wire.leaf.call_raw(noun, verb, name.to_string().as_bytes()).await;
        let problem = match answer {
            Err(leaf_bus::client::CallError::Problem(problem)) => problem,
            other => anyhow::bail!("{noun}.{verb}: {other:?}"),
        };
        // This leaf runs no containers, and that is found out after who sent it.
        let codes = [ProblemCode::NotFound, ProblemCode::Unsupported];
        ensure!(codes.contains(&problem.code), "{noun}.{verb}: {problem:?}");
        let refused = wire
            .refused(&format!("{noun}.{verb}"), &name, ProblemCode::SignatureRequired)
            .await?;
        ensure!(refused.detail.contains(verb), "{refused:?}");
    }
    let answer = wire
        .leaf
        .call_raw("container", "destroy", name.to_string().as_bytes())
        .await;
    ensure!(
        matches!(&answer, Err(leaf_bus::client::CallError::Problem(problem)) if problem.code == ProblemCode::SignatureRequired),
        "{answer:?}"
    );
    Ok(())
}

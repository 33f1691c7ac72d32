//! Against `ssh-keygen` and `ssh-agent`, both ways.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use data_encoding::BASE64;
use ed25519_dalek::Signer as _;
use ssh_key::public::{Ed25519PublicKey, SkEd25519};
use ssh_key::sha2::{Digest as _, Sha256};
use ssh_key::{Fingerprint, LineEnding};

use super::*;
use crate::agent;
use crate::test_keys::{make_key, public_line};

const NAMESPACE: &str = "command@cim-leaf";
const TEXT: &[u8] = b"cim-leaf signed command 1\nsubject: leaf.v1.cmd.*.ann.container.destroy\n";

/// A directory with keys of `ssh-keygen`.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes a key pair, and returns the file of the private key.
    fn key(&self, name: &str, more: &[&str]) -> PathBuf {
        let file = self.path(name);
        make_key(&file, more);
        file
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let file = self.path(name);
        std::fs::write(&file, content).expect("written");
        file
    }

    /// Has `ssh-keygen -Y verify` check a signature for ann.
    fn verify(&self, signature: &SshSignature, key: &str, text: &[u8]) -> Output {
        let armored = signature.signature.to_pem(LineEnding::LF).expect("armored");
        let signature = self.write("text.sig", armored);
        let allowed = self.write("allowed", format!("ann {key}\n"));
        let mut child = Command::new("ssh-keygen")
            .args(["-Y", "verify", "-I", "ann", "-n", NAMESPACE, "-f"])
            .arg(allowed)
            .arg("-s")
            .arg(signature)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ssh-keygen runs");
        let mut input = child.stdin.take().expect("piped");
        input.write_all(text).expect("written");
        drop(input);
        child.wait_with_output().expect("it ends")
    }

    /// Has `ssh-keygen -Y sign` sign a text.
    fn sign(&self, key: &Path, namespace: &str) -> SshSignature {
        let text = self.write("signed", TEXT);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-Y", "sign", "-n", namespace, "-f"])
            .arg(key)
            .arg(&text)
            .output()
            .expect("ssh-keygen runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let armored = std::fs::read(self.path("signed.sig")).expect("a signature");
        std::fs::remove_file(self.path("signed.sig")).expect("removed");
        let signature = SshSig::from_pem(armored).expect("a signature");
        let mut bytes = Vec::new();
        signature.encode(&mut bytes).expect("written");
        SshSignature::from_bytes(&bytes).expect("a signature")
    }
}

#[test]
fn what_ssh_keygen_signs_is_verified_here_and_nothing_that_was_altered() {
    let place = Place::new();
    let key = place.key("key", &["-t", "ed25519", "-N", ""]);
    let signature = place.sign(&key, NAMESPACE);
    assert_eq!(*signature.key(), public_line(&key).parse().expect("a key"));
    signature.verify(NAMESPACE, TEXT).expect("it is right");
    let altered = signature.verify(NAMESPACE, &TEXT[1..]);
    assert!(matches!(altered, Err(SignatureError::Wrong)));
    let elsewhere = place.sign(&key, "file").verify(NAMESPACE, TEXT);
    assert!(matches!(elsewhere, Err(SignatureError::Namespace { .. })));
    // Each byte counts: of its key, namespace, hash and signature.
    let bytes = signature.to_bytes();
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        let accepted = SshSignature::from_bytes(&altered).is_ok_and(|it| it.verify(NAMESPACE, TEXT).is_ok());
        assert!(!accepted, "byte {at}");
    }
    for part in [&bytes[..bytes.len() - 1], &[bytes.as_slice(), &[0]].concat(), &[]] {
        assert!(matches!(
            SshSignature::from_bytes(part),
            Err(SignatureError::Malformed(_))
        ));
    }
}

#[test]
fn what_is_signed_here_is_verified_by_ssh_keygen() {
    let place = Place::new();
    let key = place.key("key", &["-t", "ed25519", "-N", ""]);
    let private = std::fs::read(&key).expect("a key");
    let signature = SshSignature::sign(&private, NAMESPACE, TEXT).expect("signed");
    signature.verify(NAMESPACE, TEXT).expect("it is right");
    let verified = place.verify(&signature, &public_line(&key), TEXT);
    assert!(verified.status.success(), "{verified:?}");
    assert!(
        !place
            .verify(&signature, &public_line(&key), b"altered")
            .status
            .success()
    );
}

#[test]
fn a_key_that_cannot_sign_by_itself_says_what_to_do() {
    let place = Place::new();
    let locked = std::fs::read(place.key("locked", &["-t", "ed25519", "-N", "secret"])).expect("a key");
    let ecdsa = std::fs::read(place.key("ecdsa", &["-t", "ecdsa", "-N", ""])).expect("a key");
    assert!(matches!(
        SshSignature::sign(&locked, NAMESPACE, TEXT),
        Err(SignError::Encrypted)
    ));
    public_key_of(&locked).expect("its public part is in clear");
    assert!(SshSignature::sign(&ecdsa, NAMESPACE, TEXT).is_err());
    assert!(matches!(
        SshSignature::sign(b"no key", NAMESPACE, TEXT),
        Err(SignError::Malformed(_))
    ));
    // What another type of key signs is refused for its type.
    let made = Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"])
        .arg(place.path("ecdsa"))
        .arg(place.write("signed", TEXT))
        .output()
        .expect("ssh-keygen runs");
    assert!(made.status.success());
    let armored = std::fs::read_to_string(place.path("signed.sig")).expect("a signature");
    let lines: String = armored.lines().filter(|line| !line.starts_with('-')).collect();
    let bytes = BASE64.decode(lines.as_bytes()).expect("base64");
    assert!(matches!(
        SshSignature::from_bytes(&bytes),
        Err(SignatureError::Key(_) | SignatureError::Malformed(_))
    ));
}

/// A key as on a FIDO token, in software (`PROTOCOL.u2f` of OpenSSH).
struct Token {
    key: ed25519_dalek::SigningKey,
    public: SignerKey,
}

impl Token {
    fn new() -> Self {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
        let point = Ed25519PublicKey(key.verifying_key().to_bytes());
        let public = SignerKey(KeyData::SkEd25519(SkEd25519::new(point, "ssh:")));
        Self { key, public }
    }

    fn line(&self) -> String {
        PublicKey::from(self.public.0.clone())
            .to_openssh()
            .expect("a line")
    }

    fn sign(&self, flags: u8) -> SshSignature {
        let data = SshSignature::data_to_sign(NAMESPACE, TEXT).expect("data");
        let trailer = [flags, 0, 0, 0, 9];
        let mut signed = Sha256::digest(b"ssh:").to_vec();
        signed.extend(trailer);
        signed.extend(Sha256::digest(data));
        let mut made = self.key.sign(&signed).to_bytes().to_vec();
        made.extend(trailer);
        let signature = Signature::new(Algorithm::SkEd25519, made).expect("a signature");
        let mut bytes = Vec::new();
        signature.encode(&mut bytes).expect("written");
        SshSignature::of_agent(&self.public, NAMESPACE, &bytes).expect("a signature")
    }
}

#[test]
fn a_signature_of_a_token_is_verified_by_ssh_keygen_and_here_where_it_was_touched() {
    let (place, token) = (Place::new(), Token::new());
    assert!(token.public.is_on_token());
    assert_eq!(token.line().parse::<SignerKey>().expect("a key"), token.public);
    let touched = token.sign(USER_PRESENT);
    assert_eq!(
        SshSignature::from_bytes(&touched.to_bytes()).expect("a signature"),
        touched
    );
    touched.verify(NAMESPACE, TEXT).expect("it is right");
    let verified = place.verify(&touched, &token.line(), TEXT);
    assert!(verified.status.success(), "{verified:?}");
    assert!(matches!(
        touched.verify(NAMESPACE, b"altered"),
        Err(SignatureError::Wrong)
    ));
    // Touched, verified by PIN, and not touched.
    token.sign(5).verify(NAMESPACE, TEXT).expect("it was touched");
    for flags in [0, 4] {
        let untouched = token.sign(flags);
        assert!(matches!(
            untouched.verify(NAMESPACE, TEXT),
            Err(SignatureError::NotTouched)
        ));
    }
    // Flags that were altered are part of what is signed.
    let mut altered = token.sign(0).to_bytes();
    let flags = altered.len() - 5;
    altered[flags] = USER_PRESENT;
    let altered = SshSignature::from_bytes(&altered).expect("a signature");
    assert!(matches!(
        altered.verify(NAMESPACE, TEXT),
        Err(SignatureError::Wrong)
    ));
}

/// An `ssh-agent` of the test's own.
struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Agent {
    fn start(place: &Place) -> Self {
        let socket = place.path("agent");
        let mut process = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::piped())
            .spawn()
            .expect("ssh-agent runs");
        // It prints where it listens once it does.
        let mut said = [0; 1];
        let out = process.stdout.as_mut().expect("piped");
        out.read_exact(&mut said).expect("it says where it listens");
        Self { process, socket }
    }

    fn add(&self, key: &Path) {
        let added = Command::new("ssh-add")
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", &self.socket)
            .status();
        assert!(added.expect("ssh-add runs").success());
    }

    fn ask(&self, message: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(&self.socket).expect("connected");
        stream.write_all(message).expect("written");
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect("a length");
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut answer).expect("an answer");
        answer
    }
}

#[test]
fn an_agent_lists_its_keys_and_signs_as_ssh_keygen_verifies() {
    let place = Place::new();
    let agent_process = Agent::start(&place);
    assert_eq!(
        agent::identities(&agent_process.ask(&agent::identities_request())).expect("an answer"),
        []
    );
    agent_process.add(&place.key("ecdsa", &["-t", "ecdsa", "-N", ""]));
    let file = place.key("key", &["-t", "ed25519", "-N", ""]);
    agent_process.add(&file);
    let key: SignerKey = public_line(&file).parse().expect("a key");
    let listed = agent::identities(&agent_process.ask(&agent::identities_request())).expect("an answer");
    // The other key can't sign commands.
    assert_eq!(listed, std::slice::from_ref(&key));
    let data = SshSignature::data_to_sign(NAMESPACE, TEXT).expect("data");
    let made = agent::signature(&agent_process.ask(&agent::sign_request(&key, &data))).expect("signed");
    let signature = SshSignature::of_agent(&key, NAMESPACE, &made).expect("a signature");
    signature.verify(NAMESPACE, TEXT).expect("it is right");
    assert!(
        place
            .verify(&signature, &public_line(&file), TEXT)
            .status
            .success()
    );
    let unknown = agent::sign_request(&Token::new().public, &data);
    let refused = agent::signature(&agent_process.ask(&unknown));
    assert!(matches!(refused, Err(agent::AgentError::Refused)));
    assert!(matches!(
        agent::identities(&[]),
        Err(agent::AgentError::Malformed(_))
    ));
}

#[test]
fn a_fingerprint_is_the_one_of_ssh_keygen() {
    let place = Place::new();
    let file = place.key("key", &["-t", "ed25519", "-N", ""]);
    let shown = Command::new("ssh-keygen")
        .arg("-lf")
        .arg(&file)
        .output()
        .expect("ssh-keygen runs");
    let key: SignerKey = public_line(&file).parse().expect("a key");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains(&key.fingerprint()), "{shown}");
    key.fingerprint().parse::<Fingerprint>().expect("a fingerprint");
    assert_eq!(SignerKey::from_bytes(&key.to_bytes()).expect("a key"), key);
}

//! OpenPGP signatures against `gpg`.

#![allow(clippy::print_stderr, reason = "a test program says why it skips")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, ensure};
use data_encoding::BASE64;
use jiff::{SignedDuration, Timestamp};
use leaf_core::id::Caller;
use leaf_trust::allowed_signers::{NotAllowed, When};
use leaf_trust::openpgp::{AllowedOpenPgp, KeyError, OpenPgpKey, OpenPgpSignature, SignatureError};
use libtest_mimic::{Arguments, Trial};
use pgp::packet::{Packet, PacketParser, SubpacketData};
use pgp::ser::Serialize as _;

const TEXT: &[u8] = b"cim-leaf signed command 1\nsubject: leaf.v1.cmd.*.ann.container.destroy\n";
const NOTATION: &str = "command@cim-leaf=1";

fn main() -> ExitCode {
    let lack = Command::new("gpg").arg("--version").output().is_err();
    if lack {
        eprintln!("the tests of OpenPGP are skipped: needs gpg (Debian: gnupg)");
    }
    let trial = |name: &str, test: fn() -> anyhow::Result<()>| {
        let test = move || test().map_err(|error| format!("{error:#}").into());
        Trial::test(name, test).with_ignored_flag(lack)
    };
    let trials = vec![
        trial(
            "openpgp: what gpg signs is verified, and nothing that was altered",
            signed,
        ),
        trial(
            "openpgp: a signature for something else is refused",
            other_purposes,
        ),
        trial(
            "openpgp: a subkey that signs counts, with its back signature alone",
            subkeys,
        ),
        trial(
            "openpgp: a key or subkey that has expired signs no more, and the latest word about it counts",
            expired,
        ),
        trial(
            "openpgp: a key or subkey that is revoked signs no more, also in what it signed before",
            revoked,
        ),
        trial("openpgp: the file says who may sign for whom, and when", allowed),
        trial(
            "openpgp: what is not one public key of Ed25519 is refused with its line",
            other_keys,
        ),
        trial(
            "openpgp: a key or signature with any byte altered never signs as another",
            altered,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A home of `gpg`.
struct Gpg(tempfile::TempDir);

impl Drop for Gpg {
    fn drop(&mut self) {
        // Its agent.
        let mut end = Command::new("gpgconf");
        let _ = end
            .arg("--homedir")
            .arg(self.0.path())
            .args(["--kill", "all"])
            .output();
    }
}

impl Gpg {
    fn new() -> anyhow::Result<Self> {
        Ok(Self(tempfile::Builder::new().prefix("gpg-").tempdir()?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut gpg = Command::new("gpg")
            .arg("--homedir")
            .arg(self.0.path())
            .args([
                "--batch",
                "--quiet",
                "--pinentry-mode",
                "loopback",
                "--passphrase",
                "",
            ])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = gpg.stdin.take().context("it was piped")?;
        stdin.write_all(input)?;
        drop(stdin);
        let output = gpg.wait_with_output()?;
        ensure!(
            output.status.success(),
            "gpg {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout)
    }

    /// Makes a key, and returns its fingerprint.
    fn key(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let before = self.primaries()?;
        let make = [&["--quick-generate-key"], arguments].concat();
        self.run(&make, b"")?;
        let made = self.primaries()?.into_iter().find(|key| !before.contains(key));
        made.context("gpg made a key")
    }

    /// The fingerprints of all primary keys.
    fn primaries(&self) -> anyhow::Result<Vec<String>> {
        self.fingerprints("pub")
    }

    fn fingerprints(&self, kind: &str) -> anyhow::Result<Vec<String>> {
        let listed = self.run(
            &["--with-colons", "--with-subkey-fingerprint", "--list-keys"],
            b"",
        )?;
        let listed = String::from_utf8(listed)?;
        let mut is_next = false;
        let mut found = Vec::new();
        for fields in listed.lines().map(|line| line.split(':').collect::<Vec<_>>()) {
            match fields[0] {
                "fpr" if is_next => found.push(fields[9].to_owned()),
                other => is_next = other == kind,
            }
            is_next &= fields[0] != "fpr";
        }
        Ok(found)
    }

    fn export(&self, key: &str) -> anyhow::Result<Vec<u8>> {
        self.run(&["--export", key], b"")
    }

    fn read(&self, key: &str) -> anyhow::Result<OpenPgpKey> {
        Ok(OpenPgpKey::from_bytes(&self.export(key)?)?)
    }

    /// A line that lets a key sign.
    fn line(&self, terms: &str, key: &str) -> anyhow::Result<String> {
        Ok(format!("{terms} pgp {}\n", BASE64.encode(&self.export(key)?)))
    }

    /// The bytes of a signature over the text, made with more arguments.
    fn sign_with(&self, key: &str, more: &[&str]) -> anyhow::Result<Vec<u8>> {
        let usual = ["--local-user", key, "--detach-sign"];
        self.run(&[more, &usual].concat(), TEXT)
    }

    fn sign(&self, key: &str) -> anyhow::Result<OpenPgpSignature> {
        let bytes = self.sign_with(key, &["--sig-notation", NOTATION])?;
        Ok(OpenPgpSignature::from_bytes(&bytes)?)
    }

    /// Has gpg itself verify a signature over the text.
    fn verify(&self, signature: &[u8]) -> anyhow::Result<Vec<u8>> {
        let [text, detached] = ["text", "text.sig"].map(|name| self.path(name));
        std::fs::write(&text, TEXT)?;
        std::fs::write(&detached, signature)?;
        let path = |path: &Path| path.display().to_string();
        self.run(&["--verify", &path(&detached), &path(&text)], b"")
    }
}

fn shown(fingerprint: &str) -> String {
    format!("pgp:{fingerprint}")
}

fn now() -> When {
    When::At(Timestamp::now())
}

fn in_days(days: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(24 * days)
}

fn ann() -> Caller {
    Caller::new("ann").expect("a caller")
}

fn parse(file: &str) -> anyhow::Result<AllowedOpenPgp> {
    Ok(file.parse()?)
}

/// Checks and verifies a signature of ann.
fn judge(file: &str, signature: &OpenPgpSignature, when: When) -> anyhow::Result<Result<(), String>> {
    let allowed = parse(file)?;
    let key = match allowed.check(signature, &ann(), when) {
        Ok(key) => key,
        Err(why) => return Ok(Err(why.to_string())),
    };
    Ok(signature.verify(key, TEXT, when).map_err(|why| why.to_string()))
}

/// Fails unless it is refused for this reason.
fn refused(judged: Result<(), String>, says: &str) -> anyhow::Result<()> {
    match judged {
        Err(why) if why.contains(says) => Ok(()),
        other => anyhow::bail!("{other:?} does not say {says:?}"),
    }
}

const SIGNS: &[&str] = &["ann@example.org", "ed25519", "sign", "never"];

fn signed() -> anyhow::Result<()> {
    let gpg = Gpg::new()?;
    let [ann_key, other] = [
        gpg.key(SIGNS)?,
        gpg.key(&["bob@example.org", "ed25519", "sign", "never"])?,
    ];
    let bytes = gpg.sign_with(&ann_key, &["--sig-notation", NOTATION])?;
    gpg.verify(&bytes)?;
    let signature = OpenPgpSignature::from_bytes(&bytes)?;
    ensure!(signature.fingerprint() == shown(&ann_key));
    let file = gpg.line("ann", &ann_key)?;
    ensure!(judge(&file, &signature, now())? == Ok(()));
    let key = gpg.read(&ann_key)?;
    let altered = signature.verify(&key, &TEXT[1..], now());
    ensure!(matches!(altered, Err(SignatureError::Wrong)), "{altered:?}");
    let by_other = gpg.sign(&other)?;
    refused(
        judge(&file, &by_other, now())?,
        "is not among the allowed signers",
    )?;
    let crossed = by_other.verify(&key, TEXT, now());
    ensure!(matches!(crossed, Err(SignatureError::Wrong)), "{crossed:?}");
    // The hashes of SHA-2, whatever gpg's default is.
    for hash in ["SHA256", "SHA384", "SHA512"] {
        let bytes = gpg.sign_with(&ann_key, &["--digest-algo", hash, "--sig-notation", NOTATION])?;
        ensure!(
            judge(&file, &OpenPgpSignature::from_bytes(&bytes)?, now())? == Ok(()),
            "{hash}"
        );
    }
    Ok(())
}

fn other_purposes() -> anyhow::Result<()> {
    let gpg = Gpg::new()?;
    let key = gpg.key(SIGNS)?;
    let second = gpg.key(&["bob@example.org", "ed25519", "sign", "never"])?;
    let purpose = ["--sig-notation", NOTATION];
    for (more, says) in [
        (&[][..], "has no notation"),
        (&["--sig-notation", "command@cim-leaf=2"], "has no notation"),
        (&["--sig-notation", "command@example.org=1"], "has no notation"),
        (
            &["--sig-notation", NOTATION, "--sig-notation", "command@cim-leaf=2"],
            "has no notation",
        ),
        (
            &[
                "--sig-notation",
                NOTATION,
                "--sig-notation",
                "!more@example.org=1",
            ],
            "marked as critical",
        ),
        (
            &["--sig-notation", NOTATION, "--textmode"],
            "not one OpenPGP signature",
        ),
        (
            &["--sig-notation", NOTATION, "--armor"],
            "not an OpenPGP signature",
        ),
        (
            &["--sig-notation", NOTATION, "--local-user", &second],
            "not one OpenPGP signature",
        ),
        (
            &["--sig-notation", NOTATION, "--digest-algo", "SHA224"],
            "must use SHA-256",
        ),
        (
            &["--sig-notation", NOTATION, "--digest-algo", "RIPEMD160"],
            "must use SHA-256",
        ),
        (
            &[
                "--sig-notation",
                NOTATION,
                "--allow-weak-digest-algos",
                "--digest-algo",
                "SHA1",
            ],
            "must use SHA-256",
        ),
    ] {
        let bytes = gpg.sign_with(&key, more)?;
        let error = OpenPgpSignature::from_bytes(&bytes)
            .err()
            .with_context(|| format!("{more:?}"))?;
        ensure!(error.to_string().contains(says), "{more:?}: {error}");
    }
    // A notation that is marked as critical is known here.
    let critical = gpg.sign_with(&key, &["--sig-notation", "!command@cim-leaf=1"])?;
    let critical = OpenPgpSignature::from_bytes(&critical)?;
    ensure!(judge(&gpg.line("ann", &key)?, &critical, now())? == Ok(()));
    // Whole messages, and texts in clear.
    for form in ["--sign", "--clearsign"] {
        let bytes = gpg.run(&[&purpose[..], &["--local-user", &key, form]].concat(), TEXT)?;
        ensure!(OpenPgpSignature::from_bytes(&bytes).is_err(), "{form}");
    }
    Ok(())
}

/// A key whose primary part only certifies, with a subkey that signs, one that encrypts, and one that signs with RSA.
fn with_subkeys(gpg: &Gpg) -> anyhow::Result<(String, String, String)> {
    let key = gpg.key(&["ann@example.org", "ed25519", "cert", "never"])?;
    for subkey in [
        ["ed25519", "sign", "30d"],
        ["cv25519", "encr", "never"],
        ["rsa2048", "sign", "never"],
    ] {
        gpg.run(&[&["--quick-add-key", key.as_str()][..], &subkey].concat(), b"")?;
    }
    let [signs, _, rsa] =
        <[String; 3]>::try_from(gpg.fingerprints("sub")?).map_err(|found| anyhow::anyhow!("{found:?}"))?;
    Ok((key, signs, rsa))
}

fn subkeys() -> anyhow::Result<()> {
    let gpg = Gpg::new()?;
    let (key, signs, rsa) = with_subkeys(&gpg)?;
    let file = gpg.line("ann", &key)?;
    let signature = gpg.sign(&format!("{signs}!"))?;
    ensure!(signature.fingerprint() == shown(&signs));
    ensure!(judge(&file, &signature, now())? == Ok(()));
    let allowed = parse(&file)?;
    let (primary, part) = (shown(&key), shown(&signs));
    ensure!(allowed.keys_of(&ann(), now()) == [(primary.as_str(), vec![part.as_str()])]);
    let by_rsa = gpg.sign_with(&format!("{rsa}!"), &["--sig-notation", NOTATION])?;
    let error = OpenPgpSignature::from_bytes(&by_rsa)
        .err()
        .context("RSA")?
        .to_string();
    ensure!(error.contains("must be of Ed25519"), "{error}");
    // Without its back signature anybody could claim another's subkey.
    let without = rewritten(&gpg.export(&key)?, |packet| {
        if let Packet::Signature(signature) = packet {
            let at = signature.config().and_then(|config| {
                let mut parts = config.unhashed_subpackets();
                parts.position(|part| matches!(part.data, SubpacketData::EmbeddedSignature(_)))
            });
            if let Some(at) = at {
                signature.unhashed_subpacket_remove(at)?;
            }
        }
        Ok(())
    })?;
    ensure!(without != gpg.export(&key)?, "there was a back signature");
    let unbound = OpenPgpKey::from_bytes(&without);
    ensure!(matches!(unbound, Err(KeyError::DoesNotSign(_))), "{unbound:?}");
    Ok(())
}

/// Changes packets of a key.
fn rewritten(
    key: &[u8],
    mut change: impl FnMut(&mut Packet) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<u8>> {
    let mut written = Vec::new();
    for packet in PacketParser::new(key) {
        let mut packet = packet?;
        change(&mut packet)?;
        packet.to_writer(&mut written)?;
    }
    Ok(written)
}

fn expired() -> anyhow::Result<()> {
    let gpg = Gpg::new()?;
    let key = gpg.key(&["ann@example.org", "ed25519", "sign", "10d"])?;
    let (file, signature) = (gpg.line("ann", &key)?, gpg.sign(&key)?);
    for clock in [When::At as fn(Timestamp) -> When, When::NotBefore] {
        ensure!(judge(&file, &signature, clock(in_days(9)))? == Ok(()));
        refused(judge(&file, &signature, clock(in_days(11)))?, "expired at")?;
    }
    let allowed = parse(&file)?;
    ensure!(allowed.keys_of(&ann(), When::At(in_days(11))).is_empty());
    // It lives longer by a later word of its owner, and shorter by a yet later one. `!` sets the clock of gpg.
    for (seconds, days, lives) in [(100, "40", 11), (200, "20", 11)] {
        let later = Timestamp::now() + SignedDuration::from_secs(seconds);
        let clock = format!("{}!", later.as_second());
        gpg.run(
            &[
                "--faked-system-time",
                &clock,
                "--quick-set-expire",
                &key,
                &format!("{days}d"),
            ],
            b"",
        )?;
        let file = gpg.line("ann", &key)?;
        ensure!(
            judge(&file, &signature, When::At(in_days(lives)))? == Ok(()),
            "{days}"
        );
        let end = days.parse::<i64>()?;
        refused(
            judge(&file, &signature, When::At(in_days(end + 1)))?,
            "expired at",
        )?;
    }
    // A subkey by itself, and with its primary key.
    let gpg = Gpg::new()?;
    let (key, signs, _) = with_subkeys(&gpg)?;
    let signature = gpg.sign(&format!("{signs}!"))?;
    let file = gpg.line("ann", &key)?;
    ensure!(judge(&file, &signature, When::At(in_days(29)))? == Ok(()));
    refused(judge(&file, &signature, When::At(in_days(31)))?, "expired at")?;
    let later = Timestamp::now() + SignedDuration::from_secs(100);
    gpg.run(
        &[
            "--faked-system-time",
            &format!("{}!", later.as_second()),
            "--quick-set-expire",
            &key,
            "5d",
        ],
        b"",
    )?;
    refused(
        judge(&gpg.line("ann", &key)?, &signature, When::At(in_days(6)))?,
        "expired at",
    )?;
    // A signature by itself.
    let brief = gpg.sign_with(
        &format!("{signs}!"),
        &["--sig-notation", NOTATION, "--default-sig-expire", "2d"],
    )?;
    let brief = OpenPgpSignature::from_bytes(&brief)?;
    ensure!(judge(&file, &brief, When::At(in_days(1)))? == Ok(()));
    refused(
        judge(&file, &brief, When::At(in_days(3)))?,
        "the OpenPGP signature expired at",
    )
}

fn revoked() -> anyhow::Result<()> {
    let gpg = Gpg::new()?;
    let key = gpg.key(SIGNS)?;
    let signature = gpg.sign(&key)?;
    // gpg makes the certificate with each key, and a colon against an accident.
    let certificate = std::fs::read_to_string(gpg.path(&format!("openpgp-revocs.d/{key}.rev")))?;
    let certificate = certificate.replace(":-----BEGIN", "-----BEGIN");
    ensure!(judge(&gpg.line("ann", &key)?, &signature, now())? == Ok(()));
    gpg.run(&["--import"], certificate.as_bytes())?;
    let file = gpg.line("ann", &key)?;
    refused(judge(&file, &signature, now())?, "is revoked")?;
    ensure!(parse(&file)?.keys_of(&ann(), now()).is_empty());
    // A revocation that can't be verified counts all the same.
    let damaged = rewritten(&gpg.export(&key)?, |packet| {
        if let Packet::Signature(signature) = packet {
            let is_revocation = signature.typ() == Some(pgp::packet::SignatureType::KeyRevocation);
            while is_revocation
                && signature
                    .config()
                    .is_some_and(|it| it.unhashed_subpackets().next().is_some())
            {
                signature.unhashed_subpacket_remove(0)?;
            }
        }
        Ok(())
    })?;
    let file = format!("ann pgp {}\n", BASE64.encode(&damaged));
    refused(judge(&file, &signature, now())?, "is revoked")?;

    let gpg = Gpg::new()?;
    let (key, signs, _) = with_subkeys(&gpg)?;
    let signature = gpg.sign(&format!("{signs}!"))?;
    let dialogue = b"key 1\nrevkey\ny\n1\n\ny\nsave\n";
    gpg.run(&["--command-fd", "0", "--edit-key", &key], dialogue)?;
    refused(judge(&gpg.line("ann", &key)?, &signature, now())?, "is revoked")
}

fn allowed() -> anyhow::Result<()> {
    let gpg = Gpg::new()?;
    let key = gpg.key(SIGNS)?;
    let signature = gpg.sign(&key)?;
    for (terms, says) in [
        ("ann", ""),
        ("bob,a*", ""),
        ("ann valid-after=\"20200101Z\",valid-before=\"29990101Z\"", ""),
        ("bob", "may not sign for ann"),
        ("*,!ann", "may not sign for ann"),
        ("ann valid-before=\"20200101Z\"", "may sign for ann before"),
        ("ann valid-after=\"29990101Z\"", "may sign for ann after"),
        ("ann namespaces=\"file\"", "other namespaces"),
    ] {
        let judged = judge(
            &format!("# people\n\n{}", gpg.line(terms, &key)?),
            &signature,
            now(),
        )?;
        match says {
            "" => ensure!(judged == Ok(()), "{terms}: {judged:?}"),
            says => refused(judged, says)?,
        }
    }
    // One line is over and another holds, and a comment follows the key.
    let line = gpg.line("ann", &key)?;
    let two = format!(
        "{}{} a card\n",
        gpg.line("ann valid-before=\"20200101Z\"", &key)?,
        line.trim_end()
    );
    ensure!(judge(&two, &signature, now())? == Ok(()));
    let allowed = parse(&format!("{two}{}", gpg.line("*", &key)?))?;
    ensure!(
        allowed.name(&ann()) && !allowed.name(&Caller::new("bob")?),
        "a pattern names nobody"
    );
    Ok(())
}

fn other_keys() -> anyhow::Result<()> {
    let gpg = Gpg::new()?;
    let good = gpg.key(SIGNS)?;
    let second = gpg.key(&["bob@example.org", "ed25519", "sign", "never"])?;
    let rsa = gpg.key(&["rsa@example.org", "rsa2048", "sign", "never"])?;
    let curve = gpg.key(&["curve@example.org", "nistp256", "sign", "never"])?;
    let certifies = gpg.key(&["cert@example.org", "ed25519", "cert", "never"])?;
    let export = gpg.export(&good)?;
    let private = gpg.run(&["--export-secret-keys", &good], b"")?;
    let armored = gpg.run(&["--armor", "--export", &good], b"")?;
    // Only the key packet itself, and the key without the signature of its owner.
    let bare = rewritten(&export, |_| Ok(()))?;
    ensure!(bare == export, "it is written as it is read");
    let line = |key: &[u8]| format!("# first\nann pgp {}\n", BASE64.encode(key));
    for (line, says) in [
        (line(&gpg.export(&rsa)?), "only those of version 4 with Ed25519"),
        (line(&gpg.export(&curve)?), "only those of version 4 with Ed25519"),
        (line(&gpg.export(&certifies)?), "nor a subkey of it is one"),
        (line(&private), "private key"),
        (line(&armored), "not an OpenPGP public key"),
        (
            line(&[export.clone(), gpg.export(&second)?].concat()),
            "not one OpenPGP public key",
        ),
        (line(&export[..export.len() - 1]), "not an OpenPGP public key"),
        (
            line(&[export.as_slice(), &[0]].concat()),
            "not an OpenPGP public key",
        ),
        (line(b""), "must have principals"),
        (line(&gpg.sign_with(&good, &[])?), "not one OpenPGP public key"),
        ("# first\nann pgp %%%\n".to_owned(), "in base64"),
        ("# first\nann ssh-ed25519 AAAA\n".to_owned(), "the option"),
        ("# first\nann\n".to_owned(), "must have principals"),
        (
            format!("# first\n{}", gpg.line("ann cert-authority", &good)?),
            "cert-authority",
        ),
    ] {
        let error = line.parse::<AllowedOpenPgp>().err().context(says)?;
        let text = leaf_core::error::chain(&error);
        ensure!(
            text.starts_with("line 2 can't be used: ") && text.contains(says),
            "{says}: {text}"
        );
    }
    Ok(())
}

fn altered() -> anyhow::Result<()> {
    let gpg = Gpg::new()?;
    let (key, signs, _) = with_subkeys(&gpg)?;
    let (export, signature) = (
        gpg.export(&key)?,
        gpg.sign_with(&format!("{signs}!"), &["--sig-notation", NOTATION])?,
    );
    let (good, part) = (OpenPgpKey::from_bytes(&export)?, shown(&signs));
    for bit in 0..8 {
        for at in 0..signature.len() {
            let mut altered = signature.clone();
            altered[at] ^= 1 << bit;
            let accepted =
                OpenPgpSignature::from_bytes(&altered).is_ok_and(|it| it.verify(&good, TEXT, now()).is_ok());
            // What is not hashed is only a hint: the id of the key.
            let is_hint = accepted && OpenPgpSignature::from_bytes(&altered)?.fingerprint() == part;
            ensure!(!accepted || is_hint, "bit {bit} of byte {at}");
        }
    }
    for at in 0..export.len() {
        let mut altered = export.clone();
        altered[at] ^= 1 << (at % 8);
        if let Ok(read) = OpenPgpKey::from_bytes(&altered) {
            let parts: Vec<&str> = read.parts().collect();
            ensure!(parts == [part.as_str()], "byte {at}: {parts:?}");
        }
    }
    for cut in 0..signature.len() {
        ensure!(OpenPgpSignature::from_bytes(&signature[..cut]).is_err(), "{cut}");
    }
    let allowed = parse(&gpg.line("ann", &key)?)?;
    let unknown = allowed.check(
        &OpenPgpSignature::from_bytes(&signature)?,
        &Caller::new("bob")?,
        now(),
    );
    ensure!(
        matches!(unknown, Err(NotAllowed::OtherCaller { .. })),
        "{unknown:?}"
    );
    Ok(())
}

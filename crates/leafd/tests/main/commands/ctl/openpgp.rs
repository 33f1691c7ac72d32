//! `leafctl` signs by the user's `gpg`, for a leafd with the cargo feature `openpgp`.

use std::os::unix::fs::PermissionsExt as _;

use async_nats::HeaderMap;
use data_encoding::BASE64;
use leaf_core::signed::{SIGNATURE_HEADER, SignedText, TEXT_HEADER, body_hash};

use super::*;
use crate::commands::wire::{Wire, problem, value};
use crate::support::OPENPGP_LEAFD;

/// A home of `gpg`.
struct Gpg(tempfile::TempDir);

impl Drop for Gpg {
    fn drop(&mut self) {
        // Its agent.
        let mut end = std::process::Command::new("gpgconf");
        let _ = end
            .arg("--homedir")
            .arg(self.0.path())
            .args(["--kill", "all"])
            .output();
    }
}

impl Gpg {
    async fn run(&self, arguments: &[&str], input: &[u8]) -> anyhow::Result<Vec<u8>> {
        use tokio::io::AsyncWriteExt as _;
        let mut gpg = Command::new("gpg")
            .arg("--homedir")
            .arg(self.0.path())
            .args(["--batch", "--quiet", "--passphrase", ""])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = gpg.stdin.take().context("it was piped")?;
        stdin.write_all(input).await?;
        drop(stdin);
        let output = gpg.wait_with_output().await?;
        ensure!(
            output.status.success(),
            "gpg {arguments:?}: {}",
            text(&output.stderr)
        );
        Ok(output.stdout)
    }

    /// Makes a key that signs, and returns its fingerprint.
    async fn key(&self, user: &str) -> anyhow::Result<String> {
        self.run(&["--quick-generate-key", user, "ed25519", "sign", "never"], b"")
            .await?;
        let listed = self.run(&["--with-colons", "--list-keys", user], b"").await?;
        let listed = String::from_utf8(listed)?;
        let line = listed
            .lines()
            .find(|line| line.starts_with("fpr:"))
            .context("a fingerprint")?;
        Ok(line.split(':').nth(9).context("a field")?.to_owned())
    }

    async fn line(&self, caller: &str, key: &str) -> anyhow::Result<String> {
        Ok(format!(
            "{caller} pgp {}\n",
            BASE64.encode(&self.run(&["--export", key], b"").await?)
        ))
    }

    /// Runs `leafctl`, which runs this `gpg`.
    async fn ctl(&self, leaf: &TestLeaf, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = command(arguments);
        command
            .env("LEAFCTL_CONTEXT", leaf.context_file())
            .env_remove("LEAFCTL_SIGN_WITH")
            .env_remove("SSH_AUTH_SOCK")
            .env("HOME", "/nonexistent")
            .env("GNUPGHOME", self.0.path());
        run(command).await
    }
}

pub(super) async fn signs() -> anyhow::Result<()> {
    let gpg = Gpg(tempfile::Builder::new().prefix("gpg-").tempdir()?);
    let [own, other] = [gpg.key("ann").await?, gpg.key("bob").await?];
    let directory = tempfile::tempdir()?;
    let write = |name: &str, content: &str| {
        let file = directory.path().join(name);
        std::fs::write(&file, content)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))?;
        anyhow::Ok(file.display().to_string())
    };
    let lines = gpg.line("admin,tester", &own).await? + &gpg.line("zoe", &other).await?;
    let allowed = write("allowed_openpgp", &lines)?;
    let revoked = write("revoked", "")?;
    let setup = Setup::new()
        .set("trust.allowed_openpgp", allowed)
        .set("trust.revoked_signers", revoked)
        .set("trust.clock", "untrusted")
        .set(
            "trust.require_signature",
            vec!["runs-code", "cuts-off", "leaf.label"],
        );
    let mut leaf = setup.start().await?;
    // A leafd without the feature runs with these settings, and lets nobody sign.
    let with_own = ["--sign-with", &format!("gpg:{own}"), "leaf", "label", "site=1"];
    if !cfg!(feature = "openpgp") {
        ended(
            &gpg.ctl(&leaf, &with_own).await?,
            6,
            "settings name no file of allowed signers",
        )?;
    }
    leaf.run_program(Path::new(
        &std::env::var_os(OPENPGP_LEAFD).context("it is skipped without")?,
    ));
    leaf.restart().await?;
    let unsigned = until("the leaf answers after its restart", async || {
        let output = gpg.ctl(&leaf, &["leaf", "label", "site=1"]).await?;
        Ok((output.status.code() == Some(6)).then_some(output))
    })
    .await?;
    ended(&unsigned, 6, &format!("by one of the keys pgp:{own}"))?;
    let with_other = ["--sign-with", &format!("gpg:{other}"), "leaf", "label", "site=1"];
    ended(
        &gpg.ctl(&leaf, &with_other).await?,
        6,
        "does not let the key pgp:",
    )?;
    let with_none = ["--sign-with", "gpg:ann", "leaf", "label", "site=1"];
    ended(&gpg.ctl(&leaf, &with_none).await?, 6, "40 hexadecimal digits")?;
    ensure!(leaf.show().await?.labels.is_empty());
    ended(&gpg.ctl(&leaf, &with_own).await?, 0, "")?;
    ensure!(leaf.show().await?.labels["site"] == "1");

    // By hand, as the document says, and with the same signature at another text.
    let wire = Wire::to(leaf).await?;
    let body = serde_json::json!({ "set": { "site": "2" } }).to_string();
    let send = async |key: &str, text: &SignedText, signed: &str, more: &[&str]| {
        let arguments = [&["--local-user", key], more, &["--detach-sign"]].concat();
        let signature = gpg.run(&arguments, signed.as_bytes()).await?;
        let mut headers = HeaderMap::new();
        headers.insert("ce-id", text.id.as_str());
        headers.insert(TEXT_HEADER, BASE64.encode(text.to_string().as_bytes()).as_str());
        headers.insert(
            SIGNATURE_HEADER,
            format!("pgp:{}", BASE64.encode(&signature)).as_str(),
        );
        wire.send(&wire.subject("leaf.label"), headers, body.clone().into_bytes())
            .await
    };
    let challenge = value(
        &wire.ask("leaf.challenge", &serde_json::json!({})).await?,
        "reply.leaf.challenge",
    )?;
    ensure!(
        challenge["keys"] == serde_json::json!([format!("pgp:{own}")]),
        "{challenge}"
    );
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second())?;
    let signed = SignedText {
        caller: Caller::new("tester")?,
        noun: "leaf".to_owned(),
        verb: "label".to_owned(),
        leaves: [(
            wire.leaf.name.clone(),
            Some(challenge["nonce"].as_str().context("a nonce")?.parse()?),
        )]
        .into(),
        body: body_hash(body.as_bytes()),
        id: uuid::Uuid::now_v7().into(),
        time: now,
        expires: now + jiff::SignedDuration::from_mins(2),
    };
    let written = signed.to_string();
    let notation = ["--sig-notation", "command@cim-leaf=1"];
    for (key, text, more, says) in [
        (&own, &*written, &[][..], "has no notation"),
        (
            &own,
            "something else",
            &notation,
            "is not by its key over this text",
        ),
        (&other, &*written, &notation, "may not sign for tester"),
    ] {
        let refused = problem(&send(key, &signed, text, more).await?)?;
        ensure!(refused.detail.contains(says), "{says}: {refused:?}");
    }
    for content in [format!("pgp:{own}\n"), format!("pgp:{}\n", own.to_lowercase())] {
        write("revoked", &content)?;
        let refused = problem(&send(&own, &signed, &written, &notation).await?)?;
        ensure!(refused.detail.contains("is revoked"), "{refused:?}");
        let challenge = value(
            &wire.ask("leaf.challenge", &serde_json::json!({})).await?,
            "reply.leaf.challenge",
        )?;
        ensure!(challenge["keys"] == serde_json::json!([]), "{challenge}");
    }
    write("revoked", "")?;
    value(
        &send(&own, &signed, &written, &notation).await?,
        "reply.leaf.label",
    )?;
    let mut leaf = wire.leaf;
    ensure!(leaf.show().await?.labels["site"] == "2");
    write("allowed_openpgp", "tester pgp AAAA\n")?;
    ended(
        &gpg.ctl(&leaf, &with_own).await?,
        6,
        "accepts none: trust.allowed_openpgp",
    )?;
    Ok(())
}

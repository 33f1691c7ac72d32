//! What a signature must be: of this command, for this leaf, now, and once.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use async_nats::HeaderMap;
use data_encoding::BASE64;
use leaf_core::id::{Caller, LeafName};
use leaf_core::problem::ProblemCode;
use leaf_core::signed::{Nonce, SIGNATURE_HEADER, TEXT_HEADER, body_hash};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use uuid::Uuid;

use super::*;

pub(super) async fn accepted() -> anyhow::Result<()> {
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

pub(super) async fn refused() -> anyhow::Result<()> {
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
            if cfg!(feature = "openpgp") {
                "not an OpenPGP signature"
            } else {
                "built without the cargo feature openpgp"
            },
        ),
        (
            SIGNATURE_HEADER,
            Some("x509:AAAA"),
            "the kind of signature \"x509\"",
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

pub(super) async fn replayed() -> anyhow::Result<()> {
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

pub(super) async fn nonces() -> anyhow::Result<()> {
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

pub(super) async fn journal_lost() -> anyhow::Result<()> {
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

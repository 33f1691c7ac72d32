//! Who may sign, and who need not: the files of signers, what is recorded of others, and a person at the machine.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, ensure};
use leaf_core::id::Caller;
use leaf_core::problem::ProblemCode;
use serde_json::{Value, json};

use super::*;

pub(super) async fn files() -> anyhow::Result<()> {
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

pub(super) async fn recorded() -> anyhow::Result<()> {
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
    valid(one, "cim.leaf.leaf.signature_refused.v1")?;
    ensure!(
        one["caller"] == "tester" && one["command"] == LABEL && one["refused"] == 1,
        "{one}"
    );
    ensure!(one["signer"] == json!(scene.keys.fingerprint("nobody")?), "{one}");
    Ok(())
}

pub(super) async fn at_the_machine() -> anyhow::Result<()> {
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

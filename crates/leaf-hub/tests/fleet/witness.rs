//! The agent as a witness of changes that can cut a leaf off, asked over a connection that the leaf makes for it.

use anyhow::{Context as _, ensure};
use data_encoding::BASE64;
use leaf_bus::embedded::Hub;
use leaf_bus::leaf_node::{FreshDial, FreshDialError};
use leaf_core::change::{NAMESPACE, WitnessNonce, witness_text};
use leaf_core::fleet::witness::WitnessReply;
use leaf_core::id::{ChangeId, LeafName};
use leaf_core::subject;
use leaf_trust::ssh_signature::{SignerKey, SshSignature};
use uuid::Uuid;

use crate::servers::until;
use crate::site::{LIMIT, Site};

fn to(site: &Site, leaf: &str) -> anyhow::Result<(FreshDial, LeafName)> {
    let name = LeafName::new(leaf)?;
    let hub = Hub {
        urls: vec![site.leaf_url()],
        credentials: site.seed_file(leaf)?,
        ca: None,
    };
    Ok((FreshDial::new(&hub, &name)?, name))
}

/// Returns the reply, once the agent gives one.
async fn asked(site: &Site, leaf: &str, body: &str) -> anyhow::Result<WitnessReply> {
    let (dial, name) = to(site, leaf)?;
    let bytes = until("the agent answers", LIMIT, async || {
        Ok(dial.ask(&subject::hub_witness(&name), body.as_bytes()).await.ok())
    });
    Ok(serde_json::from_slice(&bytes.await.with_context(|| site.log())?)?)
}

pub(crate) async fn signs_for_the_leaf_of_the_subject() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1", "edge-2"]).await?;
    let (change, nonce) = (ChangeId(Uuid::now_v7()), WitnessNonce::from([5; 32]));
    // What else a body names is not looked at.
    for body in [
        format!(r#"{{"change":"{change}","nonce":"{nonce}"}}"#),
        format!(r#"{{"leaf":"edge-1","change":"{change}","nonce":"{nonce}","key":"another"}}"#),
    ] {
        let reply = asked(&site, "edge-2", &body).await?;
        let WitnessReply::Signed { signature } = reply else {
            anyhow::bail!("{reply:?}");
        };
        let signature = SshSignature::from_bytes(&BASE64.decode(signature.as_bytes())?)?;
        let key: SignerKey = site.witness.parse()?;
        ensure!(*signature.key() == key, "{:?}", signature.key());
        let verify = |leaf: &str, change, nonce: &WitnessNonce| {
            let text = witness_text(&LeafName::new(leaf)?, change, nonce);
            anyhow::Ok(signature.verify(NAMESPACE, text.as_bytes()).is_ok())
        };
        ensure!(verify("edge-2", change, &nonce)?);
        ensure!(!verify("edge-1", change, &nonce)?);
        ensure!(!verify("edge-2", ChangeId(Uuid::now_v7()), &nonce)?);
        ensure!(!verify("edge-2", change, &WitnessNonce::from([6; 32]))?);
    }
    // A leaf that the agent does not know yet, since it has claimed nothing, is asked for none.
    let shown = site.command(&["status", "--json"]).await?;
    ensure!(!shown.contains("edge-2"), "{shown}");
    Ok(())
}

pub(crate) async fn not_in_anothers_name() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1", "edge-2"]).await?;
    let body = format!(
        r#"{{"change":"{}","nonce":"{}"}}"#,
        Uuid::now_v7(),
        WitnessNonce::from([5; 32])
    );
    // The agent is there.
    asked(&site, "edge-1", &body).await?;
    let (thief, _) = to(&site, "edge-2")?;
    let of_other = subject::hub_witness(&LeafName::new("edge-1")?);
    let error = thief.ask(&of_other, body.as_bytes()).await.err();
    ensure!(
        matches!(&error, Some(FreshDialError::Refused { said, .. }) if said.contains(&of_other)),
        "{error:?}"
    );
    ensure!(
        site.log().matches("signed as a witness").count() == 1,
        "{}",
        site.log()
    );
    Ok(())
}

pub(crate) async fn without_a_store() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1"]).await?;
    let body = format!(
        r#"{{"change":"{}","nonce":"{}"}}"#,
        Uuid::now_v7(),
        WitnessNonce::from([5; 32])
    );
    asked(&site, "edge-1", &body).await?;
    let leaf = site.leaf("edge-1").await?;
    leaf.claimed().await?;
    // The store of the hub is gone, and what the leaf claims can't be recorded.
    site.break_store().await?;
    let reply = asked(&site, "edge-1", &body).await?;
    ensure!(matches!(reply, WitnessReply::Signed { .. }), "{reply:?}");
    Ok(())
}

pub(crate) async fn without_a_key() -> anyhow::Result<()> {
    let mut site = Site::start(&["edge-1"]).await?;
    site.kill_agent().await?;
    let settings = std::fs::read_to_string(site.settings())?;
    let without: String = settings
        .lines()
        .filter(|line| !line.starts_with("witness_key"))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(site.settings(), without)?;
    site.start_agent()?;
    let body = format!(
        r#"{{"change":"{}","nonce":"{}"}}"#,
        Uuid::now_v7(),
        WitnessNonce::from([5; 32])
    );
    let reply = asked(&site, "edge-1", &body).await?;
    ensure!(
        matches!(&reply, WitnessReply::Refused { why } if why.contains("witness_key")),
        "{reply:?}"
    );
    Ok(())
}

//! `leafctl fleet`: the life of a fleet's keys, with a real hub.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use anyhow::{Context as _, ensure};
use async_nats::ConnectErrorKind as Refused;
use jiff::Timestamp;
use leaf_bus::identity::Token;
use leaf_bus::identity::fleet::{Account, Fleet, KeyKind, NatsKey};

use super::{ended, text};
use crate::support::{FleetSite, key_file, until};

/// Everything that was made works together, over TLS: the leaf by the credentials that its host decrypts, the agent and the person.
pub(super) async fn from_nothing() -> anyhow::Result<()> {
    let mut site = FleetSite::start().await?;
    site.start_agent()?;
    let (leaf, setup) = site.leaf().await?;
    site.done(&["add-operator", "ann"]).await?;
    let running = setup.start().await?;
    let listed = until("the leaf's copy is current", async || {
        let output = site.as_person("ann", &["leaf", "list", "--json"]).await?;
        let list: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{}{}", text(&output.stderr), site.agent_log()))?;
        Ok((list["leaves"][0]["copy"]["state"] == "current").then_some(list))
    })
    .await?;
    ensure!(listed["leaves"][0]["leaf"] == leaf.as_str(), "{listed}");
    let shown = site.as_person("ann", &["leaf", "show", leaf.as_str()]).await?;
    ended(&shown, 0, "")?;
    // The rights of the role are those of a person, each and no other.
    ended(
        &site.as_person("ann", &["nats", "check", leaf.as_str()]).await?,
        0,
        "",
    )?;
    // A leaf's credentials are for a server, and a role is for its own account.
    let of_leaf = site.at(&format!("{leaf}.creds"));
    let as_client = site.connect(&of_leaf, leaf.as_str()).await?.map(|_| ());
    ensure!(as_client == Err(Refused::AuthorizationViolation), "{as_client:?}");

    // The leaf is cut off by its revocation, and a restart of the hub's server lets it in no more.
    ended(&site.fleet(&["revoke", leaf.as_str()]).await?, 0, "accounts.conf")?;
    until("the leaf is refused", async || {
        Ok(site.log().contains("authentication error").then_some(()))
    })
    .await?;
    site.stop_server().await?;
    site.start_server().await?;
    until("the leaf is refused after a restart", async || {
        Ok(site.log().contains("authentication error").then_some(()))
    })
    .await?;
    drop(running);
    Ok(())
}

/// A person's connection is cut, and none of what is at hand lets it in again.
pub(super) async fn revoked() -> anyhow::Result<()> {
    let mut site = FleetSite::start().await?;
    for name in ["ann", "bob"] {
        site.done(&["add-operator", name]).await?;
    }
    let mut ann = site.person("ann").await?.ok().context("ann connects")?;
    let bob = site.person("bob").await?.ok().context("bob connects")?;
    let older = site.account("CALLERS")?;
    ended(&site.fleet(&["revoke", "ann"]).await?, 0, "accounts.conf")?;
    ann.is_cut().await?;
    let refused = async |site: &FleetSite, when: &str| {
        let again = site.person("ann").await?.map(|_| ());
        ensure!(again == Err(Refused::AuthorizationViolation), "{when}: {again:?}");
        anyhow::Ok(())
    };
    refused(&site, "after the revocation").await?;
    bob.client.flush().await?;
    ensure!(!*bob.cut_seen(), "bob's connection stands");
    site.stop_server().await?;
    site.start_server().await?;
    refused(&site, "after a restart").await?;

    // A server that lost its resolver's directory starts from the preload, which has the revocation.
    site.stop_server().await?;
    std::fs::remove_dir_all(site.at("state/accounts"))?;
    site.start_server().await?;
    refused(&site, "from the preload").await?;

    // The server itself takes the older JWT. A push puts it right.
    site.resolvers().await?.push(older.trim()).await?;
    let mut ann = site
        .person("ann")
        .await?
        .ok()
        .context("nats-server takes an older JWT")?;
    let pushed = site.done(&["push"]).await?;
    let callers = pushed["accounts"]
        .as_array()
        .context("accounts")?
        .iter()
        .find(|a| a["account"] == "CALLERS");
    ensure!(
        callers.is_some_and(|callers| callers["pushed"] == true && callers["revoked"] == 1),
        "{pushed}"
    );
    ann.is_cut().await?;
    refused(&site, "after the push").await?;
    let again = site.done(&["push"]).await?;
    let unchanged = again["accounts"]
        .as_array()
        .context("accounts")?
        .iter()
        .all(|a| a["pushed"] == false);
    ensure!(unchanged, "a push is idempotent: {again}");

    let shown = site.shown("ann").await?;
    ensure!(
        shown["state"] == "revoked" && shown["revoked_since"].is_string(),
        "{shown}"
    );
    Ok(())
}

/// `nsc revocations add-user` revokes all users of an account by `*`: a server that has it is asked before each push.
pub(super) async fn revoked_all() -> anyhow::Result<()> {
    let site = FleetSite::start().await?;
    for name in ["ann", "bob"] {
        site.done(&["add-operator", name]).await?;
    }
    let mut ann = site.person("ann").await?.ok().context("ann connects")?;
    let signing = site.manifest()?["signing_key"]
        .as_str()
        .context("a key")?
        .to_owned();
    let seed = std::fs::read_to_string(key_file(&site.keys(), &signing))?;
    let signer = NatsKey::from_seed(&seed, KeyKind::Operator)?;
    let mut callers = Token::read(&site.account("CALLERS")?)?;
    let until = Timestamp::now().as_second();
    callers.nats["revocations"] = serde_json::json!({ "*": until });
    let fleet = Fleet {
        accounts: [(Account::Callers, callers.subject)].into(),
        roles: [].into(),
    };
    let issued_at = until.max(callers.issued_at + 1);
    let jwt = fleet.account_jwt(Account::Callers, callers.nats, issued_at, &signer);
    site.resolvers().await?.push(&jwt).await?;
    ann.is_cut().await?;

    // A push of the directory, which does not know of it, keeps it.
    ended(&site.fleet(&["revoke", "bob"]).await?, 0, "")?;
    let written = Token::read(&site.account("CALLERS")?)?;
    ensure!(written.nats["revocations"]["*"] == until, "{:?}", written.nats);
    for name in ["ann", "bob"] {
        let again = site.person(name).await?.map(|_| ());
        ensure!(again == Err(Refused::AuthorizationViolation), "{name}: {again:?}");
    }
    ensure!(site.shown("ann").await?["state"] == "revoked");
    // New credentials are issued after it, also in the same second.
    for arguments in [["rotate", "ann"], ["add-operator", "carol"]] {
        site.done(&arguments).await?;
    }
    for name in ["ann", "carol"] {
        site.person(name)
            .await?
            .ok()
            .with_context(|| format!("{name} connects"))?;
    }
    Ok(())
}

/// A user is refused after its end, and a connection that stands is cut at it.
pub(super) async fn ends() -> anyhow::Result<()> {
    let site = FleetSite::start().await?;
    let now = Timestamp::now().as_second();
    let file = |name: &str, credentials: leaf_core::host_op::Secret| -> anyhow::Result<_> {
        let path = site.work().join(format!("{name}.creds"));
        std::fs::write(&path, credentials.expose())?;
        Ok(path)
    };
    let ended = file("ended", site.by_hand("CALLERS/person", "ann", now - 60, now - 1)?)?;
    let refused = site.connect(&ended, "ann").await?.map(|_| ());
    ensure!(refused == Err(Refused::AuthorizationViolation), "{refused:?}");
    let brief = file("brief", site.by_hand("CALLERS/person", "ann", now, now + 5)?)?;
    let mut ann = site
        .connect(&brief, "ann")
        .await?
        .ok()
        .context("it has not ended")?;
    ann.is_cut().await?;
    ensure!(
        Timestamp::now().as_second() >= now + 5,
        "it was cut before its end"
    );
    // In the second of its end a server still takes it, and cuts it again.
    until("it is refused", async || {
        let refused = site.connect(&brief, "ann").await?.map(|_| ());
        Ok((refused == Err(Refused::AuthorizationViolation)).then_some(()))
    })
    .await?;
    // A key of a role makes users of this role and account alone.
    for (signs, account, name) in [
        ("LINKS/leaf", "CALLERS", "ann"),
        ("CALLERS/person", "FLEET", "hub"),
    ] {
        let manifest = site.manifest()?;
        let account = manifest["accounts"][account].as_str().context("an account")?;
        let user = leaf_bus::identity::fleet::new_user(name, account, &site.role_key(signs)?, now, now + 600);
        let path = file("other", user.credentials)?;
        let refused = site.connect(&path, name).await?.map(|_| ());
        ensure!(
            refused == Err(Refused::AuthorizationViolation),
            "{signs} in {account}: {refused:?}"
        );
    }
    Ok(())
}

/// A new key works beside the one before, until that is revoked.
pub(super) async fn rotated() -> anyhow::Result<()> {
    let mut site = FleetSite::start().await?;
    site.done(&["add-operator", "ann"]).await?;
    let former = site.work().join("former.creds");
    std::fs::copy(site.work().join("ann.creds"), &former)?;
    let before = site.shown("ann").await?;
    site.done(&["rotate", "ann"]).await?;
    let after = site.shown("ann").await?;
    ensure!(
        after["key"] != before["key"] && after["former"][0]["key"] == before["key"],
        "{after}"
    );
    let mut old = site
        .connect(&former, "ann")
        .await?
        .ok()
        .context("the former key is valid")?;
    let new = site.person("ann").await?.ok().context("the new key is valid")?;
    ended(&site.fleet(&["revoke", "ann", "--former"]).await?, 0, "")?;
    old.is_cut().await?;
    ensure!(!*new.cut_seen(), "the new one stands");
    let again = site.done(&["revoke", "ann", "--former"]).await?;
    ensure!(again["revoked"] == 0, "it is revoked already: {again}");
    site.done(&["add-operator", "bob"]).await?;
    ended(
        &site.fleet(&["revoke", "bob", "--former"]).await?,
        6,
        "no former key",
    )?;
    // One that can't be written leaves the key before.
    let key = site.shown("ann").await?["key"].clone();
    let refused = site.fleet(&["rotate", "ann", "--out", "ann.creds/below"]).await?;
    ended(&refused, 1, "can't write")?;
    ensure!(site.shown("ann").await?["key"] == key, "nobody has a new key");
    // A key that the directory does not know, as after a restored backup.
    let now = Timestamp::now().as_second();
    let unknown = site.by_hand("CALLERS/person", "ann", now, now + 600)?;
    let file = site.work().join("unknown.creds");
    std::fs::write(&file, unknown.expose())?;
    let mut known = site
        .connect(&file, "ann")
        .await?
        .ok()
        .context("the role's key signed it")?;
    let seed = unknown
        .expose()
        .lines()
        .find(|line| line.starts_with("SU"))
        .context("a seed")?;
    let public = NatsKey::from_seed(seed, KeyKind::User)?.public_key();
    let revoke = ["revoke", "--key", &public, "--account", "CALLERS"];
    ended(&site.fleet(&revoke).await?, 0, "")?;
    known.is_cut().await?;
    ended(
        &site
            .fleet(&["revoke", "--key", "UX", "--account", "CALLERS"])
            .await?,
        2,
        "not the public key of a user",
    )?;

    // The agent's, at once.
    let keys = site.keys();
    let (agent, certificate) = (keys.join("hub/fleet.creds"), keys.join("hub/hub.pem"));
    let old_agent = site.work().join("agent.creds");
    std::fs::copy(&agent, &old_agent)?;
    let old_certificate = std::fs::read(&certificate)?;
    site.done(&["rotate", "hub", "--at-once"]).await?;
    ensure!(
        std::fs::read(&certificate)? != old_certificate,
        "the certificate is renewed"
    );
    let refused = site.connect(&old_agent, "hub").await?.map(|_| ());
    ensure!(refused == Err(Refused::AuthorizationViolation), "{refused:?}");
    ensure!(
        site.connect(&agent, "hub").await?.is_ok(),
        "the agent's new credentials are taken"
    );

    // A revoked leaf that comes back on another host.
    let (leaf, _) = site.leaf().await?;
    ended(&site.fleet(&["revoke", leaf.as_str()]).await?, 0, "")?;
    let key = site.host_key("new").await?;
    let public = key.with_extension("pub").display().to_string();
    site.done(&["rotate", leaf.as_str(), "--host-key", &public])
        .await?;
    let shown = site.shown(leaf.as_str()).await?;
    ensure!(
        shown["state"] == "valid" && shown["former"][0]["state"] == "revoked",
        "{shown}"
    );
    let setup = site.setup(&leaf, &site.decrypted(leaf.as_str(), &key)?)?;
    site.start_agent()?;
    let _leaf = setup.start().await?;
    until("the leaf is listed at the hub", async || {
        let output = site.as_person("ann", &["leaf", "list", "--json"]).await?;
        Ok(text(&output.stdout).contains(leaf.as_str()).then_some(()))
    })
    .await?;
    Ok(())
}

/// Whoever restores an older directory and pushes takes over what was revoked since.
pub(super) async fn from_a_backup() -> anyhow::Result<()> {
    let site = FleetSite::start().await?;
    site.done(&["add-operator", "ann"]).await?;
    let backup = site.at("backup");
    let copied = tokio::process::Command::new("cp")
        .arg("-a")
        .arg(site.keys())
        .arg(&backup)
        .status()
        .await?;
    ensure!(copied.success(), "{copied}");
    ended(&site.fleet(&["revoke", "ann"]).await?, 0, "")?;
    ended(&site.fleet_in(&backup, &["push"]).await?, 0, "")?;
    let again = site.person("ann").await?.map(|_| ());
    ensure!(again == Err(Refused::AuthorizationViolation), "{again:?}");
    let shown = site.fleet_in(&backup, &["show"]).await?;
    ensure!(
        text(&shown.stdout).contains("revoked since"),
        "{}",
        text(&shown.stdout)
    );
    // And a revocation of another user keeps it.
    ended(&site.fleet_in(&backup, &["add-operator", "bob"]).await?, 0, "")?;
    ended(&site.fleet_in(&backup, &["revoke", "bob"]).await?, 0, "")?;
    for name in ["ann", "bob"] {
        let again = site.person(name).await?.map(|_| ());
        ensure!(again == Err(Refused::AuthorizationViolation), "{name}: {again:?}");
    }
    Ok(())
}

/// The key of the witness: made with the fleet, told to each leaf, replaced only where that is asked for.
pub(super) async fn witness() -> anyhow::Result<()> {
    let site = FleetSite::made().await?;
    let key = site.keys().join("hub/witness.key");
    ensure!(key.metadata()?.mode() & 0o777 == 0o600, "{:?}", key.metadata()?);
    let public = || anyhow::Ok(std::fs::read_to_string(site.keys().join("hub/witness.pub"))?);
    let first = public()?;
    // ssh-keygen reads it, as it has to sign with it.
    let read = tokio::process::Command::new("ssh-keygen")
        .args(["-y", "-f"])
        .arg(&key)
        .output()
        .await?;
    let line = String::from_utf8(read.stdout)?;
    ensure!(line.starts_with(first.trim()), "{line} {first}");
    let settings = std::fs::read_to_string(site.keys().join("hub/leaf-hub.toml"))?;
    ensure!(
        settings.contains(&format!("witness_key = \"{}\"", key.display())),
        "{settings}"
    );
    let host = site.host_key("edge-1").await?.with_extension("pub");
    let host = host.display().to_string();
    site.done(&["add-leaf", "edge-1", "--host-key", &host]).await?;
    let module = std::fs::read_to_string(site.work().join("hosts/edge-1/hub.nix"))?;
    let line = format!("services.cim-leaf.witnesses = [ \"{}\" ];", first.trim());
    ensure!(module.contains(&line), "{module}");

    ended(&site.fleet(&["rotate", "hub"]).await?, 0, "")?;
    ensure!(public()? == first, "a rotation of the hub's own keeps it");
    ended(
        &site.fleet(&["rotate", "edge-1", "--witness"]).await?,
        2,
        "--witness is for",
    )?;
    let rotated = site.fleet(&["rotate", "hub", "--witness"]).await?;
    let second = public()?;
    ended(&rotated, 0, second.trim())?;
    ensure!(second != first);
    // The private part is at the hub alone: the public one is still told to leaves, and nothing is made anew.
    std::fs::remove_file(&key)?;
    ended(&site.fleet(&["rotate", "hub"]).await?, 0, "")?;
    ensure!(public()? == second && !key.exists());
    // A fleet of an earlier version has none.
    std::fs::remove_file(site.keys().join("hub/witness.pub"))?;
    let host = site.host_key("edge-2").await?.with_extension("pub");
    site.done(&["add-leaf", "edge-2", "--host-key", &host.display().to_string()])
        .await?;
    let module = std::fs::read_to_string(site.work().join("hosts/edge-2/hub.nix"))?;
    ensure!(!module.contains("witnesses"), "{module}");
    ended(&site.fleet(&["rotate", "hub"]).await?, 0, "witness_key = ")?;
    ensure!(key.exists() && public()? != second);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644))?;
    ended(
        &site.fleet(&["rotate", "hub"]).await?,
        6,
        "other users can read it",
    )?;
    Ok(())
}

//! `leafctl fleet`: the keys of a fleet, with a real hub.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, ensure};
use async_nats::ConnectErrorKind as Refused;
use jiff::Timestamp;
use leaf_bus::embedded::NatsServer;
use leaf_bus::identity::Token;
use leaf_bus::identity::fleet::{Account, Fleet, KeyKind, NatsKey};

use super::{ended, text};
use crate::support::{FleetSite, free_port, key_file, until};

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

/// Many connect at once to a server that starts, and the revoked one is among them. A server that has not loaded an account checks what it
/// has of it by then.
pub(super) async fn revoked_in_a_crowd() -> anyhow::Result<()> {
    let mut site = FleetSite::start().await?;
    for name in ["ann", "bob"] {
        site.done(&["add-operator", name]).await?;
    }
    let ann = site.person("ann").await?.ok().context("ann connects")?;
    let mut crowd = vec![ann];
    for _ in 0..30 {
        crowd.push(site.person("bob").await?.ok().context("bob connects")?);
    }
    ended(&site.fleet(&["revoke", "ann"]).await?, 0, "")?;
    for round in 0..10 {
        site.stop_server().await?;
        std::fs::remove_dir_all(site.at("state"))?;
        site.start_server().await?;
        // The crowd connects again by itself.
        for attempt in 0..5 {
            let again = site.person("ann").await?.map(|_| ());
            ensure!(
                again == Err(Refused::AuthorizationViolation),
                "round {round}, attempt {attempt}: {again:?}"
            );
        }
    }
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

/// A hub of two servers: a push reaches both, also through one of them.
pub(super) async fn two_servers() -> anyhow::Result<()> {
    let site = FleetSite::made().await?;
    site.done(&["add-operator", "ann"]).await?;
    let accounts = std::fs::read_to_string(site.keys().join("hub/accounts.conf"))?;
    let resolver = site.at("state/accounts").display().to_string();
    let route = free_port()?;
    let mut servers = Vec::new();
    for number in 0..2 {
        let (clients, cluster) = (free_port()?, if number == 0 { route } else { free_port()? });
        let (config, log) = (
            site.at(&format!("{number}.conf")),
            site.at(&format!("{number}.log")),
        );
        let accounts = accounts.replace(
            &resolver,
            &site.at(&format!("accounts-{number}")).display().to_string(),
        );
        let text = format!(
            "server_name: hub-{number}\nlisten: \"127.0.0.1:{clients}\"\nlog_file: \"{}\"\ncluster {{ name: hub, listen: \"127.0.0.1:{cluster}\", \
             routes: [\"nats://127.0.0.1:{route}\"] }}\n{accounts}",
            log.display()
        );
        std::fs::write(&config, text)?;
        let server = tokio::process::Command::new(NatsServer::find(None).await?.path)
            .arg("-c")
            .arg(&config)
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        servers.push((server, format!("nats://127.0.0.1:{clients}")));
    }
    let [(_, first), (second_server, second)] = &mut servers[..] else {
        anyhow::bail!("two servers run");
    };
    let pushed = until("both servers are known", async || {
        let output = site.fleet(&["--server", first, "--json", "push"]).await?;
        let text = text(&output.stdout);
        Ok(text.contains("\"servers\": 2").then_some(text))
    })
    .await?;
    ensure!(
        !pushed.contains("\"pushed\": true"),
        "both have the preload: {pushed}"
    );
    let credentials = site.work().join("ann.creds");
    let mut ann = site
        .connect_to(second, &credentials, "ann")
        .await?
        .ok()
        .context("ann connects")?;
    ended(
        &site.fleet(&["--server", first, "revoke", "ann"]).await?,
        0,
        "accounts.conf",
    )?;
    ann.is_cut().await?;
    for url in [&*first, &*second] {
        let again = site.connect_to(url, &credentials, "ann").await?.map(|_| ());
        ensure!(again == Err(Refused::AuthorizationViolation), "{url}: {again:?}");
    }
    // Of a server that hangs, the others say that it is there.
    let pid = second_server.id().context("it runs")?;
    let signal = |signal| {
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(i32::try_from(pid).unwrap_or_default()).context("a process")?,
            signal,
        )
        .map_err(anyhow::Error::from)
    };
    signal(rustix::process::Signal::STOP)?;
    let silent = site
        .fleet(&["--server", first, "--timeout", "2s", "push"])
        .await?;
    signal(rustix::process::Signal::CONT)?;
    ended(&silent, 4, "1 of 2 servers of the hub answered")?;
    Ok(())
}

/// Servers take whatever is well-formed, whoever signed it: a push replaces that, and a revocation goes on.
pub(super) async fn forged_account() -> anyhow::Result<()> {
    let mut site = FleetSite::start().await?;
    for name in ["ann", "bob"] {
        site.done(&["add-operator", name]).await?;
    }
    let resolvers = site.resolvers().await?;
    let stranger = NatsKey::new(KeyKind::Operator);
    for account in [Account::System, Account::Callers] {
        let genuine = Token::read(&site.account(account.name())?)?;
        let fleet = Fleet {
            accounts: [(account, genuine.subject)].into(),
            roles: [].into(),
        };
        let year_2100 = 4_102_444_800;
        let forged = fleet.account_jwt(account, genuine.nats, year_2100, &stranger);
        resolvers.push(&forged).await?;
    }
    let revoked = site.fleet(&["revoke", "ann"]).await?;
    ended(
        &revoked,
        0,
        "which is no key of this fleet's operator; it was replaced",
    )?;
    let again = site.person("ann").await?.map(|_| ());
    ensure!(again == Err(Refused::AuthorizationViolation), "{again:?}");
    site.stop_server().await?;
    site.start_server().await?;
    ensure!(site.person("bob").await?.is_ok(), "the server has its accounts");
    let pushed = site.done(&["push"]).await?;
    ensure!(!pushed.to_string().contains("foreign"), "{pushed}");
    Ok(())
}

/// What may be moved away, and what is said where a key is missing.
pub(super) async fn moved_away() -> anyhow::Result<()> {
    let site = FleetSite::start().await?;
    let places = site.done(&["show", "--keys"]).await?;
    let places = places["keys"].as_array().context("keys")?;
    ensure!(
        places.iter().all(|place| place["here"] == true) && places.len() == 12,
        "{places:?}"
    );
    for place in places.iter().filter(|place| place["needed_by"].is_null()) {
        std::fs::remove_file(place["file"].as_str().context("a file")?)?;
    }
    // Nothing needs them.
    site.done(&["add-operator", "ann"]).await?;
    let (leaf, _) = site.leaf().await?;
    site.done(&["rotate", "ann"]).await?;
    ended(&site.fleet(&["revoke", leaf.as_str()]).await?, 0, "")?;
    site.done(&["push"]).await?;
    let shown = site.done(&["show", "--keys"]).await?;
    let gone = shown["keys"]
        .as_array()
        .context("keys")?
        .iter()
        .filter(|place| place["here"] == false);
    ensure!(gone.count() == 5, "{shown}");

    let manifest = site.manifest()?;
    let push = manifest["roles"]["SYS/push"].as_str().context("a key")?;
    site.done(&["add-operator", "dan"]).await?;
    std::fs::rename(key_file(&site.keys(), push), site.at("push"))?;
    let refused = site.fleet(&["revoke", "dan"]).await?;
    ended(&refused, 6, "run `leafctl fleet push` when this is mended")?;
    ended(&refused, 6, "the key of the role push")?;
    std::fs::rename(site.at("push"), key_file(&site.keys(), push))?;
    let signing = manifest["signing_key"].as_str().context("a key")?.to_owned();
    std::fs::rename(key_file(&site.keys(), &signing), site.at("away"))?;
    let refused = site.fleet(&["revoke", "ann"]).await?;
    ended(&refused, 6, "the signing key of the NATS operator")?;
    ended(
        &refused,
        6,
        "Without it these still work: show, add-leaf, add-operator",
    )?;
    ensure!(
        site.shown("ann").await?["state"] == "valid",
        "nothing was changed"
    );
    site.done(&["add-operator", "bob"]).await?;
    site.done(&["push"]).await?;
    let person = manifest["roles"]["CALLERS/person"].as_str().context("a key")?;
    let file = key_file(&site.keys(), person);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640))?;
    ended(
        &site.fleet(&["add-operator", "eve"]).await?,
        6,
        "has mode 0640, so other users can read it",
    )?;
    std::fs::remove_file(&file)?;
    ended(
        &site.fleet(&["add-operator", "eve"]).await?,
        6,
        "the key of the role person",
    )?;
    ensure!(!site.work().join("eve.creds").exists(), "nothing is written");
    Ok(())
}

/// What is refused, and that nothing is changed by it.
pub(super) async fn refused() -> anyhow::Result<()> {
    let site = FleetSite::made().await?;
    let keys = site.keys();
    let in_dir = async |arguments: &[&str]| -> anyhow::Result<Output> {
        let mut command = super::command(arguments);
        command.current_dir(site.work());
        super::run(command).await
    };
    let files = all_files(&keys)?;
    ensure!(
        files.iter().all(|(_, mode)| *mode == 0o600 || *mode == 0o700),
        "{files:?}"
    );
    let again = in_dir(&[
        "fleet",
        "init",
        &keys.display().to_string(),
        "--hub",
        "tls://hub.example:7422",
    ])
    .await?;
    ended(&again, 6, "is not empty, and no key is ever replaced")?;
    ensure!(all_files(&keys)? == files, "a second init changes nothing");
    ended(
        &in_dir(&["fleet", "show"]).await?,
        2,
        "is not the directory of a fleet",
    )?;
    for (url, says) in [
        ("hub.example", "the form is"),
        ("nats://hub.example", "no TLS"),
        ("tls://a b", "neither a name"),
    ] {
        ended(&in_dir(&["fleet", "init", "other", "--hub", url]).await?, 2, says)?;
    }
    ensure!(!site.work().join("other").exists(), "nothing is made");

    let key = site.host_key("one").await?;
    let public = key.with_extension("pub").display().to_string();
    let add = async |name: &str, key: &str| site.fleet(&["add-leaf", name, "--host-key", key]).await;
    ended(&add("Edge", &public).await?, 2, "is not a leaf name")?;
    ended(
        &add("hub", &public).await?,
        6,
        "a name of cim-leaf's own programs",
    )?;
    for own in ["admin", "ctr-web__edge-1"] {
        ended(
            &site.fleet(&["add-operator", own]).await?,
            6,
            "a name of cim-leaf's own programs",
        )?;
    }
    let out = site.at("out");
    std::fs::create_dir(&out)?;
    std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o755))?;
    let out_text = out.display().to_string();
    ended(
        &site.fleet(&["add-operator", "eve", "--out", &out_text]).await?,
        0,
        "",
    )?;
    ensure!(
        out.metadata()?.mode() & 0o7777 == 0o755,
        "a directory of others keeps its mode"
    );
    ensure!(out.join("eve.creds").metadata()?.mode() & 0o7777 == 0o600);
    ended(
        &add("edge-1", "/nonexistent").await?,
        1,
        "can't read /nonexistent",
    )?;
    ended(
        &add("edge-1", "ssh-rsa AAAA").await?,
        2,
        "is not a host key that can be used",
    )?;
    ended(
        &add("edge-1", &key.display().to_string()).await?,
        2,
        "not an SSH public key",
    )?;
    ended(&add("edge-1", &public).await?, 0, "")?;
    ended(
        &add("edge-1", &public).await?,
        6,
        "edge-1 is a leaf of this fleet already",
    )?;
    ended(
        &site.fleet(&["add-operator", "edge-1"]).await?,
        6,
        "edge-1 is a leaf of this fleet already",
    )?;
    ended(
        &site.fleet(&["add-operator", "ann", "--days", "0"]).await?,
        2,
        "a life of 0 days",
    )?;
    ended(
        &site.fleet(&["revoke", "nobody"]).await?,
        5,
        "nobody in this fleet is called nobody",
    )?;
    ended(
        &site.fleet(&["rotate", "edge-1", "--flake", "elsewhere"]).await?,
        6,
        "this is not the leaf's flake",
    )?;
    std::fs::remove_file(site.work().join("hosts/edge-1/hub.nix"))?;
    ended(&site.fleet(&["rotate", "edge-1"]).await?, 0, "")?;
    let module = std::fs::read_to_string(site.work().join("hosts/edge-1/hub.nix"))?;
    ensure!(
        module.contains("leafd.restartTriggers = [ ../../secrets/edge-1-hub.creds.age ]"),
        "{module}"
    );
    std::fs::write(site.work().join("hosts/edge-2"), "")?;
    ended(&add("edge-2", &public).await?, 1, "hosts/edge-2/hub.nix")?;
    ensure!(
        site.shown("edge-2").await.is_err(),
        "a leaf whose files can't be written is not added"
    );
    std::fs::write(site.work().join("ann.creds"), "mine")?;
    ended(
        &site.fleet(&["add-operator", "ann"]).await?,
        6,
        "ann.creds exists, and is not replaced",
    )?;
    ensure!(std::fs::read_to_string(site.work().join("ann.creds"))? == "mine");
    // No hub answers: the change is kept, and said to have no effect yet.
    ended(
        &site.fleet(&["--timeout", "2s", "revoke", "edge-1"]).await?,
        3,
        "not at the hub, where it has no effect yet",
    )?;
    ensure!(site.shown("edge-1").await?["state"] == "revoked");
    // A damaged manifest, one of a newer version, and an altered JWT are named.
    let jwt = keys.join("stores/fleet/accounts/LINKS/users/edge-1.jwt");
    let text = std::fs::read_to_string(&jwt)?;
    std::fs::write(&jwt, text.replacen('.', ".e", 1))?;
    ended(&site.fleet(&["show"]).await?, 1, "edge-1.jwt is damaged")?;
    std::fs::write(&jwt, text)?;
    let manifest = std::fs::read_to_string(keys.join("fleet.json"))?;
    std::fs::write(
        keys.join("fleet.json"),
        manifest.replace("\"format\": 1", "\"format\": 2"),
    )?;
    ended(
        &site.fleet(&["show"]).await?,
        1,
        "has format 2, and this leafctl knows only 1",
    )?;
    Ok(())
}

/// A disk that fills up: a fleet is made as a whole or not at all, and what is there stays as it was.
pub(super) async fn full_disk() -> anyhow::Result<()> {
    let site = FleetSite::made().await?;
    let disk = site.at("disk");
    std::fs::create_dir(&disk)?;
    let mount = async |arguments: &[&str]| -> anyhow::Result<()> {
        let status = tokio::process::Command::new("mount")
            .args(arguments)
            .arg(&disk)
            .status()
            .await?;
        ensure!(status.success(), "mount: {status}");
        Ok(())
    };
    mount(&["-t", "tmpfs", "-o", "size=64k,mode=0700", "cim-leaf-test"]).await?;
    let tested = async {
        let at = disk.join("keys").display().to_string();
        let mut command = super::command(&["fleet", "init", &at, "--hub", "tls://hub.example:7422"]);
        command.current_dir(site.work());
        let output = super::run(command).await?;
        ended(&output, 8, "can't write")?;
        ensure!(
            std::fs::read_dir(&disk)?.next().is_none(),
            "nothing is left of it"
        );
        mount(&["-o", "remount,size=1m"]).await?;
        let mut command = super::command(&["fleet", "init", &at, "--hub", "tls://hub.example:7422"]);
        command.current_dir(site.work());
        ended(&super::run(command).await?, 0, "")?;
        // Full again: neither a user nor a part of one is there.
        let keys = disk.join("keys");
        let before = all_files(&keys)?;
        let ballast = vec![7; 2 << 20];
        let _ = std::fs::write(disk.join("ballast"), &ballast);
        let key = site
            .host_key("one")
            .await?
            .with_extension("pub")
            .display()
            .to_string();
        let refused = site
            .fleet_in(&keys, &["add-leaf", "edge-1", "--host-key", &key])
            .await?;
        ended(&refused, 8, "can't write")?;
        let left: Vec<_> = all_files(&keys)?
            .into_iter()
            .filter(|file| !before.contains(file))
            .collect();
        ensure!(
            left.iter()
                .all(|(path, _)| path.ends_with(".lock") || path.ends_with("/users")),
            "{left:?}"
        );
        ensure!(!site.work().join("secrets/edge-1-hub.creds.age").exists());
        ended(&site.fleet_in(&keys, &["rotate", "hub"]).await?, 8, "can't write")?;
        ended(&site.fleet_in(&keys, &["revoke", "hub"]).await?, 8, "can't write")?;
        let shown = text(&site.fleet_in(&keys, &["show"]).await?.stdout);
        ensure!(!shown.contains("former") && !shown.contains("revoked"), "{shown}");
        anyhow::Ok(())
    }
    .await;
    let unmounted = tokio::process::Command::new("umount").arg(&disk).status().await?;
    tested?;
    ensure!(unmounted.success(), "umount: {unmounted}");
    Ok(())
}

/// Returns the paths and modes of all files below a directory, sorted.
fn all_files(directory: &Path) -> anyhow::Result<Vec<(String, u32)>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            let meta = path.symlink_metadata()?;
            found.push((path.display().to_string(), meta.mode() & 0o7777));
            if meta.is_dir() {
                open.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

//! `leafctl fleet` where something is wrong: servers that start, hang or were told something else, keys that are missing, input that is
//! refused, a full disk.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, ensure};
use async_nats::ConnectErrorKind as Refused;
use leaf_bus::identity::Token;
use leaf_bus::identity::fleet::{Account, Fleet, KeyKind, NatsKey};

use super::{ended, text};
use crate::support::{FleetSite, free_port, key_file, nats_server, until};

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
        let server = nats_server(&config, None).await?;
        servers.push((server, format!("nats://127.0.0.1:{clients}")));
    }
    let [(_, first), (second_server, second)] = &mut servers[..] else {
        anyhow::bail!("two servers run");
    };
    // A server that has just joined is counted before it says which accounts it has, and then gets them once more.
    until("both servers are known, and have the accounts", async || {
        let output = site.fleet(&["--server", first, "--json", "push"]).await?;
        let text = text(&output.stdout);
        Ok((text.contains("\"servers\": 2") && !text.contains("\"pushed\": true")).then_some(()))
    })
    .await?;
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
    ended(&in_dir(&["fleet", "init", "other"]).await?, 2, "--hub <URL>")?;
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

//! What `leafctl fleet` writes for NixOS, taken as docs/keys.md says: the hub's accounts by `services.cim-nats`, and the module of a leaf.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use async_nats::ConnectErrorKind as Refused;
use serde_json::Value;
use tokio::process::Command;

use crate::support::{FleetSite, free_port, nats_server, until};

/// Evaluates a Nix expression to JSON. It needs neither a store nor a network.
async fn evaluated(expression: &str) -> anyhow::Result<Value> {
    let output = Command::new("nix-instantiate")
        .args([
            "--eval",
            "--strict",
            "--json",
            "--read-write-mode",
            "--expr",
            expression,
        ])
        .stdin(Stdio::null())
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The server of `services.cim-nats` with the operator and the accounts of a fleet takes its people and nobody else, and what is pushed.
pub(super) async fn hub() -> anyhow::Result<()> {
    let site = FleetSite::made().await?;
    for name in ["ann", "bob"] {
        site.done(&["add-operator", name]).await?;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()?;
    let port = free_port()?;
    let config = evaluated(&format!(
        r#"
        let
          root = {root};
          hub = "{hub}";
          values = import (root + "/tests/nix/nats/values.nix");
          # The example of docs/keys.md.
          accounts = builtins.fromJSON (builtins.readFile (hub + "/accounts.json"));
          operator = {{
            jwtFile = hub + "/operator.jwt";
            resolver = "full";
            inherit (accounts) systemAccount accounts;
          }};
          settings = import (root + "/nixos-modules/nats/settings.nix") {{ credentialsDirectory = hub; }};
        in
        import (root + "/nixos-modules/nats/render.nix") (settings (values // {{
          role = "hub";
          address = "127.0.0.1";
          port = {port};
          dataDir = "{data}";
          operator = values.operator // operator;
        }}))
        "#,
        root = root.display(),
        hub = site.keys().join("hub").display(),
        data = site.at("data").display(),
    ))
    .await?;
    let file = site.at("of-nixos.conf");
    std::fs::create_dir(site.at("data"))?;
    std::fs::write(&file, config.as_str().context("a text")?)?;
    let _server = nats_server(&file, Some(&site.at("of-nixos.log"))).await?;
    let url = format!("nats://127.0.0.1:{port}");
    let creds = |name: &str| site.work().join(format!("{name}.creds"));
    until("the server takes ann", async || {
        Ok(site.connect_to(&url, &creds("ann"), "ann").await?.ok())
    })
    .await?;
    // Of another fleet.
    let stranger = FleetSite::made().await?;
    stranger.done(&["add-operator", "ann"]).await?;
    let refused = site
        .connect_to(&url, &stranger.work().join("ann.creds"), "ann")
        .await?
        .map(|_| ());
    ensure!(refused == Err(Refused::AuthorizationViolation), "{refused:?}");
    // It takes what is pushed, and keeps it.
    site.done(&["--server", &url, "revoke", "bob"]).await?;
    let refused = site.connect_to(&url, &creds("bob"), "bob").await?.map(|_| ());
    ensure!(refused == Err(Refused::AuthorizationViolation), "{refused:?}");
    Ok(())
}

/// The module that `add-leaf` writes, with agenix and without.
pub(super) async fn leaf() -> anyhow::Result<()> {
    let site = FleetSite::made().await?;
    let key = site.host_key("edge-1").await?;
    let public = key.with_extension("pub").display().to_string();
    site.done(&["add-leaf", "edge-1", "--host-key", &public]).await?;
    let module = site.work().join("hosts/edge-1/hub.nix");
    let evaluate = async |options: &str| {
        let parts = evaluated(&format!(
            r#"
            let
              lib = {{
                mkMerge = parts: parts;
                mkDefault = value: value;
                optionalAttrs = is: attrs: if is then attrs else {{ }};
              }};
              shown = value: if builtins.isPath value then toString value
                else if builtins.isAttrs value then builtins.mapAttrs (_: shown) value
                else if builtins.isList value then map shown value else value;
            in
            shown (import {module} {{ inherit lib; options = {options}; }}).config
            "#,
            module = module.display(),
        ))
        .await?;
        let [settings, agenix] = parts.as_array().context("parts")?.as_slice() else {
            anyhow::bail!("{parts}");
        };
        anyhow::Ok((settings["services"]["cim-leaf"].clone(), agenix.clone()))
    };
    let (settings, without) = evaluate("{ }").await?;
    ensure!(without == serde_json::json!({}), "{without}");
    let hub = &settings["nats"]["embedded"]["hub"];
    ensure!(hub["url"] == site.manifest()?["hub"], "{hub}");
    ensure!(hub["credentialsFile"] == "/run/agenix/edge-1-hub.creds", "{hub}");
    let is_file = |path: &Value| path.as_str().is_some_and(|path| Path::new(path).is_file());
    ensure!(is_file(&hub["caFile"]), "{hub}");
    let witness = std::fs::read_to_string(site.keys().join("hub/witness.pub"))?;
    ensure!(
        settings["witnesses"] == serde_json::json!([witness.trim()]),
        "{settings}"
    );
    let (_, agenix) = evaluate("{ age = { }; }").await?;
    ensure!(
        is_file(&agenix["age"]["secrets"]["edge-1-hub.creds"]["file"]),
        "{agenix}"
    );
    let triggers = &agenix["systemd"]["services"]["leafd"]["restartTriggers"];
    ensure!(is_file(&triggers[0]), "{agenix}");
    Ok(())
}

//! Whole systems, evaluated with the real NixOS modules: the build step of their configuration, and their units on a real
//! machine.

use std::fs;
use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use leaf_bus::embedded::NatsServer;
use libtest_mimic::Trial;
use serde_json::Value;
use testhost::{Host, READY_VARIABLE};
use tokio::process::Command;

use crate::site::{Authority, Site};
use crate::{evaluate, trial};

const SYSTEMS: &str = "../eval-nats.nix";
/// The variable that names a tree with nixpkgs' `lib/` and `nixos/`.
const NIXPKGS: &str = "NIXPKGS";

/// The operator's JWT that the evaluated systems have, which evaluation does not put into the store.
const OPERATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/nix/nats/operator.jwt");

pub(crate) fn trials() -> Vec<Trial> {
    let has_openssl = std::process::Command::new("openssl")
        .arg("version")
        .output()
        .is_ok();
    let lacks = |others: &[(bool, &str)]| {
        let tree = std::env::var_os(NIXPKGS).is_some();
        let mut needs = vec![(tree, "NIXPKGS, which names a tree with nixpkgs' lib/ and nixos/")];
        needs.extend(others);
        let lacks: Vec<_> = needs
            .iter()
            .filter(|(has, _)| !has)
            .map(|(_, what)| *what)
            .collect();
        (!lacks.is_empty()).then(|| format!("needs {}", lacks.join(", and ")))
    };
    let ready = std::env::var_os(READY_VARIABLE).is_some();
    let unit = |name: &'static str, test: fn() -> anyhow::Result<()>| {
        let trial = Trial::test(name, move || test().map_err(|e| format!("{e:?}").into()));
        unless(
            trial,
            lacks(&[(ready, "the test host, which `cargo xtask test` makes")]),
        )
    };
    vec![
        unless(
            trial(
                "the_build_step_of_each_evaluated_system_accepts_its_configuration_and_no_wrong_one",
                build_step_of_systems,
            ),
            lacks(&[(has_openssl, "openssl")]),
        ),
        unit(
            "a_leafs_unit_serves_its_one_address_on_a_real_machine_and_comes_back_after_a_crash",
            leaf_on_a_machine,
        ),
        unit(
            "a_hubs_unit_serves_clients_and_leaves_on_a_real_machine_and_ends_in_peace",
            hub_on_a_machine,
        ),
        unit(
            "a_containers_unit_learns_who_it_is_from_credentials_that_the_machine_was_given",
            container_on_a_machine,
        ),
    ]
}

/// The test, or the test that is skipped, for a reason.
fn unless(trial: Trial, reason: Option<String>) -> Trial {
    match reason {
        Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
        None => trial,
    }
}

/// The text with another path of the operator's JWT, where it has one in the store.
fn with_operator(text: &str, operator: &str) -> anyhow::Result<String> {
    let Some((before, rest)) = text.split_once("operator: \"/nix/store/") else {
        return Ok(text.to_owned());
    };
    let (_, after) = rest.split_once('"').context("the end of a path")?;
    Ok(format!("{before}operator: \"{operator}\"{after}"))
}

/// Runs the builders' scripts of the configurations as Nix would, with the nats-server that is here.
async fn build_step_of_systems() -> anyhow::Result<()> {
    let program = NatsServer::find(None).await?.path;
    let evaluated = evaluate(SYSTEMS, &[]).await?;
    let units = evaluated["units"].as_object().context("the units by name")?;
    assert!(units.len() >= 3, "{units:?}");
    for (name, unit) in units {
        let text = |field: &str| unit[field].as_str().with_context(|| format!("{field} of {name}"));
        // Evaluation puts nothing into the store.
        let script = text("check")?
            .split_inclusive(char::is_whitespace)
            .map(|word| match word.strip_suffix(' ') {
                Some(word) if word.ends_with("/bin/nats-server") => format!("{} ", program.display()),
                _ => word.to_owned(),
            })
            .collect::<String>();
        let checked = with_operator(text("checked")?, OPERATOR)?;
        let accepted = build(&script, text("settings")?, &checked).await?;
        let said = String::from_utf8_lossy(&accepted.stderr);
        assert!(
            accepted.status.success() && said.contains("is valid"),
            "{name}: {said}"
        );
        let wrong = checked.replace("max_payload: ", "max_payload: \"a lot\" #");
        assert_ne!(wrong, checked);
        let refused = build(&script, &wrong, &wrong).await?;
        assert!(
            !refused.status.success(),
            "{name}: a wrong configuration was built"
        );
    }
    Ok(())
}

async fn build(script: &str, text: &str, checked: &str) -> anyhow::Result<Output> {
    let directory = tempfile::tempdir()?;
    let (text_file, checked_file) = (directory.path().join("text"), directory.path().join("checked"));
    fs::write(&text_file, text)?;
    fs::write(&checked_file, checked)?;
    let out = directory.path().join("out");
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .env("textPath", &text_file)
        .env("checkedPath", &checked_file)
        .env("out", &out)
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(
        fs::read_to_string(out)? == text,
        "what was built is not what was rendered"
    );
    Ok(output)
}

/// A real machine with one of the units.
struct Machine {
    host: Host,
}

impl Machine {
    /// Puts the unit of this system and its configuration there, with what both need beside them.
    fn with(name: &str, files: &[(&str, Vec<u8>)]) -> anyhow::Result<Self> {
        let evaluated = crate::runtime().block_on(evaluate(SYSTEMS, &[]))?;
        let unit = &evaluated["units"][name];
        let text = |field: &str| unit[field].as_str().with_context(|| format!("{field} of {name}"));
        let host = Host::restore()?;
        host.ok("useradd --system --home-dir /var/lib/nats --shell /usr/sbin/nologin nats")?;
        host.ok("mkdir -p /etc/cim-leaf /run/keys /run/credstore && chmod 0700 /run/keys /run/credstore")?;
        let place = |path: &str, text: &str| host.put(text.as_bytes(), path, "0644");
        place("/etc/systemd/system/nats.service", &on_this_system(text("unit")?))?;
        let settings = with_operator(text("settings")?, "/etc/cim-leaf/operator.jwt")?;
        place("/etc/cim-leaf/nats.conf", &settings)?;
        place("/etc/cim-leaf/operator.jwt", &fs::read_to_string(OPERATOR)?)?;
        for (path, bytes) in files {
            host.put(bytes, path, "0600")?;
        }
        Ok(Self { host })
    }

    /// Starts the unit, and returns what the server says of itself when it takes connections.
    fn start(&self, address: SocketAddr) -> anyhow::Result<Value> {
        let complaints = self.host.run("systemd-analyze verify nats.service")?;
        ensure!(complaints.stderr.is_empty(), "of the unit: {}", complaints.stderr);
        self.host
            .ok("systemctl daemon-reload && systemctl start nats.service")?;
        self.wait_for_info(address)
    }

    fn wait_for_info(&self, address: SocketAddr) -> anyhow::Result<Value> {
        let ask = format!("nc -w 2 {} {} < /dev/null", address.ip(), address.port());
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let said = self.host.run(&ask)?.stdout;
            if let Some(info) = said.lines().next().and_then(|line| line.strip_prefix("INFO ")) {
                return Ok(serde_json::from_str(info)?);
            }
            if Instant::now() > deadline {
                bail!(
                    "nobody answers at {address}: {}",
                    self.host.run("journalctl --no-pager --unit nats.service")?.stdout
                );
            }
        }
    }

    /// The addresses on which it listens, each in a line.
    fn listeners(&self) -> anyhow::Result<String> {
        let lines = "ss --no-header --listening --tcp --numeric --processes | grep nats-server | awk '{print $4}' | sort";
        self.host.ok(lines)
    }

    /// Stops the unit, which must be a success for systemd.
    fn stop(&self) -> anyhow::Result<()> {
        self.host.ok("systemctl stop nats.service")?;
        let result = self
            .host
            .ok("systemctl show --property Result,ExecMainStatus --value nats.service")?;
        let words: Vec<&str> = result.split_whitespace().collect();
        assert!(words.contains(&"success") && words.contains(&"0"), "{result}");
        Ok(())
    }
}

/// The unit with the programs where this machine has them in place of those in the store.
fn on_this_system(unit: &str) -> String {
    let here = |word: &str| {
        let Some((before, path)) = word.split_once("/nix/store/") else {
            return word.to_owned();
        };
        match path.rsplit_once("/bin/") {
            Some((_, program)) => format!("{before}/usr/bin/env {program}"),
            None => format!("{before}/etc/cim-leaf/nats.conf"),
        }
    };
    // NixOS's own environment names nothing but paths in the store.
    let lines = unit.lines().filter(|line| !line.starts_with("Environment="));
    let lines = lines.map(|line| line.split(' ').map(here).collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

fn site() -> anyhow::Result<Site> {
    Site::new("edge", &Authority::new()?)
}

fn leaf_on_a_machine() -> anyhow::Result<()> {
    let site = site()?;
    let file = |name: &str| fs::read(site.path(name));
    let machine = Machine::with(
        "leaf",
        &[
            ("/run/keys/hub.creds", file("user.creds")?),
            ("/run/keys/leaf.pem", file("hub.pem")?),
            ("/run/keys/leaf.key", file("hub.key")?),
        ],
    )?;
    let address = SocketAddr::from(([10, 233, 0, 1], 4222));
    let info = machine.start(address)?;
    assert_eq!(info["server_name"], "edge-1");
    assert_eq!(info["auth_required"], true);
    assert_eq!(machine.listeners()?, "10.233.0.1:4222\n");
    let host = &machine.host;
    let anonymous = host.run("printf 'CONNECT {}\\r\\nPING\\r\\n' | nc -w 5 10.233.0.1 4222")?;
    assert!(
        anonymous.stdout.contains("Authorization Violation"),
        "{anonymous:?}"
    );

    // Its own files are its own, and of the machine's it sees few.
    let owner = host.ok("stat --format '%U %a' /var/lib/nats /var/lib/nats/jetstream")?;
    assert!(owner.lines().all(|line| line == "nats 700"), "{owner}");
    let exposure = host
        .ok("systemd-analyze security nats.service --no-pager | grep -oP 'exposure level .*: \\K[0-9.]+'")?;
    let exposure: f64 = exposure.trim().parse()?;
    assert!(exposure <= 1.5, "systemd-analyze security says {exposure}");

    // A crash is no end.
    host.ok("systemctl kill --signal SIGKILL nats.service")?;
    machine.wait_for_info(address)?;
    assert_eq!(
        host.ok("systemctl show --property NRestarts --value nats.service")?
            .trim(),
        "1"
    );
    machine.stop()
}

fn hub_on_a_machine() -> anyhow::Result<()> {
    let site = site()?;
    let machine = Machine::with(
        "hub",
        &[
            ("/run/keys/nats.pem", fs::read(site.path("tls.pem"))?),
            ("/run/keys/nats.key", fs::read(site.path("tls.key"))?),
        ],
    )?;
    let host = &machine.host;
    host.ok("ip address add 192.0.2.1/32 dev lo")?;
    // What the module's line for systemd-tmpfiles makes.
    host.ok("mkdir /persist && install --directory --owner nats --group nats --mode 0700 /persist/nats")?;
    let info = machine.start(SocketAddr::from(([192, 0, 2, 1], 4222)))?;
    assert_eq!(info["auth_required"], true);
    assert_eq!(info["tls_required"], true);
    assert_eq!(machine.listeners()?, "192.0.2.1:4222\n192.0.2.1:7422\n");
    host.ok("test -d /persist/nats/accounts -a -d /persist/nats/jetstream")?;
    machine.stop()
}

fn container_on_a_machine() -> anyhow::Result<()> {
    let site = site()?;
    let file = |name: &str| fs::read(site.path(name));
    let machine = Machine::with(
        "container",
        &[
            ("/run/credstore/nats.operator.jwt", file("operator.jwt")?),
            ("/run/credstore/nats.accounts.conf", file("accounts.conf")?),
            ("/run/credstore/nats.tls.pem", file("tls.pem")?),
            ("/run/credstore/nats.tls.key", file("tls.key")?),
        ],
    )?;
    let info = machine.start(SocketAddr::from(([127, 0, 0, 1], 4222)))?;
    assert_eq!(info["server_name"], "queue");
    assert_eq!(info["auth_required"], true);
    assert_eq!(info["tls_required"], true);
    machine.stop()
}

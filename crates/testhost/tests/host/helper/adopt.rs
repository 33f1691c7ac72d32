//! Containers of others: left alone, unless they are adopted and can be.

use serde_json::json;

use super::{Leaf, WAITS, creation};
use crate::{Outcome, Trials, ensure};

pub(crate) const TRIALS: Trials = &[(
    "a_foreign_container_is_adopted_with_its_files_and_a_declared_one_is_not",
    adopt,
)];

/// A unit in the manner of NixOS's own.
const STOCK: &str = "[Service]\nType=notify\nEnvironmentFile=/etc/nixos-containers/%i.conf\n\
    ExecStart=/usr/bin/systemd-nspawn --keep-unit -M %i -D /var/lib/nixos-containers/%i --notify-ready=yes \
    --kill-signal=SIGRTMIN+3 --bind-ro=/nix/store --bind-ro=/usr/local/bin/leaf-init:/run/leaf/init ${SYSTEM_PATH}/init\n\
    Delegate=yes\nSlice=machine.slice\nKillMode=mixed\n";

fn adopt() -> Outcome {
    let leaf = Leaf::new()?;
    let system = leaf.system("waits", WAITS)?;
    leaf.host
        .put(STOCK.as_bytes(), "/etc/systemd/system/container@.service", "0644")?;
    leaf.host.ok(&format!(
        "cd /var/lib/nixos-containers; mkdir -p old/etc old/usr old/nix/store; : >old/etc/os-release; echo kept >old/file\n\
         echo SYSTEM_PATH={system} >/etc/nixos-containers/old.conf; systemctl daemon-reload; systemctl start container@old"
    ))?;
    let create = |adopt| creation("old", &system, 1, json!({}), adopt);
    leaf.fails("CreateContainer", &create(false), "Refused", "or adopt it")?;
    leaf.fails(
        "StartContainer",
        &super::starting("old", 30),
        "Refused",
        "not made by leaf edge",
    )?;
    leaf.fails(
        "StopContainer",
        &json!({"name": "old", "grace_seconds": 1}),
        "Refused",
        "not made by leaf edge",
    )?;
    leaf.fails(
        "DestroyContainer",
        &json!({"name": "old"}),
        "Refused",
        "not made by leaf edge",
    )?;
    ensure(leaf.unit("old", "ActiveState")? == "active", "it was left alone")?;
    leaf.does("CreateContainer", &create(true))?;
    ensure(leaf.unit("old", "ActiveState")? == "inactive", "it was stopped")?;
    leaf.start("old")?;
    let file = leaf.unit("old", "FragmentPath")?;
    ensure(
        file == "/run/systemd/system/container@old.service",
        format!("ours now: {file}"),
    )?;
    ensure(
        leaf.host.ok("cat /var/lib/nixos-containers/old/file")? == "kept\n",
        "with its files",
    )?;
    leaf.does("CreateContainer", &create(true))?;
    leaf.stop("old", 20)?;
    leaf.destroy("old")?;
    leaf.host.ok(&format!(
        "ln -s /etc/static/declared.conf /etc/nixos-containers/declared.conf\n\
         echo SYSTEM_PATH={system} >/etc/nixos-containers/closed.conf; chmod 444 /etc/nixos-containers/closed.conf\n\
         echo '# cim-leaf: made by leaf other' >/etc/nixos-containers/others.conf"
    ))?;
    for (name, words) in [
        ("declared", "declared in the host's NixOS configuration"),
        ("closed", "not writable"),
        ("others", "made by leaf other"),
    ] {
        let parameters = creation(name, &system, 2, json!({}), true);
        leaf.fails("CreateContainer", &parameters, "Refused", words)?;
    }
    leaf.host.ok("test -L /etc/nixos-containers/declared.conf")?;
    Ok(())
}

//! Secrets of the machine's own units, which systemd asks for when it starts them.

use std::process::Command;

use anyhow::ensure;
use testhost::Host;

use super::{Leaf, quoted};
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[(
    "a_unit_of_the_host_gets_its_secret_at_each_start_and_takes_up_a_change_as_the_secret_says",
    units,
)];

/// Units that note the content that they get, one line for each start. `reloads` can reload, and `stranger` is never named.
const UNITS: &str = "set -e; mkdir -p /etc/cim-leaf-test
cat >/etc/cim-leaf-test/run <<'END'
#!/bin/sh
sha256sum <\"$CREDENTIALS_DIRECTORY/db\" | cut -c -64 >>/run/$1.starts
exec sleep infinity
END
chmod 755 /etc/cim-leaf-test/run
for unit in restarts reloads stranger; do
cat >/etc/systemd/system/$unit.service <<END
[Service]
Type=exec
DynamicUser=yes
ExecStart=+/etc/cim-leaf-test/run $unit
ExecReload=+/bin/sh -c 'echo reloaded >>/run/$unit.starts'
LoadCredential=db:/run/cim-leaf/secrets.sock
END
done
cat >/etc/systemd/system/without.service <<END
[Service]
ExecStart=/bin/sh -c 'echo up >>/run/without.starts; exec sleep infinity'
END
systemctl daemon-reload; systemctl start without";

/// Makes the SSH host key, which the machine has no program for.
fn give_host_key(host: &Host) -> Outcome {
    let directory = tempfile::tempdir()?;
    let key = directory.path().join("ssh_host_ed25519_key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key)
        .status()?;
    ensure!(made.success(), "ssh-keygen: {made}");
    for file in ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"] {
        let text = std::fs::read_to_string(directory.path().join(file))?;
        host.ok(&format!(
            "mkdir -p /etc/ssh; umask 077; printf %s {} >/etc/ssh/{file}",
            quoted(&text)
        ))?;
    }
    Ok(())
}

fn units() -> Outcome {
    let leaf = Leaf::up()?;
    let host = &leaf.host;
    give_host_key(host)?;
    host.ok(UNITS)?;
    let set = |content: &str, users: &str| {
        let content = quoted(content);
        host.ok(&format!(
            "printf %s {content} | leafctl --context /var/lib/cim-leaf/context.json secret set db {users} \
             --host-key /etc/ssh/ssh_host_ed25519_key.pub"
        ))
    };
    let starts = |unit: &str| -> anyhow::Result<Vec<String>> {
        let lines = host.run(&format!("cat /run/{unit}.starts"))?.stdout;
        Ok(lines.lines().map(str::to_owned).collect())
    };
    let digest = |content: &str| -> anyhow::Result<String> {
        let digest = host.ok(&format!("printf %s {} | sha256sum", quoted(content)))?;
        Ok(digest[..64].to_owned())
    };
    let (one, other) = (digest("the first")?, digest("the second")?);

    // There is no such secret, and an empty credential would pass for one.
    let refused = host.run("systemctl start restarts")?;
    ensure!(
        refused.status != 0 && starts("restarts")?.is_empty(),
        "{refused:?}"
    );
    let log = host.ok("journalctl --no-pager --output cat --unit 'leaf-secrets@*'")?;
    ensure!(log.contains("the leaf has no secret db"), "{log}");

    // Units that run are left alone, but for those that have the secret by root's configuration and are named by it.
    set(
        "the first",
        "--unit restarts --unit reloads:reload --unit without",
    )?;
    host.ok("systemctl start restarts reloads")?;
    let refused = host.run("systemctl start stranger")?;
    ensure!(
        refused.status != 0 && starts("stranger")?.is_empty(),
        "{refused:?}"
    );
    let before = host.ok("systemctl show --property MainPID restarts reloads without")?;
    set(
        "the second",
        "--unit restarts --unit reloads:reload --unit without",
    )?;
    leaf.until("the units have heard of it", || {
        Ok(starts("restarts")?.len() == 2 && starts("reloads")?.len() == 2)
    })?;
    let after = host.ok("systemctl show --property MainPID restarts reloads without")?;
    let (before, after): (Vec<_>, Vec<_>) = (before.lines().collect(), after.lines().collect());
    ensure!(
        before[0] != after[0] && before[1..] == after[1..],
        "{before:?} {after:?}"
    );
    ensure!(starts("restarts")? == [one.clone(), other]);
    ensure!(starts("reloads")? == [one, "reloaded".to_owned()]);
    ensure!(starts("without")? == ["up"]);

    // As if the helper had been killed between the age file and the units: the next one tells them, once.
    host.ok("systemctl stop leafd leaf-helper; echo unit restarts.service restart >/var/lib/cim-leaf-secrets/leaf/db.changed && systemctl start leafd")?;
    leaf.answers()?;
    leaf.until("the unit was restarted", || Ok(starts("restarts")?.len() == 3))?;
    host.ok("! ls /var/lib/cim-leaf-secrets/leaf/*.changed")?;

    // Whatever keeps the secret from being given, the service does not start with an empty one.
    host.ok(
        "mkdir /run/systemd/system/leaf-secrets@.service.d; cp /etc/cim-leaf/helper.toml /run/helper.toml",
    )?;
    for (breaks, mends) in [
        (
            "echo nonsense >>/etc/cim-leaf/helper.toml",
            "cp /run/helper.toml /etc/cim-leaf/helper.toml",
        ),
        (
            "printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' >/run/systemd/system/leaf-secrets@.service.d/a.conf; \
             systemctl daemon-reload",
            "rm /run/systemd/system/leaf-secrets@.service.d/a.conf; systemctl daemon-reload",
        ),
    ] {
        host.ok(&format!("systemctl stop reloads; {breaks}"))?;
        let refused = host.run("systemctl start reloads")?;
        ensure!(
            refused.status != 0 && starts("reloads")?.len() == 2,
            "{breaks}: {refused:?}"
        );
        host.ok(mends)?;
    }
    host.ok("systemctl reset-failed reloads; systemctl start reloads")?;

    // What was set is in no log.
    host.ok("! journalctl --no-pager | grep -F -e 'the first' -e 'the second'")?;
    leaf.ctl("secret remove db")?;
    host.ok("systemctl is-active restarts reloads")?;
    let refused = host.run("systemctl restart restarts")?;
    ensure!(
        refused.status != 0 && starts("restarts")?.len() == 3,
        "{refused:?}"
    );
    Ok(())
}

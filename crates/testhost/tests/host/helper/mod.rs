//! The helper on a machine with systemd, as its service, asked over its socket: what the tests of containers begin with.

mod adopt;
mod boots;
mod inputs;
mod limits;
mod looks;
mod network;
mod split;
mod systemd_runtime;
mod updates;

use std::time::Duration;

use serde_json::{Value, json};
use testhost::{Host, Programs};

use crate::{Outcome, Trials, ensure};

pub(crate) use looks::{PROBE, probe};

/// The tests of all files here.
pub(crate) const TRIALS: &[Trials] = &[
    adopt::TRIALS,
    boots::TRIALS,
    inputs::TRIALS,
    limits::TRIALS,
    looks::TRIALS,
    network::TRIALS,
    split::TRIALS,
    systemd_runtime::TRIALS,
    updates::TRIALS,
];

/// What `helper.toml` says there.
const SETTINGS: &str = "leaf = \"edge\"\nbind_folders = [\"/srv\"]\nsecret_folders = [\"/run/secrets\"]\n";
/// How long one operation may take.
const LIMIT: Duration = Duration::from_secs(180);

/// Says that it is ready, and waits until it is told to halt.
pub(crate) const WAITS: &str =
    r#"exec /run/leaf/init ready -- $b sh -c 'trap "exit 0" 37; while :; do $b sleep 1000 & wait; done'"#;

/// Makes store paths of scripts for busybox, which is `$b` there.
const SYSTEMS: &str = r#"
bb() { mkdir -p /tmp/bb; [ -e /tmp/bb/busybox ] || cp "$(command -v busybox)" /tmp/bb/; nix-store --add /tmp/bb; }
put() { printf '#!%s sh\nb=%s\n' "$b" "$b" >"$1"; cat >>"$1"; chmod +x "$1"; }
"#;

/// What all these machines continue from.
fn preparation() -> String {
    // leafd would bring the containers of these tests to what it wants: none.
    format!(
        r#"set -e
systemctl stop leafd.service leaf-helper.service
mkdir -p /etc/cim-leaf /srv /run/secrets
cat >/etc/cim-leaf/helper.toml <<'END'
{SETTINGS}
END
cat >/root/systems.sh <<'END'
{SYSTEMS}
END
. /root/systems.sh
bb
systemctl start leaf-helper.socket
varlinkctl call unix:/run/cim-leaf/helper.sock cim.leaf.Helper.PrepareNetwork \
  '{{"leaf_address": "10.233.0.1", "nats_port": 4222}}'
"#
    )
}

/// A machine with the leaf `edge`, whose helper serves.
pub(crate) struct Leaf {
    pub(crate) host: Host,
}

/// What the helper answered: nothing, or its error and the reason.
pub(crate) type Answer = Result<(), (String, String)>;

impl Leaf {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let host = Host::options()
            .with(&Programs::here()?)
            .after(&preparation())
            .restore()?;
        Ok(Self { host })
    }

    /// Makes a system whose init is a script, and returns its store path.
    pub(crate) fn system(&self, name: &str, script: &str) -> anyhow::Result<String> {
        self.system_with_switch(name, script, None)
    }

    /// Makes a system that can also be switched to, by another script.
    pub(crate) fn system_with_switch(
        &self,
        name: &str,
        script: &str,
        switch: Option<&str>,
    ) -> anyhow::Result<String> {
        let directory = format!("/tmp/systems/{name}");
        let switch = switch.map_or(String::new(), |switch| {
            format!(
                "mkdir {directory}/bin; put {directory}/bin/switch-to-configuration <<'EOS'\n{switch}\nEOS\n"
            )
        });
        let made = self.host.ok(&format!(
            "set -e; . /root/systems.sh; b=$(bb)/busybox; mkdir -p {directory}\nput {directory}/init <<'EOS'\n{script}\nEOS\n\
             {switch}nix-store --add {directory}"
        ))?;
        Ok(made.trim().to_owned())
    }

    /// Asks the helper for something.
    pub(crate) fn ask(&self, method: &str, parameters: &Value) -> anyhow::Result<Answer> {
        self.host
            .put(parameters.to_string().as_bytes(), "/root/call.json", "0600")?;
        let output = self.host.run_within(
            &format!(
                "varlinkctl --timeout=170 call unix:/run/cim-leaf/helper.sock cim.leaf.Helper.{method} \
                 \"$(cat /root/call.json)\""
            ),
            LIMIT,
        )?;
        if output.status == 0 {
            return Ok(Ok(()));
        }
        let kind = output
            .stderr
            .lines()
            .find_map(|line| {
                line.split("cim.leaf.Helper.")
                    .last()
                    .filter(|_| line.contains("failed"))
            })
            .unwrap_or_default()
            .trim()
            .to_owned();
        let reason = serde_json::from_str::<Value>(&output.stdout)
            .ok()
            .and_then(|value| Some(value.get("reason")?.as_str()?.to_owned()));
        match reason {
            Some(reason) => Ok(Err((kind, reason))),
            None => Err(anyhow::Error::msg(format!("{method}: {output:?}"))),
        }
    }

    /// Asks the helper for something that must be done.
    pub(crate) fn does(&self, method: &str, parameters: &Value) -> Outcome {
        match self.ask(method, parameters)? {
            Ok(()) => Ok(()),
            Err((kind, reason)) => Err(anyhow::Error::msg(format!(
                "{method} {parameters}: {kind}: {reason}"
            ))),
        }
    }

    /// Asks the helper for something that must fail like this, for a reason with these words in it.
    pub(crate) fn fails(&self, method: &str, parameters: &Value, kind: &str, words: &str) -> Outcome {
        match self.ask(method, parameters)? {
            Err((k, reason)) if k == kind && reason.contains(words) => Ok(()),
            other => Err(anyhow::Error::msg(format!(
                "{method} {parameters}: {other:?}, not {kind} with {words:?}"
            ))),
        }
    }

    pub(crate) fn create(&self, name: &str, system: &str, number: u8, options: Value) -> Outcome {
        self.does("CreateContainer", &creation(name, system, number, options, false))
    }

    pub(crate) fn start(&self, name: &str) -> Outcome {
        self.does("StartContainer", &starting(name, 90))
    }

    pub(crate) fn stop(&self, name: &str, grace_seconds: u32) -> Outcome {
        self.does(
            "StopContainer",
            &json!({"name": name, "grace_seconds": grace_seconds}),
        )
    }

    pub(crate) fn update(&self, name: &str) -> Outcome {
        let parameters = json!({"name": name, "ready_timeout_seconds": 90, "grace_seconds": 20});
        self.does("UpdateContainer", &parameters)
    }

    pub(crate) fn destroy(&self, name: &str) -> Outcome {
        self.does("DestroyContainer", &json!({"name": name}))
    }

    /// A property of a container's unit.
    pub(crate) fn unit(&self, name: &str, property: &str) -> anyhow::Result<String> {
        let text = self
            .host
            .ok(&format!("systemctl show -P {property} container@{name}.service"))?;
        Ok(text.trim().to_owned())
    }

    /// What stands in a container's `status.json`.
    pub(crate) fn status(&self, name: &str) -> anyhow::Result<Value> {
        let bytes = self
            .host
            .fetch(&format!("/run/cim-leaf/containers/edge/{name}/status.json"))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Fails where anything of a container is left on the machine.
    pub(crate) fn nothing_is_left(&self, name: &str) -> Outcome {
        let left = self.host.run(&format!(
            "ls -d /etc/nixos-containers/{name}.conf /var/lib/nixos-containers/{name} /nix/var/nix/*/per-container/{name} \
             /var/lib/cim-leaf-containers/edge/{name} /run/cim-leaf/containers/edge/{name} \
             /run/systemd/system/container@{name}.service /run/systemd/nspawn/unix-export/{name} \
             /run/systemd/machines/{name} /sys/fs/cgroup/machine.slice/container@{name}.service 2>/dev/null\n\
             ip -o link | grep -E 'v[ep]-{name}@'; grep '/{name}' /proc/mounts; nft list ruleset | grep 've-{name}\"'\n\
             systemctl list-units --all --no-legend container@{name}.service; true"
        ))?;
        ensure(
            left.stdout.trim().is_empty(),
            format!("of {name} is left: {}", left.stdout),
        )
    }
}

/// The parameters that make a container.
pub(crate) fn creation(name: &str, system: &str, number: u8, options: Value, adopt: bool) -> Value {
    json!({
        "name": name,
        "toplevel": system,
        "network": {
            "host_address": format!("10.233.{number}.1"),
            "container_address": format!("10.233.{number}.2"),
        },
        "options": options,
        "adopt": adopt,
        "binding": {
            "leaf": "edge",
            "container": name,
            "nats_url": "nats://10.233.0.1:4222",
            "inbox_prefix": format!("_INBOX.ctr-{name}"),
            "subject_prefix": format!("leaf.v1.ctr.edge.{name}"),
        },
        "credentials": {"nats.creds": "secret text"},
    })
}

/// The parameters that start a container.
pub(crate) fn starting(name: &str, ready_timeout_seconds: u32) -> Value {
    json!({"name": name, "ready_timeout_seconds": ready_timeout_seconds})
}

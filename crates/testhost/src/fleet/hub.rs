//! What runs on the machines of a fleet: the hub's server and agent, and leafd with the hub in its settings. The steps are
//! those of `docs/fleet.md`, under "From nothing to a hub and three leaves".

use anyhow::{Context as _, Result};

use super::Fleet;

/// The directory of the hub's keys and settings.
const DIRECTORY: &str = "/etc/cim-hub";

/// The settings of every leaf; its name is its host's.
const LEAF: &str = r#"[nats.embedded.hub]
url = "tls://hub:7422"
credentials = "/etc/cim-leaf/hub.seed"
ca = "/etc/cim-leaf/hub-ca.pem"
"#;

/// Sets up the hub and starts its server and its agent. The arguments are the leaves' names; the person is `ann`, whose
/// context is the selected one.
const HUB: &str = r#"
set -e
install -d -m 700 /etc/cim-hub; cd /etc/cim-hub
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj /CN=hub \
  -addext subjectAltName=DNS:hub -keyout hub.key -out hub.pem 2>openssl.log || { cat openssl.log >&2; exit 1; }
leaf-hub key fleet.seed >/dev/null
leaf-hub key links.seed >/dev/null
{ cat <<'END'
[nats]
url = "nats://127.0.0.1:4222"
fleet_credentials = "/etc/cim-hub/fleet.seed"
links_credentials = "/etc/cim-hub/links.seed"

[leaves]
END
  for leaf; do echo "$leaf = \"$(leaf-hub key $leaf.seed)\""; done
  printf '\n[people]\n'
  echo "ann = \"$(leaf-hub key ann.seed)\""; } >leaf-hub.toml
leaf-hub accounts --config leaf-hub.toml >accounts.conf
cat >nats-server.conf <<'END'
server_name: hub
listen: "127.0.0.1:4222"
jetstream { store_dir: "/var/lib/cim-hub/nats" }
leafnodes {
  listen: "0.0.0.0:7422"
  isolate_leafnode_interest: true
  tls { cert_file: "/etc/cim-hub/hub.pem", key_file: "/etc/cim-hub/hub.key" }
}
ping_interval: "2s"
max_subscriptions: 10000
include "accounts.conf"
END
for unit in 'nats nats-server -c /etc/cim-hub/nats-server.conf' 'leaf-hub leaf-hub run --config /etc/cim-hub/leaf-hub.toml'; do
  systemd-run --quiet --property Restart=always --property RestartSec=1 --unit $unit
done
install -d -m 700 ~/.config/nats/context
echo '{"url":"nats://127.0.0.1:4222","nkey":"/etc/cim-hub/ann.seed","inbox_prefix":"_INBOX.ann"}' \
  >~/.config/nats/context/hub.json
printf hub >~/.config/nats/context.txt
"#;

impl Fleet {
    /// Starts nats-server and the hub agent on the hub, and leafd on the leaves, which connect to it. The machines need
    /// our programs. At the hub, `leafctl` needs no context: it is the person `ann`.
    ///
    /// # Errors
    /// If one of them does not start; the leaves may not be connected yet.
    pub fn connect(&self) -> Result<()> {
        let names: Vec<&str> = self.leaves.iter().map(|leaf| leaf.name()).collect();
        self.hub.put(HUB.as_bytes(), "/run/hub.sh", "0700")?;
        self.hub
            .ok(&format!("bash /run/hub.sh {}", names.join(" ")))
            .context("the hub can't be set up")?;
        let certificate = self.hub.fetch(&format!("{DIRECTORY}/hub.pem"))?;
        for leaf in &self.leaves {
            let seed = self.hub.fetch(&format!("{DIRECTORY}/{}.seed", leaf.name()))?;
            leaf.put(&certificate, "/etc/cim-leaf/hub-ca.pem", "0644")?;
            leaf.put(&seed, "/etc/cim-leaf/hub.seed", "0640")?;
            leaf.put(LEAF.as_bytes(), "/etc/cim-leaf/leafd.toml", "0644")?;
            leaf.ok("chgrp leafd /etc/cim-leaf/hub.seed; systemctl start --no-block leafd.service")?;
        }
        // Meanwhile they all started.
        for leaf in &self.leaves {
            leaf.ok("systemctl start leafd.service || { journalctl --unit leafd --lines 20 --no-pager >&2; exit 1; }")
                .with_context(|| format!("leafd does not start on {}", leaf.name()))?;
        }
        Ok(())
    }
}

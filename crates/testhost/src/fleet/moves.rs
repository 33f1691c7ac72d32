//! A second hub beside the first one, and what lets people move the leaves from one to the other.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Fleet, HUB};

/// The ports of the first hub and of the second one for leaves.
pub const HUB_PORTS: [u16; 2] = [7422, 7423];
/// The private key with which the hub's and the leaves' people sign, on each machine.
pub const SIGNER: &str = "/root/signer";

/// The second hub on the same machine: a copy of the first with other ports, and an empty store.
const SECOND_HUB: &str = r#"set -e
sed -i '1i witness_key = "/etc/cim-hub/witness.key"' /etc/cim-hub/leaf-hub.toml
chown cim-hub: /etc/cim-hub/witness.key
cp -a /etc/cim-hub /etc/cim-hub-b
cd /etc/cim-hub-b
sed -i 's|/cim-hub|/cim-hub-b|g; s|:4222|:4223|; s|:7422|:7423|; s|^server_name: .*|server_name: hub-b|' nats-server.conf leaf-hub.toml
cd /etc/systemd/system
sed 's|/cim-hub|/cim-hub-b|g; s|^StateDirectory=.*|StateDirectory=cim-hub-b|' nats.service >nats-b.service
sed 's|nats\.service|nats-b.service|; s|leaf-hub run|leaf-hub run --config /etc/cim-hub-b/leaf-hub.toml|' leaf-hub.service >leaf-hub-b.service
sed 's|:4222|:4223|' ~/.config/nats/context/hub.json >~/.config/nats/context/hub-b.json
systemctl daemon-reload
systemctl restart leaf-hub
systemctl start nats-b leaf-hub-b"#;

impl Fleet {
    /// Makes a second hub of the [connected](Fleet::connect) one, on the same machine and with the same keys, of which one is that of a
    /// witness; at the hub, `leafctl --context hub-b` reaches the leaves that are there. The callers `ann` and `admin` may move leaves
    /// with signatures of [`SIGNER`]. The leaves' leafd is restarted.
    ///
    /// # Errors
    /// If a step fails.
    pub fn let_leaves_move(&self) -> Result<()> {
        let (witness, public_witness) = key()?;
        let (signer, public_signer) = key()?;
        self.hub
            .put(witness.as_bytes(), "/etc/cim-hub/witness.key", "0600")?;
        self.hub.ok(&format!("export HOME=/root\n{SECOND_HUB}"))?;
        for host in self.machines() {
            host.put(signer.as_bytes(), SIGNER, "0600")?;
        }
        for leaf in &self.leaves {
            leaf.ok(&format!(
                "set -e; cd /etc/cim-leaf; echo 'ann,admin {public_signer}' >allowed_signers
cat >>leafd.toml <<END
[trust]
allowed_signers = \"/etc/cim-leaf/allowed_signers\"
[trust.callers]
admin = [\"cuts-off\"]
ann = [\"cuts-off\"]
END
echo 'witnesses = [\"{public_witness}\"]' >helper.new; cat helper.toml >>helper.new 2>/dev/null || true; mv helper.new helper.toml
leafd check-config leafd.toml; systemctl restart leaf-helper leafd; sync"
            ))?;
        }
        Ok(())
    }
}

/// Returns the URL of the first hub (0) or the second one (1) for leaves.
pub fn hub_url(hub: usize) -> String {
    format!("tls://{HUB}:{}", HUB_PORTS[hub])
}

/// Returns a private key of SSH, and its public key as a line.
fn key() -> Result<(String, String)> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
        .arg(&file)
        .status()?;
    ensure!(made.success(), "ssh-keygen: {made}");
    let public = fs::read_to_string(file.with_extension("pub"))?;
    Ok((fs::read_to_string(file)?, public.trim().to_owned()))
}

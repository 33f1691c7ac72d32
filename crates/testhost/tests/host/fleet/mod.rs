//! Several leaves and a hub, each a machine of its own, as docs/fleet.md describes them.

mod partition;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use leaf_bus::identity::HubUsers;
use leaf_core::id::{Caller, LeafName};
use nkeys::KeyPair;
use testhost::fleet::leaf_name;
use testhost::{Fleet, Host, Output, Programs};

use crate::Trials;

/// The tests of all files here.
pub(crate) const TRIALS: &[Trials] = &[partition::TRIALS];

/// The longest that a fleet may take for something on emulated machines, beside other work.
const PATIENCE: Duration = Duration::from_secs(180);

/// The hub's server, apart from its accounts.
const HUB: &str = "server_name: hub\nlisten: 127.0.0.1:4222\njetstream { store_dir: /var/lib/nats }\nping_interval: 2s\n\
    leafnodes { listen: \"0.0.0.0:7422\", tls { cert_file: /etc/nats/hub.pem, key_file: /etc/nats/hub.key } }\n";

/// A fleet whose leaves are connected to the hub.
struct Hubbed {
    fleet: Fleet,
}

impl Hubbed {
    /// Returns a fresh fleet in which the person `ann` at the hub reaches every leaf.
    fn up(leaves: usize) -> Result<Self> {
        let options = Host::options().with(&Programs::here()?);
        let fleet = Fleet::restore(&options, &options, leaves)?;
        let hubbed = Self { fleet };
        hubbed.connect()?;
        for number in 1..=leaves {
            hubbed.until_reached(&leaf_name(number))?;
        }
        Ok(hubbed)
    }

    /// Gives each machine its keys and settings, and starts the servers.
    fn connect(&self) -> Result<()> {
        let [agent, agent_in_links, ann] = [(); 3].map(|()| KeyPair::new_user());
        let leaves: Vec<(&Host, KeyPair)> = self
            .fleet
            .leaves
            .iter()
            .map(|leaf| (leaf, KeyPair::new_user()))
            .collect();
        let users = HubUsers {
            agent: agent.public_key(),
            agent_in_links: agent_in_links.public_key(),
            leaves: leaves
                .iter()
                .map(|(leaf, key)| Ok((LeafName::new(leaf.name())?, key.public_key())))
                .collect::<Result<_>>()?,
            people: vec![(Caller::new("ann")?, ann.public_key())],
        };
        let (certificate, key) = certificate()?;
        let hub = &self.fleet.hub;
        hub.ok("mkdir -p /etc/nats")?;
        hub.put(certificate.as_bytes(), "/etc/nats/hub.pem", "0644")?;
        hub.put(key.as_bytes(), "/etc/nats/hub.key", "0600")?;
        hub.put(ann.seed()?.as_bytes(), "/root/ann.nk", "0600")?;
        hub.put(CONTEXT.as_bytes(), "/root/ann.json", "0600")?;
        let settings = format!("{HUB}{}", users.accounts());
        hub.put(settings.as_bytes(), "/etc/nats/hub.conf", "0600")?;
        hub.ok("systemd-run --quiet --unit nats nats-server -c /etc/nats/hub.conf")?;
        for (leaf, key) in &leaves {
            leaf.put(certificate.as_bytes(), "/etc/cim-leaf/hub-ca.pem", "0644")?;
            leaf.put(key.seed()?.as_bytes(), "/etc/cim-leaf/hub.nk", "0640")?;
            leaf.put(LEAF.as_bytes(), "/etc/cim-leaf/leafd.toml", "0644")?;
            leaf.ok("chgrp leafd /etc/cim-leaf/hub.nk && systemctl start leafd.service")
                .context("leafd does not start")?;
        }
        Ok(())
    }

    /// Runs `leafctl` at the hub as ann, for a leaf.
    fn at_hub(&self, leaf: &str, arguments: &str) -> Result<Output> {
        self.fleet.hub.run(&format!(
            "leafctl --json --context /root/ann.json --leaf {leaf} {arguments}"
        ))
    }

    /// Waits until a command that is sent at the hub is answered by a leaf.
    fn until_reached(&self, leaf: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.at_hub(leaf, "--timeout 3s leaf show")?;
            if output.status == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                let log = |host: &Host| host.run("journalctl --no-pager --lines 30 --unit leafd --unit nats");
                let machines = self.fleet.machines();
                let logs: Result<Vec<String>> = machines.map(|host| Ok(log(host)?.stdout)).collect();
                bail!("{leaf} is not reached: {output:?}\n{}", logs?.join("\n"));
            }
        }
    }
}

/// How ann connects.
const CONTEXT: &str =
    "{\"url\":\"nats://127.0.0.1:4222\",\"nkey\":\"/root/ann.nk\",\"inbox_prefix\":\"_INBOX.ann\"}";

/// The settings of every leaf; its name is its host's.
const LEAF: &str = "[nats.embedded.hub]\nurl = \"tls://hub:7422\"\ncredentials = \"/etc/cim-leaf/hub.nk\"\n\
    ca = \"/etc/cim-leaf/hub-ca.pem\"\n";

/// Returns a certificate for the hub that is its own CA, and its key.
fn certificate() -> Result<(String, String)> {
    let made = rcgen::generate_simple_self_signed(["hub".to_owned()]).context("a certificate")?;
    Ok((made.cert.pem(), made.signing_key.serialize_pem()))
}

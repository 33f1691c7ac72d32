//! The files of the hub's host: `hub/`, which becomes its `/etc/cim-hub`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use leaf_bus::identity::fleet::{Account, preload, server_config};

use super::directory::Directory;
use super::error::KeysError;
use super::hub_url::HubUrl;
use super::{files, tls};

/// The file with the operator and the accounts, which a revocation changes.
pub(crate) const ACCOUNTS: &str = "hub/accounts.conf";

/// A certificate of the fleet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Certificate {
    /// Whose it is.
    pub(crate) whose: &'static str,
    /// What makes another one.
    pub(crate) renewed_by: &'static str,
    /// From when it is valid, in seconds since 1970.
    pub(crate) begins: i64,
    /// Until when it is valid, in seconds since 1970.
    pub(crate) ends: i64,
}

impl Directory {
    /// Returns the certificates that are in the directory.
    pub(crate) fn certificates(&self) -> Result<Vec<Certificate>, KeysError> {
        let files = [
            ("hub/hub.pem", "the hub's server", "leafctl fleet rotate hub"),
            ("tls/ca.pem", "the CA", "a new fleet"),
        ];
        let mut found = Vec::new();
        for (file, whose, renewed_by) in files {
            let Some(pem) = files::read(&self.at(file))? else {
                continue;
            };
            let (begins, ends) = tls::validity(&pem)?;
            found.push(Certificate {
                whose,
                renewed_by,
                begins,
                ends,
            });
        }
        Ok(found)
    }

    /// Writes `accounts.conf`, and the same for NixOS, from the JWTs in the directory.
    pub(super) fn write_preload(&self) -> Result<(), KeysError> {
        let operator = self.operator_jwt()?;
        let mut accounts = BTreeMap::new();
        for account in Account::ALL {
            let (jwt, token) = self.account_jwt(account)?;
            accounts.insert(token.subject, jwt);
        }
        let fleet = self.fleet();
        let system = fleet.account(Account::System);
        let resolver = format!("{}/accounts", self.manifest().hub_state);
        let config = server_config(&operator, system, &resolver, &accounts);
        files::replace(
            &self.at(ACCOUNTS),
            &format!("# Written by leafctl fleet.\n{config}"),
        )?;
        let json = format!("{:#}\n", preload(system, &accounts));
        files::replace(&self.at("hub/accounts.json"), &json)?;
        files::replace(&self.at("hub/operator.jwt"), &format!("{operator}\n"))
    }

    /// Writes the settings of the hub's server and of its agent, once.
    pub(super) fn write_hub_settings(&self) -> Result<(), KeysError> {
        let manifest = self.manifest();
        let (hub, clients) = (
            HubUrl::parse(&manifest.hub, 7422)?,
            HubUrl::parse(&manifest.clients, 4222)?,
        );
        let at = &manifest.hub_directory;
        let tls = |url: &HubUrl| {
            if url.tls {
                format!("tls {{ cert_file: \"{at}/hub.pem\", key_file: \"{at}/hub.key\" }}")
            } else {
                String::new()
            }
        };
        let server = format!(
            "server_name: hub\nlisten: \"{clients_listen}\"\n{clients_tls}\njetstream {{ store_dir: \"{state}/nats\" }}\nleafnodes {{\n  \
             listen: \"{hub_listen}\"\n  isolate_leafnode_interest: true      # or a stolen leaf can cut the others off, by feigning \
             loops\n  {hub_tls}\n}}\nping_interval: \"2s\"\nmax_subscriptions: 10000               # for each connection; the agent has \
             one for each leaf\ninclude \"accounts.conf\"\n",
            clients_listen = clients.listens_on(),
            clients_tls = tls(&clients),
            state = manifest.hub_state,
            hub_listen = hub.listens_on(),
            hub_tls = tls(&hub),
        );
        files::create(&self.at("hub/nats-server.conf"), &server)?;
        // The agent is on the same host, and the certificate is for loopback too.
        let local = HubUrl {
            host: if clients.is_loopback() {
                clients.host.clone()
            } else {
                "127.0.0.1".to_owned()
            },
            ..clients
        };
        let ca = if local.tls {
            format!("ca = \"{at}/ca.pem\"\n")
        } else {
            String::new()
        };
        let agent = format!(
            "witness_key = \"{at}/witness.key\"\n[nats]\nurl = \"{local}\"\nfleet_credentials = \"{at}/fleet.creds\"\nlinks_credentials = \"{at}/links.creds\"\n{ca}"
        );
        files::create(&self.at("hub/leaf-hub.toml"), &agent)
    }

    /// Writes the certificate of the hub's server and its key, in the place of those before. Returns whether the CA's key is here.
    pub(crate) fn renew_certificate(&self, now: Timestamp) -> Result<bool, KeysError> {
        let Some(ca) = files::read_private(&self.at("tls/ca.key"))? else {
            return Ok(false);
        };
        let manifest = self.manifest();
        let mut hosts = vec![
            HubUrl::parse(&manifest.hub, 7422)?.host,
            HubUrl::parse(&manifest.clients, 4222)?.host,
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        let mut seen = std::collections::BTreeSet::new();
        hosts.retain(|host| seen.insert(host.clone()));
        let server = tls::server(&manifest.name, &ca, &hosts, now)?;
        files::replace(&self.at("hub/hub.key"), server.key.expose())?;
        files::replace(&self.at("hub/hub.pem"), &server.certificate)?;
        Ok(true)
    }
}

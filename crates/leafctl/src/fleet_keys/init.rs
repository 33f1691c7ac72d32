//! Makes the directory of a fleet: as a whole, or not at all.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use leaf_bus::identity::fleet::{Account, Fleet, KeyKind, NatsKey, Revocations, Role, operator_jwt};
use leaf_bus::identity::private_dir;

use super::directory::Directory;
use super::error::KeysError;
use super::hub_url::HubUrl;
use super::manifest::Manifest;
use super::users::AGENT;
use super::{files, tls};

/// What a new fleet is like.
#[derive(Debug)]
pub(crate) struct NewFleet<'a> {
    /// The name of the NATS operator.
    pub(crate) name: &'a str,
    /// The URL that leaves connect to.
    pub(crate) hub: &'a str,
    /// The URL that people connect to; without one, port 4222 of the same host.
    pub(crate) clients: Option<&'a str>,
    /// The directory of the hub's files on its host.
    pub(crate) hub_directory: &'a str,
    /// The directory of the hub's state on its host.
    pub(crate) hub_state: &'a str,
    /// The life of the agent's credentials, in days.
    pub(crate) days: u32,
}

/// Makes the directory of a new fleet.
pub(crate) fn init(root: &Path, new: &NewFleet<'_>, now: Timestamp) -> Result<Directory, KeysError> {
    let root = std::path::absolute(root).map_err(KeysError::read(root))?;
    let hub = HubUrl::parse(new.hub, 7422)?;
    let clients = match new.clients {
        Some(url) => HubUrl::parse(url, 4222)?,
        None => HubUrl {
            port: 4222,
            ..hub.clone()
        },
    };
    if root.symlink_metadata().is_ok()
        && std::fs::read_dir(&root)
            .map_err(KeysError::read(&root))?
            .next()
            .is_some()
    {
        return Err(KeysError::NotEmpty(root));
    }
    let draft = draft(&root)?;
    let made = private_dir(&draft)
        .map_err(KeysError::write(&root))
        .and_then(|()| make(&draft, new, (&hub, &clients), now))
        .and_then(|manifest| {
            // Where the root is an empty directory it is replaced; one that somebody filled meanwhile is not.
            std::fs::rename(&draft, &root).map_err(KeysError::write(&root))?;
            Ok(manifest)
        });
    match made {
        Ok(manifest) => Ok(Directory::made(root, manifest)),
        Err(error) => {
            let _ = std::fs::remove_dir_all(&draft);
            Err(in_place_of(error, &draft, &root))
        }
    }
}

/// Returns where the directory is made: beside its place.
fn draft(root: &Path) -> Result<PathBuf, KeysError> {
    let name = root
        .file_name()
        .ok_or_else(|| KeysError::NotEmpty(root.to_owned()))?;
    if let Some(parent) = root.parent() {
        std::fs::create_dir_all(parent).map_err(KeysError::write(parent))?;
    }
    let name = format!(".{}.new-{}", name.to_string_lossy(), std::process::id());
    Ok(root.with_file_name(name))
}

/// Returns the error with the path that the person knows.
fn in_place_of(error: KeysError, draft: &Path, root: &Path) -> KeysError {
    match error {
        KeysError::Write { path, source } => KeysError::Write {
            path: path
                .strip_prefix(draft)
                .map_or_else(|_| path.clone(), |rest| root.join(rest)),
            source,
        },
        other => other,
    }
}

fn make(
    draft: &Path,
    new: &NewFleet<'_>,
    (hub, clients): (&HubUrl, &HubUrl),
    now: Timestamp,
) -> Result<Manifest, KeysError> {
    let operator = NatsKey::new(KeyKind::Operator);
    let signer = NatsKey::new(KeyKind::Operator);
    let accounts = Account::ALL.map(|account| (account, NatsKey::new(KeyKind::Account)));
    let roles = Role::ALL.map(|role| (role, NatsKey::new(KeyKind::Account)));
    let fleet = Fleet {
        accounts: accounts
            .iter()
            .map(|(account, key)| (*account, key.public_key()))
            .collect(),
        roles: roles
            .iter()
            .map(|(role, key)| (*role, key.public_key()))
            .collect(),
    };
    let manifest = Manifest {
        hub: hub.to_string(),
        clients: clients.to_string(),
        hub_directory: new.hub_directory.to_owned(),
        hub_state: new.hub_state.to_owned(),
        ..Manifest::new(new.name, &fleet, operator.public_key(), signer.public_key(), now)
    };
    let mut directory = Directory::made(draft.to_owned(), manifest);
    let keys = accounts
        .iter()
        .map(|(_, key)| key)
        .chain(roles.iter().map(|(_, key)| key));
    for key in [&operator, &signer].into_iter().chain(keys) {
        directory.store_key(key)?;
    }
    let issued_at = now.as_second();
    let jwt = operator_jwt(
        new.name,
        &operator,
        &signer.public_key(),
        fleet.account(Account::System),
        &clients.to_string(),
        issued_at,
    );
    files::create(&directory.operator_file(), &jwt)?;
    let info = serde_json::json!({ "managed": false, "name": new.name, "kind": "operator", "version": "1" });
    files::create(
        &directory.operator_file().with_file_name(".nsc"),
        &info.to_string(),
    )?;
    for account in Account::ALL {
        let claims = directory.account_claims(account, &Revocations::default(), None);
        let jwt = fleet.account_jwt(account, claims, issued_at, &signer);
        files::create(&directory.account_file(account), &jwt)?;
    }
    files::create(
        &directory.at("keys/.gitignore"),
        "# ignore all nk files\n**/*.nk\n\n# ignore all creds files\n**/*.creds\n",
    )?;
    let ca = tls::new_ca(new.name, now)?;
    files::create(&directory.at("tls/ca.pem"), &ca.certificate)?;
    files::create(&directory.at("tls/ca.key"), ca.key.expose())?;
    files::create(&directory.at("hub/ca.pem"), &ca.certificate)?;
    directory.renew_certificate(now)?;
    directory.new_witness()?;
    directory.write_preload()?;
    directory.write_hub_settings()?;
    directory.new_agents(new.days, now)?;
    debug_assert!(
        directory.users()?.iter().all(|user| user.name == AGENT),
        "only the agent has users"
    );
    directory.write_manifest()?;
    Ok(directory.manifest().clone())
}

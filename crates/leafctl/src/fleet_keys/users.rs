//! The users of a fleet: leaves, people and the hub agent, with the credentials that each gets.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use leaf_bus::identity::Token;
use leaf_bus::identity::fleet::{Account, FleetUser, LONGEST_LIFE, Revocations, Role, new_user};
use leaf_core::id::{Caller, LeafName};
use leaf_core::subject;
use leaf_trust::age_file;
use leaf_trust::host_key::HostKey;
use serde_json::json;

use super::directory::{Directory, read_token};
use super::error::KeysError;
use super::files;

/// The name of the hub agent's users.
pub(super) const AGENT: &str = "hub";
/// Names that programs of cim-leaf have as callers.
const RESERVED: [&str; 4] = [AGENT, "leafd", "admin", leaf_bus::resolver::PUSHER];
/// What the names of containers begin with.
const OF_CONTAINERS: &str = "ctr-";
const DAY: u64 = 86_400;
const HOUR: i64 = 3600;

/// A user of the fleet.
#[derive(Debug, Clone)]
pub(crate) struct User {
    /// The user's name.
    pub(crate) name: String,
    /// What it may do.
    pub(crate) role: Role,
    /// Its key, and when its credentials were issued and end.
    pub(crate) current: Life,
    /// The keys before, which others have replaced.
    pub(crate) former: Vec<Life>,
}

/// The life of one key of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    /// The public key.
    pub(crate) key: String,
    /// When the JWT was issued, in seconds of the Unix epoch.
    pub(crate) issued_at: i64,
    /// When it ends.
    pub(crate) expires_at: Option<i64>,
    /// Up to when what was issued is void, if the key is revoked.
    pub(crate) revoked: Option<i64>,
}

/// The longest time before an end that is soon, in seconds.
const SOON: i64 = 30 * 24 * 60 * 60;

/// Where a key stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stands {
    /// Servers take it.
    Valid,
    /// Servers take it, and the last third of its life has begun, or less than 30 days are left.
    EndsSoon,
    /// It has ended by itself.
    Ended,
    /// It is revoked.
    Revoked,
}

impl Life {
    fn of(token: &Token, revoked: &Revocations) -> Self {
        Self {
            key: token.subject.clone(),
            issued_at: token.issued_at,
            expires_at: token.expires_at,
            // What was issued after a revocation is valid again.
            revoked: revoked
                .of(&token.subject)
                .filter(|until| *until >= token.issued_at),
        }
    }

    /// Returns where it stands at this second.
    pub(crate) fn stands(&self, now: i64) -> Stands {
        if self.revoked.is_some() {
            Stands::Revoked
        } else {
            stands(self.issued_at, self.expires_at, now)
        }
    }
}

/// Returns where something stands that ends by itself.
pub(crate) fn stands(begins: i64, ends: Option<i64>, now: i64) -> Stands {
    let Some(ends) = ends else {
        return Stands::Valid;
    };
    let (whole, left) = (ends.saturating_sub(begins), ends.saturating_sub(now));
    match left {
        ..=0 => Stands::Ended,
        left if left <= SOON.min(whole / 3) => Stands::EndsSoon,
        _ => Stands::Valid,
    }
}

/// What a role's user is called in texts.
pub(crate) fn kind_of(role: Role) -> &'static str {
    match role {
        Role::Leaf => "leaf",
        Role::Person => "operator",
        Role::AgentInFleet | Role::AgentInLinks => "agent",
        Role::Push => "push",
    }
}

/// The files that a new user was given.
#[derive(Debug)]
pub(crate) struct Given {
    /// The user's name.
    pub(crate) name: String,
    /// The public key.
    pub(crate) key: String,
    /// When the credentials end, in seconds of the Unix epoch.
    pub(crate) expires_at: i64,
    /// The files that were written.
    pub(crate) files: Vec<PathBuf>,
}

impl Directory {
    /// Returns all users, by role and name.
    pub(crate) fn users(&self) -> Result<Vec<User>, KeysError> {
        self.users_in(|directory| {
            let files = files::names(directory)?;
            let names = files.iter().filter_map(|file| file.strip_suffix(".jwt"));
            Ok(names.map(str::to_owned).collect())
        })
    }

    /// Returns the users of each account that have one of these names.
    fn users_in(
        &self,
        names: impl Fn(&Path) -> Result<Vec<String>, KeysError>,
    ) -> Result<Vec<User>, KeysError> {
        let mut users = Vec::new();
        for account in Account::ALL {
            let revoked = Revocations::in_claims(&self.account_jwt(account)?.1.nats);
            let directory = self.users_directory(account);
            for name in names(&directory)? {
                let path = directory.join(format!("{name}.jwt"));
                let Some(jwt) = files::read(&path)? else { continue };
                let token = read_token(&path, &jwt)?;
                // What `nsc` made with other keys is not ours to show.
                let Some(role) = self.role_of(account, &token) else {
                    continue;
                };
                users.push(User {
                    role,
                    former: self.former(account, &name, &token, &revoked)?,
                    current: Life::of(&token, &revoked),
                    name,
                });
            }
        }
        users.sort_by(|a, b| (a.role, &a.name).cmp(&(b.role, &b.name)));
        Ok(users)
    }

    fn role_of(&self, account: Account, token: &Token) -> Option<Role> {
        let fleet = self.fleet();
        let role = fleet.roles.into_iter().find(|(_, key)| *key == token.issuer)?.0;
        (role.account() == account).then_some(role)
    }

    fn former(
        &self,
        account: Account,
        name: &str,
        current: &Token,
        revoked: &Revocations,
    ) -> Result<Vec<Life>, KeysError> {
        let directory = self.former_directory(account).join(name);
        let mut former = Vec::new();
        for file in files::names(&directory)? {
            let path = directory.join(&file);
            let Some(jwt) = files::read(&path)? else { continue };
            let token = read_token(&path, &jwt)?;
            if token.subject != current.subject {
                former.push(Life::of(&token, revoked));
            }
        }
        former.sort_by_key(|life| life.issued_at);
        Ok(former)
    }

    /// Returns the users of this name: one, or the two of the hub agent.
    pub(crate) fn users_named(&self, name: &str) -> Result<Vec<User>, KeysError> {
        // It is part of a path.
        let users = match Caller::new(name) {
            Ok(name) => self.users_in(|_| Ok(vec![name.as_str().to_owned()]))?,
            Err(_) => Vec::new(),
        };
        if users.is_empty() {
            return Err(KeysError::Nobody(name.to_owned()));
        }
        Ok(users)
    }

    /// Adds a leaf, and writes its files below a flake.
    pub(crate) fn add_leaf(
        &mut self,
        leaf: &LeafName,
        host_key: &HostKey,
        days: u32,
        flake: &Path,
        now: Timestamp,
    ) -> Result<Given, KeysError> {
        self.is_free(leaf.as_str())?;
        let paths = LeafFiles::of(leaf, flake);
        for path in paths.all() {
            files::is_free(path)?;
        }
        let user = self.issue(Role::Leaf, leaf.as_str(), days, now)?;
        let stored = self.users_directory(Account::Links).join(format!("{leaf}.jwt"));
        files::create(&stored, &user.jwt)?;
        let given = self
            .write_host_key(leaf, host_key)
            .and_then(|()| self.write_leaf(leaf, host_key, &user, &paths));
        if let Err(error) = given {
            // Nobody has got the credentials.
            for path in paths.all().into_iter().chain([&stored]) {
                let _ = std::fs::remove_file(path);
            }
            return Err(error);
        }
        self.given(leaf.as_str(), &user, paths.all().map(PathBuf::clone).to_vec())
    }

    /// Gives a leaf a new key; the one before is a former one. Without a host key, it is that of the time before.
    pub(crate) fn rotate_leaf(
        &mut self,
        leaf: &LeafName,
        host_key: Option<&HostKey>,
        days: u32,
        flake: &Path,
        now: Timestamp,
    ) -> Result<Given, KeysError> {
        let is_new = host_key.is_some();
        let host_key = match host_key {
            Some(key) => key.clone(),
            None => self.host_key(leaf)?,
        };
        let paths = LeafFiles::of(leaf, flake);
        if !is_new && files::is_free(&paths.secret).is_ok() {
            return Err(KeysError::NoSecret(paths.secret));
        }
        let user = self.issue(Role::Leaf, leaf.as_str(), days, now)?;
        let former = self.replace_user(Account::Links, leaf.as_str(), &user)?;
        let written = self.write_leaf_again(leaf, &host_key, &user, &paths);
        self.undo_unless(written, Account::Links, leaf.as_str(), former)?;
        let files = paths.all().map(PathBuf::clone).to_vec();
        self.given(leaf.as_str(), &user, files)
    }

    /// Adds a person, and writes the credentials and a context into a directory.
    pub(crate) fn add_person(
        &mut self,
        person: &Caller,
        days: u32,
        out: &Path,
        now: Timestamp,
    ) -> Result<Given, KeysError> {
        self.is_free(person.as_str())?;
        let paths = PersonFiles::of(person, out)?;
        for path in [&paths.credentials, &paths.context] {
            files::is_free(path)?;
        }
        let user = self.issue(Role::Person, person.as_str(), days, now)?;
        let stored = self
            .users_directory(Account::Callers)
            .join(format!("{person}.jwt"));
        files::create(&stored, &user.jwt)?;
        if let Err(error) = self.write_person(person, &user, &paths) {
            for path in [&paths.credentials, &paths.context, &stored] {
                let _ = std::fs::remove_file(path);
            }
            return Err(error);
        }
        self.given(person.as_str(), &user, paths.all())
    }

    /// Gives a person a new key; the one before is a former one.
    pub(crate) fn rotate_person(
        &mut self,
        person: &Caller,
        days: u32,
        out: &Path,
        now: Timestamp,
    ) -> Result<Given, KeysError> {
        let paths = PersonFiles::of(person, out)?;
        let user = self.issue(Role::Person, person.as_str(), days, now)?;
        let former = self.replace_user(Account::Callers, person.as_str(), &user)?;
        let written = self.write_person(person, &user, &paths);
        self.undo_unless(written, Account::Callers, person.as_str(), former)?;
        self.given(person.as_str(), &user, paths.all())
    }

    /// Makes the users of the hub agent, or gives them new keys, and writes their credentials into `hub/`.
    pub(crate) fn new_agents(&mut self, days: u32, now: Timestamp) -> Result<Vec<Given>, KeysError> {
        let mut given = Vec::new();
        for (role, file) in [
            (Role::AgentInFleet, "hub/fleet.creds"),
            (Role::AgentInLinks, "hub/links.creds"),
        ] {
            let user = self.issue(role, AGENT, days, now)?;
            let former = self.replace_user(role.account(), AGENT, &user)?;
            let path = self.at(file);
            let written = files::replace(&path, user.credentials.expose());
            self.undo_unless(written, role.account(), AGENT, former)?;
            given.push(self.given(AGENT, &user, vec![path])?);
        }
        Ok(given)
    }

    fn is_free(&self, name: &str) -> Result<(), KeysError> {
        if RESERVED.contains(&name) || name.starts_with(OF_CONTAINERS) {
            return Err(KeysError::Reserved(name.to_owned()));
        }
        match self.users_named(name) {
            Ok(users) => Err(KeysError::Taken {
                name: name.to_owned(),
                kind: match users.first().map(|user| user.role) {
                    Some(Role::Person) => "an operator",
                    _ => "a leaf",
                },
            }),
            Err(KeysError::Nobody(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes a user of a role, which nobody has yet.
    fn issue(&mut self, role: Role, name: &str, days: u32, now: Timestamp) -> Result<FleetUser, KeysError> {
        let life = u64::from(days) * DAY;
        if days == 0 || life > LONGEST_LIFE.as_secs() {
            return Err(KeysError::Life(days));
        }
        let signer = self.role_key(role)?;
        // Known before it is given: no revocation is dropped too early.
        self.note_life(life)?;
        let account = role.account();
        // What was issued up to a revocation of all users of the account is void, also if it is made after that.
        let revoked = Revocations::in_claims(&self.account_jwt(account)?.1.nats).of("*");
        let issued_at = match revoked.map(|until| until.saturating_add(1)) {
            Some(after) if after > now.as_second().saturating_add(HOUR) => {
                return Err(KeysError::AllRevoked {
                    account: account.name(),
                    until: after - 1,
                });
            }
            after => now.as_second().max(after.unwrap_or(i64::MIN)),
        };
        let ends = now
            .as_second()
            .saturating_add(i64::try_from(life).unwrap_or(i64::MAX));
        Ok(new_user(
            name,
            self.fleet().account(account),
            &signer,
            issued_at,
            ends,
        ))
    }

    /// Stores the JWT of a user in the place of the one before, which becomes a former one. Returns where that is kept until the
    /// credentials are written: a link, which takes no room on a full disk.
    fn replace_user(
        &self,
        account: Account,
        name: &str,
        user: &FleetUser,
    ) -> Result<Option<PathBuf>, KeysError> {
        let directory = self.users_directory(account);
        let path = directory.join(format!("{name}.jwt"));
        let Some(jwt) = files::read(&path)? else {
            files::replace(&path, &user.jwt)?;
            return Ok(None);
        };
        let key = read_token(&path, &jwt)?.subject;
        let former = self
            .former_directory(account)
            .join(name)
            .join(format!("{key}.jwt"));
        files::replace(&former, &jwt)?;
        let before = directory.join(format!(".{name}.before"));
        let _ = std::fs::remove_file(&before);
        std::fs::hard_link(&path, &before).map_err(KeysError::write(&before))?;
        files::replace(&path, &user.jwt)?;
        Ok(Some(before))
    }

    /// Makes the JWT before the current one again if nobody got the credentials of the new one.
    fn undo_unless(
        &self,
        written: Result<(), KeysError>,
        account: Account,
        name: &str,
        before: Option<PathBuf>,
    ) -> Result<(), KeysError> {
        if let Some(before) = before {
            if written.is_ok() {
                let _ = std::fs::remove_file(&before);
            } else {
                let path = self.users_directory(account).join(format!("{name}.jwt"));
                std::fs::rename(&before, &path).map_err(KeysError::write(&path))?;
            }
        }
        written
    }

    fn given(&self, name: &str, user: &FleetUser, files: Vec<PathBuf>) -> Result<Given, KeysError> {
        let token = read_token(self.root(), &user.jwt)?;
        Ok(Given {
            name: name.to_owned(),
            key: user.key.clone(),
            expires_at: token.expires_at.unwrap_or(i64::MAX),
            files,
        })
    }

    fn host_key_file(&self, leaf: &LeafName) -> PathBuf {
        self.at("hosts").join(format!("{leaf}.pub"))
    }

    fn write_host_key(&self, leaf: &LeafName, key: &HostKey) -> Result<(), KeysError> {
        files::replace(&self.host_key_file(leaf), &format!("{key}\n"))
    }

    fn host_key(&self, leaf: &LeafName) -> Result<HostKey, KeysError> {
        let path = self.host_key_file(leaf);
        let text = files::read(&path)?.ok_or_else(|| KeysError::NoHostKey(leaf.to_string()))?;
        text.parse().map_err(|error| KeysError::damaged(&path, error))
    }

    fn ca(&self) -> Result<Option<String>, KeysError> {
        let path = self.at("tls/ca.pem");
        if !self.manifest().hub.starts_with("tls://") {
            return Ok(None);
        }
        files::read(&path)?
            .map(Some)
            .ok_or_else(|| KeysError::damaged(&path, "it is missing"))
    }

    fn write_leaf(
        &self,
        leaf: &LeafName,
        host_key: &HostKey,
        user: &FleetUser,
        paths: &LeafFiles,
    ) -> Result<(), KeysError> {
        let secret = age_file::encrypt(
            std::slice::from_ref(host_key),
            user.credentials.expose().as_bytes(),
        );
        files::create_public(&paths.secret, &secret)?;
        let ca = self.ca()?;
        if let Some(ca) = &ca {
            files::create_public(&paths.ca, ca)?;
        }
        files::create_public(&paths.module, &self.module_of(leaf, ca.is_some())?)
    }

    /// Replaces a leaf's credentials, and makes what else is missing.
    fn write_leaf_again(
        &self,
        leaf: &LeafName,
        host_key: &HostKey,
        user: &FleetUser,
        paths: &LeafFiles,
    ) -> Result<(), KeysError> {
        self.write_host_key(leaf, host_key)?;
        let ca = self.ca()?;
        if let Some(ca) = &ca
            && files::is_free(&paths.ca).is_ok()
        {
            files::create_public(&paths.ca, ca)?;
        }
        if files::is_free(&paths.module).is_ok() {
            files::create_public(&paths.module, &self.module_of(leaf, ca.is_some())?)?;
        }
        let secret = age_file::encrypt(
            std::slice::from_ref(host_key),
            user.credentials.expose().as_bytes(),
        );
        files::replace_public(&paths.secret, &secret)
    }

    fn module_of(&self, leaf: &LeafName, has_ca: bool) -> Result<String, KeysError> {
        Ok(module(
            leaf,
            &self.manifest().hub,
            has_ca,
            self.witness()?.as_deref(),
        ))
    }

    fn write_person(&self, person: &Caller, user: &FleetUser, paths: &PersonFiles) -> Result<(), KeysError> {
        let mut context = json!({
            "description": format!("the fleet {} as {person}", self.manifest().name),
            "url": self.manifest().clients,
            "creds": paths.credentials,
            "inbox_prefix": subject::inbox_prefix(person),
        });
        if let Some(ca) = self.ca()? {
            files::replace_public(&paths.ca, &ca)?;
            context["ca"] = json!(paths.ca);
        }
        files::replace_outside(&paths.credentials, user.credentials.expose(), 0o600)?;
        files::replace_outside(&paths.context, &format!("{context:#}\n"), 0o600)
    }
}

/// The files of a leaf in a flake.
struct LeafFiles {
    secret: PathBuf,
    module: PathBuf,
    ca: PathBuf,
}

impl LeafFiles {
    fn of(leaf: &LeafName, flake: &Path) -> Self {
        let host = flake.join("hosts").join(leaf.as_str());
        Self {
            secret: flake.join("secrets").join(format!("{leaf}-hub.creds.age")),
            module: host.join("hub.nix"),
            ca: host.join("hub-ca.pem"),
        }
    }

    fn all(&self) -> [&PathBuf; 3] {
        [&self.secret, &self.module, &self.ca]
    }
}

/// Returns the NixOS module of a leaf's connection to the hub. Neither the name nor the URL has a character with a meaning in Nix.
fn module(leaf: &LeafName, hub: &str, has_ca: bool, witness: Option<&str>) -> String {
    let ca_line = if has_ca {
        "\n        caFile = ./hub-ca.pem;"
    } else {
        ""
    };
    // The hub confirms changes that can cut the leaf off.
    let witness_line = witness.map_or_else(String::new, |key| {
        format!("\n      services.cim-leaf.witnesses = [ \"{key}\" ];")
    });
    format!(
        "# Written by `leafctl fleet add-leaf {leaf}`: the leaf's connection to the hub. Import it in default.nix.\n\
         {{ lib, options, ... }}:\n{{\n  config = lib.mkMerge [\n    {{\n      services.cim-leaf.nats.embedded.hub = {{\n        \
         url = \"{hub}\";{ca_line}\n        # Where agenix puts it. With sops-nix: config.sops.secrets.\"{leaf}-hub.creds\".path\n        \
         credentialsFile = lib.mkDefault \"/run/agenix/{leaf}-hub.creds\";\n      }};{witness_line}\n    }}\n    (lib.optionalAttrs (options ? age) {{\n      \
         age.secrets.\"{leaf}-hub.creds\".file = ../../secrets/{leaf}-hub.creds.age;\n      \
         # leafd has a copy from its start. With sops-nix: restartUnits = [ \"leafd.service\" ].\n      \
         systemd.services.leafd.restartTriggers = [ ../../secrets/{leaf}-hub.creds.age ];\n    }})\n  ];\n}}\n"
    )
}

/// The files of a person.
struct PersonFiles {
    credentials: PathBuf,
    context: PathBuf,
    ca: PathBuf,
}

impl PersonFiles {
    fn of(person: &Caller, out: &Path) -> Result<Self, KeysError> {
        // A context names files by absolute paths.
        let out = std::path::absolute(out).map_err(KeysError::read(out))?;
        Ok(Self {
            credentials: out.join(format!("{person}.creds")),
            context: out.join(format!("{person}.json")),
            ca: out.join("hub-ca.pem"),
        })
    }

    fn all(&self) -> Vec<PathBuf> {
        let ca = self.ca.exists().then(|| self.ca.clone());
        [self.credentials.clone(), self.context.clone()]
            .into_iter()
            .chain(ca)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_soon_in_the_last_third_of_a_life_and_at_most_30_days_before_it() {
        const DAY: i64 = 86_400;
        let of = |days: i64, left: i64| stands(0, Some(days * DAY), (days - left) * DAY);
        for (days, left, is) in [
            (400, 31, Stands::Valid),
            (400, 30, Stands::EndsSoon),
            (30, 11, Stands::Valid),
            (30, 10, Stands::EndsSoon),
            (30, 0, Stands::Ended),
            (30, -5, Stands::Ended),
        ] {
            assert_eq!(of(days, left), is, "{left} of {days} days");
        }
        assert_eq!(stands(0, None, i64::MAX), Stands::Valid);
    }
}

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use leaf_core::command::{SetSecret, ShowRecipient};
use leaf_core::error::chain;
use leaf_core::host_op::Secret;
use leaf_core::id::{ContainerName, LeafName, SecretName};
use leaf_core::secret::{MAX_CONTENT_BYTES, SecretUser};
use leaf_trust::host_key::HostKey;
use leaf_trust::secret::SecretDocument;
use zeroize::Zeroizing;

use super::known_leaves::{KnownLeaves, Terminal};
use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::{Output, ago};
use crate::session::Session;
use crate::text::fields;

/// Set a secret of a leaf, or replace it.
///
/// It is encrypted on this machine to the leaf's SSH host key. At the first use of a leaf leafctl shows the key's fingerprint and
/// asks; later it refuses another key. The bytes are taken as they are, also a final line end:
/// `printf %s "$password" | leafctl secret set db-password --container web`
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// The secret's name.
    name: SecretName,
    /// The file with the secret; without it, or with `-`, the secret is read from standard input.
    #[arg(long, value_name = "FILE")]
    from_file: Option<PathBuf>,
    /// A container that may have it; may be repeated. Who may change that container on the leaf can read the secret.
    #[arg(long = "container", value_name = "NAME", required_unless_present = "units")]
    containers: Vec<ContainerName>,
    /// A service of the host that may have it, and what is done with it when the secret changes, `restart` (the default), `reload` or
    /// `nothing`; may be repeated. It needs `LoadCredential=SECRET:/run/cim-leaf/secrets.sock` in its own configuration.
    #[arg(long = "unit", value_name = "NAME[:ON_CHANGE]", value_parser = unit)]
    units: Vec<SecretUser>,
    /// The leaf's SSH host key: a line of its `ssh_host_ed25519_key.pub`, or that file. Then leafctl neither asks nor keeps it.
    #[arg(long, value_name = "KEY|FILE")]
    host_key: Option<String>,
    /// The file of the host keys that were confirmed. Without this flag: cim-leaf/known_leaves in $XDG_CONFIG_HOME, or in ~/.config.
    #[arg(long, value_name = "FILE", env = "LEAFCTL_KNOWN_LEAVES")]
    known_leaves: Option<PathBuf>,
}

impl Set {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let given = self.host_key.as_deref().map(read_key).transpose()?;
        // Before the question about a key, which may take its time.
        let content = read_content(self.from_file.as_deref())?;
        let keys = RefCell::new(keys(session, given, self.known_leaves, output).await?);
        let users = self
            .containers
            .into_iter()
            .map(|name| SecretUser::Container { name });
        let users: Vec<SecretUser> = users.chain(self.units).collect();
        let set = async |leaf: &Leaf| {
            let key = keys.borrow_mut().remove(&leaf.name);
            let key =
                key.unwrap_or_else(|| Err(Error::NoLeaf(format!("leaf {} has just appeared", leaf.name))))?;
            let document = SecretDocument {
                leaf: leaf.name.clone(),
                name: self.name.clone(),
                made: jiff::Timestamp::now(),
                users: users.clone(),
                content: content.clone(),
            };
            let age = document
                .encrypt(&key)
                .map_err(|error| Error::Usage(chain(&error)))?;
            let request = SetSecret {
                name: self.name.clone(),
                age: Secret::new(age),
            };
            let reply = leaf
                .waiting(
                    "waiting for the leaf to keep the secret",
                    leaf.call_slow_with_own_body(&request),
                )
                .await;
            // Each encryption is another text, so the same command can't be sent once more.
            reply.map_err(|error| match error {
                Error::Lost { how, .. } => Error::NoLeaf(format!(
                    "{how}; the secret may be set all the same: `leafctl secret list` says when it was, or set it once more"
                )),
                other => other,
            })
        };
        session
            .each(output, set, |record| {
                let users: Vec<String> = record.users.iter().map(ToString::to_string).collect();
                fields(&[
                    ("secret", record.name.to_string()),
                    ("generation", record.generation.to_string()),
                    ("set", ago(record.set_at)),
                    ("for", users.join(", ")),
                ])
            })
            .await
    }
}

/// Parses a unit with what is done when the secret changes; a name has `.service` at its end, or none.
fn unit(text: &str) -> Result<SecretUser, String> {
    const WORDS: [&str; 3] = ["restart", "reload", "nothing"];
    // A unit's name may have colons itself.
    let (name, on_change) = match text.rsplit_once(':') {
        Some((name, word)) if WORDS.contains(&word) => (name, word),
        _ => (text, WORDS[0]),
    };
    let end = if name.ends_with(".service") {
        ""
    } else {
        ".service"
    };
    format!("unit {name}{end} {on_change}")
        .parse::<SecretUser>()
        .map_err(|error| chain(&error))
}

/// Returns the key of each leaf, or why it can't be used.
async fn keys(
    session: &Session,
    given: Option<HostKey>,
    known_leaves: Option<PathBuf>,
    output: Output,
) -> Result<BTreeMap<LeafName, Result<HostKey, Error>>, Error> {
    let leaves = session.leaves().await?;
    if let Some(key) = given {
        return match leaves.as_slice() {
            [leaf] => Ok(BTreeMap::from([(leaf.name.clone(), Ok(key))])),
            _ => Err(Error::Usage(
                "--host-key is the key of one leaf, and several are selected; set the secret of each by itself".to_owned(),
            )),
        };
    }
    let known = KnownLeaves::read(known_leaves)?;
    let mut keys = BTreeMap::new();
    // One after the other, since each may have a question.
    for leaf in &leaves {
        let key = match leaf.call(&ShowRecipient {}).await {
            Ok(told) => match told.host_key.parse::<HostKey>() {
                Ok(told) => known.confirmed(&leaf.name, told, &Terminal, output),
                Err(error) => Err(Error::Refused(format!(
                    "leaf {} names a host key that can't be used: {}",
                    leaf.name,
                    chain(&error)
                ))),
            },
            Err(error) => Err(error),
        };
        keys.insert(leaf.name.clone(), key);
    }
    Ok(keys)
}

/// Returns the key in a line of a `.pub` file, or in a file.
fn read_key(text: &str) -> Result<HostKey, Error> {
    let line = if text.trim_start().starts_with("ssh-") {
        text.to_owned()
    } else {
        std::fs::read_to_string(text)
            .map_err(|error| Error::Usage(format!("can't read the host key {text}: {error}")))?
    };
    line.parse()
        .map_err(|error| Error::Usage(format!("--host-key: {}", chain(&error))))
}

/// Reads the secret from a file, or from standard input unless that is a terminal.
fn read_content(file: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, Error> {
    match file.filter(|file| *file != Path::new("-")) {
        Some(file) => std::fs::File::open(file)
            .and_then(read_all)
            .map_err(|error| Error::Usage(format!("can't read the secret {}: {error}", file.display()))),
        None if std::io::stdin().is_terminal() => Err(Error::Usage(
            "standard input is a terminal, which would show the secret: pipe it in, or give --from-file"
                .to_owned(),
        )),
        None => read_all(std::io::stdin().lock())
            .map_err(|error| Error::Usage(format!("can't read the secret from standard input: {error}"))),
    }
}

/// Reads at most one byte more than a secret may have, so that what is longer is refused.
fn read_all(input: impl Read) -> std::io::Result<Zeroizing<Vec<u8>>> {
    // One allocation, so that no piece of the content is left behind when it grows.
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_CONTENT_BYTES + 2));
    input
        .take(MAX_CONTENT_BYTES as u64 + 1)
        .read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_given_with_or_without_its_end_and_what_is_done_with_it() {
        for (text, means) in [
            ("db", "unit db.service restart"),
            ("db.service:reload", "unit db.service reload"),
            ("db@a:b:nothing", "unit db@a:b.service nothing"),
            ("db:sometimes", "unit db:sometimes.service restart"),
        ] {
            assert_eq!(unit(text).expect(text).to_string(), means);
        }
        for bad in ["", "../db", "a b", ":reload", "db\n"] {
            unit(bad).expect_err(bad);
        }
    }

    #[test]
    fn a_key_is_given_as_a_line_or_as_a_file() {
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5lQtfbTcZQo8IRj2nlgtdh7CnEMGtgDVwoxSrmEmRT";
        let key = read_key(&format!("{line} root@edge-1\n")).expect("a key");
        assert_eq!(key.to_string(), line);
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("key.pub");
        std::fs::write(&file, line).expect("a file");
        assert_eq!(read_key(file.to_str().expect("text")).expect("a key"), key);
        for bad in ["/no/such/file", "ssh-rsa AAAA", "ssh-ed25519 A"] {
            let error = read_key(bad).expect_err(bad);
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }
}

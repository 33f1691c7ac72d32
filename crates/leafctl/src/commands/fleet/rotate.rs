use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;
use leaf_bus::identity::fleet::Role;
use leaf_core::id::{Caller, LeafName};

use super::revoke::revoke;
use super::shared::{host_key, invalid, open_to_write, print_given, push_change};
use crate::error::Error;
use crate::global::Global;
use crate::output::Output;

/// Give a leaf, a person or the hub agent a new key.
///
/// The key before stays valid until `fleet revoke NAME --former`, which is given when the new one is in use.
#[derive(Debug, Args)]
pub(super) struct Rotate {
    /// The name of the leaf or person; `hub` for the hub agent, which gets a new certificate of the hub's server as well.
    name: String,
    /// Revoke the key before at once: it is in wrong hands, or nobody uses it.
    #[arg(long)]
    at_once: bool,
    /// With `hub`: make a new key of the witness as well, which each leaf has to be told. Without this flag it is made only where there is
    /// none.
    #[arg(long)]
    witness: bool,
    /// The new SSH host key of a leaf, if it has another one: a file, or its line.
    #[arg(long, value_name = "FILE|KEY")]
    host_key: Option<String>,
    /// How long the new credentials live, in days. Without this flag: 400, for a person 30.
    #[arg(long)]
    days: Option<u32>,
    /// The flake of a leaf, whose secrets/NAME-hub.creds.age is replaced. Without this flag: the current directory.
    #[arg(long, value_name = "DIR", default_value = ".")]
    flake: PathBuf,
    /// Where the files of a person are written. Without this flag: the current directory.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

impl Rotate {
    pub(super) async fn run(self, dir: &Path, global: &Global, output: Output) -> Result<(), Error> {
        let mut directory = open_to_write(dir)?;
        let users = directory.users_named(&self.name)?;
        let now = Timestamp::now();
        let role = users.first().map_or(Role::Leaf, |user| user.role);
        let days = self.days.unwrap_or(if role == Role::Person { 30 } else { 400 });
        let is_hub = !matches!(role, Role::Leaf | Role::Person);
        if self.witness && !is_hub {
            return Err(Error::Usage("--witness is for `fleet rotate hub`".to_owned()));
        }
        let given = match role {
            Role::Leaf => {
                let key = self.host_key.as_deref().map(host_key).transpose()?;
                let leaf = LeafName::new(&self.name).map_err(invalid)?;
                vec![directory.rotate_leaf(&leaf, key.as_ref(), days, &self.flake, now)?]
            }
            Role::Person => {
                let person = Caller::new(&self.name).map_err(invalid)?;
                vec![directory.rotate_person(&person, days, &self.out, now)?]
            }
            Role::AgentInFleet | Role::AgentInLinks | Role::Push => {
                let given = directory.new_agents(days, now)?;
                if !directory.renew_certificate(now)? {
                    output.note("the certificate of the hub's server stays: tls/ca.key is not here");
                }
                if self.witness || directory.witness()?.is_none() {
                    let key = directory.new_witness()?;
                    output.note(&format!(
                        "a new key of the witness is in hub/witness.key. The hub's leaf-hub.toml names it (witness_key = \
                         \"{}/witness.key\", above [nats]), and each leaf has to be told before it can be moved: \
                         services.cim-leaf.witnesses = [ \"{key}\" ], or the same line as witnesses in its helper.toml",
                        directory.manifest().hub_directory
                    ));
                }
                given
            }
        };
        // Also where the push fails: the files are there.
        print_given(&given, output)?;
        if self.at_once {
            let users = directory.users_named(&self.name)?;
            revoke(&directory, &users, true)?;
            push_change(&mut directory, global, output).await?;
        }
        Ok(())
    }
}

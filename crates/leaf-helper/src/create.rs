//! Making and removing what a container is on disk.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use leaf_core::container::ContainerNetwork;
use leaf_core::host_op::{CONF_DIGEST, ContainerBinding, RunSpec, Secret, conf_marker};
use leaf_core::id::{ContainerName, StorePath};
use leaf_core::spec::{Autostart, ContainerOptions, RestartPolicy, Users};

use crate::Helper;
use crate::error::{Error, Result};
use crate::files::Folder;

/// The credential that tells a container about its leaf.
const BINDING: &str = "leaf.json";
/// The most credentials of one container, and the most bytes of one.
const MAX_CREDENTIALS: usize = 32;
const MAX_CREDENTIAL_BYTES: usize = 64 * 1024;

impl Helper {
    /// Makes a container on disk, or completes it, or sets it anew. What says that it is there comes last.
    pub(crate) fn create(
        &self,
        spec: &RunSpec,
        adopt: bool,
        binding: &ContainerBinding,
        credentials: &BTreeMap<String, Secret>,
    ) -> Result<()> {
        let RunSpec {
            name,
            toplevel,
            network,
            options,
            ..
        } = spec;
        check_toplevel(toplevel)?;
        check_binding(self, name, binding)?;
        check_credentials(credentials)?;
        options.check(name).map_err(Error::Refused)?;
        check_nspawn_can(options)?;
        if adopt {
            return Err(Error::Unsupported(
                "the nspawn runtime takes over nobody's containers: that needs systemd as PID 1".into(),
            ));
        }
        let confs = Folder::make_root(&self.paths.confs, 0o755)?;
        let owned = self.owns(&confs, name)?;
        self.check_network(&confs, name, *network)?;
        let roots = Folder::make_root(&self.paths.roots, 0o700)?;
        if !owned && self.spec(name)?.is_none() && roots.has(name.as_str())? {
            return Err(Error::Refused(format!(
                "{}/{name} is there, and this leaf did not make it",
                self.paths.roots.display()
            )));
        }

        let state = self.state_folder(name)?;
        state.write("spec.json", &json(spec), 0o600)?;
        state.remove_tree("credentials")?;
        let secrets = state.make("credentials", 0o700)?;
        for (credential, secret) in credentials {
            secrets.write(credential, secret.expose().as_bytes(), 0o600)?;
        }
        secrets.write(BINDING, &json(binding), 0o600)?;

        Folder::make_root(&self.paths.gc_roots, 0o755)?
            .make(name.as_str(), 0o755)?
            .link("system", toplevel.as_str())?;
        // Once more, now that it can't be collected.
        check_toplevel(toplevel)?;
        make_root_file_system(&roots, name)?;
        confs.write(&conf_name(name), self.conf(spec).as_bytes(), 0o644)
    }

    /// Removes all that [`create`](Self::create) made; what says that it is there goes last.
    pub(crate) async fn destroy(&self, name: &ContainerName) -> Result<()> {
        let confs = Folder::make_root(&self.paths.confs, 0o755)?;
        let owned = self.owns(&confs, name)?;
        let state = Folder::make_root(&self.paths.state, crate::run::SHOWN_FOLDER)?;
        if !owned && !state.has(name.as_str())? {
            return Ok(());
        }
        let Some(_lock) = self.acquire(name).await? else {
            return Err(Error::Failed("it runs; stop it first".into()));
        };
        self.sweep(name).await?;
        for folder in [&self.paths.gc_roots, &self.paths.roots, &self.paths.run] {
            if let Some(folder) = Folder::open_root(folder)? {
                folder.remove_tree(name.as_str())?;
            }
        }
        state.remove_tree(name.as_str())?;
        confs.remove_file(&conf_name(name))
    }

    /// Returns whether this leaf's `NAME.conf` is there.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is one of somebody else.
    pub(crate) fn owns(&self, confs: &Folder, name: &ContainerName) -> Result<bool> {
        let path = self.paths.conf(name);
        let text = match confs.read(&conf_name(name)) {
            Ok(None) => return Ok(false),
            Ok(Some(text)) => text,
            Err(Error::Refused(why)) => {
                return Err(Error::Refused(format!(
                    "{why}: a container that the system's own configuration declares"
                )));
            }
            Err(e) => return Err(e),
        };
        let marker = conf_marker(&self.leaf);
        if text.lines().any(|line| line == marker) {
            Ok(true)
        } else {
            Err(Error::Refused(format!(
                "{} was not made by leaf {}; choose another name",
                path.display(),
                self.leaf
            )))
        }
    }

    /// `NAME.conf`, by the contract of NixOS's `nixos-containers.nix`.
    fn conf(&self, spec: &RunSpec) -> String {
        let RunSpec {
            toplevel, network, ..
        } = spec;
        format!(
            "{}\n{CONF_DIGEST}{}\n# It is replaced at the next change; destroy the container instead of editing this.\n\
             SYSTEM_PATH={toplevel}\nPRIVATE_NETWORK=1\nHOST_ADDRESS={}\nLOCAL_ADDRESS={}\nPRIVATE_USERS=pick\n\
             AUTO_START=0\n",
            conf_marker(&self.leaf),
            spec.digest(),
            network.host_address,
            network.container_address,
        )
    }

    fn check_network(&self, confs: &Folder, name: &ContainerName, network: ContainerNetwork) -> Result<()> {
        let ContainerNetwork {
            host_address,
            container_address,
            ..
        } = network;
        self.check_address(host_address)?;
        self.check_address(container_address)?;
        if host_address == container_address {
            return Err(Error::Refused(format!(
                "{host_address} can't be both ends of a link"
            )));
        }
        let unreadable = || Error::io(format!("read {}", confs.path().display()));
        for entry in std::fs::read_dir(confs.path()).map_err(unreadable())? {
            let file = entry.map_err(unreadable())?.file_name();
            let Some(other) = file
                .to_str()
                .filter(|f| f.ends_with(".conf") && *f != conf_name(name))
            else {
                continue;
            };
            // A conf that is a link is NixOS's; its addresses count all the same.
            let text = std::fs::read_to_string(confs.path().join(other)).unwrap_or_default();
            for address in addresses(&text) {
                if address == host_address || address == container_address {
                    return Err(Error::Refused(format!(
                        "{address} belongs to the container of {other}"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Refuses what this runtime can't do.
fn check_nspawn_can(options: &ContainerOptions) -> Result<()> {
    let lacking = [
        ("limits", !options.limits.is_empty()),
        ("restart", options.restart != RestartPolicy::default()),
        ("autostart", options.autostart != Autostart::default()),
        ("after", !options.after.is_empty()),
        ("binds", !options.binds.is_empty()),
        ("secrets", !options.secrets.is_empty()),
        ("users", options.users != Users::default()),
    ];
    match lacking.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(Error::Unsupported(format!(
            "{field}: the nspawn runtime, for hosts where systemd is not PID 1, can't do that"
        ))),
        None => Ok(()),
    }
}

fn conf_name(name: &ContainerName) -> String {
    format!("{name}.conf")
}

/// The addresses that a `NAME.conf` names.
fn addresses(conf: &str) -> impl Iterator<Item = Ipv4Addr> {
    conf.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        let value = value.trim_matches(['"', '\'']);
        matches!(key, "HOST_ADDRESS" | "LOCAL_ADDRESS")
            .then(|| value.split('/').next()?.parse().ok())
            .flatten()
    })
}

/// Checks that a system is in the store, with an `init` that can be run.
pub(crate) fn check_toplevel(toplevel: &StorePath) -> Result<()> {
    let refuse = |why: String| Error::Refused(format!("{toplevel} can't be run: {why}"));
    let store = Path::new("/nix/store");
    let stat =
        std::fs::symlink_metadata(toplevel.as_str()).map_err(|e| refuse(format!("it is not there ({e})")))?;
    if !stat.is_dir() {
        return Err(refuse("it is not a folder".into()));
    }
    let init = Path::new(toplevel.as_str()).join("init");
    let real = std::fs::canonicalize(&init).map_err(|e| refuse(format!("it has no init ({e})")))?;
    // `/nix/store` itself may be reached by a link on the host, not in a container.
    let inside = std::fs::canonicalize(store).is_ok_and(|store| real.starts_with(store));
    if !inside {
        return Err(refuse(format!(
            "its init leads out of the store, to {}",
            real.display()
        )));
    }
    let stat = std::fs::metadata(&real).map_err(|e| refuse(format!("its init can't be looked at ({e})")))?;
    if !stat.is_file() {
        return Err(refuse("its init is not a file".into()));
    }
    if stat.permissions().mode() & 0o111 == 0 {
        return Err(refuse("its init is not executable".into()));
    }
    Ok(())
}

fn check_binding(helper: &Helper, name: &ContainerName, binding: &ContainerBinding) -> Result<()> {
    let sound = ContainerBinding::new(&helper.leaf, name, &binding.nats_url);
    if *binding != sound {
        return Err(Error::Refused(format!(
            "what the container is to be told of its leaf is not of container {name} on leaf {}",
            helper.leaf
        )));
    }
    Ok(())
}

fn check_credentials(credentials: &BTreeMap<String, Secret>) -> Result<()> {
    if credentials.len() > MAX_CREDENTIALS {
        return Err(Error::Refused(format!(
            "{} credentials are too many, at most {MAX_CREDENTIALS} are allowed",
            credentials.len()
        )));
    }
    for (name, secret) in credentials {
        let plain = name.len() <= 64
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
            && name != BINDING;
        if !plain {
            return Err(Error::Refused(format!(
                "{name:?} can't be the name of a credential"
            )));
        }
        if secret.expose().len() > MAX_CREDENTIAL_BYTES {
            return Err(Error::Refused(format!(
                "the credential {name} has more than {MAX_CREDENTIAL_BYTES} bytes"
            )));
        }
    }
    Ok(())
}

/// Makes what the start script of NixOS's containers makes, so that systemd-nspawn takes it for a system.
fn make_root_file_system(roots: &Folder, name: &ContainerName) -> Result<()> {
    let root = roots.make_if_missing(name.as_str(), 0o755)?;
    let etc = root.make_if_missing("etc", 0o755)?;
    etc.touch("os-release", 0o644)?;
    etc.touch("machine-id", 0o644)?;
    root.make_if_missing("var", 0o755)?
        .make_if_missing("lib", 0o755)?;
    root.make_if_missing("usr", 0o755)?;
    root.make_if_missing("root", 0o700)?;
    let nix = root.make_if_missing("nix", 0o755)?;
    nix.make_if_missing("store", 0o755)?;
    nix.make_if_missing("var", 0o755)?.make_if_missing("nix", 0o755)?;
    Ok(())
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("these types have text keys and no failing parts")
}

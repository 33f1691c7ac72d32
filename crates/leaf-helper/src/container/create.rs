//! Creates and removes a container on the host's disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::{IFlags, Mode, OFlags};

use leaf_core::host_op::{ContainerBinding, RunSpec, Secret};
use leaf_core::id::{ContainerName, StorePath};
use leaf_core::runtime::Runtime;
use leaf_core::spec::{ContainerOptions, Users, check_credential};

use crate::Helper;
use crate::container::conf::conf_name;
use crate::container::owner::Owner;
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::lock;
use crate::systemd::payload::UnitCgroup;

/// The directory of the containers' profiles on NixOS.
const PROFILES: &str = "/nix/var/nix/profiles/per-container";
/// The first version of systemd whose systemd-nspawn keeps the supervisor out of a container's cgroup that existed
/// before it was started.
const LIMITS_SINCE: u32 = 254;

/// The credential with a container's binding.
const BINDING: &str = "leaf.json";
/// The maximum number of a container's credentials, and the maximum size of one in bytes.
const MAX_CREDENTIALS: usize = 32;
const MAX_CREDENTIAL_BYTES: usize = 64 * 1024;

impl Helper {
    /// Creates, completes or updates a container on disk. The file that marks it as existing is written last. Returns whether the
    /// container runs and sees its credentials at its next start only.
    pub(crate) async fn create(
        &self,
        spec: &RunSpec,
        adopt: bool,
        binding: &ContainerBinding,
        credentials: &BTreeMap<String, Secret>,
    ) -> Result<bool> {
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
        self.check_can(options, adopt).await?;
        self.check_users(spec, adopt)?;
        self.check_inputs(options)?;
        self.check_openings(spec).await?;
        let _lock = self.lock_contract().await?;
        let confs = Directory::make_root(&self.paths.confs, 0o755)?;
        let owner = self.owner(&confs, name)?;
        self.check_network(&confs, name, *network)?;
        let roots = Directory::make_root(&self.paths.roots, 0o700)?;
        match owner {
            Owner::None if self.spec(name)?.is_none() && roots.has(name.as_str())? => {
                return Err(Error::Refused(format!(
                    "{}/{name} exists, and was not made by this leaf",
                    self.paths.roots.display()
                )));
            }
            Owner::None | Owner::Leaf => {}
            Owner::Foreign(foreign) if adopt => self.take_over(&confs, name, foreign).await?,
            Owner::Foreign(foreign) => return Err(foreign.refused(self, name)),
        }

        let state = self.state_directory(name)?;
        state.write("spec.json", &json(spec), 0o600)?;
        let mut all: BTreeMap<_, _> = credentials
            .iter()
            .map(|(credential, secret)| (credential.clone(), secret.expose().as_bytes().to_vec()))
            .collect();
        all.insert(BINDING.to_owned(), json(binding));
        let at_next_start = self.set_credentials(name, &all).await?;
        self.keep_record()?;

        for directory in self.held_by() {
            Directory::make_root(directory, 0o755)?
                .make(name.as_str(), 0o755)?
                .link("system", toplevel.as_str())?;
        }
        // Checked again, now that it can't be garbage-collected.
        check_toplevel(toplevel)?;
        make_root_file_system(&roots, name)?;
        if self.settings.runtime == Runtime::Systemd {
            self.keep_unit(spec).await?;
        }
        confs.write(&conf_name(name), self.conf(spec).as_bytes(), 0o644)?;
        self.set_running(spec).await?;
        Ok(at_next_start)
    }

    /// Applies the parts of the spec that take effect at once to a running container.
    async fn set_running(&self, spec: &RunSpec) -> Result<()> {
        self.renew(&spec.name).await?;
        if self.settings.runtime == Runtime::Systemd {
            let cgroup = UnitCgroup::of(&spec.name)?;
            if cgroup.payload().exists() {
                let root = self.paths.roots.join(spec.name.as_str());
                cgroup.set_limits(&spec.options.limits, &root)?;
            }
        }
        Ok(())
    }

    /// Returns the directories of links that keep a container's system from being garbage-collected: its GC roots and,
    /// with systemd, its profile, where the programs of NixOS look for it.
    fn held_by(&self) -> impl Iterator<Item = &Path> {
        let profiles = (self.settings.runtime == Runtime::Systemd).then_some(Path::new(PROFILES));
        std::iter::once(self.paths.gc_roots.as_path()).chain(profiles)
    }

    /// Removes everything that [`create`](Self::create) made; the file that marks it as existing is removed last.
    pub(crate) async fn destroy(&self, name: &ContainerName) -> Result<()> {
        let _contract = self.lock_contract().await?;
        let confs = Directory::make_root(&self.paths.confs, 0o755)?;
        let owned = self.owns(&confs, name)?;
        let state = self.state_directories()?;
        if !owned && !state.has(name.as_str())? {
            return Ok(());
        }
        let runs = || Error::Failed("it is running; stop it first".into());
        let _lock = match self.settings.runtime {
            Runtime::Systemd => {
                if !self.remove_unit(name).await? {
                    return Err(runs());
                }
                self.release_inputs(name)?;
                self.sweep_common(name).await?;
                None
            }
            Runtime::Nspawn => {
                let lock = self.acquire(name).await?.ok_or_else(runs)?;
                self.sweep(name).await?;
                Some(lock)
            }
        };
        if let Some(roots) = Directory::open_root(&self.paths.roots)? {
            make_removable(&roots, name)?;
        }
        let mut directories = vec![state];
        for directory in self.held_by().chain([&*self.paths.roots, &self.paths.run]) {
            directories.extend(Directory::open_root(directory)?);
        }
        // The state directory last: a repeated destroy finds what is left by it.
        directories.reverse();
        directories
            .iter()
            .try_for_each(|directory| directory.remove_tree(name.as_str()))?;
        directories.iter().try_for_each(Directory::sync)?;
        // Only after the rest is removed from the disk, so that a repeated destroy removes what is left.
        confs.remove_file(&conf_name(name))?;
        confs.sync()
    }

    /// Takes the lock that the programs of NixOS hold while they create or remove a container.
    pub(crate) async fn lock_contract(&self) -> Result<Option<File>> {
        if self.settings.runtime == Runtime::Nspawn {
            return Ok(None);
        }
        let directory = Directory::make_root("/run/lock".as_ref(), 0o755)?;
        lock::hold(&directory, "nixos-container").await.map(Some)
    }

    /// Refuses what the runtime of this host doesn't support.
    /// Refuses the host's users, unless the settings permit them, or the container has them with this system already: then it was
    /// root's before it was adopted.
    fn check_users(&self, spec: &RunSpec, adopt: bool) -> Result<()> {
        if spec.options.users != Users::Host || adopt || self.settings.host_users {
            return Ok(());
        }
        let has_them = self
            .spec(&spec.name)?
            .is_some_and(|before| before.options.users == Users::Host && before.toplevel == spec.toplevel);
        if has_them {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "users: container {} would have the host's users, so that its root is the host's root, and this leaf does not permit \
             that: leave users out, or have root set host_users = true in helper.toml (on NixOS \
             services.cim-leaf.containers.hostUsers)",
            spec.name
        )))
    }

    async fn check_can(&self, options: &ContainerOptions, adopt: bool) -> Result<()> {
        options
            .check_runtime(self.settings.runtime)
            .map_err(Error::Unsupported)?;
        match self.settings.runtime {
            runtime @ Runtime::Nspawn if adopt => Err(Error::Unsupported(runtime.unsupported_text("adopt"))),
            Runtime::Nspawn => Ok(()),
            Runtime::Systemd if options.limits.is_empty() => Ok(()),
            Runtime::Systemd => match self.systemd.version().await? {
                ..LIMITS_SINCE => Err(Error::Unsupported(format!(
                    "limits: they need systemd {LIMITS_SINCE} or later, which keeps a container's supervisor in a cgroup of \
                    its own; update the host, or leave them out"
                ))),
                _ => Ok(()),
            },
        }
    }
}

/// Checks that a system is in the store, with an executable `init`.
pub(crate) fn check_toplevel(toplevel: &StorePath) -> Result<()> {
    check_program(toplevel, "init")
}

/// Checks that a running system can switch to a system.
pub(crate) fn check_switch(toplevel: &StorePath) -> Result<()> {
    check_program(toplevel, "bin/switch-to-configuration").map_err(|e| Error::Unsupported(e.to_string()))
}

fn check_program(toplevel: &StorePath, program: &str) -> Result<()> {
    let refuse = |why: String| Error::Refused(format!("{toplevel} can't be run: {why}"));
    let store = Path::new("/nix/store");
    let stat = std::fs::symlink_metadata(toplevel.as_str())
        .map_err(|e| refuse(format!("it does not exist ({e})")))?;
    if !stat.is_dir() {
        return Err(refuse("it is not a directory".into()));
    }
    let init = Path::new(toplevel.as_str()).join(program);
    let real = std::fs::canonicalize(&init).map_err(|e| refuse(format!("it has no {program} ({e})")))?;
    // On the host, `/nix/store` itself may be a link; in a container it is not.
    let inside = std::fs::canonicalize(store).is_ok_and(|store| real.starts_with(store));
    if !inside {
        return Err(refuse(format!(
            "its {program} is outside the store, at {}",
            real.display()
        )));
    }
    let stat = std::fs::metadata(&real)
        .map_err(|e| refuse(format!("can't read the metadata of its {program} ({e})")))?;
    if !stat.is_file() {
        return Err(refuse(format!("its {program} is not a file")));
    }
    if stat.permissions().mode() & 0o111 == 0 {
        return Err(refuse(format!("its {program} is not executable")));
    }
    Ok(())
}

fn check_binding(helper: &Helper, name: &ContainerName, binding: &ContainerBinding) -> Result<()> {
    if !binding.is_of(&helper.leaf, name) {
        return Err(Error::Refused(format!(
            "the binding is not for container {name} on leaf {}",
            helper.leaf
        )));
    }
    Ok(())
}

pub(crate) fn check_credentials(credentials: &BTreeMap<String, Secret>) -> Result<()> {
    if credentials.len() > MAX_CREDENTIALS {
        return Err(Error::Refused(format!(
            "there are {} credentials, at most {MAX_CREDENTIALS} are allowed",
            credentials.len()
        )));
    }
    for (name, secret) in credentials {
        check_credential(name).map_err(Error::Refused)?;
        if name == BINDING {
            return Err(Error::Refused(format!(
                "the credential name {name:?} is reserved for the helper"
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

/// Makes a root file system removable: NixOS systems make their `/var/empty` immutable if they can.
fn make_removable(roots: &Directory, name: &ContainerName) -> Result<()> {
    let Some(var) = roots
        .open(name.as_str())?
        .and_then(|root| root.open("var").ok().flatten())
    else {
        return Ok(());
    };
    let Some(empty) = var.open("empty").ok().flatten() else {
        return Ok(());
    };
    let fd = rustix::fs::openat(
        empty.as_fd(),
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Error::io(format!("open {}", empty.path().display())))?;
    // Some file systems don't have such flags.
    if let Ok(flags) = rustix::fs::ioctl_getflags(&fd)
        && flags.contains(IFlags::IMMUTABLE)
    {
        rustix::fs::ioctl_setflags(&fd, flags - IFlags::IMMUTABLE)
            .map_err(Error::io(format!("make {} removable", empty.path().display())))?;
    }
    Ok(())
}

/// Makes the files that the start script of NixOS's containers makes, so that systemd-nspawn accepts the tree as a
/// system.
fn make_root_file_system(roots: &Directory, name: &ContainerName) -> Result<()> {
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
    serde_json::to_vec_pretty(value).expect("these types always serialize")
}

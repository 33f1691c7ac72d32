//! NixOS systems of containers and hosts for tests: NixOS's own modules with Debian's programs, without network access
//! and without packages of nixpkgs.
//!
//! They are defined in `crates/testhost/nixos/`; this module builds them in a store of their own, and makes disks of
//! them. All systems built from the same sources are in one directory of the cache ([`Systems`]); Debian's tree, which
//! they are made of, and the store are in another one, which seldom changes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::cache::{PART, build_whole, directory as cache_directory, forget_old, mark_used};
use crate::command::{output, workspace};
use crate::debian::{INIT, SUITE, Tree, UNUSED_MODULES, make_disk};
use crate::files::{digest, hex, key};
use crate::platform::can_run;
use crate::programs::Programs;
use crate::say;

/// Set to the directory of built systems, for tests, which don't build them.
pub const VARIABLE: &str = "CIM_LEAF_NIXOS";

/// Set to the reason if there are no systems.
pub const LACK_VARIABLE: &str = "CIM_LEAF_NIXOS_LACK";

/// Names a tree with nixpkgs' `nixos/` and `lib/`.
pub const TREE_VARIABLE: &str = "NIXPKGS";

/// Changes with what this file does and no text below tells.
const VERSION: &str = "1";

/// The Debian packages with the systems' programs.
const PACKAGES: &str = "\
    systemd systemd-container udev dbus kmod iproute2 nftables iptables procps iputils-ping util-linux util-linux-extra \
    mount login passwd acl attr cpio e2fsprogs less file hostname ncurses-bin gawk bzip2 xz-utils zstd curl rsync strace jq \
    libnss-systemd libnss-myhostname libpam-systemd libpam-modules sudo ca-certificates tzdata polkitd \
    perl libfile-slurp-perl libjson-perl libnet-dbus-perl libconfig-inifiles-perl libxml-twig-perl \
    libcap2-bin uidmap bsdextrautils fdisk whois netcat-openbsd time patch diffutils openresolv dhcpcd-base gzip tar kbd \
    dosfstools nix-bin nix-setup-systemd git openssh-server openssh-client qemu-guest-agent busybox-static";

/// The parts of Debian's tree that are not added to the store.
const NOT_STORED: [&str; 12] = [
    "boot",
    "dev",
    "proc",
    "run",
    "sys",
    "tmp",
    "usr/lib/modules",
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
    "var/cache",
    "var/lib/apt",
];

/// The systems of `nixos/default.nix`.
const SYSTEMS: [&str; 14] = [
    "containers.hello",
    "containers.goodbye",
    "containers.broken",
    "containers.whole",
    "containers.stock",
    "containers.stock-goodbye",
    "containers.stock-faulty",
    "hosts.leaf",
    "hosts.next",
    "hosts.without",
    "hosts.well",
    "hosts.failing",
    "hosts.closed",
    "hosts.crashing",
];

/// The beginning of the names of directories of systems.
const SYSTEMS_PREFIX: &str = "leaf-nixos-";

/// The sizes of the sparse disks, in bytes.
const HOST_DISK_BYTES: u64 = 4 << 30;
const CONTAINERS_DISK_BYTES: u64 = 3 << 30;

/// Returns a tree with nixpkgs' `nixos/` and `lib/`: the one named by [`TREE_VARIABLE`], or `nixpkgs` in the cache.
///
/// # Errors
/// If there is none.
pub fn nixpkgs() -> Result<PathBuf> {
    let told = std::env::var_os(TREE_VARIABLE).filter(|tree| !tree.is_empty());
    let tree = told.map_or_else(|| cache_directory().join("nixpkgs"), PathBuf::from);
    ensure!(
        tree.join("nixos/lib/eval-config.nix").is_file() && tree.join("lib/default.nix").is_file(),
        "{TREE_VARIABLE} names no tree with nixpkgs' lib/ and nixos/, and {} is none",
        cache_directory().join("nixpkgs").display()
    );
    std::path::absolute(&tree).with_context(|| format!("{} has no path", tree.display()))
}

/// Returns the source of the stock program `nixos-container`: nixpkgs' own, or `nixos-container.pl` in the cache.
pub fn nixos_container() -> Option<PathBuf> {
    let tree = nixpkgs().ok()?;
    let own = tree.join("pkgs/by-name/ni/nixos-container/nixos-container.pl");
    [own, cache_directory().join("nixos-container.pl")]
        .into_iter()
        .find(|file| file.is_file())
}

/// Built systems, with the disks of a host (`root.img`, `vmlinuz`, `initrd`) and of the containers (`containers.img`).
#[derive(Debug, Clone)]
pub struct Systems {
    directory: PathBuf,
    /// The store paths, by the names in `nixos/default.nix`.
    paths: BTreeMap<String, String>,
}

impl Systems {
    /// Builds the systems with our programs and this `nats-server`; fast if that was done before.
    ///
    /// # Errors
    /// If there is no nixpkgs tree, or they can't be built; the text says why.
    pub fn build(programs: &Programs, nats_server: &Path) -> Result<Self> {
        can_run()?;
        let nixpkgs = nixpkgs()?;
        let cache = cache_directory();
        let base = base(&cache);
        let sources = Sources {
            nixpkgs,
            nixos_container: nixos_container(),
            checkout: workspace(),
            programs: programs.tree().join("usr/local"),
            nats_server: nats_server.to_owned(),
        };
        let name = base.file_name().unwrap_or_default().to_string_lossy();
        let key = key(&[VERSION, &name, programs.key(), &sources.digest()?]);
        let directory = cache.join(format!("{SYSTEMS_PREFIX}{key}"));
        if !directory.is_dir() {
            forget_old(&cache)?;
            build_whole(&base, build_base).context("can't add Debian's programs to a store")?;
            build_whole(&directory, |part| sources.build(&base, part))
                .context("can't build the NixOS systems")?;
        }
        mark_used(&base)?;
        mark_used(&directory)?;
        Self::of(directory)
    }

    /// Returns the systems named by [`VARIABLE`].
    ///
    /// # Errors
    /// If it names none.
    pub fn here() -> Result<Self> {
        match std::env::var_os(VARIABLE) {
            Some(directory) if !directory.is_empty() => Self::of(directory.into()),
            _ => bail!("{VARIABLE} names no NixOS systems; `cargo xtask test` sets it"),
        }
    }

    fn of(directory: PathBuf) -> Result<Self> {
        let file = directory.join("systems.json");
        let text = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
        let paths = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a list of systems", file.display()))?;
        Ok(Self { directory, paths })
    }

    /// Returns their directory, for [`VARIABLE`].
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the store path of a container's system, by its name in `nixos/default.nix`.
    ///
    /// # Errors
    /// If there is none with this name.
    pub fn container(&self, name: &str) -> Result<&str> {
        self.path(&format!("containers.{name}"))
    }

    /// Returns the store path of a host's system, by its name in `nixos/default.nix`.
    ///
    /// # Errors
    /// If there is none with this name.
    pub fn host(&self, name: &str) -> Result<&str> {
        self.path(&format!("hosts.{name}"))
    }

    /// Returns whether hosts have the stock program `nixos-container`.
    pub fn has_nixos_container(&self) -> bool {
        self.directory.join("has-nixos-container").exists()
    }

    /// Returns the disk with the closures of the containers' systems.
    pub(crate) fn containers_disk(&self) -> PathBuf {
        self.directory.join("containers.img")
    }

    fn path(&self, name: &str) -> Result<&str> {
        let path = self.paths.get(name);
        path.map(String::as_str)
            .with_context(|| format!("NixOS system {name} does not exist"))
    }
}

/// Returns the directory of Debian's programs and the store.
pub(crate) fn base(cache: &Path) -> PathBuf {
    cache.join(format!("programs-{}", key(&[&base_recipe()])))
}

/// Returns everything that determines the content of Debian's tree.
fn base_recipe() -> String {
    [
        VERSION,
        SUITE,
        PACKAGES,
        UNUSED_MODULES,
        INIT,
        &NOT_STORED.join(" "),
    ]
    .join("\n")
}

/// Builds `vmlinuz`, `initrd` and `store/` in a directory, with the store paths of Debian's tree and the kernel in the
/// files `debian` and `kernel`.
fn build_base(directory: &Path) -> Result<()> {
    let tree = Tree::fetch(directory, PACKAGES)?;
    let kernel = tree.kernel()?;
    tree.start_files(&kernel, directory)?;
    say(format_args!("putting its programs into a store"));
    let modules = tree.root.join("usr/lib/modules");
    let add = |of: &Path, file: &str| -> Result<()> {
        let path = output(nix("nix-store", directory).arg("--add").arg(of))?;
        let file = directory.join(file);
        fs::write(&file, path.trim()).with_context(|| format!("can't write {}", file.display()))
    };
    add(&modules, "kernel")?;
    for unwanted in NOT_STORED {
        output(
            Command::new("rm")
                .args(["-rf", "--one-file-system"])
                .arg(tree.root.join(unwanted)),
        )?;
    }
    add(&tree.root, "debian")?;
    tree.remove()
}

/// Returns a program of Nix that uses the store of a base. Builds are offline, with this machine's own tools.
fn nix(program: &str, base: &Path) -> Command {
    let mut command = Command::new(program);
    command.env(
        "NIX_CONFIG",
        format!(
            "store = {}\nsubstituters =\nsandbox = true\nsandbox-fallback = false\n\
             sandbox-paths = /bin /usr /lib /lib64 /etc/alternatives\nbuild-users-group =\nfilter-syscalls = false\n\
             cores = 1\nmax-jobs = 2\nkeep-outputs = true\n",
            base.join("store").display()
        ),
    );
    command
}

/// The sources of systems apart from Debian's tree.
struct Sources {
    nixpkgs: PathBuf,
    nixos_container: Option<PathBuf>,
    checkout: PathBuf,
    /// The directory with `bin/` and `share/`.
    programs: PathBuf,
    nats_server: PathBuf,
}

impl Sources {
    fn expressions(&self) -> PathBuf {
        self.checkout.join("crates/testhost/nixos")
    }

    /// Returns a digest of all sources except the programs.
    fn digest(&self) -> Result<String> {
        let mut hash = Sha256::new();
        let trees = [
            &self.nixpkgs.join("lib"),
            &self.nixpkgs.join("nixos"),
            &self.expressions(),
            &self.checkout.join("nixos-modules"),
            &self.checkout.join("crates/testhost/src/guest"),
        ];
        for tree in trees {
            digest(tree, tree, &mut hash)?;
        }
        for file in [Some(&self.nats_server), self.nixos_container.as_ref()] {
            let bytes = match file {
                Some(file) => fs::read(file).with_context(|| format!("can't read {}", file.display()))?,
                None => Vec::new(),
            };
            hash.update(Sha256::digest(bytes));
        }
        Ok(hex(hash))
    }

    /// Builds all systems, and writes them and their disks into a directory.
    fn build(&self, base: &Path, directory: &Path) -> Result<()> {
        say(format_args!("building NixOS systems"));
        let read = |file: &str| {
            let file = base.join(file);
            fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))
        };
        let (debian, kernel) = (read("debian")?, read("kernel")?);
        let roots = collect_garbage(base, &[("debian", &debian), ("kernel", &kernel)])?;
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        let roots = roots.join(name.trim_start_matches(PART));
        make_directory(&roots)?;
        let mut command = nix("nix-build", base);
        command
            .arg(self.expressions())
            .arg("--out-link")
            .arg(roots.join("system"))
            .args(SYSTEMS.iter().flat_map(|name| ["--attr", name]))
            .env(TREE_VARIABLE, &self.nixpkgs)
            .env("DEBIAN", &debian)
            .env("KERNEL", &kernel)
            .env("CHECKOUT", &self.checkout)
            .env("PROGRAMS", &self.programs)
            .env("NATS_SERVER", &self.nats_server)
            .env(
                "NIXOS_CONTAINER",
                self.nixos_container.as_deref().unwrap_or(Path::new("")),
            );
        let built = output(&mut command)?;
        let paths: BTreeMap<&str, &str> = SYSTEMS.into_iter().zip(built.lines()).collect();
        ensure!(paths.len() == SYSTEMS.len(), "nix-build printed {built:?}");

        say(format_args!("making the disks of NixOS systems"));
        let all: Vec<&str> = paths.values().copied().collect();
        let root = directory.join("root");
        for name in ["dev", "etc", "nix", "proc", "run", "sbin", "sys", "tmp", "var"] {
            make_directory(&root.join(name))?;
        }
        copy_closure(
            base,
            &all,
            &root.join("nix/store"),
            &root.join("nix-path-registration"),
        )?;
        // The init that the initrd continues with, and a replacement of the boot loader.
        let init = format!("{}/init", paths["hosts.leaf"]);
        symlink(init, root.join("sbin/init")).context("can't make /sbin/init")?;
        make_disk(&root, &directory.join("root.img"), HOST_DISK_BYTES)?;
        remove(&root)?;

        let of_containers: Vec<&str> = paths
            .iter()
            .filter(|(name, _)| name.starts_with("containers."))
            .map(|(_, path)| *path)
            .collect();
        copy_closure(
            base,
            &of_containers,
            &root.join("store"),
            &root.join("registration"),
        )?;
        make_disk(&root, &directory.join("containers.img"), CONTAINERS_DISK_BYTES)?;
        remove(&root)?;

        for name in ["vmlinuz", "initrd"] {
            fs::copy(base.join(name), directory.join(name)).with_context(|| format!("can't copy {name}"))?;
        }
        if self.nixos_container.is_some() {
            fs::write(directory.join("has-nixos-container"), "").context("can't write")?;
        }
        let text = serde_json::to_vec_pretty(&paths).context("store paths are text")?;
        fs::write(directory.join("systems.json"), text).context("can't write systems.json")
    }
}

/// Collects the garbage in the store of a base: what only systems were made of that are no longer in the cache.
///
/// Returns the directory of the garbage collector's roots, which has a directory for each directory of systems. `kept` lists
/// other roots, by name.
fn collect_garbage(base: &Path, kept: &[(&str, &str)]) -> Result<PathBuf> {
    let roots = base.join("store/nix/var/nix/gcroots");
    for (name, path) in kept {
        let root = roots.join(name);
        // Another process may make it at the same time.
        match symlink(path, &root) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.with_context(|| format!("can't make {}", root.display()))?,
        }
    }
    let cache = base.parent().expect("a base is in the cache");
    for entry in fs::read_dir(&roots).with_context(|| format!("can't read {}", roots.display()))? {
        let entry = entry.context("a directory can't be read")?;
        let name = entry.file_name();
        let part = format!("{PART}{}", name.to_string_lossy());
        if name.to_string_lossy().starts_with(SYSTEMS_PREFIX)
            && !cache.join(&name).exists()
            && !cache.join(part).exists()
        {
            remove(&entry.path())?;
        }
    }
    output(nix("nix-store", base).arg("--gc"))?;
    Ok(roots)
}

/// Links the closures of these paths into a directory, and writes their registration for `nix-store --load-db`.
fn copy_closure(base: &Path, paths: &[&str], to: &Path, registration: &Path) -> Result<()> {
    let closure = output(
        nix("nix-store", base)
            .args(["--query", "--requisites"])
            .args(paths),
    )?;
    let mut closure: Vec<&str> = closure.lines().collect();
    closure.sort_unstable();
    closure.dedup();
    make_directory(to)?;
    let store = base.join("store");
    let mut link = Command::new("cp");
    link.arg("-al")
        .args(
            closure
                .iter()
                .map(|path| store.join(path.trim_start_matches('/'))),
        )
        .arg(to);
    output(&mut link)?;
    let database = output(nix("nix-store", base).arg("--dump-db").args(&closure))?;
    fs::write(registration, database).with_context(|| format!("can't write {}", registration.display()))
}

fn make_directory(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))
}

fn remove(directory: &Path) -> Result<()> {
    fs::remove_dir_all(directory).with_context(|| format!("can't remove {}", directory.display()))
}

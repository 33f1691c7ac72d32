//! Where images are kept: a directory for each, named by a hash of everything that made it.
//!
//! All checkouts of a person share them. A directory is built under another name and renamed when it is whole, so a build
//! that was interrupted leaves nothing that is taken for an image; one process builds at a time. Whoever starts a machine
//! from a directory marks it as used, and what was used lately is not removed.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::command::{find, output, target};
use crate::nixos::Systems;
use crate::programs::{Programs, hex};
use crate::{freeze, image, nixos, say};

/// Names the directory where images are kept, instead of `cim-leaf/host` in the user's cache directory.
pub const VARIABLE: &str = "CIM_LEAF_HOST_CACHE";

/// Nobody starts a machine from an image any more that was not used for so long; one that runs has its files open.
const FORGOTTEN: Duration = Duration::from_secs(60 * 60);

/// How many directories with our programs are kept, however long ago they were used: those of two versions.
const KEPT: usize = 6;

/// What the names of all directories begin with that are made here.
const KINDS: [&str; 5] = ["disk-", "machine-", "leaf-", "programs-", "part-"];

/// What runs a machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// This machine's processor, by the kernel.
    Kvm,
    /// QEMU itself.
    Emulation,
}

/// An image that is whole: a disk, and a machine that has started from it and stands still.
#[derive(Debug, Clone)]
pub struct Image {
    pub(crate) accelerator: Accelerator,
    /// How many processors the machine has.
    pub(crate) processors: u32,
    /// Has `vmlinuz`, `initrd` and `root.img`.
    pub(crate) root: PathBuf,
    /// Has `disk.qcow2` upon `root.img`, `memory` and `devices`.
    pub(crate) frozen: PathBuf,
}

/// Returns the directory of all images: the one that [`VARIABLE`] names, or `cim-leaf/host` in the user's cache directory
/// (XDG Base Directory Specification), or `target/host` where the user has none.
pub fn directory() -> PathBuf {
    directory_by(|name| std::env::var_os(name)).unwrap_or_else(|| target().join("host"))
}

fn directory_by(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(told) = set(VARIABLE) {
        return Some(std::path::absolute(&told).unwrap_or(told));
    }
    // A relative path is invalid there, and to be ignored.
    let of_user = set("XDG_CACHE_HOME").filter(|cache| cache.is_absolute());
    let cache = of_user.or_else(|| Some(set("HOME")?.join(".cache")))?;
    cache.is_absolute().then(|| cache.join("cim-leaf/host"))
}

impl Image {
    /// Returns the image, if it is here and this machine can run it.
    pub fn here() -> Option<Self> {
        let image = Self::of_here(Accelerator::of_here().processors()).ok()?;
        image.is_whole().then_some(image)
    }

    /// Returns the image; builds it where it is not here yet, with this `nats-server` on it.
    ///
    /// # Errors
    /// Where this machine can't build or run it: the text says what is missing.
    pub fn build(nats_server: &Path) -> Result<Self> {
        can_run()?;
        let image = Self::of_here(Accelerator::of_here().processors())?;
        if image.is_whole() {
            return Ok(image);
        }
        let _lock = lock(&directory())?;
        build_whole(&image.root, |part| image::build(part, nats_server))
            .context("the test host's disk can't be built")?;
        image.frozen()?;
        Ok(image)
    }

    /// Returns the image of a machine with so many processors, whose disk is here.
    ///
    /// # Errors
    /// Where its disk is not here: that is built by [`Image::build`].
    pub(crate) fn with_processors(processors: Option<u32>) -> Result<Self> {
        can_run()?;
        let image = Self::of_here(processors.unwrap_or_else(|| Accelerator::of_here().processors()))?;
        ensure!(
            image.root.is_dir(),
            "the test host's disk is not built yet; `cargo xtask host build` builds it"
        );
        if !image.frozen.is_dir() {
            let _lock = lock(&directory())?;
            image.frozen()?;
        }
        Ok(image)
    }

    /// Returns the image of a NixOS host; starts and freezes it, if that was not done yet.
    pub(crate) fn nixos(systems: &Systems, processors: Option<u32>) -> Result<Self> {
        can_run()?;
        let processors = processors.unwrap_or_else(|| Accelerator::of_here().processors());
        let root = systems.directory().to_owned();
        let name = root.file_name().unwrap_or_default().to_string_lossy();
        let image = Self {
            frozen: directory().join(format!("leaf-{}", Self::frozen_key(&name, processors)?)),
            accelerator: Accelerator::of_here(),
            processors,
            root,
        };
        if !image.frozen.is_dir() {
            let _lock = lock(&directory())?;
            image.frozen()?;
        }
        Ok(image)
    }

    /// Starts a machine from the disk and freezes it, if that was not done yet.
    fn frozen(&self) -> Result<()> {
        build_whole(&self.frozen, |part| freeze::freeze(self, part))
            .context("the test host can't be started and frozen")
    }

    /// Returns the same image with programs on it; makes it where it is not here yet.
    pub(crate) fn with(&self, programs: &Programs) -> Result<Self> {
        let machine = self
            .frozen
            .file_name()
            .expect("an image has a name")
            .to_string_lossy()
            .into_owned();
        let cache = directory();
        let key = key(&[
            &machine,
            programs.key(),
            &programs.script("")?,
            freeze::VERSION_WITH,
        ]);
        let image = Self {
            frozen: cache.join(format!("leaf-{key}")),
            ..self.clone()
        };
        self.mark_used()?;
        if !image.frozen.is_dir() {
            let _lock = lock(&cache)?;
            forget_old(&cache)?;
            build_whole(&image.frozen, |directory| {
                freeze::freeze_with(self, programs, directory)
            })
            .context("the programs can't be put on the test host")?;
        }
        Ok(image)
    }

    /// Marks it as used now, so that no other process removes it.
    pub(crate) fn mark_used(&self) -> Result<()> {
        self.directories().into_iter().try_for_each(mark_used)
    }

    fn of_here(processors: u32) -> Result<Self> {
        let accelerator = Accelerator::of_here();
        let cache = directory();
        let root = key(&[&image::recipe()]);
        let frozen = Self::frozen_key(&root, processors)?;
        Ok(Self {
            accelerator,
            processors,
            root: cache.join(format!("disk-{root}")),
            frozen: cache.join(format!("machine-{frozen}")),
        })
    }

    /// A name for a machine that was started from a disk of this name.
    fn frozen_key(disk: &str, processors: u32) -> Result<String> {
        let qemu = output(Command::new("qemu-system-x86_64").arg("--version"))?;
        let recipe = freeze::recipe(Accelerator::of_here(), processors)?;
        Ok(key(&[disk, &qemu, &recipe]))
    }

    fn is_whole(&self) -> bool {
        self.root.is_dir() && self.frozen.is_dir()
    }

    /// What runs it.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// The directories that it is in: its disk's, and its frozen machine's.
    pub fn directories(&self) -> [&Path; 2] {
        [&self.root, &self.frozen]
    }
}

/// Builds a directory that is not there yet.
pub(crate) fn build_whole(directory: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let name = directory
        .file_name()
        .expect("an image has a name")
        .to_string_lossy();
    let part = directory.with_file_name(format!("part-{name}"));
    // Left by a build that was interrupted: who has the lock is alone.
    if part.exists() {
        fs::remove_dir_all(&part).with_context(|| format!("can't remove {}", part.display()))?;
    }
    fs::create_dir(&part).with_context(|| format!("can't make {}", part.display()))?;
    build(&part).with_context(|| format!("what is there of it is in {}", part.display()))?;
    fs::rename(&part, directory).with_context(|| format!("can't rename {}", part.display()))
}

/// Marks a directory as used now.
///
/// # Errors
/// Where it is not there.
pub(crate) fn mark_used(directory: &Path) -> Result<()> {
    fs::File::open(directory)
        .and_then(|directory| directory.set_modified(SystemTime::now()))
        .with_context(|| format!("can't mark {} as used", directory.display()))
}

/// Removes images of programs that nobody uses any more: each build makes new ones.
pub(crate) fn forget_old(cache: &Path) -> Result<()> {
    let mut of_programs = images(cache)?;
    of_programs.retain(|(directory, _)| kind(directory) == Some("leaf-"));
    of_programs.sort_by_key(|(_, unused)| *unused);
    for (directory, unused) in of_programs.into_iter().skip(KEPT) {
        if unused > FORGOTTEN {
            remove(&directory)?;
        }
    }
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    fs::remove_dir_all(directory).with_context(|| format!("can't remove {}", directory.display()))
}

/// What kind of image a directory is by its name. What a person put beside them, such as a tree of nixpkgs', is none.
fn kind(directory: &Path) -> Option<&'static str> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    KINDS.into_iter().find(|kind| name.starts_with(kind))
}

/// All images, whole or not, and how long ago they were used.
fn images(cache: &Path) -> Result<Vec<(PathBuf, Duration)>> {
    let entries = match fs::read_dir(cache) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("can't read {}", cache.display()))?,
    };
    let mut images = Vec::new();
    for entry in entries {
        let directory = entry.context("a directory can't be read")?.path();
        if directory.is_dir() && kind(&directory).is_some() {
            let used = directory
                .metadata()
                .and_then(|directory| directory.modified())
                .ok();
            let unused = used.and_then(|used| used.elapsed().ok()).unwrap_or_default();
            images.push((directory, unused));
        }
    }
    images.sort_unstable();
    Ok(images)
}

/// Removes the images that this checkout would not use and no other has used for an hour, or all of them, and returns where
/// they were.
///
/// # Errors
/// Where one can't be removed.
pub fn clean(all: bool) -> Result<Vec<PathBuf>> {
    let cache = directory();
    if !cache.is_dir() {
        return Ok(Vec::new());
    }
    let _lock = lock(&cache)?;
    let used = Image::here();
    let mut used = used.iter().flat_map(Image::directories).collect::<Vec<_>>();
    let programs = nixos::base(&cache);
    used.push(&programs);
    let mut removed = Vec::new();
    for (image, unused) in images(&cache)? {
        if all || (!used.contains(&image.as_path()) && unused > FORGOTTEN) {
            remove(&image)?;
            removed.push(image);
        }
    }
    Ok(removed)
}

/// Waits until no other process builds.
pub(crate) fn lock(cache: &Path) -> Result<fs::File> {
    fs::create_dir_all(cache).with_context(|| format!("can't make {}", cache.display()))?;
    let path = cache.join("lock");
    let file = fs::File::create(&path).with_context(|| format!("can't open {}", path.display()))?;
    if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
        say(format_args!("waiting for another process that builds it"));
        file.lock()
            .with_context(|| format!("can't lock {}", path.display()))?;
    }
    Ok(file)
}

/// A name for what is made of these parts.
pub(crate) fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex(hash)
}

/// Checks that test hosts can be here at all.
///
/// # Errors
/// Where they can't: the text says why.
pub fn can_run() -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the test host is built for x86_64 only so far; this machine is {}",
        std::env::consts::ARCH
    );
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the test host is built with debootstrap and chroot, and that needs root; try: sudo \
             --preserve-env=PATH,HOME cargo xtask host build"
        );
    }
    Ok(())
}

impl Accelerator {
    /// How many processors a machine has where nothing else is said. Two emulated ones wait for each other where there are
    /// no more real ones than that, and at times for ever.
    fn processors(self) -> u32 {
        match self {
            Self::Kvm => 2,
            Self::Emulation => 1,
        }
    }

    /// Returns KVM where it really works, which `/dev/kvm` alone does not tell.
    fn of_here() -> Self {
        static OF_HERE: OnceLock<Accelerator> = OnceLock::new();
        *OF_HERE.get_or_init(|| {
            let has = Path::new("/dev/kvm").exists() && find("qemu-system-x86_64").is_some();
            if has && kvm_works() {
                Self::Kvm
            } else {
                Self::Emulation
            }
        })
    }
}

/// Lets QEMU start a machine with KVM whose disk has one sector, which says that it was run.
fn kvm_works() -> bool {
    // mov dx, 0xf4; mov al, 0x10; out dx, al; hlt; and the mark of a sector that can be started.
    let mut sector = [0; 512];
    sector[..7].copy_from_slice(&[0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let Ok(mut disk) = tempfile::NamedTempFile::new() else {
        return false;
    };
    if disk.write_all(&sector).is_err() {
        return false;
    }
    let mut command = Command::new("timeout");
    command
        .args([
            "--kill-after=1",
            "10",
            "qemu-system-x86_64",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-m",
            "64",
        ])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-drive")
        .arg(format!("format=raw,if=ide,file={}", disk.path().display()))
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // The device ends QEMU with twice the value that is written, and one.
    command
        .status()
        .is_ok_and(|status| status.code() == Some(0x10 * 2 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_changes_with_each_part_and_with_where_one_ends() {
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["a", "b"]), key(&["ab", ""]));
        assert_ne!(key(&["a", "b"]), key(&["a", "c"]));
    }

    #[test]
    fn images_are_in_the_cache_directory_of_the_user_and_elsewhere_where_one_says_so() {
        let directory = |variables: &[(&str, &str)]| {
            let found = directory_by(|name| {
                let variable = variables.iter().find(|(set, _)| *set == name);
                variable.map(|(_, value)| OsString::from(value))
            });
            found.map(|directory| directory.display().to_string())
        };
        let home = ("HOME", "/home/a");
        assert_eq!(
            directory(&[home]).as_deref(),
            Some("/home/a/.cache/cim-leaf/host")
        );
        let xdg = ("XDG_CACHE_HOME", "/caches");
        assert_eq!(directory(&[home, xdg]).as_deref(), Some("/caches/cim-leaf/host"));
        assert_eq!(
            directory(&[home, ("XDG_CACHE_HOME", "caches")]).as_deref(),
            Some("/home/a/.cache/cim-leaf/host")
        );
        assert_eq!(
            directory(&[home, xdg, (VARIABLE, "/images")]).as_deref(),
            Some("/images")
        );
        assert_eq!(directory(&[]), None);
        assert_eq!(directory(&[("HOME", "")]), None);
    }

    #[test]
    fn what_was_used_lately_is_kept_and_so_are_the_last_ones_whenever_it_was() {
        let cache = tempfile::tempdir().expect("a temporary directory");
        let old = SystemTime::now() - 2 * FORGOTTEN;
        for number in 0..KEPT + 3 {
            for kind in ["leaf-", "disk-"] {
                let directory = cache.path().join(format!("{kind}{number}"));
                fs::create_dir(&directory).expect("a directory");
                let used = old - Duration::from_secs(u64::try_from(number).expect("a small number"));
                let directory = fs::File::open(directory).expect("a directory");
                directory.set_modified(used).expect("its time");
            }
        }
        fs::create_dir(cache.path().join("nixpkgs")).expect("a directory");
        // The oldest of all is used again.
        mark_used(&cache.path().join(format!("leaf-{}", KEPT + 2))).expect("it is there");
        forget_old(cache.path()).expect("removed");
        let left = |kind: &str| {
            let entries = fs::read_dir(cache.path()).expect("the cache");
            let names = entries.map(|entry| entry.expect("an entry").file_name());
            let mut names: Vec<_> = names
                .filter_map(|name| name.to_string_lossy().strip_prefix(kind).map(str::to_owned))
                .collect();
            names.sort_unstable();
            names
        };
        assert_eq!(left("leaf-"), ["0", "1", "2", "3", "4", "8"]);
        assert_eq!(left("disk-").len(), KEPT + 3);
        assert_eq!(left("nixpkgs").len(), 1);
    }

    #[test]
    fn a_build_that_fails_leaves_no_image_and_the_next_starts_anew() {
        let cache = tempfile::tempdir().expect("a temporary directory");
        let directory = cache.path().join("disk-1");
        build_whole(&directory, |part| {
            fs::write(part.join("half"), "")?;
            bail!("interrupted")
        })
        .expect_err("it was interrupted");
        assert!(!directory.exists());
        build_whole(&directory, |part| {
            assert!(!part.join("half").exists());
            fs::write(part.join("whole"), "").context("a file")
        })
        .expect("it was built");
        assert!(directory.join("whole").exists());
        build_whole(&directory, |_| bail!("it is there already")).expect("nothing is built twice");
    }
}

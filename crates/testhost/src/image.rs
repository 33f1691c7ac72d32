//! Images: a disk, and a frozen machine that was started from it. They are taken from the cache, or made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::cache::{build_whole, directory, forget_old, mark_used, remove_unused};
use crate::command::output;
use crate::files::key;
use crate::machine::Model;
use crate::nixos::{self, Systems};
use crate::platform::{Accelerator, can_run};
use crate::programs::Programs;
use crate::{disk, freeze};

/// A complete image: a disk, and a frozen machine that was started from it.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its directory has `vmlinuz`, `initrd` and `root.img`.
    pub(crate) model: Model,
    /// The directory with `disk.qcow2` (an overlay of `root.img`), `memory` and `devices`.
    pub(crate) frozen: PathBuf,
}

impl Image {
    /// Returns the image, if it exists and this machine can run it.
    pub fn here() -> Option<Self> {
        let image = Self::of_here(Accelerator::of_here().processors()).ok()?;
        image.is_whole().then_some(image)
    }

    /// Returns the image, which is built with this `nats-server` if it does not exist.
    ///
    /// # Errors
    /// If this machine can't build or run it; the text says what is missing.
    pub fn build(nats_server: &Path) -> Result<Self> {
        can_run()?;
        let image = Self::of_here(Accelerator::of_here().processors())?;
        if image.is_whole() {
            return Ok(image);
        }
        build_whole(&image.model.boot, |part| disk::build(part, nats_server))
            .context("can't build the test host's disk")?;
        image.frozen()?;
        Ok(image)
    }

    /// Returns the image of a machine with this number of processors, whose disk exists.
    ///
    /// # Errors
    /// If its disk does not exist, which is built by [`Image::build`].
    pub(crate) fn with_processors(processors: Option<u32>) -> Result<Self> {
        can_run()?;
        let image = Self::of_here(processors.unwrap_or_else(|| Accelerator::of_here().processors()))?;
        ensure!(
            image.model.boot.is_dir(),
            "the test host's disk is not built yet; `cargo xtask host build` builds it"
        );
        image.frozen()?;
        Ok(image)
    }

    /// Returns the image of a NixOS host, which is started and frozen if necessary.
    pub(crate) fn nixos(systems: &Systems, processors: Option<u32>) -> Result<Self> {
        can_run()?;
        let processors = processors.unwrap_or_else(|| Accelerator::of_here().processors());
        let name = systems
            .directory()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let image = Self {
            frozen: directory().join(format!("leaf-{}", Self::frozen_key(&name, processors)?)),
            model: Model {
                accelerator: Accelerator::of_here(),
                processors,
                boot: systems.directory().to_owned(),
            },
        };
        image.frozen()?;
        Ok(image)
    }

    /// Starts a machine from the disk and freezes it, unless that was done before.
    fn frozen(&self) -> Result<()> {
        build_whole(&self.frozen, |part| freeze::freeze(&self.model, part))
            .context("can't start and freeze the test host")
    }

    /// Returns the same image with programs on it, which is made if it does not exist.
    pub(crate) fn with(&self, programs: &Programs) -> Result<Self> {
        let parts = [programs.key(), &programs.script("")?, freeze::VERSION_WITH];
        self.derived(&parts, |part| {
            freeze::freeze_with(&self.model, &self.frozen, programs, part)
        })
        .context("can't install the programs on the test host")
    }

    /// Returns the same image after a script, which is run if the result does not exist.
    pub(crate) fn after(&self, script: &str) -> Result<Self> {
        self.derived(&[script, freeze::VERSION_AFTER], |part| {
            freeze::freeze_after(&self.model, &self.frozen, script, part)
        })
        .context("can't prepare the test host")
    }

    /// Returns the image that is made of this one and `parts`, and makes it if it does not exist.
    fn derived(&self, parts: &[&str], make: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let machine = self
            .frozen
            .file_name()
            .expect("an image has a name")
            .to_string_lossy()
            .into_owned();
        let cache = directory();
        let key = key(&[&[machine.as_str()], parts].concat());
        let image = Self {
            frozen: cache.join(format!("leaf-{key}")),
            ..self.clone()
        };
        let _used = self.mark_used()?;
        if !image.frozen.is_dir() {
            forget_old(&cache)?;
            build_whole(&image.frozen, make)?;
        }
        Ok(image)
    }

    /// Marks it as used now. No other process removes it as long as the result exists.
    pub(crate) fn mark_used(&self) -> Result<[fs::File; 2]> {
        let [root, frozen] = self.directories();
        Ok([mark_used(root)?, mark_used(frozen)?])
    }

    fn of_here(processors: u32) -> Result<Self> {
        let cache = directory();
        let root = key(&[&disk::recipe()]);
        let frozen = Self::frozen_key(&root, processors)?;
        Ok(Self {
            model: Model {
                accelerator: Accelerator::of_here(),
                processors,
                boot: cache.join(format!("disk-{root}")),
            },
            frozen: cache.join(format!("machine-{frozen}")),
        })
    }

    /// Returns the name of a frozen machine that was started from a disk of this name.
    fn frozen_key(disk: &str, processors: u32) -> Result<String> {
        let qemu = output(Command::new("qemu-system-x86_64").arg("--version"))?;
        let recipe = freeze::recipe(Accelerator::of_here(), processors)?;
        Ok(key(&[disk, &qemu, &recipe]))
    }

    fn is_whole(&self) -> bool {
        self.model.boot.is_dir() && self.frozen.is_dir()
    }

    /// Returns the accelerator that runs it.
    pub fn accelerator(&self) -> Accelerator {
        self.model.accelerator
    }

    /// Returns its directories: its disk's and its frozen machine's.
    pub fn directories(&self) -> [&Path; 2] {
        [&self.model.boot, &self.frozen]
    }
}

/// Removes the images that this checkout would not use and no other has used for an hour, or all images, and returns
/// their directories.
///
/// # Errors
/// If one can't be removed.
pub fn clean(all: bool) -> Result<Vec<PathBuf>> {
    let image = Image::here();
    let directories = image.iter().flat_map(Image::directories);
    let mut used: Vec<PathBuf> = directories.map(Path::to_owned).collect();
    used.push(nixos::base(&directory()));
    remove_unused(&used, all)
}

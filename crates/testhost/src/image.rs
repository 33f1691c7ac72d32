//! Images: a disk, and a machine that has started from it and stands still. They are found in the cache, or made.

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

/// An image that is whole: a disk, and a machine that has started from it and stands still.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its directory has `vmlinuz`, `initrd` and `root.img`.
    pub(crate) model: Model,
    /// Has `disk.qcow2` upon `root.img`, `memory` and `devices`.
    pub(crate) frozen: PathBuf,
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
        build_whole(&image.model.boot, |part| disk::build(part, nats_server))
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
            image.model.boot.is_dir(),
            "the test host's disk is not built yet; `cargo xtask host build` builds it"
        );
        image.frozen()?;
        Ok(image)
    }

    /// Returns the image of a NixOS host; starts and freezes it, if that was not done yet.
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

    /// Starts a machine from the disk and freezes it, if that was not done yet.
    fn frozen(&self) -> Result<()> {
        build_whole(&self.frozen, |part| freeze::freeze(&self.model, part))
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
            forget_old(&cache)?;
            build_whole(&image.frozen, |part| {
                freeze::freeze_with(&self.model, &self.frozen, programs, part)
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

    /// A name for a machine that was started from a disk of this name.
    fn frozen_key(disk: &str, processors: u32) -> Result<String> {
        let qemu = output(Command::new("qemu-system-x86_64").arg("--version"))?;
        let recipe = freeze::recipe(Accelerator::of_here(), processors)?;
        Ok(key(&[disk, &qemu, &recipe]))
    }

    fn is_whole(&self) -> bool {
        self.model.boot.is_dir() && self.frozen.is_dir()
    }

    /// What runs it.
    pub fn accelerator(&self) -> Accelerator {
        self.model.accelerator
    }

    /// The directories that it is in: its disk's, and its frozen machine's.
    pub fn directories(&self) -> [&Path; 2] {
        [&self.model.boot, &self.frozen]
    }
}

/// Removes the images that this checkout would not use and no other has used for an hour, or all of them, and returns where
/// they were.
///
/// # Errors
/// Where one can't be removed.
pub fn clean(all: bool) -> Result<Vec<PathBuf>> {
    let image = Image::here();
    let directories = image.iter().flat_map(Image::directories);
    let mut used: Vec<PathBuf> = directories.map(Path::to_owned).collect();
    used.push(nixos::base(&directory()));
    remove_unused(&used, all)
}

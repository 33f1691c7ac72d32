//! What can go wrong before a job is started.

use std::io;
use std::path::PathBuf;

/// Why Nix, or a task for it, can't be used.
#[derive(Debug, thiserror::Error)]
pub enum NixError {
    /// The `nix` program can't be started.
    #[error("the program {program:?} can't be started; is Nix installed?")]
    NoNix {
        /// The program, as it was set.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The program is no `nix`: it prints no version.
    #[error("{program:?} is not a usable nix: --version printed {said:?}")]
    NotNix {
        /// The program, as it was set.
        program: PathBuf,
        /// What it printed.
        said: String,
    },
    /// The `nix` program is too old.
    #[error("nix {found} is too old, at least 2.8 is needed")]
    TooOld {
        /// Its version.
        found: String,
    },
    /// The installable may not be built.
    #[error("{installable:?} can't be built: {why}")]
    Installable {
        /// The installable.
        installable: String,
        /// What is wrong with it.
        why: String,
    },
    /// No template has this name.
    #[error("there is no template {name:?}; this leaf has {known}")]
    Template {
        /// The template's name.
        name: String,
        /// The names of the templates that exist.
        known: String,
    },
}

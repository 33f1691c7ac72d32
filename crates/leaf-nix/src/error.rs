//! Errors before a job is started.

use std::path::PathBuf;

use leaf_host::process::RunError;

/// An error of Nix, or of a task for it.
#[derive(Debug, thiserror::Error)]
pub enum NixError {
    /// The `nix` program can't be run.
    #[error("can't run {program:?}; is Nix installed?")]
    NoNix {
        /// The program, as in the settings.
        program: PathBuf,
        /// The reason.
        source: RunError,
    },
    /// The `nix` program does not tell its version: it doesn't end, or prints too much.
    #[error("can't find the version of {program:?}")]
    Version {
        /// The program, as in the settings.
        program: PathBuf,
        /// The reason.
        source: RunError,
    },
    /// The program does not tell its version, since it fails.
    #[error("{program:?} --version failed: {why}")]
    Fails {
        /// The program, as in the settings.
        program: PathBuf,
        /// The exit status or the signal, and the end of its output.
        why: String,
    },
    /// The program is not `nix`: it prints no version.
    #[error("{program:?} is not nix: --version printed {said:?}")]
    NotNix {
        /// The program, as in the settings.
        program: PathBuf,
        /// Its output.
        said: String,
    },
    /// The `nix` program is too old.
    #[error("nix {found} is too old, at least 2.8 is needed")]
    TooOld {
        /// Its version.
        found: String,
    },
    /// The `nix` program does not tell its settings.
    #[error("{program:?} show-config failed: {why}")]
    Settings {
        /// The program, as in the settings.
        program: PathBuf,
        /// The reason.
        why: String,
    },
    /// Something can't be done with paths of the store.
    #[error("{what}: {why}")]
    Store {
        /// What can't be done.
        what: &'static str,
        /// The reason, as Nix says it.
        why: String,
    },
    /// The installable may not be built.
    #[error("{installable:?} can't be built: {why}")]
    Installable {
        /// The installable.
        installable: String,
        /// The reason.
        why: String,
    },
    /// The files of the installable are in a directory that jobs can't see.
    #[error(
        "{path:?} is below {directory:?}, and jobs can't see files there: put it elsewhere, such as below /srv, where the \
         user leaf-job may read it"
    )]
    Hidden {
        /// The file or directory.
        path: PathBuf,
        /// The directory that jobs can't see.
        directory: PathBuf,
    },
    /// The policy of the leaf refuses the installable.
    #[error("{installable:?} is refused: {why} ({setting})")]
    Policy {
        /// The installable.
        installable: String,
        /// The reason.
        why: String,
        /// The setting, such as `nix.policy.host_paths`.
        setting: String,
    },
    /// No template has this name.
    #[error("template {name:?} does not exist; this leaf has {known}")]
    Template {
        /// The template's name.
        name: String,
        /// The names of the templates that exist.
        known: String,
    },
}

//! Nix on this host: its settings, whether it works, and the orders of its tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use leaf_core::error::chain;
use leaf_core::id::JobId;
use leaf_core::job::{
    BuildTask, CheckTask, DevelopTask, DiffTask, EvalResult, EvalTask, GcTask, Installable, NixPolicy,
    PrintEnvTask, RootsTask, VerifyTask,
};
use leaf_host::process::{self, Bounds, RunError};
use serde::Deserialize;
use tokio::process::Command;

use crate::NixError;
use crate::build;
use crate::check;
use crate::diff;
use crate::eval;
use crate::eval::cache::Cache;
use crate::gc::{self, What};
use crate::installable::{Run, Target, hidden};
use crate::policy;
use crate::print_env;
use crate::source::Source;
use crate::verify;
use crate::version::NixVersion;

/// The variables of leafd's environment that Nix reads. They contain no secrets: tokens belong in `nix.conf`.
pub const ENVIRONMENT: &[&str] = &[
    "NIX_CONF_DIR",
    "NIX_USER_CONF_FILES",
    "NIX_DATA_DIR",
    "NIX_LOG_DIR",
    "NIX_REMOTE",
    "NIX_STATE_DIR",
    "NIX_STORE_DIR",
    "NIX_SSL_CERT_FILE",
    "GIT_SSL_CAINFO",
];

/// The link to the system that runs.
const RUNNING_SYSTEM: &str = "/run/current-system";
/// The host's configuration files.
const ETC: &str = "/etc";

/// The bounds of `nix --version`. Its first run after a boot may read all of the program from a slow disk.
const VERSION_BOUNDS: Bounds = Bounds {
    time: Duration::from_secs(60),
    stdout_bytes: 64 << 10,
    stderr_bytes: 8 << 10,
};

/// The bounds of `nix show-config`.
const SETTINGS_BOUNDS: Bounds = Bounds {
    stdout_bytes: 1 << 20,
    ..VERSION_BOUNDS
};

/// The settings of Nix.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The `nix` program: a path, or a name that is looked up on `PATH`.
    pub nix: PathBuf,
    /// The directory of the templates, each with a `default.nix` in a directory of its name.
    pub templates_dir: PathBuf,
    /// The static `leaf-init`, given to templates as the argument `leafInit`.
    pub leaf_init: PathBuf,
    /// Nix settings, as in `nix.conf`, such as `substituters`.
    pub options: BTreeMap<String, String>,
    /// What callers may build and evaluate.
    pub policy: NixPolicy,
    /// The bound of an evaluation's address space, in MiB.
    pub eval_memory_mib: u64,
    /// The directory of the values of earlier evaluations.
    pub eval_cache: PathBuf,
    /// The directories of the host whose files jobs can't see, as their units hide them.
    pub hidden: Vec<PathBuf>,
}

impl Settings {
    /// Returns settings with `nix` from the `PATH`, and templates and `leaf-init` in leafd's state directory.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            nix: "nix".into(),
            templates_dir: state_dir.join("templates"),
            leaf_init: state_dir.join("leaf-init"),
            options: BTreeMap::new(),
            policy: NixPolicy::default(),
            eval_memory_mib: 4096,
            eval_cache: state_dir.join("eval-cache"),
            hidden: Vec::new(),
        }
    }
}

/// Returns the Nix settings that root needs for building on this host: if no daemon runs and the group of build users
/// is missing (as with Debian's `nix-bin`), root itself builds. Otherwise empty.
#[must_use]
pub fn host_options() -> BTreeMap<String, String> {
    let daemon =
        Path::new("/nix/var/nix/daemon-socket/socket").exists() || std::env::var_os("NIX_REMOTE").is_some();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    if !rustix::process::geteuid().is_root()
        || daemon
        || groups.lines().any(|group| group.starts_with("nixbld:"))
    {
        return BTreeMap::new();
    }
    BTreeMap::from([("build-users-group".to_owned(), String::new())])
}

/// Nix on this host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Nix(pub(crate) Arc<Settings>, Arc<OnceLock<NixVersion>>);

impl Nix {
    /// Returns Nix with these settings; [`check`](Self::check) tests whether it works.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(settings), Arc::default())
    }

    /// Returns the version of the `nix` program.
    ///
    /// # Errors
    /// [`NixError::NoNix`], [`NixError::Version`], [`NixError::Fails`], [`NixError::NotNix`] or [`NixError::TooOld`].
    pub async fn check(&self) -> Result<NixVersion, NixError> {
        let program = &self.0.nix;
        let mut command = Command::new(program);
        command.arg("--version");
        let output = process::run(command, b"", VERSION_BOUNDS)
            .await
            .map_err(|source| {
                let program = program.clone();
                match source {
                    RunError::NotFound { .. } | RunError::Start { .. } => NixError::NoNix { program, source },
                    source => NixError::Version { program, source },
                }
            })?;
        if !output.status.success() {
            return Err(NixError::Fails {
                program: program.clone(),
                why: output.failure().chars().take(300).collect(),
            });
        }
        let said = String::from_utf8_lossy(&output.stdout);
        let version = NixVersion::parse(&said).ok_or_else(|| NixError::NotNix {
            program: program.clone(),
            said: format!("{said}{}", output.stderr).chars().take(300).collect(),
        })?;
        if (version.major, version.minor) < (2, 8) {
            return Err(NixError::TooOld { found: version.text });
        }
        // Another one is used after the next start.
        Ok(self.1.get_or_init(|| version).clone())
    }

    /// Returns the system that it evaluates and builds for, and the further ones that it builds for: `system` and `extra-platforms` of
    /// its settings.
    ///
    /// # Errors
    /// [`NixError::Settings`].
    pub async fn systems(&self) -> Result<(String, BTreeSet<String>), NixError> {
        #[derive(Deserialize)]
        struct Config {
            system: Value<String>,
            #[serde(rename = "extra-platforms")]
            extra_platforms: Value<BTreeSet<String>>,
        }
        #[derive(Deserialize)]
        struct Value<T> {
            value: T,
        }
        let program = &self.0.nix;
        let failed = |why: String| NixError::Settings {
            program: program.clone(),
            why: why.chars().take(300).collect(),
        };
        let mut command = Command::new(program);
        // Its name of all versions: newer ones also have `config show`.
        command.args([
            "show-config",
            "--json",
            "--extra-experimental-features",
            "nix-command",
        ]);
        for (name, value) in &self.0.options {
            command.args(["--option", name, value]);
        }
        let output = process::run(command, b"", SETTINGS_BOUNDS)
            .await
            .map_err(|error| failed(chain(&error)))?;
        if !output.status.success() {
            return Err(failed(output.failure()));
        }
        let config: Config =
            serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
        Ok((config.system.value, config.extra_platforms.value))
    }

    /// Returns the order of a build.
    ///
    /// # Errors
    /// [`NixError::Installable`], [`NixError::Template`] or [`NixError::Hidden`], all the caller's fault.
    pub fn build(&self, task: &BuildTask) -> Result<build::Order, NixError> {
        let installables: Vec<&Installable> = task.all().collect();
        for installable in &installables {
            self.may_see(installable)?;
        }
        let mut runs = Run::all(&installables, &self.0.templates_dir, &self.0.leaf_init)?;
        if task.impure {
            let of_flakes = runs
                .iter_mut()
                .filter(|run| run.flags.iter().all(|flag| flag != "--file"));
            of_flakes.for_each(|run| run.flags.push("--impure".to_owned()));
        }
        let mut order = build::Order::new(self.0.nix.clone(), self.options());
        order.version = self.1.get().map(|version| version.text.clone());
        match installables[..] {
            // As all versions read it.
            [one] if !task.keep_going && !task.impure && !names_outputs(&runs) => {
                order.target = Some(Target::new(one, &self.0.templates_dir, &self.0.leaf_init)?);
            }
            _ => {
                order.task = Some(build::TASK.to_owned());
                order.runs = runs;
                order.keep_going = task.keep_going;
            }
        }
        Ok(order)
    }
}

impl Nix {
    /// Returns the order of an evaluation.
    ///
    /// # Errors
    /// [`NixError::Installable`] or [`NixError::Hidden`], both the caller's fault.
    pub fn eval(&self, task: &EvalTask) -> Result<eval::Order, NixError> {
        self.may_see(&task.installable)?;
        Ok(eval::Order {
            task: eval::TASK.to_owned(),
            nix: self.0.nix.clone(),
            source: source(&task.installable, task.check())?,
            apply: task.apply.clone(),
            options: self.options(),
            impure: task.impure,
            memory_mib: self.0.eval_memory_mib,
            known: self.cache().known(task, &self.options()),
        })
    }

    /// Returns the order of printing a build environment.
    ///
    /// # Errors
    /// [`NixError::Installable`] or [`NixError::Hidden`], both the caller's fault.
    pub fn print_env(&self, task: &PrintEnvTask) -> Result<print_env::Order, NixError> {
        self.may_see(&task.installable)?;
        Ok(print_env::Order {
            task: print_env::TASK.to_owned(),
            nix: self.0.nix.clone(),
            source: source(&task.installable, task.check())?,
            options: self.options(),
            impure: task.impure,
            memory_mib: self.0.eval_memory_mib,
        })
    }

    /// Returns the order of the first stage of a development shell of an installable: printing its build environment.
    ///
    /// # Errors
    /// [`NixError::Installable`] or [`NixError::Hidden`], both the caller's fault.
    pub fn develop(
        &self,
        task: &DevelopTask,
        installable: &Installable,
    ) -> Result<print_env::Order, NixError> {
        self.print_env(&PrintEnvTask {
            installable: installable.clone(),
            impure: task.impure,
            timeout_seconds: task.timeout_seconds,
        })
    }

    /// Returns the order of a second build.
    ///
    /// # Errors
    /// [`NixError::Installable`] or [`NixError::Hidden`], both the caller's fault.
    pub fn check_build(&self, task: &CheckTask) -> Result<check::Order, NixError> {
        self.may_see(&task.installable)?;
        Ok(check::Order {
            task: check::TASK.to_owned(),
            nix: self.0.nix.clone(),
            source: source(&task.installable, task.check())?,
            options: self.options(),
            impure: task.impure,
            memory_mib: self.0.eval_memory_mib,
        })
    }

    /// Returns the order of collecting garbage.
    #[must_use]
    pub fn gc(&self, task: &GcTask) -> gc::Order {
        let given_up_jobs = task.gives_up.len() as u64;
        self.about_garbage(if task.dry_run {
            What::DryRun { given_up_jobs }
        } else {
            What::Collect {
                free_bytes: task.free_bytes,
                given_up_jobs,
            }
        })
    }

    /// Returns the order of finding roots.
    #[must_use]
    pub fn roots(&self, task: &RootsTask) -> gc::Order {
        let path = task.path.as_ref().map(ToString::to_string);
        self.about_garbage(What::Roots { path })
    }

    /// Returns the order of comparing two closures.
    #[must_use]
    pub fn diff(&self, task: &DiffTask) -> diff::Order {
        diff::Order {
            task: diff::TASK.to_owned(),
            nix: self.0.nix.clone(),
            options: self.0.options.clone(),
            from: task.from.clone(),
            to: task.to.clone(),
        }
    }

    /// Returns the order of verifying the running system.
    #[must_use]
    pub fn verify(&self, task: &VerifyTask) -> verify::Order {
        verify::Order {
            task: verify::TASK.to_owned(),
            nix: self.0.nix.clone(),
            options: self.0.options.clone(),
            stated: task.stated.clone(),
            contents: task.contents,
            running: RUNNING_SYSTEM.into(),
            etc: ETC.into(),
        }
    }

    fn about_garbage(&self, what: What) -> gc::Order {
        gc::Order {
            task: gc::TASK.to_owned(),
            nix_store: self.0.nix.with_file_name("nix-store"),
            options: self.0.options.clone(),
            what,
        }
    }

    /// Keeps the value of an evaluation that has succeeded, if it can be found again.
    ///
    /// # Errors
    /// The file can't be written, or an old one not be removed.
    pub fn remember(&self, job: JobId, task: &EvalTask, result: &EvalResult) -> io::Result<()> {
        self.cache().add(job, task, &self.options(), result)
    }

    /// Returns the settings of Nix for every job.
    fn options(&self) -> BTreeMap<String, String> {
        policy::options(&self.0.options, &self.0.policy, &self.0.templates_dir)
    }

    /// Checks that a job may see the files of an installable, and can.
    fn may_see(&self, installable: &Installable) -> Result<(), NixError> {
        let hidden = hidden(installable, &self.0.templates_dir, &self.0.hidden);
        match hidden.or_else(|| policy::leads_out(installable, &self.0.policy)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn cache(&self) -> Cache {
        Cache::new(self.0.eval_cache.clone())
    }
}

/// Returns the source of an installable that was checked before the command was accepted, by a leafd that may have been
/// older, and now again.
fn source(installable: &Installable, checked: Result<(), String>) -> Result<Source, NixError> {
    let source = checked.and_then(|()| {
        Source::of(installable).ok_or_else(|| "it is neither a flake reference nor a file".to_owned())
    });
    source.map_err(|why| NixError::Installable {
        installable: installable.to_string().chars().take(200).collect(),
        why,
    })
}

/// Returns whether outputs are chosen, other than all of a derivation's.
fn names_outputs(runs: &[Run]) -> bool {
    let mut wanted = runs.iter().flat_map(|run| &run.installables);
    wanted.any(|wanted| {
        wanted
            .outputs
            .as_ref()
            .is_some_and(|outputs| !wanted.is_derivation || outputs != "*")
    })
}

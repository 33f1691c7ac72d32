//! A leaf of its own for one test: names, directories, addresses and rules that no other test has.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use leaf_container::Containers;
use leaf_core::command::LogText;
use leaf_core::container::{ContainerNetwork, ObservedRun};
use leaf_core::decide::LogQuery;
use leaf_core::host_op::{ContainerBinding, HostOp, HostOpError, HostOpErrorKind, Secret};
use leaf_core::id::{ContainerName, LeafName, StorePath};
use leaf_helper::{Helper, Settings};
use leaf_host::contract::HostPaths;

pub(crate) const NATS_PORT: u16 = 4222;

/// What the tests need of this machine, or what it lacks.
pub(crate) fn lacking() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".into());
    }
    let programs = [
        ("systemd-nspawn", "--version"),
        ("nft", "--version"),
        ("nix-build", "--version"),
        ("ip", "-V"),
    ];
    if let Some(program) = absent(&programs) {
        return Some(format!("needs {program}"));
    }
    if busybox().is_none() {
        return Some("needs a static busybox".into());
    }
    if leaf_init().is_none() {
        return Some("needs a static leaf-init: name it in CIM_LEAF_STATIC_INIT".into());
    }
    None
}

/// Returns the first of these programs that does not run with its flag.
pub(crate) fn absent(programs: &[(&'static str, &str)]) -> Option<&'static str> {
    let runs = |program: &str, flag: &str| {
        Command::new(program)
            .arg(flag)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    let mut programs = programs.iter();
    let found = programs.find(|(program, flag)| !runs(program, flag));
    found.map(|(program, _)| *program)
}

fn is_static(program: &Path) -> bool {
    // A dynamic program names its loader, near the beginning.
    let head = |bytes: Vec<u8>| bytes[..bytes.len().min(4096)].to_vec();
    std::fs::read(program).is_ok_and(|bytes| !head(bytes).windows(9).any(|w| w == b"ld-linux-"))
}

fn busybox() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    leaf_host::program::find_all_in(&path, "busybox").find(|file| is_static(file))
}

/// The static `leaf-init`: named by `CIM_LEAF_STATIC_INIT`, or beside the helper.
pub(crate) fn leaf_init() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("CIM_LEAF_STATIC_INIT") {
        return Some(named.into());
    }
    let beside = Path::new(env!("CARGO_BIN_EXE_leaf-helper")).with_file_name("leaf-init");
    (beside.is_file() && is_static(&beside)).then_some(beside)
}

/// Builds a system whose init is this shell script (busybox's), with busybox as `$b`.
pub(crate) fn system(script: &str) -> StorePath {
    build(
        script,
        "$b mkdir $out; echo \"#!$b sh\" > $out/init; echo \"b=$b\" >> $out/init; echo \"$script\" >> $out/init; $b chmod +x $out/init",
    )
}

/// Builds a store path by a shell script.
pub(crate) fn store_path(builder: &str) -> StorePath {
    build("", builder)
}

fn build(script: &str, builder: &str) -> StorePath {
    static TOOLS: OnceLock<tempfile::TempDir> = OnceLock::new();
    let tools = TOOLS.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::copy(
            busybox().expect("checked at the start"),
            directory.path().join("busybox"),
        )
        .expect("a copy");
        directory
    });
    let expression = r#"{ tools, script, builder }:
        let b = "${builtins.path { path = /. + tools; name = "tools"; }}/busybox"; in
        derivation { name = "test-system"; system = builtins.currentSystem; builder = b; inherit script b;
                     args = [ "sh" "-ec" builder ]; }"#;
    nix_build(|command| {
        command
            .args(["--option", "sandbox", "false", "-E", expression])
            .args(["--argstr", "script", script, "--argstr", "builder", builder])
            .args(["--argstr", "tools"])
            .arg(tools.path());
    })
}

/// Runs nix-build, without substituters and with these arguments, and returns what it built.
pub(crate) fn nix_build(arguments: impl FnOnce(&mut Command)) -> StorePath {
    let mut command = Command::new("nix-build");
    command
        .arg("--no-out-link")
        .args(["--option", "substituters", ""])
        .args(["--option", "build-users-group", ""]);
    arguments(&mut command);
    let output = command.output().expect("nix-build runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    StorePath::new(String::from_utf8_lossy(&output.stdout).trim()).expect("a store path")
}

/// A shell script that says it is ready and then waits until it is told to halt.
pub(crate) const WAITS: &str =
    "exec /run/leaf/init ready -- $b sh -c 'trap \"exit 0\" 37; while :; do $b sleep 1000 & wait; done'";

/// The paths of a leaf that has all of its files in one directory.
pub(crate) fn paths_in(directory: &Path) -> HostPaths {
    HostPaths {
        secrets: directory.join("secrets"),
        roots: directory.join("roots"),
        confs: directory.join("confs"),
        gc_roots: directory.join("gcroots"),
        state: directory.join("state"),
        run: directory.join("run"),
    }
}

pub(crate) struct Host {
    pub(crate) leaf: LeafName,
    pub(crate) paths: HostPaths,
    pub(crate) helper: Helper,
    pub(crate) containers: Containers,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) settings: Settings,
    block: (u8, u8),
    names: Vec<ContainerName>,
}

impl Host {
    /// A leaf with its network prepared.
    pub(crate) async fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let pid = std::process::id();
        let leaf = LeafName::new(format!("t{pid}x{number}")).expect("a leaf's name");
        let directory = tempfile::Builder::new()
            .prefix("lc")
            .tempdir()
            .expect("a directory");
        let paths = paths_in(directory.path());
        let block = (
            230 + (pid % 10) as u8,
            number.wrapping_add((pid / 10 % 200) as u8),
        );
        let pool = format!("10.{}.0.0/16", block.0).parse().expect("a pool");
        let settings = Settings::find(
            env!("CARGO_BIN_EXE_leaf-helper"),
            leaf_init().expect("checked at the start"),
            pool,
        )
        .expect("the programs are there");
        let host = Self {
            helper: Helper::new(leaf.clone(), paths.clone(), settings.clone()),
            containers: Containers::new(leaf.clone(), paths.clone(), settings.runtime),
            leaf,
            paths,
            directory,
            settings,
            block,
            names: Vec::new(),
        };
        host.helper
            .carry_out(&host.prepare())
            .await
            .expect("the network is prepared");
        host
    }

    pub(crate) fn prepare(&self) -> HostOp {
        HostOp::PrepareNetwork {
            leaf_address: self.address(1),
            nats_port: NATS_PORT,
        }
    }

    pub(crate) fn release(&self) -> HostOp {
        HostOp::ReleaseNetwork {
            leaf_address: self.address(1),
        }
    }

    pub(crate) fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.block.0, self.block.1, last)
    }

    pub(crate) fn address6(&self, last: u8) -> Ipv6Addr {
        let (net, own) = (u16::from_be_bytes([10, self.block.0]), self.block.1.into());
        Ipv6Addr::new(0xfd63, 0x6c66, net, own, 0, 0, 0, last.into())
    }

    /// A leaf with a container that was created, with this system.
    pub(crate) async fn with_container(toplevel: &StorePath) -> (Self, ContainerName) {
        let mut host = Self::new().await;
        let name = host.name();
        host.ok(host.create(&name, toplevel)).await;
        (host, name)
    }

    /// A container's name that nobody else has, and that is ended with the test.
    pub(crate) fn name(&mut self) -> ContainerName {
        let unique = format!(
            "{:x}{}{}",
            std::process::id() & 0xffff,
            self.leaf.as_str().rsplit('x').next().expect("it has an x"),
            self.names.len()
        );
        let name = ContainerName::new(format!("T{unique}")).expect("a container's name");
        self.names.push(name.clone());
        name
    }

    pub(crate) fn network(&self, name: &ContainerName) -> ContainerNetwork {
        let index = self.names.iter().position(|n| n == name).unwrap_or(60) as u8;
        let (host, container) = (10 + 2 * index, 11 + 2 * index);
        ContainerNetwork {
            host_address: self.address(host),
            container_address: self.address(container),
            host_address6: Some(self.address6(host)),
            container_address6: Some(self.address6(container)),
        }
    }

    pub(crate) fn create(&self, name: &ContainerName, toplevel: &StorePath) -> HostOp {
        let url = format!("nats://{}:{NATS_PORT}", self.address(1));
        HostOp::CreateContainer {
            name: name.clone(),
            toplevel: toplevel.clone(),
            network: self.network(name),
            options: Box::default(),
            adopt: false,
            secrets: BTreeMap::new(),
            binding: ContainerBinding::new(&self.leaf, name, &url),
            credentials: BTreeMap::from([("nats.creds".to_owned(), Secret::new("secret text"))]),
        }
    }

    pub(crate) fn start(name: &ContainerName) -> HostOp {
        Self::start_within(name, 30)
    }

    pub(crate) fn start_within(name: &ContainerName, ready_timeout_seconds: u32) -> HostOp {
        HostOp::StartContainer {
            name: name.clone(),
            ready_timeout_seconds,
        }
    }

    pub(crate) fn stop(name: &ContainerName) -> HostOp {
        HostOp::StopContainer {
            name: name.clone(),
            grace_seconds: 20,
        }
    }

    pub(crate) async fn ok(&self, op: HostOp) {
        self.helper.carry_out(&op).await.unwrap_or_else(|e| panic!("{e}"));
    }

    pub(crate) async fn fails(&self, op: HostOp, kind: HostOpErrorKind) -> HostOpError {
        let error = self.helper.carry_out(&op).await.expect_err("it should not work");
        assert_eq!(error.kind, kind, "{error}");
        error
    }

    pub(crate) fn run(&self, name: &ContainerName) -> Option<ObservedRun> {
        // Below systemd it waits for D-Bus.
        tokio::task::block_in_place(|| self.containers.observe_one(name))
            .expect("a look")
            .map(|seen| seen.run)
    }

    /// The last lines of its console.
    pub(crate) fn log(&self, name: &ContainerName, lines: u32) -> LogText {
        let query = LogQuery {
            name: name.clone(),
            lines,
            since: None,
            cursor: None,
        };
        self.containers.logs(&query, 1 << 16).expect("a log")
    }

    pub(crate) fn cgroup(&self, name: &ContainerName) -> PathBuf {
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
        let mount = table
            .lines()
            .find(|line| line.contains(" - cgroup2 "))
            .and_then(|line| line.split(' ').nth(4))
            .expect("cgroup version 2");
        Path::new(mount)
            .join("cim-leaf.slice")
            .join(self.leaf.as_str())
            .join(name.as_str())
    }

    /// What a running container leaves on the host, by a look from outside.
    pub(crate) fn traces(&self, name: &ContainerName) -> Vec<String> {
        let mut traces = Vec::new();
        if self.cgroup(name).exists() {
            traces.push("a cgroup".into());
        }
        if output("ip", &["-o", "link"]).contains(&format!("ve-{name}@")) {
            traces.push("a link".into());
        }
        if output("nft", &["list", "table", "inet", &format!("leaf_{}", self.leaf)])
            .contains(&format!("\"ve-{name}\""))
        {
            traces.push("elements of the rules".into());
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
        if mounts.lines().any(|line| line.contains(&format!("/{name}"))) {
            traces.push("a mount".into());
        }
        if output("ip", &["route"]).contains(&format!("ve-{name}")) {
            traces.push("a route".into());
        }
        traces
    }

    /// What there is of a container on disk.
    pub(crate) fn files(&self, name: &ContainerName) -> Vec<PathBuf> {
        [
            self.paths.conf(name),
            self.paths.roots.join(name.as_str()),
            self.paths.gc_roots.join(name.as_str()),
            self.paths.state.join(name.as_str()),
            self.paths.run.join(name.as_str()),
        ]
        .into_iter()
        .filter(|path| path.symlink_metadata().is_ok())
        .collect()
    }

    /// Ends a test in which this container has left nothing that runs.
    pub(crate) async fn end_without_traces(self, name: &ContainerName) {
        assert_eq!(self.traces(name), Vec::<String>::new());
        self.end().await;
    }

    /// Ends a test in which this container has left nothing on disk.
    pub(crate) async fn end_without_files(self, name: &ContainerName) {
        assert_eq!(self.files(name), Vec::<PathBuf>::new());
        self.end().await;
    }

    /// Ends all that the test began; nothing may stay.
    pub(crate) async fn end(self) {
        self.end_all().await;
        for name in &self.names {
            assert_eq!(self.traces(name), Vec::<String>::new());
        }
    }

    pub(crate) async fn end_all(&self) {
        for name in self.names.clone() {
            // It is refused where a conf is foreign, which is part of some tests.
            let stop = HostOp::StopContainer {
                name: name.clone(),
                grace_seconds: 0,
            };
            let _ = self.helper.carry_out(&stop).await;
            let _ = self.helper.carry_out(&HostOp::DestroyContainer { name }).await;
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A test that failed leaves as little behind as one that did not.
        if std::thread::panicking() {
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(self.end_all()));
        }
        for family in ["inet", "arp"] {
            let _ = Command::new("nft")
                .args(["delete", "table", family, &format!("leaf_{}", self.leaf)])
                .stderr(Stdio::null())
                .status();
        }
        let _ = Command::new("ip")
            .args(["addr", "del", &format!("{}/32", self.address(1)), "dev", "lo"])
            .stderr(Stdio::null())
            .status();
    }
}

pub(crate) fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

//! A machine for one test: this program again, in a network namespace of its own, so that the "host" has the addresses
//! and links that the test gives it, its own forwarding, and nothing of it stays.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use leaf_core::container::{ContainerNetwork, ObservedRun};
use leaf_core::host_op::HostOp;
use leaf_core::id::ContainerName;
use leaf_core::spec::Opening;

use crate::host::{Host, WAITS, absent, output, system};

/// Set for a process that is the machine of one test: the test's name.
pub(crate) const ALONE: &str = "LEAF_HELPER_TEST_MACHINE";

/// What the tests of the network need beside all else, or what is lacking of it.
pub(crate) fn lacking() -> Option<String> {
    if let Some(program) = absent(&[("unshare", "--version"), ("nsenter", "--version")]) {
        return Some(format!("needs {program}"));
    }
    if !probe().is_file() {
        return Some("needs the example probe: cargo build -p leaf-helper --examples".into());
    }
    None
}

/// The example `probe`, which cargo builds with the tests.
fn probe() -> PathBuf {
    let programs = PathBuf::from(env!("CARGO_BIN_EXE_leaf-helper"));
    programs.with_file_name("examples").join("probe")
}

/// Runs a test on a machine of its own.
pub(crate) fn alone(test: &str) {
    let done = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().expect("this program"))
        .env(ALONE, test)
        .stdin(Stdio::null())
        .output()
        .expect("unshare runs");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "on its machine: {}\n{said}", done.status);
}

/// The host, as this process sees it.
pub(crate) struct Machine {
    pub(crate) host: Host,
}

/// The addresses of the host's link to the outside, and those of the one who is there.
pub(crate) const HOST: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];
pub(crate) const OUTSIDE: [&str; 2] = ["192.0.2.2", "2001:db8:2::2"];

/// The host's settings of forwarding.
pub(crate) const FORWARDING: [&str; 2] = [
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv6/conf/all/forwarding",
];

impl Machine {
    /// A host that forwards nothing, with a leaf whose network is prepared.
    pub(crate) async fn new() -> Self {
        ip(&["link", "set", "lo", "up"]);
        for setting in FORWARDING {
            std::fs::write(setting, "0").expect("a setting of this namespace");
        }
        Self {
            host: Host::new().await,
        }
    }

    /// Creates a container with these openings, or sets it anew.
    pub(crate) async fn create(&self, name: &ContainerName, allow: &[Opening]) {
        self.host.ok(self.creation(name, allow)).await;
    }

    /// The operation of that.
    pub(crate) fn creation(&self, name: &ContainerName, allow: &[Opening]) -> HostOp {
        let mut op = self.host.create(name, &system(WAITS));
        if let HostOp::CreateContainer { options, .. } = &mut op {
            options.allow = allow.to_vec();
        }
        op
    }

    /// Creates and starts a container, and returns what is inside.
    pub(crate) async fn start(&mut self, allow: &[Opening]) -> Inside {
        let name = self.host.name();
        self.create(&name, allow).await;
        self.enter(&name).await
    }

    /// Starts a container that is there.
    pub(crate) async fn enter(&self, name: &ContainerName) -> Inside {
        self.host.ok(Host::start(name)).await;
        let Some(ObservedRun::Running { leader_pid, .. }) = self.host.run(name) else {
            panic!("{:?}", self.host.run(name));
        };
        Inside {
            name: name.clone(),
            network: self.host.network(name),
            pid: leader_pid,
        }
    }

    /// The leaf's rules and what they counted.
    pub(crate) fn rules(&self) -> String {
        output(
            "nft",
            &["list", "table", "inet", &format!("leaf_{}", self.host.leaf)],
        )
    }

    /// What the settings of forwarding are.
    pub(crate) fn forwards(&self) -> [String; 2] {
        FORWARDING.map(|setting| {
            std::fs::read_to_string(setting)
                .expect("a setting")
                .trim()
                .to_owned()
        })
    }

    /// Closes or opens the network of the host's containers, as around a flush. Returns whether that worked.
    pub(crate) fn change_network(&self, change: &str) -> bool {
        Command::new(env!("CARGO_BIN_EXE_leaf-helper"))
            .args(["network", change, "--leaves"])
            .arg(self.host.directory.path())
            .status()
            .expect("it runs")
            .success()
    }

    /// Removes the leaf's rules, as a boot or a flush does.
    pub(crate) fn without_rules(&self) {
        for family in ["inet", "arp"] {
            run(Command::new("nft").args(["delete", "table", family, &format!("leaf_{}", self.host.leaf)]));
        }
    }
}

/// The network namespace of a running container, with what root there may do.
#[derive(Debug, Clone)]
pub(crate) struct Inside {
    pub(crate) name: ContainerName,
    pub(crate) network: ContainerNetwork,
    pid: u32,
}

impl Inside {
    /// A command that runs in the container's network as the container's root.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.pid));
        command.args(["--net", "--user", "--"]).arg(program);
        command
    }

    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        let v6 = self.network.container_address6.expect("an address");
        [self.network.container_address.into(), v6.into()]
    }

    pub(crate) fn gateways(&self) -> [IpAddr; 2] {
        let v6 = self.network.host_address6.expect("an address");
        [self.network.host_address.into(), v6.into()]
    }

    /// The answer that a program in the container gets.
    pub(crate) fn ask(&self, protocol: &str, to: IpAddr, port: u16) -> String {
        self.ask_as(protocol, to, port, None)
    }

    /// The same, from this address of the container.
    pub(crate) fn ask_as(&self, protocol: &str, to: IpAddr, port: u16, from: Option<IpAddr>) -> String {
        let mut command = self.command(probe());
        command.args(["ask", protocol, &to.to_string(), &port.to_string()]);
        command.args(from.map(|from| from.to_string()));
        run(&mut command)
    }

    /// Serves on these ports in the container.
    pub(crate) fn serve(&self, name: &str, ports: &[u16]) -> Server {
        Server::start(self.command(probe()), name, ports)
    }

    /// Walks, and returns what answered, a line each.
    pub(crate) fn walk(&self, walk: &serde_json::Value) -> Vec<String> {
        let mut child = self
            .command(probe())
            .arg("walk")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("nsenter runs");
        let mut stdin = child.stdin.take().expect("it is piped");
        stdin.write_all(walk.to_string().as_bytes()).expect("it reads");
        drop(stdin);
        let done = child.wait_with_output().expect("it ends");
        assert!(done.status.success(), "the walk did not come to its end");
        let text = String::from_utf8(done.stdout).expect("a text");
        text.lines().map(str::to_owned).collect()
    }
}

/// A program that answers; it ends when dropped.
pub(crate) struct Server {
    child: Child,
    _out: BufReader<ChildStdout>,
}

impl Server {
    fn start(mut command: Command, name: &str, ports: &[u16]) -> Self {
        command.args(["serve", name]);
        command.args(ports.iter().map(u16::to_string));
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("it says that it serves");
        assert_eq!(line, "serving\n", "{name}");
        Self { child, _out: out }
    }

    /// Serves on the host.
    pub(crate) fn on_host(name: &str, ports: &[u16]) -> Self {
        Self::start(Command::new(probe()), name, ports)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A network namespace beside the host's, on a link to it, with a program in it that answers.
pub(crate) struct Outside {
    server: Server,
}

impl Outside {
    /// The addresses of the outside, and the host's own on that link.
    pub(crate) fn new(name: &str, host: [&str; 2], theirs: [&str; 2], ports: &[u16]) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "--"]).arg(probe());
        let outside = Self {
            server: Server::start(command, name, ports),
        };
        let (near, far) = (format!("{name}0"), format!("{name}1"));
        let pid = outside.server.child.id().to_string();
        ip(&["link", "add", &near, "type", "veth", "peer", "name", &far]);
        ip(&["link", "set", &far, "netns", &pid]);
        ip(&["addr", "add", &format!("{}/24", host[0]), "dev", &near]);
        ip(&["addr", "add", &format!("{}/64", host[1]), "dev", &near, "nodad"]);
        ip(&["link", "set", &near, "up"]);
        outside.ip(&["link", "set", "lo", "up"]);
        outside.ip(&["addr", "add", &format!("{}/24", theirs[0]), "dev", &far]);
        outside.ip(&["addr", "add", &format!("{}/64", theirs[1]), "dev", &far, "nodad"]);
        outside.ip(&["link", "set", &far, "up"]);
        outside.ip(&["route", "add", "default", "via", host[0]]);
        outside.ip(&["-6", "route", "add", "default", "via", host[1]]);
        outside
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.server.child.id()));
        command.args(["--net", "--"]).arg(program);
        command
    }

    fn ip(&self, arguments: &[&str]) {
        run(self.command("ip").args(arguments));
    }

    pub(crate) fn ask(&self, protocol: &str, to: IpAddr, port: u16) -> String {
        run(self
            .command(probe())
            .args(["ask", protocol, &to.to_string(), &port.to_string()]))
    }
}

/// The answer that a program on the host gets.
pub(crate) fn ask_from_host(protocol: &str, to: IpAddr, port: u16) -> String {
    run(Command::new(probe()).args(["ask", protocol, &to.to_string(), &port.to_string()]))
}

pub(crate) fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments));
}

/// Runs a program to its end, which must be a good one, and returns what it says without the line's end.
pub(crate) fn run(command: &mut Command) -> String {
    let done = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {}\n{said}", done.status);
    String::from_utf8_lossy(&done.stdout).trim_end().to_owned()
}

/// Both addresses of a pair of texts.
pub(crate) fn both(addresses: [&str; 2]) -> [IpAddr; 2] {
    addresses.map(|address| address.parse().expect("an address"))
}

/// Waits until two hosts on a new link have found each other.
pub(crate) async fn until_answered(what: &str, mut ask: impl FnMut() -> String) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while ask() == "closed" {
        assert!(Instant::now() < deadline, "no answer within 30 s: {what}");
    }
}

//! The helper as a service: `leaf-helper serve` in a process of its own, called by a user that is not root.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use leaf_core::container::{Exit, ObservedRun};
use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind as Kind};
use leaf_helper::Client;
use serde_json::{Value, json};

use crate::host::{Host, WAITS, system, until};

/// leafd's user here, and a user that has no business with the helper.
const LEAFD: (&str, u32) = ("nobody", 65534);
const STRANGER: u32 = 1;

/// Set for a process that only says something to a socket: the socket's path.
pub(crate) const SPEAK: &str = "LEAF_HELPER_TEST_SPEAK";

/// A helper that serves, with a leaf of its own.
struct Served {
    host: Host,
    helper: Child,
    config: PathBuf,
    socket: PathBuf,
    log: PathBuf,
}

impl Served {
    async fn new() -> Self {
        let host = Host::new().await;
        let at = |name: &str| host.directory.path().join(name);
        // The directory lets others through to the socket; what is in it does not.
        std::fs::set_permissions(host.directory.path(), PermissionsExt::from_mode(0o755)).expect("a mode");
        let (config, socket, log) = (at("helper.toml"), at("helper.sock"), at("helper.log"));
        let text = format!(
            "leaf = \"{}\"\nclient = \"{}\"\nleaf_init = {:?}\naddress_pool = \"{}\"\n[paths]\nroots = {:?}\nconfs = {:?}\n\
             gc_roots = {:?}\nstate = {:?}\nrun = {:?}\n",
            host.leaf,
            LEAFD.0,
            host.settings.leaf_init,
            host.settings.pool,
            host.paths.roots,
            host.paths.confs,
            host.paths.gc_roots,
            host.paths.state,
            host.paths.run,
        );
        std::fs::write(&config, text).expect("a file");
        let helper = start(&config, &socket, &log);
        let served = Self {
            host,
            helper,
            config,
            socket,
            log,
        };
        served.until_it_answers().await;
        served
    }

    async fn until_it_answers(&self) {
        until("the helper answers", || {
            UnixStream::connect(&self.socket).is_ok() || panic_if_gone(&self.log)
        })
        .await;
    }

    /// Has an operation carried out by a process of leafd's user.
    fn asks(&self, op: &HostOp) -> Child {
        speaker(
            LEAFD.1,
            &self.socket,
            &format!("{}\n", serde_json::to_string(op).expect("JSON")),
        )
    }

    async fn ok(&self, op: HostOp) {
        heard(self.asks(&op)).await.unwrap_or_else(|e| panic!("{e}"));
    }

    async fn fails(&self, op: HostOp, kind: Kind) -> HostOpError {
        let error = heard(self.asks(&op)).await.expect_err("it should not work");
        assert_eq!(error.kind, kind, "{error}");
        error
    }

    /// Says something to the socket as leafd's user, and returns what came back until the connection was closed.
    async fn says(&self, bytes: &[u8]) -> Vec<Value> {
        answers(speaker(LEAFD.1, &self.socket, &raw(bytes))).await
    }

    async fn call(&self, method: &str, parameters: Value) -> Value {
        let mut message = json!({ "method": method, "parameters": parameters })
            .to_string()
            .into_bytes();
        message.push(0);
        self.says(&message).await.pop().unwrap_or(Value::Null)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a log")
    }

    async fn end(mut self) {
        self.helper.kill().expect("it runs");
        self.helper.wait().expect("its end");
        self.host.end().await;
    }
}

fn panic_if_gone(log: &Path) -> bool {
    let said = std::fs::read_to_string(log).unwrap_or_default();
    assert!(!said.contains("Error:"), "{said}");
    false
}

fn start(config: &Path, socket: &Path, log: &Path) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .expect("a log");
    Command::new(env!("CARGO_BIN_EXE_leaf-helper"))
        .args(["serve", "--config"])
        .arg(config)
        .arg("--socket")
        .arg(socket)
        // Whatever is set here changes nothing of what is logged.
        .env("RUST_LOG", "trace")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("it starts")
}

/// Starts a process of another user that says something to a socket: this program again, from a copy that all may run.
fn speaker(user: u32, socket: &Path, text: &str) -> Child {
    let mut child = Command::new(copy_of_this_program())
        .env_clear()
        .env(SPEAK, socket)
        .current_dir("/")
        .uid(user)
        .gid(user)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut input = child.stdin.take().expect("it was piped");
    let text = text.to_owned();
    // It may read slowly, or end before it has read all.
    std::thread::spawn(move || input.write_all(text.as_bytes()));
    child
}

fn copy_of_this_program() -> &'static Path {
    static COPY: std::sync::OnceLock<(tempfile::TempDir, PathBuf)> = std::sync::OnceLock::new();
    let (_, program) = COPY.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("a mode");
        let program = directory.path().join("speaker");
        std::fs::copy(std::env::current_exe().expect("itself"), &program).expect("a copy");
        (directory, program)
    });
    program
}

/// What [`speaker`] is to send as it is.
fn raw(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("raw {hex}\n")
}

/// The process that [`speaker`] starts: carries out an operation per line, or sends what it is told, byte by byte.
pub(crate) fn speak(socket: &Path) {
    let runtime = crate::runtime();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line");
        let answer = match line.strip_prefix("raw ") {
            Some(hex) => {
                let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
                let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
                exchange(socket, &bytes)
            }
            None => {
                let op: HostOp = serde_json::from_str(&line).expect("an operation");
                let outcome = runtime.block_on(Client::new(socket).carry_out(&op));
                serde_json::to_string(&outcome).expect("JSON")
            }
        };
        writeln!(std::io::stdout(), "{answer}").expect("somebody reads");
    }
}

fn exchange(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(e) => return format!("can't connect: {e}"),
    };
    // It may be closed before all is written.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let messages: Vec<Value> = answer
        .split(|byte| *byte == 0)
        .filter(|message| !message.is_empty())
        .map(|message| serde_json::from_slice(message).expect("JSON"))
        .collect();
    Value::from(messages).to_string()
}

async fn output(child: Child) -> String {
    tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        let output = child.stdout.expect("it was piped");
        BufReader::new(output).read_to_string(&mut line).expect("text");
        line
    })
    .await
    .expect("it ends")
}

async fn heard(child: Child) -> Result<(), HostOpError> {
    let said = output(child).await;
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said:?}"))
}

async fn answers(child: Child) -> Vec<Value> {
    let said = output(child).await;
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said:?}"))
}

pub(crate) async fn a_container_lives_its_life_by_calls_of_a_user_who_is_not_root() {
    let mut served = Served::new().await;
    let name = served.host.name();
    served.ok(served.host.prepare()).await;
    served.ok(served.host.create(&name, &system(WAITS))).await;
    served.ok(Host::start(&name)).await;
    assert!(matches!(
        served.host.run(&name),
        Some(ObservedRun::Running { .. })
    ));
    served.ok(Host::stop(&name)).await;
    assert_eq!(
        served.host.run(&name),
        Some(ObservedRun::Exited(Exit::Code { code: 0 }))
    );
    served.ok(HostOp::DestroyContainer { name: name.clone() }).await;
    assert_eq!(served.host.files(&name), Vec::<PathBuf>::new());
    let said = served.said();
    assert!(said.contains("create container"), "{said}");
    assert!(!said.contains("secret text"), "a secret is in the log: {said}");
    served.end().await;
}

pub(crate) async fn the_service_describes_its_operations() {
    let served = Served::new().await;
    let info = served.call("org.varlink.service.GetInfo", json!({})).await;
    assert_eq!(
        info["parameters"]["interfaces"],
        json!(["cim.leaf.Helper", "org.varlink.service"])
    );
    let about = json!({ "interface": "cim.leaf.Helper" });
    let described = served
        .call("org.varlink.service.GetInterfaceDescription", about)
        .await;
    let text = described["parameters"]["description"].as_str().expect("a text");
    for method in ["PrepareNetwork", "CreateContainer", "StopJob"] {
        assert!(text.contains(&format!("\nmethod {method}(")), "{text}");
    }
    let about = json!({ "interface": "org.example.none" });
    let unknown = served
        .call("org.varlink.service.GetInterfaceDescription", about)
        .await;
    assert_eq!(unknown["error"], "org.varlink.service.InterfaceNotFound");
    served.end().await;
}

pub(crate) async fn nobody_but_leafd_and_root_may_call() {
    let served = Served::new().await;
    let prepare = served.host.prepare();
    let line = format!("{}\n", serde_json::to_string(&prepare).expect("JSON"));
    // The socket's mode keeps strangers out …
    let error = heard(speaker(STRANGER, &served.socket, &line))
        .await
        .expect_err("a stranger");
    assert_eq!(error.kind, Kind::Unsupported, "{error}");
    assert!(error.reason.contains("may not open"), "{error}");
    // … and where that was changed, the helper itself.
    std::fs::set_permissions(&served.socket, PermissionsExt::from_mode(0o666)).expect("a mode");
    let error = heard(speaker(STRANGER, &served.socket, &line))
        .await
        .expect_err("a stranger");
    assert_eq!(error.kind, Kind::Refused, "{error}");
    let told = answers(speaker(STRANGER, &served.socket, &raw(b"{\"method\":\"x\"}\0"))).await;
    assert_eq!(told, [json!({"error": "org.varlink.service.PermissionDenied"})]);
    heard(speaker(0, &served.socket, &line)).await.expect("root may");
    served.end().await;
}

pub(crate) async fn what_is_no_call_is_told_and_others_are_served_on() {
    let served = Served::new().await;
    // One that says half a call, and stays, holds up nobody.
    let mut slow = UnixStream::connect(&served.socket).expect("root may");
    slow.write_all(b"{\"method\":\"cim.leaf.Helper.Stop")
        .expect("it takes it");
    for (bytes, error) in [
        (&b"no JSON\0"[..], "org.varlink.service.InvalidParameter"),
        (b"[]\0", "org.varlink.service.InvalidParameter"),
        (b"{\"method\":5}\0", "org.varlink.service.InvalidParameter"),
        (
            b"{\"method\":\"cim.leaf.Helper.StopContainer\",\"parameters\":[]}\0",
            "org.varlink.service.InvalidParameter",
        ),
        (b"\xff\xfe\0", "org.varlink.service.InvalidParameter"),
        (
            b"{\"method\":\"cim.leaf.Helper.Run\",\"parameters\":{}}\0",
            "org.varlink.service.MethodNotFound",
        ),
        (
            b"{\"method\":\"cim.leaf.Helper.StopContainer\",\"more\":true}\0",
            "org.varlink.service.InvalidParameter",
        ),
        (
            b"{\"method\":\"cim.leaf.Helper.StopContainer\"}\0",
            "cim.leaf.Helper.Refused",
        ),
    ] {
        let told = served.says(bytes).await;
        assert_eq!(told.len(), 1, "{}: {told:?}", String::from_utf8_lossy(bytes));
        assert_eq!(told[0]["error"], error, "{}", String::from_utf8_lossy(bytes));
    }
    // A message without an end is not read to its end.
    let mut endless = br#"{"method":"cim.leaf.Helper.StopContainer","parameters":{"name":""#.to_vec();
    endless.resize(6 << 20, b'a');
    let told = served.says(&endless).await;
    assert!(
        told.is_empty() || told[0]["parameters"]["parameter"] == "it is too long",
        "{told:?}"
    );
    // The same in one that would end.
    endless.extend_from_slice(b"\",\"grace_seconds\":1}}\0");
    let told = served.says(&endless).await;
    assert!(
        told.is_empty() || told[0]["error"] == "org.varlink.service.InvalidParameter",
        "{told:?}"
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.helper.id())).expect("it runs");
    let peak = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .expect("a peak");
    assert!(peak < 64 * 1024, "{peak} KiB");
    let many: Vec<u8> = (0..3)
        .flat_map(|_| b"{\"method\":\"org.varlink.service.GetInfo\"}\0".to_vec())
        .collect();
    assert_eq!(served.says(&many).await.len(), 3, "calls one after the other");
    served.ok(served.host.prepare()).await;
    drop(slow);
    served.end().await;
}

pub(crate) async fn what_leafd_may_not_do_is_refused_whatever_the_operation() {
    let mut served = Served::new().await;
    let (name, system) = (served.host.name(), system(WAITS));
    served.ok(served.host.create(&name, &system)).await;
    let create = |change: &dyn Fn(&mut Value)| {
        let call = serde_json::to_value(served.host.create(&name, &system)).expect("JSON");
        let mut op = call["parameters"].clone();
        change(&mut op);
        op
    };
    let set = |at: &'static str, value: Value| {
        create(&move |op| *op.pointer_mut(at).expect("it is there") = value.clone())
    };
    let with = |at: &'static str, key: &'static str, value: Value| {
        create(&move |op| {
            let object = op
                .pointer_mut(at)
                .and_then(Value::as_object_mut)
                .expect("an object");
            object.insert(key.to_owned(), value.clone());
        })
    };
    let mut cases = vec![
        // Another unit, another path, a flag in a name.
        ("StopContainer", json!({"name": "../../sshd", "grace_seconds": 1})),
        (
            "StopContainer",
            json!({"name": "sshd.service", "grace_seconds": 1}),
        ),
        (
            "StartContainer",
            json!({"name": "--help", "ready_timeout_seconds": 1}),
        ),
        (
            "StartContainer",
            json!({"name": "a b", "ready_timeout_seconds": 1}),
        ),
        (
            "UpdateContainer",
            json!({"name": "a\nb", "ready_timeout_seconds": 1, "grace_seconds": 1}),
        ),
        ("DestroyContainer", json!({"name": "/"})),
        ("DestroyContainer", json!({"name": ""})),
        ("DestroyContainer", json!({"name": "x".repeat(200)})),
        ("DestroyContainer", json!({"name": ["web"]})),
        ("StartJob", json!({"id": "../../../etc"})),
        ("StopJob", json!({"id": "ssh", "grace_seconds": 1})),
        ("RemoveJob", json!({"id": "/"})),
        (
            "PrepareNetwork",
            json!({"leaf_address": "8.8.8.8", "nats_port": 4222}),
        ),
        (
            "PrepareNetwork",
            json!({"leaf_address": "127.0.0.1", "nats_port": 4222}),
        ),
        (
            "PrepareNetwork",
            json!({"leaf_address": "10.0.0.1; flush ruleset", "nats_port": 4222}),
        ),
        (
            "PrepareNetwork",
            json!({"leaf_address": served.host.address(1), "nats_port": 0}),
        ),
        (
            "PrepareNetwork",
            json!({"leaf_address": served.host.address(1), "nats_port": 70000}),
        ),
        (
            "PrepareNetwork",
            json!({"leaf_address": served.host.address(1), "nats_port": "22"}),
        ),
        ("CreateContainer", set("/name", json!("--bind=/"))),
        ("CreateContainer", set("/name", json!("x/../y"))),
        // A store path that is none.
        ("CreateContainer", set("/toplevel", json!("/etc"))),
        ("CreateContainer", set("/toplevel", json!("/nix/store/../../etc"))),
        ("CreateContainer", set("/toplevel", json!("/nix/store"))),
        ("CreateContainer", set("/toplevel", json!("--bind=/:/"))),
        (
            "CreateContainer",
            set(
                "/toplevel",
                json!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-not-here"),
            ),
        ),
        (
            "CreateContainer",
            set(
                "/toplevel",
                json!(format!("{system}\nEXTRA_NSPAWN_FLAGS=--bind=/")),
            ),
        ),
        (
            "CreateContainer",
            set("/toplevel", json!(format!("{system}/init"))),
        ),
        // Addresses of others, and what is none.
        (
            "CreateContainer",
            set("/network/host_address", json!("192.168.1.1")),
        ),
        (
            "CreateContainer",
            set("/network/container_address", json!("0.0.0.0")),
        ),
        (
            "CreateContainer",
            set("/network/host_address", json!("10.0.0.1/0")),
        ),
        // What the container is told of its leaf.
        ("CreateContainer", set("/binding/leaf", json!("another"))),
        ("CreateContainer", set("/binding/container", json!("another"))),
        (
            "CreateContainer",
            set("/binding/subject_prefix", json!("leaf.v1.cmd")),
        ),
        (
            "CreateContainer",
            set("/credentials", json!({"../../../etc/shadow": "x"})),
        ),
        ("CreateContainer", set("/credentials", json!({"leaf.json": "x"}))),
        ("CreateContainer", set("/credentials", json!({"": "x"}))),
        ("CreateContainer", set("/credentials", json!({"nats.creds": 5}))),
        (
            "CreateContainer",
            set("/credentials", json!({"nats.creds": "x".repeat(100_000)})),
        ),
        // A flag smuggled in.
        ("CreateContainer", with("", "flags", json!(["--bind=/"]))),
        ("CreateContainer", with("", "op", json!("start_container"))),
        (
            "CreateContainer",
            with("/options", "extra_nspawn_flags", json!("--bind=/")),
        ),
        (
            "CreateContainer",
            with("/options", "environment", json!({"A\nB": "x"})),
        ),
        (
            "CreateContainer",
            with("/options", "environment", json!({"A=B": "x"})),
        ),
        (
            "CreateContainer",
            with("/options", "environment", json!({"--setenv": "x"})),
        ),
        (
            "CreateContainer",
            with("/options", "environment", json!({"A": "x\u{0}y"})),
        ),
        ("CreateContainer", with("/options", "environment", json!(["A=x"]))),
    ];
    // A path of the host that root did not open to containers.
    for path in [
        "/etc",
        "/",
        "/etc/shadow",
        "/proc/self/root",
        "relative",
        "/tmp/../etc",
        "/a:/b",
    ] {
        let bind = json!([{"source": path, "target": "/mnt", "writable": true}]);
        cases.push(("CreateContainer", with("/options", "binds", bind)));
        cases.push((
            "CreateContainer",
            with("/options", "secrets", json!({"key": path})),
        ));
    }
    let conf = || std::fs::read(served.host.paths.conf(&name)).expect("a conf");
    let before = conf();
    for (method, parameters) in cases {
        let shown = parameters.to_string().chars().take(300).collect::<String>();
        let answer = served
            .call(&format!("cim.leaf.Helper.{method}"), parameters)
            .await;
        let error = answer["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{method} {shown} was done"));
        assert!(
            // The nspawn runtime has no binds and no secrets at all, and no jobs.
            matches!(error, "cim.leaf.Helper.Refused" | "cim.leaf.Helper.Unsupported"),
            "{method} {shown}: {answer}"
        );
        assert!(
            !answer["parameters"]["reason"]
                .as_str()
                .unwrap_or_default()
                .is_empty()
        );
    }
    assert_eq!(conf(), before, "the container is what it was");
    let made = std::fs::read_dir(&served.host.paths.confs)
        .expect("a directory")
        .count();
    assert_eq!(made, 1, "and no other came to be");
    served.end().await;
}

pub(crate) async fn a_caller_that_goes_away_does_not_stop_an_operation() {
    let mut served = Served::new().await;
    let name = served.host.name();
    let script = format!("while [ ! -e /var/go ]; do $b sleep 0.05; done; {WAITS}");
    served.ok(served.host.create(&name, &system(&script))).await;
    let mut caller = served.asks(&Host::start(&name));
    until("it is starting", || {
        matches!(served.host.run(&name), Some(ObservedRun::Starting))
    })
    .await;
    caller.kill().expect("it runs");
    caller.wait().expect("its end");
    let root = served.host.paths.roots.join(name.as_str()).join("var");
    std::fs::create_dir_all(&root).expect("a directory");
    std::fs::write(root.join("go"), "").expect("a file");
    until("it is ready all the same", || {
        matches!(served.host.run(&name), Some(ObservedRun::Running { .. }))
    })
    .await;
    until("the helper says so", || {
        served.said().contains("done op=\"start container")
    })
    .await;
    served.end().await;
}

pub(crate) async fn operations_on_one_container_wait_for_each_other_and_on_others_do_not() {
    let mut served = Served::new().await;
    let (slow, quick) = (served.host.name(), served.host.name());
    let never = system("while :; do $b sleep 0.1; done");
    served.ok(served.host.create(&slow, &never)).await;
    let starting = served.asks(&Host::start_within(&slow, 6));
    until("it is starting", || {
        matches!(served.host.run(&slow), Some(ObservedRun::Starting))
    })
    .await;
    let destroying = served.asks(&HostOp::DestroyContainer { name: slow.clone() });
    // Meanwhile another container goes through its life.
    served.ok(served.host.create(&quick, &system(WAITS))).await;
    served.ok(Host::start(&quick)).await;
    assert!(matches!(served.host.run(&slow), Some(ObservedRun::Starting)));
    let error = heard(starting).await.expect_err("it is never ready");
    assert_eq!(error.kind, Kind::NotReady, "{error}");
    // It would have been refused while the container ran.
    heard(destroying).await.expect("its turn came after the start");
    assert_eq!(served.host.run(&slow), None);
    served.end().await;
}

pub(crate) async fn a_stop_does_not_wait_until_the_container_is_ready() {
    let mut served = Served::new().await;
    let name = served.host.name();
    let never = system("while :; do $b sleep 0.1; done");
    served.ok(served.host.create(&name, &never)).await;
    let starting = served.asks(&Host::start_within(&name, 600));
    until("it is starting", || {
        matches!(served.host.run(&name), Some(ObservedRun::Starting))
    })
    .await;
    let stop = HostOp::StopContainer {
        name: name.clone(),
        grace_seconds: 0,
    };
    served.ok(stop).await;
    let error = heard(starting).await.expect_err("it was never ready");
    assert_eq!(error.kind, Kind::NotReady, "{error}");
    assert!(!matches!(served.host.run(&name), Some(ObservedRun::Starting)));
    served.end().await;
}

pub(crate) async fn a_helper_that_is_killed_leaves_an_operation_that_can_be_asked_for_again() {
    let mut served = Served::new().await;
    let name = served.host.name();
    let never = system("while :; do $b sleep 0.1; done");
    served.ok(served.host.create(&name, &never)).await;
    let starting = served.asks(&Host::start(&name));
    until("it is starting", || {
        matches!(served.host.run(&name), Some(ObservedRun::Starting))
    })
    .await;
    served.helper.kill().expect("it runs");
    served.helper.wait().expect("its end");
    let error = heard(starting).await.expect_err("nobody answered");
    assert_eq!(error.kind, Kind::Interrupted, "{error}");
    let error = served.fails(Host::stop(&name), Kind::Interrupted).await;
    assert!(error.reason.contains("no process listens"), "{error}");
    std::fs::remove_file(&served.socket).expect("it was there");
    let error = served.fails(Host::stop(&name), Kind::Unsupported).await;
    assert!(error.reason.contains("start leaf-helper.socket"), "{error}");

    served.helper = start(&served.config, &served.socket, &served.log);
    served.until_it_answers().await;
    let stop = HostOp::StopContainer {
        name: name.clone(),
        grace_seconds: 0,
    };
    served.ok(stop).await;
    served.ok(HostOp::DestroyContainer { name: name.clone() }).await;
    assert_eq!(served.host.run(&name), None);
    served.end().await;
}

pub(crate) async fn a_helper_that_is_asked_to_end_ends_what_it_began() {
    let mut served = Served::new().await;
    let name = served.host.name();
    let never = system("while :; do $b sleep 0.1; done");
    served.ok(served.host.create(&name, &never)).await;
    let starting = served.asks(&Host::start_within(&name, 3));
    until("it is starting", || {
        matches!(served.host.run(&name), Some(ObservedRun::Starting))
    })
    .await;
    let pid = rustix::process::Pid::from_child(&served.helper);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    let error = heard(starting).await.expect_err("it is never ready");
    assert_eq!(error.kind, Kind::NotReady, "{error}");
    let status = served.helper.wait().expect("its end");
    assert!(status.success(), "{status}: {}", served.said());
    served.helper = start(&served.config, &served.socket, &served.log);
    served.until_it_answers().await;
    served.end().await;
}

pub(crate) async fn settings_that_are_not_roots_own_are_not_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("helper.toml");
    let refusal = |path: &Path| {
        leaf_helper::config::load(path)
            .map(drop)
            .map_err(|e| leaf_core::error::chain(&e))
            .expect_err("it should not be read")
    };
    let text = format!(
        "leaf = \"edge\"\nclient = \"nobody\"\nleaf_init = \"/bin/busybox\"\n[paths]\nstate = {:?}\n",
        directory.path().join("state/below")
    );
    std::fs::write(&config, &text).expect("a file");
    leaf_helper::config::load(&config).map(drop).expect("root's");
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o777)).expect("a mode");
    assert!(refusal(&config).contains("is writable for others"));
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("a mode");
    std::os::unix::fs::chown(&config, Some(LEAFD.1), None).expect("an owner");
    assert!(refusal(&config).contains("belongs to user 65534"));
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&config, &link).expect("a link");
    assert!(refusal(&link).contains("belongs to user 65534"));
    std::os::unix::fs::chown(&config, Some(0), None).expect("an owner");
    // The directories that it names, too.
    let state = directory.path().join("state");
    std::fs::create_dir(&state).expect("a directory");
    std::os::unix::fs::chown(&state, Some(LEAFD.1), None).expect("an owner");
    assert!(refusal(&config).contains("state belongs to user 65534"));
    std::fs::write(&config, text.replace("nobody", "no-such-user")).expect("a file");
    std::fs::remove_dir(&state).expect("empty");
    assert!(refusal(&config).contains("no-such-user"));
    std::fs::write(&config, format!("pool = 5\n{text}")).expect("a file");
    assert!(refusal(&config).contains("unknown field `pool`"));
}

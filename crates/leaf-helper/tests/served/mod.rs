//! The helper as a service: `leaf-helper serve` in a process of its own, called by a user that is not root.

mod calls;
mod secrets;
mod turns;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use leaf_core::container::{Exit, ObservedRun};
use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind as Kind, HostReport};
use leaf_core::id::ContainerName;
use leaf_helper::Client;
use serde_json::{Value, json};

pub(crate) use self::calls::*;
pub(crate) use self::secrets::*;
pub(crate) use self::turns::*;
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
        let host_key = at("host_key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&host_key)
            .status()
            .expect("ssh-keygen runs (Debian: openssh-client)");
        assert!(made.success(), "{made}");
        let text = format!(
            "leaf = \"{}\"\nclient = \"{}\"\nleaf_init = {:?}\naddress_pool = \"{}\"\nhost_key = {:?}\n[paths]\nroots = {:?}\nconfs = {:?}\n\
             gc_roots = {:?}\nstate = {:?}\nsecrets = {:?}\nrun = {:?}\n",
            host.leaf,
            LEAFD.0,
            host.settings.leaf_init,
            host.settings.pool,
            host_key,
            host.paths.roots,
            host.paths.confs,
            host.paths.gc_roots,
            host.paths.state,
            host.paths.secrets,
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

    async fn ok(&self, op: HostOp) -> HostReport {
        heard(self.asks(&op)).await.unwrap_or_else(|e| panic!("{e}"))
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

    /// Creates a container that does not become ready, and has it started; returns when it is starting.
    async fn starting(&mut self, ready_timeout_seconds: u32) -> (ContainerName, Child) {
        let name = self.host.name();
        let never = system("while :; do $b sleep 0.1; done");
        self.ok(self.host.create(&name, &never)).await;
        let starting = self.asks(&Host::start_within(&name, ready_timeout_seconds));
        self.until_it_starts(&name).await;
        (name, starting)
    }

    async fn until_it_starts(&self, name: &ContainerName) {
        until("it is starting", || {
            matches!(self.host.run(name), Some(ObservedRun::Starting))
        })
        .await;
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
    start_by(
        &mut Command::new(env!("CARGO_BIN_EXE_leaf-helper")),
        config,
        socket,
        log,
    )
}

/// Starts it by a command whose last arguments are those of the helper.
fn start_by(command: &mut Command, config: &Path, socket: &Path, log: &Path) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .expect("a log");
    command
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

async fn heard(child: Child) -> Result<HostReport, HostOpError> {
    let said = output(child).await;
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said:?}"))
}

async fn answers(child: Child) -> Vec<Value> {
    let said = output(child).await;
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said:?}"))
}

pub(crate) async fn a_container_is_managed_by_calls_of_an_unprivileged_user() {
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
    // A key of a witness that can't verify anything.
    std::fs::write(&config, format!("witnesses = [\"ssh-rsa AAAA\"]\n{text}")).expect("a file");
    let refused = refusal(&config);
    assert!(
        refused.contains("witnesses in") && refused.contains("ssh-rsa"),
        "{refused}"
    );
}

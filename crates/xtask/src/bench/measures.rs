//! The measurements, each alternating with what it is compared with.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::builds::write_build;
use super::leaf::Measured;
use super::numbers::{Row, Target, each, median, ms, number};
use super::programs::Programs;
use super::timing::{in_turn, timed};
use crate::command::{find, line, output};

/// The number of requests per round.
const REQUESTS: usize = 2000;
/// The number of events per round, and if each waits for the disk.
const EVENTS: usize = 100_000;
const EVENTS_ALWAYS: usize = 10_000;
/// The number of concurrent commands, and of commands per round.
const TASKS: usize = 64;
const COMMANDS: usize = 4096;
/// The number of signed commands per round, and of unsigned ones.
const SIGNED: usize = 500;
/// The number of commands before the second observation of an idle leaf.
const WORKLOAD: usize = 100;
/// How long after its last work a leaf is idle, and how long it is observed then.
const SETTLED_AFTER: Duration = Duration::from_secs(15);
const WATCHED_FOR: Duration = Duration::from_secs(60);

/// A command's round trip, compared with a bare responder's.
pub(super) fn round_trip(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let leaf = Measured::start(programs)?;
    leaf.wait_published()?;
    let found = json(
        Command::new(&programs.requests)
            .arg("round-trip")
            .arg(leaf.state())
            .args([Measured::name(), rounds.to_string(), REQUESTS.to_string()]),
    )?;
    leaf.stop()?;
    let of = |who: &str, figure: &str| median(&each(&found, "rounds", &[who, figure]));
    let row = |figure: &str, name: &str| {
        let (leaf, bare) = (of("leaf", figure), of("bare", figure));
        let what = format!("`leaf.show`, {name}, compared with a bare responder");
        Row::report(what, format!("{leaf:.0} µs")).against(format!("{bare:.0} µs"), leaf / bare)
    };
    let bytes = found["bytes"].as_u64().context("a size")?;
    Ok(vec![
        row("p50_us", &format!("{bytes} bytes, median")).target(Target::AtMost(1.3)),
        row("p99_us", "99th percentile"),
        Row::report(
            "the same through leafctl's client, decoded, median",
            format!("{:.0} µs", of("client", "p50_us")),
        ),
    ])
}

/// A signed change's round trip, compared with an unsigned one's.
pub(super) fn signed(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let leaf = Measured::start_with(programs, |directory| {
        let key = directory.join("signer");
        let mut make = Command::new("ssh-keygen");
        make.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
            .arg(&key);
        output(&mut make)?;
        let public = directory.join("signer.pub");
        let public =
            std::fs::read_to_string(&public).with_context(|| format!("can't read {}", public.display()))?;
        let allowed = directory.join("allowed_signers");
        std::fs::write(&allowed, format!("admin {public}"))
            .and_then(|()| std::fs::set_permissions(&allowed, std::fs::Permissions::from_mode(0o644)))
            .with_context(|| format!("can't write {}", allowed.display()))?;
        Ok(format!(
            "[trust]\nclock = \"trusted\"\nallowed_signers = \"{}\"\n",
            allowed.display()
        ))
    })?;
    leaf.wait_published()?;
    let found = json(
        Command::new(&programs.signed)
            .arg(leaf.state())
            .args([Measured::name(), rounds.to_string(), SIGNED.to_string()])
            .arg(leaf.directory().join("signer")),
    )?;
    leaf.stop()?;
    let of = |kind: &str| median(&each(&found, "rounds", &[kind]));
    let (signed, unsigned) = (of("signed"), of("unsigned"));
    let row = Row::report(
        "`leaf.label`, signed and checked, compared with one without a signature, median",
        format!("{signed:.0} µs, {:.0} µs more", signed - unsigned),
    );
    Ok(vec![row.against(format!("{unsigned:.0} µs"), signed / unsigned)])
}

/// 64 commands at once.
pub(super) fn concurrent(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let leaf = Measured::start(programs)?;
    leaf.wait_published()?;
    let toplevel = toplevel(leaf.directory())?;
    let found = json(
        Command::new(&programs.requests)
            .arg("concurrent")
            .arg(leaf.state())
            .args([
                Measured::name(),
                rounds.to_string(),
                TASKS.to_string(),
                COMMANDS.to_string(),
            ])
            .arg(toplevel),
    )?;
    leaf.stop()?;
    let row = |kind: &str, what: &str, unit: &str| {
        let of = |figure: &str| median(&each(&found, kind, &[figure]));
        let (p50, p99) = (of("p50_us") / 1e3, of("p99_us") / 1e3);
        Row::report(
            format!("{TASKS} at once: {what}"),
            format!(
                "{:.0} {unit}/s, median {p50:.1} ms, 99th percentile {p99:.1} ms",
                of("per_second")
            ),
        )
    };
    Ok(vec![
        row(
            "stop",
            "`container.stop` of a stopped container, accepted and recorded",
            "commands",
        ),
        row(
            "create_and_destroy",
            "`container.create`, then `container.destroy`, with their steps on the host",
            "pairs",
        ),
    ])
}

/// Durable events per second, compared with bare publishes with the default and the safe sync.
pub(super) fn durable(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let (mut leaf, mut bare, mut least, mut always) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut bytes = 0;
    for _ in 0..rounds {
        let directory = tempfile::Builder::new()
            .prefix("cim-leaf-bench-")
            .tempdir()
            .context("can't make a temporary directory")?;
        let records = directory.path().join("records.json");
        let found = json(
            Command::new(&programs.durable)
                .arg(directory.path())
                .arg(&records)
                .arg(EVENTS.to_string())
                .env("CIM_LEAF_NATS_SERVER", &programs.nats_server),
        )?;
        bytes = found["body_bytes"].as_u64().context("a size")?;
        leaf.push(number(&found, &["per_second"]));
        for (sync, how, count, rates) in [
            ("default", "api", EVENTS, &mut bare),
            ("default", "inbox", EVENTS, &mut least),
            ("always", "api", EVENTS_ALWAYS, &mut always),
        ] {
            let place = directory.path().join(format!("{sync}-{how}"));
            std::fs::create_dir(&place).with_context(|| format!("can't make {}", place.display()))?;
            let found = json(
                Command::new(&programs.publishes)
                    .arg(&programs.nats_server)
                    .args([sync, how])
                    .arg(&place)
                    .arg(&records)
                    .arg(count.to_string()),
            )?;
            rates.push(number(&found, &["per_second"]));
        }
    }
    let [leaf, bare, least, always] = [leaf, bare, least, always].map(|rates| median(&rates));
    let row = |what: &str, other: f64| {
        Row::report(
            format!("durable events of {bytes} bytes {what}"),
            format!("{leaf:.0}/s"),
        )
        .against(format!("{other:.0}/s"), leaf / other)
    };
    Ok(vec![
        row("compared with bare publishes, default sync", bare).target(Target::AtLeast(0.7)),
        row(
            "compared with a minimal publisher, default sync: one inbox, acknowledgements counted",
            least,
        ),
        row("compared with bare publishes, `sync_interval: always`", always).target(Target::AtLeast(10.0)),
    ])
}

/// A hardware scan, whole processes.
pub(super) fn inventory(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let program = |name: &str| find(name).with_context(|| format!("{name} is not installed"));
    let mut leafd = Command::new(&programs.leafd);
    leafd.args(["inventory", "--json"]);
    let mut lshw = Command::new(program("lshw")?);
    lshw.arg("-json");
    let mut hwinfo = Command::new(program("hwinfo")?);
    hwinfo.arg("--short");
    let times = in_turn(
        rounds,
        &mut [&mut || timed(&mut leafd), &mut || timed(&mut lshw), &mut || {
            timed(&mut hwinfo)
        }],
    )?;
    let [leaf, lshw, hwinfo] = [0, 1, 2].map(|which| median(&times[which]));
    let row = |name: &str, other: f64| {
        Row::report(
            format!("`leafd inventory --json`, compared with `{name}`"),
            ms(leaf),
        )
        .against(ms(other), leaf / other)
        .target(Target::AtMost(1.0))
    };
    Ok(vec![row("lshw -json", lshw), row("hwinfo --short", hwinfo)])
}

/// From the start of leafd to the published inventory.
pub(super) fn start(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let (mut ready, mut published) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let leaf = Measured::start(programs)?;
        ready.push(leaf.ready_after().as_secs_f64());
        published.push(leaf.wait_published()?.as_secs_f64());
        leaf.stop()?;
    }
    Ok(vec![
        Row::report(
            "first start of `leafd` with its server until it is ready",
            ms(median(&ready)),
        ),
        Row::report(
            "the same until the inventory is in the stream, as observed by `leafctl`",
            ms(median(&published)),
        ),
    ])
}

/// An idle leaf: after its start, and after commands.
pub(super) fn rest(programs: &Programs, _rounds: usize) -> Result<Vec<Row>> {
    let leaf = Measured::start(programs)?;
    leaf.wait_published()?;
    let bare = BareServer::start(&programs.nats_server)?;
    let servers = [child_of(leaf.pid(), "nats-server")?, bare.child.id()];
    let (fresh, [embedded, alone]) = watch_with(leaf.pid(), servers)?;
    let file = write_build(leaf.directory())?;
    let toplevel = toplevel(leaf.directory())?;
    let toplevel = toplevel.to_str().context("a store path is text")?;
    let day: [&[&str]; 10] = [
        &["leaf", "show"],
        &["hardware", "list"],
        &["container", "create", "rest", "--toplevel", toplevel],
        &["container", "list"],
        &["container", "destroy", "rest"],
        &["hardware", "rescan"],
        &["nix", "build", "--file", &file],
        &["nix", "jobs"],
        &["leaf", "list"],
        &["events"],
    ];
    for command in day.iter().cycle().take(WORKLOAD) {
        output(leaf.leafctl().args(*command))?;
    }
    let (worked, [embedded_after, alone_after]) = watch_with(leaf.pid(), servers)?;
    leaf.stop()?;
    let rows = |when: &str, seen: &Seen| {
        let mb = |kib: u64| kib as f64 * 1024.0 / 1e6;
        [
            Row::report(
                format!("resident memory of idle `leafd`, {when} (proportional share)"),
                format!(
                    "{:.1} MB ({:.1} MB)",
                    mb(seen.resident_kib),
                    mb(seen.proportional_kib)
                ),
            )
            .limit(mb(seen.resident_kib), Target::AtMost(20.0)),
            Row::report(format!("its wake-ups, {when}"), format!("{:.1}/s", seen.wake_ups)),
            Row::report(
                format!("its processor time in {} s, {when}", WATCHED_FOR.as_secs()),
                ms(seen.processor.as_secs_f64()),
            ),
        ]
    };
    let server = |when: &str, embedded: Duration, alone: Duration| {
        let what = format!(
            "processor time of the idle embedded server in {} s, {when}, compared with a server with one stream that nobody uses",
            WATCHED_FOR.as_secs()
        );
        let (embedded, alone) = (embedded.as_secs_f64(), alone.as_secs_f64());
        Row::report(what, ms(embedded))
            .against(ms(alone), embedded / alone)
            .target(Target::AtMost(2.0))
    };
    let mut all = rows("after its start", &fresh).into_iter().collect::<Vec<_>>();
    all.push(server("after its start", embedded, alone));
    let when = format!("after {WORKLOAD} commands");
    all.extend(rows(&when, &worked));
    all.push(server(&when, embedded_after, alone_after));
    Ok(all)
}

/// A nats-server with one stream in files and without clients; it is ended when dropped. With any such stream, nats-server
/// ticks ten times a second for the access times of its files, so one without streams does less.
struct BareServer {
    child: Child,
    _directory: TempDir,
}

impl BareServer {
    fn start(program: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("cim-leaf-bench-")
            .tempdir()
            .context("can't make a temporary directory")?;
        let config = directory.path().join("bare.conf");
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .context("can't find a free port")?;
        let text = format!(
            "listen: \"{address}\"\njetstream {{ store_dir: \"{}\" }}\n",
            directory.path().join("bare").display()
        );
        std::fs::write(&config, text).with_context(|| format!("can't write {}", config.display()))?;
        let child = Command::new(program)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("can't run {}", program.display()))?;
        let server = Self {
            child,
            _directory: directory,
        };
        create_stream(address).context("can't make a stream in the bare server")?;
        Ok(server)
    }
}

/// Makes a stream in a server that may just be starting, by NATS's own protocol.
fn create_stream(address: SocketAddr) -> Result<()> {
    let began = Instant::now();
    let mut connection = loop {
        match TcpStream::connect(address) {
            Ok(connection) => break connection,
            Err(error) if began.elapsed() > SETTLED_AFTER => return Err(error.into()),
            Err(_) => pause(Duration::from_millis(50)),
        }
    };
    connection.set_read_timeout(Some(SETTLED_AFTER))?;
    let body = r#"{"name":"BARE","subjects":["bare"],"storage":"file"}"#;
    let request = format!(
        "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\nPUB $JS.API.STREAM.CREATE.BARE answer {}\r\n{body}\r\n",
        body.len()
    );
    connection.write_all(request.as_bytes())?;
    for line in BufReader::new(connection).lines() {
        let line = line?;
        if line.contains("stream_create_response") {
            ensure!(!line.contains("\"error\""), "{line}");
            return Ok(());
        }
    }
    Err(anyhow!("the connection was closed"))
}

impl Drop for BareServer {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the child of a process with this name.
fn child_of(parent: u32, name: &str) -> Result<u32> {
    children_of(parent)?
        .into_iter()
        .find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
        })
        .with_context(|| format!("process {parent} has no child {name}"))
}

/// Returns the children of a process.
pub(super) fn children_of(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").context("can't list the processes")? {
        let entry = entry.context("can't list the processes")?;
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
            continue;
        };
        // A process may have ended in the meantime.
        let status = entry.path().join("status");
        if field(&status, "PPid:").is_ok_and(|of| of == u64::from(parent)) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// The resource usage of an idle process.
struct Seen {
    resident_kib: u64,
    proportional_kib: u64,
    /// Per second.
    wake_ups: f64,
    processor: Duration,
}

/// Watches an idle process, and the processor time of others meanwhile.
fn watch_with<const N: usize>(pid: u32, others: [u32; N]) -> Result<(Seen, [Duration; N])> {
    pause(SETTLED_AFTER);
    let (before, since) = (switches(pid)?, Instant::now());
    let used_before = processor_time(pid)?;
    let mut used = [Duration::ZERO; N];
    for (used, other) in used.iter_mut().zip(others) {
        *used = processor_time(other)?;
    }
    pause(WATCHED_FOR);
    let wake_ups = switches(pid)?.saturating_sub(before) as f64 / since.elapsed().as_secs_f64();
    for (used, other) in used.iter_mut().zip(others) {
        *used = processor_time(other)?.saturating_sub(*used);
    }
    let seen = Seen {
        processor: processor_time(pid)?.saturating_sub(used_before),
        resident_kib: field(&PathBuf::from(format!("/proc/{pid}/status")), "VmRSS:")?,
        proportional_kib: field(&PathBuf::from(format!("/proc/{pid}/smaps_rollup")), "Pss:")?,
        wake_ups,
    };
    Ok((seen, used))
}

/// Returns the time that a process's threads have spent on a processor: the first figure of `schedstat`
/// (Documentation/scheduler/sched-stats.rst of Linux), in nanoseconds.
fn processor_time(pid: u32) -> Result<Duration> {
    let tasks = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in std::fs::read_dir(&tasks).with_context(|| format!("can't read {tasks}"))? {
        let file = task.context("can't read a thread")?.path().join("schedstat");
        // A thread may have ended in the meantime.
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let spent = text
            .split_whitespace()
            .next()
            .and_then(|first| first.parse::<u64>().ok());
        sum += spent.unwrap_or(0);
    }
    Ok(Duration::from_nanos(sum))
}

#[expect(
    clippy::disallowed_methods,
    reason = "what happens in a time is what is measured"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Returns the number of voluntary context switches of a process's threads, which is the number of wake-ups.
fn switches(pid: u32) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in std::fs::read_dir(&tasks).with_context(|| format!("can't read {tasks}"))? {
        let status = task.context("can't read a thread")?.path().join("status");
        // A thread may have ended in the meantime.
        sum += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
    }
    Ok(sum)
}

pub(super) fn field(file: &Path, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("{} has no {name}", file.display()))
}

/// Adds a container's system to the store, which is never started.
fn toplevel(directory: &Path) -> Result<PathBuf> {
    let system = directory.join("system");
    std::fs::create_dir_all(&system).with_context(|| format!("can't make {}", system.display()))?;
    let init = system.join("init");
    std::fs::write(&init, "#!/bin/sh\n").with_context(|| format!("can't write {}", init.display()))?;
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&init, executable)
        .with_context(|| format!("can't change {}", init.display()))?;
    let path = output(Command::new("nix-store").arg("--add").arg(&system))?;
    Ok(path.trim().into())
}

pub(super) fn json(command: &mut Command) -> Result<Value> {
    let text = output(command)?;
    serde_json::from_str(&text).with_context(|| format!("{} printed invalid JSON", line(command)))
}

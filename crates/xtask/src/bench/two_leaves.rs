//! A hundred builds on any leaf: two leaves compared with one.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use tempfile::TempDir;

use super::numbers::{Row, median};
use super::programs::Programs;
use super::timing::timed;
use crate::command::run;
use crate::leaf::Leaf;

/// The number of builds.
const BUILDS: usize = 100;
/// The number of clients that send them, each one after the other.
const CLIENTS: usize = 8;
/// The number of rounds at most: each takes minutes.
const ROUNDS: usize = 2;
/// The loop that is timed to find out how many turns take a second.
const TURNS: usize = 500_000;
const READY_WITHIN: Duration = Duration::from_secs(30);

/// The static shell that builds, where this machine has one.
const BUSYBOX: &str = "/usr/bin/busybox";

/// Leaves at one server, each of which builds one at a time. Only this machine reaches the server, and whoever does commands them.
pub(super) struct Fleet {
    leaves: Vec<Leaf>,
    /// Ends after them.
    server: Child,
    directory: TempDir,
}

impl Fleet {
    /// Starts leaves with as many jobs at once.
    pub(super) fn start(programs: &Programs, count: usize, max_jobs: usize) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("cim-leaf-bench-")
            .tempdir()
            .context("can't make a temporary directory")?;
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .context("no port is free")?;
        let store = directory.path().join("jetstream");
        let server = Command::new(&programs.nats_server)
            .args(["--addr", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--jetstream", "--store_dir"])
            .arg(&store)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("can't run nats-server")?;
        let mut fleet = Self {
            leaves: Vec::new(),
            server,
            directory,
        };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            ensure!(began.elapsed() < READY_WITHIN, "nats-server does not answer");
        }
        write(
            &fleet.context(),
            &format!(r#"{{ "url": "nats://{address}", "inbox_prefix": "_INBOX.admin" }}"#),
        )?;
        for number in 0..count {
            let own = fleet.directory.path().join(format!("leaf-{number}"));
            std::fs::create_dir(&own).with_context(|| format!("can't make {}", own.display()))?;
            let settings = own.join("leafd.toml");
            // The pressure of this machine is not what is measured.
            write(
                &settings,
                &format!(
                    "name = \"bench-{number}\"\nstate_dir = \"{state}\"\n[nats]\nurl = \"nats://{address}\"\n\
                     [nix]\nmax_jobs = {max_jobs}\n[nix.room]\ncpu_percent = 100\nmemory_percent = 100\nio_percent = 100\n",
                    state = crate::leaf::state(&own).display(),
                ),
            )?;
            let args = ["run".as_ref(), "--config".as_ref(), settings.as_os_str()];
            fleet.leaves.push(Leaf::start(&programs.tree, &own, &args)?);
        }
        Ok(fleet)
    }

    pub(super) fn context(&self) -> PathBuf {
        self.directory.path().join("context.json")
    }

    /// Builds all of them, some at once, and returns the time in seconds.
    fn build(&self, programs: &Programs, turns: usize, unique: &str) -> Result<f64> {
        let url = serve(&self.directory.path().join(unique), turns, unique)?;
        let installables: Vec<_> = (0..BUILDS)
            .map(|number| format!("{url}#build-{number}"))
            .collect();
        let (next, began) = (AtomicUsize::new(0), Instant::now());
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    scope.spawn(|| -> Result<()> {
                        while let Some(installable) = installables.get(next.fetch_add(1, Ordering::Relaxed)) {
                            let mut leafctl = Command::new(programs.tree.join("bin/leafctl"));
                            leafctl.arg("--context").arg(self.context()).args([
                                "nix",
                                "build",
                                "--any",
                                installable,
                            ]);
                            timed(&mut leafctl)?;
                        }
                        Ok(())
                    })
                })
                .collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
        })?;
        Ok(began.elapsed().as_secs_f64())
    }

    pub(super) fn stop(mut self) -> Result<()> {
        std::mem::take(&mut self.leaves)
            .into_iter()
            .try_for_each(Leaf::stop)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.leaves.clear();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A hundred builds of one second of a core each.
pub(super) fn measure(programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
    let turns = turns_of_a_second()?;
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..rounds.min(ROUNDS) {
        for (leaves, times) in (1..).zip(&mut times) {
            let fleet = Fleet::start(programs, leaves, 1)?;
            let unique = format!("{}-{round}-{leaves}", std::process::id());
            times.push(fleet.build(programs, turns, &unique)?);
            fleet.stop()?;
        }
    }
    let [one, two] = times.map(|times| median(&times));
    Ok(vec![
        Row::report(
            format!(
                "{BUILDS} builds of one second of a core each with `leafctl nix build --any`, on two leaves compared with one, each of \
                 which builds one at a time"
            ),
            format!("{two:.1} s"),
        )
        .against(format!("{one:.1} s"), two / one),
    ])
}

/// Serves a flake over HTTP, which any leaf can fetch, until this process ends, and returns its URL. Each of its packages computes for so
/// many turns of a loop.
fn serve(directory: &Path, turns: usize, unique: &str) -> Result<String> {
    let flake = directory.join("flake");
    std::fs::create_dir_all(&flake).with_context(|| format!("can't make {}", flake.display()))?;
    let shell = if Path::new(BUSYBOX).exists() {
        std::fs::copy(BUSYBOX, flake.join("busybox")).context("can't copy busybox")?;
        r#"builder = "${self}/busybox"; args = [ "sh" "-c" script ];"#
    } else {
        r#"builder = "/bin/sh"; args = [ "-c" script ];"#
    };
    let system = format!("{}-linux", std::env::consts::ARCH);
    let build = |number: usize| {
        format!(
            r#"build-{number} = derivation {{ name = "cim-leaf-bench-{unique}-{number}"; inherit system; {shell} allowSubstitutes = false; }};"#
        )
    };
    let builds: String = (0..BUILDS).map(build).collect();
    write(
        &flake.join("flake.nix"),
        &format!(
            r#"{{ outputs = {{ self }}: let system = "{system}"; script = "i=0; while [ $i -lt {turns} ]; do i=$((i+1)); done; echo built > $out"; in {{ packages.{system} = {{ {builds} }}; }}; }}"#
        ),
    )?;
    let archive = directory.join("flake.tar.gz");
    run(Command::new("tar")
        .args(["--create", "--gzip", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(directory)
        .arg("flake"))?;
    let body = std::fs::read(&archive).with_context(|| format!("can't read {}", archive.display()))?;
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    let url = format!("http://{}/flake.tar.gz", listener.local_addr()?);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            let mut request = [0; 4096];
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            // A client that went away needs no answer.
            let _ = stream
                .read(&mut request)
                .and_then(|_| stream.write_all(head.as_bytes()))
                .and_then(|()| stream.write_all(&body));
        }
    });
    Ok(url)
}

/// Returns how many turns of the loop take a second.
fn turns_of_a_second() -> Result<usize> {
    let script = format!("i=0; while [ $i -lt {TURNS} ]; do i=$((i+1)); done");
    let mut command = if Path::new(BUSYBOX).exists() {
        let mut busybox = Command::new(BUSYBOX);
        busybox.arg("sh");
        busybox
    } else {
        Command::new("/bin/sh")
    };
    let took = timed(command.args(["-c", &script]))?;
    Ok((TURNS as f64 / took) as usize)
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
}

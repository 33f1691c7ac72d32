//! The demo's fleet: a hub with its agent, and two leaves that connect to it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{has_text, title};
use crate::command::{output, run, typed};
use crate::leaf::{Leaf, state};

const LEAVES: [&str; 2] = ["edge-1", "edge-2"];
const WITHIN: Duration = Duration::from_secs(30);

/// A process that is killed when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A hub's server and agent, and the fleet's keys.
struct Hub {
    bin: PathBuf,
    /// The directory of the fleet's keys, which would be on another machine.
    keys: PathBuf,
    /// What would be a flake: the files of leaves and people.
    flake: PathBuf,
    context: PathBuf,
    /// Ann's SSH key, which signs her commands.
    key: PathBuf,
    leaf_url: String,
    _processes: [Process; 2],
}

/// Shows a hub and two leaves.
pub(super) fn show(tree: &Path, directory: &Path) -> Result<()> {
    title("A fleet: a hub, and two leaves that connect to it by a setting");
    let hub = Hub::start(&tree.join("bin"), &directory.join("hub"))?;
    let mut leaves = Vec::new();
    for name in LEAVES {
        leaves.push(hub.leaf(tree, &directory.join(name), name)?);
    }
    hub.until("both leaves are at the hub", &["leaf", "list"], |list| {
        LEAVES.iter().all(|name| has_text(list, name))
    })?;
    hub.step(&["leaf", "list"])?;

    title("One command asks all of them");
    hub.step(&["-A", "hardware", "list"])?;
    hub.step(&["leaf", "label", LEAVES[1], "site=attic"])?;
    hub.until("the label is known at the hub", &["leaf", "list"], |list| {
        has_text(list, "attic")
    })?;
    hub.step(&["--selector", "site=attic", "leaf", "show"])?;

    title("A command that a leaf takes with a signature only");
    hub.refused(&["leaf", "label", LEAVES[0], "rack=7"])?;
    let key = text(&hub.key)?.to_owned();
    hub.step(&["--sign-with", &key, "leaf", "label", LEAVES[0], "rack=7"])?;

    title("A leaf is gone, and its events are still at the hub");
    let last = leaves.pop().context("a leaf")?;
    println!("\n$ kill {}", last.pid());
    last.stop()?;
    hub.until(
        "the end of the leaf is at the hub",
        &["events", "--leaf", LEAVES[1]],
        |events| has_text(events, "cim.leaf.leaf.stopped.v1"),
    )?;
    hub.step(&["events", "--leaf", LEAVES[1]])?;

    title("Ann leaves, and can't command the fleet any more");
    hub.fleet(&["revoke", "ann"])?;
    hub.refused(&["leaf", "list"])?;
    hub.fleet(&["show"])?;
    for leaf in leaves {
        leaf.stop()?;
    }
    Ok(())
}

impl Hub {
    fn start(bin: &Path, dir: &Path) -> Result<Self> {
        let [port, leaf_port] = [free_port()?, free_port()?];
        let (keys, flake) = (dir.join("fleet"), dir.join("flake"));
        std::fs::create_dir_all(&flake).with_context(|| format!("can't make {}", flake.display()))?;
        let leaf_url = format!("tls://127.0.0.1:{leaf_port}");
        let hub = keys.join("hub");
        let mut init = Command::new(bin.join("leafctl"));
        init.args(["fleet", "init"])
            .arg(&keys)
            .args([
                "--hub",
                &leaf_url,
                "--clients",
                &format!("tls://127.0.0.1:{port}"),
            ])
            .arg("--hub-directory")
            .arg(&hub)
            .arg("--hub-state")
            .arg(dir.join("state"));
        println!("$ {}", typed(&init));
        run(&mut init)?;
        let mut nats_server = Command::new(bin.join("nats-server"));
        nats_server.arg("-c").arg(hub.join("nats-server.conf"));
        let mut agent = Command::new(bin.join("leaf-hub"));
        agent.arg("run").arg("--config").arg(hub.join("leaf-hub.toml"));
        let processes = [
            spawn(&mut nats_server, &dir.join("nats-server.log"))?,
            spawn(&mut agent, &dir.join("leaf-hub.log"))?,
        ];
        let this = Self {
            bin: bin.to_owned(),
            context: flake.join("ann.json"),
            key: flake.join("id_ed25519"),
            keys,
            flake,
            leaf_url,
            _processes: processes,
        };
        this.fleet(&["add-operator", "ann", "--out", text(&this.flake)?])?;
        println!("$ export LEAFCTL_CONTEXT={}", this.context.display());
        let public = make_key(&this.key)?;
        let signers = this.flake.join("allowed_signers");
        println!(
            "$ echo \"ann $(cat {})\" > {}",
            public.display(),
            signers.display()
        );
        let line =
            std::fs::read_to_string(&public).with_context(|| format!("can't read {}", public.display()))?;
        std::fs::write(&signers, format!("ann {line}"))
            .with_context(|| format!("can't write {}", signers.display()))?;
        Ok(this)
    }

    /// Runs a command on the fleet's keys.
    fn fleet(&self, args: &[&str]) -> Result<()> {
        let mut command = Command::new(self.bin.join("leafctl"));
        command.args(["fleet", "--dir"]).arg(&self.keys).args(args);
        println!("\n$ {}", typed(&command));
        run(&mut command)
    }

    /// Starts a leaf that connects to the hub.
    fn leaf(&self, tree: &Path, directory: &Path, name: &str) -> Result<Leaf> {
        std::fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
        // In the place of /etc/ssh/ssh_host_ed25519_key of the leaf.
        let host_key = directory.join("ssh_host_ed25519_key");
        let public = make_key(&host_key)?;
        self.fleet(&[
            "add-leaf",
            name,
            "--host-key",
            text(&public)?,
            "--flake",
            text(&self.flake)?,
        ])?;
        let credentials = directory.join("hub.creds");
        let mut age = Command::new("age");
        age.args(["--decrypt", "--identity"])
            .arg(&host_key)
            .arg("--output")
            .arg(&credentials)
            .arg(self.flake.join(format!("secrets/{name}-hub.creds.age")));
        println!("$ {}", typed(&age));
        run(&mut age)?;
        let settings = directory.join("leafd.toml");
        let hub = format!(
            "[nats.embedded.hub]\nurl = \"{}\"\ncredentials = \"{}\"\nca = \"{}\"\n",
            self.leaf_url,
            credentials.display(),
            self.flake.join(format!("hosts/{name}/hub-ca.pem")).display()
        );
        let signed = format!(
            "[trust]\nallowed_signers = \"{}\"\nrequire_signature = [\"runs-code\", \"cuts-off\", \"leaf.label\"]\n",
            self.flake.join("allowed_signers").display()
        );
        let trust = if name == LEAVES[0] { &*signed } else { "" };
        let text = format!(
            "name = \"{name}\"\nstate_dir = \"{}\"\n[nats.embedded]\nport = 0\naddress = \"127.0.0.1\"\n{hub}[containers]\nenable = false\n{trust}",
            state(directory).display()
        );
        std::fs::write(&settings, text).with_context(|| format!("can't write {}", settings.display()))?;
        let args = ["run".as_ref(), "--config".as_ref(), settings.as_os_str()];
        println!("\n$ cat {}\n…\n{hub}…\n{trust}", settings.display());
        println!("$ {} &", typed(Command::new("leafd").args(args)));
        Leaf::start(tree, directory, &args)
    }

    fn leafctl(&self) -> Command {
        let mut command = Command::new(self.bin.join("leafctl"));
        command.env("LEAFCTL_CONTEXT", &self.context);
        command
    }

    fn step(&self, args: &[&str]) -> Result<()> {
        let mut command = self.leafctl();
        command.args(args);
        println!("\n$ {}", typed(&command));
        run(&mut command)
    }

    /// Runs a command that must be refused, and shows how.
    fn refused(&self, args: &[&str]) -> Result<()> {
        let mut command = self.leafctl();
        command.args(args);
        println!("\n$ {}", typed(&command));
        match output(&mut command) {
            Ok(found) => bail!("it was not refused: {found}"),
            Err(error) => {
                // Without the path of the program.
                let error = format!("{error:#}");
                println!(
                    "{}",
                    error.split_once(" ended with ").map_or(&*error, |(_, how)| how)
                );
                Ok(())
            }
        }
    }

    /// Asks until the JSON is as expected.
    #[expect(clippy::disallowed_methods, reason = "a pause between two looks at a state")]
    fn until(&self, what: &str, args: &[&str], is_there: impl Fn(&Value) -> bool) -> Result<()> {
        let since = Instant::now();
        let mut last = String::new();
        while since.elapsed() < WITHIN {
            match output(self.leafctl().arg("--json").args(args)) {
                Ok(text) => {
                    let documents = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
                    let found: Vec<Value> = documents.collect::<Result<_, _>>().unwrap_or_default();
                    if is_there(&Value::Array(found)) {
                        return Ok(());
                    }
                    last = text;
                }
                Err(error) => last = format!("{error:#}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!(
            "not within {} s: {what}; the last answer: {last}",
            WITHIN.as_secs()
        )
    }
}

/// Makes an SSH key, and returns the file of its public part.
fn make_key(file: &Path) -> Result<PathBuf> {
    let mut ssh_keygen = Command::new("ssh-keygen");
    ssh_keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file);
    println!("\n$ {}", typed(&ssh_keygen));
    run(&mut ssh_keygen)?;
    Ok(file.with_extension("pub"))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .context("the temporary directory's name is not UTF-8")
}

fn spawn(command: &mut Command, log: &Path) -> Result<Process> {
    println!("$ {} &", typed(command));
    let file = std::fs::File::create(log).with_context(|| format!("can't write {}", log.display()))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("can't share the log")?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("can't run {}", typed(command)))?;
    Ok(Process(child))
}

/// Returns a port that nothing listens on at the moment.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("can't listen on the loopback address")?;
    Ok(listener.local_addr().context("can't read a port")?.port())
}

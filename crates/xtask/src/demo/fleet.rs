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

/// A hub's server and agent, with the directory of their files.
struct Hub {
    bin: PathBuf,
    dir: PathBuf,
    context: PathBuf,
    leaf_port: u16,
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
    for leaf in leaves {
        leaf.stop()?;
    }
    Ok(())
}

impl Hub {
    fn start(bin: &Path, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
        let [port, leaf_port] = [free_port()?, free_port()?];
        let mut settings = format!(
            "log = \"warn\"\n[nats]\nurl = \"nats://127.0.0.1:{port}\"\nfleet_credentials = \"{0}/fleet.seed\"\n\
             links_credentials = \"{0}/links.seed\"\n",
            dir.display()
        );
        let key = |name: &str| -> Result<String> {
            let mut command = Command::new(bin.join("leaf-hub"));
            command.arg("key").arg(dir.join(format!("{name}.seed")));
            println!("$ {}", typed(&command));
            let key = output(&mut command)?.trim().to_owned();
            println!("{key}");
            Ok(key)
        };
        key("fleet")?;
        key("links")?;
        settings += "[leaves]\n";
        for name in LEAVES {
            settings += &format!("{name} = \"{}\"\n", key(name)?);
        }
        settings += &format!("[people]\nann = \"{}\"\n", key("ann")?);
        let (config, accounts, server) = (
            dir.join("leaf-hub.toml"),
            dir.join("accounts.conf"),
            dir.join("nats-server.conf"),
        );
        let write = |file: &Path, text: &str| {
            std::fs::write(file, text).with_context(|| format!("can't write {}", file.display()))
        };
        write(&config, &settings)?;
        let mut command = Command::new(bin.join("leaf-hub"));
        command.arg("accounts").arg("--config").arg(&config);
        println!("$ {} > {}", typed(&command), accounts.display());
        write(&accounts, &output(&mut command)?)?;
        write(
            &server,
            &format!(
                "server_name: hub\nlisten: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\n\
                 leafnodes {{ listen: \"127.0.0.1:{leaf_port}\" }}\ninclude \"accounts.conf\"\n",
                dir.join("nats").display()
            ),
        )?;
        let context = dir.join("context.json");
        let as_ann = serde_json::json!({
            "url": format!("nats://127.0.0.1:{port}"),
            "nkey": dir.join("ann.seed"),
            "inbox_prefix": "_INBOX.ann",
        });
        write(&context, &as_ann.to_string())?;
        let mut nats_server = Command::new(bin.join("nats-server"));
        nats_server.arg("-c").arg(&server);
        let mut agent = Command::new(bin.join("leaf-hub"));
        agent.arg("run").arg("--config").arg(&config);
        let processes = [
            spawn(&mut nats_server, &dir.join("nats-server.log"))?,
            spawn(&mut agent, &dir.join("leaf-hub.log"))?,
        ];
        println!("$ export LEAFCTL_CONTEXT={}", context.display());
        Ok(Self {
            bin: bin.to_owned(),
            dir: dir.to_owned(),
            context,
            leaf_port,
            _processes: processes,
        })
    }

    /// Starts a leaf that connects to the hub.
    fn leaf(&self, tree: &Path, directory: &Path, name: &str) -> Result<Leaf> {
        std::fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
        let settings = directory.join("leafd.toml");
        let hub = format!(
            "[nats.embedded.hub]\nurl = \"nats://127.0.0.1:{}\"\ncredentials = \"{}\"\n",
            self.leaf_port,
            self.dir.join(format!("{name}.seed")).display()
        );
        let text = format!(
            "name = \"{name}\"\nstate_dir = \"{}\"\n[nats.embedded]\nport = 0\naddress = \"127.0.0.1\"\n{hub}[containers]\nenable = false\n",
            state(directory).display()
        );
        std::fs::write(&settings, text).with_context(|| format!("can't write {}", settings.display()))?;
        let args = ["run".as_ref(), "--config".as_ref(), settings.as_os_str()];
        println!("\n$ cat {}\n…\n{hub}…", settings.display());
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

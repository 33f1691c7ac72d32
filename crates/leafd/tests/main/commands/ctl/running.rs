//! `leafctl nix run`, as a person uses it.

use jiff::Timestamp;
use leaf_bus::client::{CallOptions, Client, Signed};
use leaf_core::command::ChallengeSigner;
use leaf_core::id::{CommandId, JobId};
use leaf_core::signed::{NAMESPACE, SSH_KIND, SignedText, body_hash};
use leaf_trust::ssh_signature::SshSignature;
use uuid::Uuid;

use super::signing::{Person, requiring};
use super::*;
use crate::support::{HubSite, Wire};

/// A person who may run programs, and a leaf.
pub(super) struct Runner {
    pub(super) person: Person,
    pub(super) leaf: TestLeaf,
    /// The context with which the person connects.
    pub(super) context: PathBuf,
    key: String,
    /// A file with the package `tool`, whose program is `tool`.
    packages: String,
}

impl Runner {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let person = Person::with_keys(&["ann"]).await?;
        let allowed = person.allow("allowed", &["ann"])?;
        let leaf = requiring(Setup::new(), &allowed, &[])
            .set("trust.callers.admin", vec!["runs-code"])
            .start()
            .await?;
        let context = leaf.context_file();
        Self::of(person, leaf, context)
    }

    /// The same, for a person of a hub, `ann`, and a leaf behind it.
    pub(super) async fn at_a_hub(hub: &HubSite, wire: &Wire) -> anyhow::Result<Self> {
        let person = Person::with_keys(&["ann"]).await?;
        let allowed = person.allow_as("ann", "allowed", &["ann"])?;
        let leaf = requiring(hub.setup(wire), &allowed, &[])
            .set("trust.callers.ann", vec!["runs-code"])
            .start()
            .await?;
        Self::of(person, leaf, hub.context()?)
    }

    fn of(person: Person, leaf: TestLeaf, context: PathBuf) -> anyhow::Result<Self> {
        let packages = leaf.state_dir.join("packages.nix");
        std::fs::write(
            &packages,
            format!(
                "let busybox = builtins.path {{ path = /bin/busybox; name = \"busybox\"; }}; in {{ tool = derivation {{ \
                 name = \"{}-tool\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" '' \
                 b() {{ (exec -a busybox ${{busybox}} \"$@\"); }}; b mkdir -p $out/bin; echo it builds >&2; \
                 printf '#!/bin/busybox sh\\necho from the package: \"$@\"\\n' > $out/bin/tool; b chmod 755 $out/bin/tool'' ]; }}; }}",
                leaf.name
            ),
        )?;
        Ok(Self {
            key: person.path("ann").display().to_string(),
            packages: packages.display().to_string(),
            person,
            leaf,
            context,
        })
    }

    /// The arguments that run a command.
    pub(super) fn arguments<'a>(&'a self, options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
        let begin = ["nix", "run", "--sign-with", &self.key, "--file", &self.packages];
        let mut arguments = begin.to_vec();
        arguments.extend(options);
        arguments.extend(["tool", "--"]);
        arguments.extend(command);
        arguments
    }

    /// Runs a command to its end without a session, and returns what its record has.
    pub(super) async fn run(&self, options: &[&str], command: &[&str]) -> anyhow::Result<Output> {
        let options = [&["--record"], options].concat();
        self.person
            .ctl(&self.leaf, &self.arguments(&options, command))
            .await
    }

    /// Runs a shell script to its end without a session, and returns what its record has.
    pub(super) async fn script(&self, options: &[&str], script: &str) -> anyhow::Result<Output> {
        self.run(options, &["/bin/busybox", "sh", "-c", script]).await
    }

    /// The file of the person's key.
    pub(super) fn key(&self) -> String {
        self.key.clone()
    }

    /// The file of the packages.
    pub(super) fn packages(&self) -> &str {
        &self.packages
    }

    /// Begins a job with a request that the person signs.
    pub(super) async fn begin(&self, client: &Client, body: &Value) -> anyhow::Result<JobId> {
        let challenge = client
            .call(&self.leaf.name, &ChallengeSigner {}, CallOptions::default())
            .await?;
        let now = Timestamp::now();
        let body = body.to_string().into_bytes();
        let id = CommandId::from(Uuid::now_v7());
        let text = SignedText {
            caller: client.caller().clone(),
            noun: "nix".to_owned(),
            verb: "run".to_owned(),
            leaves: [(
                self.leaf.name.clone(),
                challenge.nonce.map(|nonce| nonce.parse()).transpose()?,
            )]
            .into(),
            body: body_hash(&body),
            id: id.clone(),
            time: Timestamp::from_second(now.as_second())?,
            expires: Timestamp::from_second(now.as_second() + 120)?,
        }
        .to_string();
        let private = std::fs::read(&self.key)?;
        let signature = SshSignature::sign(&private, NAMESPACE, text.as_bytes())?;
        let options = CallOptions {
            id: Some(id),
            signature: Some(Signed {
                text,
                kind: SSH_KIND,
                signature: signature.to_bytes(),
            }),
            ..CallOptions::default()
        };
        let reply = client
            .call_raw(&self.leaf.name, "nix", "run", body, options)
            .await?;
        let reply: Value = serde_json::from_slice(&reply)?;
        Ok(reply["job"].as_str().context("a job")?.parse()?)
    }

    /// Fails unless nothing of the programs is left.
    pub(super) async fn left_nothing(&self) -> anyhow::Result<()> {
        let jobs = document(&self.leaf, &["nix", "jobs"]).await?;
        let users: Vec<u32> = jobs["jobs"]
            .as_array()
            .context("jobs")?
            .iter()
            .filter_map(|job| job["id"].as_str()?.parse::<JobId>().ok())
            .map(|job| {
                let random = job.0.as_bytes().last_chunk::<4>().copied().unwrap_or_default();
                0x7000_0000 + u32::from_be_bytes(random) % 0x1000_0000
            })
            .collect();
        until("nothing of the programs is left", async || {
            let mut left = std::fs::read_dir("/proc")?
                .flatten()
                .filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok())
                .filter(|status| user_of(status).is_some_and(|user| users.contains(&user)));
            let is_left = |user: &u32| Path::new(&format!("/tmp/leaf-program-{user}")).exists();
            Ok((left.next().is_none() && !users.iter().any(is_left)).then_some(()))
        })
        .await
    }
}

fn user_of(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

pub(super) async fn recorded() -> anyhow::Result<()> {
    let runner = Runner::start().await?;
    let unsigned = [
        "nix",
        "run",
        "--record",
        "--file",
        &runner.packages,
        "tool",
        "--",
        "tool",
    ];
    ended(&runner.person.ctl(&runner.leaf, &unsigned).await?, 6, "ign")?;
    let output = runner.run(&[], &["tool", "a b", "$(id)"]).await?;
    ended(&output, 0, "")?;
    ensure!(
        text(&output.stdout) == "from the package: a b $(id)\n",
        "{output:?}"
    );

    let output = runner.script(&[], "echo out; echo err >&2; exit 3").await?;
    ended(&output, 3, "err")?;
    ensure!(text(&output.stdout) == "out\n", "{output:?}");
    let binary = runner.script(&[], r"printf '\377\000\001x'").await?;
    ensure!(binary.stdout == b"\xff\0\x01x", "{binary:?}");
    let long = runner
        .script(&[], "/bin/busybox yes | /bin/busybox head -c 100000; echo end")
        .await?;
    ensure!(
        long.stdout.len() == 32 * 1024 && long.stdout.ends_with(b"end\n"),
        "{}",
        long.stdout.len()
    );
    ended(&long, 0, "67236 bytes before it are left out")?;

    let who = "/bin/busybox id -u; /bin/busybox id -G; pwd; echo $HOME; echo $LEAFCTL_CONTEXT$NOTIFY_SOCKET$INVOCATION_ID; echo $A; \
               echo > $TMPDIR/x && echo > x && echo written; cat /proc/self/status | /bin/busybox grep -E 'NoNewPrivs|CapEff'; \
               ls -la $HOME/.. | /bin/busybox grep -c leaf-job";
    let output = runner.script(&["--env", "A=it's; \"$x\""], who).await?;
    let said = text(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    let user: u32 = lines.first().context("a user")?.parse()?;
    ensure!(user >= 0x7000_0000 && lines[1] == lines[0], "{said}");
    ensure!(lines[2] == lines[3] && lines[2].ends_with("/home"), "{said}");
    ensure!(
        lines[4].is_empty() && lines[5] == "it's; \"$x\"" && lines[6] == "written",
        "{said}"
    );
    ensure!(
        said.contains("NoNewPrivs:\t1") && said.contains("CapEff:\t0000000000000000"),
        "{said}"
    );
    let home = Path::new(lines[2]).parent().context("a directory")?.to_owned();
    ensure!(!home.exists(), "{} is left", home.display());
    let other = runner.script(&[], "/bin/busybox id -u").await?;
    ensure!(
        text(&other.stdout).trim() != lines[0],
        "two programs have one user"
    );
    // What acts before the program has left its runner's user.
    let preload = format!("LD_PRELOAD={}", runner.person.path("none.so").display());
    let output = runner
        .run(&["--env", &preload], &["/bin/busybox", "true"])
        .await?;
    ensure!(
        output.status.success() && !text(&output.stderr).contains("leafd"),
        "{output:?}"
    );

    ended(
        &runner.run(&[], &["no-such-program"]).await?,
        127,
        "no-such-program",
    )?;
    ended(&runner.run(&[], &["/etc/passwd"]).await?, 126, "denied")?;
    ended(
        &runner.run(&["--pure"], &["busybox"]).await?,
        127,
        "no directory of PATH",
    )?;
    ended(&runner.script(&[], "kill -9 $$").await?, 137, "")?;
    let output = runner
        .run(&["--json"], &["/bin/busybox", "sh", "-c", "echo x; exit 4"])
        .await?;
    ensure!(output.status.code() == Some(4), "{output:?}");
    let job: Value = serde_json::from_slice(&output.stdout)?;
    let result = &job["result"];
    ensure!(
        result["exit"]["code"] == 4 && result["stdout"]["text"] == "x\n" && result["run_time_ms"].is_u64(),
        "{job}"
    );
    ensure!(
        job["phase"] == "succeeded" && job["task"]["command"][3] == "echo x; exit 4",
        "{job}"
    );
    let package = result["packages"][0].as_str().context("a package")?;
    ensure!(Path::new(package).join("bin/tool").exists(), "{job}");
    valid(&job, "reply.job.cancel")?;
    let id = job["id"].as_str().context("an id")?;
    let log = printed(&runner.leaf, &["nix", "log", id]).await?;
    ensure!(!log.contains("echo x"), "{log}");
    let jobs = printed(&runner.leaf, &["nix", "jobs"]).await?;
    ensure!(
        jobs.contains("run /bin/busybox sh") && jobs.contains("ended with code 4"),
        "{jobs}"
    );
    runner.left_nothing().await
}

pub(super) async fn bounded() -> anyhow::Result<()> {
    let mut runner = Runner::start().await?;
    let output = runner
        .script(&["--time-limit", "2s"], "trap '' TERM HUP; while :; do :; done")
        .await?;
    ended(&output, 7, "longer than 2 s")?;
    runner.left_nothing().await?;
    // Its pipes stay open in a process of another session.
    let began = std::time::Instant::now();
    let output = runner
        .script(&[], "/bin/busybox setsid /bin/busybox sleep 1000 & echo gone")
        .await?;
    ended(&output, 0, "")?;
    ensure!(
        text(&output.stdout) == "gone\n" && began.elapsed() < Duration::from_secs(30),
        "{output:?}"
    );
    runner.left_nothing().await?;
    let forks = "n=0; while [ $n -lt 3000 ]; do /bin/busybox sleep 1000 & n=$((n+1)); done; echo all";
    let output = runner.script(&[], forks).await?;
    ensure!(!text(&output.stdout).contains("all"), "{output:?}");
    ensure!(text(&output.stderr).contains("fork"), "{}", text(&output.stderr));
    runner.left_nothing().await?;
    ensure!(
        runner.leaf.show().await?.name == runner.leaf.name,
        "the leaf answers"
    );

    // Nine at once: the bound of one caller is eight.
    let mut jobs = Vec::new();
    let sleeps = ["/bin/busybox", "sleep", "1000"];
    let mut running = Vec::new();
    for _ in 0..8 {
        let arguments = runner.arguments(&["--record"], &sleeps);
        let mut command = command(&arguments);
        command
            .env("LEAFCTL_CONTEXT", runner.leaf.context_file())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        running.push(command.spawn()?);
    }
    until(
        "eight programs run, since each leaves its place when Nix is done",
        async || {
            jobs = runner
                .leaf
                .jobs()
                .await?
                .into_iter()
                .filter(|job| !job.phase.is_final())
                .map(|job| job.id)
                .collect();
            let sleeping = std::fs::read_dir("/proc")?
                .flatten()
                .filter(|entry| {
                    let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
                    user_of(&status).is_some_and(|user| user >= 0x7000_0000)
                })
                .count();
            Ok((jobs.len() == 8 && sleeping == 8).then_some(()))
        },
    )
    .await?;
    ended(&runner.run(&[], &sleeps).await?, 8, "8 of one caller")?;
    // They outlive the daemon, and are found again.
    runner.leaf.kill().await?;
    runner.leaf.start_again().await?;
    for job in &jobs {
        printed(&runner.leaf, &["nix", "cancel", &job.to_string()]).await?;
    }
    for mut child in running {
        child.kill().await?;
    }
    runner.left_nothing().await
}

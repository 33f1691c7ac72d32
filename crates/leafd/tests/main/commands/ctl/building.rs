//! `leafctl nix build` and its jobs, as a person sees them.

use super::*;

/// Writes a derivation and returns the file.
pub(super) fn derivation(leaf: &TestLeaf, name: &str, script: &str) -> anyhow::Result<String> {
    let file = leaf.state_dir.join(format!("{name}.nix"));
    std::fs::write(
        &file,
        format!(
            "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; leaf = \"{}\"; args = [ \"-c\" ''{script}'' ]; }}",
            leaf.name
        ),
    )?;
    Ok(file.display().to_string())
}

pub(super) const ENDLESS: &str = "echo it began; while :; do read -t 1 line < /dev/zero; done";

pub(super) async fn builds() -> anyhow::Result<()> {
    let leaf = TestLeaf::start().await?;
    let good = derivation(&leaf, "good", "echo hello from the builder; echo x > $out")?;
    let bad = derivation(&leaf, "bad", "echo oh no; exit 3")?;
    let output = ctl(&leaf, &["nix", "build", "--file", &good]).await?;
    ended(&output, 0, "hello from the builder")?;
    let result = text(&output.stdout);
    ensure!(
        result.starts_with("store path  /nix/store/") && !result.contains("hello"),
        "{result}"
    );
    let job = document(&leaf, &["nix", "build", "--file", &good]).await?;
    ensure!(
        job["phase"] == "succeeded" && job["result"]["store_path"].is_string(),
        "{job}"
    );
    let link = leaf.state_dir.join("link").display().to_string();
    printed(&leaf, &["nix", "build", "--file", &good, "--out-link", &link]).await?;
    let target = std::fs::read_link(&link)?;
    ensure!(
        job["result"]["store_path"]
            .as_str()
            .is_some_and(|path| target.as_os_str() == path),
        "{target:?} {job}"
    );
    // A file that is in the way is not replaced, and the build not begun.
    ended(
        &ctl(&leaf, &["nix", "build", "--file", &good, "--out-link", &good]).await?,
        2,
        "exists and is no link",
    )?;
    let output = ctl(&leaf, &["nix", "build", "--file", &bad]).await?;
    ended(&output, 7, "failed with exit code 3")?;
    ended(&output, 7, "leafctl nix log")?;
    ended(&output, 7, "leafctl nix why")?;
    // The same under --json used to hang as soon as the builder printed something.
    let output = ctl(&leaf, &["nix", "build", "--file", &bad, "--json"]).await?;
    let said: Value = serde_json::from_slice(&output.stderr)?;
    ensure!(output.stdout.is_empty() && said["exit_code"] == 7, "{said}");
    let list = document(&leaf, &["nix", "jobs"]).await?;
    let jobs = list["jobs"].as_array().context("jobs")?;
    ensure!(jobs.len() == 5, "{list}");
    let last = jobs[0]["id"].as_str().context("an id")?;
    let log = printed(&leaf, &["nix", "log", last]).await?;
    ensure!(log.contains("oh no"), "{log}");
    let why = document(&leaf, &["nix", "why", last]).await?;
    ensure!(
        why["kind"] == "builder_failed"
            && why["exit_code"] == 3
            && why["log_tail"] == serde_json::json!(["oh no"]),
        "{why}"
    );
    ensure!(
        jobs[0]["explanation"] == serde_json::json!({ "kind": "builder_failed" }),
        "{list}"
    );
    let why = printed(&leaf, &["nix", "why", last]).await?;
    ensure!(
        why.contains("oh no")
            && why.contains("exit code")
            && why.contains(&format!("leafctl nix log {last}`")),
        "{why}"
    );
    // A path of this machine that is not on the leaf's.
    let elsewhere = ctl(&leaf, &["nix", "build", "/nowhere/hello#hello"]).await?;
    ended(
        &elsewhere,
        7,
        "paths are those of the leaf's machine: --local sends",
    )?;
    let succeeded = jobs[1]["id"].as_str().filter(|_| jobs[1]["phase"] == "succeeded");
    let succeeded = succeeded.or(jobs[3]["id"].as_str()).context("an id")?;
    ended(
        &ctl(&leaf, &["nix", "why", succeeded]).await?,
        5,
        "has succeeded: there is no failure to explain",
    )?;
    let chunks = printed(&leaf, &["nix", "log", last, "--json"]).await?;
    for line in chunks.lines() {
        valid(&serde_json::from_str(line)?, "reply.job.log")?;
    }
    let value = printed(&leaf, &["nix", "eval", "--file", &good, "name"]).await?;
    ensure!(value == "\"good\"\n", "{value}");
    let with_bash = leaf.state_dir.join("with-bash.nix").display().to_string();
    std::fs::write(
        &with_bash,
        "derivation { name = \"with-bash\"; system = builtins.currentSystem; builder = \"/bin/bash\"; \
         outputs = [ \"out\" ]; given = \"a b\"; stdenv = ./stdenv; }",
    )?;
    std::fs::create_dir(leaf.state_dir.join("stdenv"))?;
    std::fs::write(
        leaf.state_dir.join("stdenv/setup"),
        "greet() { echo hello; }; export PATH=/tools",
    )?;
    let environment = printed(&leaf, &["nix", "print-env", "--file", &with_bash]).await?;
    let environment: Value = serde_json::from_str(&environment)?;
    ensure!(
        environment["variables"]["given"] == serde_json::json!({ "type": "exported", "value": "a b" })
            && environment["variables"]["PATH"]["value"] == "/tools"
            && environment["bashFunctions"]["greet"].is_string(),
        "{environment}"
    );
    let output = ctl(&leaf, &["nix", "print-env", "--file", &good]).await?;
    ended(&output, 7, "'bash' as their builder")?;
    let checked = printed(&leaf, &["nix", "check", "--file", &good]).await?;
    ensure!(checked.starts_with("reproducible  /nix/store/"), "{checked}");
    let random = derivation(
        &leaf,
        "random",
        "read id < /proc/sys/kernel/random/uuid; echo $id > $out",
    )?;
    let output = ctl(&leaf, &["nix", "check", "--file", &random]).await?;
    ended(&output, 7, "is not reproducible")?;
    let list = document(&leaf, &["nix", "jobs"]).await?;
    let checked = list["jobs"][0]["id"].as_str().context("an id")?;
    let why = document(&leaf, &["nix", "why", checked]).await?;
    ensure!(
        why["kind"] == "not_reproducible"
            && why["differences"][0]["what"] == "content"
            && why["differences"][0]["file"]
                .as_str()
                .is_some_and(|file| file.ends_with("-random")),
        "{why}"
    );
    let why = printed(&leaf, &["nix", "why", checked]).await?;
    ensure!(why.contains("content from byte "), "{why}");
    let output = ctl(&leaf, &["nix", "build", "--impure", "--file", &good]).await?;
    ended(&output, 6, "nix.policy.impure refuses it here")?;
    let detached = printed(&leaf, &["nix", "build", "--detach", "--file", &good]).await?;
    detached.trim().parse::<leaf_core::id::JobId>()?;
    // What is already over can be cancelled as often as one likes.
    printed(&leaf, &["nix", "cancel", last]).await?;
    ended(
        &ctl(&leaf, &["nix", "build", "--time-limit", "0s", "--file", &good]).await?,
        6,
        "seconds",
    )
}

pub(super) async fn builds_a_flake() -> anyhow::Result<()> {
    let leaf = TestLeaf::start().await?;
    let dir = leaf.scratch().join("flake");
    std::fs::create_dir(&dir)?;
    let system = format!("{}-linux", std::env::consts::ARCH);
    let write = |bad: &str| {
        let of = |name: &str, script: &str| {
            format!(
                "derivation {{ name = \"{name}\"; system = \"{system}\"; builder = \"/bin/sh\"; leaf = \"{}\"; args = [ \"-c\" ''{script}'' ]; }}",
                leaf.name
            )
        };
        let text = format!(
            "{{ outputs = _: {{ packages.{system} = {{ good = {}; thrown = throw \"not today\"; }}; checks.{system} = {{ \"unit.1\" = {}; }}; }}; }}",
            of("good", "echo good > $out"),
            of("unit", bad)
        );
        std::fs::write(dir.join("flake.nix"), text)
    };
    write("echo wrong; exit 3")?;
    let reference = format!("path:{}", dir.display());
    let output = ctl(&leaf, &["nix", "ci", &reference, "--json"]).await?;
    let outcome: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        output.status.code() == Some(7) && outcome["succeeded"] == false,
        "{outcome}"
    );
    let said: Vec<_> = outcome["attributes"]
        .as_array()
        .context("attributes")?
        .iter()
        .map(|one| {
            (
                one["name"].as_str().unwrap_or_default(),
                &one["built"],
                &one["failure"],
            )
        })
        .collect();
    let (unit, good, thrown) = (
        format!("checks.{system}.\"unit.1\""),
        format!("packages.{system}.good"),
        format!("packages.{system}.thrown"),
    );
    let expected = [
        (&*unit, &Value::from(false), &Value::from("builder_failed")),
        (&good, &Value::from(true), &Value::Null),
        (&thrown, &Value::from(false), &Value::from("evaluation_error")),
    ];
    ensure!(said == expected, "{outcome}");
    ensure!(
        outcome["locked"]
            .as_str()
            .is_some_and(|locked| locked.contains("narHash")),
        "{outcome}"
    );
    let output = ctl(&leaf, &["nix", "ci", &reference]).await?;
    ended(&output, 7, "2 of 3 attributes are not built: `leafctl nix why ")?;
    let table = text(&output.stdout);
    ensure!(
        table.contains("builder_failed") && table.contains(&good),
        "{table}"
    );
    ended(
        &ctl(&leaf, &["nix", "ci", ".#a"]).await?,
        2,
        "without an attribute",
    )?;
    // It looks again, and builds what has changed.
    let mut child = spawned(&leaf, &["nix", "ci", &reference, "--poll", "5", "--json"])?;
    let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
    let first = lines.next_line().await?.context("a line")?;
    ensure!(first.contains("\"succeeded\":false"), "{first}");
    write("echo right > $out")?;
    let second = lines.next_line().await?.context("a line")?;
    let second: Value = serde_json::from_str(&second)?;
    let unit_now = &second["attributes"][0];
    ensure!(unit_now["built"] == true && unit_now["name"] == unit, "{second}");
    interrupt(&child)?;
    interrupted_child_ends(&mut child).await
}

pub(super) async fn collects() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    // A store of its own, so that nothing of the host's is deleted.
    let store = scratch.path().join("store");
    let store = store.to_str().context("UTF-8")?;
    let leaf = Setup::new().set("nix.options.store", store).start().await?;
    let file = derivation(&leaf, "kept", "echo kept > $out")?;
    let job = document(&leaf, &["nix", "build", "--file", &file]).await?;
    let (id, path) = (&job["id"], &job["result"]["store_path"]);
    let (id, path) = (id.as_str().context("an id")?, path.as_str().context("a path")?);
    let why = document(&leaf, &["nix", "gc", "why", path]).await?;
    ensure!(
        why["result"]["roots"][0]["job"] == id && why["result"]["roots"][0]["path"] == path,
        "{why}"
    );
    let why = printed(&leaf, &["nix", "gc", "why", path]).await?;
    ensure!(why.contains(&format!("the result of job {id}")), "{why}");
    let roots = printed(&leaf, &["nix", "gc", "roots"]).await?;
    ensure!(roots.contains(path), "{roots}");
    let bigger = derivation(&leaf, "kept", "printf %9000s x > $out")?;
    let bigger = document(&leaf, &["nix", "build", "--file", &bigger]).await?;
    let bigger = bigger["result"]["store_path"].as_str().context("a path")?;
    let diff = document(&leaf, &["nix", "diff", path, bigger]).await?;
    ensure!(
        diff["packages"][0]["size_bytes"] == 8992 && diff["system"].is_null(),
        "{diff}"
    );
    let diff = printed(&leaf, &["nix", "diff", path, bigger]).await?;
    ensure!(
        diff.contains("no version") && diff.contains("+8.78 KiB"),
        "{diff}"
    );
    ended(&ctl(&leaf, &["nix", "diff", path, "x"]).await?, 2, "store path")?;
    ended(
        &ctl(&leaf, &["system", "verify"]).await?,
        7,
        "runs no NixOS system",
    )?;
    printed(&leaf, &["nix", "gc"]).await?;
    let real = Path::new(store).join(path.trim_start_matches('/'));
    ensure!(real.exists(), "{real:?}");
    // By age of the job that holds it.
    let kept = document(&leaf, &["nix", "gc", "--older-than", "1d"]).await?;
    ensure!(kept["result"]["given_up_jobs"] == 0 && real.exists(), "{kept}");
    let would = document(&leaf, &["nix", "gc", "--dry-run", "--older-than", "0s"]).await?;
    ensure!(
        would["result"]["given_up_jobs"].as_u64() > Some(1) && real.exists(),
        "{would}"
    );
    let done = printed(&leaf, &["nix", "gc", "--older-than", "0s"]).await?;
    ensure!(done.starts_with("deleted") && !real.exists(), "{done}");
    let output = ctl(&leaf, &["nix", "gc", "why", path]).await?;
    ended(&output, 7, "is not in the store")?;
    let old = document(&leaf, &["nix", "jobs"]).await?;
    let jobs = old["jobs"].as_array().context("jobs")?;
    ensure!(jobs.iter().any(|job| job["id"] == id), "{old}");
    ended(&ctl(&leaf, &["nix", "gc", "why", "/etc"]).await?, 2, "store path")
}

pub(super) async fn interrupted() -> anyhow::Result<()> {
    let leaf = TestLeaf::start().await?;
    let endless = derivation(&leaf, "endless", ENDLESS)?;
    let mut child = spawned(&leaf, &["nix", "build", "--file", &endless])?;
    let mut lines = said_by(&mut child)?;
    line_with(&mut lines, "it began").await?;
    interrupt(&child)?;
    let said = line_with(&mut lines, "continues").await?;
    interrupted_child_ends(&mut child).await?;
    let list = document(&leaf, &["nix", "jobs"]).await?;
    let job = list["jobs"][0]["id"].as_str().context("an id")?;
    ensure!(list["jobs"][0]["phase"] == "running", "{list}");
    ensure!(
        said.contains(&format!("leafctl nix cancel {job}")) && said.contains("nix log --follow"),
        "{said}"
    );
    let ended = document(&leaf, &["nix", "cancel", job]).await?;
    ensure!(ended["phase"] == "cancelled", "{ended}");
    Ok(())
}

pub(super) async fn follows() -> anyhow::Result<()> {
    let leaf = Setup::new().set("nix.max_jobs", 1).start().await?;
    let endless = derivation(&leaf, "endless", ENDLESS)?;
    let after = derivation(&leaf, "after", "echo the second has its turn; echo x > $out")?;
    let first = printed(&leaf, &["nix", "build", "--detach", "--file", &endless]).await?;
    let second = printed(&leaf, &["nix", "build", "--detach", "--file", &after]).await?;
    let follower = spawned(&leaf, &["nix", "log", "--follow", second.trim()])?;
    let log = printed(&leaf, &["nix", "log", second.trim()]).await?;
    ensure!(log.is_empty(), "{log}");
    printed(&leaf, &["nix", "cancel", first.trim()]).await?;
    let output = tokio::time::timeout(Duration::from_secs(60), follower.wait_with_output())
        .await
        .context("the log ends")??;
    ended(&output, 0, "")?;
    ensure!(
        text(&output.stdout).contains("the second has its turn"),
        "{}",
        text(&output.stdout)
    );
    Ok(())
}

pub(super) async fn templates() -> anyhow::Result<()> {
    // leafd runs from `target` of this checkout.
    let leaf = TestLeaf::start().await?;
    let output = ctl(&leaf, &["nix", "build", "--template", "nothing"]).await?;
    let said = text(&output.stderr);
    ensure!(
        said.contains("this leaf has ") && said.contains("minimal"),
        "{said}"
    );
    Ok(())
}

/// The leaf is silent for longer than leafctl waits, and carries the command out afterwards.
pub(super) async fn repeated() -> anyhow::Result<()> {
    let leaf = TestLeaf::start().await?;
    let build = ["nix", "build", "--detach", "--file", "/nowhere.nix"];
    let silent = async |more: &[&str]| {
        leaf.signal(rustix::process::Signal::STOP)?;
        let output = ctl(&leaf, &[&build[..], &["--timeout", "1s"], more].concat()).await;
        leaf.signal(rustix::process::Signal::CONT)?;
        output
    };
    let lost = silent(&["--json"]).await?;
    ended(&lost, 4, "did not answer within 1 s")?;
    let said: Value = serde_json::from_slice(&lost.stderr)?;
    let id = said["command_id"].as_str().context("the command's id")?;
    let repeat = [&build[..], &["--command-id", id]].concat();
    let first = printed(&leaf, &repeat).await?;
    let again = printed(&leaf, &repeat).await?;
    ensure!(first == again, "{first}, then {again}");
    let list = document(&leaf, &["nix", "jobs"]).await?;
    ensure!(
        list["jobs"].as_array().map(Vec::len) == Some(1),
        "the command was carried out more than once: {list}"
    );
    ended(
        &silent(&[]).await?,
        4,
        "hint: repeat the command with --command-id ",
    )
}

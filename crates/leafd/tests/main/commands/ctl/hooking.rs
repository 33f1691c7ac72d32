//! `leafctl nix build-hook`: a stock Nix of this machine builds on leaves. All parts are real: that Nix with a store of its own, the hook,
//! the server, leafd and the Nix of each leaf.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;

use super::fleet::Fleet;
use super::placing::seconds;
use super::*;
use crate::support::FURTHER_NIX;

/// Leaves, and a person's Nix that builds on them.
struct Site {
    fleet: Fleet,
    place: tempfile::TempDir,
    hook: PathBuf,
}

impl Site {
    /// Starts leaves with as many jobs at once. The last one has the feature kvm.
    async fn start(leaves: usize, max_jobs: u16) -> anyhow::Result<Self> {
        let place = tempfile::tempdir()?;
        let fleet = Fleet::start_with(leaves, |number, setup| {
            let store = place.path().join(format!("store-{number}")).display().to_string();
            // A machine that is busy with other tests is judged by the leaf's jobs alone.
            let setup = setup
                .set("nix.options.store", store)
                .set("nix.max_jobs", i64::from(max_jobs))
                .set("nix.room.cpu_percent", 100)
                .set("nix.room.memory_percent", 100)
                .set("nix.room.io_percent", 100);
            match number + 1 == leaves {
                true => setup.set("nix.features.kvm", 1),
                false => setup,
            }
        })
        .await?;
        let hook = place.path().join("hook");
        let script = format!(
            "#!/bin/sh\nexec {} --context {} nix build-hook \"$@\"\n",
            program().display(),
            fleet.leaves[0].context_file().display()
        );
        std::fs::write(&hook, script)?;
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755))?;
        std::fs::write(
            place.path().join("nix.conf"),
            "experimental-features = nix-command flakes\nsubstituters =\nbuild-users-group =\nsandbox = false\nmax-jobs = 0\n",
        )?;
        let site = Self { fleet, place, hook };
        until("all leaves are listed as builders", async || {
            let list = site.fleet.printed(&["--json", "leaf", "list"]).await?;
            let list: Value = serde_json::from_str(&list)?;
            let listed = list["leaves"].as_array().context("leaves")?;
            let builders = listed.iter().filter(|leaf| leaf["nix"].is_object());
            Ok((builders.count() == leaves).then_some(()))
        })
        .await?;
        Ok(site)
    }

    /// The person's Nix, one of a directory or that of the host.
    fn nix(&self, programs: Option<&Path>, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs.map_or(program.into(), |directory| directory.join(program)));
        if let Some(directory) = programs {
            let rest = std::env::var_os("PATH").unwrap_or_default();
            let directories = std::iter::once(directory.to_owned()).chain(std::env::split_paths(&rest));
            command.env("PATH", std::env::join_paths(directories).expect("no colon in it"));
        }
        command
            .args(arguments)
            .args(["--store", &self.place.path().join("own").display().to_string()])
            .env("NIX_CONF_DIR", self.place.path())
            .env_remove("NIX_CONFIG")
            .env("TMPDIR", self.place.path().join("runtime"))
            .env("XDG_RUNTIME_DIR", self.place.path().join("runtime"))
            .env_remove("LEAFCTL_CONTEXT")
            .env_remove("LEAFCTL_LEAF")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn build(&self, programs: Option<&Path>, file: &str, more: &[&str]) -> Command {
        std::fs::create_dir_all(self.place.path().join("runtime")).expect("a directory of this test");
        let hook = self.hook.display().to_string();
        let mut arguments = vec!["build", "--impure", "--no-link", "--print-out-paths"];
        // Nix 2.8 prints no paths.
        arguments.truncate(if programs.is_none() { 3 } else { 4 });
        arguments.extend(["--option", "build-hook", &hook, "-f", file]);
        arguments.extend(more);
        self.nix(programs, "nix", &arguments)
    }

    /// Writes an expression whose value is this, with `make NAME SCRIPT FEATURES`.
    fn expression(&self, name: &str, value: &str) -> anyhow::Result<String> {
        let file = self.place.path().join(format!("{name}.nix"));
        let seed = self.fleet.name(0);
        std::fs::write(
            &file,
            format!(
                "let make = name: script: features: derivation {{ inherit name; system = \"{}-linux\"; builder = \"/bin/sh\"; \
                 seed = \"{seed}\"; requiredSystemFeatures = features; args = [ \"-c\" script ]; }}; in {value}",
                std::env::consts::ARCH
            ),
        )?;
        Ok(file.display().to_string())
    }

    /// The paths of the person's store whose name ends so.
    fn own(&self, end: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.place.path().join("own/nix/store"));
        let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
        paths
            .filter(|path| path.to_string_lossy().ends_with(end))
            .collect()
    }

    /// The jobs of all leaves, each with its leaf.
    async fn jobs(&self) -> anyhow::Result<Vec<(usize, Value)>> {
        let mut jobs = Vec::new();
        for number in 0..self.fleet.leaves.len() {
            let arguments = ["--json", "nix", "jobs", "--leaf", self.fleet.name(number)];
            let (output, _) = self.fleet.ctl(&arguments).await?;
            if !output.status.success() {
                continue;
            }
            let list: Value = serde_json::from_slice(&output.stdout)?;
            jobs.extend(
                list["jobs"]
                    .as_array()
                    .context("jobs")?
                    .iter()
                    .map(|job| (number, job.clone())),
            );
        }
        Ok(jobs)
    }

    /// Waits until a job is in a phase, and returns its leaf.
    async fn is(&self, phase: &str) -> anyhow::Result<usize> {
        until(&format!("a job is {phase}"), async || {
            let jobs = self.jobs().await?;
            Ok(jobs
                .iter()
                .find(|(_, job)| job["phase"] == phase)
                .map(|(leaf, _)| *leaf))
        })
        .await
    }
}

async fn ends(mut command: Command) -> anyhow::Result<Output> {
    Ok(tokio::time::timeout(Duration::from_secs(180), command.output()).await??)
}

/// Fails unless it has succeeded.
fn succeeded(output: &Output) -> anyhow::Result<()> {
    ensure!(
        output.status.success(),
        "{}: {}",
        output.status,
        text(&output.stderr)
    );
    Ok(())
}

pub(super) async fn builds_of_nix() -> anyhow::Result<()> {
    let site = Site::start(2, 2).await?;
    builds_with(&site, None, "host").await
}

/// Has a version of Nix build three derivations that need each other.
async fn builds_with(site: &Site, programs: Option<&Path>, name: &str) -> anyhow::Result<()> {
    let value = format!(
        "let lib = make \"{name}-lib\" \"echo the lib; echo lib > $out\" []; \
         other = derivation {{ name = \"{name}-other\"; system = \"{}-linux\"; builder = \"/bin/sh\"; outputs = [ \"out\" \"doc\" ]; \
         seed = \"{}\"; requiredSystemFeatures = [ \"kvm\" ]; args = [ \"-c\" \"echo other > $out; echo $out > $doc\" ]; }}; \
         in make \"{name}-tool\" \"read x < ${{lib}}; read y < ${{other}}; echo it is $x and $y; echo $x $y ${{lib}} ${{other.doc}} > $out\" []",
        std::env::consts::ARCH,
        site.fleet.name(0)
    );
    let file = site.expression(name, &value)?;
    let output = ends(site.build(programs, &file, &["-L"])).await?;
    succeeded(&output)?;
    let said = text(&output.stderr);
    ensure!(
        said.contains("it is lib and other"),
        "the log is not shown: {said}"
    );
    let [tool] = <[PathBuf; 1]>::try_from(site.own(&format!("{name}-tool")))
        .map_err(|paths| anyhow::anyhow!("{paths:?}"))?;
    let built = std::fs::read_to_string(&tool)?;
    ensure!(built.starts_with("lib other /nix/store/"), "{built}");
    for word in built.split_whitespace().skip(2) {
        let path = site.place.path().join("own").join(word.trim_start_matches('/'));
        ensure!(path.exists(), "{} is not here", path.display());
    }
    // The store is whole by Nix's own words, and has the builder's log.
    let store = ["--verify", "--check-contents"];
    let verified = ends(site.nix(programs, "nix-store", &store)).await?;
    succeeded(&verified)?;
    ensure!(
        !text(&verified.stderr).contains("error"),
        "{}",
        text(&verified.stderr)
    );
    let derivation = site.own(&format!("{name}-tool.drv"));
    let base = derivation[0]
        .file_name()
        .context("a name")?
        .to_string_lossy()
        .into_owned();
    let log = ends(site.nix(
        programs,
        "nix-store",
        &["--read-log", &format!("/nix/store/{base}")],
    ))
    .await?;
    ensure!(text(&log.stdout).trim() == "it is lib and other", "{log:?}");
    // Nothing is locked any more, and nothing is left on the way.
    let again = ends(site.build(programs, &file, &[])).await?;
    succeeded(&again)
}

pub(super) async fn further_versions() -> anyhow::Result<()> {
    let site = Site::start(1, 2).await?;
    let directories = std::env::var_os(FURTHER_NIX).context("directories of programs")?;
    for (number, directory) in std::env::split_paths(&directories).enumerate() {
        builds_with(&site, Some(&directory), &format!("further-{number}"))
            .await
            .with_context(|| directory.display().to_string())?;
    }
    Ok(())
}

pub(super) async fn refusals() -> anyhow::Result<()> {
    let site = Site::start(1, 2).await?;
    // The builder fails, and its log is there.
    let file = site.expression("bad", "make \"bad\" \"echo oh no; exit 3\" []")?;
    let output = ends(site.build(None, &file, &["-L"])).await?;
    ensure!(!output.status.success());
    let said = text(&output.stderr);
    ensure!(
        said.contains("failed with exit code 100") && said.contains("oh no"),
        "{said}"
    );
    ensure!(site.jobs().await?.len() == 1, "it was tried again");
    // What no leaf has is declined at once, so Nix says what it lacks itself.
    let file = site.expression("odd", "make \"odd\" \"echo x > $out\" [ \"nobody-has-it\" ]")?;
    let output = ends(site.build(None, &file, &[])).await?;
    ensure!(!output.status.success());
    ensure!(site.jobs().await?.len() == 1, "it was sent to a leaf");
    // Where no server is, Nix is told so, and can build by itself.
    let script = format!(
        "#!/bin/sh\nexec {} --server nats://127.0.0.1:1 nix build-hook \"$@\"\n",
        program().display()
    );
    std::fs::write(&site.hook, script)?;
    let file = site.expression("alone", "make \"alone\" \"echo alone > $out\" []")?;
    let output = ends(site.build(None, &file, &[])).await?;
    ensure!(!output.status.success());
    let said = text(&output.stderr);
    ensure!(said.contains("the leaves can't be read"), "{said}");
    Ok(())
}

pub(super) async fn parallel() -> anyhow::Result<()> {
    let site = Site::start(1, 10).await?;
    let names: Vec<String> = (0..10).map(|number| format!("many-{number}")).collect();
    let all: Vec<String> = names
        .iter()
        .map(|name| format!("(make \"{name}\" ''{}'' [])", seconds(3)))
        .collect();
    let file = site.expression("many", &format!("[ {} ]", all.join(" ")))?;
    let mut child = site.build(None, &file, &[]).spawn()?;
    // Nix has all of them under way at once.
    until("ten jobs run", async || {
        let jobs = site.jobs().await?;
        let running = jobs.iter().filter(|(_, job)| job["phase"] == "running");
        let succeeded = jobs.iter().filter(|(_, job)| job["phase"] == "succeeded");
        ensure!(
            succeeded.count() == 0,
            "one has ended before all were begun: {jobs:?}"
        );
        Ok((running.count() == 10).then_some(()))
    })
    .await?;
    let status = child.wait().await?;
    ensure!(status.success(), "{status}");
    for name in names {
        ensure!(site.own(&name).len() == 1, "{name}");
    }
    Ok(())
}

pub(super) async fn dead_builder() -> anyhow::Result<()> {
    let mut site = Site::start(2, 2).await?;
    let file = site.expression("slow", &format!("make \"slow\" ''{}'' []", seconds(6)))?;
    let child = site.build(None, &file, &[]).spawn()?;
    let leaf = site.is("running").await?;
    let began = Instant::now();
    site.fleet.leaves[leaf].kill().await?;
    let output = tokio::time::timeout(Duration::from_secs(180), child.wait_with_output()).await??;
    succeeded(&output)?;
    ensure!(site.own("-slow").len() == 1);
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(90), "it took {took:?}");
    // One that is dead before a build is asked of it is skipped, though its beat is not old yet or the other way round.
    let file = site.expression("next", "make \"next\" \"echo next > $out\" []")?;
    succeeded(&ends(site.build(None, &file, &[])).await?)
}

pub(super) async fn cancelled() -> anyhow::Result<()> {
    let site = Site::start(1, 2).await?;
    let file = site.expression(
        "endless",
        &format!("make \"endless\" ''{}'' []", building::ENDLESS),
    )?;
    for signal in [Signal::INT, Signal::KILL] {
        let mut child: Child = site.build(None, &file, &[]).spawn()?;
        site.is("running").await?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        kill_process(pid.context("it runs")?, signal)?;
        child.wait().await?;
        until("no job runs", async || {
            let jobs = site.jobs().await?;
            Ok(jobs
                .iter()
                .all(|(_, job)| job["phase"] == "cancelled")
                .then_some(()))
        })
        .await
        .with_context(|| format!("{signal:?}"))?;
        let left: Vec<PathBuf> = std::fs::read_dir(site.place.path().join("runtime"))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        let is_work = |path: &&PathBuf| path.to_string_lossy().contains("/leafctl-");
        ensure!(!left.iter().any(|path| is_work(&path)), "{left:?}");
    }
    Ok(())
}

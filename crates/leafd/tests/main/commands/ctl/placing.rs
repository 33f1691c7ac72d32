//! `leafctl nix build --any`: which of several leaves gets a build.

use leaf_core::job::Installable;
use leaf_core::placement::JobKey;
use leaf_core::placement::choice::sort_by_rendezvous;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::fleet::Fleet;
use super::*;

/// The number of leaves. The last one has the feature kvm, twice.
const LEAVES: usize = 3;

/// Returns the script of a builder that takes this many seconds.
pub(super) fn seconds(count: u32) -> String {
    format!(
        "i=0; while [ $i -lt {count} ]; do read -t 1 line < /dev/zero; i=$((i + 1)); done; echo done > $out"
    )
}

/// A flake that any leaf can fetch, served over HTTP until it is dropped.
pub(super) struct Served {
    url: String,
    _directory: tempfile::TempDir,
    _server: JoinSet<()>,
}

impl Served {
    /// Serves a flake whose package `endless` never ends, whose package `quick` does at once, and `slow` after half a minute, while `short`
    /// takes some seconds.
    pub(super) async fn start(seed: &str) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let flake = directory.path().join("flake");
        std::fs::create_dir(&flake)?;
        let package = |name: &str, script: &str| {
            format!(
                "{name} = derivation {{ name = \"{name}-{seed}\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; args = [ \"-c\" ''{script}'' ]; }};"
            )
        };
        let text = format!(
            "{{ outputs = _: {{ packages.x86_64-linux = {{ {} {} {} {} }}; }}; }}",
            package("endless", building::ENDLESS),
            package("quick", "echo quick > $out"),
            package("slow", &seconds(30)),
            package("short", &seconds(8)),
        );
        std::fs::write(flake.join("flake.nix"), text)?;
        let archive = directory.path().join("flake.tar.gz");
        let status = Command::new("tar")
            .args(["--create", "--gzip", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(directory.path())
            .arg("flake")
            .status()
            .await?;
        ensure!(status.success(), "tar: {status}");
        let body = std::fs::read(&archive)?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/flake.tar.gz", listener.local_addr()?);
        let mut server = JoinSet::new();
        server.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                if stream.read(&mut request).await.is_ok() {
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    // A client that went away needs no answer.
                    let _ = stream.write_all(head.as_bytes()).await;
                    let _ = stream.write_all(&body).await;
                }
            }
        });
        Ok(Self {
            url,
            _directory: directory,
            _server: server,
        })
    }

    pub(super) fn package(&self, name: &str) -> String {
        format!("{}#{name}", self.url)
    }
}

/// Returns the leaves in the order in which they are asked about a build.
fn order(fleet: &Fleet, reference: &str) -> Vec<String> {
    let key = JobKey::of_build([&Installable::Flake {
        reference: reference.to_owned(),
    }]);
    let mut leaves: Vec<LeafName> = fleet.leaves.iter().map(|leaf| leaf.name.clone()).collect();
    sort_by_rendezvous(&key, &mut leaves, |leaf| leaf);
    leaves.iter().map(LeafName::to_string).collect()
}

/// Sends a build to any leaf, without waiting for its end, and returns the leaf and the job.
async fn place(fleet: &Fleet, arguments: &[&str]) -> anyhow::Result<(String, String)> {
    let all: Vec<&str> = ["nix", "build", "--any", "--detach", "--json"]
        .iter()
        .chain(arguments)
        .copied()
        .collect();
    let (output, _) = fleet.ctl(&all).await?;
    ensure!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    let line: Value = serde_json::from_slice(&output.stdout)?;
    let of = |value: &Value| value.as_str().map(str::to_owned);
    let leaf = of(&line["leaf"]).with_context(|| line.to_string())?;
    let job = of(&line["reply"]["job"]).with_context(|| line.to_string())?;
    ensure!(text(&output.stderr).contains(&leaf), "{}", text(&output.stderr));
    Ok((leaf, job))
}

/// Waits until a job is in a phase.
async fn is(fleet: &Fleet, (leaf, job): &(String, String), phase: &str) -> anyhow::Result<()> {
    until(&format!("the job is {phase}"), async || {
        let list = fleet.printed(&["nix", "jobs", "--leaf", leaf, "--json"]).await?;
        let list: Value = serde_json::from_str(&list)?;
        let jobs = list["jobs"].as_array().context("jobs")?;
        Ok(jobs
            .iter()
            .any(|listed| listed["id"] == job.as_str() && listed["phase"] == phase)
            .then_some(()))
    })
    .await
}

async fn cancel(fleet: &Fleet, (leaf, job): &(String, String)) -> anyhow::Result<()> {
    fleet
        .printed(&["nix", "cancel", "--leaf", leaf, job])
        .await
        .map(drop)
}

async fn three() -> anyhow::Result<Fleet> {
    let fleet = Fleet::start_with(LEAVES, |number, setup| {
        // A machine that is busy with other tests is judged by the leaf's jobs alone.
        let mut setup = setup
            .set("nix.max_jobs", 1)
            .set("nix.room.cpu_percent", 100)
            .set("nix.room.memory_percent", 100)
            .set("nix.room.io_percent", 100);
        if number == LEAVES - 1 {
            setup = setup.set("nix.features.kvm", 2);
        }
        setup
    })
    .await?;
    // Beats say what a leaf has.
    until("all leaves are listed", async || {
        let list = fleet.printed(&["leaf", "list"]).await?;
        Ok(fleet
            .leaves
            .iter()
            .all(|leaf| list.contains(leaf.name.as_str()))
            .then_some(()))
    })
    .await?;
    Ok(fleet)
}

pub(super) async fn spreads() -> anyhow::Result<()> {
    let fleet = three().await?;
    let served = Served::start(fleet.name(0)).await?;
    let endless = served.package("endless");
    let order_of_endless = order(&fleet, &endless);
    // The same build, asked for twice at once, is at one leaf, and the second waits there for the first.
    let arguments = [endless.as_str()];
    let (first, second) = tokio::try_join!(place(&fleet, &arguments), place(&fleet, &arguments))?;
    ensure!(
        first.0 == order_of_endless[0] && second.0 == first.0 && first.1 != second.1,
        "{first:?} {second:?} {order_of_endless:?}"
    );
    let older = if first.1 < second.1 {
        (&first, &second)
    } else {
        (&second, &first)
    };
    is(&fleet, older.0, "running").await?;
    is(&fleet, older.1, "queued").await?;

    // Others go where there is room, in their own order.
    let quick = served.package("quick");
    let expected = order(&fleet, &quick).into_iter().find(|leaf| *leaf != first.0);
    let (output, _) = fleet.ctl(&["nix", "build", "--any", "--json", &quick]).await?;
    let line: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        line["leaf"].as_str() == expected.as_deref() && line["reply"]["phase"] == "succeeded",
        "{line} {expected:?}"
    );
    // A selection narrows it down.
    let (output, _) = fleet
        .ctl(&[
            "nix", "build", "--any", "--json", "--leaf", &first.0, "--detach", &quick,
        ])
        .await?;
    let line: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(line["leaf"] == first.0.as_str(), "{line}");
    let waits = (
        first.0.clone(),
        line["reply"]["job"].as_str().context("a job")?.to_owned(),
    );
    is(&fleet, &waits, "queued").await?;
    for job in [&waits, older.1, older.0] {
        cancel(&fleet, job).await?;
    }
    Ok(())
}

pub(super) async fn by_what_it_takes() -> anyhow::Result<()> {
    let fleet = three().await?;
    let served = Served::start(fleet.name(0)).await?;
    let (endless, quick) = (served.package("endless"), served.package("quick"));
    let with_kvm = fleet.name(LEAVES - 1).to_owned();
    let both = place(&fleet, &["--feature", "kvm=2", &endless]).await?;
    ensure!(both.0 == with_kvm, "{both:?}");
    is(&fleet, &both, "running").await?;
    // No other leaf has it, so it waits there.
    let one = place(&fleet, &["--feature", "kvm", "--priority", "high", &quick]).await?;
    ensure!(one.0 == with_kvm, "{one:?}");
    is(&fleet, &one, "queued").await?;
    cancel(&fleet, &both).await?;
    is(&fleet, &one, "succeeded").await?;

    let refused = async |arguments: &[&str], code, says| {
        let all: Vec<&str> = ["nix", "build", "--any"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        ended(&fleet.ctl(&all).await?.0, code, says)
    };
    refused(
        &["--feature", "gpu", &quick],
        5,
        "3 other leaves are away, or lack Nix, the system or a feature",
    )
    .await?;
    refused(
        &["--feature", "kvm=3", &quick],
        5,
        "no leaf can carry out the build",
    )
    .await?;
    refused(
        &["--system", "riscv64-linux", &quick],
        5,
        "no leaf can carry out the build",
    )
    .await?;
    refused(&["--feature", "k vm", &quick], 2, "not the name of a feature").await?;
    refused(&["/srv/flake#a"], 2, "name the leaf with --leaf").await?;
    refused(&["--file", "/srv/a.nix", "a"], 2, "--any").await?;
    // A leaf that is named refuses what it does not have itself.
    let first = fleet.name(0).to_owned();
    let (output, _) = fleet
        .ctl(&["nix", "build", "--leaf", &first, "--feature", "kvm", &quick])
        .await?;
    ended(&output, 6, "the leaf has no feature kvm (nix.features)")
}

pub(super) async fn where_one_hangs() -> anyhow::Result<()> {
    let fleet = three().await?;
    let served = Served::start(fleet.name(0)).await?;
    let endless = served.package("endless");
    let order = order(&fleet, &endless);
    let number = (0..LEAVES)
        .find(|number| fleet.name(*number) == order[0])
        .context("it is one of them")?;
    fleet.leaves[number].signal(Signal::STOP)?;
    let placed = place(&fleet, &[&endless]).await?;
    fleet.leaves[number].signal(Signal::CONT)?;
    ensure!(placed.0 == order[1], "{placed:?} {order:?}");
    cancel(&fleet, &placed).await
}

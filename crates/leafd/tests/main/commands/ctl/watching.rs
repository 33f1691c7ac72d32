//! `leafctl nix attach`, as a person uses it.

use super::sessions::Screen;
use super::*;

/// Writes a derivation that has no end by itself, and needs another one that is built first.
fn endless_with_a_need(leaf: &TestLeaf) -> anyhow::Result<String> {
    let file = leaf.state_dir.join("two.nix");
    let of = |name: &str, script: &str| {
        format!(
            "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; leaf = \"{}\"; args = [ \"-c\" ''{script}'' ]; }}",
            leaf.name
        )
    };
    let first = of("the-need", "echo made > $out");
    let second = of(
        "the-endless",
        &format!(
            "echo ${{need}}; printf 'red \\033[31mline\\n'; {}",
            building::ENDLESS
        ),
    );
    std::fs::write(&file, format!("let need = {first}; in {second}"))?;
    Ok(file.display().to_string())
}

pub(super) async fn from_anywhere() -> anyhow::Result<()> {
    let leaf = Setup::new().set("nix.max_jobs", 1).start().await?;
    let file = endless_with_a_need(&leaf)?;
    let job = printed(&leaf, &["nix", "build", "--detach", "--file", &file]).await?;
    let job = job.trim();
    // On a terminal: the tree, drawn in place.
    let mut screen = Screen::open_with(&leaf, (60, 12), &["nix", "attach", job])?;
    screen.shows("▶ the-endless").await?;
    screen.shows("│ it began").await?;
    screen.shows("└─ ✔ the-need").await?;
    screen.shows("1 of 2 built, 1 running").await?;
    interrupt(&screen.child)?;
    screen.shows("continues").await?;
    ensure!(screen.ended().await? == Some(130), "{screen:?}");
    // As JSON, for a program.
    let report = document(&leaf, &["nix", "jobs"]).await?;
    ensure!(report["jobs"][0]["phase"] == "running", "{report}");
    // Without one: a line for each begin and end. A second look, at the same time.
    let mut child = spawned(&leaf, &["nix", "attach", job])?;
    let mut lines = said_by(&mut child)?;
    line_with(&mut lines, "✔ the-need").await?;
    line_with(&mut lines, "▶ the-endless").await?;
    let queued = derivation(&leaf, "after", "echo x > $out")?;
    let after = printed(&leaf, &["nix", "build", "--detach", "--file", &queued]).await?;
    let mut waiting = spawned(&leaf, &["nix", "attach", after.trim()])?;
    line_with(&mut said_by(&mut waiting)?, "queued").await?;
    printed(&leaf, &["nix", "cancel", job]).await?;
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait()).await??;
    ensure!(output.code() == Some(7), "{output:?}");
    // What has its turn then ends for the one who watches as it does for who built it.
    let output = tokio::time::timeout(Duration::from_secs(60), waiting.wait_with_output()).await??;
    ensure!(
        output.status.success() && text(&output.stdout).starts_with("store path"),
        "{output:?}"
    );
    let ended_job = document(&leaf, &["nix", "attach", after.trim()]).await?;
    ensure!(ended_job["phase"] == "succeeded", "{ended_job}");
    let output = ctl(&leaf, &["nix", "attach", job]).await?;
    ended(&output, 7, "cancelled")?;
    let nobody = "01890a5d-ac96-774b-bcce-b302099a8057";
    ended(
        &ctl(&leaf, &["nix", "attach", nobody]).await?,
        5,
        "does not exist",
    )
}

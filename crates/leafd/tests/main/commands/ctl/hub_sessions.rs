//! Sessions of a person at a hub, with a leaf behind it whose link is cut meanwhile.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::developing::Workshop;
use super::running::Runner;
use super::sessions::{Screen, bytes, last_job, start};
use super::*;
use crate::support::{HubSite, Wire};

/// A hub with its agent, and the wire to the leaf of a [`Runner`].
struct Site {
    _hub: HubSite,
    wire: Wire,
    runner: Runner,
}

impl Site {
    async fn start() -> anyhow::Result<Self> {
        let mut hub = HubSite::start().await?;
        hub.start_agent()?;
        let wire = hub.wire().await?;
        let runner = Runner::at_a_hub(&hub, &wire).await?;
        let site = Self {
            _hub: hub,
            wire,
            runner,
        };
        site.heard(true).await?;
        Ok(site)
    }

    /// Waits until the leaf answers at the hub, or does not.
    async fn heard(&self, is_heard: bool) -> anyhow::Result<()> {
        let name = self.runner.leaf.name.as_str();
        until("the leaf answers at its hub, or does not", async || {
            let mut show = command(&["leaf", "show", name, "--timeout", "1s"]);
            show.env("LEAFCTL_CONTEXT", &self.runner.context);
            Ok((run(show).await?.status.success() == is_heard).then_some(()))
        })
        .await
    }

    async fn cut(&self) -> anyhow::Result<()> {
        self.wire.cut();
        self.heard(false).await
    }
}

pub(super) async fn pipes() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut child = start(
        &site.runner,
        "while read line; do echo \"got $line\"; done; echo end >&2; exit 3",
    )?;
    let (mut stdin, stdout) = (
        child.stdin.take().context("piped")?,
        child.stdout.take().context("piped")?,
    );
    let mut lines = BufReader::new(stdout).lines();
    for round in 0..3 {
        for number in 0..20 {
            stdin.write_all(format!("{round} {number}\n").as_bytes()).await?;
            if round < 2 && number == 10 {
                // In the second round what was typed before has come back, and the reads of the session wait.
                if round == 0 {
                    first_line(&mut lines, "got 0 0").await?;
                }
                site.cut().await?;
            }
        }
        site.wire.mend();
        for number in 0..20 {
            if (round, number) != (0, 0) {
                first_line(&mut lines, &format!("got {round} {number}")).await?;
            }
        }
    }
    drop(stdin);
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await??;
    ended(&output, 3, "end\n")?;

    // Much of it, which the link is cut amid.
    let mut child = start(&site.runner, "/bin/busybox cat")?;
    let (mut stdin, mut stdout) = (
        child.stdin.take().context("piped")?,
        child.stdout.take().context("piped")?,
    );
    let input = bytes(3_000_000);
    let (given, all) = (input.clone(), input.len());
    let writing = async move { stdin.write_all(&given).await };
    let reading = async {
        let mut read = vec![0; all];
        let parts = [400_000, 1_500_000, all];
        let mut begin = 0;
        for part in parts {
            tokio::time::timeout(Duration::from_secs(90), stdout.read_exact(&mut read[begin..part]))
                .await
                .with_context(|| format!("the bytes from {begin} on"))??;
            begin = part;
            if part < all {
                site.cut().await?;
                site.wire.mend();
            }
        }
        let mut more = Vec::new();
        stdout.read_to_end(&mut more).await?;
        ensure!(more.is_empty(), "{} bytes more came", more.len());
        Ok(read)
    };
    let (written, read) = tokio::join!(writing, reading);
    written?;
    ensure!(read? == input, "other bytes came back");
    ensure!(child.wait().await?.success());
    site.runner.left_nothing().await
}

async fn first_line(
    lines: &mut Lines<BufReader<tokio::process::ChildStdout>>,
    expected: &str,
) -> anyhow::Result<()> {
    let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line())
        .await
        .with_context(|| format!("waiting for {expected:?}"))??;
    ensure!(line.as_deref() == Some(expected), "{line:?} and not {expected:?}");
    Ok(())
}

pub(super) async fn terminal() -> anyhow::Result<()> {
    let Site { _hub, wire, runner } = Site::start().await?;
    let shop = Workshop::of(runner)?;
    let site = Site {
        _hub,
        wire,
        runner: shop.runner,
    };
    let (runner, key) = (&site.runner, site.runner.key());
    let arguments = [
        "nix",
        "develop",
        "--sign-with",
        &key,
        "--file",
        &shop.file,
        "shell",
        "--env",
        "PS1=ready> ",
    ];
    let mut screen = Screen::open(runner, (90, 30), &arguments)?;
    screen.prompts().await?;
    screen.types("greet you; n=ke''pt\r")?;
    screen.shows("hello you from /").await?;
    // What is typed while the link is cut arrives when it is back, once.
    site.cut().await?;
    screen.types("echo $n-am''id; m=x$m\r")?;
    site.wire.mend();
    screen.shows("kept-amid\r\n").await?;
    screen.types("echo =$m''=\r")?;
    screen.shows("=x=\r\n").await?;
    screen.prompts().await?;
    // Left, the link is cut and back, and come back to.
    screen.types("\r~d")?;
    ensure!(screen.ended().await? == Some(0), "{screen:?}");
    let (job, phase) = last_job(&runner.leaf).await?;
    ensure!(phase == "running", "{phase}");
    site.cut().await?;
    site.wire.mend();
    site.heard(true).await?;
    let attach = ["session", "attach", "--sign-with", &key, &job];
    let mut again = Screen::open(runner, (70, 20), &attach)?;
    again.types("\recho $n''$own; /bin/busybox stty size\r")?;
    again.shows("keptkept\r\n").await?;
    again.shows("20 70\r\n").await?;
    again.types("exit 5\r")?;
    ensure!(again.ended().await? == Some(5), "{again:?}");
    until("the job has succeeded", async || {
        Ok((last_job(&runner.leaf).await?.1 == "succeeded").then_some(()))
    })
    .await?;
    runner.left_nothing().await
}

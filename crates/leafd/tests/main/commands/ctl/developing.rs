//! `leafctl nix develop`, as a person uses it.

use tokio::io::AsyncWriteExt as _;

use super::running::Runner;
use super::sessions::{Screen, last_job};
use super::*;

/// A leaf, and a file with derivations that have an environment or none.
pub(super) struct Workshop {
    pub(super) runner: Runner,
    pub(super) file: String,
}

impl Workshop {
    async fn open() -> anyhow::Result<Self> {
        Self::of(Runner::start().await?)
    }

    pub(super) fn of(runner: Runner) -> anyhow::Result<Self> {
        let directory = &runner.leaf.state_dir;
        let file = directory.join("shells.nix");
        let bash = |more: &str| {
            format!(
                "derivation {{ name = \"{}-shell\"; system = builtins.currentSystem; builder = \"/bin/bash\"; outputs = [ \"out\" \"dev\" ]; \
                 given = \"it's \\\"a\\\" $b\"; shellHook = \"hooked=\\\"<$given>\\\"\"; stdenv = ./stdenv; {more} }}",
                runner.leaf.name
            )
        };
        std::fs::write(
            &file,
            format!(
                "{{ shell = {}; large = {}; plain = derivation {{ name = \"plain\"; system = builtins.currentSystem; builder = \"/bin/sh\"; }}; }}",
                bash(""),
                bash("much = true;"),
            ),
        )?;
        std::fs::create_dir(directory.join("stdenv"))?;
        std::fs::write(
            directory.join("stdenv/setup"),
            "greet() { echo \"hello $1 from $out\"; }; own=kept; list=( 'a b' c ); declare -A map=( [k]=v ); export PATH=/tools/bin; \
             if [ -n \"$much\" ]; then for n in 1 2 3; do declare \"more$n=$(printf '%100000s' x)\"; done; fi",
        )?;
        Ok(Self {
            file: file.display().to_string(),
            runner,
        })
    }

    pub(super) fn arguments(&self, key: &str, more: &[&str]) -> Vec<String> {
        let begin = ["nix", "develop", "--sign-with", key, "--file", &self.file];
        let all = begin.iter().chain(more);
        all.map(|text| (*text).to_owned()).collect()
    }

    /// Runs a shell with pipes and this input to its end.
    async fn run(&self, more: &[&str], input: &str) -> anyhow::Result<Output> {
        let arguments = self.arguments(&self.runner.key(), more);
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut child = command(&words)
            .env("LEAFCTL_CONTEXT", &self.runner.context)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("piped")?;
        // The program may not want all of it.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        tokio::time::timeout(Duration::from_secs(120), child.wait_with_output())
            .await
            .context("it ends")?
            .map_err(Into::into)
    }
}

pub(super) async fn with_pipes() -> anyhow::Result<()> {
    let shop = Workshop::open().await?;
    // A command, with its input, output and exit code.
    let script = "read line; echo \"$line $given $IN_NIX_SHELL $PATH\"; echo err >&2; exit 9";
    let output = shop
        .run(
            &["shell", "--", "/bin/busybox", "sh", "-c", script],
            "typed\nand more\n",
        )
        .await?;
    ended(&output, 9, "err")?;
    let said = text(&output.stdout);
    ensure!(
        said.starts_with("typed it's \"a\" $b impure /tools/bin:/") && said.ends_with(":/bin\n"),
        "{output:?}"
    );
    // A script, which knows the functions, the variables that are not exported, and what the hook did.
    let script = "greet you; echo \"$own ${list[0]} ${map[k]} $hooked\"\n\
                  echo \"$PWD|$out|$dev|$TMP|$NIX_BUILD_TOP|$TMPDIR|$BASH_ENV|$SHELL\"\n\
                  echo x > $TMP/x && mkdir -p $out && ls -d $out; exit 4\n";
    let output = shop.run(&["shell"], script).await?;
    ended(&output, 4, "")?;
    let said = text(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    let paths: Vec<&str> = lines.get(2).context("paths")?.split('|').collect();
    let [home, out, dev, tmp, top, tmpdir, bash_env, shell] = paths[..] else {
        anyhow::bail!("{said}");
    };
    ensure!(lines[0] == format!("hello you from {out}"), "{said}");
    ensure!(lines[1] == "kept a b v <it's \"a\" $b>", "{said}");
    ensure!(
        out == format!("{home}/outputs/out") && dev == format!("{home}/outputs/dev") && lines[3] == out,
        "{said}"
    );
    ensure!(
        tmp == top
            && tmp == tmpdir
            && tmp.ends_with("/tmp")
            && bash_env.is_empty()
            && shell.ends_with("/bash"),
        "{said}"
    );
    // The caller's variables and hook: bytes that command a terminal are data.
    let hook = "printf '%s,' \"$A\" \"$hooked\" \u{1b}]0;owned\u{7}$'x'\nif then";
    let output = shop
        .run(
            &[
                "shell",
                "--env",
                "A=b c",
                "--pure",
                "--shell-hook",
                hook,
                "--record",
                "--",
                "/bin/busybox",
                "sh",
                "-c",
                "echo $PATH $IN_NIX_SHELL",
            ],
            "",
        )
        .await?;
    ended(&output, 0, "syntax error")?;
    ensure!(text(&output.stdout).ends_with("/tools/bin pure\n"), "{output:?}");
    let job = document(&shop.runner.leaf, &["nix", "jobs"]).await?["jobs"][0].clone();
    ensure!(
        job["task"]["type"] == "develop"
            && job["task"]["shell_hook"] == hook
            && job["result"]["type"] == "run",
        "{job}"
    );
    let jobs = printed(&shop.runner.leaf, &["nix", "jobs"]).await?;
    ensure!(
        jobs.contains("develop") && jobs.contains("ended with code 4") && !jobs.contains('\u{1b}'),
        "{jobs}"
    );
    shop.runner.left_nothing().await
}

pub(super) async fn with_packages() -> anyhow::Result<()> {
    let shop = Workshop {
        file: String::new(),
        runner: Runner::start().await?,
    };
    let shop = Workshop {
        file: shop.runner.packages().to_owned(),
        ..shop
    };
    let options = [
        "--env",
        "A=x",
        "--shell-hook",
        "n=$A; f() { tool \"$1\" \"$n\"; }",
        "--pure",
        "--packages",
        "tool",
    ];
    let output = shop.run(&options, "f b\necho $IN_NIX_SHELL $PATH\n").await?;
    ended(&output, 0, "")?;
    let said = text(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    ensure!(
        lines[0] == "from the package: b x"
            && lines[1].starts_with("pure /nix/store/")
            && !lines[1].contains(':'),
        "{said}"
    );
    let output = shop
        .run(&[&options[..], &["--", "tool", "-c"]].concat(), "")
        .await?;
    ended(&output, 0, "")?;
    ensure!(text(&output.stdout) == "from the package: -c\n", "{output:?}");
    let output = shop.run(&["--packages", "tool", "--", "no-such"], "").await?;
    ended(&output, 127, "no-such")?;
    shop.runner.left_nothing().await
}

pub(super) async fn on_a_terminal() -> anyhow::Result<()> {
    let shop = Workshop::open().await?;
    let key = shop.runner.key();
    let open = |size, more: &[&str]| {
        let arguments = shop.arguments(&key, more);
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Screen::open(&shop.runner, size, &words)
    };
    let mut screen = open((90, 30), &["shell", "--env", "PS1=ready> "])?;
    screen.prompts().await?;
    screen.types("greet you; echo $own/$hooked; n=le''ft\r")?;
    screen.shows("hello you from /").await?;
    screen.shows("kept/<it's \"a\" $b>").await?;
    screen.types("/bin/busybox stty size; case $- in *i*) echo inter''active;; esac\r")?;
    screen.shows("30 90").await?;
    screen.shows("interactive").await?;
    screen.prompts().await?;
    // Left, and come back to.
    screen.types("\r~d")?;
    ensure!(screen.ended().await? == Some(0), "{screen:?}");
    let (job, phase) = last_job(&shop.runner.leaf).await?;
    ensure!(phase == "running", "{phase}");
    let mut again = Screen::open(
        &shop.runner,
        (80, 24),
        &["session", "attach", "--sign-with", &key, &job],
    )?;
    again.types("\recho $n''$own\r")?;
    again.shows("leftkept").await?;
    again.types("exit 5\r")?;
    ensure!(again.ended().await? == Some(5), "{again:?}");
    // A command has the terminal as well.
    let mut one = open((70, 20), &["shell", "--", "/bin/busybox", "stty", "size"])?;
    one.shows("20 70").await?;
    ensure!(one.ended().await? == Some(0), "{one:?}");
    shop.runner.left_nothing().await
}

pub(super) async fn refused() -> anyhow::Result<()> {
    let shop = Workshop::open().await?;
    let output = shop.run(&["plain"], "echo no\n").await?;
    ended(&output, 7, "'bash' as their builder")?;
    let output = shop.run(&["large"], "echo no\n").await?;
    ended(&output, 7, "262144 bytes")?;
    let (job, phase) = last_job(&shop.runner.leaf).await?;
    ensure!(phase == "failed", "{phase}");
    let why = document(&shop.runner.leaf, &["nix", "why", &job]).await?;
    ensure!(why["kind"] == "output_too_large", "{why}");
    ended(&shop.run(&["missing"], "").await?, 7, "missing")?;
    let long = "x".repeat(20_000);
    for (more, code, says) in [
        (&["shell", "--shell-hook", &long][..], 6, "16384"),
        (&["shell", "--env", "A B=c"], 6, "no name"),
        (&["shell^dev"], 6, "^dev"),
        (&["shell", "--impure"], 6, "nix.policy.impure"),
        (&["shell", "--packages", "shell"], 2, "cannot be used with"),
        (&["shell", "--record"], 2, "COMMAND"),
    ] {
        ended(&shop.run(more, "").await?, code, says)?;
    }
    let unsigned = ["nix", "develop", "--file", &shop.file, "shell", "--", "true"];
    ended(
        &shop.runner.person.ctl(&shop.runner.leaf, &unsigned).await?,
        6,
        "ign",
    )?;
    shop.runner.left_nothing().await
}

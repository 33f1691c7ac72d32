//! Sessions of programs: through `leafctl`, and with requests that it would not make.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::time::Instant;

use data_encoding::BASE64;
use leaf_bus::client::Client;
use leaf_bus::context;
use leaf_core::id::JobId;
use leaf_core::session::text::{Signed, signed_text};
use leaf_core::session::{Attached, NUMBER_HEADER, OFFSET_HEADER, SESSION_HEADER, SIGNATURE_HEADER};
use leaf_trust::session_key::SessionKey;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::running::Runner;
use super::secrets::in_a_session_of_its_own;
use super::*;

/// Starts a program in a session, with pipes.
pub(super) fn start(runner: &Runner, script: &str) -> anyhow::Result<Child> {
    let mut command = command(&runner.arguments(&[], &["/bin/busybox", "sh", "-c", script]));
    command
        .env("LEAFCTL_CONTEXT", &runner.context)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command.spawn()?)
}

/// Runs a program in a session with this input to its end.
async fn run_with(runner: &Runner, script: &str, input: Vec<u8>) -> anyhow::Result<Output> {
    let mut child = start(runner, script)?;
    let mut stdin = child.stdin.take().context("piped")?;
    let writing = async move {
        // The program may not want all of it.
        let _ = stdin.write_all(&input).await;
        drop(stdin);
    };
    let both = async { tokio::join!(writing, child.wait_with_output()).1 };
    Ok(tokio::time::timeout(Duration::from_secs(120), both)
        .await
        .context("it ends")??)
}

/// Bytes of all kinds.
pub(super) fn bytes(count: usize) -> Vec<u8> {
    let mut state = 7_u64;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

pub(super) async fn pipes() -> anyhow::Result<()> {
    let runner = Runner::start().await?;
    let input = bytes(3_000_000);
    let output = run_with(&runner, "/bin/busybox cat", input.clone()).await?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    ensure!(
        output.stdout == input,
        "{} of {} bytes",
        output.stdout.len(),
        input.len()
    );
    let output = run_with(
        &runner,
        "echo out; echo err >&2; read a; echo $a; exit 9",
        b"x\n".to_vec(),
    )
    .await?;
    ended(&output, 9, "err")?;
    ensure!(text(&output.stdout) == "out\nx\n", "{output:?}");
    // One that wants less than there is, one that closes its input, and one that never reads.
    let output = run_with(&runner, "/bin/busybox head -c 4", bytes(300_000)).await?;
    ensure!(output.status.success() && output.stdout == bytes(4), "{output:?}");
    let output = run_with(
        &runner,
        "exec 0<&-; /bin/busybox sleep 0.3; echo closed",
        bytes(300_000),
    )
    .await?;
    ensure!(
        output.status.success() && output.stdout == b"closed\n",
        "{output:?}"
    );
    let output = run_with(&runner, "/bin/busybox sleep 0.2; kill -9 $$", bytes(300_000)).await?;
    ended(&output, 137, "")?;
    // An input that ends at once, and none.
    let output = run_with(&runner, "/bin/busybox wc -c", Vec::new()).await?;
    ensure!(text(&output.stdout).trim() == "0", "{output:?}");
    // Both outputs at once, much of each.
    let both = "/bin/busybox yes out | /bin/busybox head -c 700000 & /bin/busybox yes err | /bin/busybox head -c 700000 >&2; wait";
    let output = run_with(&runner, both, Vec::new()).await?;
    ensure!(
        output.stdout.len() == 700_000 && output.stderr.len() == 700_000,
        "{} {}",
        output.stdout.len(),
        output.stderr.len()
    );
    let last = until("the record has the end", async || {
        let jobs = document(&runner.leaf, &["nix", "jobs"]).await?;
        Ok((jobs["jobs"][0]["phase"] == "succeeded").then(|| jobs["jobs"][0].clone()))
    })
    .await?;
    ensure!(last["result"]["exit"]["code"] == 0, "{last}");
    ensure!(last["result"].get("stdout").is_none(), "{last}");
    runner.left_nothing().await
}

/// A person's terminal, in which leafctl runs.
#[derive(Debug)]
pub(super) struct Screen {
    master: File,
    pub(super) child: Child,
    /// What was printed since it was last looked for.
    printed: String,
    arriving: tokio::sync::mpsc::Receiver<Vec<u8>>,
}

impl Screen {
    pub(super) fn open(runner: &Runner, size: (u16, u16), arguments: &[&str]) -> anyhow::Result<Self> {
        Self::open_at(&runner.context, size, arguments)
    }

    pub(super) fn open_with(leaf: &TestLeaf, size: (u16, u16), arguments: &[&str]) -> anyhow::Result<Self> {
        Self::open_at(&leaf.context_file(), size, arguments)
    }

    fn open_at(context: &Path, size: (u16, u16), arguments: &[&str]) -> anyhow::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        // The terminal tells the processes of its session only that its size changed.
        let mut command = in_a_session_of_its_own(&command(arguments), "--ctty");
        command
            .env("LEAFCTL_CONTEXT", context)
            .env("TERM", "xterm-256color")
            .stdin(Stdio::from(slave.try_clone()?))
            .stdout(Stdio::from(slave.try_clone()?))
            .stderr(Stdio::from(slave));
        let child = command.spawn()?;
        drop(command);
        let master = File::from(master);
        let (sender, arriving) = tokio::sync::mpsc::channel(64);
        let mut reader = master.try_clone()?;
        std::thread::spawn(move || {
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let screen = Self {
            master,
            child,
            printed: String::new(),
            arriving,
        };
        screen.resize(size)?;
        Ok(screen)
    }

    pub(super) fn resize(&self, (columns, rows): (u16, u16)) -> anyhow::Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.master, size)?)
    }

    pub(super) fn types(&mut self, keys: &str) -> anyhow::Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Waits until this is printed, forgets all up to its end, and returns that.
    pub(super) async fn shows(&mut self, what: &str) -> anyhow::Result<String> {
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(at) = self.printed.find(what) {
                return Ok(self.printed.drain(..at + what.len()).collect());
            }
            match tokio::time::timeout_at(end, self.arriving.recv()).await {
                Ok(Some(bytes)) => self.printed.push_str(&String::from_utf8_lossy(&bytes)),
                _ => anyhow::bail!("{what:?} is not in {:?}", self.printed),
            }
        }
    }

    /// Waits for the shell's prompt, which is no complete line.
    pub(super) async fn prompts(&mut self) -> anyhow::Result<()> {
        self.shows("ready> ").await.map(drop)
    }

    pub(super) async fn ended(&mut self) -> anyhow::Result<Option<i32>> {
        let ended = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await;
        Ok(ended
            .with_context(|| format!("leafctl ends: {}", self.printed))??
            .code())
    }
}

/// Returns the job of the last session.
pub(super) async fn last_job(leaf: &TestLeaf) -> anyhow::Result<(String, String)> {
    let jobs = document(leaf, &["nix", "jobs"]).await?;
    let job = &jobs["jobs"][0];
    let text = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
    Ok((text("id"), text("phase")))
}

const SHELL: [&str; 2] = ["/bin/busybox", "sh"];

pub(super) async fn terminals() -> anyhow::Result<()> {
    let runner = Runner::start().await?;
    let mut screen = Screen::open(
        &runner,
        (101, 37),
        &runner.arguments(&["--env", "PS1=ready> "], &SHELL),
    )?;
    screen.prompts().await?;
    screen.types("stty size; tty; echo $TERM; ls -l $(tty)\r")?;
    screen.shows("37 101\r\n").await?;
    screen.shows("/dev/pts/").await?;
    screen.shows("xterm-256color").await?;
    screen.resize((70, 20))?;
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        screen.types("stty size; echo lo''oked\r")?;
        let looked = screen.shows("looked\r\n").await?;
        if looked.contains("20 70\r\n") {
            break;
        }
        ensure!(Instant::now() < end, "the new size is not there: {looked}");
    }
    // Ctrl-C goes to what runs in the foreground, and the shell lives.
    screen.types("/bin/busybox sleep 1000\r")?;
    screen.shows("sleep 1000").await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    screen.types("\x03")?;
    screen.shows("^C").await?;
    screen.prompts().await?;
    screen.types("echo $?; n=kept; echo so''on\r")?;
    screen.shows("soon\r\n").await?;
    screen.prompts().await?;
    // Left, and come back to.
    screen.types("\r~d")?;
    ensure!(screen.ended().await? == Some(0), "{}", screen.printed);
    let (job, phase) = last_job(&runner.leaf).await?;
    ensure!(phase == "running", "{phase}");
    let key = runner.key();
    let mut again = Screen::open(&runner, (0, 0), &["session", "attach", "--sign-with", &key, &job])?;
    again.shows("soon").await?;
    again.types("\rstty size; echo $n''$n\r")?;
    again.shows("24 80\r\n").await?;
    again.shows("keptkept\r\n").await?;
    // A second client takes it over, with a person's signature only.
    let unsigned = ctl(
        &runner.leaf,
        &["session", "attach", &job, "--sign-with", "/nonexistent"],
    )
    .await?;
    ensure!(unsigned.status.code() != Some(0), "{unsigned:?}");
    let mut third = Screen::open(
        &runner,
        (80, 24),
        &["session", "attach", "--sign-with", &key, &job],
    )?;
    third.shows("keptkept").await?;
    ensure!(again.ended().await? == Some(6), "{}", again.printed);
    third.types("\rexit 5\r")?;
    ensure!(third.ended().await? == Some(5), "{}", third.printed);
    until("the job has succeeded", async || {
        Ok((last_job(&runner.leaf).await?.1 == "succeeded").then_some(()))
    })
    .await?;
    // `~.` ends it.
    let mut last = Screen::open(
        &runner,
        (80, 24),
        &runner.arguments(&["--env", "PS1=ready> "], &SHELL),
    )?;
    last.prompts().await?;
    last.types("\r~.")?;
    ensure!(last.ended().await? == Some(7), "{}", last.printed);
    runner.left_nothing().await
}

pub(super) async fn restarts() -> anyhow::Result<()> {
    let mut runner = Runner::start().await?;
    let mut child = start(
        &runner,
        "while read line; do echo \"got $line\"; done; echo end; exit 3",
    )?;
    let (mut stdin, stdout) = (
        child.stdin.take().context("piped")?,
        child.stdout.take().context("piped")?,
    );
    let mut lines = BufReader::new(stdout).lines();
    stdin.write_all(b"begin\n").await?;
    let first = tokio::time::timeout(Duration::from_secs(60), lines.next_line())
        .await
        .context("a line")??;
    ensure!(first.as_deref() == Some("got begin"), "{first:?}");
    for round in 0..3 {
        for number in 0..20 {
            stdin.write_all(format!("{round} {number}\n").as_bytes()).await?;
            if number == 10 {
                match round {
                    0 => runner.leaf.kill().await?,
                    1 => drop(runner.leaf.stop().await?),
                    _ => {}
                }
                if round < 2 {
                    runner.leaf.start_again().await?;
                }
            }
        }
        for number in 0..20 {
            let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line())
                .await
                .context("a line")??;
            ensure!(
                line.as_deref() == Some(&format!("got {round} {number}")),
                "{line:?} at {round} {number}"
            );
        }
    }
    drop(stdin);
    ensure!(lines.next_line().await?.as_deref() == Some("end"));
    ensure!(
        tokio::time::timeout(Duration::from_secs(60), child.wait())
            .await??
            .code()
            == Some(3)
    );
    runner.left_nothing().await
}

pub(super) async fn floods() -> anyhow::Result<()> {
    let runner = Runner::start().await?;
    let mut child = start(&runner, "/bin/busybox head -c 100000000 /dev/zero; echo end")?;
    let mut stdout = child.stdout.take().context("piped")?;
    let resident = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap_or_default()
            .to_owned();
        line.split_whitespace()
            .next()
            .and_then(|kib| kib.parse::<u64>().ok())
            .unwrap_or_default()
    };
    let mut first = vec![0; 10];
    stdout.read_exact(&mut first).await?;
    let leafd = runner.leaf.pid().context("it runs")?;
    // Nobody reads on: the program waits, and what is on the way is bounded.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (waiting, client) = (resident(leafd), resident(child.id().context("it runs")?));
    ensure!(
        waiting < 200_000 && client < 100_000,
        "leafd {waiting} KiB, leafctl {client} KiB"
    );
    let mut count = first.len() as u64;
    let mut buffer = vec![0; 1 << 20];
    let mut last = Vec::new();
    loop {
        let read = tokio::time::timeout(Duration::from_secs(60), stdout.read(&mut buffer))
            .await
            .context("more")??;
        if read == 0 {
            break;
        }
        count += read as u64;
        last = buffer[read.saturating_sub(4)..read].to_vec();
    }
    ensure!(count == 100_000_004 && last == b"end\n", "{count} {last:?}");
    ensure!(resident(leafd) < 200_000, "{}", resident(leafd));
    ensure!(child.wait().await?.success());
    runner.left_nothing().await
}

/// A client that signs what it likes.
struct Forger<'a> {
    client: Client,
    leaf: &'a LeafName,
    job: JobId,
    key: SessionKey,
}

impl Forger<'_> {
    /// Sends a request; `None` if it is not answered.
    async fn ask(
        &self,
        verb: &str,
        session: &str,
        number: u64,
        offset: Option<u64>,
        body: &[u8],
        key: &SessionKey,
    ) -> Option<Vec<u8>> {
        let session = format!("{}/{session}", self.job);
        let text = signed_text(&Signed {
            leaf: self.leaf,
            caller: self.client.caller(),
            verb,
            session: &session,
            number,
            offset,
            body,
        });
        let signature = BASE64.encode(&key.sign(&text));
        let tag: String = signature.chars().take(22).collect();
        let mut headers = vec![
            (SESSION_HEADER, session.clone()),
            (NUMBER_HEADER, number.to_string()),
            (SIGNATURE_HEADER, signature),
        ];
        headers.extend(offset.map(|offset| (OFFSET_HEADER, offset.to_string())));
        let wait = Duration::from_secs(2);
        let reply = self
            .client
            .session_request(self.leaf, verb, (&headers, &tag), body.to_vec(), wait)
            .await;
        reply.ok().map(|reply| reply.body)
    }

    async fn attach(&self) -> anyhow::Result<Attached> {
        let body = br#"{"versions":[1],"chunk_bytes":2000}"#;
        let first = self
            .ask("attach", "-", 0, None, body, &self.key)
            .await
            .context("a nonce")?;
        let first: Attached = serde_json::from_slice(&first)?;
        let nonce = first.nonce.context("a nonce")?;
        let attached = self
            .ask("attach", &nonce, 0, None, body, &self.key)
            .await
            .context("attached")?;
        // The same again is told the next nonce, and replaces nothing.
        let again = self
            .ask("attach", &nonce, 0, None, body, &self.key)
            .await
            .context("an answer")?;
        let again: Attached = serde_json::from_slice(&again)?;
        ensure!(
            again.nonce.is_some_and(|next| next != nonce),
            "the nonce is taken once"
        );
        Ok(serde_json::from_slice(&attached)?)
    }
}

/// Begins a session with a key of the test's own.
async fn session_of_test<'a>(
    runner: &'a Runner,
    seed: u8,
    linger: u32,
    script: &str,
) -> anyhow::Result<Forger<'a>> {
    let key = SessionKey::new([seed; 32]);
    let settings = context::load(Some(&runner.leaf.context_file().display().to_string()))?;
    let client = Client::connect(&settings, Duration::from_secs(10)).await?;
    let request = serde_json::json!({
        "packages": [{ "type": "file", "path": runner.packages(), "attribute": "tool" }],
        "command": ["/bin/busybox", "sh", "-c", script],
        "session": { "key": BASE64.encode(&key.public()), "linger_seconds": linger },
    });
    let job = runner.begin(&client, &request).await?;
    let forger = Forger {
        client,
        leaf: &runner.leaf.name,
        job,
        key,
    };
    until("its program runs", async || {
        let body = br#"{"versions":[1],"chunk_bytes":2000}"#;
        Ok(forger.ask("attach", "-", 0, None, body, &forger.key).await)
    })
    .await?;
    Ok(forger)
}

pub(super) async fn forged() -> anyhow::Result<()> {
    let runner = Runner::start().await?;
    let forger = session_of_test(&runner, 1, 60, "while read line; do echo \"got $line\"; done").await?;
    let other = SessionKey::new([2; 32]);
    let attach = br#"{"versions":[1],"chunk_bytes":2000}"#;
    ensure!(
        forger.ask("attach", "-", 0, None, attach, &other).await.is_none(),
        "another key attaches"
    );
    let attached = forger.attach().await?;
    ensure!(
        attached.chunk_bytes == 2000 && attached.version == 1,
        "{attached:?}"
    );
    let id = attached.attachment.as_str();
    let own = &forger.key;
    until("the input is taken", async || {
        Ok(forger.ask("write", id, 1, Some(0), b"a\n", own).await)
    })
    .await?;
    // The same number, whatever it asks; another key; a signature over something else.
    ensure!(
        forger.ask("write", id, 1, Some(2), b"b\n", own).await.is_none(),
        "a number counts twice"
    );
    ensure!(
        forger
            .ask("write", id, 2, Some(2), b"b\n", &other)
            .await
            .is_none(),
        "another key writes"
    );
    let kill = br#"{"number":1,"do":{"signal":"KILL"}}"#;
    ensure!(
        forger.ask("control", id, 3, None, kill, &other).await.is_none(),
        "another key signals"
    );
    for _ in 0..250 {
        let body = br#"{"number":1,"do":"end"}"#;
        let _ = tokio::time::timeout(
            Duration::from_millis(1),
            forger.ask("control", id, 4, None, body, &other),
        )
        .await;
    }
    // More wrong ones than are checked in a second keep the right ones out for that second only.
    let body = br#"{"stdout":0,"stderr":0,"take":true,"wait_ms":1000}"#;
    let mut number = 10;
    let read = until("output is read", async || {
        number += 1;
        let read = forger.ask("read", id, number, None, body, own).await;
        Ok(read.filter(|bytes| !bytes.is_empty()))
    })
    .await?;
    ensure!(read == b"got a\n", "{read:?}");
    let more = br#"{"stdout":1000,"stderr":0,"take":true,"wait_ms":10}"#;
    ensure!(
        forger.ask("read", id, 100, None, more, own).await.is_none(),
        "more is received than was sent"
    );
    ensure!(
        forger
            .ask(
                "control",
                id,
                101,
                None,
                br#"{"number":1,"do":{"signal":"FIRE"}}"#,
                own
            )
            .await
            .is_none()
    );
    // A write that comes again does nothing twice.
    let written = forger
        .ask("write", id, 102, Some(0), b"a\nb\n", own)
        .await
        .context("an answer")?;
    ensure!(text(&written).contains("\"end\":4"), "{}", text(&written));
    let read = forger
        .ask(
            "read",
            id,
            103,
            None,
            br#"{"stdout":6,"stderr":0,"take":true,"wait_ms":3000}"#,
            own,
        )
        .await;
    ensure!(read.as_deref() == Some(b"got b\n"), "{read:?}");
    let done = forger
        .ask("control", id, 104, None, br#"{"number":1,"do":"end"}"#, own)
        .await
        .context("an answer")?;
    ensure!(text(&done) == "{\"done\":1}", "{}", text(&done));
    until("the job is cancelled", async || {
        Ok((last_job(&runner.leaf).await?.1 == "cancelled").then_some(()))
    })
    .await?;
    runner.left_nothing().await
}

pub(super) async fn vanishes() -> anyhow::Result<()> {
    let runner = Runner::start().await?;
    // The shortest life without a client: 45 s of silence, and then 30 s.
    let forger = session_of_test(
        &runner,
        3,
        30,
        "trap '' TERM HUP; /bin/busybox sleep 1000 & while :; do /bin/busybox sleep 1; done",
    )
    .await?;
    forger.attach().await?;
    let began = Instant::now();
    while last_job(&runner.leaf).await?.1 == "running" {
        ensure!(began.elapsed() < Duration::from_secs(150), "it still runs");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let lived = began.elapsed();
    ensure!(lived > Duration::from_secs(70), "it ended after {lived:?}");
    ensure!(last_job(&runner.leaf).await?.1 == "cancelled");
    runner.left_nothing().await
}

//! Secrets, through `leafctl`.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::support::ssh_key;

/// Returns a process that runs `leafctl` with these words and this text as its standard input.
async fn with_input(leaf: &TestLeaf, home: &Path, words: &[&str], input: &[u8]) -> anyhow::Result<Output> {
    use tokio::io::AsyncWriteExt as _;
    let mut command = command(words);
    command
        .env("LEAFCTL_CONTEXT", leaf.context_file())
        .env("XDG_CONFIG_HOME", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // Without a terminal, also where these tests have one.
    let mut child = in_a_session_of_its_own(&command, "--wait").spawn()?;
    let mut stdin = child.stdin.take().context("it was piped")?;
    // It may end before it has read all.
    let _ = stdin.write_all(input).await;
    drop(stdin);
    Ok(tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await??)
}

/// Returns the same command, started by setsid(1) with this argument.
pub(super) fn in_a_session_of_its_own(command: &Command, how: &str) -> Command {
    let inner = command.as_std();
    let mut outer = Command::new("setsid");
    outer.arg(how).arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    outer
}

pub(super) async fn set_and_removed() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let key = directory.path().join("key");
    let public = ssh_key(&key).await?;
    let leaf = Setup::new()
        .set("containers.host_key", key.display().to_string())
        .start()
        .await?;
    let (name, home) = (leaf.name.to_string(), directory.path().join("home"));
    let plain = b"plaintext-of-this-test \x1b[2J\0\xff\n";
    let set = ["secret", "set", "db-password", "--container", "web"];
    let nobody = with_input(&leaf, &home, &set[..3], plain).await?;
    ended(&nobody, 2, "--container")?;

    // Nobody can be asked about a key that is not known.
    let refused = with_input(&leaf, &home, &set, plain).await?;
    ended(&refused, 6, "there is no terminal to ask on")?;
    ensure!(
        text(&refused.stderr).contains("SHA256:"),
        "{}",
        text(&refused.stderr)
    );
    let given = [&set[..], &["--host-key", public.trim()]].concat();
    let done = with_input(&leaf, &home, &given, plain).await?;
    ensure!(done.status.success(), "{}", text(&done.stderr));
    ensure!(!home.exists(), "a given key is not kept");

    // A person at a terminal is asked once. The secret comes by a pipe all the same.
    let ask = |answer: &'static str| {
        let leafctl = format!(
            "printf s3cret | {} secret set api --container web --container db",
            program().display()
        );
        let mut command = Command::new("script");
        command
            .args(["--quiet", "--return", "--command", &leafctl, "/dev/null"])
            .env("LEAFCTL_CONTEXT", leaf.context_file())
            .env("XDG_CONFIG_HOME", &home)
            .env_remove("LEAFCTL_LEAF")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        async move {
            use tokio::io::AsyncWriteExt as _;
            let mut child = command.spawn()?;
            let mut stdin = child.stdin.take().context("it was piped")?;
            stdin.write_all(answer.as_bytes()).await?;
            let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await??;
            drop(stdin);
            anyhow::Ok(output)
        }
    };
    let no = ask("no\n").await?;
    ensure!(no.status.code() == Some(6), "{no:?}");
    ensure!(
        text(&no.stdout).contains("ssh-keygen -lf"),
        "{}",
        text(&no.stdout)
    );
    let yes = ask("yes\n").await?;
    ensure!(yes.status.success(), "{}", text(&yes.stdout));
    let known = home.join("cim-leaf/known_leaves");
    let line = format!(
        "{name} {}\n",
        public.trim().rsplit_once(' ').context("a comment")?.0
    );
    ensure!(std::fs::read_to_string(&known)? == line);
    ensure!(std::fs::metadata(&known)?.permissions().mode() & 0o777 == 0o600);
    let again = ask("").await?;
    ensure!(again.status.success(), "{}", text(&again.stdout));
    ensure!(
        !text(&again.stdout).contains("ssh-keygen"),
        "{}",
        text(&again.stdout)
    );

    let file = directory.path().join("file");
    std::fs::write(&file, plain)?;
    let from_file = [&set[..], &["--from-file", file.to_str().context("text")?]].concat();
    let done = with_input(&leaf, &home, &from_file, b"").await?;
    ensure!(done.status.success(), "{}", text(&done.stderr));
    let printed = text(&done.stdout) + &text(&done.stderr);
    ensure!(!printed.contains("plaintext-of-this-test"), "{printed}");

    let listed = document(&leaf, &["secret", "list"]).await?;
    valid(&listed, "reply.secret.list")?;
    let of = |nth: usize, field: &str| listed["secrets"][nth][field].clone();
    ensure!(of(0, "name") == "api" && of(0, "generation") == 2, "{listed}");
    ensure!(
        of(0, "users").as_array().is_some_and(|users| users.len() == 2),
        "{listed}"
    );
    ensure!(
        of(1, "name") == "db-password" && of(1, "generation") == 2,
        "{listed}"
    );

    // Too large, nothing to read, another key than before.
    let large = with_input(&leaf, &home, &set, &vec![b'x'; 64 * 1024 + 1]).await?;
    ended(&large, 2, "at most 65536 are allowed")?;
    let missing = [&set[..], &["--from-file", "/no/such/file"]].concat();
    ended(
        &with_input(&leaf, &home, &missing, b"").await?,
        2,
        "can't read the secret",
    )?;
    std::fs::remove_file(&key)?;
    ssh_key(&key).await?;
    let another = with_input(&leaf, &home, &set, plain).await?;
    ended(&another, 6, "the one confirmed before is SHA256:")?;
    // The leaf's own refusal of a file that its key does not decrypt.
    let old = [&set[..], &["--host-key", public.trim()]].concat();
    ended(
        &with_input(&leaf, &home, &old, plain).await?,
        6,
        "not encrypted to this host's key",
    )?;

    let removed = with_input(&leaf, &home, &["secret", "remove", "api"], b"").await?;
    ensure!(text(&removed.stdout) == "removed  api\n", "{removed:?}");
    let again = with_input(&leaf, &home, &["secret", "remove", "api"], b"").await?;
    ended(&again, 5, "no secret api")?;
    Ok(())
}

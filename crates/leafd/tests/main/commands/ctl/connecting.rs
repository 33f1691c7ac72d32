//! What `leafctl` says where it can't reach a leaf, or not the one that was meant; and the exit code of each kind.

use std::os::unix::fs::PermissionsExt as _;

use jiff::Timestamp;

use super::*;

pub(super) async fn errors() -> anyhow::Result<()> {
    let leaf = Setup::new()
        .set("nix.program", "/nonexistent/nix")
        .start()
        .await?;
    let nobody = "01890a5d-ac96-774b-bcce-b302099a8057";
    for (arguments, code, says) in [
        (&["lef", "show"][..], 2, "similar"),
        (&["leaf", "show", "Bad"], 2, "is not a leaf name"),
        (&["leaf", "show", "--timeout", "5"], 2, "time unit needed"),
        (&["container", "create", "a"], 2, "--template"),
        (
            &["container", "create", "a", "--toplevel", "/etc"],
            2,
            "is not a store path",
        ),
        (&["container", "show", "../x"], 2, "is not a container name"),
        (&["events", "--type", "["], 2, "is not a pattern"),
        (&["nix", "build"], 2, "INSTALLABLE"),
        (&["leaf", "show", "nobody"], 4, "leaf nobody does not reply"),
        (&["container", "health", "nobody"], 4, "does not reply"),
        (
            &["hardware", "show", "nothing"],
            5,
            "device nothing does not exist",
        ),
        (&["container", "start", "nobody"], 6, "containers.enable"),
        (&["container", "show", "nobody"], 5, "container.list"),
        (&["nix", "log", nobody], 5, "job.list"),
        (&["nix", "cancel", nobody], 5, nobody),
        (&["events", "--leaf", "nobody"], 5, "leafctl leaf list"),
        (&["schema", "show", "nothing"], 5, "leafctl schema list"),
        (&["nix", "build", "/a#b"], 6, "/nonexistent/nix"),
    ] {
        let output = ctl(&leaf, arguments).await?;
        ended(&output, code, says).with_context(|| format!("{arguments:?}"))?;
        ensure!(
            output.stdout.is_empty(),
            "{arguments:?}: {}",
            text(&output.stdout)
        );
        let all: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let output = ctl(&leaf, &all).await?;
        let said: Value = serde_json::from_slice(&output.stderr)
            .with_context(|| format!("{all:?}: {}", text(&output.stderr)))?;
        ensure!(
            said["exit_code"] == code
                && said["detail"]
                    .as_str()
                    .is_some_and(|detail| detail.contains(says)),
            "{all:?}: {said}"
        );
        let title = said["title"].as_str().context("a title")?;
        ensure!(
            !title.is_empty()
                && said["detail"]
                    .as_str()
                    .is_some_and(|detail| !detail.contains(title)),
            "{all:?}: the title is the kind: {said}"
        );
    }
    // No server; credentials of another server; a server that is silent.
    ended(
        &run(command(&["leaf", "list", "--server", "nats://127.0.0.1:1"])).await?,
        3,
        "no NATS server answers",
    )?;
    let other = tempfile::tempdir()?;
    let stranger = Identity::open_or_create(&other.path().join("identity"), &LeafName::new("stranger")?)?;
    let creds = stranger.admin_credentials_file().display().to_string();
    ended(
        &ctl(&leaf, &["leaf", "show", "--creds", &creds]).await?,
        3,
        "refuses the credentials",
    )?;
    ended(
        &ctl(&leaf, &["leaf", "show", "--creds", "/nonexistent"]).await?,
        3,
        "/nonexistent",
    )?;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("nats://{}", silent.local_addr()?);
    ended(
        &run(command(&[
            "leaf",
            "list",
            "--timeout",
            "300ms",
            "--server",
            &address,
        ]))
        .await?,
        3,
        "does not answer within 0.3 s",
    )?;
    let url = leaf_bus::context::load(leaf.context_file().to_str())?
        .servers
        .join(",");
    // TLS that is asked for, with authorities that can't be read.
    let (context, ca) = (other.path().join("tls.json"), other.path().join("ca.pem"));
    std::fs::write(&ca, "no certificate")?;
    let tls = url.replace("nats://", "tls://");
    std::fs::write(&context, serde_json::json!({ "url": tls, "ca": ca }).to_string())?;
    ended(
        &run(command(&[
            "leaf",
            "list",
            "--context",
            &context.display().to_string(),
        ]))
        .await?,
        3,
        "TLS",
    )?;
    // A person who may command nobody.
    let caller = Caller::new("guest")?;
    let mut few = Permissions::person(&caller);
    few.publish.retain(|subject| !subject.starts_with("leaf.v1.cmd"));
    let creds = other.path().join("guest.creds");
    std::fs::write(&creds, leaf.identity()?.user_credentials(&caller, &few).expose())?;
    let guest = other.path().join("guest.json");
    std::fs::write(
        &guest,
        serde_json::json!({ "url": url, "creds": creds, "inbox_prefix": "_INBOX.guest" }).to_string(),
    )?;
    ended(
        &run(command(&[
            "leaf",
            "show",
            "--context",
            &guest.display().to_string(),
        ]))
        .await?,
        6,
        "may not send this command",
    )?;
    Ok(())
}

pub(super) async fn contexts() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let config = tempfile::tempdir()?;
    let directory = config.path().join("nats/context");
    std::fs::create_dir_all(&directory)?;
    std::fs::copy(leaf.context_file(), directory.join("edge.json"))?;
    std::fs::write(directory.join("broken.json"), "{")?;
    let show = async |arguments: &[&str]| {
        let mut command = command(&["leaf", "show"]);
        command.args(arguments).env("XDG_CONFIG_HOME", config.path());
        run(command).await
    };
    ended(&show(&["--context", "edge"]).await?, 0, "")?;
    let file = leaf.context_file().display().to_string();
    let shown = show(&["--context", &file]).await?;
    ended(&shown, 0, "")?;
    let shown = text(&shown.stdout);
    let own = shown.lines().find(|line| line.starts_with("own people"));
    ensure!(
        own.is_some_and(|own| own.contains("as admin, with credentials until 20")),
        "{shown}"
    );
    let local = leaf.show().await?.local_access.context("it has a server")?;
    let hours = local.valid_until.duration_since(Timestamp::now()).as_secs_f64() / 3600.0;
    ensure!((23.0..=24.0).contains(&hours), "{local:?}");
    ended(
        &show(&["--context", "edg"]).await?,
        3,
        "context \"edg\" does not exist",
    )?;
    ended(&show(&["--context", "broken"]).await?, 3, "broken.json")?;
    ended(&show(&["--context", "../edge"]).await?, 3, "../edge")?;
    std::fs::write(config.path().join("nats/context.txt"), "edge")?;
    ended(&show(&[]).await?, 0, "")?;
    ended(
        &show(&["--server", "nats://127.0.0.1:1"]).await?,
        3,
        "127.0.0.1:1",
    )?;
    // Nothing says where: the hint does.
    let hinted = run(command(&["leaf", "show", "--creds", "/nonexistent"])).await?;
    ended(
        &hinted,
        3,
        "hint: there is no --context, no LEAFCTL_CONTEXT, no selected context",
    )?;
    let context = leaf_bus::context::load(Some(&file))?;
    let (server, creds) = (
        context.servers.join(","),
        leaf.identity()?.admin_credentials_file().display().to_string(),
    );
    let mut by_environment = command(&["leaf", "show", leaf.name.as_str()]);
    by_environment.env("LEAFCTL_CONTEXT", &file);
    ended(&run(by_environment).await?, 0, "")?;
    // Credentials without a context: the caller is the user that they name.
    for what in ["list", "show"] {
        let flags = run(command(&["leaf", what, "--server", &server, "--creds", &creds])).await?;
        ended(&flags, 0, "")?;
    }
    Ok(())
}

pub(super) async fn group_access() -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    // A shell in another service has that one's directory in its environment.
    let other = place.path().join("other");
    std::fs::create_dir(&other)?;
    let leaf = Setup::new().variable("RUNTIME_DIRECTORY", &other).start().await?;
    ensure!(
        std::fs::read_dir(&other)?.next().is_none(),
        "it wrote to another's"
    );
    drop(leaf);

    // As systemd does, which gives the directory to leafd's user and group.
    let directory = place.path().join("cim-leaf/access");
    std::fs::create_dir_all(&directory)?;
    let leaf = Setup::new()
        .variable("RUNTIME_DIRECTORY", &directory)
        .start()
        .await?;
    for name in ["context.json", "admin.creds"] {
        let file = directory.join(name);
        let mode = std::fs::metadata(&file)
            .with_context(|| name)?
            .permissions()
            .mode();
        ensure!(mode & 0o7777 == 0o640, "{name}: {mode:o}");
    }
    // It doesn't need what only leafd's user can read.
    let context = directory.join("context.json").display().to_string();
    let state = leaf.state_dir.display().to_string();
    ensure!(!std::fs::read_to_string(&context)?.contains(&state));
    let shown = run(command(&["leaf", "show", "--context", &context])).await?;
    ended(&shown, 0, "")?;
    ensure!(text(&shown.stdout).contains(leaf.name.as_str()));
    Ok(())
}

pub(super) async fn several() -> anyhow::Result<()> {
    let leaf = TestLeaf::start().await?;
    // A second lease, as another leaf on the same server holds one.
    let second = LeafName::new(format!("{}-b", leaf.name))?;
    let first: Value = document(&leaf, &["leaf", "list"]).await?["leaves"][0].clone();
    let mut beat = first.clone();
    beat["leaf"] = second.as_str().into();
    let account = leaf.identity()?;
    let permissions = Permissions {
        publish: vec![">".into()],
        subscribe: vec![">".into()],
        ..Permissions::default()
    };
    let caller = Caller::new("second")?;
    let client = leaf
        .nats(&account.trusted_credentials(&caller, &permissions), &caller)
        .await?;
    let stored = client
        .request(format!("leaf.v1.beat.{second}"), beat.to_string().into())
        .await?;
    ensure!(
        !text(&stored.payload).contains("error"),
        "{}",
        text(&stored.payload)
    );
    let output = ctl(&leaf, &["leaf", "show"]).await?;
    ended(&output, 2, "name one with --leaf")?;
    let said = text(&output.stderr);
    ensure!(
        said.contains(leaf.name.as_str()) && said.contains(second.as_str()),
        "{said}"
    );
    printed(&leaf, &["--leaf", leaf.name.as_str(), "leaf", "show"]).await?;
    printed(&leaf, &["hardware", "list", "--leaf", leaf.name.as_str()]).await?;
    let list = document(&leaf, &["leaf", "list"]).await?;
    ensure!(list["leaves"].as_array().map(Vec::len) == Some(2), "{list}");
    ended(
        &ctl(&leaf, &["leaf", "show", "--leaf", second.as_str()]).await?,
        4,
        second.as_str(),
    )
}

/// leafd was killed, so its lease lasts for half a minute more.
pub(super) async fn just_ended() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let shown = leaf.show().await?;
    leaf.kill().await?;
    let name = leaf.name.to_string();
    let listed = text(&ctl(&leaf, &["leaf", "list"]).await?.stdout);
    ensure!(listed.contains(&name), "{listed}");
    let output = ctl(&leaf, &["leaf", "show", &name]).await?;
    ended(
        &output,
        4,
        &format!("leaf {name} takes no commands, though `leafctl leaf list` still has it"),
    )?;
    ended(&output, 4, &shown.instance.to_string())?;
    ended(&output, 4, "leafd is starting or stopping there, or has ended")
}

//! One container, from its create to its destroy, and every way in which that can fail.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use futures::StreamExt as _;
use leaf_core::container::{ContainerPhase as Phase, DesiredRun};
use leaf_core::id::{ContainerName, StorePath};
use leaf_core::job::JobResult;
use leaf_core::problem::ProblemCode;
use leaf_core::spec::ContainerSource;
use leaf_core::subject;
use leaf_host::contract::HostPaths;
use libtest_mimic::Trial;

use super::systems::{NEVER_READY, WAITS, store_path, system};
use super::{destroy, is_problem, minimal, name, start, toplevel, traces};
use crate::support::{Host, LIMIT, Need, Setup, TestLeaf, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let needs = &[Need::Containers];
    vec![
        host.trial(
            "a container of the minimal template is built, started, healthy, stopped and destroyed, and nothing is left",
            needs,
            whole_life,
        ),
        host.trial(
            "an init that exits at once makes the start fail with its code and the end of its console",
            needs,
            exits_at_once,
        ),
        host.trial("a container that ends by itself is stopped and says so", needs, ends_by_itself),
        host.trial("a container that reboots is started again", needs, reboots),
        host.trial("a container that reboots is started again", needs, reboots),
        host.trial(
            "a toplevel that can't be run makes a failed container, which is destroyed and made anew",
            needs,
            bad_toplevel,
        ),
        host.trial(
            "a flake that does not evaluate makes a failed container with the reason",
            needs,
            bad_flake,
        ),
        host.trial(
            "a container's NATS user publishes nothing but its own",
            needs,
            publishes_its_own,
        ),
        host.trial(
            "from inside a container only the NATS port of its leaf answers",
            needs,
            only_nats_answers,
        ),
        host.trial(
            "a container that is not ready is destroyed at once, without waiting for its start",
            needs,
            destroyed_while_starting,
        ),
        host.trial(
            "a container that is not ready in time fails, and is started again when it can be",
            needs,
            not_ready_in_time,
        ),
        host.trial(
            "a name that somebody else's container has is refused, and that container is left alone",
            needs,
            foreign,
        ),
        host.trial(
            "the credentials of a container that was destroyed are refused, and its name can be used again",
            needs,
            revoked,
        ),
        host.trial("a container that starts is no change of the hardware", needs, no_device),
        host.trial(
            "a container whose files somebody removed is told of once and made again",
            needs,
            removed_by_somebody,
        ),
    ]
}

async fn leaf() -> anyhow::Result<TestLeaf> {
    Setup::new().containers().start().await
}

async fn whole_life() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let made = leaf.create(&name, minimal(), false).await?;
    ensure!(made.phase == Phase::Building, "{made:?}");
    let job = made.desired.build_job.context("a job builds it")?;
    let made = leaf.in_phase(&name, Phase::Stopped).await?;
    ensure!(
        made.desired.toplevel.is_some() && made.error.is_none(),
        "{made:?}"
    );
    let job = leaf.job_ended(job).await?;
    let result = job.result.as_ref().and_then(JobResult::build);
    ensure!(
        result.map(|r| &r.store_path) == made.desired.toplevel.as_ref(),
        "{job:?}"
    );

    let runs = leaf.start_container(&name).await?;
    ensure!(
        runs.phase == Phase::Running && runs.ready_at.is_some(),
        "{runs:?}"
    );
    ensure!(leaf.show().await?.containers_running == 1);
    let (client, own) = (leaf.client().await?, leaf.name.clone());
    let health = client
        .request_container_health(&own, &name, Duration::from_secs(5))
        .await?;
    ensure!(
        health["container"] == name.as_str() && health["leaf"] == own.as_str() && health["status"] == "ok",
        "{health}"
    );
    // The console comes by another way than the word that it is ready.
    until("the console says that it is connected", async || {
        let console = leaf.console(&name).await?;
        Ok(console.contains("connected to nats://").then_some(()))
    })
    .await?;
    let again = leaf.start_container(&name).await?;
    ensure!(again == runs, "a second start changes nothing: {again:?}");

    let stopped = leaf.stop_container(&name).await?;
    ensure!(
        stopped.phase == Phase::Stopped && stopped.ready_at.is_none(),
        "{stopped:?}"
    );
    ensure!(stopped.error.is_none(), "{stopped:?}");
    leaf.destroy(&name).await?;
    is_problem(leaf.container(&name).await, ProblemCode::NotFound, name.as_str())?;
    let left = traces::of_container(&leaf.name, &name);
    ensure!(left.is_empty(), "{left:#?}");
    let kinds = leaf.kinds_told(&name.token()).await?;
    let wanted = [
        "desired",
        "built",
        "created",
        "desired",
        "started",
        "desired",
        "stopped",
        "desired",
        "destroyed",
    ];
    let wanted: Vec<String> = wanted.iter().map(|kind| format!("container.{kind}")).collect();
    ensure!(kinds == wanted, "{kinds:?}");

    // With start, and destroyed while it runs.
    let made = leaf.create(&name, minimal(), true).await?;
    ensure!(
        made.desired.run == DesiredRun::Running && made.desired.generation == 1,
        "{made:?}"
    );
    leaf.in_phase(&name, Phase::Running).await?;
    leaf.destroy(&name).await?;
    let left = traces::of_container(&leaf.name, &name);
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

async fn exits_at_once() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    // It works once its root has a file, which the test puts there.
    let script = format!("echo one; $b test -e /root/works || {{ echo 'the reason'; exit 7; }}\n{WAITS}");
    leaf.create(&name, toplevel(&system(&script).await?), false)
        .await?;
    let answer = leaf.start_container(&name).await;
    is_problem(
        answer,
        ProblemCode::Failed,
        "exit code 7; the end of its console:\none\nthe reason",
    )?;
    let failed = leaf.container(&name).await?;
    ensure!(failed.phase == Phase::Failed, "{failed:?}");
    let told = leaf.told(&name.token()).await?;
    let (kind, data) = told.last().context("an event")?;
    ensure!(kind == "cim.leaf.container.failed.v1", "{kind}");
    ensure!(data["step"] == "start", "{data}");
    ensure!(
        data["reason"].as_str().is_some_and(|r| r.contains("exit code 7")),
        "{data}"
    );
    // As often as somebody wants.
    let answer = leaf.start_container(&name).await;
    is_problem(answer, ProblemCode::Failed, "exit code 7")?;
    let paths = HostPaths::new(&leaf.name);
    std::fs::write(paths.roots.join(name.as_str()).join("root/works"), "")?;
    let runs = leaf.start_container(&name).await?;
    ensure!(runs.phase == Phase::Running && runs.error.is_none(), "{runs:?}");
    leaf.destroy(&name).await?;

    let name = super::name();
    let answer = leaf.create(&name, toplevel(&system("exit 3").await?), true).await;
    is_problem(
        answer,
        ProblemCode::Failed,
        "it ended before it was ready, with exit code 3",
    )?;
    leaf.destroy(&name).await?;
    let left = traces::of_container(&leaf.name, &name);
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

async fn ends_by_itself() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let script = "exec /run/leaf/init ready -- $b sh -c 'while ! $b test -e /root/end; do $b sleep 0.05; done; exit 5'";
    leaf.create(&name, toplevel(&system(script).await?), true).await?;
    let root = HostPaths::new(&leaf.name).roots.join(name.as_str());
    std::fs::write(root.join("root/end"), "")?;
    let ended = leaf.in_phase(&name, Phase::Stopped).await?;
    ensure!(
        ended
            .error
            .as_deref()
            .is_some_and(|e| e.contains("by itself: exit code 5")),
        "{ended:?}"
    );
    let told = leaf.told(&name.token()).await?;
    let (kind, data) = told.last().context("an event")?;
    ensure!(kind == "cim.leaf.container.stopped.v1", "{kind}");
    ensure!(
        data["cause"] == "exited" && data["exit"] == serde_json::json!({"by": "code", "code": 5}),
        "{data}"
    );
    // It stays where it is until somebody wants something.
    std::fs::remove_file(root.join("root/end"))?;
    let runs = leaf.start_container(&name).await?;
    ensure!(runs.phase == Phase::Running && runs.error.is_none(), "{runs:?}");
    leaf.destroy(&name).await
}

async fn reboots() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let asks = "/run/leaf/init ready -- $b sh -c 'while ! $b test -e /root/end; do $b sleep 0.05; done; $b reboot -f'";
    let script = format!("if $b test -e /root/end; then {WAITS}; fi; exec {asks}");
    leaf.create(&name, toplevel(&system(&script).await?), true)
        .await?;
    let root = HostPaths::new(&leaf.name).roots.join(name.as_str());
    std::fs::write(root.join("root/end"), "")?;
    until("it was started again", async || {
        let told = leaf.told(&name.token()).await?;
        let starts = told
            .iter()
            .filter(|(kind, _)| kind == "cim.leaf.container.started.v1");
        Ok((starts.count() == 2).then_some(()))
    })
    .await?;
    let runs = leaf.container(&name).await?;
    ensure!(runs.phase == Phase::Running && runs.error.is_none(), "{runs:?}");
    let stopped = leaf.stop_container(&name).await?;
    ensure!(
        stopped.phase == Phase::Stopped && stopped.error.is_none(),
        "{stopped:?}"
    );
    leaf.destroy(&name).await?;
    let left = traces::of_container(&leaf.name, &name);
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

async fn bad_toplevel() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let absent = StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-absent")?;
    let no_init = store_path("$b mkdir $out").await?;
    let a_file = store_path("echo text > $out").await?;
    let cases = [
        (absent, "it is not there"),
        (no_init, "it has no init"),
        (a_file, "it is not a directory"),
    ];
    for (path, why) in &cases {
        let answer = leaf.create(&name, toplevel(path), false).await;
        is_problem(answer, ProblemCode::Failed, why)?;
        let failed = leaf.container(&name).await?;
        ensure!(failed.phase == Phase::Failed, "{failed:?}");
        // The name is taken until somebody frees it.
        let answer = leaf.create(&name, toplevel(path), false).await;
        is_problem(answer, ProblemCode::AlreadyExists, name.as_str())?;
        is_problem(leaf.start_container(&name).await, ProblemCode::Failed, why)?;
        leaf.destroy(&name).await?;
        let left = traces::of_container(&leaf.name, &name);
        ensure!(left.is_empty(), "{left:#?}");
    }
    for (body, why) in [
        (r#"{"type":"toplevel","path":"/etc"}"#, "store path"),
        (r#"{"type":"toplevel","path":"/nix/store/../etc"}"#, "store path"),
        (r#"{"type":"toplevel"}"#, "path"),
        (r#"{"type":"magic"}"#, "magic"),
    ] {
        let body = format!(r#"{{"name":"{name}","source":{body}}}"#);
        let answer = leaf.call_raw("container", "create", body.as_bytes()).await;
        is_problem(answer, ProblemCode::Malformed, why)?;
    }
    let answer = leaf
        .create(
            &name,
            ContainerSource::Template {
                name: "no-such".to_owned(),
            },
            false,
        )
        .await?;
    ensure!(answer.phase == Phase::Building, "{answer:?}");
    let failed = leaf.in_phase(&name, Phase::Failed).await?;
    ensure!(
        failed.error.as_deref().is_some_and(|e| e.contains("no-such")),
        "{failed:?}"
    );
    leaf.destroy(&name).await?;
    leaf.create(&name, toplevel(&system(WAITS).await?), true).await?;
    ensure!(leaf.container(&name).await?.phase == Phase::Running);
    leaf.destroy(&name).await
}

async fn bad_flake() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let directory = leaf.scratch().join("flake");
    std::fs::create_dir(&directory)?;
    std::fs::write(
        directory.join("flake.nix"),
        r#"{ outputs = _: { broken = throw "this is the reason"; }; }"#,
    )?;
    let flake = |fragment: &str| ContainerSource::Flake {
        reference: format!("path:{}#{fragment}", directory.display()),
    };
    for (fragment, why) in [("broken", "this is the reason"), ("absent", "absent")] {
        let made = leaf.create(&name, flake(fragment), true).await?;
        ensure!(made.phase == Phase::Building, "{made:?}");
        let failed = leaf.in_phase(&name, Phase::Failed).await?;
        ensure!(
            failed.error.as_deref().is_some_and(|e| e.contains(why)),
            "{failed:?}"
        );
        let kinds = leaf.kinds_told(&name.token()).await?;
        ensure!(kinds.last().is_some_and(|k| k == "container.failed"), "{kinds:?}");
        let answer = leaf.start_container(&name).await;
        is_problem(answer, ProblemCode::Conflict, "could not be built")?;
        leaf.destroy(&name).await?;
    }
    // The flake is mended, and the name is free.
    std::fs::write(
        directory.join("flake.nix"),
        format!(
            r#"{{ outputs = _: {{ broken = builtins.storePath "{}"; }}; }}"#,
            system(WAITS).await?
        ),
    )?;
    let whole = super::systems::derivation(&leaf, "flake", "echo made > $out");
    std::fs::write(
        directory.join("flake.nix"),
        format!("{{ outputs = _: {{ broken = {whole}; }}; }}"),
    )?;
    leaf.create(&name, flake("broken"), false).await?;
    let failed = leaf.in_phase(&name, Phase::Failed).await?;
    ensure!(
        failed
            .error
            .as_deref()
            .is_some_and(|e| e.contains("it is not a directory")),
        "built, and found to be no system: {failed:?}"
    );
    leaf.destroy(&name).await
}

async fn revoked() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let waits = system(WAITS).await?;
    let file = HostPaths::new(&leaf.name)
        .state
        .join(name.as_str())
        .join("credentials/nats.creds");
    let credentials = || anyhow::Ok(leaf_core::host_op::Secret::new(std::fs::read_to_string(&file)?));
    leaf.create(&name, toplevel(&waits), false).await?;
    let old = credentials()?;
    let inside = leaf.nats(&old, &name.caller()).await?;
    leaf.destroy(&name).await?;
    until("the connection is dropped", async || {
        let connected = inside.connection_state() == async_nats::connection::State::Connected;
        Ok((!connected).then_some(()))
    })
    .await?;
    ensure!(leaf.nats(&old, &name.caller()).await.is_err());
    leaf.create(&name, toplevel(&waits), false).await?;
    leaf.nats(&credentials()?, &name.caller()).await?;
    ensure!(leaf.nats(&old, &name.caller()).await.is_err());
    leaf.destroy(&name).await
}

async fn publishes_its_own() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let other = name();
    let name = name();
    let waits = system(WAITS).await?;
    leaf.create(&name, toplevel(&waits), true).await?;
    leaf.create(&other, toplevel(&waits), false).await?;
    leaf.published().await?;
    let before = leaf.show().await?.sequence;
    let credentials = HostPaths::new(&leaf.name)
        .state
        .join(name.as_str())
        .join("credentials/nats.creds");
    let credentials = leaf_core::host_op::Secret::new(std::fs::read_to_string(credentials)?);
    let inside = leaf.nats(&credentials, &name.caller()).await?;
    let daemon = leaf.nats_as_service().await?;
    let admin = leaf.nats_as_admin().await?;

    let l = &leaf.name;
    let health = format!("{}.health", subject::container_prefix(l, &name));
    let mut commands = daemon.subscribe(subject::commands_of(l)).await?;
    let mut own = daemon.subscribe(subject::containers_of(l)).await?;
    let mut events = admin.subscribe(subject::events_of(l)).await?;
    // The server has a subscription once it has answered something later of the same connection; a flush does not tell.
    daemon.publish(health.clone(), "asked".into()).await?;
    let asked = tokio::time::timeout(LIMIT, own.next())
        .await?
        .context("a message")?;
    ensure!(asked.payload == "asked", "{asked:?}");
    let show = format!("leaf.v1.cmd.{l}.admin.leaf.show");
    admin.request(show.clone(), "{}".into()).await?;
    let command = tokio::time::timeout(LIMIT, commands.next())
        .await?
        .context("a command")?;
    ensure!(command.subject.as_str() == show, "{command:?}");
    for forbidden in [
        format!("leaf.v1.evt.{l}.container.{}.stopped", name.token()),
        format!("leaf.v1.cmd.{l}.admin.leaf.show"),
        format!("leaf.v1.cmd.{l}.{}.leaf.show", name.caller()),
        format!("leaf.v1.beat.{l}"),
        format!("{}.news", subject::container_prefix(l, &other)),
        health,
        format!("$KV.leaf_state.{l}.leaf"),
        format!("$JS.API.STREAM.DELETE.EVENTS_{l}"),
        "_INBOX.admin.x".to_owned(),
    ] {
        inside.publish(forbidden, "forged".into()).await?;
    }
    let allowed = format!("{}.news", subject::container_prefix(l, &name));
    inside.publish(allowed.clone(), "hello".into()).await?;
    inside.flush().await?;
    // What is allowed came last, so all that was to come before it would be here.
    let first = tokio::time::timeout(LIMIT, own.next())
        .await?
        .context("a message")?;
    ensure!(
        first.subject.as_str() == allowed && first.payload == "hello",
        "{first:?}"
    );
    let nothing = Duration::from_millis(200);
    for (what, subscription) in [("a command", &mut commands), ("an event", &mut events)] {
        let came = tokio::time::timeout(nothing, subscription.next()).await;
        ensure!(came.is_err(), "{what} came through: {came:?}");
    }
    ensure!(leaf.show().await?.sequence == before, "nothing happened");
    let stream = jetstream::new(leaf.nats_as_leafd().await?)
        .get_stream(format!("EVENTS_{}", leaf.name))
        .await
        .context("its stream is still there")?;
    ensure!(stream.cached_info().state.last_sequence == before);
    leaf.destroy(&name).await?;
    leaf.destroy(&other).await
}

async fn only_nats_answers() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let url = leaf_bus::context::load(leaf.context_file().to_str())?
        .servers
        .join("");
    let address: Ipv4Addr = url
        .trim_start_matches("nats://")
        .split(':')
        .next()
        .context("an address")?
        .parse()?;
    // Another service of the host, on the same address.
    let other = tokio::net::TcpListener::bind((address, 0)).await?;
    let port = other.local_addr()?.port();
    let script = format!(
        "url=$($b sed 's/.*nats:..\\([0-9.]*\\):\\([0-9]*\\).*/\\1 \\2/' $CREDENTIALS_DIRECTORY/leaf.json | $b grep '^[0-9.]* [0-9]*$')\n\
         for i in 1 2 3 4 5 6 7 8 9 10; do $b nc -w 1 $url </dev/null | $b grep -q INFO && {{ echo nats open; break; }}; $b sleep 0.1; done\n\
         $b nc -w 1 {address} {port} </dev/null && echo other open || echo other closed\n{WAITS}"
    );
    leaf.create(&name, toplevel(&system(&script).await?), true)
        .await?;
    let console = leaf.console(&name).await?;
    let lines: Vec<&str> = console
        .lines()
        .filter(|line| line.ends_with("open") || line.ends_with("closed"))
        .collect();
    ensure!(lines == ["nats open", "other closed"], "{console}");
    // The service is there for the host itself.
    tokio::net::TcpStream::connect((address, port)).await?;
    leaf.destroy(&name).await
}

async fn destroyed_while_starting() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    leaf.create(&name, toplevel(&system(NEVER_READY).await?), false)
        .await?;
    let (client, own) = (leaf.client().await?, leaf.name.clone());
    let patience = leaf_bus::client::CallOptions {
        timeout: Duration::from_secs(60),
        ..Default::default()
    };
    for again in 0..4 {
        let start = start(&name);
        let starting = client.call(&own, &start, patience.clone());
        let ending = async {
            // Once right after, and later.
            until("it starts", async || {
                let phase = client
                    .call(
                        &own,
                        &leaf_core::command::ShowContainer { name: name.clone() },
                        Default::default(),
                    )
                    .await?
                    .phase;
                let up =
                    again % 2 == 0 || traces::status(&own, &name).is_some_and(|s| s.leader_pid.is_some());
                Ok((phase == Phase::Starting && up).then_some(()))
            })
            .await?;
            let began = Instant::now();
            let stop = super::stop(&name);
            let answer = client.call(&own, &stop, patience.clone()).await?;
            ensure!(answer.phase == Phase::Stopped, "{answer:?}");
            anyhow::Ok(began.elapsed())
        };
        let (started, ended) = tokio::join!(starting, ending);
        is_problem(started, ProblemCode::Conflict, "meanwhile")?;
        let took = ended?;
        ensure!(
            took < Duration::from_secs(15),
            "it took {took:?}; the log:\n{}",
            leaf.log()
        );
    }
    let start = start(&name);
    let destroy = destroy(&name);
    let starting = client.call(&own, &start, patience.clone());
    let ending = async {
        until("it starts", async || Ok(traces::status(&own, &name).map(drop))).await?;
        let began = Instant::now();
        client.call(&own, &destroy, patience.clone()).await?;
        anyhow::Ok(began.elapsed())
    };
    let (started, ended) = tokio::join!(starting, ending);
    is_problem(started, ProblemCode::Conflict, "meanwhile")?;
    let took = ended?;
    ensure!(
        took < Duration::from_secs(15),
        "it took {took:?}; the log:\n{}",
        leaf.log()
    );
    let left = traces::of_container(&leaf.name, &name);
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

async fn not_ready_in_time() -> anyhow::Result<()> {
    let mut leaf = Setup::new()
        .containers()
        .set("containers.ready_timeout_seconds", 2)
        .start()
        .await?;
    let name = name();
    let script = format!("if $b test -e /root/works; then {WAITS}; fi\necho patience\n{NEVER_READY}");
    let answer = leaf.create(&name, toplevel(&system(&script).await?), true).await;
    is_problem(answer, ProblemCode::Failed, "not ready within 2 s")?;
    let failed = leaf.container(&name).await?;
    ensure!(
        failed.error.as_deref().is_some_and(|e| e.contains("patience")),
        "{failed:?}"
    );
    ensure!(traces::processes_with(&format!("--machine={name}")).is_empty());
    let root = HostPaths::new(&leaf.name).roots.join(name.as_str());
    std::fs::write(root.join("root/works"), "")?;
    let runs = leaf.start_container(&name).await?;
    ensure!(runs.phase == Phase::Running, "{runs:?}");
    leaf.destroy(&name).await
}

async fn foreign() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let conf = HostPaths::new(&leaf.name).conf(&name);
    std::fs::create_dir_all(conf.parent().context("a directory")?)?;
    std::fs::write(&conf, "PRIVATE_NETWORK=1\n")?;
    let outcome = foreign_conf(&mut leaf, &name).await;
    let text = std::fs::read_to_string(&conf)?;
    std::fs::remove_file(&conf)?;
    outcome?;
    ensure!(text == "PRIVATE_NETWORK=1\n", "{text}");
    Ok(())
}

async fn foreign_conf(leaf: &mut TestLeaf, name: &ContainerName) -> anyhow::Result<()> {
    let waits = system(WAITS).await?;
    let answer = leaf.create(name, toplevel(&waits), true).await;
    is_problem(answer, ProblemCode::Failed, "was not made by leaf")?;
    leaf.destroy(name).await?;
    is_problem(leaf.container(name).await, ProblemCode::NotFound, name.as_str())
}

async fn no_device() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let rescan = leaf_core::command::RescanHardware {};
    leaf.call(&rescan).await?;
    let devices = async |leaf: &mut TestLeaf| -> anyhow::Result<usize> {
        leaf.published().await?;
        let events = leaf.events().await?;
        Ok(events
            .iter()
            .filter(|event| event.subject.contains(".device."))
            .count())
    };
    let before = devices(&mut leaf).await?;
    ensure!(before > 0, "there is hardware");
    let waits = system(WAITS).await?;
    let names: Vec<ContainerName> = (0..3).map(|_| name()).collect();
    for name in &names {
        leaf.create(name, toplevel(&waits), true).await?;
    }
    let seen = leaf.call(&rescan).await?;
    ensure!(
        seen.appeared.is_empty() && seen.changed.is_empty() && seen.vanished.is_empty(),
        "{seen:?}"
    );
    for name in &names {
        leaf.destroy(name).await?;
    }
    let seen = leaf.call(&rescan).await?;
    ensure!(
        seen.appeared.is_empty() && seen.changed.is_empty() && seen.vanished.is_empty(),
        "{seen:?}"
    );
    let after = devices(&mut leaf).await?;
    ensure!(before == after, "{before} events of devices, then {after}");
    Ok(())
}

async fn removed_by_somebody() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    leaf.create(&name, toplevel(&system(WAITS).await?), true).await?;
    let before = leaf.kinds_told(&name.token()).await?.len();
    std::fs::remove_file(HostPaths::new(&leaf.name).conf(&name))?;
    // The directory of the confs is not watched; the next look finds it.
    leaf.stop().await?;
    leaf.back().await?;
    until("it is made again", async || {
        Ok(HostPaths::new(&leaf.name).conf(&name).exists().then_some(()))
    })
    .await?;
    leaf.in_phase(&name, Phase::Running).await?;
    let told = leaf.kinds_told(&name.token()).await?;
    ensure!(
        told[before..] == ["container.stopped", "container.started"],
        "{told:?}"
    );
    leaf.destroy(&name).await?;
    let left = traces::of_container(&leaf.name, &name);
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

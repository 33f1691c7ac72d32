//! What a running container can do, and what can be seen of it.

use std::collections::BTreeMap;
use std::time::Duration;

use leaf_bus::client::Client;
use leaf_bus::connect::{ConnectSettings, Credentials};
use leaf_bus::embedded::{EmbeddedServer, EmbeddedSettings};
use leaf_bus::identity::Identity;
use leaf_core::container::ObservedRun;
use leaf_core::host_op::{ContainerBinding, HostOp};
use leaf_core::id::StorePath;

use crate::host::{Host, NATS_PORT, WAITS, leaf_init, nix_build, system, until};

pub(crate) async fn the_console_output_of_a_container_is_logged() {
    let mut host = Host::new().await;
    let name = host.name();
    host.ok(host.create(
        &name,
        &system(&format!(
            "for i in $($b seq 1 200); do echo line $i; done\n{WAITS}"
        )),
    ))
    .await;
    host.ok(Host::start(&name)).await;
    until("all is written", || host.log(&name, 1).text == "line 200\n").await;
    let log = host.log(&name, 100);
    let lines: Vec<_> = (101..=200).map(|i| format!("line {i}")).collect();
    assert_eq!(log.text.lines().collect::<Vec<_>>(), lines);
    assert!(log.truncated);
    host.end().await;
}

pub(crate) async fn changes_give_hints() {
    let mut host = Host::new().await;
    let name = host.name();
    host.ok(host.create(&name, &system(&WAITS.replace("sleep 1000", "sleep 1"))))
        .await;
    let mut hints = host.containers.watch().expect("hints");
    let wait = async |hints: &mut leaf_container::Hints, so: &dyn Fn(Option<ObservedRun>) -> bool| {
        let seen = async {
            while !so(host.run(&name)) {
                hints.changed().await.expect("a hint");
            }
        };
        tokio::time::timeout(Duration::from_secs(30), seen)
            .await
            .expect("hints come");
    };
    tokio::join!(
        host.ok(Host::start(&name)),
        wait(&mut hints, &|run| matches!(
            run,
            Some(ObservedRun::Running { .. })
        ))
    );
    let Some(ObservedRun::Running { leader_pid, .. }) = host.run(&name) else {
        panic!("{:?}", host.run(&name))
    };
    let pid = i32::try_from(leader_pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is there");
    wait(&mut hints, &|run| matches!(run, Some(ObservedRun::Exited(_)))).await;
    // Nothing changes, nothing is told; the last hints of the end may still come.
    while tokio::time::timeout(Duration::from_millis(300), hints.changed())
        .await
        .is_ok()
    {}
    host.end().await;
}

pub(crate) async fn there_is_no_daemon_socket_and_no_write_to_the_store_inside() {
    let mut host = Host::new().await;
    let name = host.name();
    let script = format!(
        "$b test -e /nix/var/nix/daemon-socket && echo a socket\n$b touch /nix/store/x 2>/dev/null && echo a write\n\
         $b test \"$($b cat $CREDENTIALS_DIRECTORY/nats.creds)\" = 'secret text' && echo a secret\n{WAITS}"
    );
    host.ok(host.create(&name, &system(&script))).await;
    host.ok(Host::start(&name)).await;
    // READY and the console come by different ways: the lines may take a moment. "a secret" is the last of them.
    let log = || host.log(&name, 100).text;
    until("the console says it", || log().contains("a secret")).await;
    assert_eq!(log(), "a secret\n");
    host.end().await;
}

pub(crate) async fn what_runs_a_container_writes_no_core_and_what_it_runs_has_its_own_limit() {
    let mut host = Host::new().await;
    let name = host.name();
    host.ok(host.create(&name, &system(WAITS))).await;
    host.ok(Host::start(&name)).await;
    let limits = |pid: u32| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max core file size"));
        let words: Vec<_> = line
            .expect("a limit")
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        [words[0].clone(), words[1].clone()]
    };
    let Some(ObservedRun::Running { leader_pid, .. }) = host.run(&name) else {
        panic!("it does not run");
    };
    let parent = |pid: u32| -> u32 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        line.expect("a parent").trim().parse().expect("a number")
    };
    let program = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).expect("a name");
    // systemd-nspawn has its secrets in memory, and leaf-helper gave them to it.
    let (mut pid, mut found) = (leader_pid, Vec::new());
    loop {
        pid = parent(pid);
        let name = program(pid);
        if !["systemd-nspawn", "(sd-", "leaf-helper"]
            .iter()
            .any(|part| name.starts_with(part))
        {
            break;
        }
        assert_eq!(limits(pid)[0], "0", "{name}");
        found.push(name.trim().to_owned());
    }
    assert_eq!(found.last().map(String::as_str), Some("leaf-helper"), "{found:?}");
    assert!(found.iter().any(|name| name == "systemd-nspawn"), "{found:?}");
    // That of this program, which systemd-nspawn can't raise.
    assert_eq!(
        limits(leader_pid)[1],
        limits(std::process::id())[1],
        "a container can have no cores"
    );
    host.ok(Host::stop(&name)).await;
    host.end().await;
}

pub(crate) async fn the_minimal_system_answers_for_its_health_with_its_own_credentials() {
    let mut host = Host::new().await;
    let name = host.name();
    let identity =
        Identity::open_or_create(&host.directory.path().join("identity"), &host.leaf).expect("an identity");
    let address = (host.address(1), NATS_PORT).into();
    let settings = EmbeddedSettings::new(host.directory.path().join("nats"), address);
    let server = EmbeddedServer::start(settings, &identity)
        .await
        .expect("a server");
    let HostOp::CreateContainer { network, .. } = host.create(&name, &minimal()) else {
        unreachable!("it is what was made")
    };
    let create = HostOp::CreateContainer {
        name: name.clone(),
        toplevel: minimal(),
        network,
        options: Box::default(),
        adopt: false,
        secrets: BTreeMap::new(),
        binding: ContainerBinding::new(&host.leaf, &name, &server.client_url()),
        credentials: BTreeMap::from([("nats.creds".to_owned(), identity.container_credentials(&name))]),
    };
    host.ok(create).await;
    host.ok(Host::start(&name)).await;
    let mut admin = ConnectSettings::new(&server.client_url());
    admin.credentials = Credentials::Text(identity.admin_credentials());
    admin.inbox_prefix = "_INBOX.admin".to_owned();
    let admin = Client::connect(&admin, Duration::from_secs(10))
        .await
        .expect("a connection");
    let health = admin
        .request_container_health(&host.leaf, &name, Duration::from_secs(5))
        .await
        .expect("an answer");
    assert_eq!(health["container"], name.as_str());
    assert_eq!(health["leaf"], host.leaf.as_str());
    assert_eq!(health["status"], "ok");
    assert_eq!(health["pid"], 1);
    host.ok(Host::stop(&name)).await;
    assert_eq!(
        host.run(&name),
        Some(ObservedRun::Exited(leaf_core::container::Exit::Code { code: 0 }))
    );
    admin.close(Duration::from_secs(5)).await;
    server.stop().await;
    host.end().await;
}

/// The minimal system, as `containers/minimal` builds it.
pub(crate) fn minimal() -> StorePath {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../containers/minimal/default.nix"
    );
    nix_build(|command| {
        command
            .arg(file)
            .args(["--option", "sandbox", "true"])
            .args(["--option", "sandbox-fallback", "false"])
            .args(["--argstr", "leafInit"])
            .arg(leaf_init().expect("checked at the start"));
    })
}

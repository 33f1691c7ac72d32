//! From create to destroy, with what goes wrong on the way.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use leaf_core::container::{Exit, ObservedRun};
use leaf_core::host_op::{HostOp, HostOpErrorKind as Kind};
use leaf_core::id::ContainerName;

use crate::host::{Host, WAITS, store_path, system, until};

pub(crate) async fn a_container_is_made_started_stopped_and_destroyed_and_nothing_is_left() {
    let mut host = Host::new().await;
    let name = host.name();
    let toplevel = system(WAITS);
    assert_eq!(host.run(&name), None);
    // Each twice: again is the same as once.
    host.ok(host.create(&name, &toplevel)).await;
    host.ok(host.create(&name, &toplevel)).await;
    assert_eq!(host.run(&name), Some(ObservedRun::Stopped));
    let seen = host.containers.observe().expect("a look");
    assert_eq!(seen.containers[&name].toplevel.as_ref(), Some(&toplevel));
    let credentials = host.paths.state.join(name.as_str()).join("credentials");
    let mode = |path: &std::path::Path| path.metadata().expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&credentials), 0o700);
    assert_eq!(mode(&credentials.join("nats.creds")), 0o600);
    assert_eq!(mode(&host.paths.roots), 0o700);
    let conf = std::fs::read_to_string(host.paths.conf(&name)).expect("a conf");
    assert!(
        conf.contains(&format!("SYSTEM_PATH={toplevel}\nPRIVATE_NETWORK=1\n")),
        "{conf}"
    );

    host.ok(Host::start(&name)).await;
    let Some(ObservedRun::Running { leader_pid, .. }) = host.run(&name) else {
        panic!("{:?}", host.run(&name));
    };
    host.ok(Host::start(&name)).await;
    host.ok(host.prepare()).await;
    assert!(
        matches!(host.run(&name), Some(ObservedRun::Running { leader_pid: pid, .. }) if pid == leader_pid)
    );
    assert_eq!(host.traces(&name).len(), 4, "{:?}", host.traces(&name));
    // Not the host's root inside: a user namespace.
    let map = std::fs::read_to_string(format!("/proc/{leader_pid}/uid_map")).expect("a map");
    let base = map.split_whitespace().nth(1).expect("a base");
    assert_ne!(base, "0", "{map}");
    let error = host
        .fails(HostOp::DestroyContainer { name: name.clone() }, Kind::Failed)
        .await;
    assert!(error.reason.contains("it is running"), "{error}");

    host.ok(Host::stop(&name)).await;
    assert_eq!(host.run(&name), Some(ObservedRun::Exited(Exit::Code { code: 0 })));
    assert_eq!(host.traces(&name), Vec::<String>::new());
    host.ok(Host::stop(&name)).await;
    host.ok(HostOp::DestroyContainer { name: name.clone() }).await;
    host.ok(HostOp::DestroyContainer { name: name.clone() }).await;
    host.ok(Host::stop(&name)).await;
    assert_eq!(host.files(&name), Vec::<std::path::PathBuf>::new());
    assert_eq!(host.run(&name), None);
    host.end().await;
}

pub(crate) async fn an_init_that_exits_at_once_is_reported_with_its_code_and_console() {
    let (host, name) = Host::with_container(&system("echo no database here; exit 7")).await;
    let error = host.fails(Host::start(&name), Kind::NotReady).await;
    assert!(
        error.reason.contains("exit code 7") && error.reason.contains("no database here"),
        "{error}"
    );
    assert_eq!(host.run(&name), Some(ObservedRun::Exited(Exit::Code { code: 7 })));
    host.end_without_traces(&name).await;
}

pub(crate) async fn a_container_that_is_not_ready_in_time_is_stopped() {
    let (host, name) = Host::with_container(&system("echo thinking; exec $b sleep 1000")).await;
    let error = host.fails(Host::start_within(&name, 2), Kind::NotReady).await;
    assert!(
        error.reason.contains("within 2 s") && error.reason.contains("thinking"),
        "{error}"
    );
    assert!(
        matches!(host.run(&name), Some(ObservedRun::Exited(_))),
        "{:?}",
        host.run(&name)
    );
    host.end_without_traces(&name).await;
}

pub(crate) async fn an_init_that_ignores_signals_is_killed_after_the_grace_time() {
    let stubborn = "exec /run/leaf/init ready -- $b sh -c 'trap \"\" 37 15; while :; do $b sleep 1000; done'";
    let (host, name) = Host::with_container(&system(stubborn)).await;
    host.ok(Host::start(&name)).await;
    let before = std::time::Instant::now();
    host.ok(HostOp::StopContainer {
        name: name.clone(),
        grace_seconds: 1,
    })
    .await;
    assert!(before.elapsed().as_millis() >= 1000);
    assert!(
        matches!(host.run(&name), Some(ObservedRun::Exited(exit)) if exit != Exit::Lost),
        "{:?}",
        host.run(&name)
    );
    host.end_without_traces(&name).await;
}

pub(crate) async fn a_container_whose_supervisor_is_killed_is_lost_and_can_be_started_again() {
    let (host, name) = Host::with_container(&system(WAITS)).await;
    host.ok(Host::start(&name)).await;
    kill_supervisor(&host, &name).await;
    // Its container still runs, and is in the way.
    assert_eq!(host.traces(&name).len(), 4, "{:?}", host.traces(&name));
    host.ok(Host::start(&name)).await;
    assert!(
        matches!(host.run(&name), Some(ObservedRun::Running { .. })),
        "{:?}",
        host.run(&name)
    );
    // And once more, with a stop: what was left goes.
    kill_supervisor(&host, &name).await;
    host.ok(Host::stop(&name)).await;
    host.end_without_traces(&name).await;
}

pub(crate) async fn a_container_survives_the_process_that_started_it_and_is_observed_again() {
    let (host, name) = Host::with_container(&system(WAITS)).await;
    let mut starter = Command::new(std::env::current_exe().expect("this program"))
        .env("LEAF_HELPER_TEST_START", name.as_str())
        .env("LEAF_HELPER_TEST_LEAF", host.leaf.as_str())
        .env("LEAF_HELPER_TEST_DIRECTORY", host.directory.path())
        .env("LEAF_HELPER_TEST_POOL", host.settings.pool.to_string())
        .stdin(Stdio::piped())
        .spawn()
        .expect("a starter");
    until("it runs", || {
        matches!(host.run(&name), Some(ObservedRun::Running { .. }))
    })
    .await;
    let before = host.run(&name);
    starter.kill().expect("it is killed");
    starter.wait().expect("it has ended");
    assert_eq!(host.run(&name), before);
    let Some(ObservedRun::Running { leader_pid, .. }) = before else {
        panic!("{before:?}")
    };
    assert!(std::path::Path::new(&format!("/proc/{leader_pid}")).exists());
    host.ok(Host::stop(&name)).await;
    host.end_without_traces(&name).await;
}

pub(crate) async fn a_foreign_conf_is_refused_and_left_alone() {
    let mut host = Host::new().await;
    let name = host.name();
    let toplevel = system(WAITS);
    let conf = host.paths.conf(&name);
    std::fs::create_dir_all(&host.paths.confs).expect("a directory");
    let other_leaf = "# cim-leaf: made by leaf another\nSYSTEM_PATH=/nix/store/x\n";
    for text in ["PRIVATE_NETWORK=1\n", other_leaf] {
        std::fs::write(&conf, text).expect("a conf");
        for op in [
            host.create(&name, &toplevel),
            Host::start(&name),
            Host::stop(&name),
            HostOp::DestroyContainer { name: name.clone() },
        ] {
            host.fails(op, Kind::Refused).await;
        }
        assert_eq!(std::fs::read_to_string(&conf).expect("it is there"), text);
        assert_eq!(host.run(&name), None);
    }
    // As NixOS declares one: a link into the store.
    std::fs::remove_file(&conf).expect("it was there");
    std::os::unix::fs::symlink(store_path("echo PRIVATE_NETWORK=1 > $out").as_str(), &conf).expect("a link");
    host.fails(host.create(&name, &toplevel), Kind::Refused).await;
    std::fs::remove_file(&conf).expect("it was there");
    // A root file system that nobody here made.
    std::fs::create_dir_all(host.paths.roots.join(name.as_str())).expect("a directory");
    host.fails(host.create(&name, &toplevel), Kind::Refused).await;
    host.ok(HostOp::DestroyContainer { name: name.clone() }).await;
    assert!(host.paths.roots.join(name.as_str()).exists());
    host.end().await;
}

pub(crate) async fn an_interrupted_create_is_completed_or_removed() {
    let toplevel = system(WAITS);
    let (host, name) = Host::with_container(&toplevel).await;
    // A crash before the last step of create, or of destroy.
    std::fs::remove_file(host.paths.conf(&name)).expect("it was there");
    std::fs::remove_dir_all(host.paths.gc_roots.join(name.as_str())).expect("it was there");
    assert_eq!(host.run(&name), None);
    host.ok(host.create(&name, &toplevel)).await;
    assert_eq!(host.files(&name).len(), 4, "{:?}", host.files(&name));
    std::fs::remove_file(host.paths.conf(&name)).expect("it was there");
    host.ok(HostOp::DestroyContainer { name: name.clone() }).await;
    host.end_without_files(&name).await;
}

/// Kills the supervisor of a container, and waits until the run is seen as lost.
async fn kill_supervisor(host: &Host, name: &ContainerName) {
    let status = std::fs::read_to_string(host.paths.status(name)).expect("a status");
    let status: leaf_host::contract::RunStatus = serde_json::from_str(&status).expect("a status");
    let pid = i32::try_from(status.supervisor_pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is there");
    until("the supervisor is gone", || {
        host.run(name) == Some(ObservedRun::Exited(Exit::Lost))
    })
    .await;
}

//! Operations at the same time, and callers and helpers that end in the middle of one.

use leaf_core::container::ObservedRun;
use leaf_core::host_op::{HostOp, HostOpErrorKind as Kind};

use super::{Served, heard, start};
use crate::credentials::{renew, seen};
use crate::host::{Host, WAITS, system, until};

pub(crate) async fn a_caller_that_goes_away_does_not_stop_an_operation() {
    let mut served = Served::new().await;
    let name = served.host.name();
    let script = format!("while [ ! -e /var/go ]; do $b sleep 0.05; done; {WAITS}");
    served.ok(served.host.create(&name, &system(&script))).await;
    let mut caller = served.asks(&Host::start(&name));
    served.until_it_starts(&name).await;
    caller.kill().expect("it runs");
    caller.wait().expect("its end");
    let root = served.host.paths.roots.join(name.as_str()).join("var");
    std::fs::create_dir_all(&root).expect("a directory");
    std::fs::write(root.join("go"), "").expect("a file");
    until("it is ready all the same", || {
        matches!(served.host.run(&name), Some(ObservedRun::Running { .. }))
    })
    .await;
    until("the helper says so", || {
        served.said().contains("done op=\"start container")
    })
    .await;
    served.end().await;
}

pub(crate) async fn operations_on_one_container_wait_for_each_other_and_on_others_do_not() {
    let mut served = Served::new().await;
    let (slow, starting) = served.starting(6).await;
    let quick = served.host.name();
    let destroying = served.asks(&HostOp::DestroyContainer { name: slow.clone() });
    // Meanwhile another container goes through its life.
    served.ok(served.host.create(&quick, &system(WAITS))).await;
    served.ok(Host::start(&quick)).await;
    assert!(matches!(served.host.run(&slow), Some(ObservedRun::Starting)));
    let error = heard(starting).await.expect_err("it is never ready");
    assert_eq!(error.kind, Kind::NotReady, "{error}");
    // It would have been refused while the container ran.
    heard(destroying).await.expect("its turn came after the start");
    assert_eq!(served.host.run(&slow), None);
    served.end().await;
}

pub(crate) async fn a_stop_does_not_wait_until_the_container_is_ready() {
    let mut served = Served::new().await;
    let (name, starting) = served.starting(600).await;
    let stop = HostOp::StopContainer {
        name: name.clone(),
        grace_seconds: 0,
    };
    served.ok(stop).await;
    let error = heard(starting).await.expect_err("it was never ready");
    assert_eq!(error.kind, Kind::NotReady, "{error}");
    assert!(!matches!(served.host.run(&name), Some(ObservedRun::Starting)));
    served.end().await;
}

pub(crate) async fn an_operation_can_be_repeated_after_the_helper_was_killed() {
    let mut served = Served::new().await;
    let (name, starting) = served.starting(30).await;
    served.helper.kill().expect("it runs");
    served.helper.wait().expect("its end");
    let error = heard(starting).await.expect_err("nobody answered");
    assert_eq!(error.kind, Kind::Interrupted, "{error}");
    let error = served.fails(Host::stop(&name), Kind::Interrupted).await;
    assert!(error.reason.contains("no process listens"), "{error}");
    std::fs::remove_file(&served.socket).expect("it was there");
    let error = served.fails(Host::stop(&name), Kind::Unsupported).await;
    assert!(error.reason.contains("start leaf-helper.socket"), "{error}");

    served.helper = start(&served.config, &served.socket, &served.log);
    served.until_it_answers().await;
    let stop = HostOp::StopContainer {
        name: name.clone(),
        grace_seconds: 0,
    };
    served.ok(stop).await;
    served.ok(HostOp::DestroyContainer { name: name.clone() }).await;
    assert_eq!(served.host.run(&name), None);
    served.end().await;
}

pub(crate) async fn a_helper_that_is_killed_amid_renewals_leaves_whole_credentials() {
    let mut served = Served::new().await;
    let name = served.host.name();
    served.ok(served.host.create(&name, &system(WAITS))).await;
    served.ok(Host::start(&name)).await;
    let text = |number: usize| format!("{number:02}").repeat(20_000);
    for number in 0..10 {
        // Both are under way when it is killed, at another moment each time.
        let asked = [number, number + 10].map(|number| served.asks(&renew(&name, &text(number))));
        tokio::time::sleep(std::time::Duration::from_millis(3 * number as u64)).await;
        served.helper.kill().expect("it runs");
        served.helper.wait().expect("its end");
        for caller in asked {
            let _ = heard(caller).await;
        }
        let seen = seen(&served.host, &name);
        let is_whole = seen == "secret text" || (0..20).any(|number| seen == text(number));
        assert!(is_whole, "{} bytes, {:?}…", seen.len(), seen.get(..20));
        std::fs::remove_file(&served.socket).expect("it was there");
        served.helper = start(&served.config, &served.socket, &served.log);
        served.until_it_answers().await;
    }
    served.ok(renew(&name, "the last")).await;
    assert_eq!(seen(&served.host, &name), "the last");
    served.ok(Host::stop(&name)).await;
    served.ok(HostOp::DestroyContainer { name }).await;
    served.end().await;
}

pub(crate) async fn a_helper_that_is_stopped_completes_its_operations() {
    let mut served = Served::new().await;
    let (_, starting) = served.starting(3).await;
    let pid = rustix::process::Pid::from_child(&served.helper);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    let error = heard(starting).await.expect_err("it is never ready");
    assert_eq!(error.kind, Kind::NotReady, "{error}");
    let status = served.helper.wait().expect("its end");
    assert!(status.success(), "{status}: {}", served.said());
    served.helper = start(&served.config, &served.socket, &served.log);
    served.until_it_answers().await;
    served.end().await;
}

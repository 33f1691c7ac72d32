//! Files and units that an earlier helper left.

use leaf_helper::Helper;

use crate::host::{Host, WAITS, system};

pub(crate) async fn notes_of_runs_that_ended_and_of_containers_that_are_gone_are_removed() {
    let mut host = Host::new().await;
    let (down, up) = (host.name(), host.name());
    let waits = system(WAITS);
    for name in [&down, &up] {
        host.ok(host.create(name, &waits)).await;
    }
    host.ok(Host::start(&up)).await;
    let run = |name: &str, file: &str| host.paths.run.join(name).join(file);
    std::fs::create_dir_all(run("gone", "binds")).expect("a directory");
    std::fs::write(run("gone", "network.json"), "[\"link\"]").expect("a note");
    std::fs::create_dir_all(host.paths.run.join(down.as_str())).expect("a directory");
    // A newer helper has written what this one can't read.
    std::fs::write(run(down.as_str(), "network.json"), "[\"tunnel\"]").expect("a note");
    std::fs::write(host.paths.state.join("network.json"), "{\"version\":2}").expect("a note");

    let next = Helper::new(host.leaf.clone(), host.paths.clone(), host.settings.clone());
    next.carry_out(&host.prepare()).await.expect("it is prepared");
    assert!(!host.paths.run.join("gone").exists());
    assert!(!run(down.as_str(), "network.json").exists());
    // The one that runs is left alone.
    assert!(run(up.as_str(), "network.json").exists());
    assert!(
        host.run(&up)
            .is_some_and(|run| matches!(run, leaf_core::container::ObservedRun::Running { .. }))
    );
    host.end().await;
}

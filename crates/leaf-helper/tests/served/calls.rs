//! The service's calls: which there are, who may make them, and what is refused.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use leaf_core::host_op::HostOpErrorKind as Kind;
use serde_json::{Value, json};

use super::{STRANGER, Served, answers, heard, raw, speaker};
use crate::host::{WAITS, system};

pub(crate) async fn the_service_describes_its_operations() {
    let served = Served::new().await;
    let info = served.call("org.varlink.service.GetInfo", json!({})).await;
    assert_eq!(
        info["parameters"]["interfaces"],
        json!(["cim.leaf.Helper", "org.varlink.service"])
    );
    let about = json!({ "interface": "cim.leaf.Helper" });
    let described = served
        .call("org.varlink.service.GetInterfaceDescription", about)
        .await;
    let text = described["parameters"]["description"].as_str().expect("a text");
    for method in ["PrepareNetwork", "CreateContainer", "StopJob"] {
        assert!(text.contains(&format!("\nmethod {method}(")), "{text}");
    }
    let about = json!({ "interface": "org.example.none" });
    let unknown = served
        .call("org.varlink.service.GetInterfaceDescription", about)
        .await;
    assert_eq!(unknown["error"], "org.varlink.service.InterfaceNotFound");
    served.end().await;
}

pub(crate) async fn only_leafd_and_root_may_call() {
    let served = Served::new().await;
    let prepare = served.host.prepare();
    let line = format!("{}\n", serde_json::to_string(&prepare).expect("JSON"));
    // The socket's mode keeps strangers out …
    let error = heard(speaker(STRANGER, &served.socket, &line))
        .await
        .expect_err("a stranger");
    assert_eq!(error.kind, Kind::Unsupported, "{error}");
    assert!(error.reason.contains("may not open"), "{error}");
    // … and where that was changed, the helper itself.
    std::fs::set_permissions(&served.socket, PermissionsExt::from_mode(0o666)).expect("a mode");
    let error = heard(speaker(STRANGER, &served.socket, &line))
        .await
        .expect_err("a stranger");
    assert_eq!(error.kind, Kind::Refused, "{error}");
    let told = answers(speaker(STRANGER, &served.socket, &raw(b"{\"method\":\"x\"}\0"))).await;
    assert_eq!(told, [json!({"error": "org.varlink.service.PermissionDenied"})]);
    heard(speaker(0, &served.socket, &line)).await.expect("root may");
    served.end().await;
}

pub(crate) async fn invalid_calls_are_answered_with_an_error_and_others_are_served() {
    let served = Served::new().await;
    // One that says half a call, and stays, holds up nobody.
    let mut slow = UnixStream::connect(&served.socket).expect("root may");
    slow.write_all(b"{\"method\":\"cim.leaf.Helper.Stop")
        .expect("it takes it");
    for (bytes, error) in [
        (&b"no JSON\0"[..], "org.varlink.service.InvalidParameter"),
        (b"[]\0", "org.varlink.service.InvalidParameter"),
        (b"{\"method\":5}\0", "org.varlink.service.InvalidParameter"),
        (
            b"{\"method\":\"cim.leaf.Helper.StopContainer\",\"parameters\":[]}\0",
            "org.varlink.service.InvalidParameter",
        ),
        (b"\xff\xfe\0", "org.varlink.service.InvalidParameter"),
        (
            b"{\"method\":\"cim.leaf.Helper.Run\",\"parameters\":{}}\0",
            "org.varlink.service.MethodNotFound",
        ),
        (
            b"{\"method\":\"cim.leaf.Helper.StopContainer\",\"more\":true}\0",
            "org.varlink.service.InvalidParameter",
        ),
        (
            b"{\"method\":\"cim.leaf.Helper.StopContainer\"}\0",
            "cim.leaf.Helper.Refused",
        ),
    ] {
        let told = served.says(bytes).await;
        assert_eq!(told.len(), 1, "{}: {told:?}", String::from_utf8_lossy(bytes));
        assert_eq!(told[0]["error"], error, "{}", String::from_utf8_lossy(bytes));
    }
    // A message without an end is not read to its end.
    let mut endless = br#"{"method":"cim.leaf.Helper.StopContainer","parameters":{"name":""#.to_vec();
    endless.resize(6 << 20, b'a');
    let told = served.says(&endless).await;
    assert!(
        told.is_empty() || told[0]["parameters"]["parameter"] == "it is too long",
        "{told:?}"
    );
    // The same in one that would end.
    endless.extend_from_slice(b"\",\"grace_seconds\":1}}\0");
    let told = served.says(&endless).await;
    assert!(
        told.is_empty() || told[0]["error"] == "org.varlink.service.InvalidParameter",
        "{told:?}"
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.helper.id())).expect("it runs");
    let peak = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .split_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .expect("a peak");
    assert!(peak < 64 * 1024, "{peak} KiB");
    let many: Vec<u8> = (0..3)
        .flat_map(|_| b"{\"method\":\"org.varlink.service.GetInfo\"}\0".to_vec())
        .collect();
    assert_eq!(served.says(&many).await.len(), 3, "calls one after the other");
    served.ok(served.host.prepare()).await;
    drop(slow);
    served.end().await;
}

pub(crate) async fn every_operation_refuses_what_leafd_may_not_do() {
    let mut served = Served::new().await;
    let (name, system) = (served.host.name(), system(WAITS));
    served.ok(served.host.create(&name, &system)).await;
    let create = |change: &dyn Fn(&mut Value)| {
        let call = serde_json::to_value(served.host.create(&name, &system)).expect("JSON");
        let mut op = call["parameters"].clone();
        change(&mut op);
        op
    };
    let set = |at: &'static str, value: Value| {
        create(&move |op| *op.pointer_mut(at).expect("it is there") = value.clone())
    };
    let with = |at: &'static str, key: &'static str, value: Value| {
        create(&move |op| {
            let object = op
                .pointer_mut(at)
                .and_then(Value::as_object_mut)
                .expect("an object");
            object.insert(key.to_owned(), value.clone());
        })
    };
    let mut cases = vec![
        // Another unit, another path, a flag in a name.
        ("StopContainer", json!({"name": "../../sshd", "grace_seconds": 1})),
        (
            "StopContainer",
            json!({"name": "sshd.service", "grace_seconds": 1}),
        ),
        (
            "StartContainer",
            json!({"name": "--help", "ready_timeout_seconds": 1}),
        ),
        (
            "StartContainer",
            json!({"name": "a b", "ready_timeout_seconds": 1}),
        ),
        (
            "UpdateContainer",
            json!({"name": "a\nb", "ready_timeout_seconds": 1, "grace_seconds": 1}),
        ),
        ("DestroyContainer", json!({"name": "/"})),
        ("DestroyContainer", json!({"name": ""})),
        ("DestroyContainer", json!({"name": "x".repeat(200)})),
        ("DestroyContainer", json!({"name": ["web"]})),
        ("StartJob", json!({"id": "../../../etc"})),
        ("StopJob", json!({"id": "ssh", "grace_seconds": 1})),
        ("RemoveJob", json!({"id": "/"})),
        (
            "PrepareNetwork",
            json!({"leaf_address": "8.8.8.8", "nats_port": 4222}),
        ),
        (
            "PrepareNetwork",
            json!({"leaf_address": "127.0.0.1", "nats_port": 4222}),
        ),
        (
            "PrepareNetwork",
            json!({"leaf_address": "10.0.0.1; flush ruleset", "nats_port": 4222}),
        ),
        (
            "PrepareNetwork",
            json!({"leaf_address": served.host.address(1), "nats_port": 0}),
        ),
        (
            "PrepareNetwork",
            json!({"leaf_address": served.host.address(1), "nats_port": 70000}),
        ),
        (
            "PrepareNetwork",
            json!({"leaf_address": served.host.address(1), "nats_port": "22"}),
        ),
        ("ReleaseNetwork", json!({"leaf_address": "8.8.8.8"})),
        ("CreateContainer", set("/name", json!("--bind=/"))),
        ("CreateContainer", set("/name", json!("x/../y"))),
        // A store path that is none.
        ("CreateContainer", set("/toplevel", json!("/etc"))),
        ("CreateContainer", set("/toplevel", json!("/nix/store/../../etc"))),
        ("CreateContainer", set("/toplevel", json!("/nix/store"))),
        ("CreateContainer", set("/toplevel", json!("--bind=/:/"))),
        (
            "CreateContainer",
            set(
                "/toplevel",
                json!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-not-here"),
            ),
        ),
        (
            "CreateContainer",
            set(
                "/toplevel",
                json!(format!("{system}\nEXTRA_NSPAWN_FLAGS=--bind=/")),
            ),
        ),
        (
            "CreateContainer",
            set("/toplevel", json!(format!("{system}/init"))),
        ),
        // Addresses of others, and what is none.
        (
            "CreateContainer",
            set("/network/host_address", json!("192.168.1.1")),
        ),
        (
            "CreateContainer",
            set("/network/container_address", json!("0.0.0.0")),
        ),
        (
            "CreateContainer",
            set("/network/host_address", json!("10.0.0.1/0")),
        ),
        // What the container is told of its leaf.
        ("CreateContainer", set("/binding/leaf", json!("another"))),
        ("CreateContainer", set("/binding/container", json!("another"))),
        (
            "CreateContainer",
            set("/binding/subject_prefix", json!("leaf.v1.cmd")),
        ),
        (
            "CreateContainer",
            set("/credentials", json!({"../../../etc/shadow": "x"})),
        ),
        ("CreateContainer", set("/credentials", json!({"leaf.json": "x"}))),
        ("CreateContainer", set("/credentials", json!({"": "x"}))),
        ("CreateContainer", set("/credentials", json!({"nats.creds": 5}))),
        (
            "CreateContainer",
            set("/credentials", json!({"nats.creds": "x".repeat(100_000)})),
        ),
        // A flag smuggled in.
        ("CreateContainer", with("", "flags", json!(["--bind=/"]))),
        ("CreateContainer", with("", "op", json!("start_container"))),
        (
            "CreateContainer",
            with("/options", "extra_nspawn_flags", json!("--bind=/")),
        ),
        (
            "CreateContainer",
            with("/options", "environment", json!({"A\nB": "x"})),
        ),
        (
            "CreateContainer",
            with("/options", "environment", json!({"A=B": "x"})),
        ),
        (
            "CreateContainer",
            with("/options", "environment", json!({"--setenv": "x"})),
        ),
        (
            "CreateContainer",
            with("/options", "environment", json!({"A": "x\u{0}y"})),
        ),
        ("CreateContainer", with("/options", "environment", json!(["A=x"]))),
    ];
    // A path of the host that root did not open to containers.
    for path in [
        "/etc",
        "/",
        "/etc/shadow",
        "/proc/self/root",
        "relative",
        "/tmp/../etc",
        "/a:/b",
    ] {
        let bind = json!([{"source": path, "target": "/mnt", "writable": true}]);
        cases.push(("CreateContainer", with("/options", "binds", bind)));
        cases.push((
            "CreateContainer",
            with("/options", "secrets", json!({"key": path})),
        ));
    }
    let conf = || std::fs::read(served.host.paths.conf(&name)).expect("a conf");
    let before = conf();
    for (method, parameters) in cases {
        let shown = parameters.to_string().chars().take(300).collect::<String>();
        let answer = served
            .call(&format!("cim.leaf.Helper.{method}"), parameters)
            .await;
        let error = answer["error"]
            .as_str()
            .unwrap_or_else(|| panic!("{method} {shown} was done"));
        assert!(
            // The nspawn runtime has no binds and no secrets at all, and no jobs.
            matches!(error, "cim.leaf.Helper.Refused" | "cim.leaf.Helper.Unsupported"),
            "{method} {shown}: {answer}"
        );
        assert!(
            !answer["parameters"]["reason"]
                .as_str()
                .unwrap_or_default()
                .is_empty()
        );
    }
    assert_eq!(conf(), before, "the container is what it was");
    let made = std::fs::read_dir(&served.host.paths.confs)
        .expect("a directory")
        .count();
    assert_eq!(made, 1, "and no other came to be");
    served.end().await;
}

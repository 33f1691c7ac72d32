//! What the helper refuses to every client.

use std::collections::BTreeMap;

use leaf_core::container::ContainerNetwork;
use leaf_core::host_op::{ContainerBinding, HostOp, HostOpErrorKind as Kind, Secret};
use leaf_core::id::{LeafName, StorePath};
use leaf_core::spec::{ContainerOptions, Users};
use leaf_helper::Helper;

use crate::host::{Host, WAITS, store_path, system};

pub(crate) async fn a_toplevel_without_a_proper_init_is_refused() {
    let mut host = Host::new().await;
    let name = host.name();
    let missing =
        StorePath::new("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-not-here").expect("a store path");
    let cases = [
        (missing, "does not exist"),
        (store_path("echo text > $out"), "not a directory"),
        (store_path("$b mkdir $out"), "no init"),
        (store_path("$b mkdir -p $out/init"), "not a file"),
        (
            store_path("$b mkdir $out; echo text > $out/init"),
            "not executable",
        ),
        (
            store_path("$b mkdir $out; $b ln -s /bin/sh $out/init"),
            "outside the store",
        ),
        (
            store_path("$b mkdir $out; $b ln -s /nix/store/../../bin/sh $out/init"),
            "outside the store",
        ),
    ];
    for (toplevel, why) in cases {
        let error = host.fails(host.create(&name, &toplevel), Kind::Refused).await;
        assert!(error.reason.contains(why), "{why}: {error}");
        assert_eq!(host.files(&name), Vec::<std::path::PathBuf>::new());
    }
    host.end().await;
}

pub(crate) async fn addresses_outside_the_pool_or_of_another_container_are_refused() {
    let mut host = Host::new().await;
    let (name, other) = (host.name(), host.name());
    let toplevel = system(WAITS);
    host.ok(host.create(&other, &toplevel)).await;
    let (own, taken) = (host.network(&name), host.network(&other));
    let outside = "192.168.77.1".parse().expect("an address");
    for network in [
        ContainerNetwork {
            host_address: outside,
            ..own
        },
        ContainerNetwork {
            container_address: outside,
            ..own
        },
        ContainerNetwork {
            container_address: own.host_address,
            ..own
        },
        ContainerNetwork {
            container_address: taken.container_address,
            ..own
        },
        ContainerNetwork {
            host_address: taken.container_address,
            ..own
        },
    ] {
        let HostOp::CreateContainer {
            binding, credentials, ..
        } = host.create(&name, &toplevel)
        else {
            unreachable!("it is what was made")
        };
        let op = HostOp::CreateContainer {
            name: name.clone(),
            toplevel: toplevel.clone(),
            network,
            options: Box::default(),
            adopt: false,
            secrets: BTreeMap::new(),
            binding,
            credentials,
        };
        host.fails(op, Kind::Refused).await;
    }
    assert_eq!(host.files(&name), Vec::<std::path::PathBuf>::new());
    let outside = HostOp::PrepareNetwork {
        leaf_address: outside,
        nats_port: 4222,
    };
    host.fails(outside, Kind::Refused).await;
    let no_port = HostOp::PrepareNetwork {
        leaf_address: host.address(1),
        nats_port: 0,
    };
    host.fails(no_port, Kind::Refused).await;
    host.end().await;
}

pub(crate) async fn the_hosts_users_are_refused_unless_root_permits_them_or_the_container_has_them() {
    let mut host = Host::new().await;
    let name = host.name();
    let (toplevel, other) = (system(WAITS), system("exec sleep 9999"));
    let with_host_users = |op| match op {
        HostOp::CreateContainer {
            name,
            toplevel,
            network,
            adopt,
            binding,
            credentials,
            ..
        } => HostOp::CreateContainer {
            name,
            toplevel,
            network,
            options: Box::new(ContainerOptions {
                users: Users::Host,
                ..ContainerOptions::default()
            }),
            secrets: BTreeMap::new(),
            adopt,
            binding,
            credentials,
        },
        other => other,
    };
    let refused = host
        .fails(with_host_users(host.create(&name, &toplevel)), Kind::Refused)
        .await;
    assert!(refused.reason.contains("host_users = true"), "{refused}");
    assert_eq!(host.files(&name), Vec::<std::path::PathBuf>::new());

    let (mut permitted, forbidden) = (host.settings.clone(), host.settings.clone());
    permitted.host_users = true;
    host.helper = Helper::new(host.leaf.clone(), host.paths.clone(), permitted);
    host.ok(with_host_users(host.create(&name, &toplevel))).await;
    // It keeps them with its own system, as one that was adopted, and gets no other system.
    host.helper = Helper::new(host.leaf.clone(), host.paths.clone(), forbidden);
    host.ok(with_host_users(host.create(&name, &toplevel))).await;
    host.fails(with_host_users(host.create(&name, &other)), Kind::Refused)
        .await;
    host.end().await;
}

pub(crate) async fn credentials_and_bindings_that_are_not_this_containers_are_refused() {
    let mut host = Host::new().await;
    let (name, other) = (host.name(), host.name());
    let toplevel = system(WAITS);
    let op = |binding: ContainerBinding, credentials: BTreeMap<String, Secret>| HostOp::CreateContainer {
        name: name.clone(),
        toplevel: toplevel.clone(),
        network: host.network(&name),
        options: Box::default(),
        adopt: false,
        secrets: BTreeMap::new(),
        binding,
        credentials,
    };
    let url = "nats://10.0.0.1:4222";
    let own = ContainerBinding::new(&host.leaf, &name, url);
    for bad in [
        "",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/b",
        "leaf.json",
        "a:b",
        "a\nb",
        "-a",
        &"x".repeat(65),
    ] {
        let credentials = BTreeMap::from([(bad.to_owned(), Secret::new("x"))]);
        host.fails(op(own.clone(), credentials), Kind::Refused).await;
    }
    let large = BTreeMap::from([("large".to_owned(), Secret::new("x".repeat(100_000)))]);
    host.fails(op(own.clone(), large), Kind::Refused).await;
    let another = LeafName::new("another").expect("a leaf");
    for binding in [
        ContainerBinding::new(&another, &name, url),
        ContainerBinding::new(&host.leaf, &other, url),
        ContainerBinding {
            inbox_prefix: "_INBOX".into(),
            ..own
        },
    ] {
        host.fails(op(binding, BTreeMap::new()), Kind::Refused).await;
    }
    host.end_without_files(&name).await;
}

pub(crate) async fn a_link_that_a_container_left_in_its_root_is_not_followed() {
    let toplevel = system(WAITS);
    let (host, name) = Host::with_container(&toplevel).await;
    let outside = host.directory.path().join("outside");
    std::fs::create_dir(&outside).expect("a directory");
    std::fs::write(outside.join("kept"), "kept").expect("a file");
    let root = host.paths.roots.join(name.as_str());
    std::fs::remove_dir_all(root.join("etc")).expect("it was there");
    std::os::unix::fs::symlink(&outside, root.join("etc")).expect("a link");
    let error = host.fails(host.create(&name, &toplevel), Kind::Refused).await;
    assert!(error.reason.contains("not followed"), "{error}");
    host.ok(HostOp::DestroyContainer { name: name.clone() }).await;
    assert_eq!(host.files(&name), Vec::<std::path::PathBuf>::new());
    let left: Vec<_> = std::fs::read_dir(&outside)
        .expect("it is there")
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(left, ["kept"]);
    host.end().await;
}

pub(crate) async fn a_container_that_was_not_created_is_not_started() {
    let mut host = Host::new().await;
    let name = host.name();
    let error = host.fails(Host::start(&name), Kind::Refused).await;
    assert!(error.reason.contains("create it first"), "{error}");
    host.end().await;
}

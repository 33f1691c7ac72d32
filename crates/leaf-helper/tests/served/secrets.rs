//! Secrets by calls of leafd's user: kept for root alone, and never in the log.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;

use leaf_core::host_op::Secret;
use leaf_core::id::{LeafName, SecretName};
use leaf_trust::host_key::HostKey;
use leaf_trust::secret::SecretDocument;

use super::*;

/// A helper with the public part of its host key, and a secret's name.
struct Keeper {
    served: Served,
    key: HostKey,
    name: SecretName,
}

impl Keeper {
    async fn new() -> Self {
        let served = Served::new().await;
        let public =
            std::fs::read_to_string(served.host.directory.path().join("host_key.pub")).expect("a key");
        Self {
            served,
            key: public.parse().expect("a key"),
            name: SecretName::new("db").expect("a name"),
        }
    }

    /// Returns an age file that was made at this second.
    fn encrypted(&self, leaf: &LeafName, made: i64) -> String {
        let document = SecretDocument {
            leaf: leaf.clone(),
            name: self.name.clone(),
            made: jiff::Timestamp::from_second(made).expect("a time"),
            users: vec!["container web".parse().expect("a user")],
            content: PLAIN.as_bytes().to_vec().into(),
        };
        document.encrypt(&self.key).expect("encrypted")
    }

    fn store(&self, age: &str) -> HostOp {
        HostOp::StoreSecret {
            name: self.name.clone(),
            age: Secret::new(age),
        }
    }

    fn remove(&self) -> HostOp {
        HostOp::RemoveSecret {
            name: self.name.clone(),
        }
    }

    fn file(&self, end: &str) -> PathBuf {
        self.served.host.paths.secrets.join(format!("db{end}"))
    }
}

const PLAIN: &str = "plaintext-of-this-test";

pub(crate) async fn a_removed_secret_comes_back_neither_by_its_age_file_nor_by_an_older_one() {
    let keeper = Keeper::new().await;
    let served = &keeper.served;
    let made = |second: i64| keeper.encrypted(&served.host.leaf, 1_700_000_000 + second);
    let [older, kept, newer, newest] = [10, 20, 30, 40].map(made);
    served.ok(keeper.store(&kept)).await;
    // The same file is no older one.
    served.ok(keeper.store(&kept)).await;
    let refused = served.fails(keeper.store(&older), Kind::Refused).await;
    assert!(refused.reason.contains("db.age on the leaf first"), "{refused}");
    for _ in 0..2 {
        // Also if it was removed before.
        served.ok(keeper.remove()).await;
        for sent_again in [&kept, &older] {
            let refused = served.fails(keeper.store(sent_again), Kind::Refused).await;
            let reason = &refused.reason;
            assert!(
                reason.contains("that was removed from this leaf was made at 2023-11-14T22:13:40Z"),
                "{reason}"
            );
            assert!(reason.contains("db.removed on the leaf first"), "{reason}");
        }
    }
    assert!(!keeper.file(".age").exists());
    assert!(served.ok(HostOp::ListSecrets {}).await.secrets.is_empty());

    // A new one is taken, and then it is the one that counts.
    served.ok(keeper.store(&newer)).await;
    assert!(!keeper.file(".removed").exists());
    served.fails(keeper.store(&kept), Kind::Refused).await;
    served.ok(keeper.store(&newest)).await;
    served.ok(keeper.remove()).await;
    for sent_again in [&kept, &newer, &newest] {
        served.fails(keeper.store(sent_again), Kind::Refused).await;
    }
    // Root's word ends it.
    std::fs::remove_file(keeper.file(".removed")).expect("removed");
    served.ok(keeper.store(&newest)).await;
    keeper.served.end().await;
}

pub(crate) async fn the_helper_writes_no_core_where_cores_are_written() {
    let mut keeper = Keeper::new().await;
    let cores = |command: &mut Command, directory: &Path| {
        command.current_dir(directory);
        std::fs::read_dir(directory).expect("a directory").count()
    };
    let directory = tempfile::tempdir().expect("a directory");
    // What the kernel does with another program here.
    let mut other = Command::new("sh");
    other.args(["-c", "ulimit -c unlimited && kill -ABRT $$"]);
    assert_eq!(cores(&mut other, directory.path()), 0);
    let ended = other.status().expect("it starts");
    assert_eq!(ended.signal(), Some(6));
    assert!(
        ended.core_dumped(),
        "this machine writes no cores (/proc/sys/kernel/core_pattern), so nothing can be shown"
    );

    let served = &mut keeper.served;
    served.helper.kill().expect("it runs");
    served.helper.wait().expect("its end");
    let directory = tempfile::tempdir().expect("a directory");
    let mut unlimited = Command::new("sh");
    unlimited.args(["-c", "ulimit -c unlimited && exec \"$0\" \"$@\""]);
    assert_eq!(cores(&mut unlimited, directory.path()), 0);
    unlimited.arg(env!("CARGO_BIN_EXE_leaf-helper"));
    served.helper = start_by(&mut unlimited, &served.config, &served.socket, &served.log);
    served.until_it_answers().await;
    let age = keeper.encrypted(&keeper.served.host.leaf, 1_700_000_000);
    let store = keeper.store(&age);
    let served = &mut keeper.served;
    served.ok(store).await;
    served.ok(HostOp::ListSecrets {}).await;
    let pid = rustix::process::Pid::from_child(&served.helper);
    rustix::process::kill_process(pid, rustix::process::Signal::ABORT).expect("it runs");
    let ended = served.helper.wait().expect("its end");
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(6), false), "{ended}");
    assert_eq!(
        std::fs::read_dir(directory.path()).expect("a directory").count(),
        0
    );
    keeper.served.host.end().await;
}

pub(crate) async fn a_secret_is_kept_for_root_alone_and_is_in_no_log() {
    let keeper = Keeper::new().await;
    let (served, key, name) = (&keeper.served, &keeper.key, &keeper.name);
    let now = jiff::Timestamp::now().as_second();
    let encrypted = |leaf: &LeafName| keeper.encrypted(leaf, now);
    let store = |age: &str| keeper.store(age);
    let age = encrypted(&served.host.leaf);
    let stored = served.ok(store(&age)).await.secrets;
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].users.len(), 1);
    assert_eq!(served.ok(HostOp::ListSecrets {}).await.secrets, stored);
    let host_key = served.ok(HostOp::ShowHostKey {}).await.host_key;
    assert_eq!(host_key, Some(key.to_string()));

    // A file that can't be read is named, and keeps no other from being listed.
    let unreadable = served.host.paths.secrets.join("binary.age");
    std::fs::write(&unreadable, [0xff, 0xfe]).expect("a file");
    let beside = served.ok(HostOp::ListSecrets {}).await.secrets;
    assert_eq!(beside.len(), 2);
    assert_eq!(beside[0].name.as_str(), "binary");
    assert!(beside[0].problem.is_some());
    assert_eq!(beside[1], stored[0]);
    std::fs::remove_file(&unreadable).expect("removed");

    // What is refused leaves the one before.
    let other = encrypted(&LeafName::new("another").expect("a name"));
    served.fails(store(&other), Kind::Refused).await;
    served.fails(store("plaintext-of-this-test"), Kind::Refused).await;
    let file = served.host.paths.secrets.join("db.age");
    assert_eq!(std::fs::read_to_string(&file).expect("a file"), age);
    let mode = |path: &Path| {
        let metadata = std::fs::metadata(path).expect("metadata");
        (metadata.uid(), metadata.mode() & 0o777)
    };
    assert_eq!(mode(&file), (0, 0o600));
    assert_eq!(mode(&served.host.paths.secrets), (0, 0o700));

    let lines: Vec<&str> = age.lines().collect();
    let said = served.said();
    assert!(said.contains("store secret db"), "{said}");
    for hidden in ["plaintext-of-this-test", lines[lines.len() / 2]] {
        assert!(!said.contains(hidden), "{hidden} is in the log");
    }
    for _ in 0..2 {
        let removed = served.ok(HostOp::RemoveSecret { name: name.clone() }).await;
        assert_eq!(removed, HostReport::default());
    }
    assert!(!file.exists());
    keeper.served.end().await;
}

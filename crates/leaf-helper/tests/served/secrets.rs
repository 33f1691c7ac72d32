//! Secrets by calls of leafd's user: kept for root alone, and never in the log.

use std::os::unix::fs::MetadataExt as _;

use leaf_core::host_op::Secret;
use leaf_core::id::{LeafName, SecretName};
use leaf_trust::host_key::HostKey;
use leaf_trust::secret::SecretDocument;

use super::*;

pub(crate) async fn a_secret_is_kept_for_root_alone_and_is_in_no_log() {
    let served = Served::new().await;
    let public = std::fs::read_to_string(served.host.directory.path().join("host_key.pub")).expect("a key");
    let key: HostKey = public.parse().expect("a key");
    let name = SecretName::new("db").expect("a name");
    let encrypted = |leaf: &LeafName| {
        let document = SecretDocument {
            leaf: leaf.clone(),
            name: name.clone(),
            made: jiff::Timestamp::now(),
            users: vec!["container web".parse().expect("a user")],
            content: b"plaintext-of-this-test".to_vec().into(),
        };
        document.encrypt(&key).expect("encrypted")
    };
    let store = |age: &str| HostOp::StoreSecret {
        name: name.clone(),
        age: Secret::new(age),
    };
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
    served.end().await;
}

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;
use crate::test_keys::KeyPair;

const MADE: &str = "2026-11-30T08:00:00.123456789Z";

fn document(users: &[&str], content: &[u8]) -> SecretDocument {
    SecretDocument {
        leaf: LeafName::new("edge-1").expect("a leaf"),
        name: SecretName::new("db-password").expect("a name"),
        made: MADE.parse().expect("a time"),
        users: users.iter().map(|user| user.parse().expect("a user")).collect(),
        content: Zeroizing::new(content.to_vec()),
    }
}

/// Returns the text of a document, by hand.
fn text(users: &str, content: &[u8]) -> Vec<u8> {
    let bytes = content.len();
    let header = format!(
        "cim-leaf secret 1\nleaf: edge-1\nname: db-password\nmade: {MADE}\nbytes: {bytes}\n{users}\n"
    );
    let mut text = header.into_bytes();
    let size = text.len() + bytes.next_power_of_two().max(256);
    text.extend(content);
    text.resize(size, 0);
    text
}

fn decrypted(pair: &KeyPair, file: &str) -> Result<SecretDocument, SecretError> {
    let like = document(&[], b"");
    SecretDocument::decrypt(&pair.private, file.as_bytes(), &like.leaf, &like.name)
}

#[test]
fn a_secret_is_read_by_its_leaf_under_its_name_and_nowhere_else() {
    let (own, other) = (KeyPair::new(), KeyPair::new());
    let sent = document(
        &["unit b.service reload", "container web"],
        b"\n\nleaf: edge-2\n\0\xff",
    );
    let file = sent.encrypt(&own.public).expect("encrypted");
    let read = decrypted(&own, &file).expect("decrypted");
    assert_eq!(read.content, sent.content);
    assert_eq!(
        read.users.iter().collect::<BTreeSet<_>>(),
        sent.users.iter().collect()
    );
    assert!(!format!("{read:?}").contains("255"), "{read:?}");
    let open = |leaf: &str, name: &str| {
        SecretDocument::decrypt(
            &own.private,
            file.as_bytes(),
            &LeafName::new(leaf).expect("a leaf"),
            &SecretName::new(name).expect("a name"),
        )
    };
    assert!(matches!(
        open("edge-2", "db-password"),
        Err(SecretError::AnotherLeaf { .. })
    ));
    assert!(matches!(
        open("edge-1", "db-passwore"),
        Err(SecretError::AnotherName { .. })
    ));
    assert!(matches!(
        decrypted(&other, &file),
        Err(SecretError::Decrypt(DecryptError::AnotherKey))
    ));
}

#[test]
fn an_altered_file_is_refused_at_each_of_its_lines() {
    let own = KeyPair::new();
    let file = document(&[], &[7; 300]).encrypt(&own.public).expect("encrypted");
    let mut lines: Vec<String> = file.lines().map(str::to_owned).collect();
    for line in 0..lines.len() {
        let before = lines[line].clone();
        let changed = if before.starts_with('A') { "B" } else { "A" };
        lines[line].replace_range(..1, changed);
        let altered = lines.join("\n") + "\n";
        assert!(decrypted(&own, &altered).is_err(), "line {line}");
        lines[line] = before;
    }
    let cut = file.len() / 2;
    assert!(decrypted(&own, &file[..cut]).is_err());
}

#[test]
fn what_is_too_large_or_named_twice_is_refused() {
    let own = KeyPair::new();
    let encrypt = |document: SecretDocument| document.encrypt(&own.public);
    let largest = vec![b'x'; MAX_CONTENT_BYTES];
    let users: Vec<String> = (0..MAX_USERS)
        .map(|n| format!("unit {}{n:02}.service nothing", "u".repeat(245)))
        .collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let file = encrypt(document(&users, &largest)).expect("the largest");
    assert!(file.len() <= MAX_FILE_BYTES, "{}", file.len());
    assert_eq!(
        decrypted(&own, &file).expect("the largest").content.len(),
        MAX_CONTENT_BYTES
    );
    let larger = vec![b'x'; MAX_CONTENT_BYTES + 1];
    assert!(matches!(
        encrypt(document(&[], &larger)),
        Err(SecretError::TooLarge(_))
    ));
    let twice = ["unit a.service reload", "container b", "unit a.service restart"];
    assert!(matches!(
        encrypt(document(&twice, b"")),
        Err(SecretError::Twice(_))
    ));
    // By hand, past the check of the sender.
    let mut by_hand = text("", &larger);
    by_hand.truncate(MAX_CONTENT_BYTES);
    let file = age_file::encrypt(std::slice::from_ref(&own.public), &by_hand);
    assert!(matches!(decrypted(&own, &file), Err(SecretError::TooLarge(_))));
}

#[test]
fn another_form_of_the_header_is_refused_with_its_line() {
    let good = text("for: container a\nfor: unit b.service restart\n", b"x");
    SecretDocument::parse(&good).expect("a document");
    let good = String::from_utf8(good).expect("text");
    type Is = fn(&SecretError) -> bool;
    let cases: [(&str, &str, Is); 21] = [
        ("secret 1", "secret 2", |e| matches!(e, SecretError::Version)),
        ("cim-leaf", "\u{feff}cim-leaf", |e| {
            matches!(e, SecretError::Version)
        }),
        ("\nleaf:", "\r\nleaf:", |e| matches!(e, SecretError::Version)),
        ("leaf: edge-1\n", "", |e| {
            matches!(e, SecretError::Header { line: 2 })
        }),
        ("leaf: edge-1", "leaf:  edge-1", |e| {
            matches!(e, SecretError::Name { line: 2, .. })
        }),
        ("leaf: edge-1\n", "leaf: edge-1\nleaf: edge-2\n", |e| {
            matches!(e, SecretError::Header { line: 3 })
        }),
        ("db-password", "../db", |e| {
            matches!(e, SecretError::Name { line: 3, .. })
        }),
        ("container a\n", "container a\nfor: container a\n", |e| {
            matches!(e, SecretError::Header { line: 7 })
        }),
        ("unit b.service restart", "unit b.service", |e| {
            matches!(e, SecretError::Header { line: 7 })
        }),
        ("container a", "unit z.service restart", |e| {
            matches!(e, SecretError::Header { line: 7 })
        }),
        ("container a", "anybody", |e| {
            matches!(e, SecretError::User { line: 6, .. })
        }),
        ("for: unit", "of: unit", |e| {
            matches!(e, SecretError::Header { line: 7 })
        }),
        ("\n\nx", "\nx", |e| matches!(e, SecretError::Header { line: 8 })),
        ("made: 2026", "made: soon 2026", |e| {
            matches!(e, SecretError::Header { line: 4 })
        }),
        (".123456789Z", ".123456789+00:00", |e| {
            matches!(e, SecretError::Header { line: 4 })
        }),
        ("bytes: 1", "bytes: 01", |e| {
            matches!(e, SecretError::Header { line: 5 })
        }),
        ("bytes: 1", "bytes: -1", |e| {
            matches!(e, SecretError::Header { line: 5 })
        }),
        ("bytes: 1", "bytes: 0", |e| matches!(e, SecretError::Size)),
        ("bytes: 1", "bytes: 257", |e| matches!(e, SecretError::Size)),
        ("\n\nx\0", "\n\nx", |e| matches!(e, SecretError::Size)),
        ("\n\nx\0", "\n\nxx", |e| matches!(e, SecretError::Size)),
    ];
    for (from, to, is) in cases {
        let text = good.replacen(from, to, 1);
        let error = SecretDocument::parse(text.as_bytes()).expect_err(&text);
        assert!(is(&error), "{text:?}: {error:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = SecretDocument::parse(&bytes);
        let mut headed = format!("cim-leaf secret 1\nleaf: e\nname: n\nmade: {MADE}\nbytes: 3\n").into_bytes();
        headed.extend(bytes);
        let _ = SecretDocument::parse(&headed);
    }

    #[test]
    fn what_the_parser_takes_is_written_again_as_it_was(
        users in proptest::collection::btree_set("[a-z][a-z0-9-]{0,10}", 0..5),
        content in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let users: String = users.iter().map(|user| format!("for: container {user}\n")).collect();
        let document = SecretDocument::parse(&text(&users, &content)).expect("a document");
        let again: String = document.users.iter().map(|user| format!("for: {user}\n")).collect();
        prop_assert_eq!(again, users);
        prop_assert_eq!(document.content.as_slice(), content);
    }
}

fn run(program: &str, arguments: &[&Path], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} does not run ({error}): `cargo xtask setup` installs it"));
    let mut stdin = child.stdin.take().expect("it was piped");
    stdin.write_all(input).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{program}: {:?}", output.status);
    output.stdout
}

#[test]
fn the_program_age_decrypts_what_is_encrypted_here() {
    let own = KeyPair::new();
    let file = document(&["container web"], b"s3cret\n\0")
        .encrypt(&own.public)
        .expect("encrypted");
    let arguments = [Path::new("-d"), Path::new("-i"), &own.file];
    assert_eq!(
        run("age", &arguments, file.as_bytes()),
        text("for: container web\n", b"s3cret\n\0")
    );
}

#[test]
fn what_the_program_age_encrypts_is_read_here() {
    let own = KeyPair::new();
    let public = own.file.with_extension("pub");
    let text = text("", b"s3cret\n\0");
    let arguments = [Path::new("-a"), Path::new("-R"), &public];
    let file = String::from_utf8(run("age", &arguments, &text)).expect("it is armored");
    assert_eq!(*decrypted(&own, &file).expect("decrypted").content, b"s3cret\n\0");
}

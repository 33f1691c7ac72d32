use super::*;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

fn leaf() -> LeafName {
    LeafName::new("edge").expect("a leaf name")
}

fn fresh() -> (tempfile::TempDir, PathBuf, Identity) {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = parent.path().join("identity");
    let identity = Identity::open_or_create(&dir, &leaf()).expect("a new identity");
    (parent, dir, identity)
}

#[test]
fn an_identity_opened_again_is_the_same() {
    let (_parent, dir, first) = fresh();
    let again = Identity::open_or_create(&dir, &leaf()).expect("the identity");
    let config = |identity: &Identity| identity.server_config().expect("a configuration");
    assert_eq!(config(&first), config(&again));
    assert_eq!(first.leaf_credentials(), again.leaf_credentials());
}

#[test]
fn the_admins_credentials_end_and_are_written_again_with_the_same_key() {
    let (_parent, _, identity) = fresh();
    let read = || std::fs::read_to_string(identity.admin_credentials_file()).expect("the file");
    let (key, claims) = user_of(&read());
    let day = i64::try_from(ADMIN_VALID.as_secs()).expect("a day");
    let times = |claims: &Value| {
        (
            claims["iat"].as_i64().expect("a time"),
            claims["exp"].as_i64().expect("an end"),
        )
    };
    let (issued_at, expires_at) = times(&claims);
    assert_eq!(expires_at - issued_at, day);
    assert!((Timestamp::now().as_second() - issued_at).abs() < 60);

    let identity = identity.clone().with_admin_valid(Duration::from_secs(3600));
    identity.write_admin_credentials().expect("they are written");
    let (again, claims) = user_of(&read());
    let (issued_at, expires_at) = times(&claims);
    assert_eq!((again, expires_at - issued_at), (key, 3600));
}

/// Returns the public key of the user in the text of a credentials file, and its claims.
fn user_of(text: &str) -> (String, Value) {
    let jwt = text.lines().nth(1).expect("a JWT");
    let body = jwt.split('.').nth(1).expect("three parts");
    let body = data_encoding::BASE64URL_NOPAD
        .decode(body.as_bytes())
        .expect("base64url");
    let claims: Value = serde_json::from_slice(&body).expect("JSON");
    (claims["sub"].as_str().expect("a key").to_owned(), claims)
}

#[test]
fn only_the_owner_may_read_it() {
    let (_parent, dir, identity) = fresh();
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").mode() & 0o7777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("keys.json")), 0o600);
    assert_eq!(mode(identity.admin_credentials_file()), 0o600);
    let context = dir.join("context.json");
    identity
        .write_context(&context, "nats://127.0.0.1:4222")
        .expect("it is written");
    assert_eq!(mode(&context), 0o600);
    identity
        .write_access(&dir, "nats://127.0.0.1:4222")
        .expect("they are written");
    assert_eq!((mode(&context), mode(&dir.join("admin.creds"))), (0o640, 0o640));
    let text = std::fs::read_to_string(&context).expect("the context");
    let context: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(context["creds"].as_str(), dir.join("admin.creds").to_str());
    let shown = format!("{identity:?}");
    let keys = std::fs::read_to_string(dir.join("keys.json")).expect("the keys");
    let keys: BTreeMap<String, Value> = serde_json::from_str(&keys).expect("an object");
    let seeds = keys
        .values()
        .filter_map(Value::as_str)
        .filter(|key| key.len() > 50);
    assert_eq!(seeds.clone().count(), 8);
    seeds.for_each(|seed| assert!(!shown.contains(seed), "no seed is shown"));
}

#[test]
fn keys_readable_by_others_are_refused() {
    let (_parent, dir, _) = fresh();
    let keys = dir.join("keys.json");
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o644)).expect("a mode");
    let error = Identity::open_or_create(&dir, &leaf())
        .expect_err("refused")
        .to_string();
    assert!(error.contains("0644") && error.contains("chmod 600"), "{error}");
}

#[test]
fn damaged_keys_are_refused_and_never_replaced() {
    let (_parent, dir, _) = fresh();
    let keys = dir.join("keys.json");
    let good = std::fs::read_to_string(&keys).expect("the keys");
    let seed = good
        .lines()
        .find_map(|line| line.trim().strip_prefix("\"account\": \""))
        .expect("the account's seed");
    let mut flipped = seed.to_owned();
    let byte = if &seed[20..21] == "A" { "B" } else { "A" };
    flipped.replace_range(20..21, byte);
    for bad in [
        String::new(),
        good[..good.len() / 2].to_owned(),
        good.replace(seed, &flipped),
        good.replace("\"format\": 2", "\"format\": 3"),
        good.replace("\"format\": 2", "\"format\": 1"),
        good.replace("\"callers\"", "\"collars\""),
        good.replace("\"operator\"", "\"operater\""),
    ] {
        std::fs::write(&keys, &bad).expect("written");
        let error = Identity::open_or_create(&dir, &leaf()).expect_err("refused");
        assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&keys).expect("the keys"), bad);
    }
}

#[test]
fn missing_keys_are_not_replaced_if_derived_credentials_exist() {
    let (_parent, dir, _) = fresh();
    std::fs::remove_file(dir.join("keys.json")).expect("removed");
    let error = Identity::open_or_create(&dir, &leaf()).expect_err("refused");
    assert!(matches!(error, IdentityError::Missing { .. }), "{error}");
}

#[test]
fn missing_credentials_of_the_admin_are_written_again() {
    let (_parent, dir, first) = fresh();
    std::fs::remove_file(first.admin_credentials_file()).expect("removed");
    let again = Identity::open_or_create(&dir, &leaf()).expect("the identity");
    assert!(again.admin_credentials_file().exists());
}

#[test]
fn the_keys_of_another_leaf_are_refused() {
    let (_parent, dir, _) = fresh();
    let other = LeafName::new("other").expect("a leaf name");
    let error = Identity::open_or_create(&dir, &other)
        .expect_err("refused")
        .to_string();
    assert!(error.contains("edge") && error.contains("other"), "{error}");
}

#[test]
fn a_container_gets_a_user_of_its_own_with_no_permissions_of_its_own() {
    use base64::Engine as _;
    let (_parent, _, identity) = fresh();
    let web = ContainerName::new("Web").expect("a name");
    let one = identity.container_credentials(&web);
    let other = ContainerName::new("web").expect("a name");
    assert_ne!(one, identity.container_credentials(&other));
    identity.revoke_container(&web).expect("it is written down");
    assert_ne!(one, identity.container_credentials(&web));
    let jwt = one.expose().lines().nth(1).expect("the JWT").to_owned();
    let body = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(jwt.split('.').nth(1).expect("claims"))
        .expect("base64url");
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(body["name"], "ctr-_57eb__edge");
    assert_eq!(body["nats"]["tags"], json!(["container:_57eb"]));
    assert_eq!(body["nats"]["pub"], Value::Null);
}

#[test]
fn the_system_account_brings_the_callers_account_along_when_it_is_loaded() {
    let (_parent, _, identity) = fresh();
    let config = identity.server_config().expect("the configuration");
    let jwts = config.lines().filter_map(|line| line.trim().split_once(": eyJ"));
    let tokens: Vec<_> = jwts
        .map(|(_, jwt)| Token::read(&format!("eyJ{jwt}")).expect("a JWT"))
        .collect();
    let named = |name: &str| {
        tokens
            .iter()
            .find(|token| token.name == name)
            .expect("an account")
    };
    let (system, callers) = (named("SYS"), named("CALLERS"));
    let import = &system.nats["imports"][0];
    assert_eq!(import["account"], callers.subject);
    let mut exports = callers.nats["exports"].as_array().expect("exports").iter();
    assert!(exports.any(|export| export["subject"] == import["subject"]));
}

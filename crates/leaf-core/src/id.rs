//! Names and ids. Each is validated when it is constructed.
//!
//! Names that occur in a NATS subject are [tokens](token): `[a-z0-9_-]`. Other names (a container called `Web`) become
//! tokens by an injective encoding, [`encode_token`].

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// An invalid name or id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: {why}")]
pub struct InvalidId {
    /// The expected kind, with its article: `a leaf name`.
    pub what: &'static str,
    /// The text, cut at 80 characters.
    pub text: String,
    /// The reason, and which values are valid.
    pub why: String,
}

impl InvalidId {
    fn new(what: &'static str, text: &str, why: impl Into<String>) -> Self {
        Self {
            what,
            text: text.chars().take(80).collect(),
            why: why.into(),
        }
    }
}

fn check(
    what: &'static str,
    text: &str,
    (max, because): (usize, &str),
    allowed: fn(u8) -> bool,
    alphabet: &str,
) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::new(what, text, "it is empty"));
    }
    if text.len() > max {
        return Err(InvalidId::new(
            what,
            text,
            format!("it has {} bytes, at most {max} are allowed{because}", text.len()),
        ));
    }
    if let Some(bad) = text.chars().find(|c| !u8::try_from(*c).is_ok_and(allowed)) {
        return Err(InvalidId::new(
            what,
            text,
            format!("{bad:?} is not allowed, only {alphabet}"),
        ));
    }
    if text.starts_with('-') {
        return Err(InvalidId::new(
            what,
            text,
            "it begins with '-', which would be taken for a flag",
        ));
    }
    Ok(())
}

fn token_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-')
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, max $max:literal $because:literal, $allowed:expr, $alphabet:literal, $pattern:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
        #[serde(try_from = "String")]
        #[schemars(with = "String", extend("pattern" = $pattern, "maxLength" = $max))]
        pub struct $name(String);

        impl $name {
            /// Returns the validated name.
            ///
            /// # Errors
            /// [`InvalidId`] when it is empty, too long or has a character outside the alphabet.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                check($what, &text, ($max, $because), $allowed, $alphabet)?;
                Ok(Self(text))
            }

            /// Returns the name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        // Not `into = "String"` of serde, which copies the text: ids are in each event.
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// The name of a leaf: one subject token of at most 32 characters. It also names the stream and the keys.
    LeafName, "a leaf name", max 32 "", token_byte, "a-z, 0-9, '_' and '-'", "^[a-z0-9_][a-z0-9_-]*$"
);
text_id!(
    /// The caller of a command: the NATS user's own token, fixed by its publish permission.
    Caller, "a caller", max 64 "", token_byte, "a-z, 0-9, '_' and '-'", "^[a-z0-9_][a-z0-9_-]*$"
);
impl Caller {
    /// Returns the caller of changes that the leaf itself makes.
    #[must_use]
    pub fn daemon() -> Self {
        Self("leafd".to_owned())
    }
}

text_id!(
    /// The name of a nixos-container: at most 11 characters, since its veth `ve-NAME` has room for 15
    /// (nixpkgs `nixos-containers.nix`).
    ContainerName, "a container name", max 11 ": the kernel gives its network interface ve-NAME 15",
    |b| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-'),
    "a-z, A-Z, 0-9, '_' and '-'", "^[a-zA-Z0-9_][a-zA-Z0-9_-]*$"
);
text_id!(
    /// The stable id of a device, such as `usb-046d-c52b-8f3a`: one subject token of at most 96 characters that
    /// survives reboots and, where the device has a serial or an address of its own, another port.
    DeviceId, "a device id", max 96 "", token_byte, "a-z, 0-9, '_' and '-'", "^[a-z0-9_][a-z0-9_-]*$"
);
text_id!(
    /// The id of a command, chosen by its sender so that sending it again is safe: at most 64 characters.
    CommandId, "a command id", max 64 "",
    |b| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b':'),
    "a-z, A-Z, 0-9, '_', '-', '.' and ':'", "^[a-zA-Z0-9_.:][a-zA-Z0-9_.:-]*$"
);

text_id!(
    /// The name of a secret of a leaf: at most 48 characters. It names a file and, without more, a systemd credential.
    SecretName, "a secret's name", max 48 "",
    |b| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-'),
    "a-z, A-Z, 0-9, '_' and '-'", "^[a-zA-Z0-9_][a-zA-Z0-9_-]*$"
);
impl SecretName {
    /// Returns the name as one subject token.
    #[must_use]
    pub fn token(&self) -> String {
        encode_token(self.as_str())
    }
}

/// The name of a service of the host's systemd, such as `postgresql.service` (systemd.unit(5)).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[a-zA-Z0-9:_.\\\\][a-zA-Z0-9:_.@\\\\-]*\\.service$", "maxLength" = 255))]
pub struct UnitName(String);

impl UnitName {
    /// Returns the validated name.
    ///
    /// # Errors
    /// [`InvalidId`] when it is empty, too long, has a character that no unit's name has, or is not that of a service.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
        const WHAT: &str = "a service's name";
        let text = text.into();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b":_.@\\-".contains(&b);
        check(WHAT, &text, (255, ""), allowed, "a-z, A-Z, 0-9 and : _ . @ \\ -")?;
        if text
            .strip_suffix(".service")
            .is_none_or(|name| name.is_empty() || name.starts_with('@'))
        {
            return Err(InvalidId::new(WHAT, &text, "it has the form NAME.service"));
        }
        Ok(Self(text))
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for UnitName {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::new(text)
    }
}

impl From<UnitName> for String {
    fn from(name: UnitName) -> Self {
        name.0
    }
}

impl From<Uuid> for CommandId {
    fn from(id: Uuid) -> Self {
        Self(id.hyphenated().to_string())
    }
}

impl CommandId {
    /// Returns the id of one leaf's command, of a command to several leaves with this id: the same whenever that is sent
    /// again. It is the SHA-256 of both, as hexadecimal.
    #[must_use]
    pub fn for_leaf(&self, leaf: &LeafName) -> Self {
        let mut hash = Sha256::new();
        hash.update(format!("{leaf}\n{self}"));
        Self(HEXLOWER.encode(&hash.finalize()))
    }
}

impl ChangeId {
    /// Returns the id of the change that a command asks for: the same for one that is sent again, also after leafd was started again.
    #[must_use]
    pub fn of_command(caller: &Caller, command: &CommandId) -> Self {
        let hash = Sha256::digest(format!("change\n{caller}\n{command}"));
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }
}

impl ContainerName {
    /// Checks that a container of this name can start. The names that this type holds are those of nixos-container, and
    /// some of them can't: containers of other tools, and of a leaf before it checked this, have them.
    ///
    /// # Errors
    /// [`InvalidId`] with the limit that the name exceeds.
    pub fn check_startable(&self) -> Result<(), InvalidId> {
        let refused = |what: &str| {
            let why = format!(
                "{what}, and systemd-machined takes only names of hosts: letters, digits and '-' between them"
            );
            Err(InvalidId::new(
                "a name that a container can start with",
                &self.0,
                why,
            ))
        };
        if self.0.contains('_') {
            refused("it contains '_'")
        } else if self.0.ends_with('-') {
            refused("it ends with '-'")
        } else {
            Ok(())
        }
    }

    /// Returns the name as one subject token.
    #[must_use]
    pub fn token(&self) -> String {
        encode_token(self.as_str())
    }

    /// Returns the NATS user name of this container on a leaf: `ctr-`, its [token](Self::token), `__` and the leaf. The
    /// prefix keeps containers from taking the name of another caller, and the leaf those of one name from each other's inboxes
    /// in an account that several leaves share. A token has no `__`, so two of them never have the same name.
    #[must_use]
    pub fn caller(&self, leaf: &LeafName) -> Caller {
        Caller(format!("ctr-{}__{leaf}", self.token()))
    }

    /// Returns the NATS user name that containers were given before it named the leaf. Their credentials stay valid.
    #[must_use]
    pub fn earlier_caller(&self) -> Caller {
        Caller(format!("ctr-{}", self.token()))
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0.hyphenated())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                // Only the hyphenated form is accepted, so that an id has one token.
                match Uuid::try_parse(text) {
                    Ok(id) if id.hyphenated().to_string() == text => Ok(Self(id)),
                    _ => Err(InvalidId::new($what, text, "it has the form 01890a5d-ac96-774b-bcce-b302099a8057")),
                }
            }
        }
    };
}

uuid_id!(
    /// The id of a job: a version 7 UUID, so that ids sort by time.
    JobId, "a job id"
);

impl JobId {
    /// Returns the id of the program of a job that runs one: the same bits as a version 8 UUID. It names a directory and a unit, and no
    /// job of a leaf's state.
    #[must_use]
    pub fn program(self) -> Self {
        let mut bytes = *self.0.as_bytes();
        bytes[6] = 0x80 | (bytes[6] & 0x0f);
        Self(Uuid::from_bytes(bytes))
    }
}

uuid_id!(
    /// The id of a work: a build that a second leaf takes over if the first one is lost. A UUID of the client's.
    WorkId, "a work's id"
);
uuid_id!(
    /// The id of a change that can cut a leaf off: a UUID.
    ChangeId, "a change's id"
);
uuid_id!(
    /// The id of an instance of `leafd`: a version 7 UUID, new at each start. It distinguishes two holders of a leaf's
    /// name.
    InstanceId, "an instance id"
);

/// A validated store path below `/nix/store`, such as
/// `/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-net-tools-1.60_p20170221182432`; it has no sub-path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^/nix/store/[0-9abcdfghijklmnpqrsvwxyz]{32}-[0-9a-zA-Z+._?=-]+$"))]
pub struct StorePath(String);

impl StorePath {
    /// Returns the validated store path.
    ///
    /// # Errors
    /// [`InvalidId`] when it is not `/nix/store/<32 base-32 characters>-<name>`.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
        let text = text.into();
        nix_derivation::StorePath::from_absolute_path(text.as_bytes())
            .map_err(|e| InvalidId::new("a store path", &text, e.to_string()))?;
        Ok(Self(text))
    }

    /// Returns the absolute path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for StorePath {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::new(text)
    }
}

impl TryFrom<String> for StorePath {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::new(text)
    }
}

impl From<StorePath> for String {
    fn from(path: StorePath) -> Self {
        path.0
    }
}

/// Returns whether a text is one subject token: `[a-z0-9_-]`, not empty.
#[must_use]
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(token_byte)
}

/// Returns a name as one subject token: `[a-z0-9-]` is kept, every other byte becomes `_` and two lowercase hexadecimal
/// digits (`Web` is `_57eb`, `a_b` is `a_5fb`), and the empty name is `_`. Two names never have the same token;
/// [`decode_token`] returns the name.
#[must_use]
pub fn encode_token(name: &str) -> String {
    use fmt::Write as _;
    if name.is_empty() {
        return "_".to_owned();
    }
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' => token.push(char::from(byte)),
            other => write!(token, "_{other:02x}").expect("writing to a String can't fail"),
        }
    }
    token
}

/// Returns the name of a token made by [`encode_token`]; `None` for any other token.
#[must_use]
pub fn decode_token(token: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.as_bytes();
    if token == "_" {
        return Some(String::new());
    }
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first == b'_' {
            let (hex, tail) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(first);
        }
    }
    let name = String::from_utf8(bytes).ok()?;
    (!name.is_empty() && encode_token(&name) == token).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_foreign_name_becomes_a_token_and_comes_back(name in ".*") {
            let token = encode_token(&name);
            prop_assert!(is_token(&token));
            prop_assert_eq!(decode_token(&token), Some(name));
        }

        #[test]
        fn a_token_that_no_name_makes_is_not_decoded(token in "[a-z0-9_-]{0,8}") {
            if let Some(name) = decode_token(&token) {
                prop_assert_eq!(encode_token(&name), token);
            }
        }
    }

    #[test]
    fn invalid_names_are_refused_with_the_reason() {
        let long = "x".repeat(200);
        for bad in ["", "a/b", "..", "a.b", "ü", "a b", "-rf", "a\0", long.as_str()] {
            let error = ContainerName::new(bad).expect_err(bad).to_string();
            assert!(error.contains("is not a container name"), "{error}");
        }
        assert!(LeafName::new("Web").is_err());
        assert!(ContainerName::new("Web_1-a").is_ok());
        assert!(ContainerName::new("twelve-chars").is_err());
    }

    #[test]
    fn a_name_that_no_machine_can_have_is_known_and_the_limit_is_said() {
        let name = |text: &str| ContainerName::new(text).expect("a name of nixos-container");
        for good in ["f", "Web", "a-b", "0", "a--b", "eleven-char"] {
            name(good).check_startable().expect(good);
        }
        for (bad, says) in [("f_b", "'_'"), ("_fx", "'_'"), ("f-", "ends with '-'")] {
            let error = name(bad).check_startable().expect_err(bad).to_string();
            assert!(
                error.contains(says) && error.contains("systemd-machined"),
                "{error}"
            );
        }
        let long = ContainerName::new("twelve-chars")
            .expect_err("too long")
            .to_string();
        assert!(long.contains("at most 11") && long.contains("ve-NAME"), "{long}");
    }

    #[test]
    fn a_store_path_has_a_hash_a_name_and_nothing_below() {
        let good = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-net-tools-1.60";
        assert_eq!(StorePath::new(good).expect("a store path").as_str(), good);
        for bad in [
            "/etc/passwd",
            "/nix/store/../etc",
            "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a/bin",
            "",
        ] {
            StorePath::new(bad).expect_err(bad);
        }
    }

    #[test]
    fn a_container_is_a_caller_of_its_own() {
        let of = |name: &str, leaf: &str| {
            let leaf = LeafName::new(leaf).expect("a leaf");
            String::from(ContainerName::new(name).expect("a name").caller(&leaf))
        };
        assert_eq!(of("Web", "edge-1"), "ctr-_57eb__edge-1");
        let earlier = String::from(ContainerName::new("a-b").expect("a name").earlier_caller());
        assert_eq!(earlier, "ctr-a-b");
        let names = [
            of("a", "b-c"),
            of("a-b", "c"),
            of("a", "_b"),
            of("a_", "b"),
            of("a", "b"),
            earlier,
        ];
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
    }
}

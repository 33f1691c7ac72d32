//! Who may sign: the file of `ssh-keygen -Y verify` (ssh-keygen(1), *ALLOWED SIGNERS*), and the list of revoked keys.

use std::collections::BTreeSet;
use std::str::FromStr;

use leaf_core::id::Caller;

use crate::signer_line::{Terms, lines, rank};
use crate::ssh_signature::{SignerKey, SignerKeyError};

pub use crate::signer_line::{Limit, LineError, LineProblem, NotAllowed, When};

/// What the fingerprint of an OpenPGP key begins with.
pub(crate) const OPENPGP: &str = "pgp:";

/// The keys that may sign, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedSigners(Vec<Signer>);

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Signer {
    terms: Terms,
    key: SignerKey,
}

/// The keys that may not sign any more, by fingerprint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevokedSigners(BTreeSet<String>);

impl FromStr for AllowedSigners {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let signers =
            lines(text).map(|(line, text)| Signer::of_line(text).map_err(|why| LineError { line, why }));
        signers.collect::<Result<_, _>>().map(Self)
    }
}

impl FromStr for RevokedSigners {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let revoked = lines(text).map(|(line, text)| revoked(text).map_err(|why| LineError { line, why }));
        revoked.collect::<Result<_, _>>().map(Self)
    }
}

/// Returns the fingerprint that a line revokes.
fn revoked(line: &str) -> Result<String, LineProblem> {
    let first = line.split_ascii_whitespace().next().unwrap_or_default();
    if line.starts_with("SHA256:") {
        let fingerprint: Result<ssh_key::Fingerprint, _> = first.parse();
        return fingerprint
            .map(|it| it.to_string())
            .map_err(|_| LineProblem::Fingerprint);
    }
    if let Some(digits) = first.strip_prefix(OPENPGP) {
        let is_fingerprint = digits.len() == 40 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        return is_fingerprint
            .then(|| format!("{OPENPGP}{}", digits.to_ascii_uppercase()))
            .ok_or(LineProblem::Fingerprint);
    }
    match line.parse::<SignerKey>() {
        Ok(key) => Ok(key.fingerprint()),
        Err(SignerKeyError::Malformed(_)) => Err(LineProblem::Fingerprint),
        Err(error) => Err(LineProblem::Key(error)),
    }
}

impl RevokedSigners {
    /// Checks that a key is not revoked.
    ///
    /// # Errors
    /// [`NotAllowed::Revoked`].
    pub fn check(&self, key: &SignerKey) -> Result<(), NotAllowed> {
        self.check_fingerprint(&key.fingerprint())
    }

    /// Checks that the key with this fingerprint (`SHA256:…`, or `pgp:…` in capital letters) is not revoked.
    ///
    /// # Errors
    /// [`NotAllowed::Revoked`].
    pub fn check_fingerprint(&self, fingerprint: &str) -> Result<(), NotAllowed> {
        if self.0.contains(fingerprint) {
            return Err(NotAllowed::Revoked(fingerprint.to_owned()));
        }
        Ok(())
    }
}

impl AllowedSigners {
    /// Checks that a key may sign for a caller, for this purpose, at this time.
    ///
    /// # Errors
    /// [`NotAllowed`], with the reason of the line that comes closest.
    pub fn check(
        &self,
        key: &SignerKey,
        caller: &Caller,
        namespace: &'static str,
        when: When,
    ) -> Result<(), NotAllowed> {
        let mut closest = NotAllowed::Unknown(key.fingerprint());
        for signer in self.0.iter().filter(|signer| signer.key == *key) {
            match signer.refuses(caller, namespace, when) {
                None => return Ok(()),
                Some(reason) if rank(&reason) > rank(&closest) => closest = reason,
                Some(_) => {}
            }
        }
        Err(closest)
    }

    /// Returns whether a line names a caller literally: a pattern matches callers that somebody makes up.
    #[must_use]
    pub fn name(&self, caller: &Caller) -> bool {
        self.0.iter().any(|signer| signer.terms.name(caller))
    }

    /// Returns the keys that may sign for a caller, for this purpose, at this time, each once.
    #[must_use]
    pub fn keys_of(&self, caller: &Caller, namespace: &'static str, when: When) -> Vec<&SignerKey> {
        let signers = self.0.iter();
        let fitting = signers.filter(|signer| signer.refuses(caller, namespace, when).is_none());
        let mut keys: Vec<&SignerKey> = Vec::new();
        for Signer { key, .. } in fitting {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }
}

impl Signer {
    fn of_line(line: &str) -> Result<Self, LineProblem> {
        let is_key = |text: &str| !matches!(text.parse::<SignerKey>(), Err(SignerKeyError::Malformed(_)));
        let (terms, key) = Terms::of_line(line, is_key)?;
        let key = key.parse().map_err(LineProblem::Key)?;
        Ok(Self { terms, key })
    }

    /// Returns why this line does not allow it.
    fn refuses(&self, caller: &Caller, namespace: &'static str, when: When) -> Option<NotAllowed> {
        self.terms
            .refuse(|| self.key.fingerprint(), caller, namespace, when)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJo1s1ZhVJTGBQVSfKHLAd4c8hXzGEOwkaFjQ9D0eR6L";
    const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS";
    const NAMESPACE: &str = "command@cim-leaf";

    fn caller(name: &str) -> Caller {
        Caller::new(name).expect("a caller")
    }

    fn key(line: &str) -> SignerKey {
        line.parse().expect("a key")
    }

    fn at(time: &str) -> Timestamp {
        time.parse().expect("a time")
    }

    fn check(file: &str, name: &str, time: &str) -> Result<(), NotAllowed> {
        let allowed: AllowedSigners = file.parse().expect("allowed signers");
        allowed.check(&key(KEY), &caller(name), NAMESPACE, When::At(at(time)))
    }

    const NOW: &str = "2026-11-30T08:00:00Z";

    #[test]
    fn a_line_allows_its_key_for_its_principals() {
        let file = format!("# people\n\n  ann,ops-*,!ops-old {KEY} a comment\n\"bob\"\t{KEY}\nzoe {OTHER}\n");
        for (name, is_allowed) in [
            ("ann", true),
            ("ops-1", true),
            ("ops-old", false),
            ("bob", true),
            ("zoe", false),
        ] {
            assert_eq!(check(&file, name, NOW).is_ok(), is_allowed, "{name}");
        }
        assert!(matches!(
            check(&file, "zoe", NOW),
            Err(NotAllowed::OtherCaller { .. })
        ));
        assert!(matches!(
            check(&format!("* {OTHER}"), "ann", NOW),
            Err(NotAllowed::Unknown(_))
        ));
    }

    #[test]
    fn options_hold() {
        let namespaces = |list: &str| check(&format!("ann namespaces=\"{list}\" {KEY}"), "ann", NOW);
        assert_eq!(namespaces("file,command@*"), Ok(()));
        assert!(matches!(
            namespaces("file,git"),
            Err(NotAllowed::OtherNamespace { .. })
        ));
        let valid = |from: &str, until: &str, time: &str| {
            let file = format!("ann Valid-After=\"{from}\",namespaces=\"*\",valid-before=\"{until}\" {KEY}");
            check(&file, "ann", time)
        };
        assert_eq!(valid("20261130Z", "20261201Z", NOW), Ok(()));
        assert_eq!(valid("202611300800Z", "20261130080001Z", NOW), Ok(()));
        let refused = valid("202611300801Z", "20261201Z", NOW).expect_err("early");
        assert!(
            refused
                .to_string()
                .ends_with("may sign for ann after 2026-11-30T08:01:00Z only")
        );
        let refused = valid("20261129Z", "20261130075959Z", NOW).expect_err("late");
        assert!(
            refused
                .to_string()
                .ends_with("may sign for ann before 2026-11-30T07:59:59Z only")
        );
        // By a clock that can't be trusted, it is not early, and late once even that clock says so.
        let file = format!("ann valid-after=\"20261201Z\",valid-before=\"20261202Z\" {KEY}");
        let allowed: AllowedSigners = file.parse().expect("allowed signers");
        for (time, is_allowed) in [(NOW, true), ("2026-12-02T00:00:01Z", false)] {
            let checked = allowed.check(&key(KEY), &caller("ann"), NAMESPACE, When::NotBefore(at(time)));
            assert_eq!(checked.is_ok(), is_allowed, "{time}");
        }
        // One line has expired, and another holds.
        let file = format!("ann valid-before=\"20200101Z\" {KEY}\nann {KEY}\n");
        assert_eq!(check(&file, "ann", NOW), Ok(()));
    }

    #[test]
    fn a_line_that_cannot_be_used_is_an_error_with_its_number() {
        let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7";
        for (line, says) in [
            ("ann", "must have principals"),
            ("ann ssh-ed25519", "must have principals"),
            (&format!("ann cert-authority {KEY}"), "cert-authority"),
            (
                &format!("ann cert-authority,namespaces=\"x\" {KEY}"),
                "cert-authority",
            ),
            (&format!("ann {rsa}"), "only ssh-ed25519"),
            ("ann ecdsa-sha2-nistp256 AAAA", "only ssh-ed25519"),
            (&format!("ann namespaces=x {KEY}"), "\"namespaces\""),
            (&format!("ann namespaces=\"x {KEY}"), "not closed"),
            (&format!("\"ann {KEY}"), "not closed"),
            (&format!("ann verify-required {KEY}"), "\"verify-required\""),
            (
                &format!("ann namespaces=\"x\",namespaces=\"y\" {KEY}"),
                "at most once",
            ),
            (&format!("ann valid-after=\"20261130\" {KEY}"), "with the Z"),
            (&format!("ann valid-after=\"20261330Z\" {KEY}"), "20261330Z"),
            (&format!("ann valid-after=\"2026113008Z\" {KEY}"), "2026113008Z"),
            (
                &format!("ann valid-after=\"20261130Z\",valid-before=\"20261130Z\" {KEY}"),
                "not after",
            ),
        ] {
            let error = format!("# first\n{line}\n")
                .parse::<AllowedSigners>()
                .expect_err(line);
            let text = leaf_core::error::chain(&error);
            assert!(
                text.starts_with("line 2 can't be used: ") && text.contains(says),
                "{line}: {text}"
            );
        }
    }

    #[test]
    fn an_openpgp_key_is_revoked_by_its_fingerprint_also_where_none_is_accepted() {
        let line = "pgp:0123456789abcdef0123456789ABCDEF01234567 ann's card";
        let revoked: RevokedSigners = line.parse().expect("revoked signers");
        let fingerprint = "pgp:0123456789ABCDEF0123456789ABCDEF01234567";
        assert_eq!(
            revoked.check_fingerprint(fingerprint),
            Err(NotAllowed::Revoked(fingerprint.to_owned()))
        );
        assert_eq!(revoked.check(&key(KEY)), Ok(()));
        for line in [
            "pgp:",
            "pgp:0123",
            &format!("{fingerprint}0"),
            &fingerprint.replace('F', "G"),
        ] {
            assert!(line.parse::<RevokedSigners>().is_err(), "{line}");
        }
    }

    #[test]
    fn revoked_keys_are_named_by_key_or_fingerprint() {
        let fingerprint = key(KEY).fingerprint();
        for file in [
            format!("# lost\n{KEY} ann"),
            format!("{fingerprint} ann's laptop\n"),
        ] {
            let revoked: RevokedSigners = file.parse().expect("revoked signers");
            assert_eq!(
                revoked.check(&key(KEY)),
                Err(NotAllowed::Revoked(fingerprint.clone()))
            );
            assert_eq!(revoked.check(&key(OTHER)), Ok(()));
        }
        for line in ["SHA256:short", "MD5:aa", "ann"] {
            let error = line.parse::<RevokedSigners>().expect_err(line);
            assert!(
                matches!(
                    error,
                    LineError {
                        line: 1,
                        why: LineProblem::Fingerprint
                    }
                ),
                "{line}"
            );
        }
    }

    #[test]
    fn the_keys_of_a_caller_are_those_that_may_sign_now() {
        let file = format!("ann {KEY}\nann {KEY}\n* valid-before=\"20200101Z\" {OTHER}\nbob {OTHER}\n");
        let allowed: AllowedSigners = file.parse().expect("allowed signers");
        let of = |name: &str| allowed.keys_of(&caller(name), NAMESPACE, When::At(at(NOW))).len();
        assert_eq!((of("ann"), of("bob"), of("zoe")), (1, 1, 0));
    }
}
